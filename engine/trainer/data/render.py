"""From a row to text, with the spans of characters that are trained.

The rule: the template is the tokenizer's own, and what is trained is found in what it wrote, never guessed from role
names: a span that does not hold the words of its answer is a fault of the row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from engine.data import rows
from engine.data.rows import Row, RowError
from engine.jobs.hyperparams import LoopHyperparams

_MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Words that nobody writes (characters for private use): where they come out, a message stands for certain.
_FIRST, _SECOND = "\ue0f0first\ue0f0", "\ue0f1second\ue0f1"
_END_OF_THOUGHT = "</think>"
_BEGUN_TAG = re.compile(r"[<\[][^>\]]*$")  # at the end of a text that was cut inside of <|end|> or [/INST]

Message = dict[str, Any]
Span = tuple[int, int]


@dataclass(frozen=True)
class Manner:
    """What a job's settings change of how rows are read: what stands before conversations that have no system message,
    and whether the last answer of each alone is trained. Tokens are kept for each manner by themselves."""

    system_prompt: str | None = None
    last_answer: bool = False

    @classmethod
    def of(cls, settings: LoopHyperparams) -> Manner:
        """Return the manner of a job."""
        return cls(settings.system_prompt, settings.loss_on == "last_answer")

    def row(self, row: Row) -> Row:
        """Return a row in a shape that is trained on, as the model is to see it. Raises RowError."""
        row = rows.for_training(row)
        messages = row.fields.get("messages") if row.shape == rows.MESSAGES else None
        if self.system_prompt is None or messages is None or any(one["role"] == "system" for one in messages):
            return row
        told = {"role": "system", "content": self.system_prompt}
        return Row(row.line, row.shape, {**row.fields, "messages": [told, *messages]})


PLAIN = Manner()  # rows as they are


@dataclass(frozen=True)
class Rendered:
    """A row as text, with the spans of characters that are trained.

    `special`: the tokenizer adds its own beginning, and an end-of-text follows. `fault`: why answers could not be told
    from context; such a row can still be trained on as a whole. `thought_cut`: the template left out the reasoning
    that an answer came with.
    """

    text: str
    spans: Sequence[Span]
    special: bool = False
    fault: str = ""
    thought_cut: bool = False


def _alike(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _thought(message: Message) -> str:
    """Return what an answer thinks aloud, whichever way the row says it."""
    content, apart = message.get("content", ""), message.get("reasoning_content")
    if isinstance(apart, str):
        return apart
    head, mark, _ = content.partition(_END_OF_THOUGHT)
    return head.replace("<think>", "") if mark else ""


def _says(said: str, message: Message) -> bool:
    """Say whether a text holds an answer: its words, white space apart and thoughts aside, and its tool calls."""
    content = message.get("content", "").strip()
    if not all(call["function"]["name"] in said for call in message.get("tool_calls", ())):
        return False
    return content in said or _squeezed(content.rpartition(_END_OF_THOUGHT)[2]) in _squeezed(said)


def _hold(text: str, spans: Sequence[Span], answers: Sequence[Message]) -> bool:
    """Say whether spans hold all answers: one each, or, where a template marks parts of answers, all together."""
    said = [text[begin:end] for begin, end in spans]
    if len(said) != len(answers):
        said = ["".join(said)] * len(answers)
    return all(_says(one, answer) for one, answer in zip(said, answers, strict=True))


def _spelt(message: Message) -> Message:
    """Return a message whose tool calls have their arguments as JSON text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else message


