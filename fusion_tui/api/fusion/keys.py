"""Dialect A's routes about API keys.

The rule: a secret is shown once, in the answer that makes it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from fusion_tui.api import body, errors
from fusion_tui.api.access import READ, TRAIN, Engine, Id, Scope
from fusion_tui.api.answer import Answer, Timestamp

router = APIRouter(tags=["keys"], responses=errors.documented(401, 403, 421, 422, 503))


def _once(scopes: list[Scope]) -> list[Scope]:
    if len(set(scopes)) != len(scopes):
        raise ValueError("a scope stands twice")
    return scopes


class NewKey(BaseModel):
    """A key to make: what it is for, and what it may do."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={"examples": [{"name": "dashboard", "scopes": ["read", "billing"]}]},
    )

    name: Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
    scopes: Annotated[list[Scope], AfterValidator(_once)] = Field(
        min_length=1,
        description="Each once, and none that the key lacks that asks.",
        json_schema_extra={"uniqueItems": True},
    )


class KeyEntry(Answer):
    """A key without its secret."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: Timestamp


class MadeKey(KeyEntry):
    """A key that was just made. `secret` is shown here and never again."""

    secret: str


@router.get("/keys", dependencies=READ)
def list_keys(service: Engine) -> list[KeyEntry]:
    """List the keys, without their secrets."""
    keys = service.keys()
    return [KeyEntry.model_validate(asdict(key)) for key in keys]


@router.post(
    "/keys",
    status_code=201,
    dependencies=TRAIN,
    responses=errors.documented(400, 408, 413, 415),
    openapi_extra=body.documented(NewKey),
)
def make_key(service: Engine, request: Request, payload: body.JsonObject) -> MadeKey:
    """Make a key with some of the scopes that the asking key has itself. Its secret is in this answer alone."""
    asked = body.validated(NewKey, payload)
    made = service.make_key(asked.name, asked.scopes, by=request.state.key)
    return MadeKey.model_validate(asdict(made.key) | {"secret": made.secret})


@router.delete("/keys/{id}", status_code=204, dependencies=TRAIN, responses=errors.documented(404))
def revoke_key(service: Engine, request: Request, key_id: Id) -> None:
    """End a key at once, the asking one too. Where the first key is gone, `fusion-tui token` makes a new one."""
    service.revoke_key(key_id, by=request.state.key)
