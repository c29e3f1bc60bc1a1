"""Set up a run and queue it.

The rule: the service validates while the user types, in a thread, and nothing is submitted that it refuses.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Button, Collapsible, Footer, Input, Static

from engine.errors import EngineError, Fault, InvalidRequest
from engine.service import AnyModel, Dataset, StoreError
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.screens.draft import ADVANCED, COMMON, Draft, choices, default_text, hint, reference
from fusion_tui.screens.job_screen import FusionScreen
from fusion_tui.widgets.field_row import FieldRow

VALIDATE_AFTER_S = 0.2
STARTER = "starter"
# Where a fault's place in the request is shown in the form.
PLACES = {"base_model_id": "model", "source_model_id": "model", "dataset_id": "dataset"}


@dataclass(frozen=True)
class Catalogue:
    """What there is to choose from."""

    models: tuple[AnyModel, ...] = ()
    datasets: tuple[Dataset, ...] = ()


class NewScreen(FusionScreen):
    """The form of a finetune job."""

    BINDINGS = bindings("new")
    AUTO_FOCUS = "#field-steps Input"
    SCOPE = "new"

    class Loaded(Message):
        """The catalogue was read."""

        def __init__(self, catalogue: Catalogue) -> None:
            super().__init__()
            self.catalogue = catalogue

    class Judged(Message):
        """The service said what it thinks of a draft."""

        def __init__(self, draft: Draft, faults: tuple[Fault, ...]) -> None:
            super().__init__()
            self.draft = draft
            self.faults = faults

    class Submitted(Message):
        """The run is in the queue."""

        def __init__(self, job_id: str, name: str) -> None:
            super().__init__()
            self.job_id = job_id
            self.name = name

    def __init__(self) -> None:
        super().__init__()
        self._key = str(uuid.uuid4())
        self._catalogue = Catalogue()
        self._timer: Timer | None = None
        self._sending = False

    def compose(self) -> ComposeResult:
        """Choices, common settings, the rest folded away, verdict and command."""
        yield Static("New run: finetune", id="title")
        with VerticalScroll(id="form", can_focus=False):
            yield FieldRow("model", options=[], hint="The model to start from.")
            yield FieldRow("dataset", options=[], hint="The rows to train on.")
            yield from map(_setting, COMMON)
            with Collapsible(title="more settings", id="advanced"):
                yield from map(_setting, ADVANCED)
        with Vertical(id="bottom"):
            yield Static("", id="command", markup=False)
            with Horizontal(id="send"):
                yield Button("Submit (F2)", id="submit", variant="primary", compact=True)
                yield Static("reading the catalogue…", id="verdict", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Read the catalogue."""
        self._load()

    @work(thread=True, exit_on_error=False)
    def _load(self) -> None:
        try:
            models: tuple[AnyModel, ...] = (*self.service.base_models(), *self.service.models())
            self.post_message(self.Loaded(Catalogue(models, tuple(self.service.datasets()))))
        except StoreError as error:
            self.post_message(self.Judged(Draft(), (Fault((), str(error)),)))

    @on(Loaded)
    def _offer(self, message: Loaded) -> None:
        self._catalogue = message.catalogue
        models, datasets = message.catalogue.models, message.catalogue.datasets
        self._row("model").offer([(_model_title(one), one.id) for one in models], _first_choice(models))
        self._row("dataset").offer([(_dataset_title(one), one.id) for one in datasets], _first_choice(datasets))
        self._changed()

    def _row(self, name: str) -> FieldRow:
        return self.query_one(f"#field-{name}", FieldRow)

    def draft(self) -> Draft:
        """Return what the form holds now."""
        model_id, dataset_id = self._row("model").value, self._row("dataset").value
        return Draft(
            model=next((one for one in self._catalogue.models if one.id == model_id), None),
            dataset=next((one for one in self._catalogue.datasets if one.id == dataset_id), None),
            values={name: self._row(name).value for name in (*COMMON, *ADVANCED)},
        )

    # Judging ------------------------------------------------------------------------------------------------------

    @on(FieldRow.Changed)
    def _changed(self) -> None:
        """Judge the form once nothing has been typed for a moment."""
        if self._timer:
            self._timer.stop()
        self._timer = self.set_timer(VALIDATE_AFTER_S, self._judge)

    def _judge(self) -> None:
        draft = self.draft()
        self._show_command(draft)
        self._validate(draft)

    @work(thread=True, exclusive=True, group="validate", exit_on_error=False)
    def _validate(self, draft: Draft) -> None:
        self.post_message(self.Judged(draft, self._faults(draft, submit=False)))

    def _faults(self, draft: Draft, *, submit: bool) -> tuple[Fault, ...]:
        """Return what the service has against a draft; with `submit`, queue it where that is nothing."""
        try:
            if submit:
                job = self.service.submit(draft.payload(self._key)).job
                self.post_message(self.Submitted(job.id, job.name))
            else:
                self.service.validate(draft.payload(self._key))
        except InvalidRequest as error:
            return tuple(error.faults)
        except (EngineError, StoreError) as error:
            return (Fault((), str(error)),)
        return ()

    @on(Judged)
    def _show_verdict(self, message: Judged) -> None:
        if message.draft != self.draft() and not self._sending:
            return  # typed on since: another verdict is on its way
        self._sending = False
        faults = {_place(fault): fault.message for fault in reversed(message.faults)}
        for row in self.query(FieldRow):
            row.show_fault(faults.pop(row.label, ""))
        verdict = self.query_one("#verdict", Static)
        verdict.set_class(bool(message.faults), "-fault")
        verdict.update(_verdict(message.faults, list(faults.values())))

    def _show_command(self, draft: Draft) -> None:
        model = reference(draft.model, self._catalogue.models) if draft.model else "MODEL"
        dataset = reference(draft.dataset, self._catalogue.datasets) if draft.dataset else "DATASET"
        self.query_one("#command", Static).update(f"$ {draft.command(model, dataset)}")

    # Submitting ---------------------------------------------------------------------------------------------------

    @on(Button.Pressed, "#submit")
    def _pressed(self) -> None:
        self.action_submit()

    @on(Input.Submitted)
    def _next_field(self) -> None:
        """Enter in a field goes on: a run is not started by accident."""
        self.focus_next()

    def action_submit(self) -> None:
        """Queue the run, unless the service refuses."""
        if not self._sending:
            self._sending = True
            self._submit(self.draft())

    @work(thread=True, group="submit", exit_on_error=False)
    def _submit(self, draft: Draft) -> None:
        faults = self._faults(draft, submit=True)
        if faults:
            self.post_message(self.Judged(draft, faults))

    @on(Submitted)
    def _submitted(self, message: Submitted) -> None:
        self.notify(f"{fmt.clean(message.name)} is queued.", markup=False)
        self.fusion.run_submitted(message.job_id)


