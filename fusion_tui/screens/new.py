"""Set up a run and queue it.

The rule: the service recommends, validates and plans while the user types, in a thread, and nothing is submitted that
it refuses.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Button, Collapsible, Footer, Input, Static

from engine import atomic
from engine.errors import EngineError, Fault, InvalidRequest
from engine.plans.recommend import WARNING, Recommendation
from engine.service import AnyModel, Dataset, StoreError
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.screens.draft import ADVANCED, COMMON, Draft, choices, default_text, hint, reference, typed_text
from fusion_tui.screens.job_screen import FusionScreen
from fusion_tui.widgets.field_row import FieldRow

if TYPE_CHECKING:
    from engine.plans.planning import MemoryReport

VALIDATE_AFTER_S = 0.2
STARTER = "starter"
# Kinds of faults that are no field's: a memory plan's, and a rate that the recommendation is against.
MEMORY, ADVICE = "memory", "advice"
# Where a fault's place in the request is shown in the form.
PLACES = {"base_model_id": "model", "source_model_id": "model", "dataset_id": "dataset"}


@dataclass(frozen=True)
class Verdict:
    """What the service has against a draft, and what memory it takes; `unplanned` says why that is not known."""

    faults: tuple[Fault, ...] = ()
    memory: MemoryReport | None = None
    unplanned: str = ""

    @property
    def insistent(self) -> bool:
        """Whether advice alone is against it, which submitting again overrides."""
        return bool(self.faults) and all(fault.kind == ADVICE for fault in self.faults)


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

    class Advised(Message):
        """The service recommended settings for a draft's model and dataset, where it could."""

        def __init__(self, subject: tuple[str, str, str], made: Recommendation | None) -> None:
            super().__init__()
            self.subject = subject
            self.made = made

    class Judged(Message):
        """The service said what it thinks of a draft."""

        def __init__(self, draft: Draft, verdict: Verdict) -> None:
            super().__init__()
            self.draft = draft
            self.verdict = verdict

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
        self._advised: tuple[str, str, str] | None = None  # what was last asked about
        self._insists: Draft | None = None  # refused by advice alone: the same again is meant

    def compose(self) -> ComposeResult:
        """Choices, common settings, the rest folded away, verdict and command."""
        yield Static("New run: finetune", id="title")
        with VerticalScroll(id="form", can_focus=False):
            yield FieldRow("model", options=[], hint="The model to start from.")
            yield FieldRow("dataset", options=[], hint="The rows to train on.")
            yield from map(_setting, COMMON)
            yield Static("", id="warnings", markup=False)
            with Collapsible(title="more settings", id="advanced"):
                yield from map(_setting, ADVANCED)
            yield Static("", id="reasons", markup=False)
        with Vertical(id="bottom"):
            yield Static("", id="memory", markup=False)
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
            self.post_message(self.Judged(Draft(), Verdict((Fault((), str(error)),))))

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
        if draft.subject and draft.subject != self._advised:
            self._advised = draft.subject
            self._recommend(draft.subject)
        self._consider(draft)

    @work(thread=True, exclusive=True, group="recommend", exit_on_error=False)
    def _recommend(self, subject: tuple[str, str, str]) -> None:
        model, dataset, kind = subject
        try:
            made = self.service.recommend(model=model, dataset=dataset, training_type=kind).made
        except (EngineError, StoreError):
            made = None  # validation says what is wrong
        self.post_message(self.Advised(subject, made))

    @on(Advised)
    def _fill_in(self, message: Advised) -> None:
        """Fill what was recommended into the fields that nobody touched."""
        if message.subject != self.draft().subject:
            return  # chosen anew since: other advice is on its way
        values = dict(message.made.values) if message.made else {}
        values.pop("training_type", None)  # the question, not the answer
        for name in (*COMMON, *ADVANCED):
            advice = values.get(name)
            self._row(name).advise(advice, typed_text(advice.value) if advice else "")
        notes = message.made.notes if message.made else ()
        warnings = [note for note in notes if note.startswith(WARNING)]
        self.query_one("#warnings", Static).update("\n".join(f"▲ {note.removeprefix(WARNING)}" for note in warnings))
        self.query_one("#reasons", Static).update("\n".join(note for note in notes if note not in warnings))

    @work(thread=True, exclusive=True, group="validate", exit_on_error=False)
    def _consider(self, draft: Draft) -> None:
        faults = self._refusal(lambda: self.service.validate(draft.payload(self._key)))
        self.post_message(self.Judged(draft, self._with_memory(draft, faults)))

    def _with_memory(self, draft: Draft, faults: tuple[Fault, ...]) -> Verdict:
        if any(fault.kind not in (MEMORY, ADVICE) for fault in faults) or draft.model is None:
            return Verdict(faults)
        try:
            return Verdict(faults, self.service.plan(draft.payload(self._key)))
        except (EngineError, StoreError) as error:
            return Verdict(faults, unplanned=str(error))

    @staticmethod
    def _refusal(call: Callable[[], object]) -> tuple[Fault, ...]:
        """Return what a call of the service has against its request."""
        try:
            call()
        except InvalidRequest as error:
            return tuple(error.faults)
        except Exception as error:  # noqa: BLE001  (a thread's edge: a form that falls silent would never be sent)
            return (Fault((), fmt.failure(error)),)
        return ()

    @on(Judged)
    def _show_verdict(self, message: Judged) -> None:
        if message.draft != self.draft() and not self._sending:
            return  # typed on since: another verdict is on its way
        verdict = message.verdict
        if not verdict.faults and message.draft == self._insists:
            return  # validation knows of no advice: what was refused for it stays on the screen
        self._sending = False
        self._insists = message.draft if verdict.insistent else None
        faults = {_place(fault): fault.message for fault in reversed(verdict.faults)}
        for row in self.query(FieldRow):
            row.show_fault(faults.pop(row.label, ""))
        shown = self.query_one("#verdict", Static)
        shown.set_class(bool(verdict.faults), "-fault")
        shown.update(_verdict(verdict.faults, list(faults.values())))
        self._show_memory(verdict)

    def _show_memory(self, verdict: Verdict) -> None:
        shown, report = self.query_one("#memory", Static), verdict.memory
        too_large = report is not None and report.verdict == "too_large"
        shown.set_class(too_large, "-fault")
        shown.set_class(report is not None and not report.fits and not too_large, "-waits")
        shown.set_class(report is None, "-unknown")
        shown.update(fmt.clean(_memory(verdict)))

    def _references(self, draft: Draft) -> tuple[str, str]:
        """Return the texts that mean the draft's model and dataset."""
        model = reference(draft.model, self._catalogue.models) if draft.model else "MODEL"
        dataset = reference(draft.dataset, self._catalogue.datasets) if draft.dataset else "DATASET"
        return model, dataset

    def _show_command(self, draft: Draft) -> None:
        self.query_one("#command", Static).update(f"$ {draft.command(*self._references(draft))}")

    def action_write(self) -> None:
        """Copy the request as JSON and write it to a file."""
        draft = self.draft()
        if draft.subject is None:
            self.notify("Choose a model and a dataset first.")
            return
        model, dataset = self._references(draft)
        document = draft.document(model, dataset)
        self.app.copy_to_clipboard(json.dumps(document, indent=2))
        file = self.service.home.request(f"{model}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}")

        def write() -> str:
            try:
                atomic.write_json(file, document)
            except OSError as error:
                raise EngineError(f"{file} cannot be written ({error.strerror}).") from None
            return f"Sent to the clipboard (where the terminal allows it) and written to {file}"

        self.fusion.act(write)

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
        def submit() -> None:
            job = self.service.submit(draft.payload(self._key), careful=draft != self._insists).job
            self.post_message(self.Submitted(job.id, job.name))

        faults = self._refusal(submit)
        if faults:
            self.post_message(self.Judged(draft, self._with_memory(draft, faults)))

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


