"""Makes a blank language model: a byte-level BPE tokenizer trained on the starter data, and random weights.

The one rule: every special token is known to tokenizer, model and generation config under one id, so that a model
trained from this folder stops where its training rows stopped.

    python -m tools.starter.blank --text DIR/text.jsonl --rows DIR/rows.jsonl --out MODEL_DIR
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
CONTEXT_TOKENS = 1_024

# ChatML without a system prompt of its own; `generation` marks what a loss on answers only counts.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] + '<|im_end|>' }}
{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def make_tokenizer(texts: Iterable[str], vocab_size: int = 4_096) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`; it encodes any string and adds no token by itself.

    Raises ValueError where the texts hold too few different words for `vocab_size`.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if bpe.get_vocab_size() != vocab_size:
        raise ValueError(f"The texts give {bpe.get_vocab_size()} tokens, not {vocab_size}: pass more text.")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return a Llama of 4.7 M parameters in float32 whose weights depend on `seed` alone."""
    end, turn_end, pad = tokenizer.convert_tokens_to_ids([END_OF_TEXT, TURN_END, PAD])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=[turn_end, end], pad_token_id=pad)
    return model


def strings(paths: Iterable[Path]) -> Iterator[str]:
    """Yield every text and every message content of JSON-lines files."""
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield from [row["text"]] if "text" in row else [turn["content"] for turn in row["messages"]]


def main(argv: list[str] | None = None) -> None:
    """Write tokenizer and model to the folder that `--out` names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True, metavar="FILE")
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL_DIR")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    tokenizer = make_tokenizer(strings([asked.text, asked.rows]))
    model = make_model(tokenizer, asked.seed)
    tokenizer.save_pretrained(asked.out)
    model.save_pretrained(asked.out)
    for path in (asked.text, asked.rows):
        print(f"{path.name}: {sum(map(len, tokenizer(list(strings([path])))['input_ids']))} tokens")
    print(f"{asked.out}: {len(tokenizer)} tokens in the vocabulary, {model.num_parameters()} parameters")


if __name__ == "__main__":
    main()
