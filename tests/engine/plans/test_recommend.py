"""Recommendations: the notes say what the numbers say, windows hold what they surround, nothing is absurd."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import lengths
from engine.data.lengths import RowLengths
from engine.errors import InvalidRequest, UnknownReference
from engine.jobs.hyperparams import HYPERPARAMS
from engine.paths import STARTER_MODEL, STARTER_ROWS
from engine.plans import planning
from engine.plans.advice import Advice, Asked, advise, data_size, model_size
from engine.plans.recommend import (
    MOST_PASSES,
    DataSize,
    ModelSize,
    Recommendation,
    learning_rate,
    recommend,
)
from engine.service import Service
from store import catalog, jobs
from tests.engine.conftest import request_for
from tests.store.entries import base_model, dataset

# The three sizes of each that a reader can check by hand.
MODELS = {
    "SmolLM2-135M": ModelSize(134_515_008, 576, "llama", 8192),
    "Qwen2.5-1.5B": ModelSize(1_543_714_304, 1536, "qwen2", 32768),
    "Mistral-7B": ModelSize(7_241_732_096, 4096, "mistral", 32768),
}
DATA = {
    "150 long rows": DataSize(150 * 700, 150, RowLengths(tuple(range(400, 1000, 4)), True)),
    "2,000 chats": DataSize(2000 * 60, 2000, RowLengths(tuple(range(20, 101)), True)),
    "a million rows": DataSize(350_000_000, 1_000_000, RowLengths(tuple(range(50, 651, 2)), False)),
}


def numbers(text: str) -> list[float]:
    """Return the numbers in a text, thousands separators read over."""
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?", text)]


def note(made: Recommendation, words: str) -> str:
    (found,) = [one for one in made.notes if words in one]
    return found


def check(made: Recommendation) -> None:
    """Assert that values, windows and notes agree with one another."""
    for name, one in made.values.items():
        if one.low is not None:
            assert isinstance(one.value, int | float)
            assert math.isfinite(one.value)
            assert 0 < one.low <= one.value <= one.high, name  # type: ignore[operator]
            assert one.holds(one.value)
    resolved = HYPERPARAMS[made.type].model_validate(made.hyperparams)
    assert resolved.total_steps == made.steps
    check_notes(made)


def check_notes(made: Recommendation) -> None:
    """Read the numbers out of the notes and work them out again."""
    lr, seq_len = made.values["lr"], made.number("seq_len")
    accum, batch = made.number("grad_accum"), made.number("batch_size")
    step_tokens = batch * accum * seq_len

    rate = note(made, f"lr {lr.value:.1e}")
    power = re.search(r"\(2000 / (\d+)\)\^([\d.]+)", rate)
    (counted,) = re.findall(r"√\((\d+) / 128\)", rate)
    scale = math.sqrt(int(counted) / 128)
    if power:
        factor = 5e-5 * (10 if "× 10 for LoRA" in rate else 1) * (2000 / int(power[1])) ** float(power[2])
        assert lr.value == float(f"{factor * scale:.1e}")
        assert ("× 10 for LoRA" in rate) == (made.values["training_type"].value == "lora")
        low, high = re.search(r"\(([\d.e-]+) to ([\d.e-]+)\)", rate).groups()  # type: ignore[union-attr]
    else:
        assert lr.value == max(float(f"{2e-4 * scale:.1e}"), 1e-4)
        low, high = re.search(r"within ([\d.e-]+) and ([\d.e-]+)\.", rate).groups()  # type: ignore[union-attr]
    assert (float(low), float(high)) == (lr.low, lr.high)
    assert float(low) == pytest.approx(lr.value / 3, rel=0.06)
    assert float(high) == pytest.approx(lr.value * 2, rel=0.06)

    sees = numbers(note(made, "A step sees").split(" row")[0])
    factors, product, rows = sees[:-2], sees[-2], sees[-1]
    assert math.prod(factors) == product == step_tokens
    assert rows == max(
        round(made.data.tokens and (made.data.rows or 0) * step_tokens / made.data.tokens), batch * accum
    )
    assert int(counted) == min(max(rows, 16), 128)

    sequences = batch * accum
    fits = [
        2 * made.data.tokens / (count * seq_len) >= 100
        and (made.data.rows or 0) * count * seq_len / made.data.tokens <= 128
        and count * seq_len <= 32_768
        for count in (sequences, 2 * sequences)
    ]
    assert ("two sequences would leave" in note(made, "A step sees")) == (sequences == 1)
    assert fits[0] or sequences == 1
    assert not fits[1] or sequences == 128

    passes = re.search(
        r"^(.*?)([\d,]+) steps? of ([\d,]+) tokens go (once|[\d.e+-]+)(?: times)? over the data: ([\d,]+) tokens?, ",
        note(made, "over the data:"),
    )
    assert passes
    (steps,), (tokens,), (data,) = (numbers(passes[group]) for group in (2, 3, 5))
    assert math.prod(numbers(passes[1]) or [steps]) == steps == made.steps
    assert (tokens, data) == (step_tokens, made.data.tokens)
    assert float(passes[4].replace("once", "1")) == pytest.approx(steps * tokens / data, rel=0.006)

    check_warnings(made)


def check_warnings(made: Recommendation) -> None:
    """Assert that each warning stands exactly where it is true."""
    warned = "\n".join(one for one in made.notes if one.startswith("Warning"))
    seq_len, found = made.number("seq_len"), made.data.lengths
    assert ("repetition teaches ever less" in warned) == (made.epochs > MOST_PASSES)
    assert ("less than one step" in warned) == (made.data.tokens < made.step_tokens)
    assert ("few; the model may learn" in warned) == (made.data.rows is not None and made.data.rows < 200)
    assert ("cannot be longer" in warned) == (made.model.positions == seq_len)
    longer = sum(length > seq_len for length in found.sample) / len(found.sample) if found else 0.0
    assert ("lose their end" in warned) == (longer > 0.01)
    assert any("is estimated from" in one for one in made.notes) == made.model.estimated


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(("type", "full"), [("finetune", False), ("finetune", True), ("train", False)])
def test_notes_and_numbers_agree_for_three_models_and_three_datasets(
    model: str, data: str, type: str, full: bool
) -> None:
    made = recommend(MODELS[model], DATA[data], type=type, full=full)
    check(made)
    assert made.steps >= 100 or made.epochs >= 3
    assert made.epochs <= 10.5


LENGTHS = st.lists(st.integers(1, 200_000), min_size=1, max_size=50).map(
    lambda found: RowLengths(tuple(sorted(found)), True)
)


@st.composite
def data_sizes(draw: st.DrawFn) -> DataSize:
    found = draw(st.none() | LENGTHS)
    if found is None:
        return DataSize(draw(st.integers(1, 10**13)))
    rows = draw(st.integers(1, 10**8))
    return DataSize(max(round(found.mean * rows), 1), rows, found)


@given(
    params=st.integers(1, 10**12),
    hidden=st.none() | st.integers(16, 65_536),
    family=st.sampled_from(["llama", "qwen3", "gemma2", ""]),
    positions=st.none() | st.integers(16, 10**6),
    data=data_sizes(),
    type=st.sampled_from(["finetune", "train"]),
    full=st.booleans(),
    micro=st.none() | st.integers(1, 64),
)
@settings(max_examples=300, deadline=None)
def test_notes_and_numbers_agree_whatever_the_sizes(  # noqa: PLR0917  (hypothesis names them)
    params: int,
    hidden: int | None,
    family: str,
    positions: int | None,
    data: DataSize,
    type: str,
    full: bool,
    micro: int | None,
) -> None:
    model = ModelSize(params, hidden, family, positions) if hidden else ModelSize.of_params(params)
    made = recommend(model, data, type=type, full=full, micro_batch=micro)
    check(made)
    assert micro is None or made.number("batch_size") <= micro


def test_the_rate_is_the_published_formula_at_the_reference_batch() -> None:
    llama, qwen = ModelSize(8_030_261_248, 4096, "llama"), ModelSize(8_190_735_360, 4096, "qwen3")
    assert learning_rate(llama, 128) == 2.9e-4  # 5e-4 · (2000 / 4096)^0.781
    assert learning_rate(qwen, 128) == 4.7e-4  # 5e-4 · (2000 / 4096)^0.0775
    assert learning_rate(llama, 128, full=True) == 2.9e-5
    assert learning_rate(llama, 32) == 1.4e-4
    assert learning_rate(llama, 1) == learning_rate(llama, 16) == 1.0e-4


def test_the_batch_changes_with_memory_but_not_with_the_experiment() -> None:
    wide = recommend(MODELS["Mistral-7B"], DATA["a million rows"])
    narrow = recommend(MODELS["Mistral-7B"], DATA["a million rows"], micro_batch=1)
    assert narrow.number("batch_size") == 1
    assert (narrow.step_tokens, narrow.steps) == (wide.step_tokens, wide.steps)
    assert narrow.values["lr"] == wide.values["lr"]


@pytest.mark.parametrize("hidden", [(134_515_008, 576), (1_235_814_400, 2048), (8_030_261_248, 4096), (7.06e10, 8192)])
def test_a_hidden_size_estimated_from_the_parameters_is_near(hidden: tuple[float, int]) -> None:
    assert ModelSize.of_params(int(hidden[0])).hidden == pytest.approx(hidden[1], rel=0.4)


# Rows -------------------------------------------------------------------------------------------------------------


def test_row_lengths_from_a_sample_are_near_those_of_all_rows() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(STARTER_MODEL / "tokenizer.json"))
    rows = [json.loads(line)["messages"] for line in STARTER_ROWS.open()]
    texts = ["".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in row) for row in rows]
    true = sorted(len(one.ids) for one in tokenizer.encode_batch(texts))
    found = lengths.measure(STARTER_ROWS, STARTER_MODEL)
    assert found
    assert found.tokenizer
    assert len(found.sample) < len(true) / 4
    assert found.mean == pytest.approx(sum(true) / len(true), rel=0.1)
    assert found.percentile(0.95) == pytest.approx(true[int(0.95 * len(true))], rel=0.15)


def test_rows_of_any_shape_and_broken_ones_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows: list[Any] = [
        {"text": "x" * 400},
        {"instruction": "x" * 200, "input": "", "output": "x" * 159},
        {"conversations": [{"from": "human", "value": "x" * 180}, {"from": "gpt", "value": "x" * 179}]},
        ["x" * 400],
        7,
    ]
    file.write_text("not json\n\n" + "".join(json.dumps(row) + "\n" for row in rows))
    found = lengths.measure(file, tmp_path)
    assert found
    assert not found.tokenizer
    # Four characters a token; two messages of five tokens around all but plain text.
    assert found.sample == (1, 100, 100, 100, 100)
    assert (found.within(99), found.within(100), found.percentile(1.0)) == (0.2, 1.0, 100)


def test_a_row_as_long_as_a_book_is_scaled_up_from_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "word " * 200_000}) + "\n")
    found = lengths.measure(file, STARTER_MODEL)
    assert found
    few = lengths.measure(STARTER_ROWS, STARTER_MODEL)
    assert few
    assert found.sample[0] > 100_000


@pytest.mark.parametrize("content", ["", "\n\n", "no json\n"])
def test_a_file_without_rows_has_no_lengths(tmp_path: Path, content: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    assert lengths.measure(file, STARTER_MODEL) is None
    assert lengths.measure(tmp_path / "nonesuch", STARTER_MODEL) is None


# Entries of the catalogue -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "hidden", "positions", "estimated"),
    [
        ({"hidden_size": 576, "max_position_embeddings": 8192}, 576, 8192, False),
        ({"n_embd": 768, "n_positions": 1024}, 768, 1024, False),
        ({"text_config": {"hidden_size": 640, "max_position_embeddings": 32768}}, 640, 32768, False),
        ({"hidden_size": "wide"}, 1792, None, True),
        (None, 1792, None, True),
        ([], 1792, None, True),
    ],
)
def test_the_size_of_a_model_is_read_or_estimated(
    tmp_path: Path, config: Any, hidden: int, positions: int | None, estimated: bool
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    size = model_size(base_model(path=str(tmp_path), params=10**9, family="llama"))
    assert (size.hidden, size.positions, size.estimated, size.family) == (hidden, positions, estimated, "llama")


def test_a_dataset_that_cannot_be_read_is_sized_by_its_bytes() -> None:
    size = data_size(dataset(bytes=4000, rows=10), None)
    assert (size.tokens, size.rows, size.lengths, size.origin) == (1000, 10, None, "estimated at 4 bytes a token")


def test_numbers_given_win_over_what_the_entries_tell() -> None:
    entries = {"model": base_model(params=10**9), "dataset": dataset(bytes=4000, rows=10)}
    model, data = Asked(**entries, params=2 * 10**9, dataset_tokens=500).sizes()  # type: ignore[arg-type]
    assert (model.params, data.tokens, data.rows) == (2 * 10**9, 500, 10)
    assert Asked(params=10**9, dataset_bytes=4000).sizes()[1].tokens == 1000


def test_without_a_size_the_fault_names_the_field(service: Service) -> None:
    with pytest.raises(InvalidRequest) as caught:
        service.recommend()
    assert [fault.loc for fault in caught.value.faults] == [("base_model_id",), ("dataset_id",)]
    with pytest.raises(UnknownReference, match="No model is called 'x'"):
        service.recommend(model="x", dataset="rows")
    assert service.recommend(model="starter", dataset="starter").made.data.rows == 2000


# What memory holds ------------------------------------------------------------------------------------------------

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def advise_for_card(
    service: Service, folder: Path, gigabytes: float, training_type: str = "lora", **kind: str
) -> Advice:
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    model = base_model(name="llama-3-8b", params=8_030_261_248, path=str(folder))
    rows = dataset(name="many", rows=100_000, bytes=100_000_000)
    with service.store.write() as db:
        catalog.add_base_model(db, model)
        catalog.add_dataset(db, rows)
    asked = Asked(model, rows, training_type=training_type, **kind)
    return advise(asked, lambda payload: planning.of_request(service.store.read(), payload, card_gb=gigabytes))


def test_on_a_large_card_the_recommendation_stays_as_it_is(service: Service, tmp_path: Path) -> None:
    advice = advise_for_card(service, tmp_path, 80)
    assert advice.memory
    assert advice.memory.fits
    assert advice.made == recommend(advice.made.model, advice.made.data)


def test_on_a_smaller_card_the_forward_pass_shrinks_first(service: Service, tmp_path: Path) -> None:
    advice = advise_for_card(service, tmp_path, 24)
    free = recommend(advice.made.model, advice.made.data)
    assert advice.memory
    assert advice.memory.fits
    assert advice.made.number("batch_size") < free.number("batch_size")
    assert (advice.made.step_tokens, advice.made.values["lr"]) == (free.step_tokens, free.values["lr"])
    check(advice.made)


def test_then_weights_or_activations_and_the_note_says_why(service: Service, tmp_path: Path) -> None:
    advice = advise_for_card(service, tmp_path, 12)
    assert advice.memory
    assert advice.memory.fits
    assert advice.made.values["load_in_4bit"].value is True
    assert "load_in_4bit true: as recommended otherwise, the job needs" in advice.made.notes[-1]
    check(advice.made)


def test_where_nothing_fits_the_note_says_what_would(service: Service, tmp_path: Path) -> None:
    advice = advise_for_card(service, tmp_path, 24, "full")
    assert advice.memory
    assert not advice.memory.fits
    assert "too large. These would fit: " in advice.made.notes[-1]
    check(advice.made)


def test_growing_is_fitted_into_memory_too_the_mildest_way_first(service: Service, tmp_path: Path) -> None:
    """On a large card nothing changes but the forward pass; on smaller ones the state, then the growth."""
    advice = advise_for_card(service, tmp_path, 200, type="train")
    assert advice.memory
    assert advice.memory.plan.mode == "grow/none"
    assert "growth_ratio" not in advice.made.values
    check(advice.made)


@pytest.mark.parametrize(("gigabytes", "changed"), [(80, {"optimizer"}), (24, {"growth_ratio"})])
def test_growing_on_a_smaller_card_changes_what_has_to_be(
    service: Service, tmp_path: Path, gigabytes: float, changed: set[str]
) -> None:
    advice = advise_for_card(service, tmp_path, gigabytes, type="train")
    assert advice.memory
    assert advice.memory.fits
    assert changed <= advice.made.values.keys()
    assert "as recommended otherwise, the job needs" in advice.made.notes[-1]
    check(advice.made)
    # As a request, it is planned to fit as well.
    request = {"type": "train", "base_model_id": "llama-3-8b", "hyperparams": advice.made.hyperparams}
    assert planning.of_request(service.store.read(), request, card_gb=gigabytes).fits


# What is said of a rate that is far off -----------------------------------------------------------------------------


def add_model(service: Service, folder: Path, params: int = 8_030_261_248) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4096}))
    with service.store.write() as db:
        catalog.add_base_model(db, base_model(name="big", params=params, path=str(folder)))
        catalog.add_dataset(db, dataset(name="long", rows=3, bytes=12_000))


@pytest.mark.parametrize(
    ("lr", "said", "refused"), [(2e-4, False, False), (3.2e-4, True, False), (7e-4, True, True), (1.0, True, True)]
)
def test_a_rate_far_above_the_recommended_is_told_and_refused_where_asked_for(
    service: Service, tmp_path: Path, lr: float, said: bool, refused: bool
) -> None:
    add_model(service, tmp_path / "big")
    request = request_for(base_model_id="big", dataset_id="long", hyperparams={"lr": lr})
    if refused:
        with pytest.raises(
            InvalidRequest, match=r"hyperparams.lr: lr .* times the recommended 0.0001; safe is 3.3e-05"
        ):
            service.submit(request, careful=True)
        assert service.jobs() == []
    submission = service.submit(request, careful=not refused)
    events = [event for event in service.events(submission.job.id) if event.kind == "advice"]
    assert [event.payload["text"] for event in events] == [submission.advice] * said
    assert bool(submission.advice) == said
    assert submission.job.hyperparams["lr"] == lr
    # The same request again is the same job, told once, whatever the care.
    assert not service.submit(request, careful=True).created
    assert len(jobs.events(service.store.read(), submission.job.id)) == 1 + said


@pytest.mark.parametrize(("lr", "said"), [(2e-4, False), (1e-3, True), (0.9, True)])
def test_a_rate_far_above_that_of_new_blocks_is_told_and_never_refused(
    service: Service, tmp_path: Path, lr: float, said: bool
) -> None:
    add_model(service, tmp_path / "big")
    request = request_for(type="train", base_model_id="big", dataset_id="long", hyperparams={"lr": lr})
    submission = service.submit(request, careful=True)
    assert bool(submission.advice) == said
    assert not said or "times the recommended 0.0001; safe is 3.3e-05 to 2.0e-04" in submission.advice


def test_outside_the_sizes_that_were_measured_no_rate_is_refused(service: Service, tmp_path: Path) -> None:
    add_model(service, tmp_path / "big", params=10**8)
    assert not service.submit(
        request_for(base_model_id="big", dataset_id="long", hyperparams={"lr": 5e-4}), careful=True
    ).advice
    assert service.submit(
        request_for(base_model_id="big", dataset_id="long", hyperparams={"lr": 7e-4}), careful=True
    ).advice
