"""One HTTP call with the key: all that a client of either dialect needs. Standard library only.

FUSION_URL is the server (default http://127.0.0.1:7878), FUSION_KEY its key (default: what `fusion-tui token` prints).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

URL = os.environ.get("FUSION_URL", "http://127.0.0.1:7878").rstrip("/")
TIMEOUT_S = 60.0  # without a byte of the answer
PATIENCE = 10  # tries while the server is busy or asks to wait


def key() -> str:
    """Return the API key."""
    if given := os.environ.get("FUSION_KEY"):
        return given
    printed = subprocess.run(["fusion-tui", "token"], capture_output=True, text=True, check=True)  # noqa: S607
    return printed.stdout.strip()


KEY = key()


def call(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Return the JSON that a request is answered with; ends the program, saying why, where it is refused."""
    sent = {"Authorization": f"Bearer {KEY}", **(headers or {})}
    data = None
    if body is not None:
        sent["Content-Type"] = "application/json"
        data = json.dumps(body).encode()
    for _ in range(PATIENCE):
        request = urllib.request.Request(URL + path, data, sent, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            if error.code not in (429, 503):
                raise SystemExit(f"{method} {path}: {error.code} {said}") from None
            time.sleep(float(error.headers.get("Retry-After", 1)))
        except urllib.error.URLError as error:
            raise SystemExit(f"No server at {URL} ({error.reason}). Start one with: fusion-tui serve") from None
        except (TimeoutError, ConnectionError, HTTPException) as error:
            why = f"sent nothing for {TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else f"broke off ({error})"
            raise SystemExit(
                f"{method} {path}: the server at {URL} {why}. It may have done it all the same: look first."
            ) from None
    raise SystemExit(f"{method} {path}: the server stayed busy.")


def put_file(url: str, content: bytes, content_type: str) -> None:
    """Send a file to a signed URL, which needs no key."""
    request = urllib.request.Request(url, content, {"Content-Type": content_type}, method="PUT")  # noqa: S310
    with urllib.request.urlopen(request, timeout=600):  # noqa: S310
        pass


def fetch(url: str, file: str) -> int:
    """Save what a signed URL answers with; return the number of bytes."""
    with urllib.request.urlopen(url, timeout=600) as answer, open(file, "wb") as out:  # noqa: S310
        while piece := answer.read(1024 * 1024):
            out.write(piece)
        return out.tell()
