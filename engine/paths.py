"""Where everything lies: one data folder, private to its user.

The rule: no other module joins path names of the data folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from engine.errors import Conflict

# What can name a model or dataset.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

ASSETS = Path(__file__).parent / "assets"
STARTER_MODEL = ASSETS / "starter-model"
STARTER_ROWS = ASSETS / "starter-data" / "rows.jsonl"

PARTS = ("runs", "models", "datasets", "cache", "requests", "uploads")


@dataclass(frozen=True)
class Home:
    """The data folder. Make one with `Home.default()` or `Home(path)`, then `make()` it."""

    root: Path

    @classmethod
    def default(cls) -> Home:
        """Return the folder that FUSION_HOME names, else the platform's own."""
        named = os.environ.get("FUSION_HOME")
        return cls(Path(named).expanduser().absolute() if named else platformdirs.user_data_path("fusion-tui"))

    def make(self) -> None:
        """Make the folder and its parts, readable by this user alone. Raises Conflict where that cannot be done."""
        try:
            for folder in (self.root, *(self.root / name for name in PARTS)):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.root.stat().st_mode & 0o077:
                self.root.chmod(0o700)
        except OSError as error:
            raise Conflict(
                f"The data folder {self.root} cannot be made ({error.strerror}). Set FUSION_HOME to another."
            ) from None

    def read_only(self) -> bool:
        """Say whether there is a store here that is to be looked at alone: so asked, or not this user's to write."""
        if os.environ.get("FUSION_READ_ONLY", "0") not in ("", "0"):
            return True
        # Not Path.exists(), which raises where the folder may not even be entered.
        there = os.path.exists(self.store)
        return there and not (os.access(self.root, os.W_OK) and os.access(self.store, os.W_OK))

    @property
    def store(self) -> Path:
        """The job store."""
        return self.root / "store.db"

    @property
    def lock(self) -> Path:
        """Held by the one supervisor; never unlinked."""
        return self.root / "supervisor.lock"

    @property
    def app_lock(self) -> Path:
        """Held, shared, by every open app; the supervisor leaves some time after the last."""
        return self.root / "app.lock"

    @property
    def app_state(self) -> Path:
        """What the app showed last, to come back to; safe to delete."""
        return self.root / "app.json"

    @property
    def supervisor_info(self) -> Path:
        """Who the supervisor is and where its API listens."""
        return self.root / "supervisor.json"

    @property
    def ballast(self) -> Path:
        """Room that is given up when the disk is full."""
        return self.root / "ballast"

    @property
    def supervisor_log(self) -> Path:
        """Output of a supervisor in the background."""
        return self.root / "supervisor.log"

    @property
    def token(self) -> Path:
        """The first API key, mode 0600."""
        return self.root / "token"

    def request(self, name: str) -> Path:
        """A request that the form wrote, for `submit --file`."""
        return self.root / "requests" / f"{name}.json"

    def run(self, job_id: str) -> Path:
        """All files of one job's run."""
        return self.root / "runs" / job_id

    def attempt(self, job_id: str, fence: int) -> Path:
        """Files that only the worker with this fence writes."""
        return self.run(job_id) / f"attempt-{fence}"

    def runs(self) -> list[Path]:
        """The folders of all jobs' runs."""
        return list((self.root / "runs").iterdir())

    def start_model(self, job_id: str) -> Path:
        """The model that a job starts from which starts from a checkpoint; its own worker makes it."""
        return self.run(job_id) / "start-model"

    def model(self, model_id: str) -> Path:
        """A model that a job made or an import converted."""
        return self.root / "models" / model_id

    def model_stages(self, model_id: str) -> Iterator[Path]:
        """Where workers that died began to write a model; `engine.trainer.publish` names them."""
        return (self.root / "models").glob(f".{model_id}.stage-*")

    def dataset(self, dataset_id: str) -> Path:
        """The immutable copy of a dataset version."""
        return self.root / "datasets" / dataset_id

    @property
    def signing_key(self) -> Path:
        """What addresses that need no key are signed with, mode 0600; removing it ends them all."""
        return self.root / "signing-key"

    @property
    def uploads(self) -> Path:
        """Files that are sent here, until they are datasets."""
        return self.root / "uploads"

    def upload(self, upload_id: str) -> Path:
        """One such file, with the lock of who works on it."""
        return self.uploads / upload_id

    def tokens(self, dataset_id: str) -> Path:
        """The cached tokens of a dataset version, one folder for each tokenizer; safe to delete."""
        return self.root / "cache" / dataset_id