class Renderer:
    """Renders rows with one tokenizer's template, in one manner."""

    def __init__(self, tokenizer: Any, manner: Manner = PLAIN) -> None:
        self._tokenizer = tokenizer
        self._manner = manner

    def render(self, row: Row) -> Rendered:
        """Return a row as text with its trained spans: answers of a chat, the completion, or the whole text.

        Raises RowError where the template fails, and for rows that are of no shape to train on.
        """
        row = self._manner.row(row)
        if row.shape == rows.MESSAGES:
            messages, tools = row.fields["messages"], row.fields.get("tools")
            try:
                return self._chat(messages, tools)
            except RowError:
                if not any("tool_calls" in message for message in messages):
                    raise
                # Most templates write arguments out themselves; DeepSeek's want them written.
                return self._chat([_spelt(message) for message in messages], tools)
        if row.shape == rows.PROMPT_COMPLETION:
            text = row.fields["prompt"] + row.fields["completion"]
            return Rendered(text, [(len(row.fields["prompt"]), len(text))], special=True)
        return Rendered(row.fields["text"], [(0, len(row.fields["text"]))], special=True)

    # Chats --------------------------------------------------------------------------------------------------------

    def _chat(self, messages: list[Message], tools: list[Any] | None) -> Rendered:
        """Render a conversation and find the answers in it: by the template's markers where they hold, else by search.

        A mark is a `{% generation %}` block. Some templates set them wrong, so that they are believed only when the
        marked text holds every answer.
        """
        whole, marked = self._marked(messages, tools)
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        said = [messages[index] for index in answers]
        sure = bool(marked) and _hold(whole, marked, said)
        if self._manner.last_answer:
            # Where a template marks one span for each answer, the last is the last one's.
            sure, marked = sure and len(marked) == len(answers), marked[-1:]
            answers, said = answers[-1:], said[-1:]
        if not sure:
            marked = []
            try:
                for index in answers:
                    marked.append(self._find(messages, tools, index, whole, marked[-1][1] if marked else 0))
            except RowError as error:
                return Rendered(whole, [], fault=error.message)
        thoughts = [_squeezed(thought) for answer in said if (thought := _thought(answer))]
        trained = _squeezed("".join(whole[begin:end] for begin, end in marked)) if thoughts else ""
        return Rendered(whole, marked, thought_cut=any(thought not in trained for thought in thoughts))

    def _find(self, messages: list[Message], tools: list[Any] | None, index: int, whole: str, least: int) -> Span:
        """Return where the answer that is message `index` stands in `whole`, not before `least`. Raises RowError."""
        span = self._by_difference(messages, tools, index, whole)
        if span is None or span[0] < least:
            span = self._by_place(messages, tools, index, whole, least)
        if not _says(whole[slice(*span)], messages[index]):
            raise RowError(
                f"the chat template does not show what the assistant says in message {self._number(messages, index)}"
            )
        return span

    def _by_difference(self, messages: list[Message], tools: list[Any] | None, index: int, whole: str) -> Span | None:
        """Return what the template adds for an answer: the difference between the conversation up to the answer, with
        its generation prompt, and that with the answer. None where it rewrites earlier turns, so that there is none.
        """
        try:
            after = whole if index == len(messages) - 1 else self._apply(messages[: index + 1], tools)
            if index:
                before = self._apply(messages[:index], tools, prompt=True)
            else:
                # Templates need not take a conversation of no message: look for what opens an answer.
                opening = self._frame[0]
                before = after[: after.find(opening) + len(opening)] if opening and opening in after else after + "."
        except RowError:
            return None
        after = after.rstrip()
        return (len(before), len(after)) if after.startswith(before) and whole.startswith(after) else None

    def _by_place(self, messages: list[Message], tools: list[Any] | None, index: int, whole: str, least: int) -> Span:
        """Return where an answer's text stands, found by putting other words in its place; from its opening to its end.

        For templates that rewrite earlier turns: Qwen3 takes the thoughts out of them, Phi-3 ends a conversation with
        a token that a longer one does not have there.
        """
        opening, ending = self._frame
        other = self._apply([*messages[:index], {**messages[index], "content": _FIRST}, *messages[index + 1 :]], tools)
        if _FIRST not in other or not opening:
            raise RowError(
                f"the chat template does not show what the assistant says in message {self._number(messages, index)}"
            )
        begin = _alike(whole, other)
        rest = _alike(whole[begin:][::-1], other[begin:][::-1])
        end = len(whole) - rest
        # The prompt for an answer may say more than an answer opens with, such as a think tag.
        sizes = range(len(opening), len(opening) // 2, -1)
        found = ((whole.rfind(opening[:size], least, begin), size) for size in sizes)
        # The nearest to the answer: an earlier turn, or a question, may say more of the prompt than this answer does.
        start = max((place + size for place, size in found if place >= 0), default=-1)
        if start < 0:
            raise RowError("the chat template rewrites earlier turns, so the answers cannot be told from the context")
        close = whole.find(ending, end) if ending else -1
        calls = "tool_calls" in messages[index]
        if close >= 0 and (
            not whole[end:close].strip() or (calls and close < self._next(messages, tools, index, whole))
        ):
            end = close + len(ending)
        return start, end

    def _number(self, messages: list[Message], index: int) -> int:
        """Return a message's number in the row as given, from 1: what the manner put before it is not counted."""
        put = messages[0] == {"role": "system", "content": self._manner.system_prompt}
        return index + (not put)

    def _next(self, messages: list[Message], tools: list[Any] | None, index: int, whole: str) -> int:
        """Return where the words of the message after `index` begin."""
        rest = messages[index + 1 :]
        if not rest:
            return len(whole)
        other = [*messages[: index + 1], {**rest[0], "content": _SECOND}, *rest[1:]]
        return _alike(whole, self._apply(other, tools))

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """What this template writes before an answer that is asked for, and after each answer; empty where unknown."""
        asked: Message = {"role": "user", "content": "?"}
        answer: Message = {"role": "assistant", "content": _FIRST}
        try:
            plain, prompted = self._apply([asked], None), self._apply([asked], None, prompt=True)
            last = self._apply([asked, answer], None).partition(_FIRST)[2]
            inner = self._apply([asked, answer, {**asked, "content": _SECOND}], None).partition(_FIRST)[2]
        except RowError:
            return "", ""
        opening = prompted[_alike(plain, prompted) :]
        return opening, _BEGUN_TAG.sub("", last[: _alike(last, inner)]).rstrip()

    def _marked(self, messages: list[Message], tools: list[Any] | None) -> tuple[str, list[Span]]:
        """Render a conversation; also return the spans that the template marks as the assistant's. Raises RowError."""
        template = self._tokenizer.get_chat_template(None, tools)
        if not _MARKERS.search(template):
            return self._apply(messages, tools), []
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # noqa: BLE001  (templates are programs: they raise what they like)
            raise _refusal(error) from None
        return texts[0], list(spans[0])

    def _apply(self, messages: list[Message], tools: list[Any] | None, *, prompt: bool = False) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # noqa: BLE001  (templates are programs: they raise what they like)
            raise _refusal(error) from None
        return text


def _refusal(error: Exception) -> RowError:
    return RowError(f"the chat template refuses this conversation ({error})")
