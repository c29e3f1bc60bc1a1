"""The main road on real weights: add SmolLM2 from a GGUF file, add rows, fine-tune, use what came out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.paths import STARTER_ROWS
from tests.e2e.conftest import Shell

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def job(shell: Shell, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A finished fine-tune of 20 steps, made by the commands of the README."""
    rows = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows.write_text("".join(STARTER_ROWS.read_text().splitlines(keepends=True)[:150]))
    shell.run("models", "add", str(smollm2), "--name", "smollm2")
    shell.run("datasets", "add", str(rows), "--name", "d")
    settings = ["--set", "steps=20", "--set", "seq_len=256", "--set", "save_steps=10", "--set", "lr=5e-4"]
    done: dict[str, object] = shell.json(
        "submit", "finetune", "--model", "smollm2", "--dataset", "d", *settings, "--wait"
    )
    return done


def test_the_run_completes_and_its_loss_falls(shell: Shell, job: dict[str, object]) -> None:
    assert job["status"] == "completed"
    result = shell.json("result", str(job["id"]))
    assert result["ppl_final"] < 0.9 * result["ppl_baseline"]
    assert result["params_before"] == result["params_after"] == 134_515_008
    points = shell.json("metrics", str(job["id"]))["points"]
    losses = [point["loss"] for point in points if point["phase"] == "train"]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
    assert {"grad_norm", "lr", "throughput", "vram_gb"} <= points[-1].keys()


def test_the_merged_model_answers_with_stock_transformers_and_the_adapter_gives_the_same_tokens(
    shell: Shell, job: dict[str, object]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = next(entry for entry in shell.json("models") if entry["id"] == job["output_model_id"])
    folder = shell.home / "models" / model["id"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    def answer(network: torch.nn.Module) -> str:
        output = network.generate(**prompt, max_new_tokens=12, do_sample=False)
        return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert merged.dtype == torch.float16
    merged = merged.float()
    adapter = folder / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    text = answer(merged)
    assert "France" in text
    assert answer(adapted) == text
    logits = [network(**prompt).logits[0, -1] for network in (merged, adapted)]
    assert float((logits[0] - logits[1]).detach().abs().max()) < 0.1


@pytest.mark.slow  # on tiny weights the chain of runs does the same
def test_the_finished_model_can_be_trained_again(shell: Shell, job: dict[str, object]) -> None:
    settings = ["--set", "steps=1", "--set", "seq_len=128", "--set", "output_name=again"]
    again = shell.json(
        "submit", "finetune", "--model", str(job["output_model_id"]), "--dataset", "d", *settings, "--wait"
    )
    assert again["status"] == "completed"
    lineage = [entry for entry in shell.json("models") if entry["name"] == "again"]
    assert lineage[0]["base_model_id"] == job["output_model_id"]


@pytest.mark.slow
def test_on_real_rows_packed_loss_and_gradients_are_those_of_rows_alone(smollm2: Path, tmp_path: Path) -> None:
    import torch
    from torch.nn import functional

    from engine.jobs.hyperparams import FinetuneHyperparams
    from engine.trainer import lora, models
    from engine.trainer.data import corpora
    from engine.trainer.objective import FLAT, Objective
    from engine.trainer.optimizer import trained_parameters

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(STARTER_ROWS.read_text().splitlines(keepends=True)[:8]))
    weights, tokenizer = models.load_gguf(smollm2)
    stock, cpu = weights.float().eval(), torch.device("cpu")
    settings = {
        packing: FinetuneHyperparams(seq_len=512, packing=packing, val_fraction=0.1) for packing in (True, False)
    }
    loaded = {packing: corpora.load(corpora.Source(rows), tokenizer, chosen) for packing, chosen in settings.items()}
    documents = [one for sequence in loaded[False].training for one in sequence]
    assert len(loaded[True].training) < len(documents) == len(loaded[False].training)

    with torch.no_grad():
        total, count = 0.0, 0
        for one in documents:
            logits = stock(input_ids=torch.tensor([one.ids])).logits[0, :-1]
            labels = torch.tensor(one.labels[1:])
            total += float(functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            count += int((labels != -100).sum())

    torch.manual_seed(0)
    model = lora.add_adapters(stock, settings[True])
    objective = Objective.of(model, cpu, loaded[True].pad, documents)
    assert objective.layout == FLAT
    assert objective.direct
    norms = []
    for packing, size in ((True, 4), (False, 1)):
        sequences, trained = loaded[packing].training, 0.0
        for start in range(0, len(sequences), size):
            loss = objective.summed(objective.collate(sequences[start : start + size])) / count
            loss.backward()
            trained += float(loss.detach())
        assert trained == pytest.approx(total / count, abs=1e-3)
        grads = [parameter.grad for parameter in trained_parameters(model).values() if parameter.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        model.zero_grad(set_to_none=True)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
