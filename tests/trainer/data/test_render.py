"""What is trained is what the template wrote for the assistant: every template, every turn, tool calls too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl

from engine.data import rows
from engine.data.rows import Row, RowError
from engine.trainer.data.corpora import CHATML
from engine.trainer.data.render import Rendered, Renderer
from tests import tiny

# Chat templates of the model families as their makers publish them, and variants of them with generation markers.
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}

# Writes the thoughts of the last answer alone, and ends a conversation in a way of its own: rewrites earlier turns.
FORGETFUL = (
    "{% for m in messages %}[{{ m.role }}] "
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% else %}<eos>{% endif %}"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SINGLE = {"messages": [user("hi there"), answer("Hello you.")]}
SEVERAL = {"messages": [user("one?"), answer("First."), user("two?"), answer("Second."), user("three?"), answer("3")]}
TOOLS = {
    "messages": [
        user("add 1 2"),
        answer("Let me add.", tool_calls=[CALL]),
        {"role": "tool", "name": "add", "content": "3"},
        answer("It is three."),
    ],
    "tools": [TOOL],
}


@pytest.fixture
def render(tokenizer: Any) -> Callable[..., Rendered]:
    """Render a row with a template."""

    def rendered(template: str, fields: dict[str, Any]) -> Rendered:
        tokenizer.chat_template = template
        tokenizer.bos_token = tokenizer.eos_token  # some templates begin with it
        return Renderer(tokenizer).render(Row(1, rows.detect(fields), fields))

    return rendered


def trained(rendered: Rendered) -> list[str]:
    assert not rendered.fault
    return [rendered.text[begin:end] for begin, end in rendered.spans]


@pytest.mark.parametrize("fields", [SINGLE, SEVERAL], ids=["single", "several"])
@pytest.mark.parametrize("family", ["cohere", "gemma3", "llama3", "qwen2_5", "qwen3_instruct_2507"])
def test_without_markers_the_same_is_found_as_with_them(
    render: Callable[..., Rendered], family: str, fields: dict[str, Any]
) -> None:
    stock, marked = ((TEMPLATES / f"{family}{kind}.jinja").read_text() for kind in ("", "_training"))
    assert "generation %}" not in stock
    found, wanted = render(stock, fields), render(marked, fields)
    assert found.text == wanted.text
    # Some marked variants also mark the line end before or after an answer, which nothing depends on.
    assert trained(found) == [text.strip("\n") for text in trained(wanted)]


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3_instruct_2507"])
def test_tool_calls_are_trained_and_what_the_tool_says_is_not(render: Callable[..., Rendered], family: str) -> None:
    first, second = trained(render((TEMPLATES / f"{family}.jinja").read_text(), TOOLS))
    assert first.startswith("Let me add.")
    assert '{"name": "add", "arguments": {"a": 1, "b": 2}}' in first
    assert second == "It is three.<|im_end|>"


def test_arguments_are_written_out_for_templates_that_want_them_as_text(render: Callable[..., Rendered]) -> None:
    first, second = trained(render((TEMPLATES / "deepseekv3.jinja").read_text(), TOOLS))
    assert '{"a": 1, "b": 2}' in first
    assert second.startswith("It is three.")


def test_a_template_that_cannot_show_tool_calls_makes_the_row_a_fault(render: Callable[..., Rendered]) -> None:
    fields = {"messages": [user("add"), answer("", tool_calls=[CALL])]}
    assert "does not show what the assistant says in message 2" in render(CHATML, fields).fault


@pytest.mark.parametrize("family", ["qwen3", "phi3", "deepseek_r1_distill", "gptoss", "nemotron_3_nano", "glm4moe"])
def test_templates_that_rewrite_earlier_turns_still_show_each_answer(
    render: Callable[..., Rendered], family: str
) -> None:
    template = (TEMPLATES / f"{family}.jinja").read_text()
    found = trained(render(template, SEVERAL))
    assert len(found) == 3
    for said, text in zip(["First.", "Second.", "3"], found, strict=True):
        assert said in text
        assert "?" not in text
        assert "assistant" not in text


def test_a_rewritten_turn_ends_with_its_own_end_alone(render: Callable[..., Rendered]) -> None:
    assert trained(render(FORGETFUL, SEVERAL)) == ["First.<end>", "Second.<end>", "3<end>\n<eos>"]


def test_reasoning_that_the_template_leaves_out_is_told(render: Callable[..., Rendered]) -> None:
    thinks = [user("a?"), answer("<think>hm</think>A."), user("b?"), answer("<think>so</think>B.")]
    found = render(FORGETFUL, {"messages": thinks})
    assert trained(found) == ["A.<end>", "<think>so</think>B.<end>\n<eos>"]
    assert found.thought_cut
    assert not render(FORGETFUL, {"messages": thinks[2:]}).thought_cut
    assert not render(FORGETFUL, SEVERAL).thought_cut


def test_markers_that_miss_the_answers_are_not_believed(render: Callable[..., Rendered]) -> None:
    wrong = (
        "{% for m in messages %}{% generation %}<{{ m.role }}>{% endgeneration %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert trained(render(wrong, SEVERAL)) == ["First.</s>", "Second.</s>", "3</s>"]


def test_an_answer_that_quotes_its_own_header_is_found_whole(render: Callable[..., Rendered]) -> None:
    said = "You write <|im_start|>assistant\nand then <|im_end|>\nand go on."
    fields = {"messages": [user("how?"), answer(said), user("and?"), answer("Done.")]}
    for template in (CHATML, tiny.TEMPLATE):
        assert trained(render(template, fields)) == [f"{said}<|im_end|>", "Done.<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}[{{ m.role }}]{% endfor %}", "does not show what the assistant says in message 2"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not show what the assistant says"),
        ("{{ messages | length }}", "does not show what the assistant says"),
    ],
)
def test_answers_that_are_not_in_the_text_are_a_fault_of_the_row(
    render: Callable[..., Rendered], template: str, words: str
) -> None:
    found = render(template, SEVERAL)
    assert words in found.fault
    assert not found.spans


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages[9].content }}", "{% if %}"])
def test_a_template_that_fails_is_an_error(render: Callable[..., Rendered], template: str) -> None:
    with pytest.raises(RowError, match="the chat template refuses this conversation"):
        render(template, SINGLE)


def test_other_shapes_become_conversations(render: Callable[..., Rendered]) -> None:
    alpaca = render(CHATML, {"instruction": "Add.", "input": "1 2", "output": "3"})
    assert alpaca.text == "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert trained(render(CHATML, {"conversations": turns})) == ["b<|im_end|>"]
