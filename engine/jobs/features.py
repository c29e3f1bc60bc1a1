"""What this version does of all that the dialects have words for.

The rule: a face asks here whether a thing exists, and refuses in these words what does not; what lands is added to
`AVAILABLE` and to nothing else.
"""

from __future__ import annotations

from engine.errors import Fault, InvalidRequest

# Each by the word that the dialect has for it.
AVAILABLE = frozenset({"sft", "decoder"})
NAMES = {
    "sft": "supervised fine-tuning",
    "dpo": "training on preferences (dpo)",
    "grpo": "training on rewards (grpo)",
    "decoder": "a decoder (a model that writes text)",
    "encoder": "an encoder (a model that labels text)",
    "inference": "answering prompts over HTTP",
    "projects": "grouping runs in projects",
    "deployments": "deploying a model",
}
ABSENT = "not_in_this_version"  # the fault's word for programs


def exists(feature: str) -> bool:
    """Say whether this version does `feature`."""
    return feature in AVAILABLE


def absence(feature: str, loc: tuple[str | int, ...]) -> Fault | None:
    """Return what is wrong with a request that asks, at `loc`, for `feature`; None where nothing is."""
    if exists(feature):
        return None
    return Fault(loc, f"{NAMES[feature]} is not in this version yet", ABSENT)


def need(feature: str, loc: tuple[str | int, ...]) -> None:
    """Raise InvalidRequest where this version does not do `feature`, for which a request asks at `loc`."""
    if fault := absence(feature, loc):
        raise InvalidRequest([fault])
