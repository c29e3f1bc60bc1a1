"""Imports: looked at whole, named faults, nothing left behind when refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from engine import resources
from engine.data import importing, inspection, rows
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
    assert "mine.jsonl line 5: is not valid JSON" in str(caught.value)
    assert 'mine.jsonl line 7: has "txt"' in str(caught.value)
    assert "Nothing was imported" in str(caught.value)
    assert service.datasets() == before
    assert files_of(service) == []


def test_of_many_broken_lines_five_are_named_and_the_rest_counted(file: Path) -> None:
    file.write_bytes(b"{\n" * 12)
    with pytest.raises(InvalidData, match=r"line 5.*\(and 7 more\).*--drop-bad") as caught:
        importing.survey(file)
    assert "line 6" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_rows_is_refused(service: Service, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidData, match=r"mine\.jsonl has no rows"):
        service.add_dataset(str(file), "mine")
    assert files_of(service) == []


def test_a_missing_file_and_an_empty_folder_are_refused_by_name(service: Service, tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"none\.jsonl does not exist"):
        service.add_dataset(str(tmp_path / "none.jsonl"), "mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidData, match="holds no file of rows"):
        service.add_dataset(str(tmp_path / "empty"), "mine")
    assert files_of(service) == []


def test_bad_rows_are_left_out_when_asked_counted_named_and_their_lines_kept_free(service: Service, file: Path) -> None:
    file.write_bytes(b'{"text": 5}\n' + GOOD + b'{"text": \n{"text": "last"}\n{"txt": "a"}\n')
    entry = service.add_dataset(str(file), "mine", drop_bad=True)
    assert (entry.rows, entry.facts["dropped"]) == (4, 3)
    assert entry.facts["reasons"][0] == 'mine.jsonl line 1: "text" must be text, not int'
    assert [reason.split(":")[0] for reason in entry.facts["reasons"]] == [f"mine.jsonl line {n}" for n in (1, 6, 8)]
    assert [row.line for row in rows.read(Path(entry.path))] == [2, 3, 5, 7]
    assert entry.sha256 == hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
    assert entry.bytes == Path(entry.path).stat().st_size


def test_of_many_bad_rows_twenty_reasons_are_kept(service: Service, file: Path) -> None:
    file.write_bytes(b"{\n" * 50 + GOOD)
    entry = service.add_dataset(str(file), "mine", drop_bad=True)
    assert (entry.facts["dropped"], len(entry.facts["reasons"])) == (50, 20)


def test_a_file_of_bad_rows_alone_is_refused_also_where_they_may_be_dropped(service: Service, file: Path) -> None:
    file.write_bytes(b"{\n" * 3)
    with pytest.raises(InvalidData, match=r"mine\.jsonl has no rows that can be used: mine\.jsonl line 1"):
        service.add_dataset(str(file), "mine", drop_bad=True)
    assert files_of(service) == []


def test_facts_count_characters_and_shapes(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in range(1, 101)))
    facts = service.add_dataset(str(path), "mine").facts
    assert facts == {
        "characters": 5050,
        "p50": 50,
        "p95": 95,
        "p99": 99,
        "max": 100,
        "shapes": {"text": 100},
        "dropped": 0,
        "reasons": [],
    }
    assert service.dataset("mine").facts == facts


def test_a_table_is_copied_as_jsonl_with_its_rows_on_their_lines(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('prompt,completion,note\na,"b\nc",x\n\nd,e,y\n')
    entry = service.add_dataset(str(path), "mine")
    assert (entry.format, entry.rows) == ("prompt_completion", 2)
    copied = [(row.line, row.fields) for row in rows.read(Path(entry.path))]
    assert copied == [
        (2, {"prompt": "a", "completion": "b\nc", "note": "x"}),
        (5, {"prompt": "d", "completion": "e", "note": "y"}),
    ]


def test_a_folder_of_several_kinds_becomes_one_copy_that_knows_its_files(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.csv").write_text("text\nfrom a table\n")
    (folder / "a.jsonl").write_bytes(b'{"prompt": "p", "completion": "c"}\n{"text": "no line end"}')
    (folder / "notes.docx").write_bytes(b"")
    entry = service.add_dataset(str(folder), "mine")
    assert (entry.format, entry.rows, entry.facts["shapes"]) == ("mixed", 3, {"prompt_completion": 1, "text": 2})
    assert [row.line for row in rows.read(Path(entry.path))] == [1, 2, 4]
    assert entry.facts["files"] == [["a.jsonl", 1], ["b.csv", 3]]
    assert entry.facts["left_out"] == ["notes.docx"]
    assert inspection.place(4, entry.facts["files"]) == "b.csv line 2"
    assert inspection.place(2, entry.facts["files"]) == "a.jsonl line 2"


def test_a_fault_in_a_folder_names_the_file_and_nothing_is_left(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "fine"}\n')
    (folder / "b.csv").write_text("text,id\nfine,1\nragged\n")
    with pytest.raises(InvalidData, match=r"b\.csv line 3: has 1 cell, the header has 2"):
        service.add_dataset(str(folder), "mine")
    assert files_of(service) == []


def test_half_of_a_parquet_files_rows_may_be_bad_and_are_named_by_number(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "three", ""]}), path)
    with pytest.raises(
        InvalidData, match=r'mine\.parquet row 2: "text" must be text.*mine\.parquet row 4: "text" is empty'
    ):
        service.add_dataset(str(path), "mine")
    entry = service.add_dataset(str(path), "mine", drop_bad=True)
    assert [row.line for row in rows.read(Path(entry.path))] == [1, 3]


def test_a_format_is_forced_and_kept(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"instruction": "a", "output": "b", "text": "a b"}) + "\n")
    assert service.add_dataset(str(path), "mine").format == "alpaca"
    forced = service.add_dataset(str(path), "mine", form="text")
    assert (forced.format, forced.facts["shapes"], forced.facts["characters"]) == ("text", {"text": 1}, 3)
    with pytest.raises(InvalidData, match=r'mine\.jsonl line 1: lacks "messages", which the format messages needs'):
        service.add_dataset(str(path), "mine", form="messages")
    with pytest.raises(InvalidRequest, match="unknown format 'msgs'"):
        service.add_dataset(str(path), "mine", form="msgs")


PREFERENCES = {"prompt": "a", "chosen": "b", "rejected": "c", "text": "a b"}


def test_rows_that_compare_answers_are_imported_but_refused_for_a_finetune(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{json.dumps(PREFERENCES)}\n{{"text": "also"}}\n')
    assert service.add_dataset(str(path), "mine").format == "mixed"
    for call in (service.submit, service.validate):
        with pytest.raises(InvalidRequest, match=r"dataset_id: the dataset mine has dpo rows.*--format"):
            call(request_for(dataset_id="mine"))
    service.add_dataset(str(path), "mine", form="text")
    service.validate(request_for(dataset_id="mine"))


def make_hub_cache(cache: Path, name: str, files: dict[str, str]) -> None:
    """Lay out the hub client's cache as a download would."""
    repository = cache / f"datasets--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    for path, content in files.items():
        target = repository / "snapshots" / "abc" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


