"""The README says what the code does: its tree, its tables of commands and keys, its pictures."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.settings import Settings
from fusion_tui.actions import keys_table
from fusion_tui.cli import MODULES, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """Return the README's text below a heading."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def modules(package: str) -> set[str]:
    """Return the names of a package's modules and folders."""
    entries = [entry for entry in (ROOT / package).iterdir() if entry.suffix == ".py" or entry.is_dir()]
    return {entry.stem for entry in entries} - {"__init__", "__pycache__"}


@pytest.mark.parametrize(
    "package",
    [
        "store",
        "engine",
        "engine/data",
        "engine/jobs",
        "engine/plans",
        "engine/running",
        "engine/trainer",
        "engine/trainer/data",
        "engine/transfer",
        "fusion_tui",
        "fusion_tui/api",
        "examples",
        "bench",
        "tools",
        "tests",
    ],
)
def test_every_module_stands_in_the_tree(package: str) -> None:
    tree = section("Where things are")
    words = set(re.findall(r"[a-z_0-9]+", tree))
    shared = {"conftest", "conditions", "supervised", "tiny", "worker", "__main__"}
    assert modules(package) - shared - words == set()


def test_every_command_stands_in_the_table() -> None:
    table = section("Commands")
    missing = [name for name in MODULES if not re.search(rf"`{name}\b", table)]
    assert missing == []


def test_every_setting_stands_in_the_readme() -> None:
    assert [name for name in (field.name for field in fields(Settings)) if f"`{name}`" not in section("Commands")] == []


def test_the_table_of_keys_is_the_action_registry() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section("The app"), re.MULTILINE)
    assert rows[0] == ("where", "key", "does")
    assert rows[1:] == keys_table()


def test_every_picture_and_file_that_is_named_exists() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_help_text_lists_every_command() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    assert [name for name in MODULES if f"  {name} " not in text] == []
