"""What the OpenAPI document promises, against the server: requests made from it, answers held against it.

No route is left out. Three things are steered, because chance would not find them or would not come back: ids are
often put in of things that exist; the stream of a job is only asked of one that has finished (any other is right not
to end); and a file to register is looked for in a folder without one, since `/` would be a right answer too. An
inspection of a real dataset is a process with the training libraries, and has tests of its own.
"""

from __future__ import annotations

import collections
import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis import checks as basics
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.api.server import ApiServer
from store import catalog, jobs, telemetry
from tests.api.conftest import BASE, TRAINED
from tests.api.felix import new_key
from tests.tiny import make_rows

CHECKS = [
    basics.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
NONE, QUEUED, FINISHED = WHICH = ("none", "queued", "finished")  # what is there under an id
MODES = {"what fits the document": GenerationMode.POSITIVE, "what does not": GenerationMode.NEGATIVE}


class World:
    """A server with one thing of each kind behind it; what a request removes is there again for the next one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.service = Service(Home(folder / "home"), config=Settings())
        model = folder / "model"
        model.mkdir()
        for name in ("config.json", "model.safetensors"):
            (model / name).write_text("{}")
        rows = make_rows(folder / "rows.jsonl", 9)
        with self.service.store.write() as db:
            catalog.add_base_model(db, BASE)
        self.dataset = self.service.add_dataset(str(rows), "rows")
        self.finished = self._finish(self._submit())
        self.server = ApiServer(self.service, "127.0.0.1", 0)
        self.server.start()
        self.session = requests.Session()
        self.session.trust_env = False
        self._key = new_key(self.service)

    def close(self) -> None:
        self.session.close()
        self.server.stop()
        self.service.close()

    def _submit(self) -> str:
        asked = {"type": "finetune", "base_model_id": BASE.id, "dataset_id": self.dataset.id}
        return self.service.submit({**asked, "idempotency_key": str(uuid.uuid4())}).job.id

    def _finish(self, job_id: str) -> str:
        """Have a job be completed, with all that one leaves, and one number that JSON has no word for."""
        with self.service.store.write() as db:
            for state in ("provisioning", "staging", "running", "uploading", "completed"):
                assert jobs.transition(db, job_id, state, fence=0, now=100.0)
            points = [telemetry.Point(n, "train", 1.0 + n, loss=2.0 / n, lr=1e-4) for n in range(1, 9)]
            telemetry.add_points(db, job_id, 0, [*points, telemetry.Point(9, "eval", 10.0, loss=float("inf"))])
            telemetry.add_log_lines(db, job_id, [(5.0, "stdout", "a line"), (6.0, "stderr", "an \x1b[31mother")])
            telemetry.set_result(db, job_id, {"loss_final": 0.5, "gpu_seconds": 3.0}, now=9.0)
            one = {"epoch": 1.0, "loss": 0.5, "eval_loss": None, "lr": 1e-4, "bytes": 9, "state": "published"}
            kept = {"id": str(uuid.uuid4()), "job_id": job_id, "step": 8, "path": "/nowhere", "created_at": 8.0}
            telemetry.add_checkpoint(db, telemetry.Checkpoint(**one, **kept))
        return job_id

    def id_for(self, path: str, which: str) -> str:
        """Return the id of something that exists, of the kind that a path is about."""
        if "/models" in path:
            return self._model()
        if "/keys" in path:
            new_key(self.service)
            return self.service.keys()[-1].id
        if "/inspect" in path:
            return str(uuid.uuid4())
        if path.endswith(("/stream", "/logs")):
            return self.finished
        if which == QUEUED:
            return self._submit()
        return self._finish(self._submit()) if path.endswith("/{id}") else self.finished  # it may be deleted

    def steer(self, case: Case, which: str) -> None:
        """Point a request to what exists, or away from what does not end; see the top of this module."""
        path, real = case.operation.path, which != NONE
        if real and "id" in case.path_parameters:
            case.path_parameters["id"] = self.id_for(path, which)
        if real and "name" in case.path_parameters:
            self._restore()
            case.path_parameters |= {"name": self.dataset.name, "version": self.dataset.version}
        if isinstance(case.body, dict):
            if str(case.body.get("path", "")).startswith("/"):
                case.body["path"] = f"{self._folder}/no{case.body['path']}"
            if real:
                self._restore()
                known = {"base_model_id": BASE.id, "dataset_id": self.dataset.id, "base_model": BASE.id}
                known |= {"datasets": [{"name": self.dataset.name}]}
                case.body |= {name: value for name, value in known.items() if name in case.body}
                if case.body.get("type") in ("train", "finetune"):  # what a job needs, which no schema can say
                    case.body |= {"base_model_id": BASE.id, "dataset_id": self.dataset.id}
                    case.body.pop("source_model_id", None)
                    case.body.pop("checkpoint_id", None)

    def _model(self) -> str:
        with self.service.store.write() as db:
            made = {"id": str(uuid.uuid4()), "path": str(self._folder / "model"), "job_id": None}
            entry = catalog.add_model(db, replace(TRAINED, **made))
        assert entry is not None
        return entry.id

    def _restore(self) -> None:
        if self.dataset.id not in {one.id for one in self.service.datasets()}:
            self.dataset = self.service.add_dataset(str(self._folder / "rows.jsonl"), "rows")

    def ask(self, case: Case) -> Any:
        """Send a request; where the number of requests is limited, with a key of its own."""
        limited = case.operation.path == "/felix/training-jobs"
        headers = new_key(self.service) if limited else self._key
        if case.operation.path.startswith("/keys"):
            headers = self._key = new_key(self.service)
        return case.call(base_url=self.server.url, session=self.session, headers=headers, timeout=20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


def operations(world: World, mounts: str) -> Iterator[APIOperation]:
    """Yield the operations of the document. It is asked with a key: what goes without one is the guard's, and its
    tests'."""
    document = world.session.get(f"{world.server.url}/openapi.json").json()
    del document["components"]["securitySchemes"]
    for path, told in list(document["paths"].items()):
        if path.startswith("/api/") != (mounts == "/api"):
            del document["paths"][path]
        for operation in told.values():
            operation.pop("security", None)
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        yield result.ok()


def violations(world: World, operation: APIOperation, mode: GenerationMode, examples: int) -> list[str]:
    """Ask for an operation as often as that; return what went wrong, and print which statuses came."""
    found: list[str] = []
    statuses: collections.Counter[int] = collections.Counter()

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), which=st.sampled_from(WHICH))
    def attempt(case: Case, which: str) -> None:
        world.steer(case, which)
        response = world.ask(case)
        statuses[response.status_code] += 1
        try:
            case.validate_response(response, checks=CHECKS)
        except (Failure, FailureGroup) as failure:
            each = failure.exceptions if isinstance(failure, FailureGroup) else [failure]
            sent = json.dumps([case.path_parameters, case.query, case.body], default=str)[:500]
            found.extend(
                f"{operation.label} {response.status_code} {one.title}: {one.message} <- {sent}" for one in each
            )

    with suppress(hypothesis.errors.Unsatisfiable):  # nothing can be wrong where nothing is asked
        attempt()
    print(operation.label, dict(statuses))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_no_answer_is_a_server_error_or_another_than_the_document_says(world, mode):
    assert [*chain(*(violations(world, one, MODES[mode], 5) for one in operations(world, "/")))] == []


@pytest.mark.slow
@pytest.mark.parametrize(("mounts", "examples"), [("/", 40), ("/api", 10)])
@pytest.mark.parametrize("mode", MODES)
def test_no_answer_is_so_after_many_requests_either(world, mode, mounts, examples):
    assert [*chain(*(violations(world, one, MODES[mode], examples) for one in operations(world, mounts)))] == []
