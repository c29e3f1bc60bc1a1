"""What the data folder is fit for: its permissions, its disk, its store, and what lies about in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.doctor.finding import Finding, Level, Machine
from engine.jobs.submitting import ROOM_TO_START
from engine.resources import size_text
from store import StoreBusy, StoreDamaged, StoreError, StoreReadOnly, backup, filesystems, schema
from store.db import tuples
from store.library import Database

# Below this a run of a small model may still start, and a larger one finds no room for its checkpoints.
ROOM_TO_WORK = 5 * 1000**3
# A check reads under a lock that keeps writers waiting, whose own patience is twice as long.
CHECK_SECONDS = 5.0
OPCODES_BETWEEN_LOOKS = 10_000
QUARANTINED = "*.damaged"
# Unfinished stages and removals: checkpoints, models, datasets, token caches.
LEFT_BEHIND = (".removed-*", ".stage-*", ".*.stage", ".*.stage-*")


def permissions(machine: Machine) -> Iterator[Finding]:
    """Look at who may read and write the data folder, the key and the store."""
    home = machine.home
    if not home.root.exists():
        yield Finding("folder", "ok", f"{home.root} is not there yet; the first start makes it")
        return
    if not os.access(home.root, os.W_OK | os.X_OK):
        remedy = "Check its owner and permissions and how its disk is mounted; until then it can only be looked at."
        yield Finding("folder", "error", f"{home.root} cannot be written by {machine.user}", remedy)
    private = ((home.root, 0o700), (home.token, 0o600), (home.store, 0o600))
    for path, mode in private:
        if path.exists() and path.stat().st_mode & 0o077:
            words = f"{path} can be read by other users (mode {path.stat().st_mode & 0o777:o})"
            level: Level = "error" if path == home.token else "warning"
            yield Finding("folder", level, words, f"chmod {mode:o} '{path}'")
    if home.root.stat().st_uid != os.getuid():
        words = f"{home.root} belongs to another user (number {home.root.stat().st_uid})"
        yield Finding("folder", "warning", words, "Use it as that user, or set FUSION_HOME to a folder of your own.")
    yield Finding("folder", "ok", str(home.root))


def disk(machine: Machine) -> Iterator[Finding]:
    """Look at the room on the data folder's disk, and at its file system."""
    path = next(one for one in (machine.home.root, *machine.home.root.parents) if one.exists())
    mount = filesystems.mount_of(path)
    kind = f", {mount.kind} mounted at {mount.point}" if mount else ""
    if mount and mount.is_network:
        remedy = "Set FUSION_HOME to a folder on a disk of this machine; FUSION_READ_ONLY=1 looks and changes nothing."
        yield Finding("disk", "error", f"{path} lies on a network file system{kind}", remedy)
    free = machine.free_bytes(path)
    words = f"{size_text(free)} free for {path}{kind}"
    remedy = "Free some space, or move FUSION_HOME to a larger disk; nothing is lost meanwhile."
    if free < ROOM_TO_START * 1.2:
        yield Finding("disk", "error", f"{words}: runs are held until there is room", remedy)
    elif free < ROOM_TO_WORK:
        yield Finding("disk", "warning", f"{words}: little for checkpoints and models", remedy)
    else:
        yield Finding("disk", "ok", words)


def store(machine: Machine) -> Iterator[Finding]:
    """Look whether the store opens, is whole and of this version, and which backups lie beside it."""
    path = machine.home.store
    if not path.exists():
        yield Finding("store", "ok", f"{path} is not there yet; the first start makes it")
        return
    machine.tell("checking the store")
    try:
        finding = _examined(machine)
        if finding.level == "error":
            machine.leave_store()
        yield finding
    except StoreBusy as error:
        machine.leave_store()
        words = f"{error} Another process has held its lock for longer than a write takes"
        yield Finding("store", "error", words, f"See who: fuser -v '{path}'; a process that stands still can be ended.")
    except StoreDamaged as error:
        machine.leave_store()
        yield Finding("store", "error", str(error).replace(f" {backup.remedy(path)}", ""), backup.remedy(path))
    except StoreError as error:
        machine.leave_store()
        # The journal of a write that was cut short: who may write takes it back, and nothing is lost.
        cut_short = path.with_name(path.name + "-journal").exists()
        remedy = (
            "The next start takes it back: fusion-tui jobs" if cut_short else "Check the file's owner and its mode."
        )
        yield Finding("store", "warning" if cut_short else "error", str(error), remedy)
    copies = ", ".join(f"{copy.name} ({size_text(copy.stat().st_size)})" for copy in backup.listing(path))
    yield Finding("store", "ok", f"backups from before changes of its tables: {copies or 'none yet'}")


