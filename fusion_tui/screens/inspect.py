"""One dataset as a model will see it: which tokens of the first batch are trained, and how long its rows are.

The rule: the trainer is asked in a process of its own, from a thread; who asks again, or leaves, ends it.
"""

from __future__ import annotations

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Footer, Input, Select, Static
from textual.worker import get_current_worker

from engine.data.inspection import Inspection
from engine.errors import EngineError
from engine.service import AnyModel, Dataset, StoreError
from fusion_tui import format as fmt
from fusion_tui.screens.job_screen import FusionScreen
from fusion_tui.widgets.mask_page import MaskPage

STARTER = "starter"


class InspectScreen(FusionScreen):
    """The mask view of one dataset."""

    AUTO_FOCUS = "MaskPage"
    SCOPE = "page"

    class Offered(Message):
        """The models to choose from."""

        def __init__(self, models: tuple[AnyModel, ...]) -> None:
            super().__init__()
            self.models = models

    class Told(Message):
        """How far an inspection is, or (`failed`) why there is none."""

        def __init__(self, asked: int, words: str, failed: bool = False) -> None:
            super().__init__()
            self.asked = asked
            self.words = words
            self.failed = failed

    class Found(Message):
        """An inspection."""

        def __init__(self, asked: int, found: Inspection) -> None:
            super().__init__()
            self.asked = asked
            self.found = found

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self._dataset = dataset
        self._asked = 0  # how often; the answer to an earlier question is no news

    def compose(self) -> ComposeResult:
        """What is shown, as which model sees it, and the page."""
        yield Static(
            fmt.clean(f"{self._dataset.name} v{self._dataset.version}: what a model will see"), id="title", markup=False
        )
        with Horizontal(id="asked"):
            yield Static("as seen by", classes="label")
            yield Select[str]([], prompt="choose a model", id="model", compact=True)
            yield Static("seq_len", classes="label")
            yield Input(placeholder="default", type="integer", max_length=7, id="seq-len", compact=True)
        yield MaskPage(id="mask")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Read the catalogue."""
        self._page.say("reading the catalogue…")
        self._offer()

    @property
    def _page(self) -> MaskPage:
        return self.query_one(MaskPage)

    @work(thread=True, exit_on_error=False)
    def _offer(self) -> None:
        try:
            self.post_message(self.Offered((*self.service.models(), *self.service.base_models())))
        except StoreError as error:
            self.post_message(self.Told(self._asked, str(error), failed=True))

    @on(Offered)
    def _offered(self, message: Offered) -> None:
        models = sorted(message.models, key=lambda one: one.created_at, reverse=True)
        if not models:
            self._page.say("No models yet. Add one in a terminal: fusion-tui models add PATH_OR_HUB_ID --name NAME")
            return
        select = self.query_one("#model", Select)
        select.set_options([(fmt.clean(f"{one.name} v{one.version}"), one.id) for one in models])
        select.value = next((one.id for one in models if one.name == STARTER), models[0].id)

    @on(Select.Changed, "#model")
    @on(Input.Submitted, "#seq-len")
    def _ask(self) -> None:
        model = self.query_one("#model", Select).value
        if not isinstance(model, str):
            return
        written = self.query_one("#seq-len", Input).value
        self._asked += 1
        self._page.say("loading the trainer…", "dim")
        self._inspect(self._asked, model, int(written) if written.isdecimal() else None)

    @work(thread=True, exclusive=True, group="inspect", exit_on_error=False)
    def _inspect(self, asked: int, model: str, seq_len: int | None) -> None:
        worker = get_current_worker()

        def tell(what: str, _: float | None) -> None:
            self.post_message(self.Told(asked, f"{what}…"))

        try:
            found = self.service.inspect_dataset(
                self._dataset.id, model, seq_len=seq_len, progress=tell, stopped=lambda: worker.is_cancelled
            )
        except (EngineError, StoreError) as error:
            if not worker.is_cancelled:
                self.post_message(self.Told(asked, str(error), failed=True))
            return
        self.post_message(self.Found(asked, found))

    @on(Told)
    def _told(self, message: Told) -> None:
        if message.asked == self._asked:
            words = fmt.clean(message.words)
            self._page.say(f"✗ {words}" if message.failed else words, "bold red" if message.failed else "dim")

    @on(Found)
    def _show(self, message: Found) -> None:
        if message.asked == self._asked:
            self._page.show(message.found)
