"""The user's settings: one TOML file, every key optional, unknown keys refused with the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import platformdirs
from annotated_types import Ge, Gt, Le

from engine.errors import EngineError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Notable = Literal["finished", "failed", "attention"]


class WebAddress:
    """Has pydantic check that a text is an address that can be posted to, or empty."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.check, handler(str))

    @staticmethod
    def check(text: str) -> str:
        """Return an address as it is. Raises ValueError, not in words that hold it."""
        try:
            parts = urlsplit(text)
            # A name and a password before the host would not be sent, and might be shown.
            fit = parts.scheme in ("http", "https") and parts.hostname and not parts.username and parts.port != 0
        except ValueError:
            fit = False
        if text and (not fit or not text.isprintable() or " " in text):
            raise ValueError("must be http:// or https://, a host, and no name or password before it")
        return text


@dataclass(frozen=True)
class Settings:
    """What a user may set. `FUSION_PORT` in the environment wins over `port`.

    A plain dataclass, which pydantic checks only where something is set: loading it costs a fifth of the app's start.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    host: str = "127.0.0.1"  # address that the API listens on
    port: Annotated[int, Ge(1), Le(65535)] = 7878  # port that the API listens on
    allowed_hosts: tuple[str, ...] = ()  # more Host names that the API answers to
    usd_per_gpu_hour: Annotated[float, Ge(0)] = 0.0  # what an hour of the card costs you
    trainer_python: str = sys.executable  # interpreter that training runs in
    allow_full_decoder: bool = False  # whether the second dialect may train every weight of a model
    max_upload_gb: Annotated[float, Gt(0), Le(1_000_000)] = 20.0  # largest file that can be sent to the API
    keep_checkpoints: Annotated[int, Ge(2), Le(1000)] = 2  # newest checkpoints kept beside the best one
    stall_limit_minutes: Annotated[float, Ge(0)] = 0.0  # silence after which a worker is ended; 0: never
    # How the app looks and which keys it has. See docs/app.md.
    theme: Literal["auto", "dark", "light", "ansi"] = "auto"  # ansi: 16 colours; auto: dark where there are more
    motion: Literal["auto", "full", "reduced"] = "auto"  # reduced: no animation, news once a second; auto: over SSH
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # action id → key, or list of keys
    # Runs that nobody watches: who is told of what, and what they may take. See docs/reliability.md.
    notify_command: tuple[str, ...] = ()  # command and arguments, run for each notice without a shell
    # Gets a POST for each notice; it may hold a password, so that nothing shows it.
    notify_webhook: Annotated[str, WebAddress] = dataclasses.field(default="", repr=False)
    notify_on: tuple[Notable, ...] = get_args(Notable)  # what notices are for
    max_hours: Annotated[float, Ge(0)] = 0.0  # hours at work after which a run saves and stops; 0: never
    max_usd: Annotated[float, Ge(0)] = 0.0  # cost at usd_per_gpu_hour after which a run saves and stops; 0: never


@dataclass(frozen=True)
class Setting:
    """One setting as it is in force, and where it comes from: default, file or FUSION_PORT."""

    name: str
    value: Any
    default: Any
    source: str


UNKNOWN = "unexpected_keyword_argument"  # what pydantic calls a field that a dataclass lacks


def settings_file() -> Path:
    """Return the file that FUSION_CONFIG names, else the platform's own."""
    named = os.environ.get("FUSION_CONFIG")
    return Path(named).expanduser().absolute() if named else platformdirs.user_config_path("fusion-tui") / "config.toml"


def told(config: Settings) -> tuple[Setting, ...]:
    """Return every setting with its value and where it comes from; what equals its default counts as such.

    Of a value that may hold a password only the host is there.
    """
    standard = Settings()
    found = []
    for field in fields(Settings):
        value, default = getattr(config, field.name), getattr(standard, field.name)
        by_port = field.name == "port" and bool(os.environ.get("FUSION_PORT"))
        source = "FUSION_PORT" if by_port else "default" if value == default else "file"
        shown = value if field.repr or not value else f"{value.partition('//')[0]}//{urlsplit(value).hostname}/…"
        found.append(Setting(field.name, shown, default, source))
    return tuple(found)


def begin_file(path: Path) -> None:
    """Write a settings file in which every default stands behind a #, where there is none. Raises OSError."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# {one.name} = {json.dumps(one.default, default=list)}" for one in told(Settings())]
    head = "# Settings of fusion-tui. Take the # away and write another value; what stays behind a # is the default."
    with path.open("x") as file:
        file.write("\n".join([head, "", *lines, ""]))


def load() -> Settings:
    """Read the settings. Raises EngineError, naming the file and the key."""
    path = settings_file()
    try:
        values = tomllib.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise EngineError(f"The settings file {path} cannot be read: {error}") from None
    if port := os.environ.get("FUSION_PORT"):
        values["port"] = port
    if not values:
        return Settings()
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][0])
        source = "FUSION_PORT" if key == "port" and port else f"{path}: {key}"
        close = difflib.get_close_matches(key, [field.name for field in fields(Settings)], n=1)
        hint = f" Did you mean '{close[0]}'?" if close and fault["type"] == UNKNOWN else ""
        what = "is not a setting" if fault["type"] == UNKNOWN else fault["msg"].lower()
        raise EngineError(f"{source}: {what}.{hint}") from None