def _examined(machine: Machine, *, again: bool = True) -> Finding:
    """Check the store, a second time where it was written under the look. Raises StoreError.

    A store whose log is not there is read without a lock: whoever comes and writes may make it look damaged.
    """
    path = machine.home.store
    before = _stamp(path)
    try:
        finding = _earlier(machine)
        if finding:
            return finding
        with machine.store() as db:
            assert db is not None
            finding = _checked(db, path)
    except StoreDamaged:
        if not again or _stamp(path) == before:
            raise
        return _examined(machine, again=False)
    moved = finding.level == "error" and _stamp(path) != before
    return _examined(machine, again=False) if again and moved else finding


def _earlier(machine: Machine) -> Finding | None:
    """Return what is to say of a store of an earlier version; where none can be read, opening it tells why."""
    try:
        number = machine.store_version()
    except StoreReadOnly:
        return None
    if number >= len(schema.MIGRATIONS):
        return None
    machine.leave_store()
    words = f"{machine.home.store} has schema {number}; the next start copies it and brings it to "
    remedy = "Start the app once, or: fusion-tui jobs"
    return Finding("store", "warning" if number else "ok", f"{words}{len(schema.MIGRATIONS)}", remedy)


def _stamp(path: Path) -> tuple[bool, int, int]:
    status = path.stat()
    return path.with_name(f"{path.name}-wal").exists(), status.st_mtime_ns, status.st_size


def _checked(db: Database, path: Path) -> Finding:
    """Run quick_check for as long as writers can bear to wait. Raises StoreError."""
    deadline = time.monotonic() + CHECK_SECONDS
    db.conn.set_progress_handler(lambda: time.monotonic() > deadline, OPCODES_BETWEEN_LOOKS)
    try:
        rows = [str(row[0]) for row in tuples(db, "PRAGMA quick_check")]
    except StoreError:
        if time.monotonic() > deadline:
            remedy = f"With no supervisor running: sqlite3 '{path}' 'PRAGMA quick_check'"
            words = f"{path} opens; it is too large to be checked whole in {CHECK_SECONDS:.0f} s"
            return Finding("store", "ok", words, remedy)
        raise
    finally:
        db.conn.set_progress_handler(None, 0)
    if rows != ["ok"]:
        found = "; ".join(" ".join(row.split()) for row in rows[:3])
        return Finding("store", "error", f"{path} is damaged: {found}", backup.remedy(path))
    mode = db.conn.execute("PRAGMA journal_mode").fetchone()[0]
    size = size_text(path.stat().st_size)
    return Finding("store", "ok", f"{path} is whole ({size}, schema {len(schema.MIGRATIONS)}, journal mode {mode})")


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file() and not one.is_symlink()]
    return sum(file.stat().st_size for file in files)


def _sum(paths: Iterable[Path]) -> tuple[int, int]:
    """Return number and bytes of those that are still there: what is at work here removes them, too."""
    count = total = 0
    for path in paths:
        try:
            total += _size(path)
            count += 1
        except FileNotFoundError:
            continue
    return count, total


def leftovers(machine: Machine) -> Iterator[Finding]:
    """Look for what removals and deaths left behind, and for checkpoints that were set aside as damaged."""
    root = machine.home.root
    parts = [root / name for name in ("runs", "models", "datasets", "cache")]
    clean = True
    # Checkpoints lie at runs/JOB/attempt-N/checkpoints, cached tokens at cache/DATASET.
    folders = [*parts, *root.glob("cache/*"), *root.glob("runs/*"), *root.glob("runs/*/attempt-*/checkpoints")]
    count, size = _sum(path for folder in folders for pattern in LEFT_BEHIND for path in folder.glob(pattern))
    if count:
        clean = False
        words = f"{count} unfinished stages or removals, {size_text(size)}"
        remedy = "Stages at work are here too; the rest goes at a supervisor's start and when a run is resumed."
        yield Finding("leftovers", "ok", words, remedy)
    count, size = _sum(root.glob(f"runs/*/attempt-*/checkpoints/{QUARANTINED}"))
    if count:
        clean = False
        words = f"{count} damaged checkpoints were set aside, {size_text(size)}"
        remedy = f"Nothing uses them. To remove them: rm -r '{root}'/runs/*/attempt-*/checkpoints/{QUARANTINED}"
        yield Finding("leftovers", "warning", words, remedy)
    runs = [path for path in root.glob("runs/*") if path.name[0] != "."]
    with machine.store() as db:
        known = {row[0] for row in tuples(db, "SELECT id FROM jobs")} if db is not None else set()
    strays = [path for path in runs if path.name not in known]
    count, size = _sum(strays)
    if count:
        clean = False
        words = f"{count} folders of runs that the store does not know, {size_text(size)}: {strays[0]}"
        yield Finding("leftovers", "warning", words, "If no other store belongs to them, remove these folders.")
    if clean:
        yield Finding("leftovers", "ok", "none")
