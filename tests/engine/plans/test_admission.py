"""What submit asks before it queues a job: what the model rules out, what the device holds, what was left open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import resources
from engine.errors import InvalidRequest
from engine.jobs.hyperparams import HYPERPARAMS, ContractHyperparams, TrainHyperparams
from engine.plans import contraction, growth, memory, model_shape, planning
from engine.plans.admission import Admitted, admit
from engine.service import Service
from store import catalog
from tests.engine import shapes
from tests.engine.conftest import request_for
from tests.engine.nvml import Card, Driver
from tests.store.entries import base_model

GB = 10**9
LLAMA = model_shape.of_config(shapes.LLAMA_8B)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card of 80 GB with nothing on it."""
    card = Card("H100", total=80 * GB, used=0)
    monkeypatch.setattr(resources, "_nvml", lambda: Driver(card))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return card


def model(folder: Path, config: dict[str, Any] | None = None, family: str = "llama") -> catalog.BaseModel:
    """Return a model whose folder holds no more than a config."""
    (folder / "config.json").write_text(json.dumps(shapes.LLAMA_8B if config is None else config))
    return base_model(name="a-model", path=str(folder), family=family)


def ask(service: Service, type: str, on: catalog.BaseModel, **settings: Any) -> Admitted:
    return admit(service.store.read(), type, HYPERPARAMS[type].model_validate(settings), on)


def refusal(service: Service, type: str, on: catalog.BaseModel, **settings: Any) -> tuple[str, tuple[str | int, ...]]:
    with pytest.raises(InvalidRequest) as caught:
        ask(service, type, on, **settings)
    (fault,) = caught.value.faults
    return fault.message, fault.loc


@pytest.mark.parametrize("type", ["train", "finetune", "contract"])
def test_every_type_gets_its_settings_and_a_plan_to_store(
    service: Service, card: Card, tmp_path: Path, type: str
) -> None:
    settings = {"load_in_4bit": True, "optimizer": "adamw_8bit", "growth_ratio": 0.25} if type == "train" else {}
    found = ask(service, type, model(tmp_path), **settings)
    asked = HYPERPARAMS[type].model_validate(settings)
    assert found.hyperparams == asked.model_dump()
    expected = memory.plan(LLAMA, asked, "cuda", sixteen_bits=True)
    assert found.plan == {**expected.document(), "device": "H100", "total": 80 * GB}


# What the model rules out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["train", "contract"])
@pytest.mark.parametrize(("config", "family"), [({"model_type": "gpt2"}, "llama"), ({}, "gpt2")])
def test_an_architecture_that_is_not_supported_is_refused_with_those_that_are(
    service: Service, tmp_path: Path, type: str, config: dict[str, Any], family: str
) -> None:
    word = {"train": "grown", "contract": "contracted"}[type]
    message, loc = refusal(service, type, model(tmp_path, config, family))
    assert f"of the type 'gpt2' cannot be {word} yet; these can: {', '.join(growth.SUPPORTED)}" in message
    assert "A finetune job adapts any model" in message
    assert loc in {("base_model_id",), ("source_model_id",)}
    assert ask(service, "finetune", model(tmp_path, config, family)).plan is None


def test_a_language_model_inside_another_counts_as_what_it_is(service: Service, tmp_path: Path) -> None:
    nested = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    assert ask(service, "train", model(tmp_path, nested, "gemma3")).plan is None


def test_a_folder_that_cannot_be_read_is_in_nobodys_way(service: Service) -> None:
    found = ask(service, "contract", base_model(path="/nowhere", family="llama"))
    assert found == Admitted(ContractHyperparams().model_dump(), None)


def test_every_supported_architecture_has_a_plan() -> None:
    assert set(growth.SUPPORTED) <= set(model_shape.FAMILIES)


def test_more_layers_than_there_are_are_refused_with_both_numbers(service: Service, tmp_path: Path) -> None:
    message, loc = refusal(service, "contract", model(tmp_path), num_layers_to_contract=33)
    assert message == "the model has 32 layers, so 33 cannot be contracted: ask for 32 or fewer"
    assert loc == ("hyperparams", "num_layers_to_contract")


