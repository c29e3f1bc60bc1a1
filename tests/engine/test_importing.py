"""Imports: looked at whole, named faults, nothing left behind when refused."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from engine import importing
from engine.errors import Conflict, InvalidData, InvalidRequest, NoSpace
from engine.service import Service
from tests.engine.conftest import request_for

GOOD = b'{"text": "one"}\n{"prompt": "a", "completion": "b"}\n\n{"text": "two"}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(GOOD)
    return path


def files_of(service: Service) -> list[str]:
    parts = (service.home.root / "datasets", service.home.root / "models")
    return [str(path) for part in parts for path in part.rglob("*")]


def safetensors(path: Path, header: object, data: bytes = b"") -> None:
    body = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with all that an import looks at."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    tensors: dict[str, Any] = {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    tensors["b"] = {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}
    safetensors(folder / "model.safetensors", {"__metadata__": {"format": "pt"}, **tensors}, bytes(16))
    return folder


def test_a_dataset_is_copied_with_its_facts_and_the_copy_is_the_catalogues_own(service: Service, file: Path) -> None:
    entry = service.add_dataset(str(file), "mine")
    assert (entry.rows, entry.format, entry.bytes, entry.version) == (3, "mixed", len(GOOD), 1)
    assert entry.sha256 == hashlib.sha256(GOOD).hexdigest()
    file.write_bytes(b"changed")
    assert Path(entry.path).read_bytes() == GOOD
    assert Path(entry.path).is_relative_to(service.home.root)
    file.write_bytes(GOOD)
    assert service.add_dataset(str(file), "mine").version == 2


def test_broken_lines_are_named_by_number_and_nothing_is_left_behind(service: Service, file: Path) -> None:
    file.write_bytes(GOOD + b'{"text": \n{"text": "fine"}\n{"txt": "a"}\n')
    before = service.datasets()
    with pytest.raises(InvalidData) as caught:
        service.add_dataset(str(file), "mine")
    assert "mine.jsonl: line 5: is not valid JSON" in str(caught.value)
    assert 'line 7: has "txt"' in str(caught.value)
    assert "Nothing was imported" in str(caught.value)
    assert service.datasets() == before
    assert files_of(service) == []


def test_of_many_broken_lines_five_are_named_and_the_rest_counted(file: Path) -> None:
    file.write_bytes(b"{\n" * 12)
    with pytest.raises(InvalidData, match=r"line 5.*\(and 7 more\)") as caught:
        importing.check_rows(file)
    assert "line 6" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_rows_is_refused(service: Service, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidData, match=r"mine\.jsonl has no rows"):
        service.add_dataset(str(file), "mine")
    assert files_of(service) == []


def test_a_missing_file_and_a_folder_are_refused_by_name(service: Service, tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"none\.jsonl does not exist"):
        service.add_dataset(str(tmp_path / "none.jsonl"), "mine")
    with pytest.raises(InvalidData, match="is a folder"):
        service.add_dataset(str(tmp_path), "mine")


def test_a_file_that_changes_while_it_is_copied_is_refused(tmp_path: Path, file: Path) -> None:
    facts = importing.check_rows(file)
    file.write_bytes(GOOD + b'{"text": "late"}\n')
    target = tmp_path / "datasets"
    target.mkdir()
    with pytest.raises(InvalidData, match="changed while it was imported"):
        importing.copy_rows(file, target / "id", facts)
    assert list(target.iterdir()) == []


def test_a_copy_that_does_not_fit_is_refused_before_a_byte_is_written(tmp_path: Path, file: Path) -> None:
    huge = importing.ImportedRows(1, 2**60, "0" * 64, {"text": 1})
    target = tmp_path / "datasets"
    target.mkdir()
    with pytest.raises(NoSpace, match=r"a copy of mine\.jsonl"):
        importing.copy_rows(file, target / "id", huge)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", "a b", "-x", ".x", "x" * 101, "a/b", "two\nlines", "ends\n"])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_read(service: Service, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be a name"):
        service.add_dataset("/nowhere.jsonl", name)


def test_a_model_folder_is_used_in_place_with_facts_from_its_headers(service: Service, folder: Path) -> None:
    entry = service.add_model(str(folder), "mine")
    assert (entry.family, entry.params, entry.precision, entry.path) == ("llama", 7, "bf16", str(folder))
    service.remove_model("mine")
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("gone", "added", "words"),
    [
        ("config.json", None, "has no config.json"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("model.safetensors", "pytorch_model.bin", "pickles are not read"),
        ("config.json", "adapter_config.json", "is an adapter without its base"),
    ],
)
def test_a_folder_that_cannot_be_trained_is_refused_with_the_remedy(
    service: Service, folder: Path, gone: str, added: str | None, words: str
) -> None:
    (folder / gone).unlink()
    if added:
        (folder / added).write_text("{}")
    before = service.base_models()
    with pytest.raises(InvalidData, match=words) as caught:
        service.add_model(str(folder), "mine")
    assert str(folder) in str(caught.value)
    assert service.base_models() == before
    assert files_of(service) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        b"\xff" * 64,
    ],
    ids=["empty", "short", "no JSON", "a list", "no tensor", "a git-lfs pointer", "ones"],
)
def test_weights_that_are_no_safetensors_file_are_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidData, match=r"safetensors"):
        importing.inspect_model(folder)


@pytest.mark.parametrize("content", ["{", "[]", "null", '"text"'])
def test_a_config_that_is_no_json_object_is_refused_by_name(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(InvalidData, match=r"config\.json"):
        importing.inspect_model(folder)


def test_two_gguf_files_in_a_folder_are_refused_for_one_must_be_named(service: Service, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(InvalidData, match="holds 2 GGUF files"):
        service.add_model(str(tmp_path), "mine")
    with pytest.raises(InvalidData, match=r"c\.gguf does not exist"):
        service.add_model(str(tmp_path / "c.gguf"), "mine")


def test_a_dataset_in_use_is_kept_until_its_job_is_over(service: Service, file: Path) -> None:
    entry = service.add_dataset(str(file), "mine")
    job = service.submit(request_for(dataset_id="mine")).job
    with pytest.raises(Conflict, match=job.name):
        service.remove_dataset("mine")
    assert Path(entry.path).exists()
    service.cancel(job.id)
    service.remove_dataset("mine")
    assert files_of(service) == []


def test_progress_is_told_as_a_share(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 4500)
    told: list[float | None] = []
    importing.check_rows(path, lambda _, share: told.append(share))
    assert [math.floor(100 * (share or 0)) for share in told] == [44, 88]
