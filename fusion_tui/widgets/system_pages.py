"""The pages of the System screen, each drawn from what was seen of it.

The rule: pure functions of their arguments; of an API key no page can show a secret, for none is ever read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from engine.resources import GIB, size_text
from engine.service import Device, Disk, Key
from engine.settings import Setting
from fusion_tui import format as fmt
from fusion_tui.messages import Overview
from fusion_tui.widgets.facts import grid

if TYPE_CHECKING:
    from engine.doctor.finding import Finding
    from engine.running.workers import Process, Worker

BAR = 20  # cells
LEVELS = {"ok": ("✓", "green"), "warning": ("▲", "yellow"), "error": ("✗", "bold red")}
DOCTOR = """Not looked yet.

Press d: doctor looks at Python, settings, data folder, disk, store, supervisor, port, workers, catalogue,
checkpoints, device and the training interpreter. It takes seconds and changes nothing."""


@dataclass(frozen=True)
class Seen:
    """What a look found: the supervisor's process, the workers that live, the API keys; `error` where it failed."""

    supervisor: Process | None = None
    workers: tuple[Worker, ...] = ()
    keys: tuple[Key, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Examination:
    """What doctor has found so far, what it is at (empty: it is over), and whether it began, or was ended by a key."""

    findings: tuple[Finding, ...] = ()
    at: str = ""
    begun: bool = False
    ended: bool = False


def machine(overview: Overview, seen: Seen, disk: Disk | None, home: str, now: float) -> RenderableType:
    """Return devices, supervisor, workers and disk."""
    parts: list[RenderableType] = [
        *_block("Devices", _devices(overview.devices)),
        *_block("Supervisor", _supervisor(overview, seen, now)),
        *_block("Workers", _workers(seen.workers, now)),
        *_block("Disk", _disk(disk, home)),
    ]
    if seen.error:
        parts.insert(0, Text(f"✗ {fmt.clean(seen.error)}", style="bold red"))
    return Group(*parts)


def _block(title: str, page: RenderableType) -> tuple[RenderableType, ...]:
    return Text(title, style="bold cyan"), page, Text()


def _devices(devices: Sequence[Device]) -> RenderableType:
    if not devices:
        return Text("looking…", style="dim")
    return grid([_device(device) for device in devices])


def _device(device: Device) -> tuple[str, ...]:
    share = device.memory_used / device.memory_total if device.memory_total else 0.0
    sensors = [
        f"{device.utilisation:.0f} % busy" if device.utilisation is not None else "",
        f"{device.temperature:.0f} °C" if device.temperature is not None else "",
        f"{device.power:.0f} W" if device.power is not None else "",
    ]
    memory = f"{device.memory_used / GIB:.1f} of {device.memory_total / GIB:.1f} GB"  # as the strip has it
    label = f"{fmt.clean(device.label)} ({device.name})"
    return label, f"{fmt.bar(share, BAR)} {memory}", " · ".join(filter(None, sensors))


def _supervisor(overview: Overview, seen: Seen, now: float) -> RenderableType:
    supervision = overview.supervision
    if supervision is None:
        return Text("looking…", style="dim")
    if not supervision.running:
        end = "nothing can be changed here" if supervision.read_only else "press S to start it"
        return Text(f"▲ none runs on this machine: queued runs wait; {end}", style="yellow")
    process = seen.supervisor
    words = f"pid {process.pid}, {size_text(process.memory)}, {_since(process.since, now)}" if process else "looking…"
    url = supervision.url
    return grid(
        [
            ("process", words),
            ("API", f"{url} (its documentation: {url}/docs)" if url else "none: its port is in use"),
            ("", "s stops it; runs at work go on, and the next one takes them up"),
        ]
    )


def _since(moment: float, now: float) -> str:
    return f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(moment))} ({fmt.duration(now - moment)})"


