"""Models: the tree, one in full, importing with an end by key, deleting what nothing needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Select

from engine.service import BaseModel, Model, Service
from fusion_tui.screens import catalogue
from fusion_tui.screens.add_model import AddModel, name_from
from fusion_tui.screens.confirm import Confirm
from fusion_tui.screens.models import ModelsScreen
from fusion_tui.screens.new import NewScreen
from fusion_tui.screens.run import RunScreen
from fusion_tui.screens.runs import RunsScreen
from fusion_tui.widgets.models_table import ModelsTable
from fusion_tui.widgets.models_tree import tree
from store import catalog
from tests.ui.driving import LARGE, SMALL, Runs, open_app, screen_text, sees, until


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the screen look again soon, so that no test waits for its two seconds."""
    monkeypatch.setattr(catalogue, "LOOK_EVERY_S", 0.3)


def add_own(service: Service, name: str, of: str, *, job: str | None = None, created: float = 2.0) -> Model:
    """Put a model that a run made of another into the catalogue; its folder has one file of 3,000 bytes."""
    folder = service.home.model(f"{name}-id")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0" * 3000)
    model = Model(f"{name}-id", name, 0, "llama", 1_700_000, "bf16", of, job, str(folder), "ready", created)
    with service.store.write() as db:
        added = catalog.add_model(db, model)
    assert added
    return added


async def go(pilot: Pilot[Any], count: int) -> ModelsTable:
    """Go to the list, wait for so many models, and return it."""
    await pilot.press("3")
    await until(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen))
    table = pilot.app.screen.query_one(ModelsTable)
    await until(pilot, lambda: table.row_count == count, what=f"{count} models")
    return table


async def give(pilot: Pilot[Any], source: Path) -> None:
    """Ask for a model to be imported from a path."""
    if not isinstance(pilot.app.screen, AddModel):
        await pilot.press("a")
        await until(pilot, lambda: isinstance(pilot.app.screen, AddModel))
    pilot.app.screen.query_one("#source", Input).value = str(source)
    await until(pilot, lambda: pilot.app.screen.query_one("#name", Input).value)
    await pilot.press("enter")


def place(table: ModelsTable, model_id: str) -> None:
    """Put the cursor on a model."""
    table.move_cursor(row=table.get_row_index(model_id))


async def test_models_stand_below_what_they_were_made_from_and_the_cursor_stays(service: Service, runs: Runs) -> None:
    job = runs.move(runs.queue("tuned-run"), "cancelled")
    first = add_own(service, "tuned", "model-1", job=job.id)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        table = await go(pilot, 3)
        place(table, first.id)
        await sees(pilot, "tuned-run (finetune)", "└ tuned", "own", "built in", "imported", "1.7M", "3.0 kB", "gone")
        second = add_own(service, "again", first.id, created=3.0)  # by a run that ends meanwhile
        await until(pilot, lambda: table.row_count == 4)
        assert table.selected == first.id
        await sees(pilot, "became again")
        lines = screen_text(app).splitlines()
        tuned, again = (next(line for line in lines if f"└ {name} " in line) for name in ("tuned", "again"))
        assert again.index("└") > tuned.index("└")
        assert lines.index(again) == lines.index(tuned) + 1
        await pilot.resize_terminal(*LARGE)
        place(table, second.id)
        await sees(
            pilot, "family", "again ← tuned ← starter", "a run that was deleted", "1,700,000 parameters", second.id
        )
        place(table, first.id)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))


def test_a_tree_holds_every_model_once_though_its_rows_point_in_a_circle() -> None:
    def own(name: str, of: str) -> Model:
        return Model(name, name, 1, "llama", 1, "bf16", of, None, "/nowhere", "ready", 1.0)

    base = BaseModel("base", "llama", "base", 1, 1, "bf16", "/nowhere", "test", 1.0)
    found = tree([base], [own("a", "b"), own("b", "a"), own("orphan", "removed"), own("child", "base")], {}, {})
    assert [branch.model.id for branch in found] == ["base", "child", "orphan", "a", "b"]
    assert found[1].lines == "└ "


def test_a_tree_of_a_thousand_generations_leaves_room_for_names() -> None:
    own = [
        Model(f"m{n}", f"m{n}", 1, "llama", 1, "bf16", f"m{n - 1}", None, "/nowhere", "ready", n)
        for n in range(1, 1500)
    ]
    base = BaseModel("m0", "llama", "m0", 1, 1, "bf16", "/nowhere", "test", 1.0)
    found = tree([base], own[::-1], {}, {})
    assert [branch.model.name for branch in found] == [f"m{n}" for n in range(1500)]
    assert max(len(branch.lines) for branch in found) == 12


