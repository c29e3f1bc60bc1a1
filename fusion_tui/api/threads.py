"""Where a route's work is done: in the loop's own thread, or in threads of its kind.

The rule: what may take seconds never takes the threads that every other request needs: each kind of it has a few, and
what waits for one of them holds none. What takes less than going to another thread stays here, unless the store is
busy: nothing ever waits in the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request

from store.errors import StoreBusy

P = ParamSpec("P")
T = TypeVar("T")


async def at_once(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a few reads of the store come to: made here, or in another thread where the store is busy.

    To go there and back takes several times as long as such reads do, most of it waiting for this interpreter's turn.
    """
    try:
        return work(*args, **kwargs)
    except StoreBusy:
        return await elsewhere(work, *args, **kwargs)


async def elsewhere(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `work` does in one of the threads that every request may take."""
    return await to_thread.run_sync(partial(work, *args, **kwargs))


@dataclass(frozen=True)
class Room:
    """A kind of work: how many threads it has, and how many requests may wait for one; None: as many as come."""

    name: str
    threads: int
    waiting: int | None = None
    retry_after_s: int = 5


CURVES = Room("thinned curves", 4)  # two clients may wait for the first reading of a million points
WHOLE_CURVES = Room("whole curves", 4)
STREAMS = Room("streams", 4)
# Each inspection is a process with the training libraries in it.
INSPECTIONS = Room("inspections of a dataset", 1, waiting=8)
IMPORTS = Room("imports of datasets", 2)


@dataclass
class Open:
    """A room of a running application: its threads, and how many requests are in it or wait. It is the loop's alone."""

    threads: CapacityLimiter
    inside: int = 0


def opened(request: Request, room: Room) -> Open:
    """Return the application's room of this kind; made here, for it belongs to the loop."""
    state = request.app.state
    if not hasattr(state, "rooms"):
        state.rooms = {}
    rooms: dict[Room, Open] = state.rooms
    return rooms.setdefault(room, Open(CapacityLimiter(room.threads)))


async def run(request: Request, room: Room, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `work` does in a thread of its room. Raises HTTPException 503 where too many wait for one."""
    here = opened(request, room)
    if room.waiting is not None and here.inside >= room.threads + room.waiting:
        detail = f"{room.waiting} {room.name} wait already. Ask again in {room.retry_after_s} s."
        raise HTTPException(503, detail, {"Retry-After": str(room.retry_after_s)})
    here.inside += 1
    try:
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=here.threads)
    finally:
        here.inside -= 1
