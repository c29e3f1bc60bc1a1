"""What a request may say: defaults, ranges, types, nearest names, and one hash for equal requests."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import catalog
from engine.errors import InvalidRequest
from engine.jobs import specs
from engine.jobs.hyperparams import FinetuneHyperparams
from engine.jobs.specs import JobRequest

REQUEST: dict[str, Any] = {"type": "finetune", "idempotency_key": "k", "base_model_id": "m", "dataset_id": "d"}

LATER: dict[str, Any] = {"epochs": 1, "warmup_steps": 5, "system_prompt": "x", "val_split": "last"}


def parse(hyperparams: dict[str, Any] | None = None, **fields: Any) -> JobRequest:
    more = {} if hyperparams is None else {"hyperparams": hyperparams}
    return specs.parse({**REQUEST, **more, **fields})


def refused(hyperparams: dict[str, Any] | None = None, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(hyperparams, **fields)
    return str(caught.value)


def test_the_defaults_are_the_documented_ones() -> None:
    values = parse().hyperparams.model_dump()
    assert (values["steps"], values["lora_rank"], values["output_name"]) == (2000, 32, None)
    assert (values["training_type"], values["lora_alpha"], values["lora_dropout"]) == ("lora", 32, 0.0)
    assert (values["lr_scheduler"], values["max_grad_norm"], values["batch_size"]) == ("cosine", 1.0, 1)
    assert parse().hyperparams.total_steps == 2000


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("warmup_ration", "warmup_ratio"),
        ("step", "steps"),
        ("lora_rnk", "lora_rank"),
        ("seqlen", "seq_len"),
        ("seeds", "seed"),
    ],
)
def test_a_misspelt_setting_is_refused_with_a_name_that_exists(wrong: str, nearest: str) -> None:
    message = refused({wrong: 1})
    assert message.startswith(f"hyperparams.{wrong}: unknown field; ")
    assert nearest in message


def test_the_nearest_name_is_looked_for_where_the_misspelt_one_stands() -> None:
    assert refused(dataset="d") == "dataset: unknown field; did you mean 'dataset_id'?"
    assert refused({"lora_rnk": 1}) == "hyperparams.lora_rnk: unknown field; did you mean 'lora_rank'?"


def test_an_unknown_or_planned_type_of_job_is_refused_with_what_there_is() -> None:
    assert refused(type="finetun") == "type: unknown job type 'finetun'; did you mean 'finetune'?"
    assert refused(type="align") == (
        "type: 'align' jobs are not in this version yet; available: train, finetune, contract"
    )


@pytest.mark.parametrize(
    ("type", "defaults", "steps"),
    [
        (
            "train",
            {"turns": 1, "cycles": 6, "steps_per_cycle": 1000, "lr": 1e-4, "seq_len": 256, "batch_size": 1},
            6000,
        ),
        ("train", {"growth_ratio": 0.5, "growth_shape": "auto", "train_scope": "new", "retain_weight": 0.1}, 6000),
        ("contract", {"contraction_ratio": 0.5, "num_layers_to_contract": 8, "layout": "uniform"}, 0),
    ],
)
def test_every_type_has_the_documented_defaults(type: str, defaults: dict[str, Any], steps: int) -> None:
    data = {"dataset_id": None} if type == "contract" else {}
    settings = parse(type=type, **data).hyperparams
    assert defaults.items() <= settings.model_dump().items()
    assert settings.total_steps == steps


@pytest.mark.parametrize(
    ("type", "name", "value"),
    [
        *(("contract", "contraction_ratio", ratio) for ratio in (0, 1, 1.5, -0.1, "half", True)),
        *(("contract", "num_layers_to_contract", count) for count in (0, -1, 2.5, "all")),
        *(("contract", "layout", layout) for layout in ("even", None, 1)),
        *(("contract", "heal_steps", count) for count in (-1, 0.5)),
        *(("contract", "eval_dataset_id", reference) for reference in ("", 5)),
        *(("train", "growth_ratio", ratio) for ratio in (0, -1, 4.5, "most", True)),
        *(("train", "growth_shape", shape) for shape in ("tall", None)),
        *(("train", "train_scope", scope) for scope in ("old", True)),
        *(("train", "retain_weight", weight) for weight in (-0.1, 101)),
        *(("train", name, 0) for name in ("turns", "cycles", "steps_per_cycle")),
        *(("train", "compare_ungrown", value) for value in (1, "perhaps")),
    ],
)
def test_a_value_that_a_type_cannot_take_is_refused_by_name(type: str, name: str, value: Any) -> None:
    data = {"dataset_id": None} if type == "contract" else {}
    assert refused({name: value}, type=type, **data).startswith(f"hyperparams.{name}: ")


def test_a_setting_of_another_type_is_refused_with_the_type_that_has_it() -> None:
    message = refused({"lora_rank": 8}, type="train")
    assert message.startswith("hyperparams.lora_rank: a train job has no such setting (finetune jobs have)")
    assert "train jobs have" in refused({"growth_ratio": 0.5})


def test_settings_that_rule_each_other_out_are_refused_with_the_remedy() -> None:
    assert "use train_scope new" in refused({"train_scope": "all", "load_in_4bit": True}, type="train")
    assert "set it to 0" in refused({"train_scope": "all", "retain_weight": 0.5}, type="train")
    assert parse({"train_scope": "all"}, type="train").hyperparams.model_dump()["retain_weight"] == 0.0
    assert "use training_type lora" in refused({"training_type": "full", "load_in_4bit": True})


def test_epochs_stand_in_place_of_steps_and_never_beside_them() -> None:
    asked = {"epochs": 2.5, "lr": 1e-4}
    made = parse(asked).hyperparams
    stored = made.model_dump()
    assert (stored["epochs"], "steps" in stored) == (2.5, False)
    assert parse(stored).hyperparams == made
    assert parse({"epochs": None, "steps": 5}).hyperparams.total_steps == 5
    for steps in (5, 2000):
        assert refused({"epochs": 1, "steps": steps}) == (
            "hyperparams.epochs: steps follow from epochs: give one of them, not both"
        )
    assert "finetune jobs have" in refused({"epochs": 1}, type="train")


@pytest.mark.parametrize("type", ["train", "finetune"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("warmup_steps", (-1, 1.5, "soon", True, 10_000_001)),
        ("val_split", ("first", None, 1)),
        ("system_prompt", ("", 5, ["a"], True, "x" * 100_001, "\ud800")),
        ("loss_on", ("last", None)),
    ],
)
def test_what_is_said_of_the_rows_and_the_warm_up_is_checked_by_name(type: str, name: str, values: tuple[Any]) -> None:
    for value in values:
        assert refused({name: value}, type=type).startswith(f"hyperparams.{name}: ")


def test_the_words_that_the_catalogue_knows_are_those_of_the_setting() -> None:
    assert get_args(FinetuneHyperparams.model_fields["loss_on"].annotation) == catalog.LOSS_ON


@pytest.mark.parametrize("value", [0, -1, 10_001, "many", True, [1], math.nan])
def test_a_number_of_epochs_that_makes_no_sense_is_refused(value: Any) -> None:
    assert refused({"epochs": value}).startswith("hyperparams.epochs: ")


def test_warm_up_steps_win_over_their_share() -> None:
    def warmup(**asked: Any) -> int:
        return FinetuneHyperparams.model_validate({"steps": 1000, **asked}).warmup

    assert (warmup(), warmup(warmup_ratio=0.5)) == (30, 500)
    assert [warmup(warmup_steps=n, warmup_ratio=0.5) for n in (0, 7)] == [0, 7]


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        ({}, "4a730d7fd611180e9c0bd86835741a38afb2fcde760fb32a261086ef01c61b36"),
        (
            {"type": "train", "hyperparams": {"lr": 1e-3}},
            "41c843ca53b2d755c0be3e141e6ef617de79adadee50cc46c2887f3ac73262c2",
        ),
    ],
)
def test_the_hash_of_a_request_of_an_earlier_version_is_what_it_was(fields: dict[str, Any], digest: str) -> None:
    assert parse(**fields).payload_hash() == digest
    assert parse(**fields, more_dataset_ids=[], project_id=None).payload_hash() == digest


def test_a_contract_job_takes_no_dataset_and_the_others_need_one() -> None:
    message = refused(type="contract")
    assert message.startswith("dataset_id: a contract job takes no dataset")
    assert "hyperparams.eval_dataset_id" in message
    for type in ("train", "finetune"):
        assert refused(type=type, dataset_id=None) == "dataset_id: name the dataset to train on"
    assert refused(type="contract", dataset_id=None, base_model_id=None).startswith("source_model_id: name the model")


def test_the_model_that_a_job_makes_is_named_with_an_at_sign() -> None:
    assert parse(base_model_id="@grow").predecessor == "grow"
    assert parse(base_model_id=None, source_model_id="@grow").predecessor == "grow"
    assert parse(base_model_id="grow@").predecessor is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 10_000_001),
        ("lr", 0),
        ("lr", -1e-4),
        ("lr", 1.5),
        ("seq_len", 15),
        ("batch_size", 0),
        ("grad_accum", 0),
        ("lora_rank", 0),
        ("lora_dropout", 1),
        ("warmup_ratio", 1),
        ("weight_decay", 2),
        ("seed", -1),
        ("val_fraction", 0),
        ("val_fraction", 0.9),
        ("save_steps", 0),
        ("eval_steps", -1),
        ("lr_scheduler", "sine"),
        ("training_type", "qlora"),
        ("output_name", "../escape"),
        ("output_name", ".hidden"),
        ("output_name", "a/b"),
        ("output_name", "line\n"),
        ("output_name", ""),
        ("steps", 1.5),
        ("steps", "many"),
        ("steps", None),
        ("steps", [1]),
        ("lr", "fast"),
        ("output_name", 5),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused_by_name(name: str, value: Any) -> None:
    assert refused({name: value}).startswith(f"hyperparams.{name}: ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf"])
@pytest.mark.parametrize("name", ["lr", "lora_alpha", "weight_decay", "max_grad_norm"])
def test_what_is_no_finite_number_is_refused(name: str, value: Any) -> None:
    assert refused({name: value}).startswith(f"hyperparams.{name}: ")


@pytest.mark.parametrize("name", ["steps", "lora_rank", "lr", "lora_alpha"])
def test_true_is_no_number(name: str) -> None:
    assert refused({name: True}).startswith(f"hyperparams.{name}: ")


def test_numbers_as_text_count_as_numbers_for_that_is_how_a_form_sends_them() -> None:
    typed = parse({"steps": "20", "lr": "1e-3"})
    assert (typed.hyperparams.steps, typed.hyperparams.lr) == (20, 1e-3)
    assert typed.payload_hash() == parse({"steps": 20, "lr": 0.001}).payload_hash()


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "k" * 201}, "idempotency_key"),
        ({"name": ""}, "name"),
        ({"tags": "one"}, "tags"),
        ({"tags": ["a"] * 33}, "tags"),
        ({"notes": "n" * 10_001}, "notes"),
        ({"base_model_id": None}, "base_model_id"),
        ({"dataset_id": None}, "dataset_id"),
        ({"source_model_id": "other"}, "source_model_id"),
        ({"after": ""}, "after"),
        ({"after": 5}, "after"),
        ({"after": "j" * 201}, "after"),
        ({"hyperparams": None}, "hyperparams"),
        ({"hyperparams": [1]}, "hyperparams"),
    ],
)
def test_every_field_of_a_request_is_checked(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        specs.parse({**REQUEST, **fields})
    assert where in [str(fault.loc[0]) for fault in caught.value.faults]


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"steps": 0, "lr": 9, "colour": "red"}, notes=5)
    assert len(caught.value.faults) == 4


def test_the_source_model_may_stand_inside_the_hyperparams() -> None:
    inside = {"type": "finetune", "idempotency_key": "k", "dataset_id": "d"}
    a = specs.parse({**inside, "hyperparams": {"source_model_id": "mine", "steps": 5}})
    b = specs.parse({**inside, "source_model_id": "mine", "hyperparams": {"steps": 5}})
    assert a.source_model_id == a.model_reference == "mine"
    assert a.payload_hash() == b.payload_hash()
    given = {"source_model_id": "mine"}
    specs.parse({**inside, "hyperparams": given})
    assert given == {"source_model_id": "mine"}


def test_a_source_model_named_differently_in_both_places_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="source_model_id"):
        specs.parse({**REQUEST, "base_model_id": None, "source_model_id": "a", "hyperparams": {"source_model_id": "b"}})


def test_an_empty_source_model_beside_one_inside_the_hyperparams_hides_it_not() -> None:
    payload = {**REQUEST, "base_model_id": None, "source_model_id": None, "hyperparams": {"source_model_id": "b"}}
    assert specs.parse(payload).model_reference == "b"


@given(st.permutations(list({**REQUEST, "hyperparams": 0, "tags": 0, "notes": 0})), st.permutations(["steps", "lr"]))
@settings(deadline=None)
def test_the_hash_is_equal_whatever_the_order_of_the_fields(outer: list[str], inner: list[str]) -> None:
    hyperparams = {"steps": 5, "lr": 1e-3}
    whole = {**REQUEST, "hyperparams": hyperparams, "tags": ["a", "b"], "notes": "n"}
    shuffled = {name: whole[name] for name in outer}
    shuffled["hyperparams"] = {name: hyperparams[name] for name in inner}
    assert specs.parse(shuffled).payload_hash() == specs.parse(whole).payload_hash()


def test_the_hash_is_equal_where_a_default_is_written_out() -> None:
    defaults = json.loads(json.dumps(parse().hyperparams.model_dump()))
    differing = [
        name for name, value in defaults.items() if parse({name: value}).payload_hash() != parse().payload_hash()
    ]
    assert differing == []


def test_the_hash_leaves_out_the_key_and_takes_in_everything_else() -> None:
    base = parse().payload_hash()
    assert parse(idempotency_key="other").payload_hash() == base
    others = [
        parse({"steps": 5}),
        parse(dataset_id="e"),
        parse(after="a"),
        parse(more_dataset_ids=["e"]),
        parse(more_dataset_ids=["e", "f"]),
        parse(more_dataset_ids=["f", "e"]),
        parse(project_id="p"),
        *(parse({name: value}) for name, value in LATER.items()),
        parse(base_model_id="n"),
        parse(base_model_id=None, source_model_id="m"),
        parse(name="x"),
        parse(tags=["x"]),
        parse(notes="x"),
    ]
    assert len({base, *(other.payload_hash() for other in others)}) == 13 + len(LATER)


@pytest.mark.parametrize(("steps", "given", "wanted"), [(2000, 0, 200), (50, 0, 25), (10, 0, 25), (2000, 7, 7)])
def test_evaluation_comes_ten_times_a_run_but_not_within_twenty_five_steps(steps: int, given: int, wanted: int) -> None:
    assert parse({"steps": steps, "eval_steps": given}).hyperparams.eval_interval == wanted
