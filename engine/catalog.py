"""The catalogue as a user sees it: names and ids of models and datasets, imports, removals, the starter pair.

Functions take a `Service`'s store, home and clock through their parameters; `engine.service` is the way in.
"""

from __future__ import annotations

import difflib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from engine import atomic, process
from engine.data import importing, inspection, rows
from engine.data.importing import ImportedRows, Progress, silent
from engine.errors import Conflict, Fault, InvalidData, InvalidRequest, UnknownReference
from engine.paths import NAME_PATTERN, STARTER_MODEL, STARTER_ROWS, Home
from store import Store, catalog, jobs, selecting, states
from store.catalog import BaseModel, Dataset, Model
from store.jobs import Job
from store.library import Database

STARTER = "starter"
PREFIX_LEAST = 4  # characters of an id that can stand for it
TAKEN = "taken"  # the word for programs of a fault about a name
CONTRACT = "contract"  # the type of job that learns from no dataset
# Fixed ids, so that a script's reference to the starter pair holds on every machine.
STARTER_MODEL_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "fusion-tui/starter-model"))
STARTER_DATASET_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "fusion-tui/starter-data"))

# As in `hyperparams`, which brings pydantic.
SEQ_LEN_LEAST, SEQ_LEN_MOST = 16, 1_048_576
LOSS_ON = ("answers", "last_answer", "all")

AnyModel = BaseModel | Model
Entry = TypeVar("Entry", BaseModel, Model, Dataset, AnyModel)


def _pick(entries: Sequence[Entry], reference: str, kind: str, remedy: str) -> Entry:
    """Return the entry with this id, or the newest version of this name, or the one id that begins so."""
    for entry in entries:
        if entry.id == reference:
            return entry
    named = [entry for entry in entries if entry.name == reference]
    if named:
        return max(named, key=lambda entry: entry.version)
    prefixed = [entry for entry in entries if len(reference) >= PREFIX_LEAST and entry.id.startswith(reference)]
    if len(prefixed) == 1:
        return prefixed[0]
    if prefixed:
        raise UnknownReference(f"'{reference}' fits {len(prefixed)} {kind}s; give more of the id.")
    names = sorted({entry.name for entry in entries})
    close = difflib.get_close_matches(reference, names, n=1)
    known = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(names[:8]) or 'none yet'}."
    raise UnknownReference(f"No {kind} is called '{reference}'. {known} {remedy}")


def find_model(db: Database, reference: str) -> AnyModel:
    """Return the base or trained model that `reference` (id, name, unique id prefix) names. Raises UnknownReference."""
    found = _called(db, reference, begins=len(reference) >= PREFIX_LEAST) or _models(db)
    return _pick(found, reference, "model", "Add one with: fusion-tui models add PATH_OR_HUB_ID --name NAME")


def find_dataset(db: Database, reference: str) -> Dataset:
    """Return the dataset that `reference` names. Raises UnknownReference."""
    found = catalog.matching(db, Dataset, reference, begins=len(reference) >= PREFIX_LEAST) or catalog.datasets(db)
    return _pick(found, reference, "dataset", "Add one with: fusion-tui datasets add PATH_OR_HUB_ID --name NAME")


def model_of(job: Job) -> str:
    """Return the id of the model that a job starts from."""
    return job.base_model_id or job.source_model_id or ""


def data_of(job: Job) -> str | None:
    """Return the id of the dataset that a job reads; None where it reads none."""
    return job.dataset_id or job.hyperparams.get("eval_dataset_id")


def datasets_of(job: Job) -> tuple[str, ...]:
    """Return the ids of all datasets that a job reads, in their order."""
    first = data_of(job)
    return (first, *job.more_dataset_ids) if first else ()


def need_entries(db: Database, job: Job, *, model: bool = True) -> None:
    """Raise Conflict where the model (unless it is still to be made) or a dataset that a job reads was removed."""
    needed: list[tuple[str, Callable[[Database, str], object], str]] = []
    if model:
        needed.append(("model", find_model, model_of(job)))
    if job.type != CONTRACT or data_of(job):
        needed += [("dataset", find_dataset, entry_id) for entry_id in datasets_of(job) or ("",)]
    for kind, finding, entry_id in needed:
        try:
            finding(db, entry_id)
        except UnknownReference:
            raise Conflict(
                f"The {kind} of the job {job.name} was removed, so it cannot be run again. Add the {kind} again "
                f"(fusion-tui {kind}s add PATH_OR_HUB_ID --name NAME) and submit a new run with it."
            ) from None


