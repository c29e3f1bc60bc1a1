"""Tokens that were made before: one sealed folder for each way in which a dataset's rows become tokens.

The rule: a folder appears whole, by one rename, and is believed only after its hashes were checked; one that is
damaged is thrown away and made again. Nothing here is needed: without a cache a job tokenises, and trains the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from engine import atomic, manifest, process
from engine.manifest import Damaged
from engine.trainer.data.render import PLAIN, Manner
from engine.trainer.data.tokens import Fault, Tokens

# Raised when rows become other tokens, or the folder's layout changes.
VERSION = 2
ARRAYS = "tokens.safetensors"
_NAMES = ("ids", "answers", "ends", "lines", "places", "goes_on", "reasons")


def key(tokenizer: Any, *, data_sha256: str, form: str | None, manner: Manner = PLAIN) -> str:
    """Return the name of a dataset's tokens: of the file's content, how it is read, tokenizer and template."""
    backend = tokenizer.backend_tokenizer
    # What the last call to it asked for is no part of it.
    backend.no_truncation()
    backend.no_padding()
    parts = [
        VERSION,
        data_sha256,
        form,
        type(tokenizer).__name__,
        backend.to_str(),
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
    ]
    if manner != PLAIN:
        parts.append(asdict(manner))
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def load(folder: Path) -> Tokens | None:
    """Return the tokens in a folder, or None where there are none. Raises Damaged."""
    if not folder.exists():
        return None
    facts = manifest.verify(folder).facts
    try:
        arrays = load_file(folder / ARRAYS)
        faults = tuple(Fault(**fault) for fault in facts["faults"])
        return Tokens(**{name: arrays[name] for name in _NAMES}, faults=faults, thoughts_cut=facts["thoughts_cut"])
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise Damaged(folder, ARRAYS, f"cannot be read ({error})") from None


def save(folder: Path, tokens: Tokens) -> None:
    """Publish tokens at `folder`, unless somebody was faster. Raises OSError or SafetensorError."""
    atomic.step(folder.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
    for left in folder.parent.glob(".*.stage-*"):
        writer = left.suffix.removeprefix(".stage-")
        if writer.isdecimal() and process.identify(int(writer)) is None:
            atomic.remove_tree(left)
    staged = folder.with_name(f".{folder.name}.stage-{os.getpid()}")
    atomic.step(staged.mkdir, mode=0o700)
    try:
        atomic.step(save_file, {name: getattr(tokens, name) for name in _NAMES}, staged / ARRAYS)
        facts = {"faults": [asdict(fault) for fault in tokens.faults], "thoughts_cut": tokens.thoughts_cut}
        manifest.seal(staged, facts)
        if not folder.exists():
            atomic.publish(staged, folder)
    finally:
        atomic.remove_tree(staged)


def through(folder: Path | None, make: Callable[[], Tokens], tell: Callable[[str], object]) -> Tokens:
    """Return the tokens kept at `folder`, or make and keep them; None keeps none.

    `tell` hears where they come from, and of a cache that is damaged or cannot be written; neither stops anyone.
    """
    if folder is None:
        return make()
    try:
        found = load(folder)
    except Damaged as damage:
        tell(f"The kept tokens are damaged ({damage}); the rows are tokenised again.")
        atomic.remove_tree(folder)
        found = None
    if found:
        tell(f"{len(found.ends):,} rows were tokenised before; their tokens are used again.")
        return found
    made = make()
    try:
        save(folder, made)
    except (OSError, SafetensorError) as error:
        tell(f"The tokens could not be kept for the next time ({error}).")
    return made
