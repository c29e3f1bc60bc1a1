"""The command line says what is wrong, with the remedy and the right exit code, and leaves nothing half done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.paths import Home
from fusion_tui import daemon
from fusion_tui.cli import MODULES
from tests import tiny
from tests.conditions import eventually
from tests.e2e.conftest import Shell

SMALL = ["--set", "steps=5", "--set", "seq_len=64"]


@pytest.fixture(scope="module")
def stocked(shell: Shell, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell with a tiny model and a dataset in its catalogue."""
    shell.run("models", "add", str(tiny_model), "--name", "tiny")
    shell.run("datasets", "add", str(tiny.make_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl")), "--name", "sums")
    return shell


def test_the_starter_pair_is_in_the_catalogue_from_the_first_start(shell: Shell) -> None:
    assert "starter" in {entry["name"] for entry in shell.json("models")}
    starter = next(entry for entry in shell.json("datasets") if entry["name"] == "starter")
    assert starter["status"] == "ready"
    assert shell.json("datasets", "inspect", "starter")["rows"] >= 1900


def test_a_run_can_be_submitted_watched_and_read_in_every_way(stocked: Shell) -> None:
    submitted = stocked.json("submit", "finetune", "--model", "tiny", "--dataset", "sums", "--name", "first", *SMALL)
    assert submitted["status"] == "queued"
    watched = stocked.run("watch", "first")
    assert "perplexity" in watched.stdout
    shown = stocked.json("show", submitted["id"][:8])
    assert (shown["status"], shown["step"]) == ("completed", 5)
    assert [job["name"] for job in stocked.json("jobs", "--status", "completed")] == ["first"]
    assert stocked.json("logs", "first")["lines"]
    assert "rows to train on" in stocked.run("logs", "first", "-f").stdout
    states = [event["payload"].get("to") for event in stocked.json("events", "first") if event["kind"] == "state"]
    assert states[:4] == ["queued", "provisioning", "staging", "running"]
    assert states[-2:] == ["uploading", "completed"]
    assert [checkpoint["step"] for checkpoint in stocked.json("checkpoints", "first")] == [5]
    table = stocked.run("metrics", "first", "--csv").stdout.splitlines()
    assert table[0].startswith("step,phase,ts")
    assert len(table) == 1 + 5 + 2
    assert stocked.json("rm", "first") == {"deleted": submitted["id"]}
    assert stocked.json("jobs") == []
    assert submitted["id"] not in [path.name for path in (stocked.home / "runs").iterdir()]


def test_the_same_key_is_the_same_run_and_another_request_under_it_is_refused(stocked: Shell) -> None:
    request = ["submit", "finetune", "--model", "tiny", "--dataset", "sums", "--key", "once", *SMALL]
    first = stocked.json(*request)
    assert stocked.json(*request)["id"] == first["id"]
    refused = stocked.run(*request, "--set", "lr=0.1", code=1)
    assert "Use a new key" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--model", "tinny", "--dataset", "sums"], 1, "No model is called 'tinny'. Did you mean 'tiny'?"),
        (["--model", "tiny", "--dataset", "nope"], 1, "No dataset is called 'nope'"),
        (["--model", "tiny", "--dataset", "sums", "--set", "lora_rnak=4"], 2, "did you mean 'lora_rank'?"),
        (["--model", "tiny", "--dataset", "sums", "--set", "lr=-1"], 2, "hyperparams.lr"),
        (["--model", "tiny", "--dataset", "sums", "--set", "steps"], 2, "not of the form key=value"),
        (["--dataset", "sums"], 2, "base_model_id: name the model to start from"),
    ],
)
def test_a_bad_submit_is_refused_in_words(stocked: Shell, arguments: list[str], code: int, says: str) -> None:
    before = [job["id"] for job in stocked.json("jobs")]
    assert says in stocked.run("submit", "finetune", *arguments, code=code).stderr
    assert [job["id"] for job in stocked.json("jobs")] == before


