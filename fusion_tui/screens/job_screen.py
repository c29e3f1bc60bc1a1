"""What the screens that show runs have in common: the app's data, and stopping, retrying, deleting a run.

The rule: a screen asks, the service decides; a question about losing something has No for its default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from textual.screen import Screen

from engine.service import Job, Service
from fusion_tui import format as fmt
from fusion_tui.screens.confirm import Confirm

if TYPE_CHECKING:
    from fusion_tui.app import FusionApp


class FusionScreen(Screen[None]):
    """A screen of this app."""

    @property
    def fusion(self) -> FusionApp:
        """The app, by its own type."""
        return cast("FusionApp", self.app)

    @property
    def service(self) -> Service:
        """The one door; call it in `fusion.act` or a worker."""
        return self.fusion.service


class JobScreen(FusionScreen):
    """A screen with a run that keys act on."""

    def current_job(self) -> Job | None:
        """Return the run that the keys mean."""
        raise NotImplementedError

    def action_stop(self) -> None:
        """Ask, then stop the run."""
        job = self.current_job()
        if job is None or not self.fusion.may_change():
            return
        if job.finished:
            self.notify(f"{fmt.clean(job.name)} is {job.state} already.", markup=False)
            return
        question = f"Stop {fmt.clean(job.name)}?"
        detail = "It finishes its step and saves a checkpoint; r queues it again from there."
        self._ask(question, detail, lambda: self._stop(job))

    def action_retry(self) -> None:
        """Queue the run again."""
        job = self.current_job()
        if job is not None and self.fusion.may_change():
            self.fusion.act(lambda: f"{self.service.retry(job.id).name} is queued again.")

    def action_delete(self) -> None:
        """Ask, then delete the run."""
        job = self.current_job()
        if job is None or not self.fusion.may_change():
            return
        if not job.finished:
            self.notify(f"{fmt.clean(job.name)} is {job.state}: stop it first (s).", markup=False)
            return
        question = f"Delete {fmt.clean(job.name)}?"
        detail = "Its curve, log and checkpoints go, pinned ones too; the model it made stays."
        self._ask(question, detail, lambda: self._delete(job))

    def _ask(self, question: str, detail: str, then: Callable[[], str]) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.fusion.act(then)

        self.app.push_screen(Confirm(question, detail), answered)

    def _stop(self, job: Job) -> str:
        after = self.service.cancel(job.id)
        return f"{job.name} is cancelled." if after.finished else f"{job.name} finishes its step, saves and stops."

    def _delete(self, job: Job) -> str:
        self.service.delete(job.id)
        return f"{job.name} is deleted."
