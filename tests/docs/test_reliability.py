"""docs/reliability.md names tests that exist, and every promise of it has one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`((?:api|crash|e2e|engine|store|trainer|ui)/[a-z0-9_/.]+)`", TEXT))
    assert len(named) > 30
    assert sorted(name for name in named if not (ROOT / "tests" / name).exists()) == []


def test_every_crash_test_is_named() -> None:
    there = {f"crash/{path.name}" for path in (ROOT / "tests" / "crash").glob("test_*.py")}
    assert sorted(name for name in there if f"`{name}`" not in TEXT) == []


def test_each_of_the_ten_promises_has_a_test() -> None:
    rows = re.findall(r"^\| (G\d+) \|.*\| (`.*`) \|$", TEXT, re.MULTILINE)
    assert [name for name, _ in rows] == [f"G{number}" for number in range(1, 11)]
    assert all(".py`" in tests for _, tests in rows)
