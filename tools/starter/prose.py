"""Which parts of a documentation string read as English, and those parts in plain words.

The rule: a paragraph is kept whole or left out; what is kept ends where a sentence ends.
"""

import re
from itertools import pairwise

PLAIN = (
    (re.compile(r"[“”]"), '"'),
    (re.compile(r"[‘’´]"), "'"),
    (re.compile(r"…"), "..."),
    (re.compile(r"[–—]"), "-"),
    (re.compile(r":[a-z:]+:`~?([^`<]+?)(?: *<[^`]*>)?`"), r"\1"),  # :func:`~a.b`
    (re.compile(r"``([^`'\n]+)``|`([^`'\n]+)[`']_?"), r"'\1\2'"),
    (re.compile(r"``([^`\n]+)``"), r"\1"),
    (re.compile(r"(?<![\w*])(\*\*?)(\w(?:[^*\n]*\w)?)\1(?![\w*])"), r"\2"),  # *emphasis*
    (re.compile(r"(\w-)\n\s*(?=[a-z])"), r"\1"),  # a word broken at its hyphen
)
BULLET = re.compile(r"\s*(?:[-*+o]|\d+[.)]|\([a-z0-9]\))\s+(?=\S)")
UNDERLINED = re.compile(r"(?m)^.*\n[ \t]*([=\-~*^#+])\1{2,}[ \t]*$")
SIGNATURE = re.compile(r"[\w.]+\([^()]*(?:\([^()]*\)[^()]*)*\)(?: *-+> *[^\n.]*)?(?:\n+|\.\s+| +-- +|: +)(?=\S)")
NOT_PROSE = re.compile(
    r">>>|->|::|___|\S@\S|https?:|www\.|\s=\s.*\s=|#|\$|\b(TODO|XXX|FIXME|BUG)\b|gencodec|Copyright|Written by"
    r"|All [Rr]ights|\.\.\. \.\.\.|\s[-=+*]{2,}\s.*\s[-=+*]{2,}\s|, \w+=[^,]*, \w+=|^Usage|^See\b|^Methods \["
)
FUNCTION_WORD = re.compile(
    r"\b(the|an?|of|to|is|are|and|in|for|that|with|by|as|if|be|not|or|on|it|this|from|which|when|at|no|will|can)\b",
    re.IGNORECASE,
)
ENDED = re.compile(r"(?<!\.)(?<!\be\.g)(?<!\bi\.e)[.!?][\"')]*$")
SENTENCE_END = re.compile(r"(?<![\s.]\w)(?<!i\.e)(?<!e\.g)(?<!\bcf)(?<!\bvs)(?<!etc)[.!?][\"')]*\s+(?=[A-Z\"'(])")


def is_prose(text: str) -> bool:
    """Say whether a paragraph on one line reads as English sentences, not as code, a table or a heading."""
    words = len(re.findall(r"[A-Za-z]+", text))
    return (
        words >= 4
        and text.isascii()
        and (text[0].isupper() or text[0] in "\"'(")
        and ENDED.search(text) is not None
        and len(re.sub(r"[A-Za-z ]+", "", text)) <= 0.18 * len(text)
        and len(re.sub(r"[\w .,;'\"()-]+", "", text)) <= 0.03 * len(text)
        and len(FUNCTION_WORD.findall(text)) >= 0.1 * words
        and text.count("(") == text.count(")")
        and text.count('"') % 2 == 0
        and not NOT_PROSE.search(text)
    )


def paragraphs(text: str) -> list[str | None]:
    """Return a text's paragraphs and list items, each on one line; None stands for one that is not prose."""
    text = SIGNATURE.sub("", text, count=1) if SIGNATURE.match(text) else text
    for pattern, plain in PLAIN:
        text = pattern.sub(plain, text)
    kept: list[str | None] = []
    for block in re.split(r"\n\s*\n", UNDERLINED.sub("\n", text)):
        lines = [line for line in block.split("\n") if line.strip()] or [""]
        starts = [i for i, line in enumerate(lines) if i == 0 or BULLET.match(line)]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            kept.append(one_line(lines[start:end], first=not kept))
    return kept


def one_line(lines: list[str], first: bool) -> str | None:
    """Join a paragraph's lines; None where it is not prose. A docstring's first one may lack its full stop."""
    ragged = len({len(line) - len(line.lstrip()) for line in lines[1:]}) > 1
    if ragged or any(re.search(r"\S {3,}\S", line) for line in lines):
        return None
    bullet = BULLET.match(lines[0])
    text = " ".join(" ".join(lines)[bullet.end() if bullet else 0 :].split())
    if first and text[-1:].isalnum():
        text += "."
    if not ENDED.search(text):  # "The syntax is:" leads into code
        text = " ".join(sentences(text)[:-1])
    if re.match(r"[a-z]+ [a-z]", text):
        text = text[0].upper() + text[1:]
    if not is_prose(text):
        return None
    return f"- {text}" if bullet else text


def sentences(text: str) -> list[str]:
    """Split one line of prose at its sentence ends."""
    cuts = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    parts = (text[start:end].strip() for start, end in pairwise(cuts))
    return [part for part in parts if part]


def folded(text: str) -> str:
    """Return the letters and digits of a text: what stays the same whatever its case, spacing and punctuation."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def keys(text: str) -> set[str]:
    """Return the sentences of a text, folded."""
    return {folded(part) for line in text.split("\n") for part in sentences(line)} - {""}
