"""The first thing a user does: the demo, on the starter model and data that ship with the package."""

from __future__ import annotations

from engine.paths import ASSETS
from tests.e2e.conftest import Shell


def test_the_demo_trains_the_starter_model_and_its_perplexity_falls_by_a_fifth(shell: Shell) -> None:
    done = shell.run("demo")
    assert "step 150/150" in done.stderr
    assert "perplexity" in done.stdout
    assert "before " in done.stdout
    assert "after " in done.stdout
    job = shell.json("show", "demo")
    result = shell.json("result", job["id"])
    assert job["status"] == "completed"
    assert result["ppl_final"] < 0.8 * result["ppl_baseline"]
    assert result["sample_before"] != result["sample_after"]
    assert result["rows_trained"] + result["rows_held_out"] == 2000


def test_the_assets_are_small_and_carry_no_paths_of_the_machine_that_made_them() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15_000_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (ASSETS / "starter-data" / "NOTICE").read_text()
    for path in files:
        if path.suffix == ".json":
            assert "_name_or_path" not in path.read_text()