def test_layers_left_open_are_at_most_those_of_the_model(service: Service, card: Card, tmp_path: Path) -> None:
    few = model(tmp_path, {**shapes.SMOLLM2_135M, "num_hidden_layers": 5})
    assert ask(service, "contract", few).hyperparams["num_layers_to_contract"] == 5
    message, _ = refusal(service, "contract", few, num_layers_to_contract=8)
    assert "has 5 layers, so 8 cannot" in message
    assert ask(service, "contract", model(tmp_path)).hyperparams["num_layers_to_contract"] == 8


def test_layers_that_differ_in_width_cannot_be_left_alike(service: Service, card: Card, tmp_path: Path) -> None:
    uneven = {**shapes.SMOLLM2_135M, "mlp_widths": [768, 1536] * 15}
    assert (shape := model_shape.of_config(uneven)).mlp == 1152
    assert shape.params == model_shape.of_config({**shapes.SMOLLM2_135M, "intermediate_size": 1152}).params
    message, loc = refusal(service, "contract", model(tmp_path, uneven))
    assert message == "the layers of this model differ in width already, so it cannot be uniform: use targeted or depth"
    assert loc == ("hyperparams", "layout")
    for layout in ("targeted", "depth"):
        assert ask(service, "contract", model(tmp_path, uneven), layout=layout).plan is not None
    even = {**shapes.SMOLLM2_135M, "mlp_widths": [768] * 30}
    assert ask(service, "contract", model(tmp_path, even)).plan is not None
    assert ask(service, "contract", model(tmp_path, {**uneven, "mlp_widths": [768]})).plan is None


def test_taking_every_layer_out_is_refused(service: Service, card: Card, tmp_path: Path) -> None:
    card.total = 200 * GB
    wide = {**shapes.SMOLLM2_135M, "num_hidden_layers": 2, "intermediate_size": 40_000}
    settings = {"layout": "depth", "contraction_ratio": 0.9, "num_layers_to_contract": 2}
    message, loc = refusal(service, "contract", model(tmp_path, wide), **settings)
    assert "as many weights as 2 whole layers, and the model has 2: none would be left" in message
    assert loc == ("hyperparams", "contraction_ratio")
    ask(service, "contract", model(tmp_path, wide), **{**settings, "contraction_ratio": 0.5})


@pytest.mark.parametrize("layout", ["uniform", "targeted"])
def test_taking_every_neuron_is_refused(service: Service, tmp_path: Path, layout: str) -> None:
    narrow = {**shapes.SMOLLM2_135M, "num_hidden_layers": 4, "intermediate_size": 64}
    settings = {"layout": layout, "num_layers_to_contract": 4}
    message, loc = refusal(service, "contract", model(tmp_path, narrow), contraction_ratio=0.999, **settings)
    assert message.startswith("of 64 neurons a layer none would be left")
    assert loc == ("hyperparams", "contraction_ratio")
    ask(service, "contract", model(tmp_path, narrow), contraction_ratio=0.75, **settings)


@pytest.mark.parametrize("layout", ["uniform", "targeted", "depth"])
def test_about_the_share_that_was_asked_for_goes_in_every_layout(layout: str) -> None:
    left = contraction.contracted(LLAMA, 0.5, 8, layout)
    asked = 0.5 * 8 * 3 * LLAMA.mlp * LLAMA.hidden
    assert LLAMA.params - left.params == pytest.approx(asked, abs=LLAMA.layer / 2)


# What the device holds --------------------------------------------------------------------------------------------


def test_growth_left_open_is_half_as_much_again_where_that_fits(service: Service, card: Card, tmp_path: Path) -> None:
    card.total = 200 * GB
    assert ask(service, "train", model(tmp_path)).hyperparams["growth_ratio"] == 0.5


def test_growth_left_open_is_the_most_that_fits(service: Service, card: Card, tmp_path: Path) -> None:
    found = ask(service, "train", model(tmp_path))
    ratio = found.hyperparams["growth_ratio"]
    assert 0 < ratio < 0.5
    assert found.plan
    assert found.plan["needed"] <= card.total
    larger = planning.RATIOS[planning.RATIOS.index(ratio) - 1]
    refusal(service, "train", model(tmp_path), growth_ratio=larger)


