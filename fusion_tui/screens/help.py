"""Every key, from the one action registry; those of the screen before come first."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Footer, Static

from fusion_tui.actions import SCOPES, bindings
from fusion_tui.screens.job_screen import FusionScreen
from fusion_tui.widgets.facts import grid


class HelpText(VerticalScroll):
    """The page of keys."""

    BINDINGS = bindings("page")


class HelpScreen(FusionScreen):
    """The keys."""

    AUTO_FOCUS = "HelpText"
    SCOPE = "help"

    def __init__(self, scope: str = "app") -> None:
        super().__init__()
        self._scope = scope

    def compose(self) -> ComposeResult:
        """One block per place."""
        scopes = sorted(SCOPES, key=lambda scope: scope != self._scope)
        with HelpText():
            yield Static(Text("Keys  (Esc goes back; Ctrl+P finds an action by its name)", style="bold"))
            yield Static(Group(*(part for scope in scopes for part in self._block(scope))))
        yield Footer(compact=True, show_command_palette=False)

    def _block(self, scope: str) -> list[RenderableType]:
        actions = self.fusion.keymap.of_scope(scope)
        rows = [(Text(f"{action.key_text:<14}", style="bold"), action.tooltip) for action in actions]
        return [Text(f"\n{SCOPES[scope]}", style="bold cyan"), grid(rows)]
