"""Builds the starter data from the documentation strings of the running Python's standard library.

Sources are read with `ast`, never imported, so the result depends on the Python release alone. The one rule:
no sentence of an answer in `rows.jsonl` stands in `text.jsonl`, so that a model pretrained on the text has
never seen what a held-out row asks for.

    python -m tools.starter.corpus --out DIR        writes rows.jsonl, text.jsonl and NOTICE
"""

import argparse
import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.starter.prose import folded, keys, paragraphs, sentences

SKIPPED_FOLDERS = re.compile(
    r"tests?|idle_test|lib2to3|distutils|ensurepip|turtledemo|pydoc_data|__pycache__|.*\W.*"  # site-packages …
)
# A file with a licence notice of its own is not under the PSF licence alone: left out.
OWN_LICENCE = re.compile(
    r"Permission to (use|modify)|Permission is hereby|Redistribution and use|Apache License|SPDX-License|'as-is'"
)
OWN_LICENCE_MODULES = ("asyncio.constants", "asyncio.events", "asyncio.sslproto")  # marked so from 3.13 on
PUBLIC_NAMES = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "posixpath": "os.path",
}
UNASKED = re.compile(r"(^|\.)_|^idlelib|^encodings\.")  # private names, and modules that nobody calls
ROW_COUNT = 2_000
ANSWER_CHARS = (40, 600)
CHUNK_CHARS = 2_000

Row = dict[str, Any]  # one JSON line

FIRST_QUESTION = {"class": "What is {name}?", "module": "What does the module {name} offer?"}
QUESTIONS = (
    "What does {name} do?",
    "What is the {kind} {name} for?",
    "Explain the {kind} {name}.",
    "Describe the Python {kind} {name}.",
    "Can you explain {name}?",
    "Tell me about {name}.",
)


@dataclass(frozen=True)
class Docstring:
    """One piece of documentation; `kind` is module, class, function, method, topic or comment."""

    qualname: str
    kind: str
    text: str


# ---- harvest -------------------------------------------------------------------------------------


def sources(folder: Path, package: str = "") -> Iterator[tuple[str, str]]:
    """Yield (public module name, source) for every file used, in a stable order."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = package if path.name == "__init__.py" else f"{package}.{path.stem}".lstrip(".")
        if path.is_dir() and not SKIPPED_FOLDERS.fullmatch(path.name):
            yield from sources(path, name)
        elif path.suffix == ".py" and name not in OWN_LICENCE_MODULES and "_sysconfigdata" not in name:
            source = path.read_text(encoding="utf-8", errors="replace")
            if not OWN_LICENCE.search(source):
                yield PUBLIC_NAMES.get(name, name), source


def docstrings_of(node: ast.AST, qualname: str, kind: str) -> Iterator[Docstring]:
    """Yield the docstrings of a module or class and of what it defines; functions are not entered."""
    if text := ast.get_docstring(node, clean=False):  # type: ignore[arg-type]
        yield Docstring(qualname, kind, inspect.cleandoc(text))
    pending = list(getattr(node, "body", [])) if kind in ("module", "class") else []
    while pending:
        child = pending.pop(0)
        if isinstance(child, ast.ClassDef):
            yield from docstrings_of(child, f"{qualname}.{child.name}", "class")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = "method" if kind == "class" else "function"
            yield from docstrings_of(child, f"{qualname}.{child.name}", inner)
        elif isinstance(child, ast.If | ast.Try):
            handlers = [line for handler in getattr(child, "handlers", []) for line in handler.body]
            pending[:0] = [*child.body, *handlers, *child.orelse]


def harvest(stdlib: Path) -> list[Docstring]:
    """Return every docstring below `stdlib`, dedented but otherwise as written, in file order."""
    found: list[Docstring] = []
    for module, source in sources(stdlib):
        try:
            found.extend(docstrings_of(ast.parse(source), module, "module"))
        except SyntaxError:  # the library ships a few broken files on purpose
            continue
    return found


def harvest_topics(stdlib: Path) -> list[Docstring]:
    """Return the language reference that `help()` prints, one entry per topic."""
    tree = ast.parse((stdlib / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    value = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(value)
    return [Docstring(name, "topic", inspect.cleandoc(text)) for name, text in sorted(topics.items())]


def harvest_comments(stdlib: Path) -> list[Docstring]:
    """Return the blocks of three or more full-line comments."""
    block = re.compile(r"(?:^[ \t]*#(?: .*)?\n){3,}", re.MULTILINE)
    return [
        Docstring(module, "comment", inspect.cleandoc(re.sub(r"(?m)^[ \t]*# ?", "", match.group())))
        for module, source in sources(stdlib)
        for match in block.finditer(source)
    ]


# ---- rows ----------------------------------------------------------------------------------------


def stable_hash(text: str) -> int:
    """Return 64 bits that depend on `text` alone, in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def answer(text: str) -> str | None:
    """Return a docstring's leading prose within ANSWER_CHARS, cut at a sentence end; None if there is none."""
    least, most = ANSWER_CHARS
    taken = ""
    for paragraph in paragraphs(text):
        if paragraph is None or paragraph.startswith("- "):
            break
        gap = "\n\n" if taken else ""
        for part in sentences(paragraph):
            if len(taken) + len(gap) + len(part) > most:
                return taken if len(taken) >= least else None
            taken, gap = taken + gap + part, " "
    return taken if len(taken) >= least else None


