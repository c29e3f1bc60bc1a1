"""Growth on real weights: SmolLM2 a quarter larger says the same, word for word, and learns what it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.paths import STARTER_ROWS
from tests.e2e.conftest import Shell

pytestmark = pytest.mark.slow

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):",
    "Once upon a time",
    "The largest planet is",
    "My favourite food is",
    "In 1969, people first",
    "To bake bread, you need",
    "Photosynthesis is",
    "The opposite of hot is",
    "A triangle has",
    "Shakespeare wrote",
    "The sun rises in the",
    "Import numpy as",
    "SELECT name FROM",
    "Dear Sir or Madam,",
    "The quick brown fox",
    "E = mc",
    "Roses are red,",
    "The meaning of life is",
]


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a folder."""
    from engine.trainer import models

    made = tmp_path_factory.mktemp("smollm2")
    models.save(*models.load_gguf(smollm2), made)
    return made


def answers(model: Any, tokenizer: Any) -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        found.append(model.generate(**given, max_new_tokens=12, do_sample=False)[0].tolist())
    return found


@pytest.mark.parametrize("shape", ["depth", "width", "auto"])
def test_grown_by_a_quarter_it_answers_twenty_prompts_with_the_same_tokens(
    folder: Path, tmp_path: Path, shape: Any
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from engine.plans import growth
    from engine.trainer import models
    from engine.trainer.grow import preservation
    from engine.trainer.grow.operators import Grown, Growth, room

    tokenizer, model = models.load_tokenizer(folder), models.load_model(folder, torch.float32).eval()
    said, space = answers(model, tokenizer), room(model)
    size = growth.size(space, 0.25, shape)
    grown = Grown(model, Growth(tuple(range(29, 29 - size.blocks, -1))[::-1], size.units), seed=0)
    probe = torch.tensor([tokenizer(" ".join(PROMPTS))["input_ids"]])
    kept = preservation.measure(grown, probe)
    assert kept.change <= (0 if shape == "depth" else 1e-5)
    assert kept.agreement == 1
    folded = grown.fold()
    assert folded.num_parameters() == space.params + size.added(space)
    assert folded.num_parameters() == pytest.approx(1.25 * space.params, rel=0.02)
    models.save(folded, tokenizer, tmp_path, torch.float32)
    assert answers(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokenizer) == said


def test_sixty_steps_on_the_starter_rows_bring_the_perplexity_down(shell: Shell, smollm2: Path) -> None:
    shell.run("models", "add", str(smollm2), "--name", "smollm2")
    shell.run("datasets", "add", str(STARTER_ROWS), "--name", "starter-rows")
    settings = ["growth_ratio=0.25", "cycles=2", "steps_per_cycle=30"]
    sets = [word for setting in settings for word in ("--set", setting)]
    job = shell.json("submit", "train", "--model", "smollm2", "--dataset", "starter-rows", *sets, "--wait")
    result = shell.json("result", job["id"])
    assert result["ppl_final"] < 0.8 * result["ppl_baseline"]
    assert result["self_ppl_final"] < 1.1 * result["self_ppl_baseline"]
    assert result["tokens_processed"] == 60 * 256
    assert result["params_after"] == pytest.approx(1.25 * result["params_before"], rel=0.02)
    assert result["function_preservation"] <= 1e-5
