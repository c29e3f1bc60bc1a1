"""The row of charts a run has: loss, lr, grad norm, tok/s, memory."""

from __future__ import annotations

from textual.widgets import Tab, Tabs

from fusion_tui.widgets.curve import METRICS


class MetricTabs(Tabs):
    """One tab per metric; the tab's id is the metric's name."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(*(Tab(title, id=metric) for metric, title in METRICS.items()), id=id)

    def next_metric(self) -> None:
        """Go to the next metric, from the last to the first."""
        names = list(METRICS)
        self.active = names[(names.index(self.active) + 1) % len(names)]
