"""An object store on loopback: what gcsfs and TensorStore ask of Google Cloud Storage.

Objects are bytes in memory, each with a generation. It speaks the parts of the JSON API that the
two clients use: listing with prefix and delimiter, media with ranges, uploads (media, multipart,
resumable), rewrites, single and batched deletions, and generation preconditions. `on_request` sees
every request first and may answer in its place, wait, or end a process: that is how faults come in.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email.parser
import email.policy
import functools
import hashlib
import itertools
import json
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

BUCKET = "test-bucket"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asked: `number` counts from 1, `name` is the object's ("" for a listing)."""

    number: int
    method: str
    kind: str  # "read", "write", "delete", "list", "copy", "stat" or "bucket"
    name: str
    query: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True)
class _Object:
    data: bytes
    generation: int
    md5: str
    crc32c: str


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed or gave up leave broken connections: nothing to tell."""


class GcsServer:
    """One bucket; `objects` is what is in it, name -> bytes."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], Answer | None] = lambda request: None
        self._objects: dict[str, _Object] = {}
        self._uploads: dict[str, tuple[str, dict[str, str], bytearray]] = {}
        self._numbers = itertools.count(1)
        self._generations = itertools.count(1700000000000001)
        self._guard = threading.RLock()
        self._in_flight = 0
        self._idle = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which both clients find this server and send no credentials."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.endpoint,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "loopback",
            "STORAGE_EMULATOR_HOST": self.endpoint,
            "NO_GCE_CHECK": "true",  # nor looks for a metadata server
        }

    @property
    def objects(self) -> dict[str, bytes]:
        with self._guard:
            return {name: entry.data for name, entry in sorted(self._objects.items())}

    def put(self, name: str, data: bytes) -> int:
        """Puts an object as another client would; returns its generation."""
        with self._guard:
            generation = next(self._generations)
            md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
            crc = base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()
            self._objects[name] = _Object(data, generation, md5, crc)
            return generation

    def delete(self, name: str) -> None:
        with self._guard:
            del self._objects[name]

    def wait_until_idle(self, seconds: float = 30.0) -> None:
        """Returns once no request is being answered: what a client gave up may still change it."""
        with self._idle:
            assert self._idle.wait_for(lambda: not self._in_flight, seconds), self._in_flight

    def reset(self) -> None:
        """Forgets objects, requests and faults; requests that are under way are not among them."""
        self.on_request = lambda request: None
        self.wait_until_idle()
        with self._guard:
            self._objects.clear()
            self._uploads.clear()
            self.requests.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._idle:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        """Answers one request, alone or part of a batch."""
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if url.path.startswith("/batch/"):
            return self._batch(headers, body)
        kind, name, other = _read_path(method, url.path, query)
        if kind == "write" and not name:
            name = self._written(query, headers, body)
        with self._guard:
            request = Request(next(self._numbers), method, kind, name, query)
            self.requests.append(request)
        replaced = self.on_request(request)
        if replaced is not None:
            return replaced
        with self._guard:
            return self._reply(request, other, headers, body)

    def _reply(self, request: Request, other: str, headers: Any, body: bytes) -> Answer:
        kind, name, query = request.kind, request.name, request.query
        if kind == "bucket":
            return _json({"kind": "storage#bucket", "name": BUCKET, "locationType": "region"})
        if kind == "missing":
            return failure(404, f"{request.method} {name} is not served")
        if kind == "list":
            return self._list(query)
        if kind == "write":
            return self._write(request, headers, body)
        entry = self._objects.get(name)
        if entry is None:
            return failure(404, f"No such object: {name}")
        refused = self._precondition(name, query)
        if refused is not None:
            return refused
        if kind == "delete":
            del self._objects[name]
            return Answer(204, {}, b"")
        if kind == "copy":
            self.put(other, entry.data)
            size = str(len(entry.data))
            return _json(
                {
                    "kind": "storage#rewriteResponse",
                    "done": True,
                    "objectSize": size,
                    "totalBytesRewritten": size,
                    "resource": _resource(other, self._objects[other]),
                }
            )
        if kind == "stat":
            return _json(_resource(name, entry))
        return _media(entry, headers.get("Range", ""))

    def _precondition(self, name: str, query: dict[str, str]) -> Answer | None:
        entry = self._objects.get(name)
        generation = 0 if entry is None else entry.generation
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            return failure(412, f"{name}: generation is {generation}")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            return Answer(304, {}, b"")
        return None

    def _list(self, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start = query.get("pageToken", "")
        items, prefixes, last = [], [], ""
        most = int(query.get("maxResults", 1000))
        for name in sorted(self._objects):
            if not name.startswith(prefix) or (start and name <= start):
                continue
            if query.get("startOffset", "") > name:
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                continue
            at = name.find(delimiter, len(prefix)) if delimiter else -1
            if at >= 0:
                folder = name[: at + len(delimiter)]
                if folder not in prefixes and not start.startswith(folder):
                    prefixes.append(folder)
            else:
                items.append(_resource(name, self._objects[name]))
            last = name
            if len(items) + len(prefixes) >= most:
                break
        body = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
        if len(items) + len(prefixes) >= most:
            body["nextPageToken"] = last
        return _json(body)

    def _write(self, request: Request, headers: Any, body: bytes) -> Answer:
        query, how = request.query, request.query.get("uploadType")
        if how == "resumable":
            return self._resumable(request, headers, body)
        data = body if how == "media" else _parts(headers.get("Content-Type", ""), body)[1]
        return self._store(request.name, query, data)

    def _written(self, query: dict[str, str], headers: Any, body: bytes) -> str:
        """Returns the name that stands in the body, or was told at the start of the upload."""
        if "upload_id" in query:
            with self._guard:
                return self._uploads[query["upload_id"]][0]
        if query.get("uploadType") == "multipart":
            body = _parts(headers.get("Content-Type", ""), body)[0]
        return json.loads(body)["name"]

    def _resumable(self, request: Request, headers: Any, body: bytes) -> Answer:
        query = request.query
        identity = query.get("upload_id")
        if identity is None:
            identity = f"upload{next(self._generations)}"
            self._uploads[identity] = (request.name, query, bytearray())
            path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={identity}"
            return Answer(200, {"Location": self.endpoint + path}, b"")
        name, first, received = self._uploads[identity]
        if request.method == "DELETE":
            del self._uploads[identity]
            return Answer(499, {}, b"")
        stated = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
        if stated is None:
            total = str(len(body))
        else:
            total = stated[2]
            if stated[1] is not None:
                del received[int(stated[1]) :]
        received += body
        if total != "*" and len(received) == int(total):
            del self._uploads[identity]
            return self._store(name, first, bytes(received))
        got = {"Range": f"bytes=0-{len(received) - 1}"} if received else {}
        return Answer(308, got, b"")

    def _store(self, name: str, query: dict[str, str], data: bytes) -> Answer:
        refused = self._precondition(name, query)
        if refused is not None:
            return refused
        self.put(name, data)
        return _json(_resource(name, self._objects[name]))

    def _batch(self, headers: Any, body: bytes) -> Answer:
        """Several requests in one: multipart/mixed of application/http."""
        parsed = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
            b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body
        )
        out = []
        for part in parsed.iter_parts():
            method, target = part.get_payload(decode=True).decode().split()[:2]
            answer = self.answer(method, target, {}, b"")
            identity = str(part.get("Content-ID", "")).strip("<>")
            out.append(
                f"--batch\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{identity}>\r\n\r\n"
                f"HTTP/1.1 {answer.status} X\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(answer.body)}\r\n\r\n{answer.body.decode()}\r\n"
            )
        text = "".join(out) + "--batch--\r\n"
        return Answer(200, {"Content-Type": "multipart/mixed; boundary=batch"}, text.encode())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
            wbufsize = 2**16

            def _any(self) -> None:
                with store._counted():
                    body = self._body()
                    answer = store.answer(self.command, self.path, self.headers, body)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.status not in (204, 304):
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

        return Handler


