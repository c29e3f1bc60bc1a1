"""The two lines above every list: the devices with their load; queue, API address and supervisor.

What is wrong with the store stands below in lines of its own, as many as its words need: the remedy is at their end.
"""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from engine.resources import GIB
from engine.service import Device, states
from fusion_tui import format as fmt
from fusion_tui.messages import Overview


class Strip(Static):
    """The state of the machine and of the queue, in two lines."""

    def show_overview(self, overview: Overview) -> None:
        """Show the machine."""
        if not overview.loaded and not overview.error:
            self.update(Text("reading the store…", style="dim"), layout=False)
            return
        devices = Text("   ").join([_device(device) for device in overview.devices]) or Text("…", style="dim")
        lines = [devices, _queue(overview)]
        self.update(Text("\n").join(lines), layout=False)  # laying out would paint the whole screen


class Trouble(Static):
    """Why what is shown may be old; takes no room where nothing is wrong."""

    _error = ""

    def show_overview(self, overview: Overview) -> None:
        """Show an error of the poller, or none."""
        if overview.error != self._error:
            self._error = overview.error
            words = f"✗ {fmt.clean(overview.error)}{' (Below: as it was read last.)' if overview.loaded else ''}"
            self.update(Text(words, style="bold red") if overview.error else "")
            self.display = bool(overview.error)


def _device(device: Device) -> Text:
    memory = f"{device.memory_used / GIB:.1f}/{device.memory_total / GIB:.1f} GB"
    sensors = [
        f"{device.utilisation:.0f}%" if device.utilisation is not None else "",
        f"{device.temperature:.0f}°C" if device.temperature is not None else "",
        f"{device.power:.0f} W" if device.power is not None else "",
    ]
    return Text.assemble((fmt.clean(device.label), "bold"), f" {memory} ", " ".join(filter(None, sensors)))


def _queue(overview: Overview) -> Text:
    if not overview.loaded:
        return _supervision(overview)  # of runs nothing is known
    queued = overview.counts.get(states.QUEUED, 0) + overview.counts.get(states.PREEMPTED, 0)
    working = sum(overview.counts.get(name, 0) for name in states.ACTIVE) - overview.lost
    hidden = sum(overview.counts.values()) - len(overview.jobs)
    parts = [Text(f"{working} running, {queued} queued"), _supervision(overview)]
    if overview.lost:
        parts.insert(1, Text(f"▲ {overview.lost} lost?", style="bold red"))
    if hidden > 0:
        parts.append(Text(f"newest {len(overview.jobs)} shown", style="dim"))
    return Text(" · ").join(parts)


def _supervision(overview: Overview) -> Text:
    supervision = overview.supervision
    if supervision is None:
        return Text("looking for the supervisor…", style="dim")
    if supervision.read_only:
        runs = "a supervisor runs" if supervision.running else "no supervisor runs on this machine"
        return Text.assemble(("▲ read-only: nothing can be changed here", "bold yellow"), f" · {runs}")
    if not supervision.running:
        return Text("▲ no supervisor: press S to start", style="bold yellow")
    return Text(f"API {supervision.url or 'off'} · supervisor runs")
