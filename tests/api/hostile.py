"""Requests that no client sends by mistake, as bytes, each with the statuses that the design leaves for it.

`@HOST@` and `@KEY@` stand for the address of the server and a good key: most cases carry it, to get past the guard.
"""

from __future__ import annotations

import gzip
import json

HOST = b"Host: @HOST@\r\n"
AUTH = b"Authorization: Bearer @KEY@\r\n"
JSON = b"Content-Type: application/json\r\n"
READ = HOST + AUTH
POST = b"POST /jobs HTTP/1.1\r\n" + HOST + AUTH + JSON
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def get(target: bytes, headers: bytes = READ, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + headers + b"\r\n"


def post(body: bytes, headers: bytes = b"") -> bytes:
    return POST + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


# Name: the bytes, and the statuses that the design leaves for them.
LINES: dict[str, tuple[bytes, set[int]]] = {
    "control characters": (b"\x00\x01\x02\r\n\r\n", {400}),
    "no target": (b"GET\r\n\r\n", {400}),
    "HTTP/0.9": (b"GET /health\r\n\r\n", {400}),
    "HTTP/0.9 in words": (get(b"/health", version=b"HTTP/0.9"), {400}),
    "HTTP/2 in words": (get(b"/health", version=b"HTTP/2.0"), {400}),
    "HTTP/3 in words": (get(b"/health", version=b"HTTP/3"), {400}),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", {400}),
    "TLS hello": (bytes.fromhex("16030100c5010000c10303") + bytes(range(190)) + b"\r\n\r\n", {400}),
    "SSH banner": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", {400}),
    "a lower-case version": (get(b"/health", version=b"http/1.1"), {400}),
    "a space before the method": (b" " + get(b"/health"), {400}),
    "two spaces": (get(b" /health"), {400}),
    "a tab for a space": (b"GET\t/health\tHTTP/1.1\r\n" + READ + b"\r\n", {400}),
    "a method of 10 kB": (b"G" * 10_000 + b" /jobs HTTP/1.1\r\n" + READ + b"\r\n", {400, 414}),
    "a method that is no token": (b"G@T /jobs HTTP/1.1\r\n" + READ + b"\r\n", {400}),
    "a target over 8 KiB": (get(b"/jobs?" + b"x" * 8192), {414}),
    "a target of 60 kB": (get(b"/jobs?" + b"x" * 60_000), {400, 414}),
    "raw UTF-8 in the target": (get("/jobs/é".encode()), {400}),
    "a NUL in the target": (get(b"/jobs/\x00"), {400}),
    "a DEL in the target": (get(b"/jobs/\x7f"), {400}),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + READ + b"\r\n", {403, 404}),
    "TRACE": (b"TRACE /jobs HTTP/1.1\r\n" + READ + b"\r\n", {405}),
    "OPTIONS of all": (b"OPTIONS * HTTP/1.1\r\n" + READ + b"\r\n", {404}),
    "an absolute target elsewhere": (get(b"http://evil.example/jobs"), {400, 404, 421}),
    "an absolute target here": (get(b"http://@HOST@/jobs"), {200, 404}),
    "an authority before the path": (get(b"//evil.example/jobs"), {404}),
    "a fragment": (get(b"/jobs#x"), {400, 404}),
}
PATHS: dict[str, tuple[bytes, set[int]]] = {
    "dots": (get(b"/health/../jobs"), {404}),
    "dots, percent-encoded": (get(b"/health/%2e%2e/jobs"), {404}),
    "dots and slashes, percent-encoded": (get(b"/jobs/..%2f..%2f..%2fetc%2fpasswd"), {404}),
    "dots, encoded twice": (get(b"/jobs/%252e%252e%252fkeys"), {404}),
    "backslashes": (get(b"/jobs/..%5c..%5ckeys"), {404}),
    "a percent-encoded NUL": (get(b"/jobs/%00"), {404}),
    "a percent-encoded NUL after a good path": (get(b"/jobs%00"), {404}),
    "a percent-encoded newline": (get(b"/jobs/%0d%0aX-Injected:%20yes"), {404}),
    "an overlong slash": (get(b"/jobs/%c0%af..%c0%afkeys"), {404}),
    "half a surrogate pair": (get(b"/jobs/%ed%a0%80"), {404}),
    "a broken escape": (get(b"/jobs/%zz%"), {404}),
    "an id of 8 kB": (get(b"/jobs/" + b"a" * 8000), {404}),
    "an id in other digits": (get(b"/jobs/" + b"%D9%A1" * 8 + b"-0000-0000-0000-000000000000"), {404}),
    "half a surrogate pair in the query": (get(b"/jobs?status=%ed%a0%80"), {422}),
    "a NUL in the query": (get(b"/jobs?status=queued%00"), {422}),
    "a number beyond SQLite's": (get(b"/jobs?offset=9223372036854775808"), {422}),
    "a number of 5,000 digits": (get(b"/jobs?limit=" + b"9" * 5000), {422}),
    "the same parameter twice": (get(b"/jobs?limit=1&limit=oops"), {422}),
    "a signed address without its signature": (get(b"/signed/uploads/00000000-0000-0000-0000-000000000001"), {403}),
    "a signed address with an empty one": (get(b"/signed/models/x/y?expires=9999999999&signature="), {403}),
    "a signed address with a signature of another kind": (
        get(b"/signed/models/x/y?expires=9999999999&expires=1&signature=%00%ff&signature=" + b"0" * 64),
        {403},
    ),
    "a signed address that never expires": (get(b"/signed/x?expires=" + b"9" * 400 + b"&signature=0"), {403}),
    "a signed address behind dots": (get(b"/signed/../jobs"), {403}),
    "a signed address, percent-encoded": (get(b"/%73igned/models/x/y"), {403}),
    "a signed address under the other mount": (get(b"/api/signed/models/x/y"), {404}),
    "a file of the page's that is none": (get(b"/docs/..%2f..%2fetc%2fpasswd"), {404}),
    "the open path behind a slash": (get(b"//health", HOST), {401}),
    "the open path with a newline": (get(b"/health%0a", HOST), {401}),
    "the open path with a NUL": (get(b"/health%00", HOST), {401}),
    "the open path and dots": (get(b"/health/../jobs", HOST), {401}),
    "the open path in capitals": (get(b"/HEALTH", HOST), {401}),
}
MANY = b"".join(b"X-%d: 1\r\n" % n for n in range(63))
HEADERS: dict[str, tuple[bytes, set[int]]] = {
    "64 headers": (get(b"/health", HOST + MANY), {200}),
    "65 headers": (get(b"/health", HOST + MANY + b"X: 1\r\n"), {431}),
    "3,000 headers": (get(b"/health", HOST + b"a:\r\n" * 3000), {431}),
    "16 KiB of headers": (get(b"/health", HOST + b"X: " + b"x" * 16_384 + b"\r\n"), {400, 431}),
    "a name of 16 KiB": (get(b"/health", HOST + b"x" * 16_384 + b": 1\r\n"), {400, 431}),
    "a folded header": (get(b"/health", HOST + b"X: a\r\n b\r\n"), {200, 400}),
    "a folded host": (get(b"/health", b"Host: @HOST@\r\n .evil.example\r\n"), {400, 421}),
    "folding before any header": (get(b"/health", b" x: y\r\n" + HOST), {400}),
    "a NUL in a value": (get(b"/health", HOST + b"X: a\x00b\r\n"), {400}),
    "a bare CR in a value": (get(b"/health", HOST + b"X: a\rHost: evil.example\r\n"), {400}),
    "bare LF between headers": (get(b"/health", HOST + b"X: a\nHost: evil.example\r\n"), {400}),
    "bare LF alone": (get(b"/health", HOST).replace(b"\r\n", b"\n"), {200, 400}),
    "a space before the colon": (get(b"/health", HOST + b"X : a\r\n"), {400}),
    "no name": (get(b"/health", HOST + b": a\r\n"), {400}),
    "no colon": (get(b"/health", HOST + b"X\r\n"), {400}),
    "a name in UTF-8": (get(b"/health", HOST + "Ü: a\r\n".encode()), {400}),
    "a value in UTF-8": (get(b"/health", HOST + "X: ü\r\n".encode()), {200}),
    "an underscore that would be a dash": (get(b"/jobs", HOST + b"X_API_Key: @KEY@\r\n"), {401}),
    "no host": (get(b"/health", b""), {400}),
    "no host, HTTP/1.0": (get(b"/health", b"", b"HTTP/1.0"), {421}),
    "two hosts": (get(b"/health", HOST + HOST), {400}),
    "two hosts, HTTP/1.0": (get(b"/health", HOST + b"Host: evil.example\r\n", b"HTTP/1.0"), {400, 421}),
    "an empty host": (get(b"/health", b"Host:\r\n"), {421}),
    "another host that claims to forward": (
        get(b"/health", b"Host: evil.example\r\nX-Forwarded-Host: @HOST@\r\nForwarded: host=@HOST@\r\n"),
        {421},
    ),
    "a host of 10 kB": (get(b"/health", b"Host: " + b"a" * 10_000 + b"\r\n"), {421}),
    "another method by header": (b"POST /jobs HTTP/1.1\r\n" + READ + b"X-HTTP-Method-Override: GET\r\n\r\n", {415}),
    "a websocket": (
        get(
            b"/jobs",
            HOST
            + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        {401},
    ),
    "HTTP/2 by upgrade": (
        get(b"/jobs", HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        {401},
    ),
    "a preflight": (
        b"OPTIONS /jobs HTTP/1.1\r\n" + HOST + b"Origin: http://evil.example\r\n"
        b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Private-Network: true\r\n\r\n",
        {401},
    ),
}
BODY = b'{"type": "finetune"}'


def framed(headers: bytes, body: bytes = BODY) -> bytes:
    return POST + headers + b"\r\n" + body


FRAMES: dict[str, tuple[bytes, set[int]]] = {
    "two lengths": (framed(b"Content-Length: 20\r\nContent-Length: 5\r\n"), {400}),
    "two lengths in one": (framed(b"Content-Length: 20, 5\r\n"), {400}),
    "the same length twice": (framed(b"Content-Length: 20\r\nContent-Length: 20\r\n"), {400, 422}),
    "a negative length": (framed(b"Content-Length: -1\r\n"), {400}),
    "a length with a plus": (framed(b"Content-Length: +20\r\n"), {400}),
    "a length with leading zeros": (framed(b"Content-Length: 0000020\r\n"), {400, 422}),
    "a length in hexadecimal": (framed(b"Content-Length: 0x14\r\n"), {400}),
    "a length with an exponent": (framed(b"Content-Length: 2e1\r\n"), {400}),
    "a length with an underscore": (framed(b"Content-Length: 2_0\r\n"), {400}),
    "a length in other digits": (framed("Content-Length: ٢٠\r\n".encode()), {400}),
    "a length with a space": (framed(b"Content-Length: 2 0\r\n"), {400}),
    "an empty length": (framed(b"Content-Length:\r\n"), {400}),
    "a length of 20 digits": (framed(b"Content-Length: " + b"9" * 20 + b"\r\n"), {400, 413}),
    "a length of 5,000 digits": (framed(b"Content-Length: " + b"9" * 5000 + b"\r\n"), {400, 413}),
    "a length over the limit": (framed(b"Content-Length: 1048577\r\n", b""), {413}),
    "a length and chunks": (framed(b"Content-Length: 20\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), {400}),
    "chunks and a length": (framed(b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"0\r\n\r\n"), {400}),
    "another coding": (framed(b"Transfer-Encoding: gzip\r\n"), {400}),
    "another coding before chunks": (framed(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), {400}),
    "identity": (framed(b"Transfer-Encoding: identity\r\n"), {400}),
    "chunks twice": (framed(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), {400}),
    "two coding headers": (framed(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", b"0\r\n\r\n"), {400}),
    "a coding that only looks so": (framed(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), {400}),
    "chunks in HTTP/1.0": (
        (POST.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        {400},
    ),
    "a chunk size that is none": (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", {400}),
    "a negative chunk size": (CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n", {400}),
    "a chunk size with 0x": (CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n", {400}),
    "a chunk size of 30 digits": (CHUNKED + b"F" * 30 + b"\r\n{}", {400}),
    "a chunk without its end": (CHUNKED + b"2\r\n{}0\r\n\r\n", {400}),
    "a chunk extension of 20 kB": (CHUNKED + b"2;" + b"x" * 20_000 + b"\r\n{}\r\n0\r\n\r\n", {400, 422}),
    "a chunk extension": (CHUNKED + b'2;a="\r\n{}\r\n0\r\n\r\n', {400, 422}),
    "a trailer that is a header": (CHUNKED + b"2\r\n{}\r\n0\r\nHost: evil.example\r\n\r\n", {400, 422}),
    "a trailer of 20 kB": (CHUNKED + b"2\r\n{}\r\n0\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", {400, 422}),
    "chunks beyond the limit": (CHUNKED + (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 17, {413}),
    "a body where none is read": (get(b"/jobs", READ + b"Content-Length: 2\r\n") + b"{}", {200}),
    "a request inside a body": (post(get(b"/keys"), b""), {400}),
}
BODIES: dict[str, tuple[bytes, set[int]]] = {
    "nothing": (post(b""), {400}),
    "deep": (post(b'{"a":' * 100_000), {400}),
    "deep and whole": (post(b'{"tags": ' + b"[" * 500_000 + b"]" * 500_000 + b"}"), {400}),
    "a key twice": (post(b'{"type": "train", "type": "finetune"}'), {400}),
    "a key twice, escaped": (post(b'{"type": "train", "t\\u0079pe": "finetune"}'), {400}),
    "NaN": (post(b'{"hyperparams": {"lr": NaN}}'), {400}),
    "a huge exponent": (post(b'{"hyperparams": {"lr": 1e400}}'), {400}),
    "a number of 100,000 digits": (post(b'{"hyperparams": {"steps": ' + b"9" * 100_000 + b"}}"), {400}),
    "no UTF-8": (post(b'{"name": "\xc0\xaf"}'), {400}),
    "UTF-16": (post('{"name": "x"}'.encode("utf-16")), {400}),
    "UTF-7 announced": (
        post(BODY).replace(b"application/json", b"application/json; charset=utf-7"),
        {415},
    ),
    "half a surrogate pair": (post(b'{"name": "\\ud83d"}'), {400}),
    "a byte-order mark": (post(b"\xef\xbb\xbf" + BODY), {400}),
    "gzip": (post(gzip.compress(BODY), b"Content-Encoding: gzip\r\n"), {415}),
    "a bomb of gzip": (post(gzip.compress(b" " * 10**8, 1), b"Content-Encoding: gzip\r\n"), {413, 415}),
    "a form": (post(b"type=finetune").replace(b"application/json", b"application/x-www-form-urlencoded"), {415}),
    "JSON as text, which needs no preflight": (post(BODY).replace(b"application/json", b"text/plain"), {415}),
    "multipart": (
        post(b'--x\r\nContent-Disposition: form-data; name="type"\r\n\r\nfinetune\r\n--x--\r\n').replace(
            b"application/json", b"multipart/form-data; boundary=x"
        ),
        {415},
    ),
    "the prototype": (post(b'{"__proto__": {"a": 1}, "__class__": "x", "constructor": 1}'), {422}),
    "20,000 fields": (post(json.dumps({str(n): n for n in range(20_000)}).encode()), {400}),
    "SQL": (post(b'{"type": "finetune\' OR 1=1; DROP TABLE jobs; --"}'), {422}),
}
# What is sent at once, what again and again after that, and the statuses that come before the server hangs up.
SLOW: dict[str, tuple[bytes, bytes, list[int]]] = {
    "nothing": (b"", b"", []),
    "empty lines": (b"", b"\r\n", [400]),
    "half a request line": (b"GET /hea", b"", []),
    "a request line, byte by byte": (b"GET /", b"x", []),
    "half the headers": (b"GET /health HTTP/1.1\r\n" + HOST, b"", []),
    "header after header": (b"GET /health HTTP/1.1\r\n" + HOST, b"a: b\r\n", []),
    "a body that does not come": (POST + b"Content-Length: 20\r\n\r\n", b"", [408]),
    "a body, byte by byte": (POST + b"Content-Length: 2000\r\n\r\n", b" ", [408]),
    "a body that is awaited": (POST + b"Expect: 100-continue\r\nContent-Length: 20\r\n\r\n", b"", [408]),
    "chunk after chunk": (CHUNKED, b"1\r\n \r\n", [408]),
    "a chunk of 16 digits": (CHUNKED + b"FFFFFFFFFFFFFFFF\r\n", b"x" * 64, [408]),
    "a chunk extension, byte by byte": (CHUNKED + b"2;", b"x", [408]),
    "a trailer, byte by byte": (CHUNKED + b"2\r\n{}\r\n0\r\nX: ", b"x", [408]),
    "no body to a refusal": (b"POST /jobs HTTP/1.1\r\n" + HOST + b"Content-Length: 20\r\n\r\n", b"", [401]),
    "a body without end to a refusal": (
        b"POST /jobs HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\n \r\n",
        [401],
    ),
    "no body where none is read": (get(b"/jobs?limit=1", READ + b"Content-Length: 20\r\n"), b"", [200]),
    "nothing after an answer": (get(b"/health", HOST), b"", [200]),
    "half a request after an answer": (get(b"/health", HOST) + b"GET /heal", b"", [200]),
    "a second request, byte by byte": (get(b"/health", HOST) + b"GET /", b"x", [200]),
}
LONG = b"k" * 10_240


def keyed(*headers: bytes) -> bytes:
    return get(b"/jobs", HOST + b"".join(header + b"\r\n" for header in headers))


KEYS: dict[str, tuple[bytes, set[int]]] = {
    "none": (keyed(), {401}),
    "in the query": (get(b"/jobs?key=@KEY@&api_key=@KEY@&access_token=@KEY@&token=@KEY@&X-API-Key=@KEY@", HOST), {401}),
    "in a cookie": (keyed(b"Cookie: key=@KEY@; X-API-Key=@KEY@; Authorization=Bearer @KEY@"), {401}),
    "Basic": (keyed(b"Authorization: Basic @KEY@"), {401}),
    "the word alone": (keyed(b"Authorization: Bearer"), {401}),
    "without the word": (keyed(b"Authorization: @KEY@"), {401}),
    "a tab for the space": (keyed(b"Authorization: Bearer\t@KEY@"), {401}),
    "a space inside": (keyed(b"Authorization: Bearer @KEY@ @KEY@"), {401}),
    "a comma behind": (keyed(b"Authorization: Bearer @KEY@,"), {401}),
    "quoted": (keyed(b'X-API-Key: "@KEY@"'), {401}),
    "empty": (keyed(b"X-API-Key:"), {401}),
    "10 kB": (keyed(b"X-API-Key: " + LONG), {401}),
    "10 kB that begin with it": (keyed(b"X-API-Key: @KEY@" + LONG), {401}),
    "no ASCII": (keyed("X-API-Key: ключ".encode()), {401}),
    "a non-breaking space behind": (keyed("X-API-Key: @KEY@\u00a0".encode()), {401}),
    "by proxy": (keyed(b"Proxy-Authorization: Bearer @KEY@"), {401}),
    "a wrong one first": (keyed(b"Authorization: Bearer wrong", b"Authorization: Bearer @KEY@"), {401}),
    "its hash": (keyed(b"X-API-Key: @HASH@"), {401}),
    "its prefix": (keyed(b"X-API-Key: @PREFIX@"), {401}),
    "its id": (keyed(b"X-API-Key: @ID@"), {401}),
    "SQL": (keyed(b"X-API-Key: ' OR '1'='1"), {401}),
    "a wildcard": (keyed(b"X-API-Key: %"), {401}),
    "another case": (keyed(b"X-API-Key: @UPPER@"), {401}),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "line": LINES,
        "path": PATHS,
        "header": HEADERS,
        "frame": FRAMES,
        "body": BODIES,
        "key": KEYS,
    }.items()
    for name, case in cases.items()
}
