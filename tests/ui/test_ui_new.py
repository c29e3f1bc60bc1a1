"""The form of a new run: validation while typing, the same as a command, and what is in the store afterwards."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Select

from engine.catalog import STARTER_DATASET_ID, STARTER_MODEL_ID
from engine.jobs.hyperparams import HYPERPARAMS
from engine.service import Service
from fusion_tui import format as fmt
from fusion_tui.screens.draft import ADVANCED, COMMON, TYPES, Draft, Setting, reference
from fusion_tui.screens.new import NewScreen
from fusion_tui.screens.run import RunScreen
from store import catalog
from tests.store.entries import base_model
from tests.ui.driving import LARGE, SMALL, open_app, screen_text, sees, until

FINETUNE = "finetune"
STARTER = {"model": STARTER_MODEL_ID, "dataset": STARTER_DATASET_ID}
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x45"])


async def advised(pilot: Pilot[Any]) -> dict[str, Any]:
    """Wait until the recommended values of what is chosen are in the form, and return them."""
    screen = pilot.app.screen
    assert isinstance(screen, NewScreen)
    await until(pilot, lambda: screen.draft().subject, what="a choice")
    type, model, dataset, kind = screen.draft().subject or ("", "", "", "")
    made = screen.service.recommend(type=type, model=model, dataset=dataset, training_type=kind).made
    await until(pilot, lambda: screen.draft().values["seq_len"] == str(made.number("seq_len")), what="advice")
    first = COMMON[type][0]
    await sees(pilot, fmt.window(made.values[first]), "✓ can be queued")
    return made.hyperparams


def put(service: Service, entry: catalog.BaseModel | catalog.Dataset) -> None:
    with service.store.write() as db:
        if isinstance(entry, catalog.BaseModel):
            catalog.add_base_model(db, entry)
        else:
            catalog.add_dataset(db, entry)


def large_model(folder: Path, **config: Any) -> catalog.BaseModel:
    """Return a model of 8 B parameters with nothing but a config."""
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4096} | config))
    return base_model(id="large-1", name="a-large-one", params=8_030_261_248, path=str(folder))


async def begin(pilot: Pilot[Any]) -> None:
    """Open the form on the starter pair."""
    await pilot.press("n")
    await advised(pilot)
    await choose(pilot, "model", STARTER["model"])
    await choose(pilot, "dataset", STARTER["dataset"])


async def choose_type(pilot: Pilot[Any], type: str) -> NewScreen:
    screen = pilot.app.screen
    assert isinstance(screen, NewScreen)
    screen.query_one("#field-type Select", Select).value = type
    await until(pilot, lambda: screen.draft().type == type, what=f"the form of {type}")
    return screen


@SIZES
async def test_recommended_values_are_filled_in_with_window_reason_and_memory(
    service: Service, size: tuple[int, int]
) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=size) as pilot:
        await begin(pilot)
        values = await advised(pilot)
        settings = f"--set steps={values['steps']} --set lr={values['lr']:g} --set seq_len={values['seq_len']}"
        await sees(pilot, settings, "for hidden size 256 and about", "holds 100% of the rows whole")
        await sees(pilot, "memory: needs", "fits", "▲ The rate was measured on models of 1 to 70 billion")
        assert (size == LARGE) == ("√(" in screen_text(app))
        await pilot.press("f2")
        await until(pilot, service.jobs)
        assert {name: service.jobs()[0].hyperparams[name] for name in values} == values


async def choose(pilot: Pilot[Any], field: str, value: str) -> None:
    pilot.app.screen.query_one(f"#field-{field} Select", Select).value = value
    await until(pilot, lambda: value in str(pilot.app.screen.draft()))  # type: ignore[attr-defined]


async def test_what_was_typed_stays_when_other_data_is_chosen(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        first = await advised(pilot)
        await pilot.press(*"77")
        await sees(pilot, "--set steps=77")
        await choose(pilot, "dataset", STARTER["dataset"])
        made = service.recommend(model="model-1", dataset=STARTER["dataset"]).made
        assert made.number("seq_len") != first["seq_len"]
        await sees(pilot, f"--set seq_len={made.number('seq_len')}", "--set steps=77")
        # Emptied, it is the user's too: the default holds.
        await pilot.press("ctrl+u")
        await until(pilot, lambda: "steps=" not in screen_text(app))


async def test_full_training_gets_its_own_rate(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        lora = await advised(pilot)
        pilot.app.screen.query_one("#field-training_type Select", Select).value = "full"
        full = service.recommend(model="model-1", dataset="data-1", training_type="full").made.values["lr"].value
        assert full == pytest.approx(lora["lr"] / 10, rel=0.1)
        field = pilot.app.screen.query_one("#field-lr Input", Input)
        await until(pilot, lambda: field.value == f"{full:g}")
        await sees(pilot, "--set training_type=full")


async def test_typing_replaces_a_value_that_was_filled_in_meanwhile(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        steps = str((await advised(pilot))["steps"])
        field = pilot.app.screen.query_one("#field-steps Input", Input)
        assert field.has_focus
        assert field.selected_text == field.value == steps
        await pilot.press("9")
        await sees(pilot, "--set steps=9 ")


async def test_a_value_outside_its_window_is_marked_and_can_still_be_queued(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await advised(pilot)
        assert "▲ outside" not in screen_text(app)
        await pilot.press("tab", *"0.9")
        window = fmt.window(service.recommend(model="model-1", dataset="data-1").made.values["lr"])
        await sees(pilot, f"▲ outside {window}", "✓ can be queued")
        await pilot.press("ctrl+u", *"nonsense")
        await sees(pilot, "✗ input should be a valid number")
        assert "▲ outside" not in screen_text(app)


async def test_a_rate_that_diverges_is_queued_when_submitted_twice(service: Service, tmp_path: Path) -> None:
    put(service, large_model(tmp_path))
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await pilot.press("n")
        await sees(pilot, "✓ can be queued")
        await choose(pilot, "model", "large-1")
        await advised(pilot)
        await pilot.press("tab", *"0.5", "f2")
        await sees(pilot, "times the recommended", "in the app, submit again", "✗ 1 field to mend")
        assert service.jobs() == []
        await pilot.press("1")
        await sees(pilot, "--set lr=0.51", "✓ can be queued")
        await pilot.press("f2")
        await sees(pilot, "in the app, submit again")
        assert service.jobs() == []
        await pilot.press("f2")
        await until(pilot, service.jobs)
        (job,) = service.jobs()
        assert job.hyperparams["lr"] == 0.51
        assert "advice" in [event.kind for event in service.events(job.id)]


async def test_where_memory_cannot_hold_it_the_form_says_so_and_what_would(service: Service, tmp_path: Path) -> None:
    shape = {"model_type": "llama", "num_hidden_layers": 4000, "num_attention_heads": 32, "vocab_size": 128_256}
    put(service, large_model(tmp_path, intermediate_size=14_336, **shape))
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await sees(pilot, "✓ can be queued")
        await choose(pilot, "model", "large-1")
        await sees(pilot, "too large", "No setting makes it fit: use a smaller model", "✗ does not fit into memory")
        await pilot.press("f2")
        await sees(pilot, "✗ does not fit into memory")
        assert service.jobs() == []


async def test_without_a_shape_the_form_says_why_memory_is_not_known(service: Service, tmp_path: Path) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await advised(pilot)
        await sees(pilot, "memory: /nowhere/config.json cannot be read")


async def test_the_request_is_written_as_json_that_submit_takes(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await advised(pilot)
        await pilot.press("5", "0", "tab", "ctrl+u", *"1e-3")
        await sees(pilot, "--set steps=50 --set lr=1e-3", "✓ can be queued")
        await pilot.press("f3")
        (file,) = await until(pilot, lambda: list((service.home.root / "requests").glob("starter-starter-*.json")))
        await sees(pilot, "Sent to the clipboard", "and written to")
        document = json.loads(file.read_text())
        assert document == json.loads(app.clipboard)
        assert (document["base_model_id"], document["hyperparams"]["steps"]) == ("starter", 50)
        assert document["hyperparams"]["lr"] == 0.001
        job = service.submit({**document, "idempotency_key": "from the file"}).job
        await pilot.press("f2")
        await until(pilot, lambda: len(service.jobs()) == 2)
        mine = service.jobs()[0]
        assert {**mine.hyperparams, "output_name": ""} == {**job.hyperparams, "output_name": ""}


@SIZES
async def test_a_run_is_submitted_by_keys_alone(service: Service, size: tuple[int, int]) -> None:
    started: list[bool] = []
    app = open_app(service, start_supervisor=lambda: started.append(True))
    async with app.run_test(notifications=True, size=size) as pilot:
        await sees(pilot, "No runs yet")
        await pilot.press("n")
        await sees(pilot, "✓ can be queued", "$ fusion-tui submit finetune --model starter --dataset starter")
        await advised(pilot)
        await pilot.press("5", "0", "tab", "ctrl+u", *"1e-3")
        await sees(pilot, "--set steps=50 --set lr=1e-3")
        assert service.jobs() == []
        await pilot.press("f2")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        await until(pilot, lambda: started)
        (job,) = service.jobs()
        assert isinstance(app.screen, RunScreen)
        assert app.screen.job_id == job.id
        assert (job.hyperparams["steps"], job.hyperparams["lr"]) == (50, 1e-3)
        assert (job.base_model_id, job.dataset_id) == ("model-1", "data-1")
        await sees(pilot, "○ queued", "step 0/50")
        await pilot.press("escape")
        await sees(pilot, "○ queued", "0 running, 1 queued")


async def test_what_is_wrong_stands_beside_its_field_and_nothing_is_submitted(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await advised(pilot)
        await pilot.press("0")
        await sees(pilot, "steps", "✗ input should be greater than or equal", "✗ 1 field to mend")
        await pilot.press("f2")
        await pilot.press(*"x")
        await sees(pilot, "✗ input should be a valid integer")
        await pilot.press("f2", "backspace", "backspace")
        await sees(pilot, "✓ can be queued")
        assert isinstance(app.screen, NewScreen)
        assert service.jobs() == []


async def test_pressing_submit_twice_makes_one_run(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await sees(pilot, "✓ can be queued")
        await pilot.press("f2", "f2", "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        assert len(service.jobs()) == 1


async def test_the_button_and_the_folded_settings_are_reached_by_tab(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await sees(pilot, "✓ can be queued")
        await until(pilot, lambda: app.screen.focused)
        for _ in range(len(COMMON[FINETUNE])):
            await pilot.press("tab")
        await pilot.press("enter", *["tab"] * (1 + ADVANCED[FINETUNE].index("weight_decay")), *"0.1")
        await sees(pilot, "--set weight_decay=0.1")
        for _ in range(len(ADVANCED[FINETUNE]) - ADVANCED[FINETUNE].index("weight_decay")):
            await pilot.press("tab")
        await until(pilot, lambda: app.screen.focused and app.screen.focused.id == "submit")
        await pilot.press("enter")
        await until(pilot, service.jobs)
        assert service.jobs()[0].hyperparams["weight_decay"] == 0.1


async def test_a_model_of_ones_own_is_named_as_such(service: Service) -> None:
    own = catalog.Model("own-1", "mine", 0, "llama", 1000, "float32", "model-1", None, "/nowhere", "ready", 2.0)
    with service.store.write() as db:
        catalog.add_model(db, own)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await sees(pilot, "✓ can be queued")
        await pilot.press("shift+tab", "shift+tab", "enter", "end", "enter")
        await sees(pilot, "mine v1", "--model mine")
        await pilot.press("f2")
        await until(pilot, service.jobs)
        (job,) = service.jobs()
        assert (job.base_model_id, job.source_model_id) == (None, "own-1")


async def test_keys_typed_into_a_field_are_text(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await sees(pilot, "✓ can be queued")
        for _ in range(COMMON[FINETUNE].index("output_name")):
            await pilot.press("tab")
        await pilot.press(*"q1snD")
        await sees(pilot, "--set output_name=q1snD")
        assert isinstance(app.screen, NewScreen)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, NewScreen))


async def test_without_a_dataset_the_form_says_so(service: Service) -> None:
    for dataset in service.datasets():
        service.remove_dataset(dataset.id)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await sees(pilot, "✗ name the dataset to train")
        await pilot.press("f2")
        await sees(pilot, "✗ name the dataset to train")
        assert service.jobs() == []
        assert "--dataset DATASET" in screen_text(app)
        await pilot.press("f3")
        await sees(pilot, "Choose a model and a dataset first.")
        assert list((service.home.root / "requests").iterdir()) == []


async def test_any_size_of_the_form_is_survived(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await advised(pilot)
        for size, type in zip(((60, 18), (300, 80), (61, 19), SMALL), (*TYPES, FINETUNE), strict=True):
            for each in ((20, 6), (1, 1), size):
                await pilot.resize_terminal(*each)
            await until(pilot, lambda: isinstance(app.screen, NewScreen), what="room for the form")
            await choose_type(pilot, type)
        await sees(pilot, "✓ can be queued", "memory: ")


@pytest.mark.parametrize(("type", "name"), [(type, name) for type in TYPES for name in HYPERPARAMS[type].model_fields])
def test_every_setting_of_the_job_type_is_in_the_form(type: str, name: str) -> None:
    kind, one = HYPERPARAMS[type], Setting(type, name)
    assert name in (*COMMON[type], *ADVANCED[type])
    assert one.hint.startswith(kind.model_fields[name].description or "?")
    value = kind.model_validate({name: one.default or None}).model_dump()[name]
    assert value == kind().model_dump()[name]
    assert not one.choices or one.default in one.choices


def test_the_command_says_what_differs_and_survives_a_shell() -> None:
    draft = Draft(values={"steps": " 50 ", "lr": "0.0002", "output_name": "a b"})
    assert draft.document("m", "d")["hyperparams"] == {"steps": 50, "output_name": "a b"}
    words = shlex.split(draft.command("my model", "rows"))
    assert words[:7] == ["fusion-tui", "submit", "finetune", "--model", "my model", "--dataset", "rows"]
    assert words[7:] == ["--set", "steps=50", "--set", "output_name=a b"]
    alone = Draft(type="contract", values={"layout": "depth", "heal_steps": "0"})
    assert alone.command("m", "d") == "fusion-tui submit contract --model m --set layout=depth"
    assert alone.document("m", "d") == {"type": "contract", "base_model_id": "m", "hyperparams": {"layout": "depth"}}


def test_an_older_version_is_meant_by_its_id(service: Service) -> None:
    old, new = (catalog.BaseModel(f"{n}2345678-x", "llama", "same", n, 1, "float32", "/", "test", 1.0) for n in (1, 2))
    assert reference(new, [new, old]) == "same"
    assert reference(old, [new, old]) == "12345678"