def failure(status: int, message: str) -> Answer:
    """An error as the JSON API words it."""
    return _json({"error": {"code": status, "message": message, "errors": []}}, status)


def _read_path(method: str, path: str, query: dict[str, str]) -> tuple[str, str, str]:
    """Returns kind, object name, and the target of a copy."""
    uploaded = re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", path)
    if uploaded and uploaded[1] == BUCKET:
        return "write", query.get("name", ""), ""
    copied = re.fullmatch(
        rf"/storage/v1/b/{BUCKET}/o/([^/]+)/(?:rewriteTo|copyTo)/b/{BUCKET}/o/([^/]+)", path
    )
    if copied:
        return "copy", unquote(copied[1]), unquote(copied[2])
    found = re.fullmatch(rf"/(?:download/)?storage/v1/b/{BUCKET}(?:/o(?:/([^/]+))?)?", path)
    if found is None:
        return "missing", path, ""
    if found[1] is None:
        return ("list" if path.endswith("/o") else "bucket"), "", ""
    name = unquote(found[1])
    if method == "DELETE":
        return "delete", name, ""
    media = query.get("alt") == "media" or path.startswith("/download")
    return ("read" if media else "stat"), name, ""


def _resource(name: str, entry: _Object) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "id": f"{BUCKET}/{name}/{entry.generation}",
        "name": name,
        "bucket": BUCKET,
        "generation": str(entry.generation),
        "metageneration": "1",
        "size": str(len(entry.data)),
        "contentType": "application/octet-stream",
        "storageClass": "STANDARD",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
        "etag": str(entry.generation),
        "md5Hash": entry.md5,
        "crc32c": entry.crc32c,
    }


