"""Jobs that start after others, where no worker is needed: what a submit finds, why they wait, what may be removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import Conflict, InvalidRequest, UnknownReference
from engine.jobs import chains
from engine.service import Job, NotFound, Service
from store import catalog, jobs
from tests.engine.conftest import request_for, start
from tests.engine.shapes import GPT_2, SMOLLM2_135M
from tests.store.entries import base_model, model


def submit(service: Service, **fields: Any) -> Job:
    return service.submit(request_for(**fields)).job


def refused(service: Service, **fields: Any) -> list[tuple[str, ...]]:
    """Return the places of what is wrong with a request, which `validate` must say too; nothing is queued by it."""
    before = len(service.jobs())
    with pytest.raises(InvalidRequest) as caught:
        service.submit(request_for(**fields))
    with pytest.raises(InvalidRequest) as said:
        service.validate(request_for(**fields))
    assert str(said.value) == str(caught.value)
    assert len(service.jobs()) == before
    return [tuple(str(part) for part in fault.loc) for fault in caught.value.faults]


def finish(service: Service, job: Job, folder: Path | None = None, config: dict[str, Any] = SMOLLM2_135M) -> None:
    """Take a queued job to its end, with the model that it makes."""
    if folder:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    attempt = start(service, job.id, upto="uploading")
    made = model(id=chains.output_id(job.id), name=f"of-{job.name}", path=str(folder or "/nowhere"))
    with service.store.write() as db:
        catalog.add_model(db, made)
        jobs.update(db, job.id, output_model_id=made.id)
        db.conn.execute("UPDATE attempts SET ended_at = 2, outcome = 'completed' WHERE job_id = ?", [job.id])
        assert jobs.transition(db, job.id, "completed", fence=attempt.fence, now=2.0, finished_at=2.0)


def fail(service: Service, job: Job) -> None:
    with service.store.write() as db:
        assert jobs.transition(db, job.id, "failed", fence=job.fence, now=2.0, error="no", finished_at=2.0)


def startable(service: Service) -> list[str]:
    return [job.id for job in jobs.next_queued(service.store.read(), now=1e9)]


@pytest.fixture
def first(service: Service) -> Job:
    return submit(service, name="first")


@pytest.mark.parametrize("how", ["id", "prefix", "name"])
def test_a_job_can_be_named_in_each_way_as_the_one_to_start_after(service: Service, first: Job, how: str) -> None:
    reference = {"id": first.id, "prefix": first.id[:9], "name": "first"}[how]
    plain = submit(service, after=reference)
    assert (plain.after_id, plain.base_model_id) == (first.id, service.model("tiny").id)
    taking = submit(service, base_model_id=f"@{reference}")
    assert (taking.after_id, taking.base_model_id, taking.source_model_id) == (
        first.id,
        None,
        chains.output_id(first.id),
    )
    assert taking.name == f"finetune-model-{first.id[:8]}-{taking.id[:4]}"
    assert service.name_of(taking.source_model_id) == "@first"


def test_a_job_to_start_after_that_is_not_there_is_refused_where_it_was_named(service: Service, first: Job) -> None:
    assert refused(service, after="nobody") == [("after",)]
    assert refused(service, base_model_id="@nobody") == [("base_model_id",)]
    assert refused(service, base_model_id=None, source_model_id="@") == [("source_model_id",)]
    submit(service, name="first")
    with pytest.raises(InvalidRequest, match="after: 'first' fits several jobs"):
        submit(service, after="first")


def test_after_and_the_model_must_mean_one_job(service: Service, first: Job) -> None:
    other = submit(service, name="other")
    assert refused(service, base_model_id="@first", after="other") == [("after",)]
    job = submit(service, base_model_id="@first", after=first.id[:9])
    assert job.after_id == first.id
    assert other.after_id is None


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_job_that_is_not_going_to_be_completed_is_no_start_and_the_remedy_is_told(
    service: Service, first: Job, end: str
) -> None:
    if end == "failed":
        fail(service, first)
    else:
        service.cancel(first.id)
    for fields in ({"after": "first"}, {"base_model_id": "@first"}):
        refused(service, **fields)
        with pytest.raises(InvalidRequest, match=f"is {end}. Retry it first: fusion-tui retry {first.id[:8]}"):
            submit(service, **fields)


def test_a_waiting_job_says_for_whom_and_follows_what_becomes_of_it(service: Service, first: Job) -> None:
    job = submit(service, base_model_id="@first")
    hold = lambda: service.job(job.id).hold  # noqa: E731
    assert hold() == "after: waits for first (queued)"
    assert startable(service) == [first.id]
    start(service, first.id)
    assert hold() == "after: waits for first (running)"
    fail(service, service.job(first.id))
    assert hold() == f"after: first failed; retry it ({first.id[:8]}), or cancel this run"
    assert startable(service) == []
    service.retry(first.id)
    assert hold() == "after: waits for first (queued)"
    service.cancel(first.id)
    assert hold() == f"after: first was cancelled; retry it ({first.id[:8]}), or cancel this run"
    finish(service, service.retry(first.id))
    assert hold() is None
    assert startable(service) == [job.id]
    told = [event.payload["why"] for event in service.events(job.id) if event.kind == "hold"]
    assert told == ["after: waits for first (queued)"]


def test_in_a_longer_chain_all_are_told_which_run_has_stopped_it(service: Service, first: Job) -> None:
    second = submit(service, base_model_id="@first", name="second")
    third = submit(service, base_model_id="@second", name="third")
    hold = lambda: service.job(third.id).hold  # noqa: E731
    stuck = lambda: [service.is_stuck(service.job(job.id)) for job in (second, third)]  # noqa: E731
    start(service, first.id)
    assert (hold(), stuck()) == ("after: waits for second (queued)", [False, False])
    fail(service, service.job(first.id))
    assert hold() == f"after: first failed; retry it ({first.id[:8]}), or cancel this run"
    assert stuck() == [True, True]
    late = submit(service, base_model_id="@third", name="late")
    assert service.job(late.id).hold == hold()
    service.cancel(second.id)
    assert hold() == f"after: second was cancelled; retry it ({second.id[:8]}), or cancel this run"
    service.retry(second.id)
    assert hold() == f"after: first failed; retry it ({first.id[:8]}), or cancel this run"
    service.retry(first.id)
    assert (hold(), stuck()) == ("after: waits for second (queued)", [False, False])


def test_a_job_with_a_model_of_its_own_starts_when_the_one_before_it_and_its_model_are_gone(
    service: Service, first: Job
) -> None:
    job = submit(service, after="first")
    finish(service, first)
    service.remove_model("of-first")
    service.delete(first.id)
    assert startable(service) == [job.id]
    assert chains.resolve(service.store, service.job(job.id)).id == job.id


def test_settings_that_the_model_decides_are_left_open_until_it_is_there(service: Service, first: Job) -> None:
    grown = submit(service, type="train", base_model_id="@first")
    assert grown.plan is None
    assert "growth_ratio" not in grown.hyperparams
    assert grown.hyperparams["cycles"] == 6
    given = submit(service, type="train", base_model_id="@first", hyperparams={"growth_ratio": 0.3})
    assert given.hyperparams["growth_ratio"] == 0.3
    small = submit(service, type="contract", base_model_id="@first", dataset_id=None)
    assert "num_layers_to_contract" not in small.hyperparams


def test_what_was_left_open_is_settled_once_the_model_is_there(service: Service, first: Job, tmp_path: Path) -> None:
    grown = submit(service, type="train", base_model_id="@first", hyperparams={"output_name": "big"})
    small = submit(service, type="contract", base_model_id="@first", dataset_id=None)
    finish(service, first, tmp_path / "model")
    resolved = chains.resolve(service.store, service.job(grown.id))
    assert resolved == service.job(grown.id)
    assert 0 < resolved.hyperparams["growth_ratio"] <= 0.5
    assert resolved.hyperparams["output_name"] == "big"
    assert resolved.plan is not None
    assert chains.resolve(service.store, service.job(small.id)).hyperparams["num_layers_to_contract"] == 8
    assert chains.resolve(service.store, resolved) is resolved


def test_what_the_model_rules_out_is_said_as_at_a_submit(service: Service, first: Job, tmp_path: Path) -> None:
    grown = submit(service, type="train", base_model_id="@first")
    finish(service, first, tmp_path / "model", GPT_2)
    with pytest.raises(InvalidRequest) as later:
        chains.resolve(service.store, grown)
    with pytest.raises(InvalidRequest) as at_once:
        submit(service, type="train", base_model_id="@first")
    assert str(later.value) == str(at_once.value)
    assert "gpt2" in str(later.value)


def test_the_model_of_a_completed_job_is_taken_at_once(service: Service, first: Job) -> None:
    finish(service, first)
    job = submit(service, base_model_id="@first", hyperparams={"steps": 4})
    assert (job.source_model_id, job.after_id, job.hold) == (chains.output_id(first.id), first.id, None)
    assert service.name_of(job.source_model_id) == "of-first"
    assert startable(service) == [job.id]
    with service.store.write() as db:
        jobs.transition(db, job.id, "cancelled", fence=0, now=3.0)
    service.remove_model("of-first")
    assert service.name_of(job.source_model_id) == f"{chains.output_id(first.id)[:8]} (removed)"
    with pytest.raises(InvalidRequest, match="base_model_id: the model of the job first was removed"):
        submit(service, base_model_id="@first")


def test_a_replay_is_the_same_job_whatever_became_of_the_one_before_it(service: Service, first: Job) -> None:
    request = request_for(base_model_id="@first")
    job = service.submit(request).job
    fail(service, first)
    again = service.submit(request)
    assert (again.job.id, again.created) == (job.id, False)


def test_a_job_that_others_wait_for_is_deleted_only_when_it_is_completed(service: Service, first: Job) -> None:
    waiting = submit(service, base_model_id="@first", name="waiting")
    service.cancel(first.id)
    with pytest.raises(Conflict, match=r"is what waiting waits for\. Cancel that one first, or retry this one"):
        service.delete(first.id)
    finish(service, service.retry(first.id))
    service.delete(first.id)
    assert startable(service) == [waiting.id]
    assert chains.resolve(service.store, waiting).id == waiting.id
    assert service.predecessor_of(waiting) == f"{first.id[:8]} (deleted)"


def test_a_job_whose_predecessor_is_gone_without_a_model_is_not_queued_again(service: Service, first: Job) -> None:
    job = submit(service, base_model_id="@first")
    service.cancel(job.id)
    service.cancel(first.id)
    # The order does not matter: it waits again for what is retried later.
    assert service.retry(job.id).hold == f"after: first was cancelled; retry it ({first.id[:8]}), or cancel this run"
    service.cancel(job.id)
    assert service.job(job.id).hold is None
    service.delete(first.id)
    with pytest.raises(
        Conflict, match=r"was to start after was deleted before it was completed\. Submit that one again"
    ):
        service.retry(job.id)
    with pytest.raises(NotFound):
        service.job(first.id)


def test_a_job_that_was_started_once_needs_the_one_before_it_no_more(service: Service, first: Job) -> None:
    job = submit(service, after="first")
    finish(service, first)
    start(service, job.id)
    with service.store.write() as db:
        for state in ("preempted", "queued"):
            assert jobs.transition(db, job.id, state, fence=1, now=3.0)
    service.remove_model("of-first")
    service.delete(first.id)
    assert startable(service) == [job.id]
    assert chains.resolve(service.store, service.job(job.id)).id == job.id


def test_the_model_that_a_waiting_job_needs_stays_in_the_catalogue(service: Service, first: Job) -> None:
    job = submit(service, base_model_id="@first", name="waiting")
    finish(service, first)
    with pytest.raises(Conflict, match="'of-first' is in use by waiting"):
        service.remove_model("of-first")
    service.cancel(job.id)
    service.remove_model("of-first")
    with pytest.raises(Conflict, match="The model of the job first, which waiting starts from, was removed"):
        service.retry(job.id)


def test_a_plan_of_the_model_that_a_job_makes_waits_for_it(service: Service, first: Job, tmp_path: Path) -> None:
    request = {"type": "finetune", "base_model_id": "@first"}
    with pytest.raises(InvalidRequest, match="base_model_id: the job first has not made its model yet"):
        service.plan(request)
    finish(service, first, tmp_path / "model")
    assert service.plan(request).needed > 134_515_008


def test_a_contract_job_has_no_dataset_and_reports_on_the_one_that_it_names(service: Service) -> None:
    plain = submit(service, type="contract", dataset_id=None)
    assert (plain.dataset_id, plain.hyperparams["eval_dataset_id"], plain.total_steps) == (None, None, 0)
    named = submit(service, type="contract", dataset_id=None, hyperparams={"eval_dataset_id": "rows", "heal_steps": 7})
    assert (named.dataset_id, named.total_steps) == (None, 7)
    assert named.hyperparams["eval_dataset_id"] == service.dataset("rows").id
    assert refused(service, type="contract") == [("dataset_id",)]
    for call in (service.submit, service.validate):
        with pytest.raises(UnknownReference, match="No dataset is called 'nonesuch'"):
            call(request_for(type="contract", dataset_id=None, hyperparams={"eval_dataset_id": "nonesuch"}))
    with pytest.raises(Conflict, match="'rows' is in use by"):
        service.remove_dataset("rows")
    service.cancel(named.id)
    service.cancel(plain.id)
    service.remove_dataset("rows")
    assert service.retry(plain.id).state == "queued"
    with pytest.raises(Conflict, match="The dataset of the job"):
        service.retry(named.id)


def test_a_name_that_a_model_has_or_will_have_is_not_given_twice(service: Service, first: Job) -> None:
    running = submit(service, hyperparams={"output_name": "wanted"})
    place = ("hyperparams", "output_name")
    assert refused(service, hyperparams={"output_name": "wanted"}) == [place]
    assert refused(service, hyperparams={"output_name": "tiny"}) == [place]
    finish(service, first)
    assert refused(service, hyperparams={"output_name": "of-first"}) == [place]
    with pytest.raises(InvalidRequest, match=r"'wanted' is taken already: the run .* makes it. Choose another name"):
        submit(service, hyperparams={"output_name": "wanted"})
    service.cancel(running.id)
    # One that is retried keeps its own, unless it was given away.
    assert service.retry(running.id).hyperparams["output_name"] == "wanted"
    service.cancel(running.id)
    other = submit(service, hyperparams={"output_name": "wanted"})
    with pytest.raises(Conflict, match=rf"'wanted' is taken already: the run {other.name} makes it"):
        service.retry(running.id)
    assert service.job(running.id).state == "cancelled"


def test_the_lineage_of_a_model_leads_back_to_the_one_that_was_imported(service: Service) -> None:
    base, job = base_model(name="root"), submit(service)
    grown = model(id="g", name="grown", base_model_id=base.id, job_id=job.id)
    tuned = model(id="t", name="tuned", base_model_id="g", job_id="deleted")
    with service.store.write() as db:
        catalog.add_base_model(db, base)
        for entry in (grown, tuned, model(id="x", name="x", base_model_id="gone")):
            catalog.add_model(db, entry)
    found = service.lineages(service.models())
    assert [(one.name, one.type) for one in found["t"].parents] == [("grown", "finetune"), ("root", None)]
    assert (found["t"].job_id, found["t"].type, found["t"].parent) == ("deleted", None, found["t"].parents[0])
    assert (found["g"].type, [one.name for one in found["g"].parents]) == ("finetune", ["root"])
    assert (found["x"].parent, found["x"].parents) == (None, ())
