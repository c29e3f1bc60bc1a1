"""The two ways by which a notice leaves: the user's own command, and one POST of JSON to a webhook.

The rule: a way never raises and never waits without end; it returns why it failed. Of a webhook's address only the
host is ever said, for the rest of it may be a password.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from engine import process
from engine.text import clean_text
from store.jobs import Job

COMMAND_SECONDS = 60.0
ANSWER_SECONDS = 10.0
WAITS = (2.0, 10.0, 30.0)  # seconds between two tries of a webhook
WORTH_ANOTHER_TRY = {408, 425, 429}  # beside all of 500 and above
WORDS_AT_MOST = 300  # characters of a command's last words


@dataclass(frozen=True)
class Notice:
    """What is told of a job: `event` is finished, failed or attention; `cause` says more closely what it is."""

    id: str
    event: str
    cause: str
    message: str
    at: float
    job: Job


class Way(Protocol):
    """A way out for notices."""

    name: str

    def send(self, notice: Notice) -> str | None:
        """Send a notice; return why that failed, or None."""


class Command:
    """The user's own command: no shell between, its facts in the environment, ended with its group after a minute."""

    name = "command"

    def __init__(self, argv: Sequence[str], root: Path, *, seconds: float = COMMAND_SECONDS) -> None:
        self._argv = (os.path.expanduser(argv[0]), *argv[1:])
        self._root = root
        self._seconds = seconds

    def send(self, notice: Notice) -> str | None:
        """Run the command to its end; return why that failed, with the last line of its error output."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                return self._run(notice, Path(folder) / "stderr")
        except (OSError, ValueError) as error:
            return f"it could not be run: {getattr(error, 'strerror', None) or error}"

    def _run(self, notice: Notice, words: Path) -> str | None:
        child = process.spawn(
            [_filled(argument, notice) for argument in self._argv],
            cwd=self._root,
            stdout=Path("/dev/null"),
            stderr=words,
            environment={"FUSION_HOME": str(self._root), **_environment(notice)},
        )
        try:
            code = child.wait(timeout=self._seconds)
        except subprocess.TimeoutExpired:
            # A child that is not reaped yet is still this one, so that its identity is read in time.
            if identity := process.identify(child.pid):
                process.send(identity, signal.SIGKILL, group=True)
            child.wait()
            return f"it took longer than {self._seconds:g} s and was ended"
        if code == 0:
            return None
        lines = words.read_text(errors="replace").splitlines()
        last = next((clean_text(line).strip() for line in reversed(lines) if line.strip()), "")
        return f"it left with exit status {code}{f': {last[:WORDS_AT_MOST]}' if last else ''}"


def _filled(argument: str, notice: Notice) -> str:
    """Fill in an argument. None of the three begins with what somebody else wrote, so none turns into an option."""
    facts = {"{event}": notice.event, "{job_id}": notice.job.id, "{message}": notice.message}
    # One after the other: what a message says is filled in last, and not looked through again.
    for mark, text in facts.items():
        argument = argument.replace(mark, text)
    return argument


def _environment(notice: Notice) -> dict[str, str]:
    return {
        "FUSION_EVENT": notice.event,
        "FUSION_CAUSE": notice.cause,
        "FUSION_MESSAGE": notice.message,
        "FUSION_JOB_ID": notice.job.id,
        "FUSION_JOB_NAME": one_line(notice.job.name),
        "FUSION_JOB_TYPE": notice.job.type,
        "FUSION_JOB_STATE": notice.job.state,
        "FUSION_NOTICE_ID": notice.id,
    }


def one_line(text: str) -> str:
    """Return text as one line that an environment and a terminal can hold."""
    return " ".join(clean_text(text).encode(errors="replace").decode().split())


class Webhook:
    """A POST of JSON, tried again after growing waits where another try may help. No redirect is followed."""

    def __init__(
        self, address: str, wait: Callable[[float], bool], *, waits: Sequence[float] = WAITS, seconds: float = 0.0
    ) -> None:
        """`wait` waits so many seconds and returns whether to give up; `seconds` is the patience with each try."""
        self._address = address
        self._wait = wait
        self._waits = waits
        self._seconds = seconds or ANSWER_SECONDS
        self._opener = urllib.request.build_opener(_Unfollowed)
        self.name = f"webhook at {urlsplit(address).hostname}"

    def send(self, notice: Notice) -> str | None:
        """Post a notice; return why that failed."""
        body = json.dumps(_body(notice)).encode()
        for wait in (*self._waits, None):
            why, again = self._try(body)
            if why is None or not again or wait is None:
                return why
            if self._wait(wait):
                return f"{why}; not tried again, for the supervisor left"
        return None

    def _try(self, body: bytes) -> tuple[str | None, bool]:
        """Return why a try failed, if it did, and whether another one may help."""
        headers = {"Content-Type": "application/json", "User-Agent": "fusion-tui"}
        try:
            request = urllib.request.Request(self._address, body, headers, method="POST")  # noqa: S310  (http, https)
            with self._opener.open(request, timeout=self._seconds):
                return None, False
        except urllib.error.HTTPError as error:
            error.close()
            moved = "; redirects are not followed: name the address that it leads to" if error.code < 400 else ""
            return f"it answered {error.code}{moved}", error.code >= 500 or error.code in WORTH_ANOTHER_TRY
        except (OSError, HTTPException, ValueError) as error:
            return self._words(error), True

    def _words(self, error: Exception) -> str:
        """Say what went wrong, not in the error's own words: they may hold the address."""
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"no answer in {self._seconds:g} s"
        return (isinstance(reason, OSError) and reason.strerror) or type(reason).__name__


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an answer that is not the one wanted."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _body(notice: Notice) -> Mapping[str, Any]:
    job = notice.job
    return {
        "id": notice.id,
        "event": notice.event,
        "cause": notice.cause,
        "text": notice.message,
        "at": datetime.fromtimestamp(notice.at, timezone.utc).isoformat(timespec="seconds"),
        "job": {
            "id": job.id,
            "name": job.name,
            "type": job.type,
            "state": job.state,
            "step": job.step,
            "total_steps": job.total_steps,
            "error": job.error,
        },
    }
