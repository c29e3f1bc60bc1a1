"""The terminal app: holds what is known, sends keys to screens, and may be closed at any moment.

The rule: the app owns no run. Leaving it, or killing it, changes nothing but the screen.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import SystemCommand
from textual.await_complete import AwaitComplete
from textual.reactive import var
from textual.screen import Screen

from engine.service import Service, StoreError
from fusion_tui import appearance
from fusion_tui import format as fmt
from fusion_tui.messages import (
    Comparison,
    ComparisonChanged,
    Overview,
    OverviewChanged,
    RunChanged,
    RunGone,
    RunView,
    Supervision,
)
from fusion_tui.poller import Poller
from fusion_tui.returning import Returning
from fusion_tui.screens.runs import RunsScreen
from fusion_tui.shell import Shell

if TYPE_CHECKING:
    from fusion_tui.daemon import SupervisorInfo


# How long leaving in order may take.
LEAVE_SECONDS = 3.0
# Screens that a digit opens, beside home.
PLACES = frozenset({"datasets", "models", "system"})


class _Threads(ThreadPoolExecutor):
    """Threads that asyncio does not wait for at its end: a call may stand for long at a store that is locked.

    Whatever they do is such that it may end at any moment, and `_end_soon` sees to it that it does.
    """

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and let go of those at work."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


class FusionApp(Shell):
    """The app over one service. `supervisor` looks for a running supervisor, `start_supervisor` brings one up.

    With `has_process` the process is the app's own, and ends with it.
    """

    TITLE = "Fusion"

    # `var`, not `reactive`: a change of these is for screens to show, and must not paint the whole terminal anew.
    overview: var[Overview] = var(Overview())
    view: var[RunView | None] = var(None)
    gone: var[str] = var("")
    comparison: var[Comparison] = var(Comparison())

    def __init__(
        self,
        service: Service,
        *,
        supervisor: Callable[[], SupervisorInfo | None] | None = None,
        start_supervisor: Callable[[], object] | None = None,
        start_on_open: bool = False,
        has_process: bool = False,
        interval: float | None = None,
    ) -> None:
        super().__init__(service.settings)
        self.service = service
        self.returning = Returning(self, service.settings.theme)
        self.take_theme(self.returning.theme)
        self._supervisor = supervisor or partial(_running, service)
        self._start_supervisor = start_supervisor or partial(_ensure_running, service)
        self._start_on_open = start_on_open
        self._has_process = has_process
        self._deadline: threading.Timer | None = None
        self._app_lock: int | None = None
        self._handlers: dict[int, Any] = {}  # of signals, as they were before this app
        self.poller = Poller(service, self.post_message, self._supervision, interval=interval or self.news_every)

    def get_default_screen(self) -> Screen[object]:
        """Home is the list of runs."""
        return RunsScreen(id="home")  # type: ignore[return-value]

    # Opening and leaving ------------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Say that an app is open, and begin to look."""
        self._tell_open()
        self.take_keys()
        self.returning.open()
        loop = asyncio.get_running_loop()
        if self._has_process:
            # Elsewhere the store is closed after the app, which no thread may survive that still reads it.
            loop.set_default_executor(_Threads(thread_name_prefix="app"))
        told = partial(self._told_to_go, loop)
        self._handlers = {number: signal.signal(number, told) for number in (signal.SIGHUP, signal.SIGTERM)}
        self.run_worker(self.poller.run, thread=True, name="poller", exit_on_error=False)
        if self._start_on_open:
            self.run_worker(partial(self._bring_up, quiet=True), thread=True, exit_on_error=False)

    def _tell_open(self) -> None:
        """Hold the lock by which a supervisor sees that an app is open; without it, it may leave ten minutes later."""
        if self.service.read_only:
            return
        try:
            self._app_lock = hold_shared(self.service.home.app_lock)
        except OSError as error:
            words = f"{self.service.home.app_lock} cannot be opened ({error.strerror}); doctor tells more."
            # Not at once: before the first paint there is no place for it.
            told = partial(self.notify, fmt.clean(words), severity="warning", timeout=15, markup=False)
            self.call_after_refresh(told)

    def on_unmount(self) -> None:
        """Stop looking, and let the supervisor know."""
        self.poller.stop()
        self.returning.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._app_lock is not None:
            os.close(self._app_lock)
            self._app_lock = None

    def _told_to_go(self, loop: asyncio.AbstractEventLoop, number: int, frame: object) -> None:
        """Leave in order, or without it: on a terminal that is gone, Textual's writer dies and its queue fills up."""
        self._end_soon(128 + number)
        loop.call_soon_threadsafe(self.leave)

    def _end_soon(self, code: int) -> None:
        """End the process with `code` where leaving in order takes too long; a process that ends takes this along."""
        if self._has_process and self._deadline is None:
            self._deadline = threading.Timer(LEAVE_SECONDS, os._exit, (code,))
            self._deadline.daemon = True
            self._deadline.start()

    def leave(self) -> None:
        """Close the app; runs keep going."""
        self._end_soon(0)
        self.returning.leave()
        self.poller.stop()
        self.exit(fmt.farewell(self.overview))

    async def action_quit(self) -> None:
        """Close the app; runs keep going."""
        self.leave()

    # What is remembered -------------------------------------------------------------------------------------------

    def action_theme(self) -> None:
        """Show the next theme, and remember it."""
        super().action_theme()
        self.returning.choose_theme(self.theme)

    def pop_screen(self) -> AwaitComplete:
        """Go back, and remember what the screen that goes was like."""
        self.returning.look_round()
        return super().pop_screen()

    # What the poller says -----------------------------------------------------------------------------------------

    @on(OverviewChanged)
    def _overview_changed(self, message: OverviewChanged) -> None:
        self.overview = message.overview
        self.returning.overview_came(message.overview)

    @on(RunChanged)
    def _run_changed(self, message: RunChanged) -> None:
        self.view = message.view

    @on(RunGone)
    def _run_gone(self, message: RunGone) -> None:
        self.gone = message.job_id

    @on(ComparisonChanged)
    def _comparison_changed(self, message: ComparisonChanged) -> None:
        self.comparison = message.comparison

    def watch_run(self, job_id: str | None) -> None:
        """Have the poller follow this run in full."""
        self.poller.watch(job_id)

    # What screens ask for -----------------------------------------------------------------------------------------

    def act(self, what: Callable[[], str]) -> None:
        """Carry out a call of the service in a thread, and show the words it returns, or its error."""
        self.run_worker(partial(self._act, what), thread=True, group="act", exit_on_error=False)

    def _act(self, what: Callable[[], str]) -> None:
        try:
            self.notify(fmt.clean(what()), markup=False)
        except Exception as error:  # noqa: BLE001  (a thread's edge: a key that does nothing must say why)
            self.notify(fmt.failure(error), severity="error", timeout=10, markup=False)
        self.poller.wake()

    def may_change(self) -> bool:
        """Say whether anything can be changed here; where not, tell the user why."""
        try:
            self.service.store.need_writable()
        except StoreError as error:
            self.notify(fmt.failure(error), severity="warning", timeout=10, markup=False)
            return False
        return True

    def open_run(self, job_id: str) -> None:
        """Show one run."""
        from fusion_tui.screens.run import RunScreen

        screen = RunScreen(job_id)
        self.push_screen(screen)
        self.returning.show_look(screen)

    def open_compare(self, places: Mapping[str, int]) -> None:
        """Show some runs over one another; each has its place, from 0, that gives it a letter and a colour."""
        from fusion_tui.screens.compare import CompareScreen

        self.push_screen(CompareScreen(places))

    def run_submitted(self, job_id: str) -> None:
        """Show a run that was just queued in place of its form, and see that somebody works on the queue."""
        from fusion_tui.screens.run import RunScreen

        screen = RunScreen(job_id)
        self.switch_screen(screen)
        self.returning.show_look(screen)
        self.poller.wake()
        self.run_worker(partial(self._bring_up, quiet=True), thread=True, exit_on_error=False)

    # Actions ------------------------------------------------------------------------------------------------------

    def action_close_screen(self) -> None:
        """Go back to the screen before."""
        if len(self.screen_stack) > 1:
            self.pop_screen()

    def action_runs(self) -> None:
        """Go to the list of runs."""
        while len(self.screen_stack) > 1:
            self.pop_screen()

    def action_datasets(self) -> None:
        """Go to the list of datasets."""
        from fusion_tui.screens.datasets import DatasetsScreen

        self._go_to(DatasetsScreen)

    def action_models(self) -> None:
        """Go to the tree of models."""
        from fusion_tui.screens.models import ModelsScreen

        self._go_to(ModelsScreen)

    def action_system(self) -> None:
        """Go to the machine and its settings."""
        from fusion_tui.screens.system import SystemScreen

        self._go_to(SystemScreen)

    def _go_to(self, place: Callable[[], Screen[None]]) -> None:
        """Show a place: over what is there, or in the stead of another place, so that they do not pile up."""
        current = getattr(self.screen, "SCOPE", "")
        if current in PLACES and len(self.screen_stack) > 1:
            if type(self.screen) is not place:
                self.switch_screen(place())
        else:
            self.push_screen(place())

    def action_new(self) -> None:
        """Set up a new run."""
        self.new_run()

    def new_run(self, model_id: str = "") -> None:
        """Set up a new run, from a certain model where one is named."""
        from fusion_tui.screens.new import NewScreen

        if not isinstance(self.screen, NewScreen):
            self.push_screen(NewScreen(model_id))

    def action_help(self) -> None:
        """Show every key."""
        from fusion_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(getattr(self.screen, "SCOPE", "app")))

    def action_supervisor(self) -> None:
        """Start the supervisor where none runs."""
        if not self.may_change():
            return
        self.run_worker(self._bring_up, thread=True, exit_on_error=False)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer the actions of the app and of the screen in the command palette."""
        for action in (*self.keymap.of_scope(getattr(screen, "SCOPE", "")), *self.keymap.of_scope("app")):
            if action.palette:
                title = f"{action.title}  ({action.key_text})"
                yield SystemCommand(title, action.tooltip, partial(screen.run_action, action.call))

    # The supervisor -----------------------------------------------------------------------------------------------

    def _supervision(self) -> Supervision:
        found = self._supervisor()
        return Supervision(found is not None, found.url if found else None, read_only=self.service.read_only)

    def _bring_up(self, quiet: bool = False) -> None:
        """Start the supervisor where none runs; stands in a thread, for it takes seconds."""
        try:
            if self._supervisor() is None:
                self.notify("No supervisor runs: starting one…")
                self._start_supervisor()
                self.notify("The supervisor runs.")
            elif not quiet:
                self.notify("The supervisor runs already.")
        except Exception as error:  # noqa: BLE001  (a thread's edge: the words go to the screen)
            words = fmt.failure(error)
            self.notify(f"The supervisor did not start: {words}", severity="error", timeout=15, markup=False)
        self.poller.wake()


def _running(service: Service) -> SupervisorInfo | None:
    from fusion_tui import daemon

    return daemon.running(service.home)


def _ensure_running(service: Service) -> SupervisorInfo:
    from fusion_tui import daemon

    return daemon.ensure_running(service.home)


def hold_shared(path: Path) -> int:
    """Open `path` with a shared lock, which lasts until the returned descriptor is closed."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def run_app(service: Service, *, start_supervisor: bool = True) -> str:
    """Open the app until the user leaves it, and return the line to leave behind. Needs a terminal."""
    appearance.need_terminal(os.environ)
    app = FusionApp(service, start_on_open=start_supervisor and not service.read_only, has_process=True)
    farewell = app.run()
    if app.return_code:
        raise SystemExit(app.return_code)
    return farewell or ""
