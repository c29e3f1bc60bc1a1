"""The edge of a worker's process: whatever ends its work is told, in the journal where that can be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from engine.order import GATE, UNTOLD
from engine.trainer import __main__ as worker
from tests import tiny
from tests.trainer.conftest import Bench
from tests.worker import begin


class Panic(BaseException):
    """As pyo3's PanicException, which libraries in Rust raise: no Exception."""


def be_thrown_out(folder: Path, tiny_model: Path, rows: Path, error: BaseException, words: str) -> None:
    bench = Bench(folder, tiny_model, rows)
    directory = bench.folder / "attempt-1"
    bench.order(steps=1).write(directory)
    (directory / GATE).touch()
    with mock.patch("transformers.AutoTokenizer.from_pretrained", side_effect=error):
        try:
            code = worker.main(directory)
        except SystemExit:
            code = -1  # else this process would end as if all was well
    assert code == 0
    told = bench.records()
    assert told[-1].kind == "end"
    assert told[-1].data == {"outcome": "failed", "error": words, "cause": "error"}
    lines = [record.data["text"] for record in told if record.kind == "log" and record.data["stream"] == "error"]
    assert lines[0].startswith("Traceback")
    assert any("from_pretrained" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit("no such codec"), "SystemExit: no such codec"),
        (SystemExit(0), "SystemExit: 0"),
        (KeyboardInterrupt(), "KeyboardInterrupt:"),
        (Panic("index out of bounds"), "Panic: index out of bounds"),
    ],
    ids=["exit", "exit-0", "interrupt", "panic"],
)
def test_what_is_no_exception_ends_the_run_as_failed_with_its_words_and_where_it_came_from(
    tmp_path: Path, tiny_model: Path, error: BaseException, words: str
) -> None:
    rows = tiny.make_rows(tmp_path / "sums.jsonl", 24)
    process = begin(be_thrown_out, tmp_path / "job", tiny_model, rows, error, words)
    process.join(120)
    assert process.exitcode == 0, "see the output above"


def be_interrupted(folder: Path, tiny_model: Path, rows: Path) -> None:
    bench = Bench(folder, tiny_model, rows)
    directory = bench.folder / "attempt-1"
    bench.order(steps=1).write(directory)
    (directory / GATE).touch()
    # As an interrupt that comes while torch is being loaded leaves it: nothing that needs it can be loaded.
    for name in [name for name in sys.modules if name.startswith("engine.trainer.") and name != worker.__name__]:
        del sys.modules[name]
    finder = mock.Mock(find_spec=lambda name, *_: interrupt(name))
    with mock.patch.object(sys, "meta_path", [finder, *sys.meta_path]):
        assert worker.main(directory) == 0
    assert bench.records()[-1].data == {"outcome": "failed", "error": "KeyboardInterrupt:", "cause": "error"}


def interrupt(name: str) -> None:
    if name == "engine.trainer.run":
        raise KeyboardInterrupt
    if name in ("engine.trainer.ladder", "engine.trainer.finetune"):
        raise ImportError(name)


def test_an_interrupt_while_the_libraries_are_loaded_is_told(tmp_path: Path, tiny_model: Path) -> None:
    process = begin(be_interrupted, tmp_path / "job", tiny_model, tiny.make_rows(tmp_path / "sums.jsonl", 24))
    process.join(120)
    assert process.exitcode == 0, "see the output above"


def test_an_error_before_there_is_a_journal_is_printed_and_not_laid_to_the_journal() -> None:
    # Without the folder that it works in.
    command = [sys.executable, "-m", "engine.trainer"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 != UNTOLD
    assert ended.stderr.splitlines()[0].startswith("Traceback")
    assert ended.stderr.splitlines()[-1].startswith("IndexError")
