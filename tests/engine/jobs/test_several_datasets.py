"""Jobs that read several datasets, and jobs of epochs: what is stored, what the worker is told, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import Conflict, InvalidRequest, UnknownReference
from engine.journal import JournalWriter
from engine.order import Data, Order
from engine.running import starting
from engine.running.ingest import ingest
from engine.service import Dataset, Job, Service
from store import catalog, jobs
from tests.engine.conftest import request_for, reread, start

Add = Callable[..., Dataset]


@pytest.fixture
def add(service: Service, tmp_path: Path) -> Add:
    """Add a dataset of so many rows."""

    def added(name: str, count: int = 4, row: dict[str, Any] | None = None) -> Dataset:
        path = tmp_path / f"{name}-{count}.jsonl"
        path.write_text("".join(json.dumps(row or {"text": f"{name} {n}"}) + "\n" for n in range(count)))
        return service.add_dataset(str(path), name)

    return added


def submit(service: Service, **fields: Any) -> Job:
    return service.submit(request_for(**fields)).job


def faults(service: Service, **fields: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """Return what a request is refused for; `validate` says the same."""
    with pytest.raises(InvalidRequest) as caught:
        submit(service, **fields)
    with pytest.raises(InvalidRequest) as again:
        service.validate(request_for(**fields))
    assert str(again.value) == str(caught.value)
    return [(fault.loc, fault.message) for fault in caught.value.faults]


def test_datasets_are_found_by_name_or_id_and_stored_in_their_order(service: Service, add: Add) -> None:
    a, b, c = add("a"), add("b"), add("c")
    job = submit(service, dataset_id="b", more_dataset_ids=["c", a.id], project_id="p-1")
    assert (job.dataset_id, job.more_dataset_ids, job.project_id) == (b.id, (c.id, a.id), "p-1")
    plain = submit(service, dataset_id="b")
    assert (plain.more_dataset_ids, plain.project_id) == ((), None)
    assert len({job.payload_hash, plain.payload_hash}) == 2
    assert submit(service, dataset_id="b", more_dataset_ids=[]).payload_hash == plain.payload_hash


def test_the_worker_is_told_of_all_of_them(service: Service, add: Add, tmp_path: Path) -> None:
    a, b = add("a"), add("a", 5)
    c = add("c", row={"prompt": "p", "completion": "c"})
    with service.store.write() as db:
        catalog.set_path(db, service.model("tiny"), str(tmp_path))  # type: ignore[arg-type]
    job = submit(service, dataset_id=a.id, more_dataset_ids=["c"])
    with service.store.write() as db:
        jobs.update(db, job.id, more_dataset_ids=[c.id, b.id])  # two versions of one: as earlier releases stored it
    job = service.job(job.id)
    order = starting.make_order(service, job, "cpu")
    order.write(tmp_path)
    assert Order.read(tmp_path) == order
    # Two versions of one name are told apart.
    assert [each.name for each in order.datasets] == ["a v1", "c", "a v2"]
    assert order.datasets[1] == Data("c", c.path, c.sha256, "prompt_completion", str(service.home.tokens(c.id)))
    Path(b.path).unlink()
    with pytest.raises(Exception, match="files of the dataset a are gone"):
        starting.make_order(service, job, "cpu")
    assert starting.make_order(service, submit(service, dataset_id=a.id), "cpu").more_datasets == ()


def test_an_order_of_an_earlier_version_is_read(service: Service, add: Add, tmp_path: Path) -> None:
    with service.store.write() as db:
        catalog.set_path(db, service.model("tiny"), str(tmp_path))  # type: ignore[arg-type]
    order = starting.make_order(service, submit(service, dataset_id=add("a").id), "cpu")
    order.write(tmp_path)
    path = tmp_path / "order.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in fields.items() if name != "more_datasets"}))
    assert Order.read(tmp_path) == order


def test_what_cannot_be_one_of_several_is_refused_by_its_place(service: Service, add: Add) -> None:
    a = add("a")
    add("pairs", row={"prompt": "a", "chosen": "b", "rejected": "c"})
    ((loc, message),) = faults(service, dataset_id="rows", more_dataset_ids=["a", "pairs"])
    assert (loc, "has dpo rows" in message) == (("more_dataset_ids", "1"), True)
    ((loc, message),) = faults(service, dataset_id="a", more_dataset_ids=["rows", a.id])
    assert (loc, message) == (
        ("more_dataset_ids", "1"),
        f"'{a.id}' is the dataset of dataset_id again. Name each dataset once",
    )
    with pytest.raises(UnknownReference, match="No dataset is called 'nonesuch'"):
        submit(service, more_dataset_ids=["a", "nonesuch"])
    wrong: list[Any] = ["a", 5, [""], [None], ["a"] * 32, [True]]
    for value in wrong:
        assert faults(service, more_dataset_ids=value)[0][0][0] == "more_dataset_ids"
    assert faults(service, more_dataset_ids=["a"], dataset_id=None)[0][0] == ("dataset_id",)
    (fault,) = faults(service, type="contract", dataset_id=None, more_dataset_ids=["a"])
    assert fault == (("more_dataset_ids",), "a contract job takes no dataset. Leave them out")
    for project in ("", "p" * 201, 5):
        assert faults(service, project_id=project)[0][0] == ("project_id",)
    assert service.jobs() == []


def test_datasets_that_hold_each_others_rows_are_refused_by_their_place(service: Service, add: Add) -> None:
    first, second = add("a"), add("a", 5)
    copy = add("copy", row={"text": "the same"}), add("copied", row={"text": "the same"})
    assert copy[0].sha256 == copy[1].sha256
    ((loc, message),) = faults(service, dataset_id="rows", more_dataset_ids=[first.id, second.id])
    assert (loc, message) == (
        ("more_dataset_ids", "1"),
        f"'{second.id}' is version 2 of a, and the dataset of more_dataset_ids.0 is version 1. "
        "Rows of both would be trained on and held out at once: name one version",
    )
    ((loc, message),) = faults(service, dataset_id="copy", more_dataset_ids=["a", "copied"])
    assert (loc, message) == (
        ("more_dataset_ids", "1"),
        "'copied' has exactly the rows of the dataset of dataset_id, copy. "
        "Rows of both would be trained on and held out at once: name one of them",
    )
    assert submit(service, dataset_id="copy", more_dataset_ids=["a"]).more_dataset_ids == (second.id,)


def test_a_dataset_stays_while_an_unfinished_job_reads_it_as_one_of_several(service: Service, add: Add) -> None:
    add("a"), add("b")
    job = submit(service, dataset_id="a", more_dataset_ids=["b"])
    with pytest.raises(Conflict, match=f"'b' is in use by {job.name}"):
        service.remove_dataset("b")
    service.cancel(job.id)
    service.remove_dataset("b")
    with pytest.raises(Conflict, match=r"The dataset of the job .* was removed"):
        service.retry(job.id)


def test_advice_counts_the_rows_of_all(service: Service, add: Add, tmp_path: Path) -> None:
    from engine.plans import advice
    from engine.plans.recommend import DataSize

    sizes = [advice.data_size(add("a", 40), None), advice.data_size(add("b", 60), None)]
    found = advice.together(sizes)
    assert (found.tokens, found.rows) == (sum(each.tokens for each in sizes), 100)
    assert advice.together([DataSize(5), sizes[0]]).rows is None
    assert advice.together(sizes[:1]) == sizes[0]


# Epochs ------------------------------------------------------------------------------------------------------------


def test_a_job_of_epochs_is_stored_without_steps_and_with_an_estimate(service: Service, add: Add) -> None:
    add("a", 100), add("b", 100)
    unpacked = {"epochs": 3, "packing": False, "val_fraction": 0.1, "batch_size": 2, "grad_accum": 3}
    job = submit(service, dataset_id="a", hyperparams=unpacked)
    assert (job.total_steps, job.hyperparams["epochs"], "steps" in job.hyperparams) == (45, 3.0, False)
    assert submit(service, dataset_id="a", more_dataset_ids=["b"], hyperparams=unpacked).total_steps == 90
    # What is stored can be submitted again, and is the same job.
    settings = {name: value for name, value in job.hyperparams.items() if name != "output_name"}
    assert submit(service, dataset_id="a", hyperparams=settings).payload_hash == job.payload_hash
    packed = {"epochs": 2, "seq_len": 64, "val_fraction": 0.1}
    few, many = (submit(service, dataset_id=one, hyperparams=packed).total_steps for one in ("a", "starter"))
    assert 2 <= few <= 40
    rows = service.dataset("starter").rows
    assert 100 < many < 2 * rows


def test_the_estimate_follows_what_makes_sequences(service: Service, add: Add) -> None:
    add("a", 100, {"prompt": "what is it? ", "completion": "it is so " * 20})
    long = add("long", 10, {"text": "word " * 2000})

    def steps(data: str = "a", **settings: Any) -> int:
        return submit(service, dataset_id=data, hyperparams={"epochs": 1, "val_fraction": 0.2, **settings}).total_steps

    assert steps(packing=False) == 80
    assert steps(packing=False, epochs=0.5) == 40
    assert steps(seq_len=1024) < steps(seq_len=256) <= 80
    assert steps(seq_len=1024, system_prompt="so " * 800) > steps(seq_len=1024)
    # Plain text goes on in further sequences.
    assert steps(long.id, packing=False, seq_len=256) > 8 * 5
    assert steps(long.id, packing=False, seq_len=1_000_000) == 8


def test_how_many_steps_it_really_is_the_worker_says(service: Service, add: Add) -> None:
    add("a", 100)
    job = submit(service, dataset_id="a", hyperparams={"epochs": 1, "packing": False})
    attempt = start(service, job.id)
    writer = JournalWriter(Path(attempt.directory) / "journal.jsonl", attempt.fence)
    writer.append("steps", {"total": 40})
    writer.append("point", {"step": 10, "phase": "train", "ts": 1.0, "loss": 1.0})
    for total in (0, -1, 1.5, "7", None, True, 2**63):
        writer.append("steps", {"total": total})
    writer.append("steps", {})
    writer.close()
    ingest(service.store, reread(service, job.id))
    assert (service.job(job.id).total_steps, service.job(job.id).progress) == (40, 0.25)
    assert [event.payload for event in service.events(job.id) if event.kind == "journal_damaged"] == [{"lines": 8}]


def test_a_job_of_epochs_behind_another_is_estimated_without_its_model(service: Service, add: Add) -> None:
    add("a", 100)
    first = submit(service, dataset_id="a", hyperparams={"steps": 5})
    settings = {"epochs": 2, "packing": False, "val_fraction": 0.2}
    after = submit(service, dataset_id="a", base_model_id=f"@{first.id}", hyperparams=settings)
    assert after.total_steps == 160
