"""The machine and what stands around the runs: devices, disk, supervisor, workers, settings, API keys, doctor.

The rule: what takes long is done in threads that a key ends, and each page says what it waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import Footer, Static, TabbedContent, TabPane
from textual.worker import Worker, get_current_worker

from engine import settings
from engine.errors import EngineError
from engine.service import Disk
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.messages import Overview
from fusion_tui.screens.confirm import Confirm
from fusion_tui.screens.editing import edit_file
from fusion_tui.screens.job_screen import FusionScreen
from fusion_tui.widgets import system_pages as pages
from fusion_tui.widgets.sheet import Sheet
from fusion_tui.widgets.strip import Trouble
from fusion_tui.widgets.system_pages import Examination, Seen

if TYPE_CHECKING:
    from engine.doctor.finding import Finding

LOOK_EVERY_S = 2.0
TITLE = "System: d runs doctor, e edits the settings, S starts, s stops the supervisor"


class SystemScreen(FusionScreen):
    """Machine, settings, keys, doctor: a page each."""

    BINDINGS = bindings("system")
    AUTO_FOCUS = "ContentTabs"
    SCOPE = "system"

    class Looked(Message):
        """The processes and the keys were looked at."""

        def __init__(self, seen: Seen) -> None:
            super().__init__()
            self.seen = seen

    class Counted(Message):
        """The disk was counted so far; `error` says why it could not be."""

        def __init__(self, disk: Disk | None, error: str = "") -> None:
            super().__init__()
            self.disk = disk
            self.error = error

        def can_replace(self, message: Message) -> bool:
            """A later count holds what an earlier one does."""
            return isinstance(message, SystemScreen.Counted)

    class Found(Message):
        """Doctor found something, began with something, or came to its end."""

        def __init__(self, examination: Examination) -> None:
            super().__init__()
            self.examination = examination

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._seen = Seen()
        self._disk: Disk | None = None
        self._looking = False
        self._doctor: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        """A page each."""
        yield Static(TITLE, id="title", markup=False)
        yield Trouble()
        with TabbedContent(id="panes"):
            with TabPane("Machine", id="machine-pane"):
                yield Sheet("looking…", id="machine")
            with TabPane("Settings", id="settings-pane"):
                yield Sheet(id="settings")
            with TabPane("API keys", id="keys-pane"):
                yield Sheet("looking…", id="keys")
            with TabPane("Doctor", id="doctor-pane"):
                yield Sheet(id="doctor")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Look, now and then again; the disk is counted once."""
        self.watch(self.app, "overview", self._show_overview)
        self._show_settings()
        self.query_one("#doctor", Sheet).show(Examination(), pages.doctor(Examination()))
        self._look()
        self._count()
        self.set_interval(LOOK_EVERY_S, self._look)

    # Machine and keys ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if not self._looking:
            self._looking = True
            self._read()

    @work(thread=True, group="look", exit_on_error=False)
    def _read(self) -> None:
        service = self.service
        try:
            seen = Seen(service.supervisor(), tuple(service.workers()), tuple(service.keys()))
        except Exception as error:  # noqa: BLE001  (a thread's edge: a silent one would never look again)
            seen = Seen(error=fmt.failure(error))
        self.post_message(self.Looked(seen))

    @on(Looked)
    def _looked(self, message: Looked) -> None:
        self._looking = False
        self._seen = message.seen
        self._show_machine()
        if not message.seen.error:
            self.query_one("#keys", Sheet).show(message.seen.keys, pages.keys(message.seen.keys, self._clock()))

    @work(thread=True, exclusive=True, group="count", exit_on_error=False)
    def _count(self) -> None:
        worker = get_current_worker()
        try:
            for disk in self.service.disk(lambda: worker.is_cancelled):
                self.post_message(self.Counted(disk))
        except OSError as error:
            self.post_message(self.Counted(None, fmt.failure(error)))

    @on(Counted)
    def _counted(self, message: Counted) -> None:
        if message.error:
            self.notify(message.error, severity="error", markup=False)
        self._disk = message.disk
        self._show_machine()

    def _show_overview(self, overview: Overview) -> None:
        self.query_one(Trouble).show_overview(overview)
        self._show_machine()

    def _show_machine(self) -> None:
        overview = self.fusion.overview
        of = (overview.devices, overview.supervision, self._seen, self._disk)
        drawn = pages.machine(overview, self._seen, self._disk, str(self.service.home.root), self._clock())
        self.query_one("#machine", Sheet).show(of, drawn)

    def action_stop_supervisor(self) -> None:
        """Ask, then have the supervisor leave."""
        supervision = self.fusion.overview.supervision
        if not self.fusion.may_change():
            return
        if supervision is None or not supervision.running:
            self.notify("No supervisor runs: S starts one.")
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.fusion.act(self._stop_supervisor)

        detail = (
            "Runs at work go on by themselves; nothing that is queued starts, and the API ends, until S starts one."
        )
        self.app.push_screen(Confirm("Stop the supervisor?", detail), answered)

    def _stop_supervisor(self) -> str:
        from fusion_tui import daemon

        home = self.service.home
        if not daemon.stop_running(home):
            raise EngineError(f"The supervisor does not leave. Its log: {home.supervisor_log}")
        self.app.call_from_thread(self._look)
        return "The supervisor has left; S starts one."

    def action_refresh(self) -> None:
        """Read everything again."""
        self._reload()
        self._look()
        self._count()

    # Settings -----------------------------------------------------------------------------------------------------

    def _show_settings(self, error: str = "") -> None:
        path = settings.settings_file()
        found, there = settings.told(self.service.settings), path.exists()
        page = pages.settings(found, str(path), there, error)
        self.query_one("#settings", Sheet).show((found, there, error), page)

    def action_edit(self) -> None:
        """Open the settings file in an editor, then read it again."""
        path = settings.settings_file()
        self.query_one(TabbedContent).active = "settings-pane"
        try:
            settings.begin_file(path)
            edit_file(self.app, path)
        except (OSError, EngineError) as error:
            self.notify(fmt.failure(error), severity="error", timeout=15, markup=False)
        self._reload(say=True)

    def _reload(self, *, say: bool = False) -> None:
        before = self.service.settings
        try:
            after = self.service.reload_settings()
        except EngineError as error:
            self._show_settings(str(error))
            self.notify(fmt.failure(error), severity="error", timeout=15, markup=False)
            return
        self._show_settings()
        if say and after != before:
            self.notify("Read. A supervisor that runs takes them up with its next start: s, then S.")

    # Doctor -------------------------------------------------------------------------------------------------------

    def action_doctor(self) -> None:
        """Look for what may be wrong."""
        self.query_one(TabbedContent).active = "doctor-pane"
        if self._doctor is None or self._doctor.is_finished:
            self._doctor = self._examine()

    def action_end_doctor(self) -> None:
        """Have doctor look no further."""
        if self._doctor and not self._doctor.is_finished:
            self._doctor.cancel()

    @work(thread=True, group="doctor", exit_on_error=False)
    def _examine(self) -> None:
        worker = get_current_worker()
        found: tuple[Finding, ...] = ()

        def tell(at: str) -> None:
            self.post_message(self.Found(Examination(found, at, begun=True)))

        tell("looking")
        for finding in self.service.examine(tell, stopped=lambda: worker.is_cancelled):
            found = (*found, finding)
            tell("looking")
        self.post_message(self.Found(Examination(found, begun=True, ended=worker.is_cancelled)))

    @on(Found)
    def _found(self, message: Found) -> None:
        self.query_one("#doctor", Sheet).show(message.examination, pages.doctor(message.examination))
