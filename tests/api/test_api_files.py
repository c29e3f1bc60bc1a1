"""A model's files under signed addresses: whole, in parts, as one zip; and nothing beside them."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import subprocess
import sys
import tracemalloc
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engine.paths import STARTER_MODEL, Home
from engine.service import Job, Model, Service
from engine.settings import Settings
from store import catalog, jobs
from tests.api.conftest import BASE, DATA, TRAINED

FILES = {"config.json": b"{}  \n", "README.md": b"", "model.safetensors": os.urandom(700_001), "sub dir/ü#?.txt": b"u"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    opened = Service(Home(tmp_path_factory.mktemp("home") / "data"), config=Settings())
    with opened.store.write() as db:
        catalog.add_base_model(db, BASE)
        catalog.add_dataset(db, DATA)
    yield opened
    opened.close()


def add_model(service: Service, name: str, folder: Path, job_id: str | None = None) -> Model:
    entry = dataclasses.replace(TRAINED, id=str(uuid.uuid4()), name=name, path=str(folder), job_id=job_id)
    with service.store.write() as db:
        added = catalog.add_model(db, entry)
    assert added
    return added


@pytest.fixture(scope="module")
def model(service: Service) -> Model:
    """A model with files of all kinds, and what is none of its files: links, hidden ones, a pipe."""
    folder = service.home.model("of-the-test")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / ".hidden").write_text("hidden")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / "link").symlink_to(service.home.store)
    (folder / "inner").symlink_to(folder / "config.json")
    (folder / "folder-link").symlink_to(service.home.root)
    os.mkfifo(folder / "pipe")
    return add_model(service, "mine", folder)


@pytest.fixture(scope="module")
def urls(http: httpx.Client, model: Model) -> dict[str, str]:
    """The address of each of the model's files."""
    listed = http.get(f"/models/{model.id}/download").json()["files"]
    return {file["rel"]: file["url"] for file in listed}


def job_with(service: Service, payload, model: Model, state: str = "completed") -> Job:
    """Return a job that made `model`."""
    job = service.submit(payload()).job
    with service.store.write() as db:
        jobs.update(db, job.id, output_model_id=model.id)
        db.conn.execute("UPDATE jobs SET state = ? WHERE id = ?", [state, job.id])
    return service.job(job.id)


def test_a_models_files_are_told_with_sizes_and_addresses_that_open_them_without_a_key(http, bare, model):
    answer = http.get(f"/api/models/{model.id}/download").json()
    assert (answer["model_id"], answer["name"], answer["version"]) == (model.id, "mine", 1)
    assert {file["rel"]: file["size"] for file in answer["files"]} == {name: len(FILES[name]) for name in FILES}
    for file in answer["files"]:
        assert set(file) == {"rel", "size", "url"}
        got = bare.get(file["url"])
        assert (got.status_code, got.content) == (200, FILES[file["rel"]])
        assert got.headers["content-length"] == str(file["size"])


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-", slice(5, None)),
        ("bytes=699999-9999999", slice(699_999, None)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=-9999999", slice(0, None)),
        ("Bytes=300000-600000", slice(300_000, 600_001)),
    ],
)
def test_a_part_is_206_with_its_place(bare, urls, asked, part):
    whole = FILES["model.safetensors"]
    got = bare.get(urls["model.safetensors"], headers={"Range": asked})
    start, end, _ = part.indices(len(whole))
    assert (got.status_code, got.content) == (206, whole[part])
    assert got.headers["content-range"] == f"bytes {start}-{end - 1}/{len(whole)}"
    assert got.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=700001-", "bytes=9999999-99999999", "bytes=-0"])
def test_a_part_that_is_not_there_is_416(bare, urls, asked):
    got = bare.get(urls["model.safetensors"], headers={"Range": asked})
    assert (got.status_code, got.headers["content-range"]) == (416, "bytes */700001")
    assert isinstance(got.json()["detail"], str)
    assert bare.get(urls["README.md"], headers={"Range": "bytes=0-"}).status_code == 416


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=5-1", "lines=1-2", "bytes=-", "bytes=x", "bytes=1-2-3", ""])
def test_other_ranges_are_answered_with_the_whole(bare, urls, asked):
    got = bare.get(urls["model.safetensors"], headers={"Range": asked})
    assert (got.status_code, len(got.content)) == (200, 700_001)
    assert got.headers["accept-ranges"] == "bytes"


def test_a_part_of_what_has_changed_is_answered_with_the_whole(bare, urls, model):
    url = urls["config.json"]
    tag = bare.get(url).headers["etag"]
    part = {"Range": "bytes=2-2"}
    assert bare.get(url, headers={**part, "If-Range": tag}).content == b" "
    for other in ('"x"', f"W/{tag}", "Sun, 22 Nov 2026 10:00:00 GMT"):
        assert bare.get(url, headers={**part, "If-Range": other}).status_code == 200
    file = Path(model.path) / "config.json"
    file.write_bytes(b'{"b": 2}')
    changed = bare.get(url, headers={**part, "If-Range": tag})
    assert (changed.status_code, changed.content) == (200, b'{"b": 2}')
    file.write_bytes(FILES["config.json"])