def test_growth_left_open_is_the_most_that_fits_beside_others_or_else_alone(
    service: Service, card: Card, tmp_path: Path
) -> None:
    llama = model(tmp_path)

    def settled() -> float:
        return float(ask(service, "train", llama).hyperparams["growth_ratio"])

    alone = settled()
    card.used = 40 * GB
    beside = settled()
    assert 0 < beside < alone
    assert service.plan({"type": "train", "base_model_id": str(tmp_path)}).fits
    card.used = 79 * GB
    assert settled() == alone


def test_growth_asked_for_that_does_not_fit_is_refused_with_a_smaller_one(
    service: Service, card: Card, tmp_path: Path
) -> None:
    message, loc = refusal(service, "train", model(tmp_path), growth_ratio=0.5)
    assert loc == ("hyperparams",)
    assert "there are 80.0 GB (H100): too large. These would fit: " in message
    assert "growth_ratio=0.25 (" in message
    assert "optimizer=adamw_8bit" in message
    ask(service, "train", model(tmp_path), growth_ratio=0.25)


def test_where_no_growth_fits_the_refusal_says_what_would(service: Service, card: Card, tmp_path: Path) -> None:
    card.total = 20 * GB
    message, _ = refusal(service, "train", model(tmp_path))
    assert "load_in_4bit=true" in message
    card.total = 3 * GB
    message, _ = refusal(service, "train", model(tmp_path))
    assert message.endswith("No setting makes it fit: use a smaller model")


def test_healing_that_does_not_fit_is_refused_with_contraction_alone(
    service: Service, card: Card, tmp_path: Path
) -> None:
    card.total = 32 * GB
    message, _ = refusal(service, "contract", model(tmp_path), heal_steps=100)
    assert "heal_steps=0 (" in message
    ask(service, "contract", model(tmp_path))


# Plans of requests ------------------------------------------------------------------------------------------------


def test_a_request_of_every_type_has_a_plan_before_it_is_sent(service: Service, card: Card, tmp_path: Path) -> None:
    folder = str(tmp_path)
    model(tmp_path)
    for type, mode in (("train", "grow/none"), ("finetune", "lora/none"), ("contract", "contract")):
        report = service.plan({"type": type, "base_model_id": folder})
        assert report.plan.mode == mode
    report = service.plan({"type": "train", "base_model_id": folder})
    assert report.verdict == "fits"
    ratio = report.settled["growth_ratio"]
    same = service.plan({"type": "train", "base_model_id": folder, "hyperparams": {"growth_ratio": ratio}})
    assert (same.needed, same.settled) == (report.needed, {})
    assert report.document()["settled"] == {"growth_ratio": ratio}


def test_a_plan_refuses_what_submit_would(service: Service, tmp_path: Path) -> None:
    model(tmp_path, {"model_type": "gpt2"})
    with pytest.raises(InvalidRequest, match="cannot be grown yet"):
        service.plan({"type": "train", "base_model_id": str(tmp_path)})
    with pytest.raises(InvalidRequest, match="takes no dataset"):
        service.plan({"type": "contract", "base_model_id": "tiny", "dataset_id": "rows"})


def test_a_model_that_a_job_has_still_to_make_has_no_plan_yet(service: Service) -> None:
    job = service.submit(request_for()).job
    with pytest.raises(
        InvalidRequest, match=f"the job {job.name} has not made its model yet; what it needs is planned"
    ):
        service.plan({"type": "contract", "source_model_id": f"@{job.name}"})


def test_half_the_growth_needs_less_and_four_bits_less_again() -> None:
    def needed(**settings: Any) -> int:
        return memory.plan(LLAMA, TrainHyperparams.model_validate(settings), "cuda", sixteen_bits=True).needed

    assert (
        needed(load_in_4bit=True, growth_ratio=0.25) < needed(growth_ratio=0.25) < needed() < needed(train_scope="all")
    )
