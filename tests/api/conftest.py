"""A real server on a free port over a real service, with a model and a dataset in the catalogue."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from fusion_tui.api.server import ApiServer
from store import catalog, keys

BASE = catalog.BaseModel(
    id=str(uuid.UUID(int=1)),
    family="llama",
    name="tiny",
    version=0,
    params=1234,
    precision="bf16",
    path="/nowhere/tiny",
    source="test",
    created_at=1.5,
)
DATA = catalog.Dataset(
    id=str(uuid.UUID(int=2)),
    name="rows",
    version=0,
    format="text",
    rows=3,
    shard_count=1,
    bytes=99,
    sha256="0" * 64,
    path="/nowhere/rows.jsonl",
    source="test",
    status="ready",
    created_at=2.25,
)
TRAINED = catalog.Model(
    id=str(uuid.UUID(int=3)),
    name="mine",
    version=0,
    family="llama",
    params=1234,
    precision="bf16",
    base_model_id=BASE.id,
    job_id=str(uuid.UUID(int=4)),
    path="/nowhere/mine",
    status="ready",
    created_at=3.0,
)
Payload = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = Settings(usd_per_gpu_hour=2.0, allowed_hosts=("box.lan", "proxy.lan:9000"))
    service = Service(Home(tmp_path_factory.mktemp("home") / "data"), config=config)
    with service.store.write() as db:
        catalog.add_base_model(db, BASE)
        catalog.add_dataset(db, DATA)
        catalog.add_model(db, TRAINED)
    yield service
    service.close()


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[ApiServer]:
    server = ApiServer(service, "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bare(api: ApiServer) -> Iterator[httpx.Client]:
    """A client without a key."""
    with httpx.Client(base_url=api.url, trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def http(api: ApiServer, service: Service) -> Iterator[httpx.Client]:
    """A client with the first key."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    with httpx.Client(base_url=api.url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def payload() -> Payload:
    """Make a request for a job under a fresh idempotency key."""

    def make(**fields: Any) -> dict[str, Any]:
        base = {"type": "finetune", "idempotency_key": str(uuid.uuid4()), "base_model_id": BASE.id}
        return {**base, "dataset_id": DATA.id, "hyperparams": {"steps": 10}, **fields}

    return make


@pytest.fixture
def job_id(http: httpx.Client, payload: Payload) -> str:
    """A queued job."""
    return str(http.post("/jobs", json=payload()).json()["id"])


@pytest.fixture
def key_with(service: Service) -> Callable[..., dict[str, str]]:
    """Make a key with these scopes; returns the header that carries it."""

    def make(*scopes: str) -> dict[str, str]:
        secret = f"fus_{uuid.uuid4()}"
        with service.store.write() as db:
            keys.add(db, id=str(uuid.uuid4()), name="narrow", secret=secret, scopes=scopes, now=5.0)
        return {"X-API-Key": secret}

    return make


@pytest.fixture(scope="module")
def felix_client(api: ApiServer) -> Iterator[httpx.Client]:
    """A client of dialect B, still without a key."""
    with httpx.Client(base_url=f"{api.url}/felix", trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def felix(felix_client: httpx.Client, key_with: Callable[..., dict[str, str]]) -> httpx.Client:
    """A client of dialect B under a key of its own, so that no test meets another's limit of requests."""
    felix_client.headers.update(key_with(*keys.SCOPES))
    return felix_client