def _workers(workers: Iterable[Worker], now: float) -> RenderableType:
    rows = [
        (
            str(worker.process.pid),
            fmt.clean(worker.job),
            worker.device,
            size_text(worker.process.memory),
            size_text(worker.on_card) if worker.on_card else "–",
            fmt.duration(now - worker.process.since),
        )
        for worker in workers
    ]
    if not rows:
        return Text("none: no run is at work", style="dim")
    return grid(rows, ("pid", "run", "device", "memory", "on the card", "for"))


def _disk(disk: Disk | None, home: str) -> RenderableType:
    if disk is None:
        return Text("counting…", style="dim")
    share = 1 - disk.free / disk.total if disk.total else 0.0
    ranked = sorted(disk.parts.items(), key=lambda part: -part[1])
    rows = [
        ("data folder", fmt.clean(home)),
        ("disk", f"{fmt.bar(share, BAR)} {size_text(disk.free)} free of {size_text(disk.total)}"),
        ("taken here", f"{size_text(disk.used)}{'' if disk.whole else ', still counting…'}"),
        *((f"  {part}", size_text(size)) for part, size in ranked),
    ]
    return grid(rows)


def settings(found: Sequence[Setting], path: str, there: bool, error: str) -> RenderableType:
    """Return every setting; `error` says why the file cannot be used."""
    state = "" if there else " (not there yet: every setting has its default)"
    head = Text(f"{fmt.clean(path)}{state}\ne edits it, u reads it again", style="dim")
    rows = [(one.name, _changed(one, _value(one.value)), one.source, _default(one)) for one in found]
    parts: list[RenderableType] = [head, Text(), grid(rows, ("setting", "value", "from", "default"))]
    if error:
        words = f"✗ {fmt.clean(error)} What stands below is what was read before."
        parts.insert(1, Text(words, style="bold red"))
    return Group(*parts)


def _changed(setting: Setting, words: str) -> Text:
    return Text(words, style="" if setting.source == "default" else "bold")


def _default(setting: Setting) -> str:
    return "" if setting.source == "default" else _value(setting.default)


def _value(value: object) -> str:
    return fmt.clean(value if isinstance(value, str) and value else json.dumps(value, default=list))


def keys(found: Sequence[Key], now: float) -> RenderableType:
    """Return the API keys, without their secrets."""
    if not found:
        return Text("No API keys yet. In a terminal: fusion-tui token, or fusion-tui keys add NAME --scope read")
    rows = [
        (fmt.clean(key.name), ", ".join(key.scopes), f"{_day(key.created_at)} ({fmt.age(now - key.created_at)})")
        for key in found
    ]
    hint = "\nA secret is shown once, when its key is made: fusion-tui keys add NAME --scope read"
    return Group(grid(rows, ("name", "scopes", "created")), Text(hint, style="dim"))


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def doctor(examination: Examination) -> RenderableType:
    """Return what doctor found, worst first, with the remedy below each."""
    if not examination.begun:
        return Text(DOCTOR)
    found = examination.findings
    errors, warnings = (sum(one.level == level for one in found) for level in ("error", "warning"))
    verdict = f"{fmt.plural(errors, 'error')}, {fmt.plural(warnings, 'warning')}" if errors or warnings else "all well"
    at = f" · {fmt.clean(examination.at)}… (x ends it)" if examination.at else ""
    at = " · ended before its end; d looks again" if examination.ended else at
    lines = [Text(f"{fmt.plural(len(found), 'finding')}: {verdict}{at}", style="bold"), Text()]
    order = list(reversed(LEVELS))
    for one in sorted(found, key=lambda finding: order.index(finding.level)):
        lines.append(_finding(one))
        if one.remedy:
            lines.append(Text(f"   → {fmt.clean(one.remedy)}", style="italic"))
    return Group(*lines)


def _finding(found: Finding) -> Text:
    glyph, style = LEVELS[found.level]
    return Text.assemble((f"{glyph} {found.level} ", style), (f"{found.name}: ", "bold"), fmt.clean(found.seen))