def test_an_unknown_type_and_an_unknown_command_name_the_nearest(stocked: Shell) -> None:
    said = stocked.run("submit", "finetun", "--model", "tiny", "--dataset", "sums", code=2).stderr
    assert "did you mean 'finetune'?" in said
    assert "Did you mean 'submit'?" in stocked.run("submitt", code=2).stderr


def test_a_broken_line_is_named_and_nothing_is_registered(stocked: Shell, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": "fine"}\n{"text": oops}\n')
    before = sorted((stocked.home / "datasets").iterdir())
    assert "line 3: is not valid JSON" in stocked.run("datasets", "add", str(broken), "--name", "b", code=1).stderr
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    assert "has no rows" in stocked.run("datasets", "add", str(empty), "--name", "b", code=1).stderr
    assert "b" not in {entry["name"] for entry in stocked.json("datasets")}
    assert sorted((stocked.home / "datasets").iterdir()) == before


def test_what_is_no_model_is_refused_and_nothing_is_left(stocked: Shell, tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"GGUF but not really")
    before = sorted((stocked.home / "models").iterdir())
    assert "could not be converted" in stocked.run("models", "add", str(fake), "--name", "x", code=1).stderr
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "no config.json" in stocked.run("models", "add", str(folder), "--name", "x", code=1).stderr
    assert sorted((stocked.home / "models").iterdir()) == before


def test_a_hub_model_is_found_in_the_local_cache(stocked: Shell, tiny_model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--lab--small" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_model)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    environment = {**stocked.environment, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fusion_tui.cli", "models", "add", "lab/small", "--name", "fromhub"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    missing = subprocess.run(
        [*command[:-3], "lab/absent", "--name", "y"], env=environment, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1
    assert "could not be downloaded" in missing.stderr


def test_without_a_terminal_the_app_refuses_with_a_hint(stocked: Shell) -> None:
    assert "needs a terminal" in stocked.run(code=1).stderr


def test_a_second_supervisor_and_a_taken_port_are_refused_in_words(stocked: Shell, tmp_path: Path) -> None:
    info = eventually(lambda: daemon.running(Home(stocked.home)), what="the supervisor")
    said = stocked.run("serve", code=1).stderr
    assert f"pid {info.identity.pid}" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other = Shell(tmp_path / "other", taken.getsockname()[1])
        assert "in use" in other.run("serve", code=1).stderr
    assert daemon.running(Home(other.home)) is None


def test_serve_ends_with_a_signal_and_leaves_no_trace(stocked: Shell, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other = Shell(tmp_path / "third", probe.getsockname()[1])
    command = [sys.executable, "-m", "fusion_tui.cli", "serve"]
    process = subprocess.Popen(command, env=other.environment, stderr=subprocess.PIPE, text=True)
    eventually(lambda: daemon.running(Home(other.home)), what="serve")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert not Home(other.home).supervisor_info.exists()


def test_keys_are_listed_without_their_secret(stocked: Shell) -> None:
    token = stocked.run("token").stdout.strip()
    assert token.startswith("fus_")
    assert token not in stocked.run("keys", "--json").stdout
    assert oct((stocked.home / "token").stat().st_mode & 0o777) == "0o600"


def test_settings_with_an_unknown_key_name_the_nearest(stocked: Shell, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("usd_per_gpu_huor = 2.5\n")
    environment = {**os.environ, "FUSION_HOME": str(tmp_path / "h"), "FUSION_CONFIG": str(config)}
    command = [sys.executable, "-m", "fusion_tui.cli", "jobs"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Did you mean 'usd_per_gpu_hour'?" in done.stderr


@pytest.mark.parametrize("command", sorted(MODULES))
def test_every_command_explains_itself(shell: Shell, command: str) -> None:
    text = shell.run(command, "--help").stdout
    assert "Usage" in text
    assert "--json" in text


def test_reading_commands_print_one_json_document(stocked: Shell) -> None:
    for command in (["jobs"], ["models"], ["datasets"], ["keys"]):
        assert json.loads(stocked.run(*command, "--json").stdout) is not None
