"""Dialect B: the models to start from, what this version has not, and the document."""

from __future__ import annotations

import pytest

from tests.api.conftest import BASE
from tests.api.felix import UNKNOWN


def test_base_models_are_described(felix, service):
    models = {model["id"]: model for model in felix.get("/base-models").json()["models"]}
    assert set(models) == {model.id for model in service.base_models()}
    assert set(models[BASE.id]) == {
        *("id", "label", "description", "task_type", "context_window", "supports_inference", "supports_training")
    }
    starter = next(model for model in models.values() if model["label"] == "starter")
    assert starter["context_window"] >= 256
    assert (starter["task_type"], starter["supports_training"], starter["supports_inference"]) == (
        "decoder",
        True,
        False,
    )


def test_base_models_are_filtered(felix):
    everything = felix.get("/base-models").json()["models"]
    assert felix.get("/base-models?task_type=decoder&supports_training=true").json()["models"] == everything
    assert felix.get("/base-models?task_type=encoder").json()["models"] == []
    assert felix.get("/base-models?supports_inference=true").json()["models"] == []
    assert felix.get("/base-models?task_type=other").status_code == 422


@pytest.mark.parametrize("mount", ["", "/api"])
def test_the_shared_path_answers_in_the_dialect_that_the_query_speaks(felix, http, mount):
    assert isinstance(http.get(f"{mount}/base-models").json(), list)
    for query in ("supports_inference=false", "supports_training=true", "task_type=decoder"):
        assert http.get(f"{mount}/base-models?{query}").json() == felix.get("/base-models").json()
    assert isinstance(http.get(f"{mount}/base-models?limit=3").json(), list)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/felix/projects", {"name": "demo"}),
        (f"/felix/projects/{UNKNOWN}/deployments", {"training_job_id": UNKNOWN}),
        ("/felix/inference", {"task": "generate", "model_id": UNKNOWN, "messages": []}),
        ("/inference", {"task": "generate", "model_id": UNKNOWN, "messages": []}),
    ],
)
def test_what_is_not_in_this_version_says_so(http, path, body):
    answer = http.post(path, json=body)
    (fault,) = answer.json()["detail"]
    assert (answer.status_code, fault["type"]) == (422, "not_in_this_version")


def test_the_document_describes_the_body_and_every_answer(http):
    document = http.get("/openapi.json").json()
    post = document["paths"]["/felix/training-jobs"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/TrainingJobRequest"}
    assert document["components"]["schemas"]["TrainingJobRequest"]["examples"]
    assert {"200", "400", "401", "403", "422", "429", "503"} <= set(post["responses"])
    for path in (path for path in document["paths"] if path.startswith("/felix/training-jobs")):
        for operation in document["paths"][path].values():
            assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
