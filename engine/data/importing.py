"""Bringing datasets and models into the catalogue.

The rule: what is imported is looked at whole first; files appear in the data folder by one rename, and a row
in the catalogue only after that, so a failed import leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from engine import atomic, process, resources
from engine.data import rows, sources
from engine.data.sources import Record
from engine.errors import InvalidData

Progress = Callable[[str, float | None], None]
FAULTS_SHOWN = 5
FAULTS_KEPT = 20
PROGRESS_EVERY = 2000  # rows
HEADER_BYTES_AT_MOST = 100_000_000
COPY = "rows.jsonl"


def silent(what: str, share: float | None) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class ImportedRows:
    """What an imported dataset holds.

    `facts`: `characters` of all rows' own text; `p50`, `p95`, `p99`, `max` characters of a row; `shapes` with the
    number of their rows; `dropped` rows with the first 20 `reasons`; of a folder its `files`, each with the line at
    which it begins in the copy, and those `left_out`.
    """

    rows: int
    bytes: int
    sha256: str
    format: str
    facts: dict[str, Any]


@dataclass
class _Survey:
    """Judges rows as they pass by, counts them, and writes the copy, in which a row keeps the line it came from."""

    form: str | None
    drop_bad: bool
    copy: IO[bytes] | None = None
    shapes: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    faults: list[str] = field(default_factory=list)
    faulty: int = 0
    first_fault: int | None = None  # its place in its file
    size: int = 0  # bytes written
    lines: int = 0  # whole lines written
    ended: bool = True  # whether the last line written is whole
    digest: Any = field(default_factory=hashlib.sha256)

    def begin_file(self) -> int:
        """Return the line of the copy at which the next file's rows begin."""
        if not self.ended:
            self._write(b"\n")
        return self.lines + 1

    def take(self, file: Path, record: Record, begins: int) -> None:
        """Judge one record of `file`, whose first line is line `begins` of the copy, and copy it."""
        try:
            if record.fault:
                raise rows.RowError(record.fault)
            if record.raw:
                row, line = rows.parse(record.raw, record.place, self.form), record.raw
            else:
                line = rows.to_line(record.fields)
                row = rows.Row(record.place, rows.check(record.fields, self.form), record.fields)
        except rows.RowError as error:
            self.faulty += 1
            self.first_fault = self.first_fault or record.place
            if len(self.faults) < FAULTS_KEPT:
                self.faults.append(f"{sources.where(file, record.place)}: {error.message}")
            return
        if row:
            self.shapes[row.shape] += 1
            self.lengths.append(rows.characters(row))
        if self.drop_bad or not self.faulty:
            # Blank lines stand for what was left out, so that a line number means the same in file and copy.
            self._write(b"\n" * (begins + record.place - 2 - self.lines) + line)

    def _write(self, data: bytes) -> None:
        self.lines += data.count(b"\n")
        self.ended = data.endswith(b"\n")
        self.size += len(data)
        self.digest.update(data)
        if self.copy:
            self.copy.write(data)

    def result(self, source: Path, facts: dict[str, Any]) -> ImportedRows:
        """Return what was found. Raises InvalidData where rows are bad, or none is left."""
        first = "; ".join(self.faults[:FAULTS_SHOWN])
        more = f" (and {self.faulty - FAULTS_SHOWN} more)" if self.faulty > FAULTS_SHOWN else ""
        if self.faulty and not self.drop_bad:
            raise InvalidData(
                f"{first}{more}. Nothing was imported; mend these rows, or leave them out with --drop-bad "
                "(in the API: drop_bad).",
                row=self.first_fault,
            )
        if not self.shapes:
            raise InvalidData(f"{source.name} has no rows{f' that can be used: {first}{more}' if first else ''}.")
        lengths = sorted(self.lengths)
        at = {f"p{share}": lengths[math.ceil(share / 100 * len(lengths)) - 1] for share in (50, 95, 99)}
        sizes = {"characters": sum(lengths), **at, "max": lengths[-1], "shapes": dict(self.shapes)}
        dropped = {"dropped": self.faulty, "reasons": self.faults}
        shape = next(iter(self.shapes)) if len(self.shapes) == 1 else rows.MIXED
        return ImportedRows(
            len(lengths), self.size, self.digest.hexdigest(), self.form or shape, {**sizes, **dropped, **facts}
        )


def survey(
    source: Path,
    copy: IO[bytes] | None = None,
    *,
    form: str | None = None,
    drop_bad: bool = False,
    progress: Progress = silent,
) -> ImportedRows:
    """Read every row of a file or folder; write them to `copy` as JSONL where one is given.

    `form` is the shape that all rows must have; None: each row's own is detected. Raises InvalidData with the first
    bad rows, unless `drop_bad`; in any case where a file cannot be read or no row is left.
    """
    files, left_out = sources.find(source)
    for path in files:
        if not os.access(path, os.R_OK):
            raise InvalidData(f"{path} cannot be read by this user. Check its permissions.")
    sizes = [path.stat().st_size for path in files]
    total, done, count, begun = max(sum(sizes), 1), 0, 0, time.monotonic()
    seen = _Survey(form, drop_bad, copy)
    begins: list[list[Any]] = []
    for path, size in zip(files, sizes, strict=True):
        first = seen.begin_file()
        begins.append([str(path.relative_to(source)) if source.is_dir() else path.name, first])
        for record in sources.records(path):
            seen.take(path, record, first)
            count += 1
            if count % PROGRESS_EVERY == 0:
                rate = count / max(time.monotonic() - begun, 1e-6)
                progress(f"reading rows: {count:,} ({rate:,.0f}/s)", min((done + record.share * size) / total, 1.0))
        done += size
    facts = {"files": begins, "left_out": [str(path.relative_to(source)) for path in left_out]}
    return seen.result(source, facts if source.is_dir() else {})


