"""What the screens with a chart have in common: the keys that change its look, and writing it to files.

The rule: a file is written where the user says, and none that is there is touched.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fusion_tui import export
from fusion_tui import format as fmt
from fusion_tui.screens.job_screen import FusionScreen
from fusion_tui.screens.where import Where
from fusion_tui.widgets.chart import Chart
from fusion_tui.widgets.curve import Look

PICTURE = (120, 36)  # cells
COPIED = 500  # rows at most, some 60 kB as OSC 52 sends them: terminals drop what is longer than 75 to 100 kB
MANY = 20_000  # rows that take so long to write that it is said beforehand


class ChartScreen(FusionScreen):
    """A screen with one chart that keys act on."""

    folder = ""  # that was written to last; none yet: the current one

    def chart(self) -> Chart:
        """Return the chart."""
        raise NotImplementedError

    def chart_name(self) -> str:
        """Return what files with the chart are called after."""
        raise NotImplementedError

    def _look(self, look: Look) -> None:
        self.chart().set_look(look)

    def action_x_axis(self) -> None:
        """Go on to the next x axis."""
        self._look(self.chart().look.next_axis())

    def action_log_y(self) -> None:
        """Turn the logarithmic axis on or off."""
        self._look(replace(self.chart().look, log_y=not self.chart().look.log_y))

    def action_zoom(self) -> None:
        """Look at less of the curve's end, or at all of it again."""
        self._look(self.chart().look.nearer())

    def action_smooth(self, change: int) -> None:
        """Smooth more, less, or (0) not at all."""
        self._look(self.chart().look.smoother(change))

    def action_copy(self) -> None:
        """Send the chart's numbers to the terminal's clipboard; whether it takes them, no terminal says."""
        sheet = self.chart().sheet()
        if sheet is None:
            self.notify("There is nothing to copy yet: the chart is empty.")
        elif sheet.size > COPIED:
            self.notify(f"Not copied: {sheet.size} rows are too many. w writes a file.", severity="warning")
        else:
            self.app.copy_to_clipboard(export.csv_text(sheet))
            self.notify("Sent to the clipboard by OSC 52, which not every terminal takes; w writes a file.")

    def action_export(self) -> None:
        """Ask for the folder, then write the chart as it is drawn now, and its numbers."""
        sheet, name = self.chart().sheet(), self.chart_name()
        if sheet is None:
            self.notify("There is nothing to write yet: the chart is empty.")
            return
        picture = self.chart().picture(*PICTURE)

        def write(folder: str | None) -> None:
            if folder is None:
                return
            ChartScreen.folder = folder
            if sheet.size > MANY:
                self.notify(f"Writing {fmt.count(sheet.size)} rows…", timeout=2)
            self.fusion.act(lambda: self._write(folder, name, sheet, export.svg(picture, name, *PICTURE)))

        self.app.push_screen(Where(ChartScreen.folder or str(Path.cwd())), write)

    def _write(self, folder: str, name: str, sheet: export.Sheet, svg: str) -> str:
        numbers, picture = export.write(folder, name, sheet, svg)
        return f"Written: {numbers} and {picture.name} beside it."