def _media(entry: _Object, asked: str) -> Answer:
    headers = {
        "Content-Type": "application/octet-stream",
        "x-goog-generation": str(entry.generation),
        "x-goog-metageneration": "1",
        "x-goog-stored-content-length": str(len(entry.data)),
        "x-goog-stored-content-encoding": "identity",
        "etag": str(entry.generation),
    }
    limits = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if limits is None:
        return Answer(200, headers, entry.data)
    total = len(entry.data)
    if limits[1]:
        first, last = int(limits[1]), min(int(limits[2] or total - 1), total - 1)
    else:
        first, last = max(total - int(limits[2]), 0), total - 1
    if first >= total:
        return Answer(416, {"Content-Range": f"bytes */{total}"}, b"")
    headers["Content-Range"] = f"bytes {first}-{last}/{total}"
    return Answer(206, headers, entry.data[first : last + 1])


def _parts(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """Returns the two parts of a multipart upload: metadata, data."""
    boundary = re.search(r"boundary=['\"]?([^'\";]+)", content_type)
    assert boundary is not None, content_type
    delimiter = b"--" + boundary[1].encode()
    # gcsfs ends lines with \n alone. The data may end with \r: it is not part of the delimiter.
    newline = b"\r\n" if body.startswith(delimiter + b"\r\n") else b"\n"
    pieces = (newline + body).split(newline + delimiter)[1:3]
    metadata, data = (piece.split(newline * 2, maxsplit=1)[1] for piece in pieces)
    return metadata, data


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


@contextlib.contextmanager
def gcs_server() -> Iterator[GcsServer]:
    server = GcsServer()
    try:
        yield server
    finally:
        server.close()


@functools.cache
def shared_server() -> GcsServer:
    """The one server that clients inside this process know: TensorStore reads its URL only once."""
    server = GcsServer()
    os.environ.update(server.environment)
    return server