def _setting(name: str) -> FieldRow:
    options = [(word, word) for word in choices(name)] or None
    return FieldRow(name, value=default_text(name), hint=hint(name), options=options)


def _place(fault: Fault) -> str:
    if fault.loc[:1] == ("hyperparams",) and len(fault.loc) > 1:
        return str(fault.loc[1])
    return PLACES.get(str(fault.loc[0]), "") if fault.loc else ""


def _verdict(faults: tuple[Fault, ...], elsewhere: list[str]) -> str:
    if not faults:
        return "✓ can be queued"
    return f"✗ {fmt.clean(elsewhere[0])}" if elsewhere else f"✗ {fmt.plural(len(faults), 'field')} to mend"


def _model_title(model: AnyModel) -> str:
    return fmt.clean(f"{model.name} v{model.version} ({fmt.count(model.params)})")


def _dataset_title(dataset: Dataset) -> str:
    return fmt.clean(f"{dataset.name} v{dataset.version} ({fmt.count(dataset.rows)} rows)")


def _first_choice(entries: tuple[AnyModel, ...] | tuple[Dataset, ...]) -> str:
    """Return the id of the starter entry, else of the first."""
    ids = [entry.id for entry in entries if entry.name == STARTER] or [entry.id for entry in entries]
    return ids[0] if ids else ""
