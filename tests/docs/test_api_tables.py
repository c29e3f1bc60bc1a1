"""The tables of docs/api.md are what the code does: requests, scopes, settings, states, codes, limits, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from engine.data import sources
from engine.jobs import specs
from engine.jobs.hyperparams import HYPERPARAMS
from engine.paths import Home
from engine.service import Service
from engine.settings import Settings
from engine.transfer import signing, uploads
from fusion_tui.api import body, guard, server, wire
from fusion_tui.api.felix import jobs as felix
from fusion_tui.api.felix.requests import DATASETS_AT_MOST, TrainingJobRequest
from fusion_tui.api.felix.statuses import OF_STATE
from fusion_tui.api.server import create_app
from tests.api.test_api_bad_input import SCOPE_OF
from tests.docs.api_text import ROOT, TEXT, table

REQUEST = re.compile(r"`(GET|POST|PUT|PATCH|DELETE) (/[^`?]*)`")
PAGES = {("GET", "/openapi.json"), ("GET", "/docs")}  # which the document does not tell of
DIALECTS = {"A": "Requests of dialect A", "B": "Requests of dialect B"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The paths of the OpenAPI document, without the second mount of dialect A."""
    service = Service(Home(tmp_path_factory.mktemp("home")), config=Settings())
    served = create_app(service).openapi()["paths"]
    service.close()
    return {path: methods for path, methods in served.items() if not path.startswith("/api/")}


def requests(*dialects: str) -> dict[tuple[str, str], str]:
    """Return the documented requests, each with its scope as it is written."""
    rows = [row for dialect in dialects for row in table(DIALECTS[dialect])]
    return {(found[1], found[2]): scope for cell, scope, _ in rows for found in REQUEST.finditer(cell)}


def written(value: Any) -> str:
    """Return a default as the tables have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def test_every_request_stands_in_the_table_of_its_dialect(paths: dict[str, Any]) -> None:
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    ours = {pair for pair in served if not pair[1].startswith(("/felix", "/inference"))}
    assert set(requests("A")) == ours | PAGES
    assert set(requests("B")) == served - ours


def test_every_request_tells_the_scope_that_it_needs() -> None:
    told = {pair: scope.strip("`") for pair, scope in requests("A", "B").items() if scope != "none"}
    assert told == SCOPE_OF
    assert {cell.strip("`") for cell, _ in table("The server and its key")} == set(SCOPE_OF.values())


def test_every_parameter_of_a_query_is_one_that_the_request_takes(paths: dict[str, Any]) -> None:
    for cell, _, _ in table(DIALECTS["A"]) + table(DIALECTS["B"]):
        for query in re.findall(r"`\?([^`]*)`", cell):
            (method, path), *more = REQUEST.findall(cell)
            taken = {one["name"] for one in paths[path][method.lower()]["parameters"] if one["in"] == "query"}
            assert not more
            assert {part.partition("=")[0] for part in query.split("&")} <= taken, cell


def test_the_settings_are_those_of_each_type_with_their_defaults() -> None:
    rows = {row[0].strip("`"): row[1:4] for row in table("Settings of a job")}
    assert set(rows) == {name for kind in HYPERPARAMS.values() for name in kind.model_fields}
    for place, kind in enumerate(("train", "finetune", "contract")):
        fields = HYPERPARAMS[kind].model_fields
        told = {name: cells[place] for name, cells in rows.items() if cells[place] != "–"}
        assert told == {name: written(field.default) for name, field in fields.items()}


def test_every_field_of_a_job_is_told() -> None:
    below = TEXT.split("### Settings of a job")[1].split("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+)`", below.split("\n\n")[-1]))
    assert told - {"hyperparams"} == set(specs.JobRequest.model_fields) - {"hyperparams"}


def test_the_fields_of_dialect_b_have_their_defaults() -> None:
    rows = {name.strip("`"): default.strip("`") for name, default, _ in table("Fields of a training job")}
    in_words = {"model_name": "generated", "nr_epochs": "10", "learning_rate": "the recipe's"}
    for name, field in TrainingJobRequest.model_fields.items():
        expected = "required" if field.is_required() else in_words.get(name, written(field.default))
        assert rows.pop(name) == expected, name
    assert rows == {}


def test_the_states_are_translated_as_the_table_says() -> None:
    rows = [[re.findall(r"`(\w+)`", cell) for cell in row] for row in table("Submit and poll")]
    assert {state: theirs[0] for ours, theirs in rows for state in ours} == OF_STATE


def test_every_code_has_its_remedy(paths: dict[str, Any]) -> None:
    answered = {code for methods in paths.values() for told in methods.values() for code in told["responses"]}
    outside = {"405", "414", "431", "500"}  # any request, so no route tells of them
    assert [row[0] for row in table("Errors")] == sorted({code for code in answered if code >= "400"} | outside)


def test_the_limits_are_those_of_the_code() -> None:
    told = dict(table("Limits"))
    expected = {
        "request line": [guard.MAX_TARGET // 1024],
        "headers": [guard.MAX_HEADERS, guard.MAX_HEADER_BYTES // 1024, wire.HEADER_DEADLINE_S],
        "JSON body": [guard.MAX_BODY >> 20, guard.BODY_DEADLINE_S, body.MAX_DEPTH, body.MAX_FIELDS, body.MAX_DIGITS],
        "file of an upload": [Settings().max_upload_gb, guard.BODY_DEADLINE_S],
        "line of a file of rows": [sources.CELL_AT_MOST >> 20, sources.JSON_AT_MOST >> 20],
        "connections at once": [wire.MAX_CONNECTIONS, server.KEEP_ALIVE_S],
        "an answer that its client does not take": [wire.READ_DEADLINE_S],
        "key": [guard.MAX_KEY],
        "signed address": [signing.LIFETIME_S],
        "upload of which nothing was made": [uploads.STALE_S / 3600],
        "`GET /felix/training-jobs`": [felix.LIMIT],
        "`POST /felix/training-jobs`": [felix.SUBMITS_A_MINUTE],
        "datasets of a job": [DATASETS_AT_MOST],
    }
    for what, numbers in expected.items():
        assert [float(n) for n in re.findall(r"\d+", told[what])] == [float(n) for n in numbers], what


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        file, _, anchor = target.partition("#")
        place = (ROOT / "docs" / file).resolve() if file else ROOT / "docs" / "api.md"
        assert place.exists(), target
        headings = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


def test_every_script_of_examples_is_told_of() -> None:
    there = {path.name for path in Path(ROOT / "examples").glob("*.py")}
    assert {name for name in there if f"(../examples/{name})" not in TEXT} == set()
