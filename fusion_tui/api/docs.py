"""`/docs`: the API's document as a page to read and try, offline.

The rule: nothing comes from the network, and the page may run nothing but the files that are named here.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response

FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")  # of the package fastapi_offline
PAGE = "/docs"
START = f"{PAGE}/start.js"
PATHS = (PAGE, START, *(f"{PAGE}/{name}" for name in FILES))  # open to those without a key, as the document is
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

_HTML = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Fusion TUI: HTTP API</title>
<link rel="icon" href="{PAGE}/favicon.png"><link rel="stylesheet" href="{PAGE}/swagger-ui.css"></head>
<body><div id="page"></div><script src="{PAGE}/swagger-ui-bundle.js"></script><script src="{START}"></script></body>
</html>
"""
_SCRIPT = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#page", deepLinking: true, docExpansion: "none", validatorUrl: null,
  persistAuthorization: false
});
"""

router = APIRouter(include_in_schema=False)


@router.get(PAGE)
async def page() -> HTMLResponse:
    """Answer the page."""
    return HTMLResponse(_HTML, headers=HEADERS)


@router.get(START)
async def start() -> Response:
    """Answer the script that fills the page."""
    return Response(_SCRIPT, media_type="text/javascript", headers=HEADERS)


def _serving(name: str) -> Callable[[], Coroutine[Any, Any, FileResponse]]:
    path = Path(str(files("fastapi_offline"))) / "static" / name

    async def serve() -> FileResponse:
        return FileResponse(path, headers=HEADERS)

    return serve


for _name in FILES:
    router.add_api_route(f"{PAGE}/{_name}", _serving(_name))
