"""What the command line says of runs that start after others, of runs without steps, and of what models come from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.jobs import chains
from engine.service import Job, Service
from fusion_tui.cli import main
from fusion_tui.cli.output import Session
from fusion_tui.cli.results import result_text
from store import catalog, jobs, telemetry
from tests.crash import light
from tests.engine.shapes import SMOLLM2_135M
from tests.store.entries import dataset, model

Command = Callable[..., Result]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    opened = light.open_service(tmp_path / "home", tmp_path / "nowhere")
    yield opened
    opened.close()


@pytest.fixture
def command(service: Service) -> Command:
    """Run a command in this process, on the service's data folder."""

    def run(*words: str, code: int = 0) -> Result:
        session = Session()
        session.service = service
        result = CliRunner().invoke(main, words, obj=session)
        assert result.exit_code == code, result.output
        return result

    return run


def submit(service: Service, type: str = "finetune", **fields: Any) -> Job:
    data = {} if type == "contract" else {"dataset_id": "rows"}
    request = {"type": type, "idempotency_key": os.urandom(8).hex(), "base_model_id": "tiny", **data, **fields}
    return service.submit(request).job


def test_a_chain_is_shown_in_the_list_and_of_each_run(service: Service, command: Command) -> None:
    assert "after" not in command("jobs", "--status", "failed").stdout
    first = submit(service, name="first")
    assert "after" not in command("jobs").stdout
    second = submit(service, "contract", base_model_id="@first", name="second")
    lines = command("jobs").stdout.splitlines()
    assert lines[0].split() == ["id", "name", "after", "state", "step", "loss", "left", "age"]
    assert lines[1].split()[:5] == [second.id[:8], "second", "first", "queued", "0%"]
    assert lines[2].split()[:4] == [first.id[:8], "first", "queued", "0/2000"]
    shown = command("show", "second").stdout
    assert "contract of @first, after first; 0 retries" in shown
    assert "after: waits for first (queued)" in shown
    assert "step" not in shown.splitlines()[1]
    assert "finetune of tiny on rows; 0 retries" in command("show", "first").stdout
    assert json.loads(command("show", "second", "--json").stdout)["after"] == first.id


def test_a_run_on_several_datasets_names_them_all(service: Service, command: Command) -> None:
    with service.store.write() as db:
        catalog.add_dataset(db, dataset(name="more", sha256="1" * 64))
    submit(service, more_dataset_ids=["more"], name="both")
    assert "finetune of tiny on rows, more; 0 retries" in command("show", "both").stdout
    words = ("submit", "finetune", "--model", "tiny", "--dataset", "rows", "--dataset", "more")
    again = command(*words, "--dataset", "rows", code=2)
    assert "more_dataset_ids.1: 'rows' is the dataset of dataset_id again" in again.output


def test_the_share_done_of_a_run_without_steps_is_shown_as_it_is_told(service: Service, command: Command) -> None:
    job = submit(service, "contract")
    with service.store.write() as db:
        jobs.update(db, job.id, done=0.42)
    assert " 42% " in command("jobs").stdout
    assert "42%" in command("show", job.id).stdout.splitlines()[1]


def test_models_tell_what_they_were_made_from(service: Service, command: Command) -> None:
    job = submit(service, "train")
    grown = model(id=chains.output_id(job.id), name="grown", base_model_id=service.model("tiny").id, job_id=job.id)
    with service.store.write() as db:
        catalog.add_model(db, grown)
        catalog.add_model(db, model(id="small", name="small", base_model_id=grown.id))
        catalog.add_model(db, model(id="lost", name="lost", base_model_id="gone"))
    lines = {line.split()[2]: line for line in command("models").stdout.splitlines()[1:]}
    assert "← tiny" in lines["grown"]
    assert "← grown" in lines["small"]
    assert "← (removed)" in lines["lost"]
    assert "←" not in lines["tiny"]
    lineage = {entry["name"]: entry.get("lineage") for entry in json.loads(command("models", "--json").stdout)}
    assert lineage["tiny"] is None
    assert (lineage["grown"]["job_id"], lineage["grown"]["type"]) == (job.id, "train")
    assert [one["name"] for one in lineage["small"]["parents"]] == ["grown", "tiny"]
    assert lineage["small"]["parent"] == lineage["small"]["parents"][0]
    assert lineage["lost"]["parent"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("finetune", "--model", "@nobody", "--dataset", "rows"), "base_model_id: No job is called 'nobody'"),
        (("train", "--model", "tiny", "--dataset", "rows", "--after", "nobody"), "after: No job is called 'nobody'"),
        (("contract", "--model", "tiny", "--dataset", "rows"), "dataset_id: a contract job takes no dataset"),
        (("contract", "--model", "tiny", "--set", "contraction_ratio=1"), "hyperparams.contraction_ratio: "),
        (("train", "--model", "tiny"), "dataset_id: name the dataset to train on"),
        (
            ("finetune", "--model", "tiny", "--dataset", "rows", "--set", "output_name=starter"),
            "hyperparams.output_name: 'starter' is taken already",
        ),
    ],
)
def test_a_bad_submit_is_a_usage_error_that_names_the_field(
    service: Service, command: Command, words: tuple[str, ...], says: str
) -> None:
    assert says in command("submit", *words, code=2).stderr
    assert service.jobs() == []