def _memory(verdict: Verdict) -> str:
    """Say what memory a draft takes, and what would fit where it does not."""
    report = verdict.memory
    if report is None:
        return f"memory: {verdict.unplanned}" if verdict.unplanned else ""
    parts = [f"memory: {report.summary}", report.correction]
    if not report.fits:
        from engine.plans.planning import remedy

        parts.append(remedy(report))
    return ". ".join(filter(None, parts))


def _verdict(faults: tuple[Fault, ...], elsewhere: list[str]) -> str:
    if not faults:
        return "✓ can be queued"
    if all(fault.kind == MEMORY for fault in faults):
        return "✗ does not fit into memory"
    return f"✗ {fmt.clean(elsewhere[0])}" if elsewhere else f"✗ {fmt.plural(len(faults), 'field')} to mend"


def _model_title(model: AnyModel) -> str:
    return fmt.clean(f"{model.name} v{model.version} ({fmt.count(model.params)})")


def _dataset_title(dataset: Dataset) -> str:
    return fmt.clean(f"{dataset.name} v{dataset.version} ({fmt.count(dataset.rows)} rows)")


def _first_choice(entries: tuple[AnyModel, ...] | tuple[Dataset, ...]) -> str:
    """Return the id of the starter entry, else of the first."""
    ids = [entry.id for entry in entries if entry.name == STARTER] or [entry.id for entry in entries]
    return ids[0] if ids else ""
