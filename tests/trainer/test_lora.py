"""Adapters: the fused arithmetic is peft's own, and what comes out is peft's too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from engine.jobs.hyperparams import FinetuneHyperparams
from engine.trainer import lora, models
from engine.trainer.objective import FLAT, Objective
from tests.trainer import families
from tests.trainer.families import APART

CPU = torch.device("cpu")
IDS = torch.tensor([APART[2].ids])


def settings(**changes: Any) -> FinetuneHyperparams:
    return FinetuneHyperparams.model_validate({"lora_rank": 4, "lora_alpha": 12.0, **changes})


def by_peft(model: Any, chosen: FinetuneHyperparams) -> Any:
    """Put adapters on a model as peft alone does."""
    config = peft.LoraConfig(
        r=chosen.lora_rank,
        lora_alpha=chosen.lora_alpha,
        lora_dropout=chosen.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def adapters(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


def trained_a_little(model: Any) -> Any:
    """Give adapters values as if they had learnt: a fresh one adds nothing."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in sorted(adapters(model).items()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def loss_of(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def assert_same_loss_and_gradients(ours: Any, theirs: Any) -> None:
    losses = [loss_of(model) for model in (ours, theirs)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    one, other = adapters(ours), adapters(theirs)
    assert one.keys() == other.keys() != set()
    for name, parameter in other.items():
        assert parameter.grad is not None
        scale = max(1.0, float(parameter.grad.abs().max()))
        torch.testing.assert_close(one[name].grad / scale, parameter.grad / scale, rtol=1e-5, atol=1e-5, msg=name)
    for model in (ours, theirs):
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora_" not in name)


@pytest.fixture
def calls_of_peft(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count how often one of peft's layers does its own arithmetic."""
    count = 0
    original = peft.tuners.lora.Linear.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(peft.tuners.lora.Linear, "forward", counted)
    return lambda: count


# Without and with biases, a gated MLP and a plain one, layers that are no torch.nn.Linear.
@pytest.mark.parametrize("family", ["llama", "llama-plain-heads", "qwen2", "gemma3", "phi", "gpt2"])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 12.0), (3, 1.0)])
def test_loss_and_gradients_are_pefts_own(family: str, rank: int, alpha: float) -> None:
    chosen = settings(lora_rank=rank, lora_alpha=alpha)
    ours = trained_a_little(lora.add_adapters(families.make(family), chosen)).train()
    theirs = trained_a_little(by_peft(families.make(family), chosen)).train()
    assert abs(float(loss_of(ours).detach()) - float(loss_of(families.make(family)).detach())) > 1e-2
    assert_same_loss_and_gradients(ours, theirs)


def test_without_dropout_peft_computes_nothing_while_training(calls_of_peft: Callable[[], int]) -> None:
    model = lora.add_adapters(families.make("llama"), settings()).train()
    loss_of(model).backward()
    assert calls_of_peft() == 0


def test_with_dropout_training_is_pefts_own_and_judging_is_not(calls_of_peft: Callable[[], int]) -> None:
    chosen = settings(lora_dropout=0.3)
    ours = trained_a_little(lora.add_adapters(families.make("llama"), chosen)).eval()
    with torch.no_grad():
        judged = loss_of(ours)
    assert calls_of_peft() == 0
    theirs = trained_a_little(by_peft(families.make("llama"), chosen))
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        losses.append(float(loss_of(model.train()).detach()))
    assert calls_of_peft() == 2 * 14  # seven layers in each of two blocks, of both models
    assert losses[0] == losses[1] != float(judged)
    with torch.no_grad():
        assert float(judged) == pytest.approx(float(loss_of(theirs.eval())), rel=1e-5)


@pytest.mark.parametrize("part", ["self_attn.q_proj", "mlp"])
def test_frozen_weights_in_16_bits_are_multiplied_in_16_bits_and_the_adapters_learn_in_32(part: str) -> None:
    rounded = families.make("llama").to(torch.bfloat16)
    ours = trained_a_little(lora.add_adapters(copy.deepcopy(rounded), settings())).train()
    exact = trained_a_little(by_peft(rounded.float(), settings())).train()
    torch.manual_seed(1)
    x = torch.randn(1, 40, 32).to(torch.bfloat16)
    found = ours.get_submodule(f"base_model.model.model.layers.0.{part}")(x)
    wanted = exact.get_submodule(f"base_model.model.model.layers.0.{part}")(x.float())
    assert found.dtype == torch.bfloat16
    slope = torch.randn_like(wanted)
    found.backward(slope.to(torch.bfloat16))
    wanted.backward(slope)

    def assert_near(one: torch.Tensor, other: torch.Tensor) -> None:
        # bf16 has eight bits, so each number is off by up to 0.4 %.
        assert float((one.float() - other).norm() / other.norm()) < 0.02

    assert_near(found.detach(), wanted.detach())
    pairs = [(name, p.grad) for name, p in adapters(exact).items() if p.grad is not None]
    assert len(pairs) == (6 if part == "mlp" else 2)
    for name, grad in pairs:
        got = adapters(ours)[name].grad
        assert got.dtype == adapters(ours)[name].dtype == torch.float32
        assert_near(got, grad)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a family's model into a folder, once."""
    root = tmp_path_factory.mktemp("stored")

    def write(family: str) -> Path:
        if not (root / family).exists():
            families.make(family).save_pretrained(root / family)
        return root / family

    return write


