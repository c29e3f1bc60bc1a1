"""Files that are sent here and become datasets: expected, received, registered at once or processed in turn.

The rule: the id of an upload is the id of the dataset that it becomes; nothing of it is in the catalogue before the
whole of it is.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import atomic, catalog, resources
from engine.data import importing, sources
from engine.data.importing import Progress, silent
from engine.errors import Conflict, EngineError, Fault, InvalidRequest
from engine.jobs import features
from engine.paths import Home
from engine.transfer.receiving import Hold, Reception, is_held
from engine.transfer.turns import Stopped, Turns
from store import NotFound, Store, StoreError
from store import catalog as entries
from store import uploads as rows
from store.catalog import Dataset
from store.library import Database
from store.uploads import Upload

STALE_S = 24 * 3600
FILENAME = r"[^/\\\x00-\x1f\x7f]{1,200}"
FILENAME_BYTES = 240  # file systems take 255
AT_WORK = (rows.CONVERTING, rows.VALIDATING)
INTERRUPTED = "The processing was interrupted. Process it again."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A version of a dataset, there or on its way. `detail` says why it failed, as `Upload.detail` does."""

    id: str
    name: str
    version: int
    state: str
    bytes: int
    created_at: float
    detail: dict[str, Any]
    dataset: Dataset | None = None

    def need_ready(self) -> Dataset:
        """Return the dataset. Raises Conflict where it is not ready."""
        if self.dataset is None:
            raise Conflict(f"Version {self.version} of the dataset {self.name} is {self.state}, not ready.")
        return self.dataset


def check_filename(filename: str) -> None:
    """Raise InvalidRequest unless `filename` is a plain name whose ending says what kind of file it is."""
    known = Path(filename).suffix.lower() in sources.READERS
    plain = re.fullmatch(FILENAME, filename) and len(filename.encode("utf-8", "replace")) <= FILENAME_BYTES
    if not plain or not known or filename.startswith("."):
        message = f"must be a file's name without folders, ending in one of {sources.KNOWN}"
        raise InvalidRequest([Fault(("filename",), message)])


