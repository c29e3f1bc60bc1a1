"""What the memory plan counts is there: weights as each architecture has them, activations as autograd keeps them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.jobs.hyperparams import FinetuneHyperparams, TrainHyperparams
from engine.plans import model_shape
from engine.plans.finetuning import Finetuning
from engine.plans.growing import Growing
from engine.trainer import lora, models
from engine.trainer.data.batch import Document
from engine.trainer.grow import operators
from engine.trainer.objective import Objective

TOKENS, RANK = 192, 8
SMALL = {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3, "intermediate_size": 160}
GROUPED = {**SMALL, "num_key_value_heads": 2}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", GROUPED),
    ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {**SMALL, "num_key_value_heads": None}),
    ("mistral", GROUPED),
    ("qwen2", GROUPED),
    ("qwen3", {**GROUPED, "head_dim": 16}),
    ("smollm3", GROUPED),
    ("olmo2", GROUPED),
    ("granite", GROUPED),
    ("gemma", {**GROUPED, "head_dim": 16}),
    ("gemma2", {**GROUPED, "head_dim": 32}),
    ("gemma3_text", {**GROUPED, "head_dim": 16}),
    ("phi", GROUPED),
    ("phi3", GROUPED),
    ("gpt2", {"n_embd": 96, "n_head": 6, "n_layer": 3, "n_positions": 256}),
    ("gpt2", {"n_embd": 96, "n_head": 6, "n_layer": 3, "n_positions": 256, "n_inner": 100}),
    ("gpt_neox", SMALL),
    ("gpt_neox", {**SMALL, "attention_bias": False}),
    ("starcoder2", GROUPED),
    ("starcoder2", {**GROUPED, "use_bias": False}),
]


def configuration(family: str, fields: dict[str, Any]) -> Any:
    special = {"vocab_size": 320, "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}
    return AutoConfig.for_model(family, **special, **fields)


@pytest.mark.parametrize(("family", "fields"), CASES)
def test_every_weight_of_every_family_is_counted(family: str, fields: dict[str, Any]) -> None:
    config = configuration(family, fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    heads = ("lm_head", "embed_out")
    linears = [
        module.weight
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D") and not name.endswith(heads)
    ]
    # As saved, and as a hand or an older version writes it, with what is the family's own left out.
    for written in (json.loads(config.to_json_string()), {"model_type": family, "vocab_size": 320, **fields}):
        shape = model_shape.of_config(written)
        assert shape.params == model.num_parameters()
        assert shape.linear == sum(weight.numel() for weight in linears)
        assert shape.adapter(RANK) == RANK * sum(sum(weight.shape) for weight in linears)


def kept_bytes(config: Any, settings: FinetuneHyperparams, dtype: torch.dtype) -> int:
    """Return the bytes that autograd keeps for the backward pass of one batch, weights left out."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if settings.training_type == "lora":
        model = lora.add_adapters(model, settings)
    return kept_by(model, settings.gradient_checkpointing)


def kept_by(model: Any, checkpointing: str) -> int:
    """Return the same of a model as it is."""
    documents = [Document(list(range(i, i + TOKENS // 2)), list(range(i, i + TOKENS // 2))) for i in (2, 150)]
    objective = Objective.of(model, torch.device("cpu"), 0, documents)
    model.train()
    models.set_checkpointing(model, checkpointing)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no later one has the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective.summed(objective.collate([documents]))
    return sum(storage.nbytes() for storage in kept.values())


def planned_bytes(config: Any, settings: FinetuneHyperparams, *, sixteen_bits: bool) -> float:
    """Return what the plan says of the same."""
    shape = model_shape.of_config(json.loads(config.to_json_string()))
    moments = Finetuning(shape, settings, "cpu", sixteen_bits)
    return moments.kept() + moments.casts()


def difference(family: str, settings: FinetuneHyperparams, dtype: torch.dtype) -> tuple[float, int]:
    """Return (planned, measured) bytes of two more layers: without what stands before and after them."""
    fields = next(fields for name, fields in CASES if name == family)
    fewer, more = (configuration(family, {**fields, "num_hidden_layers": layers}) for layers in (2, 4))
    narrow = dtype == torch.bfloat16
    planned = planned_bytes(more, settings, sixteen_bits=narrow) - planned_bytes(fewer, settings, sixteen_bits=narrow)
    return planned, kept_bytes(more, settings, dtype) - kept_bytes(fewer, settings, dtype)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_dropout_keeps_more(family: str) -> None:
    settings = FinetuneHyperparams(lora_dropout=0.1, seq_len=TOKENS, lora_rank=RANK)
    planned, measured = difference(family, settings, torch.float32)
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("training_type", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi3", "phi", "gpt_neox"])
def test_a_layer_keeps_what_the_plan_says(family: str, training_type: str, checkpointing: str) -> None:
    settings = FinetuneHyperparams(
        training_type=training_type,  # type: ignore[arg-type]
        gradient_checkpointing=checkpointing,  # type: ignore[arg-type]
        seq_len=TOKENS,
        lora_rank=RANK,
    )
    for dtype in (torch.float32, torch.bfloat16) if training_type == "lora" else (torch.float32,):
        planned, measured = difference(family, settings, dtype)
        assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(("shape", "scope"), [("depth", "new"), ("width", "new"), ("auto", "new"), ("auto", "all")])
@pytest.mark.parametrize("family", ["llama", pytest.param("gemma", marks=pytest.mark.slow)])
def test_a_growing_model_keeps_what_the_plan_says(family: str, shape: str, scope: str, checkpointing: str) -> None:
    """Of eight layers less that of four, so that what stands before and after them is left out."""
    settings = TrainHyperparams.model_validate(
        {
            "seq_len": TOKENS,
            "growth_shape": shape,
            "growth_ratio": 1.0,
            "train_scope": scope,
            "gradient_checkpointing": checkpointing,
        }
    )
    found = []
    for layers in (4, 8):
        fields = next(fields for name, fields in CASES if name == family)
        config = configuration(family, {**fields, "num_hidden_layers": layers})
        before = model_shape.of_config(json.loads(config.to_json_string()))
        plan = Growing(before, settings, "cpu", False)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Behind every second layer, from where the plan takes the gradients to begin.
        first = before.layers // 3
        size = plan.size
        behind = tuple(first + number * (layers - first) // size.blocks for number in range(size.blocks))
        grown = operators.Grown(model, operators.Growth(behind, size.units), seed=0)
        model.requires_grad_(scope == "all")
        for parameter in grown.new_parameters().values():
            parameter.requires_grad_(True)
        assert sum(parameter.numel() for parameter in grown.new_parameters().values()) == plan.added
        assert plan.grown.params == model.num_parameters()
        found.append((plan.kept(), kept_by(model, checkpointing)))
    (planned_few, kept_few), (planned, kept) = found
    # Every second layer is worked out again, be it an old one or a new one, which keeps more.
    assert planned - planned_few == pytest.approx(kept - kept_few, rel=0.15 if checkpointing == "selective" else 0.1)