def expanded(model: Any) -> dict[str, torch.Tensor]:
    """Return the linear layers' weights as 4 bits hold them, [out, in], by name."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    return {
        name: dequantize_4bit(layer.weight.data, layer.weight.quant_state).view(layer.out_features, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, Linear4bit)
    }


@pytest.mark.parametrize("family", ["llama", "llama-plain-heads", "gpt2"])
def test_on_4_bit_weights_loss_and_gradients_are_those_on_the_same_weights_expanded(
    stored: Callable[[str], Path], family: str
) -> None:
    chosen = settings(load_in_4bit=True)
    quantised = models.load_4bit(stored(family), torch.float32, CPU)
    weights = expanded(quantised)
    dense, count = families.make(family), 0
    for name, weight in weights.items():
        layer = dense.get_submodule(name)
        own = layer.weight if isinstance(layer, torch.nn.Linear) else layer.weight.t()  # GPT-2 keeps them transposed
        assert 1e-3 < float((own.detach() - weight).abs().max() / weight.abs().max()) < 0.3
        own.data.copy_(weight)
        count += 1
    assert count == (8 if family == "gpt2" else 14)
    ours = trained_a_little(lora.add_adapters(quantised, chosen)).train()
    theirs = trained_a_little(by_peft(dense, chosen)).train()
    assert_same_loss_and_gradients(ours, theirs)


def test_4_bit_weights_stay_in_4_bits_and_the_rest_does_not_learn(stored: Callable[[str], Path]) -> None:
    model = lora.add_adapters(models.load_4bit(stored("llama"), torch.float32, CPU), settings(load_in_4bit=True))
    objective = Objective.of(model, CPU, 0, APART)
    assert objective.layout == FLAT
    assert objective.direct
    objective.summed(objective.collate([APART])).backward()
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert {layer.base_layer.weight.dtype for layer in layers} == {torch.uint8}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == set(adapters(model))


@pytest.mark.parametrize("in_4_bits", [False, True])
def test_generation_is_what_peft_writes(stored: Callable[[str], Path], in_4_bits: bool) -> None:
    def base() -> Any:
        return models.load_4bit(stored("llama"), torch.float32, CPU) if in_4_bits else families.make("llama")

    ours = trained_a_little(lora.add_adapters(base(), settings())).eval()
    theirs = trained_a_little(by_peft(base(), settings())).eval()
    options = {"max_new_tokens": 16, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    one, other = (
        model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options) for model in (ours, theirs)
    )
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(torch.cat(one.scores), torch.cat(other.scores), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_switched_off_adapters_leave_the_model_as_it_was() -> None:
    plain = families.make("llama")
    adapted = trained_a_little(lora.add_adapters(copy.deepcopy(plain), settings())).eval()
    wanted = plain(input_ids=IDS).logits
    assert (adapted(input_ids=IDS).logits - wanted).abs().max() > 1e-2
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(input_ids=IDS).logits, wanted)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_adapters_load_in_stock_peft_and_merge_to_the_same_model(
    stored: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    ours = trained_a_little(lora.add_adapters(models.load_model(stored(family), torch.float32), settings())).eval()
    wanted = ours(input_ids=IDS).logits
    ours.save_pretrained(tmp_path / "adapter", safe_serialization=True)
    base = AutoModelForCausalLM.from_pretrained(stored(family), dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    merged = lora.merge(models.load_model(stored(family), torch.float32), tmp_path / "adapter", torch.float32)
    torch.testing.assert_close(merged.eval()(input_ids=IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]


@torch.no_grad()
def test_merging_adds_in_fp32_and_rounds_once(stored: Callable[[str], Path], tmp_path: Path) -> None:
    small = lora.add_adapters(models.load_model(stored("llama"), torch.float32), settings())
    trained_a_little(small)
    for name, parameter in adapters(small).items():
        # Updates of less than half a step of bf16, which a sum in bf16 would lose.
        parameter.mul_(0.02) if "lora_B" in name else parameter.mul_(0.5)
    small.save_pretrained(tmp_path / "adapter", safe_serialization=True)
    layers = {name: layer for name, layer in small.named_modules() if isinstance(layer, LoraLayer)}
    base = models.load_model(stored("llama"), torch.bfloat16)
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    merged = lora.merge(base, tmp_path / "adapter", torch.float16)
    for name, layer in layers.items():
        key = name.removeprefix("base_model.model.") + ".weight"
        wanted = (before[key].float() + layer.get_delta_weight("default")).to(torch.float16)
        assert torch.equal(merged.get_parameter(key), wanted), key
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float16}
