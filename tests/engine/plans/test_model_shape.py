"""A model's shape is exact or there is none, and who has none is told why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.paths import STARTER_MODEL
from engine.plans import model_shape
from engine.plans.model_shape import ShapeUnknown
from tests.engine import shapes


@pytest.mark.parametrize(("config", "parameters"), shapes.PARAMETERS)
def test_the_parameters_of_known_models_are_counted_to_the_last(config: dict[str, Any], parameters: int) -> None:
    assert model_shape.of_config(config).params == parameters


def test_adapters_sit_on_every_linear_layer_but_the_head() -> None:
    # Published for Llama-3-8B at rank 16 on all linear layers: 41,943,040 trainable parameters.
    assert model_shape.of_config(shapes.LLAMA_8B).adapter(16) == 41_943_040


def test_a_folder_needs_no_more_than_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shapes.QWEN_7B))
    shape = model_shape.read(tmp_path)
    assert (shape.query, shape.key_value, shape.mlp, shape.tied) == (3584, 512, 18944, False)


def test_the_starter_model_has_a_shape() -> None:
    assert model_shape.read(STARTER_MODEL).params > 4_000_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, r"model_type 'mamba' cannot be planned yet; known: llama"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised already; use the 16-bit model"),
        ({"hidden_size": None}, "hidden_size is None, not a positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"intermediate_size": True}, "intermediate_size is True"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**shapes.LLAMA_8B, **change}))
    with pytest.raises(ShapeUnknown, match=said) as caught:
        model_shape.read(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ShapeUnknown, match=r"config\.json is not"):
        model_shape.read(tmp_path)
    with pytest.raises(ShapeUnknown, match="cannot be read"):
        model_shape.read(tmp_path / "nowhere")