def question(doc: Docstring) -> str:
    """Return the question for a docstring; its name alone decides the phrasing."""
    phrasings = (FIRST_QUESTION.get(doc.kind, QUESTIONS[0]), *QUESTIONS[1:])
    chosen = phrasings[stable_hash(f"question {doc.qualname}") % len(phrasings)]
    return chosen.format(name=doc.qualname, kind=doc.kind)


def question_rows(docstrings: Iterable[Docstring], count: int = ROW_COUNT) -> list[Row]:
    """Return up to `count` chat rows on public names, no sentence in two of them, in a stable shuffle."""
    rows: list[Row] = []
    names: set[str] = set()
    seen: set[str] = set()
    for doc in sorted(docstrings, key=lambda doc: (stable_hash(doc.qualname), doc.text)):
        unasked = doc.qualname in names or UNASKED.search(doc.qualname)
        reply = None if unasked or len(rows) == count else answer(doc.text)
        if reply and not keys(reply) & seen:
            names.add(doc.qualname)
            seen |= keys(reply)
            asked = {"role": "user", "content": question(doc)}
            rows.append({"messages": [asked, {"role": "assistant", "content": reply}]})
    return rows


def chunks(parts: Iterable[str]) -> Iterator[str]:
    """Join paragraphs to texts of at most CHUNK_CHARS; list items follow each other without a blank line."""
    held = ""
    for part in parts:
        listed = held.rpartition("\n")[2].startswith("- ") and part.startswith("- ")
        joined = held + ("\n" if listed else "\n\n") + part if held else part
        if held and len(joined) > CHUNK_CHARS:
            yield held
            joined = part
        held = joined
    if held:
        yield held


def text_rows(docs: Iterable[Docstring], rows: Iterable[Row]) -> list[Row]:
    """Return the prose of `docs` that no answer in `rows` uses, no paragraph twice, in a stable shuffle."""
    held_back = {key for row in rows for key in keys(row["messages"][1]["content"])}
    seen: set[str] = set()
    texts: list[str] = []
    for doc in docs:
        fresh: list[str] = []
        for paragraph in paragraphs(doc.text):
            found = keys((paragraph or "").removeprefix("- "))
            if paragraph and not found & held_back and not found <= seen and len(paragraph) <= CHUNK_CHARS:
                seen |= found
                fresh.append(paragraph)
        if len(fresh) == 1 and doc.kind not in ("topic", "comment") and stable_hash(doc.qualname) % 2:
            fresh = [f"{doc.qualname}: {fresh[0].removeprefix('- ')}"]
        texts.extend(text for text in chunks(fresh) if "\n" in text or not text.startswith("- "))
    found_again = leaks(texts, rows)
    texts = [text for text in texts if not any(leak in folded(text) for leak in found_again)]
    assert not leaks(texts, rows), "An answer of rows.jsonl stands in text.jsonl too."
    return [{"text": text} for text in sorted(texts, key=stable_hash)]


def leaks(texts: Iterable[str], rows: Iterable[Row]) -> list[str]:
    """Return the answers, and their sentences of 40 characters or more, that stand in a text; all folded."""
    haystack = "\n".join(map(folded, texts))
    answers = [row["messages"][1]["content"] for row in rows]
    told = {folded(reply) for reply in answers} | {key for reply in answers for key in keys(reply) if len(key) >= 40}
    width = min(map(len, told), default=0)
    heads = {key[:width] for key in told}.intersection(haystack[i : i + width] for i in range(len(haystack)))
    return sorted(key for key in told if key[:width] in heads and key in haystack)  # ten times faster than `in` alone


def notice(stdlib: Path) -> str:
    """Return the copyright line and the PSF licence; FileNotFoundError or ValueError where Python has none."""
    places = [stdlib / "LICENSE.txt", stdlib / "LICENSE", Path(sys.base_prefix) / "LICENSE.txt"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(map(str, places))
        raise FileNotFoundError(f"No Python licence at {looked}: use a Python that ships LICENSE.txt.")
    agreement = re.search(
        r"PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n-+\n.*?(?=\n+BEOPEN\.COM LICENSE)",
        path.read_text(encoding="utf-8", errors="replace"),
        re.DOTALL,
    )
    if agreement is None:
        raise ValueError(f"{path} has no 'PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2': use CPython.")
    version = ".".join(map(str, sys.version_info[:3]))
    return (
        f"The questions and answers in rows.jsonl derive from the documentation strings of the standard library\n"
        f"of CPython {version}, Copyright (c) Python Software Foundation, licensed under the PSF License\n"
        "Version 2. Changes: strings were selected, shortened at sentence ends, freed of markup and line\n"
        f"breaks, and paired with generated questions.\n\n{agreement.group().rstrip()}\n"
    )


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write JSON lines and print their number and size."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(lines.encode())
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size} bytes")


def main(argv: list[str] | None = None) -> None:
    """Write the three files to the folder that `--out` names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out: Path = parser.parse_args(argv).out
    stdlib = Path(sysconfig.get_path("stdlib"))
    licence = notice(stdlib)
    docstrings = harvest(stdlib)
    rows = question_rows(docstrings)
    texts = text_rows([*harvest_topics(stdlib), *docstrings, *harvest_comments(stdlib)], rows)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "rows.jsonl", rows)
    write_rows(out / "text.jsonl", texts)
    (out / "NOTICE").write_bytes(licence.encode())


if __name__ == "__main__":
    main()
