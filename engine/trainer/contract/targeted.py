"""Decoders whose layers have MLPs of different widths: what stock transformers needs to load them, and what we need.

The rule: the widths stand in config.json, and they alone decide what is built. The small modelling file beside it is
for others, who must trust it; we never run it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from engine import atomic
from engine.errors import Unsupported
from engine.plans.growth import SUPPORTED

WIDTHS = "mlp_widths"  # in config.json: the neurons of each layer
MODULE, CLASS = "modeling_targeted", "TargetedForCausalLM"

_CODE = '''"""{stock} with an MLP of its own width in each layer, as `{widths}` in config.json says."""

import copy

from transformers import {stock}


class {name}({stock}):
    def __init__(self, config):
        super().__init__(config)
        for layer, width in zip(self.model.layers, config.{widths}):
            own = copy.copy(config)
            own.intermediate_size = width
            layer.mlp = type(layer.mlp)(own)
        self.post_init()
'''


def widths_of(model: Any) -> list[int]:
    """Return the number of neurons of each layer."""
    return [layer.mlp.down_proj.in_features for layer in model.get_decoder().layers]


def describe(model: Any) -> None:
    """Let the config say how wide the layers are: one number where they are alike, else a list, and who builds it."""
    config, widths = model.config, widths_of(model)
    for name in (WIDTHS, "auto_map"):
        if hasattr(config, name):
            delattr(config, name)
    if len(set(widths)) == 1:
        config.intermediate_size = widths[0]
        return
    setattr(config, WIDTHS, widths)
    config.auto_map = {"AutoModelForCausalLM": f"{MODULE}.{CLASS}"}


def write_code(model: Any, folder: Path) -> None:
    """Write the modelling file beside a model's config.json, where its layers differ in width."""
    if getattr(model.config, WIDTHS, None):
        code = _CODE.format(stock=type(model).__name__, widths=WIDTHS, name=CLASS)
        atomic.step((folder / f"{MODULE}.py").write_text, code)


def loader(folder: Path) -> Any:
    """Return what has the `from_pretrained` for the model in `folder`: the stock one, or one that knows its widths."""
    try:
        said = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return AutoModelForCausalLM  # which says what is wrong
    if not said.get(WIDTHS):
        return AutoModelForCausalLM
    if said.get("model_type") not in SUPPORTED:
        raise Unsupported(
            f"{folder} has layers of different widths, of the type '{said.get('model_type')}': only those of the types "
            f"{', '.join(SUPPORTED)} can be loaded."
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return _of_widths(AutoModelForCausalLM._model_mapping[type(config)])


def _of_widths(stock: Any) -> Any:
    """Return a stock class whose models have MLPs as wide as the config says. It keeps the name of the stock class,
    which is what a config names as architecture."""

    def build(self: Any, config: Any) -> None:
        stock.__init__(self, config)
        for layer, width in zip(self.get_decoder().layers, getattr(config, WIDTHS), strict=True):
            own = copy.copy(config)
            own.intermediate_size = width
            layer.mlp = type(layer.mlp)(own)
        self.post_init()

    return type(stock.__name__, (stock,), {"__init__": build, "__module__": stock.__module__})
