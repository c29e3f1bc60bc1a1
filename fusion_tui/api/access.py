"""What a request's key may do, and what the OpenAPI document says of keys.

The rule: every route but the open ones names the scope it needs.
"""

from __future__ import annotations

from typing import Literal

from fastapi import Depends, HTTPException, Request, Security
from fastapi.params import Depends as Dependency
from fastapi.security import APIKeyHeader, HTTPBearer

from engine.service import Key

Scope = Literal["train", "read", "datasets", "models", "billing"]

# The guard has looked at the key before; these two only tell OpenAPI how to send it: either will do.
SCHEMES = [
    Security(HTTPBearer(auto_error=False, scheme_name="Bearer")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="ApiKey")),
]


def needs(scope: Scope) -> Dependency:
    """Return a dependency that refuses keys without `scope`."""

    async def check(request: Request) -> None:
        key: Key = request.state.key
        if scope not in key.scopes:
            raise HTTPException(403, f"The key '{key.name}' lacks the scope '{scope}'.")

    dependency: Dependency = Depends(check)
    return dependency