@pytest.mark.parametrize(
    "rel",
    [
        "../../store.db",
        "..",
        "sub dir/../../of-the-test/config.json",
        "/etc/passwd",
        "//etc/passwd",
        ".hidden",
        ".git/config",
        "link",
        "inner",
        "folder-link/store.db",
        "pipe",
        "sub dir",
        "none",
        "",
        "config.json\0",
        "config.json/",
    ],
)
def test_nothing_but_the_models_own_files_is_opened(bare, service, model, rel):
    url = service.signer.sign("GET", f"/signed/models/{model.id}/{rel}")
    raw = re.sub(r"\.\.", "%2e%2e", url).replace("//etc", "/%2fetc")
    answer = bare.get(raw)
    assert answer.status_code == 404, answer.text
    assert str(service.home.root) not in answer.text


def test_an_address_of_one_file_opens_no_other_and_needs_its_signature(bare, http, urls, model):
    query = urls["config.json"].split("?")[1]
    other = urls["README.md"].split("?")[0]
    assert bare.get(f"{other}?{query}").status_code == 403
    assert http.get(other).status_code == 403
    assert bare.head(urls["config.json"]).status_code == 403
    assert http.get(f"/api/signed/models/{model.id}/config.json").status_code == 404


def test_only_a_key_for_models_gets_addresses_or_removes(bare, key_with, model):
    others, own = key_with("read", "train", "datasets", "billing"), key_with("models")
    assert bare.get(f"/models/{model.id}/download", headers=others).status_code == 403
    assert bare.delete(f"/models/{model.id}", headers=others).status_code == 403
    assert bare.get(f"/models/{model.id}/download", headers=own).status_code == 200


def test_a_model_without_files_or_one_that_was_imported_is_404(http, service, tmp_path):
    gone = add_model(service, "gone", tmp_path / "nowhere")
    assert http.get(f"/models/{gone.id}/download").status_code == 404
    for method, path in (("GET", f"/models/{BASE.id}/download"), ("DELETE", f"/models/{BASE.id}")):
        assert http.request(method, path).status_code == 404


def test_a_model_is_removed_with_its_files_unless_a_job_needs_it(http, service, payload):
    folder = service.home.model(str(uuid.UUID(int=70)))
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    entry = dataclasses.replace(TRAINED, id=folder.name, name="needed", path=str(folder))
    with service.store.write() as db:
        catalog.add_model(db, entry)
    request = payload(source_model_id=entry.id)
    del request["base_model_id"]
    job = http.post("/jobs", json=request).json()
    refused = http.delete(f"/models/{entry.id}")
    assert (refused.status_code, job["name"] in refused.json()["detail"]) == (409, True)
    assert http.post(f"/jobs/{job['id']}/cancel").status_code == 200
    answer = http.delete(f"/models/{entry.id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not folder.exists()
    assert http.get(f"/models/{entry.id}").status_code == 404


@pytest.fixture
def zip_url(service: Service, model: Model, payload) -> str:
    job = job_with(service, payload, model)
    return service.signer.sign("GET", f"/signed/jobs/{job.id}/weights.zip")


def test_a_model_comes_as_one_zip_of_a_known_length_and_the_same_bytes_every_time(bare, zip_url):
    first, second = bare.get(zip_url), bare.get(zip_url)
    assert (first.status_code, first.headers["content-type"]) == (200, "application/zip")
    assert first.headers["content-length"] == str(len(first.content))
    assert "mine-weights.zip" in first.headers["content-disposition"]
    assert first.content == second.content
    assert first.headers["etag"] == second.headers["etag"]
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES


def test_a_zip_that_broke_off_goes_on_where_it_was(bare, zip_url):
    whole = bare.get(zip_url)
    tag, size = whole.headers["etag"], len(whole.content)
    together = b""
    for start in (0, 100, 300_000, 650_000):
        together = together[:start]
        part = bare.get(zip_url, headers={"Range": f"bytes={start}-{min(start + 399_999, size - 1)}", "If-Range": tag})
        assert part.status_code == 206
        together += part.content
    assert together == whole.content
    assert bare.get(zip_url, headers={"Range": "bytes=-22"}).content == whole.content[-22:]
    assert bare.get(zip_url, headers={"Range": f"bytes={size}-"}).status_code == 416
    assert bare.get(zip_url, headers={"Range": "bytes=5-", "If-Range": '"old"'}).status_code == 200


def test_a_zip_is_made_while_it_is_sent(bare, service, payload):
    folder = service.home.model("large")
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(40_000_000)
    job = job_with(service, payload, add_model(service, "large", folder))
    url = service.signer.sign("GET", f"/signed/jobs/{job.id}/weights.zip")
    tracemalloc.start()
    try:
        with bare.stream("GET", url, headers={"Range": "bytes=20000000-"}) as answer:
            size = sum(len(piece) for piece in answer.iter_raw(65536))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == int(answer.headers["content-length"]) > 20_000_000
    assert peak < 8_000_000


def test_a_job_without_a_model_has_no_zip(bare, service, job_id):
    for one in (job_id, str(uuid.UUID(int=98)), "x"):
        assert bare.get(service.signer.sign("GET", f"/signed/jobs/{one}/weights.zip")).status_code == 404


@pytest.mark.slow  # loading the training stack takes many times longer than the rest
def test_what_the_zip_holds_loads_with_transformers(bare, service, payload, tmp_path):
    job = job_with(service, payload, add_model(service, "real", STARTER_MODEL))
    got = bare.get(service.signer.sign("GET", f"/signed/jobs/{job.id}/weights.zip"))
    with zipfile.ZipFile(io.BytesIO(got.content)) as archive:
        archive.extractall(tmp_path / "model")
    script = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "AutoTokenizer.from_pretrained(sys.argv[1]); "
        "print(AutoModelForCausalLM.from_pretrained(sys.argv[1]).num_parameters())"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == service.model("starter").params
