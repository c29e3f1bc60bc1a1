"""A run's log lines.

The rule: what a worker printed is shown as text: control sequences are gone, markup is not read.
"""

from __future__ import annotations

from rich.text import Text
from textual import events
from textual.widgets import RichLog

from engine.service import LogLine
from fusion_tui import format as fmt
from fusion_tui.actions import bindings
from fusion_tui.messages import LOG_LINES, RunView

# Lines laid out when a log comes into sight or changes its width: 500 take about 50 ms.
FIRST_LINES = 500


class LogTail(RichLog):
    """The newest lines, following or standing still. Scrolling up stands still, scrolling to the end follows."""

    BINDINGS = bindings("page")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, max_lines=LOG_LINES, wrap=True, markup=False, highlight=False, min_width=1)
        self._view: RunView | None = None
        self._laid_out: tuple[str, int] = ("", 0)
        self._last = 0

    def show_run(self, view: RunView) -> None:
        """Append the lines that are not here yet."""
        self._view = view
        self._append()

    def on_resize(self, _: events.Resize) -> None:
        """The box came into sight or has another width: wrap the lines anew."""
        self._append()

    def _append(self) -> None:
        view, width = self._view, self.size.width
        if view is None or not width:
            return
        if self._laid_out != (view.job.id, width):
            self.clear()
            self._laid_out = (view.job.id, width)
            self._last = view.logs[-1].seq - FIRST_LINES if view.logs else 0
        for line in view.logs:
            if line.seq > self._last:
                self.write(
                    _text(line),
                    width=self.scrollable_content_region.width,
                    scroll_end=self.auto_scroll and self.is_vertical_scroll_end,
                )
        self._last = max(self._last, view.logs[-1].seq if view.logs else 0)

    def toggle_follow(self) -> bool:
        """Follow the newest line, or stop; return which."""
        self.auto_scroll = not self.auto_scroll
        if self.auto_scroll:
            self.scroll_end(animate=False)
        return self.auto_scroll


def _text(line: LogLine) -> Text:
    return Text(fmt.clean(line.text.rstrip("\n")), style="yellow" if line.stream == "stderr" else "")
