"""The New form for each type of job: its settings, advice, memory and command follow the type that is chosen."""

from __future__ import annotations

import json

from textual.widgets import Input

from engine.service import Service
from tests.store.entries import base_model
from tests.ui.driving import LARGE, SMALL, open_app, screen_text, sees, until
from tests.ui.test_ui_new import SIZES, STARTER, advised, begin, choose, choose_type, put


@SIZES
async def test_a_train_job_has_its_own_settings_advice_memory_and_command(
    service: Service, size: tuple[int, int]
) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=size) as pilot:
        await begin(pilot)
        await choose_type(pilot, "train")
        values = await advised(pilot)
        await sees(pilot, "New run: train", "$ fusion-tui submit train --model", f"--set turns={values['turns']}")
        await sees(pilot, "memory: needs", "fits")
        await pilot.press("f2")
        await until(pilot, service.jobs)
        (job,) = service.jobs()
        assert (job.type, job.hyperparams["growth_ratio"]) == ("train", 0.5)
        assert {name: job.hyperparams[name] for name in values} == values
        assert job.plan
        assert job.plan["mode"] == "grow/none"


async def test_no_name_of_a_setting_is_broken_in_two(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot)
        for type in ("train", "contract", "finetune"):
            screen = await choose_type(pilot, type)
            await until(pilot, lambda type=type: f"New run: {type}" in screen_text(app))
            labels = [label for label in screen.query("#common .label") if label.size.width]
            assert len(labels) > 5, type
            assert [str(label.render()) for label in labels if label.size.height != 1] == [], type


async def test_a_contract_job_is_submitted_by_keys_alone_and_names_no_dataset(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await advised(pilot)
        await pilot.press("shift+tab", "shift+tab", "shift+tab", "enter", "end", "enter")
        await sees(pilot, "New run: contract makes a model smaller", "✓ can be queued")
        assert not app.screen.query_one("#field-dataset").display
        await sees(pilot, "$ fusion-tui submit contract --model starter")
        assert "--dataset" not in screen_text(app)
        await pilot.press("tab", "tab", "ctrl+u", *"0.25")
        await sees(pilot, "--set contraction_ratio=0.25", "✓ can be queued")
        await pilot.press("f3")
        (file,) = await until(pilot, lambda: list((service.home.root / "requests").glob("starter-contract-*.json")))
        assert json.loads(file.read_text()) == {
            "type": "contract",
            "base_model_id": "starter",
            "hyperparams": {"contraction_ratio": 0.25},
        }
        await pilot.press("f2")
        await until(pilot, service.jobs)
        (job,) = service.jobs()
        assert (job.type, job.dataset_id, job.hyperparams["contraction_ratio"]) == ("contract", None, 0.25)


async def test_what_the_model_rules_out_stands_beside_its_field(service: Service) -> None:
    own = base_model(id="old-1", name="an-old-one", family="gpt2", path="/nowhere")
    put(service, own)
    app = open_app(service)
    async with app.run_test(notifications=True, size=LARGE) as pilot:
        await pilot.press("n")
        await sees(pilot, "✓ can be queued")
        await choose(pilot, "model", STARTER["model"])
        screen = await choose_type(pilot, "contract")
        screen.query_one("#field-num_layers_to_contract Input", Input).value = "6"
        await sees(pilot, "✗ the model has 5 layers, so 6 cannot be contracted", "✗ 1 field to mend")
        await choose_type(pilot, "train")
        await choose(pilot, "model", "old-1")
        await sees(pilot, "✗ a model of the type 'gpt2' cannot be grown yet; these can: llama, mistral")
        await choose_type(pilot, "finetune")
        await sees(pilot, "submit finetune --model an-old-one --dataset starter", "✓ can be queued")


async def test_settings_that_stay_open_are_shown_as_they_would_run(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("n")
        await advised(pilot)
        await choose(pilot, "model", STARTER["model"])
        await choose_type(pilot, "contract")
        await sees(pilot, "free: fits with num_layers_to_contract 5")
