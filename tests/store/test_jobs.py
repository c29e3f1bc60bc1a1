"""Jobs: the state machine, its events, the fence, and looking jobs up."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from store import NotFound, Store, jobs, states
from tests.store import forked
from tests.store.entries import new_job

# The ways of api.md, "States", written down a second time: code and document must agree.
ENDS = {"preempted", "failed", "cancelled"}
LEGAL = {
    "queued": {"provisioning", "failed", "cancelled"},
    "provisioning": {"staging"} | ENDS,
    "staging": {"running"} | ENDS,
    "running": {"checkpointing", "uploading"} | ENDS,
    "checkpointing": {"running", "uploading"} | ENDS,
    "uploading": {"completed"} | ENDS,
    "preempted": {"queued", "failed", "cancelled"},
    "failed": {"queued"},
    "cancelled": {"queued"},
    "completed": set(),
}


class JobStates(RuleBasedStateMachine):
    """Asks for any change under any fence; holds the row and its events against what should have happened."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=forked.FAST))
        self.store = Store(self.folder / "store.db")
        with self.store.write() as db:
            self.job_id = new_job(db).id
        self.state, self.fence, self.told = "queued", 0, 1

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def ask(self, to: str, *, fence: int, new_fence: int | None = None) -> bool:
        with self.store.write() as db:
            return jobs.transition(db, self.job_id, to, fence=fence, new_fence=new_fence, now=2.0, activity=to)

    @rule(to=st.sampled_from([*LEGAL, "no such state"]), claim=st.booleans())
    def any_state(self, to: str, claim: bool) -> None:
        accepted = self.ask(to, fence=self.fence, new_fence=self.fence + 1 if claim else None)
        assert accepted == (to in LEGAL[self.state])
        if accepted:
            self.state, self.told = to, self.told + 1
            self.fence += claim

    @rule(data=st.data())
    def a_legal_state(self, data: st.DataObject) -> None:
        if LEGAL[self.state]:
            self.any_state(data.draw(st.sampled_from(sorted(LEGAL[self.state]))), False)

    @rule(to=st.sampled_from(list(LEGAL)), off=st.sampled_from([-2, -1, 1, 7]), claim=st.booleans())
    def a_stale_fence(self, to: str, off: int, claim: bool) -> None:
        with self.store.write() as db:
            before = jobs.get(db, self.job_id)
        assert not self.ask(to, fence=self.fence + off, new_fence=99 if claim else None)
        assert jobs.get(self.store.read(), self.job_id) == before

    @invariant()
    def the_row_is_the_fold_of_its_events(self) -> None:
        row = jobs.get(self.store.read(), self.job_id)
        folded = None
        changes = [e for e in jobs.events(self.store.read(), self.job_id) if e.kind == "state"]
        for event in changes:
            assert event.payload["from"] == folded
            folded = event.payload["to"]
        assert row.state == folded == self.state
        assert row.fence == self.fence
        assert len(changes) == self.told


TestJobStates = JobStates.TestCase
TestJobStates.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_every_pair_of_states_is_accepted_or_refused_as_documented(store: Store) -> None:
    assert set(states.ALL) == set(LEGAL)
    for source, targets in LEGAL.items():
        for target in LEGAL:
            with store.write() as db:
                job = new_job(db)
                db.conn.execute("UPDATE jobs SET state = ? WHERE id = ?", [source, job.id])
                accepted = jobs.transition(db, job.id, target, fence=0, now=2.0)
            assert accepted == (target in targets), (source, target)
            assert jobs.get(store.read(), job.id).state == (target if accepted else source)
    assert {before for before, after in states.TRANSITIONS.items() if "running" in after} == {
        "staging",
        "checkpointing",
    }


def test_a_refused_change_sets_no_column_and_adds_no_event(store: Store) -> None:
    with store.write() as db:
        job = new_job(db)
        assert not jobs.transition(db, job.id, "running", fence=0, now=2.0, activity="no", error="no")
        assert not jobs.transition(db, "nobody", "provisioning", fence=0, now=2.0)
    assert jobs.get(store.read(), job.id) == job
    assert len(jobs.events(store.read(), job.id)) == 1


def test_of_sixteen_claimers_at_once_exactly_one_has_the_job(store: Store) -> None:
    with store.write() as db:
        job = new_job(db)

    def claim(_: int) -> bool:
        with store.write() as db:
            return jobs.transition(db, job.id, "provisioning", fence=0, new_fence=1, now=2.0)

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(claim, range(16))) == 1
    assert jobs.get(store.read(), job.id).fence == 1


def test_queued_jobs_are_handed_out_oldest_first_once_their_time_has_come(store: Store) -> None:
    with store.write() as db:
        first, waiting, last, taken = (new_job(db) for _ in range(4))
        jobs.update(db, waiting.id, not_before=50.0)
        jobs.transition(db, taken.id, "provisioning", fence=0, now=2.0)
    assert [job.id for job in jobs.next_queued(store.read(), now=49.9)] == [first.id, last.id]
    assert [job.id for job in jobs.next_queued(store.read(), now=50.0)] == [first.id, waiting.id, last.id]


