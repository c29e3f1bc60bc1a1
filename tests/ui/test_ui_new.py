"""The form of a new run: validation while typing, the same as a command, and what is in the store afterwards."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from engine.service import Service
from engine.specs import FinetuneHyperparams
from fusion_tui.screens.draft import ADVANCED, COMMON, Draft, choices, default_text, hint, reference
from fusion_tui.screens.new import NewScreen
from fusion_tui.screens.run import RunScreen
from store import catalog
from tests.ui.driving import LARGE, SMALL, open_app, screen_text, sees, until

SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x45"])


@SIZES
async def test_a_run_is_submitted_by_keys_alone(service: Service, size: tuple[int, int]) -> None:
    started: list[bool] = []
    app = open_app(service, start_supervisor=lambda: started.append(True))
    async with app.run_test(notifications=True, size=size) as pilot:
        await sees(pilot, "No runs yet")
        await pilot.press("n")
        await sees(pilot, "✓ can be queued", "$ fusion-tui submit finetune --model starter --dataset starter")
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
        await sees(pilot, "✓ can be queued")
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
        for _ in range(len(COMMON)):
            await pilot.press("tab")
        await pilot.press("enter", "tab", *"4")
        await sees(pilot, "--set grad_accum=4")
        for _ in range(len(ADVANCED)):
            await pilot.press("tab")
        await until(pilot, lambda: app.screen.focused and app.screen.focused.id == "submit")
        await pilot.press("enter")
        await until(pilot, service.jobs)
        assert service.jobs()[0].hyperparams["grad_accum"] == 4


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
        for _ in range(COMMON.index("output_name")):
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


@pytest.mark.parametrize("name", FinetuneHyperparams.model_fields)
def test_every_setting_of_the_job_type_is_in_the_form(name: str) -> None:
    assert name in (*COMMON, *ADVANCED)
    assert hint(name).startswith(FinetuneHyperparams.model_fields[name].description or "?")
    typed: Any = default_text(name) or None
    value = FinetuneHyperparams.model_validate({name: typed}).model_dump()[name]
    assert value == FinetuneHyperparams().model_dump()[name]
    assert not choices(name) or typed in choices(name)


def test_the_command_says_what_differs_and_survives_a_shell() -> None:
    draft = Draft(values={"steps": " 50 ", "lr": "0.0002", "output_name": "a b"})
    words = shlex.split(draft.command("my model", "rows"))
    assert words[:7] == ["fusion-tui", "submit", "finetune", "--model", "my model", "--dataset", "rows"]
    assert words[7:] == ["--set", "steps=50", "--set", "output_name=a b"]


def test_an_older_version_is_meant_by_its_id(service: Service) -> None:
    old, new = (catalog.BaseModel(f"{n}2345678-x", "llama", "same", n, 1, "float32", "/", "test", 1.0) for n in (1, 2))
    assert reference(new, [new, old]) == "same"
    assert reference(old, [new, old]) == "12345678"
