"""Draws every screen of the app, at 80 × 24 and 160 × 45, from a real run: the pictures of docs/.

The demo is run in a fresh data folder (or `--home` names one that has runs), then the real app is driven by keys.
Needs rsvg-convert and the font Fira Code (Debian: librsvg2-bin, fonts-firacode).

    python -m tools.pictures docs/pictures [--home DIR] [--only SCREEN ...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from engine import process
from engine.paths import Home
from engine.running import evidence
from engine.service import Service
from engine.settings import Settings
from fusion_tui import daemon
from fusion_tui.app import FusionApp
from store import attempts

SIZES = ((80, 24), (160, 45))
# The keys that lead from home to each screen.
SCREENS = {
    "runs": (),
    "run": ("enter",),
    "result": ("enter", "right", "right", "right", "right"),
    "new": ("n",),
    "datasets": ("2",),
    "mask": ("2", "enter"),
    "help": ("question_mark",),
    "layers": ("enter", "m", "m", "m", "m", "m"),
    "grown": ("enter", "right", "right", "right", "right"),
    "compare": ("space", "j", "space", "c"),
    "lost": (),
}
GROWN = ("layers", "grown", "compare")  # of a run that is made before the first of them: it stands on top then
MASK_SECONDS = 30.0  # the trainer reads the rows: seconds of loading


def draw(svg: str, target: Path) -> None:
    """Write an SVG of a screen as PNG, small enough for a page."""
    # Without this, spaces at the ends of a piece of text are dropped and columns drift.
    spaced = svg.replace("<text ", '<text xml:space="preserve" ')
    command = ["rsvg-convert", "--zoom", "0.8", "-o", str(target)]
    subprocess.run(command, input=spaced.encode(), check=True)


async def shoot(service: Service, name: str, size: tuple[int, int], out: Path) -> None:
    """Open the app at `size`, go to the screen called `name`, and draw it once it stands still."""
    service.home.app_state.unlink(missing_ok=True)  # else it opens where the last one was left
    app = FusionApp(service)
    async with app.run_test(size=size) as pilot:
        await pilot.pause(1.0)
        for key in SCREENS[name]:
            await pilot.press(key)
            await pilot.pause(1.0)
        await pilot.pause(MASK_SECONDS if name == "mask" else 1.5)
        draw(app.export_screenshot(), out / f"{name}-{size[0]}x{size[1]}.png")


def lose_a_run(service: Service) -> None:
    """Begin a run, then kill its supervisor and its worker, so that nobody is left who knows of it."""
    request = {"type": "finetune", "idempotency_key": uuid.uuid4().hex, "base_model_id": "starter"}
    job = service.submit({**request, "dataset_id": "starter", "hyperparams": {"steps": 2000}}).job
    while service.job(job.id).step < 20:
        time.sleep(0.2)
    (attempt,) = attempts.open_attempts(service.store.read())
    for identity in (evidence.supervisor(service.home), evidence.worker(attempt)):
        assert identity is not None
        process.send(identity, signal.SIGKILL)
        while process.is_alive(identity):
            time.sleep(0.05)


def grow_a_run(service: Service) -> None:
    """Grow the starter model, with an ungrown one trained beside it for comparison."""
    settings = {"cycles": 3, "steps_per_cycle": 40, "seq_len": 128, "growth_ratio": 0.5, "compare_ungrown": True}
    request = {"type": "train", "idempotency_key": uuid.uuid4().hex, "base_model_id": "starter", "name": "grow"}
    job = service.submit({**request, "dataset_id": "starter", "hyperparams": settings}).job
    while not (job := service.job(job.id)).finished:
        time.sleep(0.2)
    if job.error:
        raise SystemExit(f"The run that was to be drawn ended otherwise: {job.error}")


def main() -> None:
    """Draw all screens into the folder given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--only", nargs="+", choices=SCREENS, default=list(SCREENS), help="these screens alone")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(asked.home or Path(folder) / "home")
        if asked.home is None:
            environment = {**os.environ, "FUSION_HOME": str(home.root)}
            subprocess.run([sys.executable, "-m", "fusion_tui.cli", "demo"], env=environment, check=True)
        daemon.ensure_running(home)
        service = Service(home, config=Settings(theme="dark"))
        grown = asked.home is not None
        for name in asked.only:
            if name in GROWN and not grown:
                grow_a_run(service)
                grown = True
            if name == "lost":
                lose_a_run(service)
            for size in SIZES:
                asyncio.run(shoot(service, name, size, asked.out))
        service.close()
        if asked.home is None:
            daemon.stop_running(home)


if __name__ == "__main__":
    main()