def test_listing_is_newest_first_with_state_limit_and_offset(store: Store) -> None:
    with store.write() as db:
        made = [new_job(db).id for _ in range(5)]
        jobs.transition(db, made[1], "cancelled", fence=0, now=2.0)
    newest = made[::-1]
    assert [job.id for job in jobs.newest(store.read())] == newest
    assert [job.id for job in jobs.newest(store.read(), limit=2, offset=1)] == newest[1:3]
    assert [job.id for job in jobs.newest(store.read(), state="cancelled")] == [made[1]]
    assert jobs.count(store.read()) == {"queued": 4, "cancelled": 1}


@pytest.mark.parametrize("reference", ["%", "_", "a%", "\\"])
def test_a_reference_is_taken_literally_and_never_as_a_pattern(store: Store, reference: str) -> None:
    with store.write() as db:
        new_job(db, id="abcdef")
        named = new_job(db, id="ghijkl", name=reference)
    assert [job.id for job in jobs.find(store.read(), reference)] == [named.id]


def test_deleting_a_job_takes_its_events_along(store: Store) -> None:
    with store.write() as db:
        job = new_job(db)
        jobs.add_event(db, job.id, "note", {"a": 1}, now=2.0)
        jobs.delete(db, job.id)
    assert jobs.events(store.read(), job.id) == []
    with pytest.raises(NotFound, match=job.id):
        jobs.get(store.read(), job.id)
    with pytest.raises(NotFound), store.write() as db:
        jobs.update(db, job.id, notes="gone")


def test_progress_is_the_share_of_steps_and_one_when_completed(store: Store) -> None:
    with store.write() as db:
        job = new_job(db, total_steps=8)
        jobs.update(db, job.id, step=2, tags=["a", "b"])
    found = jobs.get(store.read(), job.id)
    assert (found.progress, found.tags, found.finished) == (0.25, ["a", "b"], False)


def test_a_job_is_handed_out_when_the_one_that_it_starts_after_is_completed(store: Store) -> None:
    def due() -> list[str]:
        found = [job.id for job in jobs.next_queued(store.read(), now=1.0)]
        assert jobs.is_queued(store.read(), now=1.0) == bool(found)
        return found

    with store.write() as db:
        first = new_job(db)
        second = new_job(db, after_id=first.id)
        orphan = new_job(db, after_id="deleted")
    assert due() == [first.id, orphan.id]
    assert [job.id for job in jobs.followers(store.read(), first.id)] == [second.id]
    with store.write() as db:
        jobs.transition(db, orphan.id, "cancelled", fence=0, now=1.0)
        for state in ("provisioning", "staging", "running", "checkpointing", "uploading"):
            assert jobs.transition(db, first.id, state, fence=0, now=1.0)
            assert jobs.get(db, second.id).hold == f"after: waits for {first.name} (running)"
    assert due() == []
    with store.write() as db:
        jobs.transition(db, first.id, "completed", fence=0, now=1.0)
    assert due() == [second.id]
    assert jobs.get(store.read(), second.id).hold is None


def test_those_who_wait_are_told_in_the_transaction_of_what_they_wait_for(store: Store) -> None:
    with store.write() as db:
        first = new_job(db)
        second = new_job(db, after_id=first.id)
        bystander = new_job(db)
        jobs.set_hold(db, bystander, "memory: no")

    def cancel_in_vain() -> None:
        with store.write() as db:
            jobs.transition(db, first.id, "cancelled", fence=0, now=1.0)
            assert "was cancelled" in (jobs.get(db, second.id).hold or "")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cancel_in_vain()
    assert jobs.get(store.read(), second.id) == second
    with store.write() as db:
        jobs.transition(db, first.id, "cancelled", fence=0, now=1.0)
    assert jobs.get(store.read(), bystander.id).hold == "memory: no"


def test_settings_are_resolved_only_while_the_job_waits_as_it_was_read(store: Store) -> None:
    with store.write() as db:
        job = new_job(db)
        assert jobs.resolve(db, job, hyperparams={"growth_ratio": 0.2}, plan={"needed": 5})
        assert (jobs.get(db, job.id).hyperparams, jobs.get(db, job.id).plan) == ({"growth_ratio": 0.2}, {"needed": 5})
        jobs.transition(db, job.id, "provisioning", fence=0, new_fence=1, now=1.0)
        assert not jobs.resolve(db, job, hyperparams={}, plan=None)
    assert jobs.get(store.read(), job.id).hyperparams == {"growth_ratio": 0.2}


def test_what_a_worker_says_is_done_counts_for_more_than_its_steps(store: Store) -> None:
    with store.write() as db:
        job = new_job(db, total_steps=0)
        assert jobs.get(db, job.id).progress == 0.0
        jobs.update(db, job.id, done=0.4)
    assert jobs.get(store.read(), job.id).progress == 0.4
