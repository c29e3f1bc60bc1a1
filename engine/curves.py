"""The whole curve of a long run in few points, kept ready.

The rule: of each part of a curve the least and the greatest loss stay, so that no spike is lost; so do the first and
the last point. A run's curve is read once, stretch by stretch; from then on only what is new is read. (The screens draw
other metrics than the loss along other axes, from points that they hold anyway: `widgets.curve` thins those.)
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from store import Store, jobs, telemetry
from store.library import Database
from store.telemetry import OWN, Point, Stretch

MOST_STRETCHES = 4096  # kept of a phase: two points of about 500 bytes each
READ_AT_ONCE = 64  # stretches in one statement: a store without a write-ahead log lets nobody commit meanwhile
RUNS_KEPT = 8
ANSWERS_KEPT = 8  # of a run, until it moves on
ENDS = 2  # of the whole: they stay whatever the phases get
LEAST = 4  # that show a phase's spikes: its first and last point, and the two extremes
# Points of other phases (of growing, …) cannot be asked for what is new: all are read, this share of the time at most.
SHARE_FOR_OTHERS = 0.01


@dataclass(frozen=True, eq=False)
class Thinned:
    """A curve in few points, by step; `latest_step` is what it reaches. The same object while nothing has changed."""

    points: tuple[Point, ...]
    latest_step: int


def _loss(point: Point) -> float:
    return math.inf if point.loss is None else point.loss


def _place(point: Point) -> tuple[int, str]:
    return point.step, point.phase


def _joined(stretches: Sequence[Stretch]) -> Stretch:
    least = min((one.least for one in stretches), key=_loss)
    return Stretch(least, max((one.greatest for one in stretches), key=_loss))


@dataclass
class _Line:
    """One phase: stretches of `width` steps each, up to the step that was looked at last."""

    phase: str
    width: int = 1
    stretches: list[Stretch] = field(default_factory=list)
    first: Point | None = None
    last: Point | None = None
    upto: int = -1
    standing: dict[int, list[Stretch]] = field(default_factory=dict)  # parts of what is thinned, but for the last one

    def _at(self, step: int) -> int:
        return step // self.width

    def _make_room(self, upto: int) -> None:
        """Widen the stretches until those from the first to `upto` are few enough."""
        base = self.stretches[0].least.step if self.stretches else max(self.upto, 0)
        before = self.width
        while self._at(upto) - self._at(base) >= MOST_STRETCHES:
            self.width *= 2
        if self.width != before:
            old, self.stretches = self.stretches, []
            self._take(old)

    def _take(self, new: Iterable[Stretch]) -> None:
        for one in new:
            if self.stretches and self._at(self.stretches[-1].least.step) == self._at(one.least.step):
                self.stretches[-1] = _joined((self.stretches[-1], one))
            else:
                self.stretches.append(one)
                self.standing.clear()

    def extend(self, db: Database, job_id: str, upto: int) -> bool:
        """Read what is new up to a step; say whether there was any.

        The newest step is looked at again where it had no point: its evaluation may come after its training point.
        """
        known = self.last.step if self.last else -1
        begin = max(self.upto if known < self.upto else self.upto + 1, 0)
        if begin > upto:
            return False
        newest = telemetry.edge(db, job_id, self.phase, first=begin, last=upto, newest=True)
        if newest is not None:
            room = MOST_STRETCHES - len(self.stretches)
            if self.width > 1 or not telemetry.fits(db, job_id, self.phase, first=begin, last=upto, most=room):
                self._make_room(upto)
            for new in read(db, job_id, self.phase, begin=begin, end=upto, width=self.width):
                self._take(new)
            self.first = self.first or telemetry.edge(db, job_id, self.phase, first=begin, last=upto)
            self.last = newest
        self.upto = upto
        return newest is not None

    def take_all(self, points: Sequence[Point]) -> None:
        """Take points that were read already."""
        self.first, self.last = points[0], points[-1]
        if len(points) > MOST_STRETCHES:
            self._make_room(points[-1].step)
        self._take(Stretch(point, point) for point in points)

    def after(self, db: Database, job_id: str, since_step: int) -> _Line:
        """Return the part of this line beyond a step."""
        if self.first is None or self.last is None or self.first.step > since_step:
            return self
        whole = [one for one in self.stretches if self._at(one.least.step) > self._at(since_step)]
        end = min((self._at(since_step) + 1) * self.width - 1, self.last.step)
        cut = telemetry.stretches(db, job_id, self.phase, first=since_step + 1, last=end, width=self.width)
        first = telemetry.edge(db, job_id, self.phase, first=since_step + 1, last=self.last.step)
        return _Line(self.phase, self.width, cut + whole, first, self.last if first else None, self.upto)

    def thin(self, most: int) -> set[Point]:
        """Return `most` of this line's points at most."""
        if self.first is None or self.last is None or not most:
            return set()
        if self.width == 1 and len(self.stretches) <= most:
            return {one.least for one in self.stretches}
        ends = {self.last} if most == 1 else {self.first, self.last}
        parts, count = (most - 2) // 2, len(self.stretches)
        if parts < 1:
            return ends
        *before, (begin, end) = pairwise(count * part // parts for part in range(parts + 1))
        if parts not in self.standing:
            if len(self.standing) >= ANSWERS_KEPT:
                self.standing.clear()
            # A run that goes on changes its last stretch alone, until it begins another.
            self.standing[parts] = [_joined(self.stretches[a:b]) for a, b in before if a < b]
        return ends.union(*self.standing[parts], _joined(self.stretches[begin:end]))

    def finer(self, db: Database, job_id: str, most: int) -> _Line:
        """Return this line in enough stretches for `most` points: itself, or one that is read for this alone."""
        if self.width == 1 or len(self.stretches) >= (most - 2) // 2 or self.first is None or self.last is None:
            return self
        begin, end = self.first.step, self.last.step
        width = max((end - begin + 1) // (most // 2), 1)
        stretches = [one for new in read(db, job_id, self.phase, begin=begin, end=end, width=width) for one in new]
        return _Line(self.phase, width, stretches, self.first, self.last, self.upto)


def read(db: Database, job_id: str, phase: str, *, begin: int, end: int, width: int) -> Iterable[list[Stretch]]:
    """Read a phase from step `begin` to `end`, some stretches at a time; points that are few enough, at once."""
    size = READ_AT_ONCE * width if width > 1 else end + 1
    for low in range(begin - begin % width, end + 1, size):
        high = min(low + size - 1, end)
        yield telemetry.stretches(db, job_id, phase, first=max(low, begin), last=high, width=width)


def shares(lines: Sequence[_Line], most: int) -> dict[str, int]:
    """Return how many points each phase may keep: all evaluations where they leave room, else half of what there is;
    of the rest the others get parts by their length, the longest enough to show its spikes."""
    sizes = {line.phase: 2 * len(line.stretches) for line in lines if line.first}
    given: dict[str, int] = {}
    left = most
    for line in lines:
        if line.phase == "eval" and line.first and len(sizes) > 1:
            fits = line.width == 1 and len(line.stretches) + LEAST <= most
            given["eval"] = len(line.stretches) if fits else max(min(most // 2, most - LEAST), 0)
            left -= given["eval"]
    others = sorted(sizes.keys() - given.keys(), key=lambda phase: sizes[phase])
    rest, total = left, sum(sizes[phase] for phase in others)
    for phase in others[:-1]:
        given[phase] = max(min(max(rest * sizes[phase] // total, 2), left - LEAST), 0)
        left -= given[phase]
    return given | dict.fromkeys(others[-1:], left)


class _Curve:
    """What is known of a run's curve. Its lock is held by whoever looks at it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.fence = -1
        self.event = 0  # the newest that was looked at
        self._forget()

    def _forget(self) -> None:
        self.lines = {phase: _Line(phase) for phase in OWN}
        self.others: list[_Line] = []
        self.latest = -1
        self.settled = False  # whether the run had ended when the others were read
        self.others_due = 0.0
        self.answers: dict[tuple[int, int], Thinned] = {}

    def renew(self, db: Database, job_id: str) -> None:
        """Read what is new. What was taken back by a resume is forgotten, with all there was."""
        while True:
            job = jobs.get(db, job_id)
            resumed = self._was_resumed(db, job_id)
            latest = telemetry.latest_step(db, job_id)
            if resumed or job.fence != self.fence or latest < self.latest:
                self._forget()
                self.fence = job.fence
            moved = [line.extend(db, job_id, latest) for line in self.lines.values()]
            if self._read_others(db, job_id, job.finished) or any(moved) or latest != self.latest:
                self.answers.clear()
            self.latest = latest
            if not self._was_resumed(db, job_id):
                return
            self._forget()

    def _was_resumed(self, db: Database, job_id: str) -> bool:
        new = jobs.events(db, job_id, after=self.event)
        self.event = new[-1].id if new else self.event
        return any(event.kind == "resume" for event in new)

    def _read_others(self, db: Database, job_id: str, ended: bool) -> bool:
        if self.settled or (time.monotonic() < self.others_due and not ended):
            return False
        begun = time.monotonic()
        points: dict[str, list[Point]] = {}
        for point in telemetry.other_points(db, job_id):
            points.setdefault(point.phase, []).append(point)
        self.others = []
        for phase, found in points.items():
            line = _Line(phase)
            line.take_all(found)
            self.others.append(line)
        now = time.monotonic()
        self.settled, self.others_due = ended, now + (now - begun) / SHARE_FOR_OTHERS
        return bool(points)

    def thin(self, db: Database, job_id: str, since_step: int, most: int) -> Thinned:
        """Return the curve beyond a step in `most` points at most."""
        known = self.answers.get((since_step, most))
        if known is None:
            if telemetry.are_more(db, job_id, than=most, since_step=since_step):
                points = self._thinned(db, job_id, since_step, most)
            else:
                points = telemetry.points(db, job_id, since_step=since_step)
            own = [point.step for point in points if point.phase in OWN]
            known = Thinned(tuple(points), max(own, default=self.latest))
            if len(self.answers) < ANSWERS_KEPT:
                self.answers[since_step, most] = known
        return known

    def _thinned(self, db: Database, job_id: str, since_step: int, most: int) -> list[Point]:
        lines = [*self.lines.values()]
        if since_step < 0 or not telemetry.has_own_steps(db, job_id):
            lines += self.others
        parts = [line.after(db, job_id, since_step) for line in lines]
        given = shares(parts, most - ENDS)
        edges = sorted((point for part in parts for point in (part.first, part.last) if point), key=_place)
        kept = {*edges[:1], *edges[-1:]}
        for part in parts:
            share = given.get(part.phase, 0)
            kept |= part.finer(db, job_id, share).thin(share)
        return sorted(kept, key=_place)


class Curves:
    """The curves of the runs that were asked for last. Safe to use from any thread."""

    def __init__(self, store: Store) -> None:
        """Read from `store`; nothing is read before it is asked for."""
        self._store = store
        self._lock = threading.Lock()
        self._curves: OrderedDict[str, _Curve] = OrderedDict()

    def thin(self, job_id: str, *, since_step: int, most: int) -> Thinned:
        """Return a run's points newer than a step, `most` (2 or more) of them at most, as `telemetry.points` orders
        them: all of them where they are that few. Raises NotFound."""
        db = self._store.read()
        with self._lock:
            curve = self._curves.setdefault(job_id, _Curve())
            self._curves.move_to_end(job_id)
            while len(self._curves) > RUNS_KEPT:
                self._curves.popitem(last=False)
        with curve.lock:
            try:
                curve.renew(db, job_id)
                return curve.thin(db, job_id, since_step, most)
            except BaseException:
                with self._lock:
                    self._curves.pop(job_id, None)  # half of it may have been read
                raise
