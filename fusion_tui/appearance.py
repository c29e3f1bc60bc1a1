"""How the app looks and how much of it moves: three themes, terminals with few colours or none, motion over SSH.

The rule: colour only repeats what a sign and a word say, so that each theme, and none, shows every state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from rich.color import Color as RichColor
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter, Monochrome, NoColor
from textual.theme import BUILTIN_THEMES, Theme
from textual.widget import Widget
from textual.widgets import Input, TextArea

from engine.errors import EngineError

THEMES = ("dark", "light", "ansi")
# Reduced motion asks for news once a second: what nobody asks for is not redrawn, and a slow link has room for keys.
REDUCED_INTERVAL_S = 1.0
LEAST_CONTRAST = 3.0  # WCAG 2.2, 1.4.11: of graphics against what lies beside them
COLOURLESS = re.compile(r"^(vt\d+.*|.*-m|.*-mono|lp|emacs)$")
DUMB = ("", "dumb", "unknown")


def themes() -> list[Theme]:
    """Return the app's own themes: two in true colour, one in the sixteen colours that the terminal itself gives."""
    dark, light = BUILTIN_THEMES["textual-dark"], BUILTIN_THEMES["textual-light"]
    ansi = BUILTIN_THEMES["ansi-dark"]
    # What is chosen stands in reverse: that holds on a dark ground, on a light one, and without any colour.
    chosen = {
        "block-cursor-foreground": "ansi_default",
        "block-cursor-background": "ansi_default",
        "block-cursor-text-style": "reverse",
        "block-cursor-blurred-foreground": "ansi_default",
        "block-cursor-blurred-background": "ansi_default",
        "block-cursor-blurred-text-style": "reverse",
        "input-cursor-foreground": "ansi_default",
        "input-cursor-background": "ansi_default",
        "input-cursor-text-style": "reverse",
        "border-blurred": "ansi_bright_black",
    }
    return [
        replace(dark, name="dark"),
        replace(light, name="light"),
        replace(ansi, name="ansi", variables={**ansi.variables, **chosen}),
    ]


def theme_of(setting: str, chosen: str, colours: str | None, *, no_color: bool = False) -> str:
    """Return the theme to begin with: the one chosen in the app, else the setting's; `auto` is ansi where the terminal
    has no more than the `standard` colours (None: nothing is known of it), else dark."""
    if chosen in THEMES:
        return chosen
    if setting in THEMES:
        return setting
    return "ansi" if no_color or colours == "standard" else "dark"


def next_theme(theme: str) -> str:
    """Return the theme after this one."""
    return THEMES[(THEMES.index(theme) + 1) % len(THEMES)] if theme in THEMES else THEMES[0]


# Terminals ---------------------------------------------------------------------------------------------------------


def need_terminal(environ: Mapping[str, str]) -> None:
    """Raise EngineError on a terminal that cannot place a cursor."""
    if (term := environ.get("TERM", "")) in DUMB:
        raise EngineError(
            f"The app needs a terminal that can place its cursor; TERM is '{term}'. "
            "Set TERM to what yours is, like xterm-256color, or use the commands: fusion-tui --help"
        )


def without_colour(environ: Mapping[str, str]) -> bool:
    """Say whether nothing is to be coloured: NO_COLOR is set, or the terminal has no colours."""
    return bool(environ.get("NO_COLOR")) or bool(COLOURLESS.match(environ.get("TERM", "")))


def over_ssh(environ: Mapping[str, str]) -> bool:
    """Say whether the terminal is at the other end of an SSH connection."""
    return bool(environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"))


def motion_of(setting: str, environ: Mapping[str, str]) -> Literal["full", "reduced"]:
    """Return how much may move: what the setting says; `auto` is reduced over SSH."""
    if setting == "auto":
        return "reduced" if over_ssh(environ) else "full"
    return "reduced" if setting == "reduced" else "full"


def hold_still(widget: Widget) -> None:
    """Keep a field's cursor from blinking, which would redraw it twice a second for ever."""
    if isinstance(widget, (Input, TextArea)):
        widget.cursor_blink = False


# Colours on their way to the terminal -------------------------------------------------------------------------------


class SixteenColours(LineFilter):
    """Brings every colour down to the sixteen that the terminal's own palette has."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments in sixteen colours."""
        return [Segment(text, style and _sixteen(style), control) for text, style, control in segments]


class Readable(LineFilter):
    """Darkens the colours of states and charts, which are the same in each theme, until they show on a light ground.

    Lines and blocks stay as they are: frames, and bars beside which their number stands.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments with colours that have the least contrast against their ground."""
        ground = background.rgb
        return [one if not one.style or _drawn(one.text) else _darker(one, ground) for one in segments]


def _drawn(text: str) -> bool:
    return text.isspace() or "\u2500" <= text[:1] <= "\u259f"  # box drawing and block elements


def _darker(segment: Segment, ground: tuple[int, int, int]) -> Segment:
    text, style, control = segment
    return Segment(text, style and _readable(style, ground), control)


@lru_cache(1024)
def _sixteen(style: Style) -> Style:
    low = [one.downgrade(ColorSystem.STANDARD) if one else None for one in (style.color, style.bgcolor)]
    return style if low == [style.color, style.bgcolor] else style + Style.from_color(*low)


@lru_cache(1024)
def _readable(style: Style, around: tuple[int, int, int]) -> Style:
    rgb: tuple[int, ...] | None = style.color.triplet if style.color else None
    ground = style.bgcolor.triplet if style.bgcolor and style.bgcolor.triplet else around
    if rgb is None or _luminance(ground) < _luminance(rgb):
        return style  # not in true colour, or light on dark
    while contrast(rgb, ground) < LEAST_CONTRAST and any(rgb):
        rgb = tuple(part * 9 // 10 for part in rgb)
    return style + Style(color=RichColor.from_rgb(*rgb))


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the contrast of two colours (red, green, blue, each 0 to 255), 1 to 21, as WCAG 2.2 defines it."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(rgb: Sequence[int]) -> float:
    red, green, blue = (
        part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in rgb
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


_SIXTEEN, _READABLE, _NONE = SixteenColours(), Readable(), NoColor()


def filters(own: Sequence[LineFilter], theme: str, *, no_color: bool) -> list[LineFilter]:
    """Return what changes colours before they are sent; `own` is what Textual would use.

    Textual draws NO_COLOR in greys, which are colours too: here nothing but the terminal's own two remain.
    """
    if no_color:
        return [*(one for one in own if not isinstance(one, (Monochrome, NoColor))), _NONE]
    if theme == "ansi":
        return [*own, _SIXTEEN]
    return [*own, _READABLE] if theme == "light" else list(own)
