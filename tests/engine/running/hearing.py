"""Those who hear of runs, in tests: a real server and a real command of a user."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server:
    """A webhook on this machine: it keeps what it is sent and answers with `answers`, the last of them for ever."""

    def __init__(self, answers: tuple[int, ...] = (200,)) -> None:
        self.got: list[dict[str, Any]] = []
        self.paths: list[str] = []
        outer, left = self, list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.paths.append(self.path)
                outer.got.append(json.loads(body))
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook/a-secret"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Script:
    """A user's command: it adds a line to a file, with its arguments and what its environment says."""

    def __init__(self, folder: Path, then: str = "") -> None:
        self.kept = folder / "told"
        path = folder / "notify"
        path.write_text(
            f"#!{sys.executable}\nimport json, os, sys, time\n"
            "facts = {k: v for k, v in os.environ.items() if k.startswith('FUSION_')}\n"
            f"open({str(self.kept)!r}, 'a').write(json.dumps([sys.argv[1:], facts]) + '\\n')\n{then}\n"
        )
        path.chmod(0o700)
        self.path = path
        self.argv = (str(path), "{event}", "about {job_id}", "{message}")

    def told(self) -> list[tuple[list[str], dict[str, str]]]:
        """Return what it was called with, each time."""
        return [json.loads(line) for line in self.kept.read_text().splitlines()] if self.kept.exists() else []

    def causes(self) -> list[str]:
        """Return the cause of each notice."""
        return [facts["FUSION_CAUSE"] for _, facts in self.told()]
