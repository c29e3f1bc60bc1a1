"""Set up a run and queue it.

The rule: the service recommends, validates and plans while the user types, in a thread, and nothing is submitted that
it refuses.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

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
from fusion_tui.screens.draft import (
    ABOUT,
    ADVANCED,
    COMMON,
    FINETUNE,
    TYPES,
    Draft,
    Setting,
    reference,
    settings,
    typed_text,
)
from fusion_tui.screens.job_screen import FusionScreen
from fusion_tui.screens.verdict import NO_FIELDS, Verdict, place_of
from fusion_tui.widgets.field_row import FieldRow

Subject: TypeAlias = "tuple[str, str, str, str]"

VALIDATE_AFTER_S = 0.2
STARTER = "starter"


@dataclass(frozen=True)
class Catalogue:
    """What there is to choose from."""

    models: tuple[AnyModel, ...] = ()
    datasets: tuple[Dataset, ...] = ()


class NewScreen(FusionScreen):
    """The form of a job: its type first, which decides on everything below."""

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

        def __init__(self, subject: Subject, made: Recommendation | None) -> None:
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

    def __init__(self, model_id: str = "") -> None:
        """Begin with this model chosen, where one is named."""
        super().__init__()
        self._model_id = model_id
        self._key = str(uuid.uuid4())
        self._type = FINETUNE  # of the settings that are in the form
        self._before: Draft | None = None  # what the form held, while its settings are exchanged
        self._catalogue = Catalogue()
        self._timer: Timer | None = None
        self._sending = False
        self._advised: Subject | None = None  # what was last asked about
        self._insists: Draft | None = None  # refused by advice alone: the same again is meant

    def compose(self) -> ComposeResult:
        """Choices, common settings, the rest folded away, verdict and command."""
        yield FieldRow("type", value=FINETUNE, hint=ABOUT[FINETUNE], options=[(word, word) for word in TYPES])
        with VerticalScroll(id="form", can_focus=False):
            yield FieldRow("model", options=[], hint="The model to start from.")
            yield FieldRow("dataset", options=[], hint="The rows to train on.")
            with Vertical(id="common"):
                yield from _rows(FINETUNE, COMMON)
            yield Static("", id="warnings", markup=False)
            with Collapsible(title="more settings", id="advanced"), Vertical(id="rest"):
                yield from _rows(FINETUNE, ADVANCED)
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
        named = next((one.id for one in models if one.id == self._model_id), _first_choice(models))
        self._row("model").offer([(_model_title(one), one.id) for one in models], named)
        self._row("dataset").offer([(_dataset_title(one), one.id) for one in datasets], _first_choice(datasets))
        self._judge_soon()

    def _row(self, name: str) -> FieldRow:
        return self.query_one(f"#field-{name}", FieldRow)

    def draft(self) -> Draft:
        """Return what the form holds now."""
        if self._before:
            return self._before
        model_id, dataset_id = self._row("model").value, self._row("dataset").value
        return Draft(
            type=self._type,
            model=next((one for one in self._catalogue.models if one.id == model_id), None),
            dataset=next((one for one in self._catalogue.datasets if one.id == dataset_id), None),
            values={setting.name: self._row(setting.name).value for setting in settings(self._type)},
        )

    # Judging ------------------------------------------------------------------------------------------------------

    @on(FieldRow.Changed)
    async def _changed(self) -> None:
        """Show the settings of the type that is chosen, and judge the form."""
        chosen = self._row("type").value
        if chosen and chosen != self._type:
            await self._show_type(chosen)
        self._judge_soon()

    async def _show_type(self, type: str) -> None:
        """Put the settings of another type into the form, at their defaults."""
        self._before = self.draft()
        self._row("type").explain(ABOUT[type])
        for place, names in (("#common", COMMON), ("#rest", ADVANCED)):
            holder = self.query_one(place)
            await holder.remove_children()
            await holder.mount(*_rows(type, names))
        for one in TYPES:  # their settings' names are of different lengths
            self.set_class(one == type, f"-{one}")
        self._type, self._advised, self._before = type, None, None
        self._row("dataset").display = Draft(type=type).takes_dataset
        for place in ("#warnings", "#reasons", "#memory"):
            self.query_one(place, Static).update("")

    def _judge_soon(self) -> None:
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
    def _recommend(self, subject: Subject) -> None:
        type, model, dataset, kind = subject
        try:
            made = self.service.recommend(type=type, model=model, dataset=dataset, training_type=kind).made
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
        for setting in settings(self._type):
            advice = values.get(setting.name)
            self._row(setting.name).advise(advice, typed_text(advice.value) if advice else "")
        notes = message.made.notes if message.made else ()
        warnings = [note for note in notes if note.startswith(WARNING)]
        self.query_one("#warnings", Static).update("\n".join(f"▲ {note.removeprefix(WARNING)}" for note in warnings))
        self.query_one("#reasons", Static).update("\n".join(note for note in notes if note not in warnings))

    @work(thread=True, exclusive=True, group="validate", exit_on_error=False)
    def _consider(self, draft: Draft) -> None:
        faults = self._refusal(lambda: self.service.validate(draft.payload(self._key)))
        self.post_message(self.Judged(draft, self._with_memory(draft, faults)))

    def _with_memory(self, draft: Draft, faults: tuple[Fault, ...]) -> Verdict:
        if any(fault.kind not in NO_FIELDS for fault in faults) or draft.model is None:
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
        faults = {place_of(fault): fault.message for fault in reversed(verdict.faults)}
        for row in self.query(FieldRow):
            row.show_fault(faults.pop(row.label, ""))
        shown = self.query_one("#verdict", Static)
        shown.set_class(bool(verdict.faults), "-fault")
        shown.update(verdict.line(list(faults.values())))
        self._show_memory(verdict)

    def _show_memory(self, verdict: Verdict) -> None:
        shown, report = self.query_one("#memory", Static), verdict.memory
        too_large = report is not None and report.verdict == "too_large"
        shown.set_class(too_large, "-fault")
        shown.set_class(report is not None and not report.fits and not too_large, "-waits")
        shown.set_class(report is None, "-unknown")
        shown.update(fmt.clean(verdict.memory_line))

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
        if not draft.named:
            self.notify(f"Choose a model{' and a dataset' if draft.takes_dataset else ''} first.")
            return
        model, dataset = self._references(draft)
        document = draft.document(model, dataset)
        self.app.copy_to_clipboard(json.dumps(document, indent=2))
        file = self.service.home.request(
            f"{model}-{dataset if draft.takes_dataset else draft.type}-{time.strftime('%Y%m%d-%H%M%S')}"
        )

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


def _rows(type: str, names: Mapping[str, tuple[str, ...]]) -> list[FieldRow]:
    """Return the fields of some settings of a type of job."""
    found = [Setting(type, name) for name in names[type]]
    return [
        FieldRow(one.name, value=one.default, hint=one.hint, options=[(word, word) for word in one.choices] or None)
        for one in found
    ]


def _model_title(model: AnyModel) -> str:
    return fmt.clean(f"{model.name} v{model.version} ({fmt.count(model.params)})")


def _dataset_title(dataset: Dataset) -> str:
    return fmt.clean(f"{dataset.name} v{dataset.version} ({fmt.count(dataset.rows)} rows)")


def _first_choice(entries: tuple[AnyModel, ...] | tuple[Dataset, ...]) -> str:
    """Return the id of the starter entry, else of the first."""
    ids = [entry.id for entry in entries if entry.name == STARTER] or [entry.id for entry in entries]
    return ids[0] if ids else ""
