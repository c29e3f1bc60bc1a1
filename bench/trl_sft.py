"""One run of TRL's SFTTrainer, as its documentation has it, in a process of its own; also Unsloth, which patches it.

Writes steps.jsonl, a line at each optimiser step's end and one when training begins, and the adapter. Started by
bench.finetune_vs_trl:

    python -m bench.trl_sft FOLDER          FOLDER/contestant.json says what is asked
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def patched_by_unsloth(asked: dict[str, Any]) -> tuple[Any, Any]:
    """Return (model with adapters, tokenizer) as Unsloth makes them."""
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=asked["model"], max_seq_length=asked["settings"]["max_length"], load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=asked["lora"]["r"],
        lora_alpha=asked["lora"]["lora_alpha"],
        lora_dropout=0,
        bias="none",
        target_modules=LINEAR,
        use_gradient_checkpointing="unsloth",
        random_state=asked["settings"]["seed"],
    )
    return model, tokenizer


def run(folder: Path, asked: dict[str, Any]) -> None:
    """Train and write what was seen."""
    model, tokenizer = patched_by_unsloth(asked) if asked["unsloth"] else (asked["model"], None)

    # After Unsloth: it has to be imported before what it patches.
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokens = 0
    steps = (folder / "steps.jsonl").open("w")

    def write() -> None:
        card = torch.cuda.is_available()
        if card:
            torch.cuda.synchronize()
        reserved = torch.cuda.max_memory_reserved() if card else 0
        print(json.dumps({"ts": time.time(), "tokens": tokens, "vram_bytes": reserved}), file=steps, flush=True)

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            write()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            write()

    class Counted(SFTTrainer):  # type: ignore[misc, unused-ignore]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            # Not in the collator: the loader fetches a batch ahead of the one that is trained.
            nonlocal tokens
            mask = inputs.get("attention_mask")
            tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().training_step(model, inputs, *rest, **named)

    lines = Path(asked["rows"]).read_text().splitlines()
    rows = Dataset.from_list([json.loads(line) for line in lines])
    if asked["unsloth"]:
        rows = rows.map(lambda row: {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)})
        rows = rows.remove_columns("messages")
    trainer = Counted(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(output_dir=str(folder / "trl"), **asked["settings"]),
        train_dataset=rows,
        peft_config=None if asked["unsloth"] else LoraConfig(**asked["lora"]),
        callbacks=[Clock()],
    )
    trainer.train()
    trainer.model.save_pretrained(folder / "adapter")


if __name__ == "__main__":
    here = Path(sys.argv[1])
    run(here, json.loads((here / "contestant.json").read_text()))
