"""docs/api.md taken apart: its blocks of commands and code, and its tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text()
_FENCED = re.compile(r"^```([a-z]+)(?: ([a-z]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. `needs` says what must be there: nothing, a job that is `finished`, or one that is `running`."""

    line: int
    language: str
    needs: str
    text: str


BLOCKS = tuple(
    Block(TEXT.count("\n", 0, found.start()) + 1, found[1], found[2] or "", found[3])
    for found in _FENCED.finditer(TEXT)
)


def chosen(language: str, needs: str = "") -> list[Block]:
    """Return the blocks of a language that need this, in order."""
    return [block for block in BLOCKS if (block.language, block.needs) == (language, needs)]


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    below = re.split(rf"^#+ {re.escape(heading)}$", TEXT, flags=re.MULTILINE)[1]
    lines = below[below.index("\n|") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