def need_free_name(db: Database, name: str, *, besides: Sequence[str] = ()) -> None:
    """Raise InvalidRequest where a model, or the output of an unfinished job, is called `name` already.

    `besides` are the ids of a job and of its model, which may be called so.
    """
    models = (one for one in _called(db, name, begins=False) if one.id not in besides and one.name == name)
    user = next((f"the model {name} is there" for _ in models), None)
    makers = (job for job_id, job, output in selecting.outputs(db) if job_id not in besides and output == name)
    user = user or next((f"the run {job} makes it" for job in makers), None)
    if user:
        message = f"'{name}' is taken already: {user}. Choose another name, or leave it out"
        raise InvalidRequest([Fault(("hyperparams", "output_name"), message, TAKEN)])


def names_taken(db: Database, begin: str) -> set[str]:
    """Return the names that no new model may have: those of models that begin so, and of what unfinished jobs make."""
    return catalog.model_names(db, begin) | {output for _, _, output in selecting.outputs(db)}


def makes(job: Job) -> str:
    """Return the name of the model that a job makes."""
    return str(job.hyperparams.get("output_name", ""))


def _called(db: Database, reference: str, *, begins: bool) -> list[AnyModel]:
    base = catalog.matching(db, BaseModel, reference, begins=begins)
    return [*base, *catalog.matching(db, Model, reference, begins=begins)]


def _models(db: Database) -> list[AnyModel]:
    return [*catalog.base_models(db), *catalog.models(db)]


def _unfinished(db: Database) -> list[Job]:
    return jobs.newest(db, states=states.UNFINISHED)