def stage_of(target: Path) -> Path:
    """Return where the directory `target` is made before it appears."""
    return target.with_name(f".{target.name}.stage")


def import_rows(
    source: Path, target: Path, *, form: str | None = None, drop_bad: bool = False, progress: Progress = silent
) -> tuple[ImportedRows, Path]:
    """Turn a file or folder of rows into one JSONL file in the new directory `target`; return facts and file.

    A JSONL file without bad rows is copied byte for byte. Raises InvalidData, NoSpace.
    """
    files, _ = sources.find(source)
    needed = sum(sources.bytes_expected(path) for path in files)
    resources.need_space(target.parent, needed, f"a copy of {source.name}")
    staged = stage_of(target)
    atomic.discard(staged)
    atomic.step(staged.mkdir, mode=0o700)
    try:
        with (staged / COPY).open("wb") as copy:
            found = survey(source, copy, form=form, drop_bad=drop_bad, progress=progress)
        atomic.publish(staged, target)
    except BaseException:
        atomic.discard(staged)
        raise
    return found, target / COPY


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


def _adapter_alone(folder: Path) -> str:
    """Return what is to be done with an adapter that lies without its base, whose name it tells."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        base = None
    named = base if isinstance(base, str) and base else None
    return (
        f"{folder} is an adapter, not a model{f': its base is {named}' if named else ''}. Merge it into its base "
        f"first, with peft: PeftModel.from_pretrained(BASE, '{folder}').merge_and_unload().save_pretrained(NEW), save "
        "the tokenizer into NEW too, and add NEW. To begin anew from the base instead, add that: "
        f"fusion-tui models add {named or 'BASE'} --name NAME"
    )


def inspect_model(folder: Path) -> ModelFacts:
    """Read a Hugging Face model folder's facts. Raises InvalidData where it cannot be trained, with the remedy."""
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise InvalidData(_adapter_alone(folder))
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


def convert_gguf(
    file: Path,
    target: Path,
    *,
    python: str,
    progress: Progress = silent,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Turn a GGUF file into a 16-bit model folder at `target`, so that all later work is on one format.

    `stopped` is asked several times a second whether to give up. Raises InvalidData, NoSpace.
    """
    if not file.is_file():
        raise InvalidData(f"{file} does not exist.")
    # 16 bits a weight from as little as 4: at most four times the file.
    resources.need_space(target.parent, 4 * file.stat().st_size, f"the weights of {file.name}")
    progress(f"converting {file.name}", None)
    staged = stage_of(target)
    try:
        process.run_tool("engine.trainer.convert", [str(file), str(staged)], python=python, stopped=stopped)
        atomic.publish(staged, target)
    except RuntimeError as error:
        raise InvalidData(f"{file.name} could not be converted: {error}") from None
    finally:
        atomic.discard(staged)


def _snapshot(name: str, kind: str, wanted: list[str], whole: Callable[[Path], bool], progress: Progress) -> Path:
    """Return the local snapshot of a hub repository, downloading what the cache lacks. Raises InvalidData."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(name, repo_type=kind, allow_patterns=wanted, local_files_only=True))
        # A single file that was fetched alone makes a snapshot too.
        if whole(cached):
            return cached
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError):
        pass
    progress(f"downloading {name}", None)
    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=wanted))
    except Exception as error:  # noqa: BLE001  (the hub's client raises what its transport raises)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "folder or GGUF file" if kind == "model" else "file or folder"
        raise InvalidData(
            f"'{name}' is no local {what}, is not in the hub's local cache, and could not be downloaded "
            f"({reason}). Check the spelling and the network."
        ) from None


def fetch_hub(name: str, progress: Progress = silent) -> Path:
    """Return the local snapshot of a hub model, downloading what the cache lacks. Raises InvalidData."""

    def whole(folder: Path) -> bool:
        return (folder / "config.json").exists() and any(folder.glob("*.safetensors"))

    return _snapshot(name, "model", ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"], whole, progress)


def fetch_hub_rows(name: str, progress: Progress = silent) -> Path:
    """Return the local snapshot of a hub dataset's files of rows, as `fetch_hub` does. Raises InvalidData."""

    def whole(folder: Path) -> bool:
        return any(path.suffix.lower() in sources.READERS for path in folder.rglob("*"))

    return _snapshot(name, "dataset", [f"*{suffix}" for suffix in sources.READERS], whole, progress)


def is_hub_name(source: str) -> bool:
    """Say whether `source`, which is no local path, has the form of a hub name: owner/name."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source, re.ASCII)) and Path(source).suffix not in sources.READERS
