"""The page of the document: whole without a network and without a key, and able to run nothing else."""

from __future__ import annotations

import re

from fusion_tui.api import docs


def test_the_page_and_all_it_needs_come_from_here_without_a_key(bare):
    page = bare.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(wanted) == 4
    kinds = {"js": "javascript", "css": "text/css", "png": "image/png"}
    for path in wanted:
        assert path.startswith("/docs/")
        found = bare.get(path)
        assert found.status_code == 200
        assert kinds[path.rpartition(".")[2]] in found.headers["content-type"]
        assert len(found.content) > 100
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "//" not in bare.get("/docs/start.js").text
    assert '"/openapi.json"' in bare.get("/docs/start.js").text


def test_a_strict_policy_stands_on_the_page_and_no_script_in_it(bare):
    for path in docs.PATHS:
        policy = bare.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script>|on\w+=|style=", bare.get("/docs").text)


def test_nothing_else_below_the_page_is_there(bare, http):
    for path in ("/docs/", "/docs/../store.db", "/docs/%2e%2e/core.py", "/docs/redoc.standalone.js", "/redoc"):
        assert bare.get(path).status_code in (401, 404)
        assert http.get(path).status_code == 404
    assert bare.post("/docs").status_code == 401


def test_the_document_says_what_each_route_is_about_and_shows_bodies_by_example(bare):
    document = bare.get("/openapi.json").json()
    described = {tag["name"] for tag in document["tags"]}
    assert document["info"]["title"] == "Fusion TUI"
    assert document["info"]["description"]
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert set(operation["tags"]) <= described, path
            assert operation["description"], (method, path)
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body and operation["tags"] != ["felix: not yet"]:
                refs = [body["schema"], *body["schema"].get("oneOf", [])]
                named = [schemas[one["$ref"].rpartition("/")[2]] for one in refs if "$ref" in one]
                assert named, path
                assert all(one.get("examples") for one in named), (path, [one["title"] for one in named])