def test_a_hub_dataset_is_taken_from_the_local_cache_its_training_split_alone(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    row = '{"text": "from the hub"}\n'
    make_hub_cache(
        tmp_path / "hub",
        "lab/small.set",
        {"data/train-0.jsonl": row * 3, "data/test-0.jsonl": row, "dataset_infos.json": "{}", "README.md": "# data"},
    )
    entry = service.add_dataset("lab/small.set", "fromhub")
    assert (entry.rows, entry.facts["left_out"]) == (3, ["README.md", "data/test-0.jsonl", "dataset_infos.json"])
    with pytest.raises(InvalidData, match=r"'lab/absent' is no local file or folder.*could not be downloaded"):
        service.add_dataset("lab/absent", "x")


def test_a_copy_that_does_not_fit_is_refused_before_a_byte_is_written(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "free_bytes", lambda path: 10)
    target = tmp_path / "datasets"
    target.mkdir()
    with pytest.raises(NoSpace, match=r"a copy of mine\.jsonl"):
        importing.import_rows(file, target / "id")
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
        ("config.json", "adapter_config.json", "is an adapter, not a model. Merge it into its base"),
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
    ("told", "named"),
    [
        ('{"base_model_name_or_path": "lab/base"}', ["its base is lab/base", "fusion-tui models add lab/base --name"]),
        ('{"base_model_name_or_path": 5}', ["fusion-tui models add BASE --name"]),
        ("[]", ["fusion-tui models add BASE --name"]),
        ("no json", ["fusion-tui models add BASE --name"]),
    ],
)
def test_an_adapter_alone_is_refused_with_the_way_to_merge_it_and_the_name_of_its_base(
    service: Service, folder: Path, told: str, named: list[str]
) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(told)
    with pytest.raises(InvalidData) as caught:
        service.add_model(str(folder), "mine")
    for words in (*named, f"PeftModel.from_pretrained(BASE, '{folder}').merge_and_unload().save_pretrained(NEW)"):
        assert words in str(caught.value)


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
    tokens = service.home.tokens(entry.id)
    (tokens / "some-tokenizer").mkdir(parents=True)
    service.remove_dataset("mine")
    assert files_of(service) == []
    assert not tokens.exists()


def test_progress_is_told_as_a_share_with_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 4500)
    told: list[tuple[str, float | None]] = []
    importing.survey(path, progress=lambda what, share: told.append((what, share)))
    assert [math.floor(100 * (share or 0)) for _, share in told] == [44, 88]
    assert re.fullmatch(r"reading rows: 4,000 \([\d,]+/s\)", told[-1][0])
