"""All models, each below the one that it came from, with what is known of the selected one.

The rule: the catalogue is read, and files are counted, in threads; a size is counted once for each model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message
from textual.widgets import DataTable, Footer, Static
from textual.worker import get_current_worker

from engine.service import BaseModel, Dependents, Model, NotFound
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.screens.catalogue import CatalogueScreen
from fusion_tui.screens.confirm import Confirm
from fusion_tui.widgets.model_card import card, loss_of, names
from fusion_tui.widgets.models_table import ModelsTable
from fusion_tui.widgets.models_tree import Branch, tree
from fusion_tui.widgets.sheet import Sheet

EMPTY = """No models yet.

Press a to add one: a Hugging Face folder, a GGUF file, or a hub name like owner/model.
In a terminal: fusion-tui models add PATH_OR_HUB_ID --name NAME"""

TITLE = "Models: a adds one, n starts a run from the selected one, D deletes"


class ModelsScreen(CatalogueScreen):
    """The tree of models."""

    BINDINGS = bindings("models")
    AUTO_FOCUS = "ModelsTable"
    SCOPE = "models"

    class Counted(Message):
        """What some models take on disk, in bytes by their ids."""

        def __init__(self, sizes: Mapping[str, int]) -> None:
            super().__init__()
            self.sizes = sizes

    class Asked(Message):
        """It is known what needs a model that is to be deleted."""

        def __init__(self, branch: Branch, needed: Dependents, ours: bool) -> None:
            super().__init__()
            self.branch = branch
            self.needed = needed
            self.ours = ours

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[str, int] = {}

    def compose(self) -> ComposeResult:
        """Title, list, and what is known of one."""
        yield Static(TITLE, id="title", markup=False)
        yield Static(id="fault", markup=False)
        with Container(id="body"):
            yield ModelsTable(id="models")
            yield Sheet(id="model")
        yield Static(EMPTY, id="empty", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    # What there is ------------------------------------------------------------------------------------------------

    def read(self) -> tuple[Branch, ...]:
        """Return the models, each below the one that it came from."""
        base, own = self.service.base_models(), self.service.models()
        runs = {model.job_id: self._run_name(model.job_id) for model in own if model.job_id}
        return tree(base, own, self.service.lineages(own), runs)

    def _run_name(self, job_id: str) -> str:
        try:
            return self.service.job(job_id).name
        except NotFound:
            return ""

    def show(self) -> None:
        """Fill the list, and count the files of models that are new in it."""
        self._fill()
        uncounted = tuple(one.model for one in self.entries or () if one.model.id not in self._sizes)
        if uncounted:
            self._count(uncounted)

    @work(thread=True, exclusive=True, group="count", exit_on_error=False)
    def _count(self, models: tuple[BaseModel | Model, ...]) -> None:
        worker = get_current_worker()
        found: dict[str, int] = {}
        for model in models:
            size = self.service.size_of(model, lambda: worker.is_cancelled)
            if worker.is_cancelled:
                return
            found[model.id] = size
        self.post_message(self.Counted(found))

    @on(Counted)
    def _counted(self, message: Counted) -> None:
        self._sizes |= message.sizes
        self._fill()

    def _fill(self) -> None:
        self.query_one(ModelsTable).show(self.entries or (), self._sizes)
        self._show_card()

    @on(DataTable.RowHighlighted)
    def _show_card(self) -> None:
        if branch := self._selected():
            size = self._sizes.get(branch.model.id)
            self.query_one(Sheet).show((branch, size), card(branch, size))

    def _selected(self) -> Branch | None:
        chosen = self.query_one(ModelsTable).selected
        return next((one for one in self.entries or () if one.model.id == chosen), None)

    # What can be done ---------------------------------------------------------------------------------------------

    @on(DataTable.RowSelected)
    def _row_selected(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Open the run that made the selected model."""
        branch = self._selected()
        if branch is None:
            return
        if isinstance(branch.model, Model) and branch.model.job_id and branch.run:
            self.fusion.open_run(branch.model.job_id)
        elif isinstance(branch.model, Model):
            self.notify("The run that made it was deleted.")
        else:
            self.notify("No run made it: it was imported.")

    def action_add(self) -> None:
        """Ask for a model to import."""
        from fusion_tui.screens.add_model import AddModel

        if self.fusion.may_change():
            self.app.push_screen(AddModel(), self._added)

    def _added(self, model: BaseModel | None) -> None:
        if model:
            self.notify(
                f"{fmt.clean(model.name)} v{model.version} is added: {model.params:,} parameters.", markup=False
            )
            self.look()

    def action_new(self) -> None:
        """Set up a run from the selected model."""
        branch = self._selected()
        self.fusion.new_run(branch.model.id if branch else "")

    def action_delete(self) -> None:
        """Look what needs the selected model, then ask."""
        branch = self._selected()
        if branch and self.fusion.may_change():
            self._ask(branch)

    @work(thread=True, exclusive=True, group="ask", exit_on_error=False)
    def _ask(self, branch: Branch) -> None:
        model = branch.model
        try:
            needed = self.service.dependents(model)
        except Exception as error:  # noqa: BLE001  (a thread's edge: a key that does nothing must say why)
            self.notify(fmt.failure(error), severity="error", timeout=10, markup=False)
            return
        ours = Path(model.path).is_relative_to(self.service.home.model(model.id))
        self.post_message(self.Asked(branch, needed, ours))

    @on(Asked)
    def _asked(self, message: Asked) -> None:
        model = message.branch.model
        if message.needed.runs:
            words = f"{model.name} is in use by {names(message.needed.runs)}: stop them first (1, then s), or wait."
            self.notify(fmt.clean(words), severity="warning", timeout=10, markup=False)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.fusion.act(lambda: self._delete(message.branch))

        question = f"Delete {fmt.clean(model.name)} v{model.version}?"
        self.app.push_screen(Confirm(question, loss_of(message.branch, message.needed, ours=message.ours)), answered)

    def _delete(self, branch: Branch) -> str:
        removed = self.service.remove_model(branch.model.id)
        self.app.call_from_thread(self.look)
        return f"{removed.name} v{removed.version} is deleted."