async def test_an_empty_list_says_what_to_press_and_a_folder_is_imported(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    starter = next(model for model in service.base_models() if model.source == "built in")
    shutil.copytree(starter.path, folder)
    for model in service.base_models():
        service.remove_model(model.id)
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        table = await go(pilot, 0)
        await sees(pilot, "No models yet", "Press a to add one")
        await pilot.press("a", "enter")
        await sees(pilot, "It needs both: where the model is, and a name")
        (tmp_path / "empty").mkdir()
        await give(pilot, tmp_path / "empty")
        await sees(pilot, "config.json,", "Hugging Face")
        await give(pilot, tmp_path / "none.gguf")
        await sees(pilot, "gguf does not exist")
        assert app.screen.query_one("#name", Input).value == "none"
        assert service.base_models() == []
        await give(pilot, folder)
        await until(pilot, lambda: table.row_count == 1)
        await sees(pilot, "my-model v1 is added")
        assert service.model("my-model").path == str(folder)


async def test_a_conversion_that_is_under_way_is_ended_by_a_key(service: Service, tmp_path: Path) -> None:
    weights = tmp_path / "slow.gguf"
    weights.write_bytes(b"GGUF")
    interpreter = tmp_path / "python"  # stands for one that converts for long
    interpreter.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    interpreter.chmod(0o755)
    object.__setattr__(service.settings, "trainer_python", str(interpreter))
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await go(pilot, 2)
        await give(pilot, weights)
        await sees(pilot, "converting slow.gguf", "Esc ends it")
        await until(pilot, lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        child = Path("/proc") / (tmp_path / "pid").read_text().strip()
        await until(pilot, lambda: not child.exists())
        assert len(service.base_models()) == 2
        assert list((service.home.root / "models").iterdir()) == []


async def test_deleting_names_what_depends_on_it_and_does_nothing_by_default(service: Service, runs: Runs) -> None:
    tuned = add_own(service, "tuned", "model-1")
    add_own(service, "child", tuned.id)
    runs.queue("waiting-run")
    ended = runs.submit("finetune", "ended", dataset_id="data-1", base_model_id=tuned.id, hyperparams={"steps": 4})
    runs.move(ended, "cancelled")
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        table = await go(pilot, 4)
        place(table, "model-1")
        await pilot.press("D")
        await sees(pilot, "starter is in use by waiting-run")
        assert isinstance(app.screen, ModelsScreen)
        place(table, tuned.id)
        await pilot.press("D")
        await sees(pilot, "Delete tuned v1?", "Its files go too", "Made from it: child", "could not be retried: ended")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        assert service.model(tuned.id)
        await pilot.press("D")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await sees(pilot, "tuned v1 is deleted")
        await until(pilot, lambda: table.row_count == 3)
        assert not Path(tuned.path).exists()
        await sees(pilot, "child")  # which has no origin any more, and is still there
        place(table, "child-id")
        await sees(pilot, "child ← (removed)")


async def test_keys_lead_on_and_places_do_not_pile_up(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await pilot.press("4", "2")
        built_in = next(model.id for model in service.base_models() if model.source == "built in")
        place(await go(pilot, 2), built_in)  # which the form would not choose by itself
        assert len(app.screen_stack) == 2
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, NewScreen))
        await until(pilot, lambda: app.screen.query_one("#field-model Select", Select).value == built_in)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


async def test_a_catalogue_that_cannot_be_read_is_said_with_the_remedy_and_the_list_stays(service: Service) -> None:
    app = open_app(service)
    async with app.run_test(notifications=True, size=SMALL) as pilot:
        await go(pilot, 2)
        with service.store.write() as db:
            db.conn.execute("ALTER TABLE base_models RENAME TO away")
        await sees(pilot, "✗ The job store", "no such table: base_models")
        assert pilot.app.screen.query_one(ModelsTable).row_count == 2
        with service.store.write() as db:
            db.conn.execute("ALTER TABLE away RENAME TO base_models")
        await until(pilot, lambda: "no such table" not in screen_text(app))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/models/Llama 3/", "Llama-3"),
        ("~/a b.Q4_K_M.gguf", "a-b.Q4_K_M"),
        ("owner/model-7B", "model-7B"),
        ("../..", ""),
        ("", ""),
        ("/模型", ""),
        ("x" * 300, "x" * 100),
    ],
)
def test_a_name_is_made_of_what_a_source_is_called(source: str, name: str) -> None:
    assert name_from(source) == name