class Uploads:
    """The uploads of one data folder, and the thread that processes those that are told to be."""

    def __init__(
        self, store: Store, home: Home, *, most_bytes: int, clock: Callable[[], float], new_id: Callable[[], str]
    ) -> None:
        """Nothing is opened or started yet. `most_bytes` is what one file may have."""
        self.most_bytes = most_bytes
        self._store, self._home, self._clock, self._new_id = store, home, clock, new_id
        self._turns = Turns("uploads")

    def close(self) -> None:
        """Stop processing; what was not done is failed and can be processed again."""
        self._turns.close()

    # Receiving ----------------------------------------------------------------------------------------------------

    def expect(self, filename: str, content_type: str, *, name: str | None = None, kind: str | None = None) -> Upload:
        """Expect a file; where `name` is given, the next version of that dataset is kept for it.

        `kind` says what learns from it: decoder, or one of the words for what encoders do. Raises InvalidRequest,
        StoreError.
        """
        check_filename(filename)
        if name is not None:
            catalog.check_name(name, "dataset_name")
            features.need("decoder" if kind == "decoder" else "encoder", ("dataset_type",))
        self.sweep()
        with self._store.write() as db:
            return rows.add(
                db,
                id=self._new_id(),
                filename=filename,
                content_type=content_type,
                now=self._clock(),
                dataset_name=name,
                dataset_type=kind,
            )

    def get(self, upload_id: str) -> Upload:
        """Return an upload as it is: one that a crash broke off is told as that. Raises NotFound."""
        return self._as_it_is(rows.get(self._store.read(), upload_id))

    def receive(self, upload_id: str, declared: int | None) -> Reception:
        """Begin to take a file of `declared` bytes, if that is known.

        Raises NotFound; Conflict where it was sent already or is being sent; NoSpace, DiskFailed, StoreError.
        """
        self._store.need_writable()
        upload = rows.get(self._store.read(), upload_id)
        with atomic.telling(f"receiving {upload.filename}", self._home.uploads):
            resources.need_space(self._home.uploads, declared or 0, f"the file {upload.filename}")
            hold = self._hold(upload)
            try:
                self._move(upload, (rows.INITIALIZED, rows.UPLOADING), rows.UPLOADING)
                return Reception(
                    hold,
                    self._file(upload),
                    done=lambda size: self._move(upload, (rows.UPLOADING,), rows.UPLOADED, bytes=size),
                    undone=lambda: self._move(upload, (rows.UPLOADING,), rows.INITIALIZED),
                )
            except BaseException:
                hold.release()
                raise

    # Becoming a dataset -------------------------------------------------------------------------------------------

    def register(
        self,
        upload_id: str,
        name: str,
        *,
        form: str | None = None,
        drop_bad: bool = False,
        progress: Progress = silent,
    ) -> Dataset:
        """Make an uploaded file a new version of `name`. Where that fails the file stays, to be registered otherwise.

        Raises NotFound, Conflict, DiskFailed, and what `catalog.add_dataset` raises.
        """
        catalog.check_name(name)
        catalog.check_format(form)
        with atomic.telling(f"registering {name}", self._home.root):
            upload, hold = self._begin(upload_id, named=False)
            try:
                return self._import(upload, name, form=form, drop_bad=drop_bad, progress=progress)
            except BaseException:
                # The lock tells it, too; and where the state is another by now, that one is true.
                with suppress(StoreError, Conflict):
                    self._move(upload, AT_WORK, rows.UPLOADED)
                raise
            finally:
                hold.release()

    def process(self, upload_id: str, *, form: str | None = None, drop_bad: bool = False) -> Upload:
        """Have an uploaded file made the version that is kept for it, after those that came before.

        Raises NotFound; Conflict where there is no file yet, it is being processed, or it is ready.
        """
        catalog.check_format(form)
        upload, hold = self._begin(upload_id, named=True)
        self._turns.add(lambda: self._convert(upload, hold, form, drop_bad))
        return upload

    def _begin(self, upload_id: str, *, named: bool) -> tuple[Upload, Hold]:
        """Take a file that has come, for it to become a dataset: one whose version is kept (`named`) or no such."""
        upload = rows.get(self._store.read(), upload_id)
        if named != (upload.dataset_name is not None):
            way = "POST /felix/datasets/upload/process" if upload.dataset_name else "POST /datasets"
            raise Conflict(f"The upload {upload.id} becomes a dataset by {way}.")
        hold = self._hold(upload)
        try:
            upload = rows.get(self._store.read(), upload_id)  # as it is now that nobody else works on it
            if upload.state == rows.UPLOADING:  # a crash may have come when the file had its name, but no state yet
                raise Conflict(f"The file of the upload {upload.id} was broken off. PUT it to its address again.")
            if not self._file(upload).is_file() and upload.state != rows.READY:
                raise Conflict(f"No file has come for the upload {upload.id} yet. PUT it to its address first.")
            self._move(upload, (rows.UPLOADED, rows.FAILED, *AT_WORK), rows.CONVERTING)
            return rows.get(self._store.read(), upload_id), hold
        except BaseException:
            hold.release()
            raise

    def _import(self, upload: Upload, name: str, *, form: str | None, drop_bad: bool, progress: Progress) -> Dataset:
        file, target = self._file(upload), self._home.dataset(upload.id)
        atomic.remove_tree(target)  # of an import that a crash broke off before its row was there
        if file.suffix.lower() in sources.LINES:  # these are judged and copied as they are
            self._move(upload, AT_WORK, rows.VALIDATING)
        found, copy = importing.import_rows(file, target, form=form, drop_bad=drop_bad, progress=progress)
        self._move(upload, AT_WORK, rows.VALIDATING)

        def ready(db: Database) -> None:
            rows.move(db, upload.id, before=AT_WORK, to=rows.READY, now=self._clock())

        entry = catalog.dataset_entry(upload.id, name, found, copy, source=upload.filename, now=self._clock())
        entry = dataclasses.replace(entry, version=upload.dataset_version or 0)
        dataset = catalog.enter(self._store, self._home, entry, within=ready)
        with suppress(OSError):  # the dataset is there; `sweep` removes what is left of its upload
            atomic.remove_tree(self._home.upload(upload.id))
        return dataset

    def _convert(self, upload: Upload, hold: Hold, form: str | None, drop_bad: bool) -> None:
        """Process one file and say how that went. Raises nothing: this is the edge of a thread."""
        detail: dict[str, Any] = {}
        try:
            self._turns.go_on()
            self._import(upload, str(upload.dataset_name), form=form, drop_bad=drop_bad, progress=self._turns.go_on)
        except Stopped:
            detail = {"message": INTERRUPTED}
        except (EngineError, StoreError) as error:
            detail = {"message": str(error), "row": getattr(error, "row", None)}
        except Exception:  # noqa: BLE001  (the edge of a thread)
            _log.exception("The upload %s could not be processed.", upload.id)
            detail = {"message": "The processing failed; the server's log says why. Process it again."}
        try:
            if detail:
                self._move(upload, AT_WORK, rows.FAILED, detail=detail)
        except Exception:  # noqa: BLE001  (seen by the lock all the same)
            _log.exception("That the upload %s failed could not be stored.", upload.id)
        finally:
            hold.release()

    # Versions -----------------------------------------------------------------------------------------------------

    def versions(self, name: str | None = None) -> list[Version]:
        """Return the versions of one dataset or of all, those on their way too: by name, newest first."""
        db = self._store.read()
        coming = rows.for_datasets(db, [name] if name else [])
        found = {entry.id: _of_dataset(entry) for entry in entries.datasets(db) if name in (None, entry.name)}
        # What became ready between the two looks is told once.
        found = {upload.id: _of_upload(self._as_it_is(upload)) for upload in coming} | found
        return sorted(found.values(), key=lambda one: (one.name, -one.version))

    def version(self, name: str, number: int) -> Version:
        """Return one version of a dataset. Raises NotFound."""
        found = self.versions(name)
        for one in found:
            if one.version == number:
                return one
        known = ", ".join(str(one.version) for one in found[:8])
        raise NotFound(
            f"The dataset {name} has no version {number}; it has {known}." if known else f"No dataset is called {name}."
        )

    def remove(self, *versions: Version) -> None:
        """Remove versions of datasets, or what has come of them. Raises Conflict, before any has gone, while one is
        used or worked on."""
        for version in versions:
            if version.dataset:
                catalog.need_unused(self._store.read(), version.dataset)
            elif is_held(self._home.upload(version.id)):
                raise Conflict(f"Version {version.version} of the dataset {version.name} is {version.state}. Wait.")
        for version in versions:
            if version.dataset:
                catalog.remove(self._store, self._home, version.dataset)
            else:
                self._give_up(rows.get(self._store.read(), version.id))

    # Order --------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove what nobody has touched for a day and nobody works on. Raises StoreError."""
        now = self._clock()
        known = rows.everything(self._store.read())
        for upload in known:
            if now - upload.updated_at > STALE_S:
                with suppress(Conflict, NotFound, OSError):
                    self._give_up(upload)
        atomic.sweep(self._home.uploads)
        ids = {upload.id for upload in known}
        for folder in self._home.uploads.glob("*"):
            with suppress(OSError):
                if folder.name not in ids and now - folder.stat().st_mtime > STALE_S:
                    atomic.remove_tree(folder)

    def _give_up(self, upload: Upload) -> None:
        """Remove an upload, its file, and what a crash left of its import. Raises Conflict while it is worked on."""
        hold = self._hold(upload)
        try:
            if rows.get(self._store.read(), upload.id) != upload:
                raise Conflict(f"The upload {upload.id} has gone on in the meantime. Look again.")
            if upload.state != rows.READY:
                atomic.discard(importing.stage_of(self._home.dataset(upload.id)))
                atomic.remove_tree(self._home.dataset(upload.id))
            with self._store.write() as db:
                rows.remove(db, upload.id)
            atomic.remove_tree(self._home.upload(upload.id))
        finally:
            hold.release()

    def _file(self, upload: Upload) -> Path:
        return self._home.upload(upload.id) / upload.filename

    def _hold(self, upload: Upload) -> Hold:
        """Return the upload's lock. Raises Conflict while another has it."""
        folder = self._home.upload(upload.id)
        atomic.make_folder(folder)
        hold = Hold.take(folder)
        if hold is None:
            raise Conflict(f"The upload {upload.id} is being sent or processed already.")
        return hold

    def _move(self, upload: Upload, before: tuple[str, ...], to: str, **columns: Any) -> None:
        """Bring an upload to the state `to`. Raises Conflict in another state than one of `before`; NotFound."""
        with self._store.write() as db:
            if not rows.move(db, upload.id, before=before, to=to, now=self._clock(), **columns):
                state = rows.get(db, upload.id).state
                raise Conflict(f"The upload {upload.id} is {state} already. For another file, ask for a new address.")

    def _as_it_is(self, upload: Upload) -> Upload:
        """Return what is true of an upload that is stored as worked on: where nobody is, it was broken off."""
        if upload.state not in (rows.UPLOADING, *AT_WORK) or is_held(self._home.upload(upload.id)):
            return upload
        with suppress(NotFound):
            if rows.get(self._store.read(), upload.id).state != upload.state:
                return rows.get(self._store.read(), upload.id)  # it ended between the two looks
        if upload.state == rows.UPLOADING:
            return dataclasses.replace(upload, state=rows.INITIALIZED)
        return dataclasses.replace(upload, state=rows.FAILED, detail={"message": INTERRUPTED})


def _of_dataset(entry: Dataset) -> Version:
    return Version(entry.id, entry.name, entry.version, entry.status, entry.bytes, entry.created_at, {}, entry)


def _of_upload(upload: Upload) -> Version:
    name, version = str(upload.dataset_name), upload.dataset_version or 0
    made = (upload.bytes, upload.created_at, upload.detail)
    return Version(upload.id, name, version, upload.state, *made)