def check_name(name: str, field: str = "name") -> None:
    """Raise InvalidRequest unless `name`, which stands in `field`, can name a catalogue entry."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            [Fault((field,), f"'{name}' cannot be a name: use letters, digits, '.', '_' and '-', at most 100")]
        )


def check_format(form: str | None) -> None:
    """Raise InvalidRequest unless `form` names a shape of rows, or is None."""
    if form is not None and form not in rows.SHAPES:
        raise InvalidRequest([Fault(("format",), f"unknown format '{form}'; known: {', '.join(rows.SHAPES)}")])


def dataset_entry(dataset_id: str, name: str, found: ImportedRows, path: Path, *, source: str, now: float) -> Dataset:
    """Return the row of imported rows; its version is given when it is added."""
    return Dataset(
        id=dataset_id,
        name=name,
        version=0,
        format=found.format,
        rows=found.rows,
        shard_count=1,
        bytes=found.bytes,
        sha256=found.sha256,
        path=str(path),
        source=source,
        status="ready",
        created_at=now,
        facts=found.facts,
    )


def need_text_to_learn(dataset: Dataset, field: tuple[str, ...] = ("dataset_id",)) -> None:
    """Raise InvalidRequest where a dataset has rows that only compare or grade answers: a fine-tune imitates text.

    `field` is where the request named it.
    """
    graded = [shape for shape in dataset.facts.get("shapes", [dataset.format]) if shape in rows.PREFERENCE]
    if graded:
        message = (
            f"the dataset {dataset.name} has {graded[0]} rows, from which a fine-tune cannot learn. Give rows with a "
            "text, messages, or a prompt and completion; rows that hold one of these too can be added with --format"
        )
        raise InvalidRequest([Fault(field, message)])


def to_learn_from(db: Database, first: str, more: Sequence[str]) -> Iterator[Dataset]:
    """Yield the datasets that a request names, in their order.

    Raises UnknownReference; InvalidRequest for one that has no text to learn, or whose rows another of them has, by
    all that can be told: the same dataset, another version of it, a copy. Rows would be trained on and held out.
    """
    named: list[tuple[str, Dataset]] = []
    fields: list[tuple[str, ...]] = [("dataset_id",), *(("more_dataset_ids", str(i)) for i in range(len(more)))]
    for field, reference in zip(fields, (first, *more), strict=True):
        dataset = find_dataset(db, reference)
        need_text_to_learn(dataset, field)
        for place, other in named:
            if again := _again(reference, dataset, other, f"the dataset of {place}"):
                raise InvalidRequest([Fault(field, again, "twice")])
        named.append((".".join(field), dataset))
        yield dataset


def _again(reference: str, dataset: Dataset, other: Dataset, called: str) -> str:
    """Return why a dataset and another, which is `called` so, cannot be read by one job; "" where they can."""
    if dataset.id == other.id:
        return f"'{reference}' is {called} again. Name each dataset once"
    would = "Rows of both would be trained on and held out at once"
    if dataset.name == other.name:
        versions = f"version {dataset.version} of {dataset.name}, and {called} is version {other.version}"
        return f"'{reference}' is {versions}. {would}: name one version"
    if dataset.sha256 == other.sha256:
        return f"'{reference}' has exactly the rows of {called}, {other.name}. {would}: name one of them"
    return ""


def seed_starter(store: Store, now: float) -> None:
    """Put the starter model and data that ship with the package into the catalogue, once."""
    db = store.read()
    have = {model.id: model.path for model in catalog.base_models(db)}
    have |= {dataset.id: dataset.path for dataset in catalog.datasets(db)}
    if have.get(STARTER_MODEL_ID) == str(STARTER_MODEL) and have.get(STARTER_DATASET_ID) == str(STARTER_ROWS):
        return
    if not STARTER_MODEL.joinpath("config.json").exists() or not STARTER_ROWS.exists():
        return
    facts = importing.inspect_model(STARTER_MODEL)
    data = importing.survey(STARTER_ROWS)
    model = BaseModel(
        STARTER_MODEL_ID, facts.family, STARTER, 0, facts.params, facts.precision, str(STARTER_MODEL), "built in", now
    )
    dataset = dataset_entry(STARTER_DATASET_ID, STARTER, data, STARTER_ROWS, source="built in", now=now)
    with store.write() as writer:
        # Looked at again under the write lock: another process may have been first.
        present = {row.id for row in catalog.base_models(writer)} | {row.id for row in catalog.datasets(writer)}
        if model.id in present:
            catalog.set_path(writer, model, model.path)
        else:
            catalog.add_base_model(writer, model)
        if dataset.id in present:
            catalog.set_path(writer, dataset, dataset.path)
        else:
            catalog.add_dataset(writer, dataset)


def add_dataset(
    store: Store,
    home: Home,
    source: str,
    name: str,
    *,
    form: str | None = None,
    drop_bad: bool = False,
    now: float,
    progress: Progress,
) -> Dataset:
    """Import rows (a file, a folder or a hub name) as a new version of `name`; see `importing.survey`.

    Raises InvalidData, NoSpace, InvalidRequest.
    """
    store.need_writable()
    check_name(name)
    check_format(form)
    path = Path(source).expanduser().absolute()
    if not path.exists() and importing.is_hub_name(source):
        path = importing.fetch_hub_rows(source, progress)
    dataset_id = str(uuid.uuid4())
    found, copy = importing.import_rows(path, home.dataset(dataset_id), form=form, drop_bad=drop_bad, progress=progress)
    return enter(store, home, dataset_entry(dataset_id, name, found, copy, source=str(path), now=now))


def enter(store: Store, home: Home, entry: Dataset, *, within: Callable[[Database], None] = lambda db: None) -> Dataset:
    """Put rows that were imported into the catalogue, or remove them; `within` is done in the same transaction."""
    try:
        with store.write() as db:
            added = catalog.add_dataset(db, entry)
            within(db)
            return added
    except BaseException:
        atomic.remove_tree(home.dataset(entry.id))
        raise


def inspect_dataset(
    home: Home,
    dataset: Dataset,
    model: AnyModel,
    *,
    python: str,
    seq_len: int | None = None,
    form: str | None = None,
    loss_on: str | None = None,
    system_prompt: str | None = None,
    progress: Progress = silent,
    stopped: Callable[[], bool] = lambda: False,
) -> inspection.Inspection:
    """Ask the trainer how `model` will see `dataset`, in sequences of `seq_len` (None: a finetune's default).

    `loss_on` and `system_prompt` are settings of a job, too. `form` reads the rows as another format than the
    dataset's. `stopped` is asked several times a second whether to give up. Raises InvalidRequest, InvalidData.
    """
    check_format(form)
    if seq_len is not None and not SEQ_LEN_LEAST <= seq_len <= SEQ_LEN_MOST:
        message = f"must be from {SEQ_LEN_LEAST} to {SEQ_LEN_MOST} (got {seq_len})"
        raise InvalidRequest([Fault(("seq_len",), message)])
    if loss_on not in (None, *LOSS_ON):
        raise InvalidRequest([Fault(("loss_on",), f"unknown: '{loss_on}'; known: {', '.join(LOSS_ON)}")])
    for kind, entry in (("dataset", dataset), ("model", model)):
        if not Path(entry.path).exists():
            raise InvalidData(f"The files of the {kind} {entry.name} are gone from {entry.path}. Add it again.")
    request = inspection.Request(
        dataset_path=dataset.path,
        dataset_sha256=dataset.sha256,
        format=form or dataset.format,
        cache_path=str(home.tokens(dataset.id)),
        model_path=model.path,
        seq_len=seq_len,
        loss_on=loss_on,
        system_prompt=system_prompt or None,
    )
    progress("loading the trainer", None)
    try:
        answer = process.run_tool(
            "engine.trainer.inspect",
            [json.dumps(asdict(request))],
            python=python,
            tell=lambda text: progress(text, None),
            stopped=stopped,
        )
    except RuntimeError as error:
        raise InvalidData(f"The dataset {dataset.name} could not be inspected: {error}") from None
    return inspection.read(answer, dataset.facts.get("files", []))


def add_model(
    store: Store,
    home: Home,
    source: str,
    name: str,
    *,
    now: float,
    progress: Progress,
    python: str,
    stopped: Callable[[], bool] = lambda: False,
) -> BaseModel:
    """Import a model from a folder (used in place), a GGUF file (converted) or the hub (its local snapshot).

    `stopped` says whether to give up: a conversion ends at once, a download when it is through; nothing is added then.
    Raises InvalidData, NoSpace, InvalidRequest.
    """
    store.need_writable()
    check_name(name)
    model_id = str(uuid.uuid4())
    gguf = importing.find_gguf(source)
    if gguf:
        folder = home.model(model_id)
        importing.convert_gguf(gguf, folder, python=python, progress=progress, stopped=stopped)
    elif Path(source).expanduser().is_dir():
        folder = Path(source).expanduser().absolute()
    else:
        folder = importing.fetch_hub(source, progress)
    try:
        facts = importing.inspect_model(folder)
        if stopped():
            raise InvalidData(f"{name} was not added: it was stopped.")
        entry = BaseModel(model_id, facts.family, name, 0, facts.params, facts.precision, str(folder), source, now)
        with store.write() as db:
            return catalog.add_base_model(db, entry)
    except BaseException:
        if gguf:
            atomic.remove_tree(folder)
        raise


def users_of(db: Database, entry: AnyModel | Dataset) -> list[str]:
    """Return the names of unfinished jobs that read `entry`."""
    return [
        job.name for job in _unfinished(db) if entry.id in (job.base_model_id, job.source_model_id, *datasets_of(job))
    ]


def need_unused(db: Database, entry: AnyModel | Dataset) -> None:
    """Raise Conflict where unfinished jobs read `entry`."""
    if users := users_of(db, entry):
        raise Conflict(f"'{entry.name}' is in use by {', '.join(users)}. Cancel the run first, or wait for its end.")


def remove(store: Store, home: Home, entry: AnyModel | Dataset) -> None:
    """Take an entry out of the catalogue with the files that are the data folder's own. Raises Conflict."""
    with store.write() as db:
        need_unused(db, entry)
        catalog.remove(db, entry)
    for folder in (home.dataset(entry.id), home.tokens(entry.id), home.model(entry.id)):
        atomic.remove_tree(folder)
