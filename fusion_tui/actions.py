"""Every action that a key, the palette or the help names.

The rule: a screen's BINDINGS, the command palette and the Help screen come from `ACTIONS`; no key is bound elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType
from textual.keys import key_to_character


@dataclass(frozen=True)
class Action:
    """Something a user can do. `keys` are Textual's key names; `call` is the Textual action that does it.

    `scope` names the screen or widget that owns it; `show` puts it in the footer, `palette` in the command palette.
    """

    id: str
    keys: tuple[str, ...]
    title: str
    tooltip: str
    scope: str
    call: str
    show: bool = False
    palette: bool = True
    priority: bool = False

    @property
    def key_text(self) -> str:
        """The keys as a person writes them."""
        return " or ".join(key_text(key) for key in self.keys)


_KEY_TEXT = {
    "question_mark": "?",
    "slash": "/",
    "plus": "+",
    "minus": "-",
    "escape": "Esc",
    "enter": "Enter",
    "space": "Space",
    "tab": "Tab",
    "shift+tab": "Shift+Tab",
    "ctrl+p": "Ctrl+P",
    "ctrl+q": "Ctrl+Q",
    "ctrl+c": "Ctrl+C",
    "f2": "F2",
    "f3": "F3",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "home": "Home",
    "end": "End",
}


def key_text(key: str) -> str:
    """Return a key as a person writes it: `Ctrl+X` for `ctrl+x`, `?` for `question_mark`."""
    if key in _KEY_TEXT:
        return _KEY_TEXT[key]
    *modifiers, base = key.split("+")
    shown = key_to_character(base) or base.capitalize()
    return "+".join([*(one.capitalize() for one in modifiers), shown.upper() if modifiers else shown])


SCOPES = {
    "app": "Everywhere",
    "runs": "Runs",
    "table": "Lists",
    "page": "Texts",
    "run": "Run",
    "new": "New run",
    "compare": "Compare",
    "datasets": "Datasets",
    "models": "Models",
    "add_model": "Add a model",
    "system": "System",
    "where": "Where to write",
    "confirm": "Questions",
    "small": "A terminal that is too small",
}

_JOB_ACTIONS = (
    ("stop", "s", "Stop", "Finish the step, save and stop the run; asks first", "stop"),
    ("retry", "r", "Retry", "Queue a failed or cancelled run again, from its newest checkpoint", "retry"),
    ("delete", "D", "Delete", "Remove a finished run with its curve and checkpoints; asks first", "delete"),
)


def _job_actions(scope: str) -> tuple[Action, ...]:
    return tuple(
        Action(f"{scope}.{name}", (key,), title, tooltip, scope, call, show=True)
        for name, key, title, tooltip, call in _JOB_ACTIONS
    )


_CHART_ACTIONS = (
    ("x_axis", "x", "X axis", "Steps, tokens or time along the chart", "x_axis"),
    ("log_y", "y", "Log y", "Logarithmic or linear y axis", "log_y"),
    ("zoom", "z", "Zoom", "The whole curve, its last half, fifth or twentieth", "zoom"),
    ("smoother", "plus", "Smoother", "More smoothing", "smooth(1)"),
    ("rougher", "minus", "Less smooth", "Less smoothing", "smooth(-1)"),
    ("raw", "0", "No smoothing", "Show the raw curve alone", "smooth(0)"),
    ("copy", "C", "Copy", "Send the chart's numbers as CSV to the terminal's clipboard", "copy"),
    ("export", "w", "Write", "Write the chart as CSV and as SVG picture; asks for the folder", "export"),
)


def _chart_actions(scope: str) -> tuple[Action, ...]:
    return tuple(
        Action(f"{scope}.{name}", (key,), title, tooltip, scope, call, show=name in {"x_axis", "export"})
        for name, key, title, tooltip, call in _CHART_ACTIONS
    )


ACTIONS: tuple[Action, ...] = (
    Action("app.help", ("question_mark",), "Help", "Show every key", "app", "app.help", show=True),
    Action("app.runs", ("1",), "Runs", "Go to the list of runs", "app", "app.runs"),
    Action("app.datasets", ("2",), "Datasets", "Go to the list of datasets", "app", "app.datasets"),
    Action("app.models", ("3",), "Models", "Go to the tree of models", "app", "app.models"),
    Action("app.system", ("4",), "System", "Go to devices, disk, supervisor, settings, keys", "app", "app.system"),
    Action("app.new", ("n",), "New run", "Set up and queue a new run", "app", "app.new", show=True),
    Action(
        "app.supervisor", ("S",), "Start supervisor", "Start the process that runs the queue", "app", "app.supervisor"
    ),
    Action(
        "app.back",
        ("escape",),
        "Back",
        "Go back to the screen before",
        "app",
        "app.close_screen",
        show=True,
        palette=False,
    ),
    Action(
        "app.palette",
        ("ctrl+p",),
        "Palette",
        "Search every action by name",
        "app",
        "app.command_palette",
        palette=False,
    ),
    Action(
        "app.focus_next",
        ("tab",),
        "Next pane",
        "Go to the next pane or field",
        "app",
        "app.focus_next",
        palette=False,
        priority=True,  # else keys typed right after it still go to the field that had the focus
    ),
    Action(
        "app.focus_previous",
        ("shift+tab",),
        "Previous pane",
        "Go to the pane or field before",
        "app",
        "app.focus_previous",
        palette=False,
        priority=True,
    ),
    Action(
        "app.theme", ("T",), "Theme", "Other colours: dark, light, ansi (the terminal's own 16)", "app", "app.theme"
    ),
    Action("app.quit", ("q",), "Quit", "Leave the app; runs keep going", "app", "app.quit", show=True),
    Action(
        "app.quit_now",
        ("ctrl+q",),
        "Quit from anywhere",
        "Leave the app, also from inside a field; runs keep going",
        "app",
        "app.quit",
        palette=False,
        priority=True,
    ),
    Action("runs.open", ("enter",), "Open", "Open the selected run", "runs", "open", show=True),
    Action("runs.filter", ("slash",), "Filter", "Show only runs that contain a text", "runs", "filter", show=True),
    Action("runs.clear", ("escape",), "Clear filter", "Show all runs again", "runs", "clear", palette=False),
    Action("runs.mark", ("space",), "Mark", "Mark the run for comparing, or take its mark away", "runs", "mark"),
    Action("runs.compare", ("c",), "Compare", "Lay the marked runs over one another", "runs", "compare", show=True),
    *_job_actions("runs"),
    Action("table.down", ("j", "down"), "Down", "Next line", "table", "cursor_down", palette=False),
    Action("table.up", ("k", "up"), "Up", "Line before", "table", "cursor_up", palette=False),
    Action("table.top", ("g", "home"), "Top", "First line", "table", "scroll_top", palette=False),
    Action("table.bottom", ("G", "end"), "Bottom", "Last line", "table", "scroll_bottom", palette=False),
    Action("page.down", ("j", "down"), "Scroll down", "Next line", "page", "scroll_down", palette=False),
    Action("page.up", ("k", "up"), "Scroll up", "Line before", "page", "scroll_up", palette=False),
    Action("page.top", ("g", "home"), "Top", "First line", "page", "scroll_home", palette=False),
    Action("page.bottom", ("G", "end"), "Bottom", "Last line", "page", "scroll_end", palette=False),
    Action(
        "run.metric",
        ("m",),
        "Metric",
        "Next chart: loss, lr, grad norm, tok/s, memory, layers",
        "run",
        "metric",
        show=True,
    ),
    *_chart_actions("run"),
    Action("run.follow", ("f",), "Follow log", "Keep the newest log line in sight, or stay", "run", "follow"),
    *_job_actions("run"),
    *_chart_actions("compare"),
    Action("where.no", ("escape",), "Write nothing", "Go back and write nothing", "where", "cancel", palette=False),
    Action("new.submit", ("f2",), "Submit", "Queue the run", "new", "submit", show=True),
    Action(
        "new.write",
        ("f3",),
        "JSON",
        "Copy the request as JSON, and write it to a file for submit --file",
        "new",
        "write",
        show=True,
    ),
    Action(
        "datasets.open",
        ("enter",),
        "Inspect",
        "Show which tokens of the dataset a model trains",
        "datasets",
        "open",
        show=True,
    ),
    Action("models.open", ("enter",), "Its run", "Open the run that made the model", "models", "open", show=True),
    Action("models.add", ("a",), "Add", "Import a folder, a GGUF file or a hub name", "models", "add", show=True),
    Action("models.new", ("n",), "New run", "Set up a run that starts from the model", "models", "new", show=True),
    Action("models.delete", ("D",), "Delete", "Remove the model; says what needs it", "models", "delete", show=True),
    Action("add_model.cancel", ("escape",), "Back", "End the import and go back", "add_model", "cancel", show=True),
    Action("system.edit", ("e",), "Edit settings", "Open the settings file in $EDITOR", "system", "edit", show=True),
    Action("system.doctor", ("d",), "Doctor", "Look for what may be wrong", "system", "doctor", show=True),
    Action("system.end_doctor", ("x",), "End doctor", "Have doctor look no further", "system", "end_doctor"),
    Action("system.refresh", ("u",), "Update", "Read settings again and count the disk", "system", "refresh"),
    Action(
        "system.stop",
        ("s",),
        "Stop supervisor",
        "Have the supervisor leave, runs at work go on; asks first",
        "system",
        "stop_supervisor",
        show=True,
    ),
    Action("small.quit", ("q",), "Quit", "Leave the app; runs keep going", "small", "leave", palette=False),
    Action("confirm.yes", ("y",), "Yes", "Do it", "confirm", "answer(True)", palette=False),
    Action(
        "confirm.no", ("n", "escape", "q"), "No", "Leave things as they are", "confirm", "answer(False)", palette=False
    ),
)


def of_scope(scope: str) -> list[Action]:
    """Return the actions of one scope, in their order."""
    return [action for action in ACTIONS if action.scope == scope]


def bindings(scope: str) -> list[BindingType]:
    """Return the BINDINGS of a screen or widget."""
    return [
        Binding(
            ",".join(action.keys),
            action.call,
            action.title,
            show=action.show,
            key_display=_KEY_TEXT.get(action.keys[0]),
            tooltip=action.tooltip,
            id=action.id,
            priority=action.priority,
        )
        for action in of_scope(scope)
    ]


def keys_table() -> list[tuple[str, str, str]]:
    """Return (where, keys, what) for every action, as Help and the README show them."""
    return [(SCOPES[action.scope], action.key_text, action.tooltip) for action in ACTIONS]
