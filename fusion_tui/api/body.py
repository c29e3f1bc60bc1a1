"""Reading a JSON body.

The rule: a route gets a JSON object that means one thing only, or the request ends here. Two readers of one body must
not see two requests, so repeated keys, NaN, infinities and broken text are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, get_args

from fastapi import Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

MAX_DEPTH = 32  # a request nests three deep; the rest is room
MAX_FIELDS = 256  # of one object: each that is not known is compared with all that are
MAX_DIGITS = 64  # turning digits into a number takes quadratic time

Model = TypeVar("Model", bound=BaseModel)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice in one object")
    if len(pairs) > MAX_FIELDS:
        raise ValueError(f"an object has more than {MAX_FIELDS} fields")
    return values


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _check_nesting_and_text(value: Any) -> None:
    """Raise ValueError for nesting beyond MAX_DEPTH and for half surrogate pairs, which no answer could repeat."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()
            elif isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise ValueError(f"it nests deeper than {MAX_DEPTH}")


def parse(body: bytes) -> Any:
    """Return the value of a JSON text. Raises HTTPException 400."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        _check_nesting_and_text(value)
    except UnicodeError:
        raise HTTPException(400, "The body is not UTF-8 text.") from None
    except RecursionError:
        raise HTTPException(400, f"The body is not usable JSON: it nests deeper than {MAX_DEPTH}.") from None
    except ValueError as error:
        raise HTTPException(400, f"The body is not usable JSON: {error}.") from None
    return value


def _need_json(request: Request) -> None:
    media, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    if media.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise HTTPException(415, "Send the body as application/json, in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Send the body without a content encoding.")


async def json_object(request: Request) -> dict[str, Any]:
    """Return the request's JSON object. Raises HTTPException 400 or 415, RequestValidationError for other JSON."""
    _need_json(request)
    value = parse(await request.body())
    if not isinstance(value, dict):
        fault = {"loc": ("body",), "msg": "Input should be an object", "type": "dict_type"}
        raise RequestValidationError([fault])
    return value


JsonObject = Annotated[dict[str, Any], Depends(json_object)]


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """Return `values` as a `model`. Raises RequestValidationError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None


def documented(*models: type[BaseModel], by: str = "type") -> dict[str, Any]:
    """Return what a route's OpenAPI entry says of a body that `json_object` reads; of several, `by` tells which."""
    places = {model: f"#/components/schemas/{model.__name__}" for model in models}
    schema: dict[str, Any] = {"oneOf": [{"$ref": place} for place in places.values()]}
    if len(models) == 1:
        schema = schema["oneOf"][0]
    else:
        words = {get_args(model.model_fields[by].annotation)[0]: place for model, place in places.items()}
        schema["discriminator"] = {"propertyName": by, "mapping": words}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def schemas(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """Return the OpenAPI component schemas of the bodies' models and of all they refer to."""
    found: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return found
