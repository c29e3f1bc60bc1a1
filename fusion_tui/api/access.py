"""What a route asks of a request: the service, an id, and a key with the scope that it needs.

The rule: every route but the open ones names the scope it needs, and no id reaches the store that is no UUID.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import Depends, HTTPException, Path, Request
from fastapi.params import Depends as Dependency

from engine.service import Key, Service
from store.errors import NotFound

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
LARGEST = 2**63 - 1  # of SQLite's integers

Scope = Literal["train", "read", "datasets", "models", "billing"]


def needs(scope: Scope) -> Dependency:
    """Return a dependency that refuses keys without `scope`."""

    async def check(request: Request) -> None:
        key: Key = request.state.key
        if scope not in key.scopes:
            raise HTTPException(403, f"The key '{key.name}' lacks the scope '{scope}'.")

    dependency: Dependency = Depends(check)
    return dependency


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def as_uuid(id: str) -> str:
    """Return an id as it is stored. Raises NotFound for anything that cannot be one, before it touches anything."""
    if not UUID.fullmatch(id.lower()):
        raise NotFound("No such id: ids are UUIDs.")
    return id.lower()


async def _id(id: Annotated[str, Path(json_schema_extra={"format": "uuid"})]) -> str:
    return as_uuid(id)


Engine = Annotated[Service, Depends(_service)]
Id = Annotated[str, Depends(_id)]
READ = [needs("read")]
TRAIN = [needs("train")]
DATASETS = [needs("datasets")]
MODELS = [needs("models")]
