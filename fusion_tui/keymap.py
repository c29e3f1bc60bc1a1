"""The user's keys: what the table `[keys]` of the settings file makes of those in the action registry.

The rule: a key map is whole or refused. Every action keeps a key, and no key of one place means two things.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from textual.binding import Binding
from textual.keys import KEY_NAME_REPLACEMENTS, Keys, key_to_character

from engine.errors import EngineError
from fusion_tui.actions import ACTIONS, SCOPES, Action, key_text

MODIFIERS = ("alt", "ctrl", "hyper", "meta", "shift", "super")
# What people call keys that Textual calls otherwise.
_ALIASES = {
    "esc": "escape",
    "return": "enter",
    "del": "delete",
    "ins": "insert",
    "pgup": "pageup",
    "pgdn": "pagedown",
    "spacebar": "space",
    "control": "ctrl",
    "option": "alt",
    "↑": "up",
    "↓": "down",
    "←": "left",
    "→": "right",
}
_SIGNS = frozenset(KEY_NAME_REPLACEMENTS.values())  # plus, minus, slash and others that Textual names shortly
_NAMES = frozenset(str(key.value).rpartition("+")[2] for key in Keys if "<" not in key.value) - {"return"} | _SIGNS

# Keys that do not come through everywhere, with the reason: never good as an action's only key.
_SAME = "is the same as {} on most terminals"
DOUBTFUL = {
    "ctrl+h": _SAME.format("Backspace"),
    "ctrl+i": _SAME.format("Tab"),
    "ctrl+j": _SAME.format("Enter"),
    "ctrl+m": _SAME.format("Enter"),
    "ctrl+enter": _SAME.format("Enter"),
    "shift+enter": _SAME.format("Enter"),
    "shift+space": _SAME.format("Space"),
    "ctrl+left_square_bracket": _SAME.format("Esc"),
    "ctrl+s": "stops the output of some terminals",
    "ctrl+q": "is kept by some terminals to go on after Ctrl+S",
    "ctrl+z": "suspends programs in a shell",
    "ctrl+c": "ends programs in a shell",
    "ctrl+a": "is the prefix of screen",
    "ctrl+b": "is the prefix of tmux",
}
WIDGETS = ("table", "page")  # scopes of what has the focus: their keys come before those of its screen
ALONE = ("confirm", "where", "add_model", "small")  # scopes of questions, beside which no other counts


@dataclass(frozen=True)
class Keymap:
    """What the user changed: the keys of some actions, by the action's id; and in words what is doubtful about it."""

    changed: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()

    @property
    def bindings(self) -> dict[str, str]:
        """What Textual's `App.set_keymap` takes."""
        return {name: ",".join(keys) for name, keys in self.changed.items()}

    def action(self, action: Action) -> Action:
        """Return an action with the keys it has for this user."""
        keys = self.changed.get(action.id)
        return replace(action, keys=keys) if keys else action

    def of_scope(self, scope: str) -> list[Action]:
        """Return the actions of one scope with the user's keys, in the registry's order."""
        return [self.action(action) for action in ACTIONS if action.scope == scope]

    def text(self, name: str) -> str:
        """Return the keys of the action with this id as a person writes them."""
        return self.action(_BY_ID[name]).key_text


_BY_ID = {action.id: action for action in ACTIONS}


def read(entries: Mapping[str, object], source: str) -> Keymap:
    """Return the key map of a table of action id → key or list of keys; `source` names the file it is from.

    An id with a dot that is not quoted comes as a table in a table, which is the same. Raises EngineError, naming the
    file and the entry: an unknown action or key (with the nearest name), no key at all, a key with two meanings.
    """
    changed = {}
    for name, value in _flat(entries):
        where = f"{source}: keys: {name}"
        if name not in _BY_ID:
            near = _nearest(name, _BY_ID)
            raise EngineError(f"{where} is not an action.{near} The README has a table of all.")
        changed[name] = _keys(value, where)
    found = Keymap(changed)
    _need_distinct(found, source)
    return replace(found, warnings=tuple(_warnings(found, source)))


