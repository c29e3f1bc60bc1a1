"""The row of charts a run has: loss, lr, grad norm, tok/s, memory; and its layers, where something is known of them."""

from __future__ import annotations

from textual.widgets import Tab, Tabs

from fusion_tui.messages import RunView
from fusion_tui.widgets.curve import LAYERS, METRICS
from fusion_tui.widgets.shaping import layers_of


class MetricTabs(Tabs):
    """One tab per chart that the run has something for; the tab's id is the metric's name, or `layers`."""

    def __init__(self, *, id: str | None = None) -> None:
        metrics = [Tab(title, id=metric) for metric, title in METRICS.items()]
        super().__init__(*metrics, Tab("layers", id=LAYERS, classes="-hidden"), id=id)
        self.names = tuple(METRICS)

    def show_run(self, view: RunView) -> None:
        """Show the tabs of a run: one that makes no steps has its layers alone."""
        steps = tuple(METRICS) if view.job.total_steps else ()
        names = (*steps, LAYERS) if not steps or layers_of(view) else steps
        if names == self.names:
            return
        for name in set(names) - set(self.names):
            self.show(name)
        if self.active not in names:
            self.active = names[0]
        for name in set(self.names) - set(names):
            self.hide(name)
        self.names = names

    def next_metric(self) -> None:
        """Go to the next chart, from the last to the first."""
        place = self.names.index(self.active) if self.active in self.names else -1
        self.active = self.names[(place + 1) % len(self.names)]
