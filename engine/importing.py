"""Bringing datasets and models into the catalogue.

The rule: what is imported is looked at whole first; files appear in the data folder by one rename, and a row
in the catalogue only after that, so a failed import leaves nothing behind.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine import atomic, manifest, process, resources, rows
from engine.errors import InvalidData

Progress = Callable[[str, float | None], None]
FAULTS_SHOWN = 5
HEADER_BYTES_AT_MOST = 100_000_000


def silent(what: str, share: float | None) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class ImportedRows:
    """What an imported dataset holds; `shapes` counts rows by shape."""

    rows: int
    bytes: int
    sha256: str
    shapes: dict[str, int]

    @property
    def format(self) -> str:
        """The shape of the rows, or `mixed`."""
        return next(iter(self.shapes)) if len(self.shapes) == 1 else "mixed"


def check_rows(path: Path, progress: Progress = silent) -> ImportedRows:
    """Read a whole JSONL file. Raises InvalidData with the first faulty lines, or when there is no row."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InvalidData(f"{path} {what}. Give a JSONL file: one JSON object a line.")
    if not os.access(path, os.R_OK):
        raise InvalidData(f"{path} cannot be read by this user. Check its permissions.")
    total = path.stat().st_size
    shapes: Counter[str] = Counter()
    faults: list[str] = []
    done = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            done += len(line)
            try:
                row = rows.parse(line, number)
            except rows.RowError as error:
                faults.append(str(error))
                continue
            if row:
                shapes[row.shape] += 1
            if number % 2000 == 0:
                progress("reading rows", done / total)
    if faults:
        more = f" (and {len(faults) - FAULTS_SHOWN} more)" if len(faults) > FAULTS_SHOWN else ""
        raise InvalidData(
            f"{path.name}: {'; '.join(faults[:FAULTS_SHOWN])}{more}. Nothing was imported; mend these lines first."
        )
    if not shapes:
        raise InvalidData(f"{path.name} has no rows. Give a JSONL file: one JSON object a line.")
    return ImportedRows(sum(shapes.values()), total, manifest.file_sha256(path), dict(shapes))


def copy_rows(source: Path, target: Path, wanted: ImportedRows) -> Path:
    """Copy a checked file into the new directory `target` and return the copy's path."""
    resources.need_space(target.parent, wanted.bytes, f"a copy of {source.name}")
    staged = target.with_name(f".{target.name}.stage")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700)
    try:
        copy = staged / "rows.jsonl"
        shutil.copyfile(source, copy)
        if manifest.file_sha256(copy) != wanted.sha256:
            raise InvalidData(f"{source.name} changed while it was imported. Try again when nothing writes to it.")
        atomic.publish(staged, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return target / "rows.jsonl"


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder's files say of it, read without loading a weight."""

    family: str
    params: int
    precision: str


_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64", "U8": "4-bit", "I8": "int8"}


def _tensors(path: Path) -> dict[str, tuple[str, int]]:
    """Return each tensor's dtype and number of elements, from a safetensors file's header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        # The format's own limit; a pointer file of git-lfs read as a length would ask for all memory.
        if length > HEADER_BYTES_AT_MOST:
            raise ValueError("no safetensors header")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("no safetensors header")
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], math.prod(entry["shape"])) for name, entry in header.items()}


def inspect_model(folder: Path) -> ModelFacts:
    """Read a Hugging Face model folder's facts. Raises InvalidData where it cannot be trained, with the remedy."""
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise InvalidData(
            f"{folder} is an adapter without its base. Merge it into the base first, then add the result."
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except OSError:
        raise InvalidData(f"{folder} has no config.json, so it is not a Hugging Face model folder.") from None
    except ValueError as error:
        raise InvalidData(f"{folder / 'config.json'} is not valid JSON ({error}).") from None
    if not isinstance(config, dict):
        raise InvalidData(f"{folder / 'config.json'} is not a JSON object. Copy the model again.")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InvalidData(f"{folder} has no tokenizer. Save the model's tokenizer into the same folder.")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise InvalidData(
            f"{folder} has no .safetensors weights. Save it with safe_serialization; pickles are not read."
        )
    counts: Counter[str] = Counter()
    for shard in shards:
        try:
            for dtype, count in _tensors(shard).values():
                counts[dtype] += count
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            raise InvalidData(f"{shard} is not a readable safetensors file. Copy it again.") from None
    if not counts:
        raise InvalidData(f"The .safetensors files in {folder} hold no weights. Copy the model again.")
    dtype = counts.most_common(1)[0][0]
    return ModelFacts(str(config.get("model_type", "unknown")), sum(counts.values()), _DTYPES.get(dtype, dtype.lower()))


def is_gguf(source: str) -> bool:
    """Say whether `source` names a GGUF file."""
    return source.lower().endswith(".gguf")


def find_gguf(source: str) -> Path | None:
    """Return the GGUF file that `source` names: itself, or the only one in a folder without a config.json."""
    path = Path(source).expanduser()
    if is_gguf(source):
        return path.absolute()
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            raise InvalidData(f"{path} holds {len(files)} GGUF files; name the one to add.")
        return files[0].absolute() if files else None
    return None


def convert_gguf(file: Path, target: Path, *, python: str, progress: Progress = silent) -> None:
    """Turn a GGUF file into a 16-bit model folder at `target`, so that all later work is on one format."""
    if not file.is_file():
        raise InvalidData(f"{file} does not exist.")
    # 16 bits a weight from as little as 4: at most four times the file.
    resources.need_space(target.parent, 4 * file.stat().st_size, f"the weights of {file.name}")
    progress(f"converting {file.name}", None)
    staged = target.with_name(f".{target.name}.stage")
    try:
        process.run_tool("engine.trainer.convert", [str(file), str(staged)], python=python)
        atomic.publish(staged, target)
    except RuntimeError as error:
        raise InvalidData(f"{file.name} could not be converted: {error}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def fetch_hub(name: str, progress: Progress = silent) -> Path:
    """Return the local snapshot of a hub model, downloading what the cache lacks. Raises InvalidData."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
    try:
        cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        # A tokenizer that was fetched alone makes a snapshot too.
        if (cached / "config.json").exists() and any(cached.glob("*.safetensors")):
            return cached
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError):
        pass
    progress(f"downloading {name}", None)
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # noqa: BLE001  (the hub's client raises what its transport raises)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidData(
            f"'{name}' is no local folder or GGUF file, is not in the hub's local cache, and could not be downloaded "
            f"({reason}). Check the spelling and the network."
        ) from None