def _flat(entries: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _keys(value: object, where: str) -> tuple[str, ...]:
    """Return an entry's keys by Textual's names."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, Sequence) or not given or not all(isinstance(one, str) for one in given):
        raise EngineError(f'{where} must be a key, like "f5", or a list of keys, like ["x", "ctrl+x"].')
    return tuple(dict.fromkeys(key_name(one, where) for one in given))


def key_name(text: str, where: str) -> str:
    """Return Textual's name of a key that a person wrote: `?`, `Ctrl+X`, `PgDn`, `G`. Raises EngineError."""
    *modifiers, key = _parts(text.strip())
    if len(key) == 1 and key.isprintable():
        # A letter with a modifier is reported in lower case; Shift alone makes it the capital.
        if modifiers == ["shift"] and key.isalpha():
            modifiers, key = [], key.upper()
        elif modifiers:
            key = key.lower()
        key = _of_character(key)
    wrong = [one for one in modifiers if one not in MODIFIERS]
    if wrong or not (key in _NAMES or (key.isprintable() and key_to_character(key))):
        near = _nearest(wrong[0], set(MODIFIERS)) if wrong else _nearest(key, {*_NAMES, "question_mark", "comma"})
        raise EngineError(f"{where}: '{text}' is not a key.{near} Keys are written like x, G, ?, f5, ctrl+x, pagedown.")
    return "+".join([*sorted(set(modifiers)), key])


def _parts(text: str) -> list[str]:
    """Split `Ctrl+X` at its plus signs, one at the end being the key; all but single characters in lower case."""
    if text in ("", "+"):
        return ["plus" if text else ""]
    if text.endswith("++"):
        return [*_parts(text[:-2]), "plus"]
    if len(text) == 1:
        return [_ALIASES.get(text, text)]
    return [_ALIASES.get(low, low) if len(low := part.lower()) != 1 else part for part in text.split("+")]


def _of_character(character: str) -> str:
    """Return Textual's name of a printable character: `question_mark` for `?`, itself for a letter or digit."""
    if character == ",":
        return "comma"
    return next(iter(Binding.make_bindings([Binding(character, "", "")]))).key


def _nearest(name: str, known: Mapping[str, object] | set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def _need_distinct(keymap: Keymap, source: str) -> None:
    for scope in SCOPES:
        owner: dict[str, Action] = {}
        for action in keymap.of_scope(scope):
            for key in action.keys:
                if key in owner:
                    raise EngineError(
                        f"{source}: keys: {owner[key].id} and {action.id} both have the key {key_text(key)}. "
                        "Give one of them another."
                    )
                owner[key] = action


def _warnings(keymap: Keymap, source: str) -> Iterator[str]:
    """Tell of changed keys that may never arrive: at the app at all, or at their action."""
    for name, keys in keymap.changed.items():
        if all(doubt(key) for key in keys):
            told = ", ".join(f"{key_text(key)} {doubt(key)}" for key in keys)
            yield f"{source}: {name} may be out of reach: {told}. Give it a second key."
        own = _BY_ID[name]
        for other in map(keymap.action, ACTIONS):
            taken = set(keys) & set(other.keys) - (set(own.keys) & set(_BY_ID[other.id].keys))
            if taken and _meet(own.scope, other.scope):
                first, second = (own.id, other.id) if _inner(own.scope, other.scope) else (other.id, own.id)
                yield f"{source}: {first} takes {key_text(min(taken))} from {second} where both could be meant."


def doubt(key: str) -> str:
    """Say why a key may not come through; empty where nothing speaks against it."""
    *modifiers, base = key.split("+")
    if key in DOUBTFUL:
        return DOUBTFUL[key]
    if {"super", "hyper", "meta"} & set(modifiers):
        return "is kept by most desktops and terminals"
    if modifiers == ["ctrl", "shift"] and len(base) == 1:
        return f"is the same as Ctrl+{base.upper()} on most terminals"
    if modifiers == ["ctrl"] and base.isdigit():
        return "is not sent by most terminals"
    return ""


def _meet(one: str, other: str) -> bool:
    """Say whether keys of two scopes can be meant at the same moment."""
    if one == other or one in ALONE or other in ALONE:
        return False
    return "app" in (one, other) or (one in WIDGETS) != (other in WIDGETS)


def _inner(one: str, other: str) -> bool:
    """Say whether the first scope's keys come before the second's."""
    return other == "app" or (one in WIDGETS and other not in WIDGETS)