def test_the_help_of_submit_names_the_types_and_shows_a_chain(command: Command) -> None:
    text = command("submit", "--help").stdout
    for word in ("train", "finetune", "contract", "--after RUN", "@grown", "@tuned"):
        assert word in text


def test_who_follows_a_run_is_told_when_the_one_before_it_is_not_going_to_end(
    service: Service, command: Command
) -> None:
    first = submit(service, name="first")
    submit(service, base_model_id="@first", name="second")
    service.cancel(first.id)
    assert "second waits, after: first was cancelled; retry it" in command("watch", "second", code=1).stderr


def test_who_follows_a_longer_chain_is_told_which_run_stopped_it(service: Service, command: Command) -> None:
    first = submit(service, name="first")
    submit(service, base_model_id="@first", name="second")
    submit(service, "contract", base_model_id="@second", name="third")
    service.cancel(first.id)
    assert "third waits, after: first was cancelled; retry it" in command("watch", "third", code=1).stderr


def test_a_dry_run_says_what_it_would_run_with_where_that_was_left_open(command: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2_135M))
    words = ("submit", "train", "--model", str(tmp_path), "--dry-run", "--card")
    assert "left open, would run with growth_ratio=0." in command(*words, "2").stdout
    assert "left open" not in command(*words, "80").stdout


def test_metrics_after_a_step_are_those_of_the_training(service: Service, command: Command) -> None:
    job = submit(service, "train", name="grow")
    found = [telemetry.Point(step, phase, 1.0) for phase in ("train", "ungrown") for step in (1, 2)]
    with service.store.write() as db:
        telemetry.add_points(db, job.id, 1, [*found, telemetry.Point(90, "ungrown", 1.0)])
    newer = json.loads(command("metrics", "grow", "--since", "1", "--json").stdout)
    assert newer["latest_step"] == 2
    assert [(point["step"], point["phase"]) for point in newer["points"]] == [(2, "train")]
    whole = json.loads(command("metrics", "grow", "--json").stdout)
    assert (whole["count"], whole["latest_step"]) == (5, 2)


GENERAL = {"memory_planned_bytes": None, "memory_measured_bytes": None, "cost_usd": 0.0, "gpu_seconds": 90.0}


def test_a_result_shows_what_its_type_of_job_reports() -> None:
    grown = {
        **GENERAL,
        **{"ppl_baseline": 20.0, "ppl_after_growth": 20.0, "ppl_final": 15.0, "loss_final": 2.7},
        **{"self_ppl_baseline": 5.0, "self_ppl_after_growth": 5.0, "self_ppl_final": 5.5, "ungrown_ppl_final": 16.0},
        **{"params_before": 100, "params_after": 150, "tokens_processed": 6000, "function_preservation": 1.2e-7},
    }
    assert result_text(grown).splitlines() == [
        "perplexity 20.00 → 20.00 → 15.00 (-25.0 %)",
        "on its own text 5.00 → 5.00 → 5.50 (+10.0 %)",
        "of the ungrown model, trained alike 16.00",
        "loss 2.700 · 6,000 tokens · 1 min 30 s on the device · 100 → 150 parameters (+50.0 %)",
        "grown without a change of its answers: 1.2e-07 at most",
    ]
    contracted = {
        **GENERAL,
        **{"ppl_baseline": 5.0, "ppl_final": 6.0, "eval_ppl_baseline": 20.0, "eval_ppl_final": 25.0},
        **{"params_before": 200, "params_after": 150, "layout": "uniform", "loss_final": None},
    }
    assert result_text(contracted).splitlines() == [
        "perplexity on its own text 5.00 → 6.00 (+20.0 %)",
        "on the dataset named for it 20.00 → 25.00 (+25.0 %)",
        "1 min 30 s on the device · 200 → 150 parameters (-25.0 %)",
    ]
