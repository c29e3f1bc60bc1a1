"""How long until the app shows something: process start to first painted frame, in a real terminal of 80 × 24.

Paired in one run with the smallest possible Textual app, so that what is ours can be told from what is Textual's.

    python -m bench.startup [--runs 7] [--json]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from engine.paths import Home
from fusion_tui import daemon

BARE = "from textual.app import App\nfrom textual.widgets import Label\n" + (
    "class Bare(App):\n    def compose(self):\n        yield Label('PAINTED')\nBare().run()\n"
)


def first_paint(argv: list[str], marker: bytes, environment: dict[str, str]) -> float:
    """Return the seconds from starting `argv` in a terminal until `marker` was drawn."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    started = time.perf_counter()
    process = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, **environment}, start_new_session=True
    )
    os.close(slave)
    seen = b""
    while marker not in seen:
        seen += os.read(master, 65536)
    elapsed = time.perf_counter() - started
    process.send_signal(signal.SIGTERM)
    while process.poll() is None:
        try:
            os.read(master, 65536)
        except OSError:
            break
    process.wait()
    os.close(master)
    return elapsed


def median_of(runs: int, measure: object) -> dict[str, float]:
    """Return median, least and most of `runs` measurements."""
    times = [measure() for _ in range(runs)]  # type: ignore[operator]
    return {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Measure the bare app, ours on a first start, ours with a supervisor up, and a command."""
    app = [sys.executable, "-m", "fusion_tui.cli"]
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "warm")
        environment = {"FUSION_HOME": str(home.root), "FUSION_PORT": "7999", "TERM": "xterm-256color"}
        daemon.start_in_background(home, ["--port", "7999"])

        def first_start() -> float:
            fresh = Home(Path(tempfile.mkdtemp(dir=folder)) / "home")
            elapsed = first_paint(app, b"New run", {**environment, "FUSION_HOME": str(fresh.root)})
            daemon.stop_running(fresh)
            return elapsed

        def command() -> float:
            started = time.perf_counter()
            subprocess.run([*app, "jobs", "--json"], env={**os.environ, **environment}, capture_output=True, check=True)
            return time.perf_counter() - started

        bare = [sys.executable, "-c", BARE]
        results["bare Textual app"] = median_of(runs, lambda: first_paint(bare, b"PAINTED", environment))
        # As most users have it: no port set, nothing in the settings file.
        plain = {key: value for key, value in environment.items() if key != "FUSION_PORT"}
        results["fusion-tui, supervisor up"] = median_of(runs, lambda: first_paint(app, b"New run", plain))
        results["fusion-tui, first start"] = median_of(runs, first_start)
        results["fusion-tui jobs --json"] = median_of(runs, command)
        daemon.stop_running(home)
    return results


def main() -> None:
    """Print the table, or with --json the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results = measure(asked.runs)
    if asked.json:
        machine = (
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        print(json.dumps({"machine": machine, "runs": asked.runs, "results": results}, indent=1))
        return
    bare = results["bare Textual app"]["median_s"]
    print(f"{'what':<28}{'median':>9}{'min':>9}{'max':>9}{'× bare':>9}")
    for name, figures in results.items():
        times = "".join(f"{figures[key]:>8.2f}s" for key in ("median_s", "min_s", "max_s"))
        print(f"{name:<28}{times}{figures['median_s'] / bare:>9.2f}")


if __name__ == "__main__":
    main()
