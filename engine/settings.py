"""The user's settings: one TOML file, every key optional, unknown keys refused with the nearest name."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import EngineError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Settings(BaseModel):
    """What a user may set. `FUSION_PORT` in the environment wins over `port`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(7878, ge=1, le=65535, description="Port that the API listens on.")
    allowed_hosts: tuple[str, ...] = Field((), description="More Host names that the API answers to.")
    usd_per_gpu_hour: float = Field(0.0, ge=0, description="What an hour of the card costs you.")
    trainer_python: str = Field(sys.executable, description="Interpreter that training runs in.")
    keep_checkpoints: int = Field(2, ge=2, le=1000, description="Newest checkpoints kept beside the best one.")


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
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][0])
        source = "FUSION_PORT" if key == "port" and port else f"{path}: {key}"
        close = difflib.get_close_matches(key, Settings.model_fields, n=1)
        hint = f" Did you mean '{close[0]}'?" if close and fault["type"] == "extra_forbidden" else ""
        what = "is not a setting" if fault["type"] == "extra_forbidden" else fault["msg"].lower()
        raise EngineError(f"{source}: {what}.{hint}") from None
