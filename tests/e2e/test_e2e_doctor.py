"""doctor as a user runs it: on a machine with nothing, beside a supervisor, and after that was killed."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import fields
from pathlib import Path

from engine.doctor.finding import Finding
from engine.paths import Home
from fusion_tui import daemon
from tests.conditions import eventually
from tests.e2e.conftest import Shell


def test_doctor_finds_nothing_wrong_where_nothing_is_yet_and_makes_nothing(shell: Shell, tmp_path: Path) -> None:
    fresh = Shell(tmp_path / "nowhere", shell.port)
    report = fresh.json("doctor")
    assert set(report) == {"version", "home", "errors", "warnings", "findings"}
    assert [finding for finding in report["findings"] if finding["level"] == "error"] == []
    assert (report["errors"], report["home"]) == (0, str(fresh.home))
    assert all(set(finding) == {field.name for field in fields(Finding)} for finding in report["findings"])
    named = {finding["name"] for finding in report["findings"]}
    assert named >= {"python", "store", "disk", "logind", "device", "trainer", "torch", "bitsandbytes"}
    assert not fresh.home.exists()


def test_doctor_tells_who_supervises_and_that_it_was_killed(shell: Shell) -> None:
    # Its own error, and no seconds spent on torch.
    (shell.home / "config.toml").write_text('trainer_python = "/nowhere/python"\n')
    pid = shell.json("serve", "--detach")["pid"]
    seen = {finding["name"]: finding for finding in shell.json("doctor", code=1)["findings"]}
    assert seen["supervisor"] == {
        "name": "supervisor",
        "level": "ok",
        "seen": f"process {pid} carries out the queue",
        "remedy": "",
    }
    assert (seen["api"]["level"], seen["port"]["seen"]) == ("ok", f"{shell.port} is the supervisor's")

    os.kill(pid, signal.SIGKILL)
    eventually(lambda: daemon.running(Home(shell.home)) is None)
    lines = shell.run("doctor", code=1).stdout.splitlines()
    [number] = [index for index, line in enumerate(lines) if line.startswith("▲ warning  supervisor")]
    assert f"process {pid}, which is gone" in lines[number]
    assert lines[number + 1].strip().startswith("→ fusion-tui serve --detach starts one")
    assert "errors, " in lines[-1]
    told = [line for line in lines[:-2] if not line.strip().startswith("→")]
    assert all(re.fullmatch(r"[✓▲✗] (ok|warning|error) {2,}\S+ {2,}\S.*", line) for line in told)
    assert {len(re.match(r". \S+ +\S+ +", line).group()) for line in told} == {25}  # type: ignore[union-attr]
