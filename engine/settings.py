"""The user's settings: one TOML file, every key optional, unknown keys refused with the nearest name."""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import platformdirs
from annotated_types import Ge, Gt, Le

from engine.errors import EngineError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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


UNKNOWN = "unexpected_keyword_argument"  # what pydantic calls a field that a dataclass lacks


def settings_file() -> Path:
    """Return the file that FUSION_CONFIG names, else the platform's own."""
    named = os.environ.get("FUSION_CONFIG")
    return Path(named).expanduser().absolute() if named else platformdirs.user_config_path("fusion-tui") / "config.toml"


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
