"""Optimisers: which run where, what is decayed, and that 8 bits of state are 8 bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.errors import InvalidRequest, Unsupported
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.jobs.specs import parse
from engine.trainer import lora, models
from engine.trainer import optimizer as optimizers
from tests import worker
from tests.trainer import families
from tests.trainer.conftest import Bench

CPU = torch.device("cpu")


def make(device: torch.device = CPU, **changes: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = families.make("llama-plain-heads")
    settings = FinetuneHyperparams.model_validate({"training_type": "full", "lr": 1e-2, **changes})
    return model, optimizers.make(model, settings, device)


def train_a_step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.arange(3, 40).reshape(1, -1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_8_bits_of_state_take_a_quarter_and_learn_nearly_the_same() -> None:
    sizes, losses, ids = {}, {}, torch.arange(3, 40).reshape(1, -1)
    for name in ("adamw", "adamw_8bit"):
        # Small tensors keep 32 bits, so a model is needed that has large ones.
        model = families.make("llama", hidden_size=128, intermediate_size=256)
        optimizer = optimizers.make(
            model, FinetuneHyperparams.model_validate({"training_type": "full", "optimizer": name, "lr": 1e-3}), CPU
        )
        for _ in range(8):
            train_a_step(model, optimizer)
        tensors = optimizers.state_tensors(model, optimizer)
        sizes[name] = sum(tensor.nbytes for key, tensor in tensors.items() if "qmap" not in key)
        losses[name] = float(model(input_ids=ids, labels=ids).loss.detach())
    assert sizes["adamw_8bit"] < 0.3 * sizes["adamw"]
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.05)


def test_matrices_are_decayed_and_norms_and_biases_are_not() -> None:
    model, optimizer = make(weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what moves then, is moved by the decay alone
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = before[name] * (1 - 1e-2 * 0.5) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), decayed, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("name", "device", "remedy"),
    [
        ("paged_adamw_8bit", "cpu", r"optimizer: paged_adamw_8bit does not run on cpu\. Use adamw_8bit or adamw\."),
        ("paged_adamw_8bit", "mps", r"does not run on mps\. Use adamw\."),
        ("adamw_8bit", "mps", r"optimizer: adamw_8bit does not run on mps\. Use adamw\."),
    ],
)
def test_an_optimiser_that_the_device_lacks_is_refused_with_the_remedy(name: str, device: str, remedy: str) -> None:
    with pytest.raises(Unsupported, match=remedy):
        make(torch.device(device), optimizer=name)


def test_without_its_package_8_bits_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Unsupported, match=r"adamw_8bit needs the package bitsandbytes\. Use adamw"):
        make(optimizer="adamw_8bit")
    with pytest.raises(Unsupported, match=r"load_in_4bit needs the package bitsandbytes.*Set it to false"):
        models.load_4bit(tiny_model, torch.float32, CPU)


def test_4_bits_are_refused_on_an_apple_gpu_with_the_remedy(tiny_model: Path) -> None:
    with pytest.raises(Unsupported, match=r"load_in_4bit does not run on an Apple GPU\. Set it to false"):
        models.load_4bit(tiny_model, torch.float32, torch.device("mps"))


def test_a_worker_that_is_asked_for_a_paged_optimiser_on_the_cpu_says_what_to_do(bench: Bench) -> None:
    order = bench.order(optimizer="paged_adamw_8bit")
    running = worker.start(bench.folder / "attempt-1", order)
    running.join()
    end = bench.records()[-1]
    assert (end.kind, end.data["outcome"], end.data["cause"]) == ("end", "failed", "unsupported")
    assert "Use adamw_8bit or adamw." in end.data["error"]


def test_4_bits_of_weights_that_learn_are_refused_before_there_is_a_job() -> None:
    request = {"type": "finetune", "idempotency_key": "k", "base_model_id": "m", "dataset_id": "d"}
    with pytest.raises(InvalidRequest, match=r"hyperparams: .*cannot learn.*training_type lora, or load_in_4bit false"):
        parse({**request, "hyperparams": {"load_in_4bit": True, "training_type": "full"}})


def test_4_bits_of_a_model_without_linear_layers_are_refused_with_the_remedy(
    make_bench: Callable[[str], Bench], tmp_path: Path, tokenizer: Any
) -> None:
    # Embeddings, a norm and a head are all there is.
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=0, num_attention_heads=4)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    bench = make_bench("bare")
    bench.model_path = tmp_path / "bare"
    with pytest.raises(Unsupported, match=r"load_in_4bit: LlamaForCausalLM has no linear layer.*false"):
        bench.make_run(bench.order(load_in_4bit=True))
    # Nor can such a model take adapters.
    plain = make_bench("plain")
    plain.model_path = tmp_path / "bare"
    with pytest.raises((Unsupported, ValueError), match="training_type"):
        plain.make_run(plain.order())


def test_gpt2s_transposed_layers_count_as_linear(tmp_path: Path) -> None:
    families.make("gpt2").save_pretrained(tmp_path)
    model = models.load_4bit(tmp_path, torch.float32, CPU)
    assert sum(type(module).__name__ == "Linear4bit" for module in model.modules()) == 8
    assert lora.add_adapters(model, FinetuneHyperparams(load_in_4bit=True)).num_parameters() > 0
