"""Contract jobs, from order to published model: what comes out, and that no kill on the way changes it."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import manifest
from engine.errors import Unsupported
from engine.jobs.hyperparams import ContractHyperparams
from engine.order import JOURNAL
from engine.trainer import models
from engine.trainer.contract import layout
from engine.trainer.reporter import Reporter
from engine.trainer.run import StopFlag, Stopped
from tests import tiny, worker
from tests.conditions import eventually
from tests.trainer.conftest import Bench, Killed
from tests.trainer.contract.conftest import LAYERS, Contraction, hashes, make_deep
from tests.trainer.test_publish import carry_out as finetune

LAYOUTS = ("uniform", "targeted", "depth")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, deep_model: Path) -> dict[str, Contraction]:
    """A job of each layout, and what the source was before them."""
    folder = tmp_path_factory.mktemp("contracted")
    rows = tiny.make_rows(folder / "sums.jsonl", 24)
    settings = {"contraction_ratio": 0.75}
    return {
        kind: Contraction(folder / kind, deep_model, {**settings, "layout": kind}, rows).carry_out() for kind in LAYOUTS
    }


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model.float().eval()(input_ids=torch.arange(3, 90).reshape(1, -1)).logits


@pytest.mark.parametrize("kind", ["uniform", "depth"])
def test_uniform_and_depth_load_with_stock_transformers_and_nothing_else(
    finished: dict[str, Contraction], kind: str
) -> None:
    done = finished[kind]
    model = AutoModelForCausalLM.from_pretrained(done.output)
    assert not list(done.output.glob("*.py"))
    assert model.num_parameters() == done.result["params_after"]
    assert model.config.num_hidden_layers == len(model.model.layers) == (LAYERS if kind == "uniform" else LAYERS - 1)
    assert {layer.mlp.down_proj.in_features for layer in model.model.layers} == {48 if kind == "uniform" else 64}
    assert torch.isfinite(logits_of(model)).all()
    # Its cache counts layers too.
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_targeted_loads_with_its_own_code_where_that_is_trusted_and_with_ours_unread(
    finished: dict[str, Contraction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = finished["targeted"]
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    trusted = AutoModelForCausalLM.from_pretrained(done.output, trust_remote_code=True)
    widths = [16 if number in done.result["layers"] else 64 for number in range(LAYERS)]
    assert [layer.mlp.down_proj.in_features for layer in trusted.model.layers] == widths
    assert trusted.num_parameters() == done.result["params_after"]
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(done.output, trust_remote_code=False)
    code = done.output / "modeling_targeted.py"
    kept = code.read_text()
    code.write_text("raise SystemExit('code of a model folder was run')")
    try:
        ours = models.load_model(done.output, "auto")
    finally:
        code.write_text(kept)
    assert torch.equal(logits_of(ours), logits_of(trusted))


def test_a_targeted_model_can_be_fine_tuned_and_keeps_its_widths(
    finished: dict[str, Contraction], tmp_path: Path
) -> None:
    source = finished["targeted"].output
    again = Bench(tmp_path / "job", source, tiny.make_rows(tmp_path / "sums.jsonl", 12))
    finetune(again, steps=1)
    output = again.folder / "models" / "out-id"
    widths = [json.loads((folder / "config.json").read_text())["mlp_widths"] for folder in (source, output)]
    assert widths[0] == widths[1]
    assert (output / "modeling_targeted.py").read_bytes() == (source / "modeling_targeted.py").read_bytes()
    assert models.load_model(output, "auto").num_parameters() == finished["targeted"].result["params_after"]


def test_uniform_is_refused_where_widths_differ_already(finished: dict[str, Contraction], tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="targeted or depth"):
        Contraction(tmp_path, finished["targeted"].output, {}).carry_out()


def test_the_same_number_of_parameters_goes_whichever_the_layout(finished: dict[str, Contraction]) -> None:
    neurons = 3 * 32
    asked = 0.75 * 64 * 2 * neurons
    for kind in LAYOUTS:
        found = finished[kind].result
        assert found["params_delta"] == found["params_after"] - found["params_before"]
        assert found["param_ratio"] == found["params_after"] / found["params_before"]
        # To a step of the width in every layer; to half a layer.
        assert (
            abs(asked + found["params_delta"]) <= {"uniform": 4 * LAYERS * neurons, "targeted": 0, "depth": 4640}[kind]
        )
        assert len(found["layers"]) == {"uniform": LAYERS, "targeted": 2, "depth": 1}[kind]
    # The first four and the last two are protected.
    assert set(finished["targeted"].result["layers"]) == {4, 5}
    assert finished["depth"].result["layers"][0] in (4, 5)


def test_the_job_tells_its_phases_its_progress_and_a_result_that_adds_up(finished: dict[str, Contraction]) -> None:
    done = finished["uniform"]
    result, points = done.result, done.records("point")
    assert [point["step"] for point in points if point["phase"] == "calibrate"][-1] == 15
    pruned = [point for point in points if point["phase"] == "prune"]
    # No steps of healing: who follows the job by its steps sees each layer.
    assert [point["step"] for point in pruned] == list(range(15 + 1, 15 + LAYERS + 1))
    assert [told["payload"]["steps_after"] for told in done.records("event") if told["kind"] == "contract"] == [15]
    assert all(0 < point["loss"] < 1 for point in pruned)
    shares = [told["done"] for told in done.records("activity") if "done" in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.9
    assert [told["to"] for told in done.records("state")] == ["staging", "running", "uploading"]
    change = 100 * (result["ppl_final"] - result["ppl_baseline"]) / result["ppl_baseline"]
    assert result["ppl_delta_pct"] == pytest.approx(change)
    assert result["ppl_final"] == pytest.approx(math.exp(result["loss_final"]))
    assert (result["function_preservation"], result["healed_steps"]) == (None, 0)
    assert result["tokens_processed"] == 15 * 32
    assert result["eval_ppl_baseline"] > 1
    assert result["eval_ppl_final"] > 1
    (memory,) = done.records("memory")
    assert memory["peak_bytes"] > 0
    assert manifest.verify(done.output).facts["params"] == result["params_after"]


def test_the_source_is_never_written_to(finished: dict[str, Contraction], deep_model: Path, tmp_path: Path) -> None:
    assert len(finished) == 3
    assert hashes(deep_model) == hashes(make_deep(tmp_path / "again"))


class Dying(Reporter):
    """Reports as ever, and dies after the activity or the step that `at` names."""

    at = ""

    def activity(self, text: str, **more: Any) -> None:
        """Report what is done."""
        super().activity(text, **more)
        if self.at and self.at in text:
            raise Killed

    def points(self, points: list[dict[str, Any]]) -> None:
        """Report points."""
        super().points(points)
        if self.at and any(f"{point['phase']} {point['step']}".startswith(self.at) for point in points):
            raise Killed


HEALED = {"layout": "targeted", "num_layers_to_contract": 3, "heal_steps": 4, "save_steps": 1, "lr": 1e-2}
DEATHS = (
    "5 of 15 sequences",
    "evaluating the model as it is",
    "spared: 3 of 8",
    "prune ",
    "pruning: 2 of 3",
    "train 3",
    "putting the contracted model together",
)


def test_an_attempt_that_dies_in_any_phase_is_taken_up_and_ends_with_the_same_bytes(
    deep_model: Path, tmp_path: Path
) -> None:
    undisturbed = Contraction(tmp_path / "undisturbed", deep_model, HEALED).carry_out()
    killed = Contraction(tmp_path / "killed", deep_model, HEALED)
    for at in DEATHS:
        torch.manual_seed(len(at))  # whatever this process drew before
        with pytest.raises(Killed):
            killed.carry_out(reporter=type("DyingHere", (Dying,), {"at": at}))
    killed.carry_out()
    wanted, found = hashes(undisturbed.output), hashes(killed.output)
    assert wanted.keys() == found.keys()
    # Seconds differ.
    assert {name for name in wanted if wanted[name] != found[name]} <= {"README.md", "training.json", "manifest.json"}
    timed = {"gpu_seconds"}
    assert {k: v for k, v in killed.result.items() if k not in timed} == {
        k: v for k, v in undisturbed.result.items() if k not in timed
    }
    # The last attempt had nothing left to do but the end.
    told = " ".join(one["text"] for one in killed.records("activity"))
    assert "sequences" not in told
    # Those of the layers are told again: an attempt may have died between saving one and telling of it.
    assert [(one["phase"], one["step"]) for one in killed.records("point")] == [
        ("prune", number + 1) for number in killed.result["layers"]
    ]
    # What the healing told before it was killed stays: it resumed behind its newest checkpoint, and nowhere else.
    resumes = [one["step"] for one in killed.records("resume")]
    assert resumes == [HEALED["heal_steps"]]


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_the_next(deep_model: Path, tmp_path: Path) -> None:
    settings = {"calibration_sequences": 45, "num_layers_to_contract": LAYERS}
    undisturbed = Contraction(tmp_path / "undisturbed", deep_model, settings).carry_out()
    killed = Contraction(tmp_path / "killed", deep_model, settings)
    first = worker.start(killed.attempt(1), killed.order())
    journal = killed.attempt(1) / JOURNAL
    eventually(lambda: journal.exists() and "pruning: 1 of" in journal.read_text(), within=60)
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    second = worker.start(killed.attempt(2), killed.order())
    second.join()
    assert second.exitcode == 0
    assert killed.records("end", 2)[0]["outcome"] == "completed"
    assert hashes(killed.output)["model.safetensors"] == hashes(undisturbed.output)["model.safetensors"]


def test_a_stop_is_obeyed_between_layers_and_what_is_done_is_kept(deep_model: Path, tmp_path: Path) -> None:
    stop = StopFlag()

    class Stopping(Reporter):
        def points(self, points: list[dict[str, Any]]) -> None:
            super().points(points)
            stop.requested = stop.requested or points[0]["phase"] == "prune"

    job = Contraction(tmp_path, deep_model, {})
    with pytest.raises(Stopped):
        job.carry_out(stop, Stopping)
    assert sorted(path.name for path in (job.attempt() / "phases").iterdir()) == [
        "baseline",
        "choose",
        "prune-000",
        "text",
    ]
    assert not job.output.exists()


def test_healing_brings_what_is_left_nearer_to_the_original(deep_model: Path, tmp_path: Path) -> None:
    cut = {"layout": "depth", "contraction_ratio": 0.9, "num_layers_to_contract": 4}
    settings = {**cut, "calibration_sequences": 48, "heal_steps": 80, "lr": 3e-3}
    done = Contraction(tmp_path, deep_model, settings).carry_out()
    far = [point["loss"] for point in done.records("point") if point["phase"] == "eval"]
    assert far[-1] < 0.7 * far[0]
    assert done.result["healed_steps"] == 80
    assert done.result["tokens_processed"] == 48 * 32 + 80 * 2 * 32
    # What is published is what was healed, rounded to 16 bits; and stock.
    model = AutoModelForCausalLM.from_pretrained(done.output, dtype=torch.float32)
    assert model.num_parameters() == done.result["params_after"]
    assert not (done.output / "adapter").exists()


def test_more_layers_than_there_are_and_all_of_them_are_refused(deep_model: Path, tmp_path: Path) -> None:
    job = Contraction(tmp_path / "more", deep_model, {"num_layers_to_contract": LAYERS + 1})
    with pytest.raises(Unsupported, match="the model has 8 layers, not 9"):
        job.carry_out()
    assert not job.output.exists()
    # A layer is more than its MLP, so only of a model of mostly MLPs all layers could go.
    model = models.load_model(deep_model, torch.float32)
    depth = {"layout": "depth", "contraction_ratio": 0.99, "num_layers_to_contract": LAYERS}
    layout.check(model, ContractHyperparams.model_validate(depth))
    model.config.intermediate_size = 4096
    with pytest.raises(Unsupported, match="as all 8 layers"):
        layout.check(model, ContractHyperparams.model_validate(depth))
