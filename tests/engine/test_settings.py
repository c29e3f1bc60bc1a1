"""The settings file and its one override from the environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine import resources, settings
from engine.errors import EngineError, NoSpace


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("FUSION_CONFIG", str(path))
    monkeypatch.delenv("FUSION_PORT", raising=False)
    return path


def test_without_a_file_the_defaults_hold(file: Path) -> None:
    found = settings.load()
    assert (found.host, found.port, found.usd_per_gpu_hour) == ("127.0.0.1", 7878, 0.0)
    assert (found.trainer_python, found.keep_checkpoints, found.allowed_hosts) == (sys.executable, 2, ())
    assert found.stall_limit_minutes == 0
    assert not file.exists()


def test_what_the_file_says_holds(file: Path) -> None:
    file.write_text('port = 9000\nusd_per_gpu_hour = 2.5\nallowed_hosts = ["box.lan"]\n')
    found = settings.load()
    assert (found.port, found.usd_per_gpu_hour, found.allowed_hosts) == (9000, 2.5, ("box.lan",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "prot: is not a setting. Did you mean 'port'?"),
        ("usd_per_hour = 1", "Did you mean 'usd_per_gpu_hour'?"),
        ("zzz = 1", "zzz: is not a setting."),
        ("port = 0", "port: input should be greater than or equal to 1"),
        ("port = 70000", "port: "),
        ('port = "a"', "port: "),
        ("keep_checkpoints = 1", "keep_checkpoints: "),
        ("usd_per_gpu_hour = -1", "usd_per_gpu_hour: "),
        ("stall_limit_minutes = -5", "stall_limit_minutes: "),
        ('notify_command = "say done"', "notify_command: "),
        ('notify_on = ["done"]', "notify_on: input should be 'finished', 'failed' or 'attention'"),
        ('notify_webhook = "ftp://x/hidden"', "notify_webhook: value error, must be http:// or https://"),
        ('notify_webhook = "https://me:hidden@x/"', "notify_webhook: "),
        ('notify_webhook = "https:///hidden"', "notify_webhook: "),
        ('notify_webhook = "http://x:70000/hidden"', "notify_webhook: "),
        ("max_hours = -1", "max_hours: "),
        ('theme = "blue"', "theme: input should be 'auto', 'dark', 'light' or 'ansi'"),
        ('motion = "none"', "motion: input should be 'auto', 'full' or 'reduced'"),
        ('keys = "x"', "keys: "),
        ("max_usd = nan", "max_usd: "),
        ("port = ", "cannot be read"),
    ],
)
def test_a_fault_is_told_with_the_file_and_the_key(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(EngineError) as caught:
        settings.load()
    assert str(file) in str(caught.value)
    assert words in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_of_a_webhook_only_the_host_is_shown(file: Path) -> None:
    file.write_text('notify_webhook = "https://hooks.example.org/T0/hidden"\nmax_hours = 12\n')
    found = settings.load()
    assert found.notify_webhook.endswith("/T0/hidden")
    shown = {one.name: one.value for one in settings.told(found)}
    assert (shown["notify_webhook"], shown["max_hours"]) == ("https://hooks.example.org/…", 12.0)
    assert "hidden" not in repr(found)


def test_the_port_of_the_environment_wins_and_its_faults_name_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port = 9000")
    monkeypatch.setenv("FUSION_PORT", "9100")
    assert settings.load().port == 9100
    for wrong in ("high", "0", "65536"):
        monkeypatch.setenv("FUSION_PORT", wrong)
        with pytest.raises(EngineError, match=r"^FUSION_PORT: "):
            settings.load()


def test_room_on_the_disk_is_asked_for_with_a_fifth_to_spare(tmp_path: Path) -> None:
    resources.need_space(tmp_path, 1000, "a file")
    free = resources.free_bytes(tmp_path)
    # Between 1/1.2 of what is free and all of it: it would fit, but not with the margin.
    with pytest.raises(NoSpace, match=rf"No disk space for a model: it needs .* is free in {tmp_path}.*FUSION_HOME"):
        resources.need_space(tmp_path, int(free * 0.95), "a model")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_500_000_000, "2.5 GB"), (10**15, "1000.0 TB")]
)
def test_sizes_read_as_people_write_them(count: int, text: str) -> None:
    assert resources.size_text(count) == text
