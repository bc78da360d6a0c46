"""A hub on loopback: what `huggingface_hub` asks of the real one to fetch a snapshot.

Repositories are plain folders {kind}s/{owner}/{name} under a root. It speaks the parts of the
protocol that the client uses: repository information by revision, the file tree, HEAD and GET of
files, and the error codes for missing, gated and private repositories.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "loopbackOnlySecret42"  # not one of the real hub's


class HubServer:
    """Serves `root`; `requests` lists (method, path, authorization) of everything asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str, str]] = []
        self.private: set[str] = set()  # owner/name that need TOKEN
        self.gated: set[str] = set()  # owner/name that TOKEN's owner may not read
        self.revisions: dict[str, str] = {}  # revision: the commit it stands for
        self.broken = False  # answers 500 to everything
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit_of(self, folder: Path) -> str:
        """A commit is the hash of what the folder holds."""
        sha = hashlib.sha1()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                sha.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
        return sha.hexdigest()

    def asked(self, part: str) -> list[str]:
        """Returns the paths asked for that contain `part`."""
        return [path for _, path, _ in self.requests if part in path]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # no connection outlives the server

            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _answer(self, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                authorization = self.headers.get("Authorization", "")
                hub.requests.append((self.command, path, authorization))
                status, headers, content = hub._reply(path, authorization)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

        return Handler

    def _reply(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        if self.broken:
            return 500, {}, b"broken"
        parts = path.strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 6 and parts[4] in ("revision", "tree"):
            kind, repo, revision = parts[1], "/".join(parts[2:4]), "/".join(parts[5:])
        elif "resolve" in parts:
            at = parts.index("resolve")
            kind = "datasets" if parts[0] == "datasets" else "models"
            repo, revision = "/".join(parts[at - 2 : at]), parts[at + 1]
        else:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        folder = self.root / kind / repo
        if not folder.is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if repo in self.private and authorization != f"Bearer {TOKEN}":
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        commit = self.commit_of(folder)
        if revision not in ("main", commit) and self.revisions.get(revision) != commit:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        if parts[0] == "api" and parts[4] == "revision":
            siblings = [{"rfilename": name} for name in sorted(files)]
            return self._json({"id": repo, "sha": commit, "siblings": siblings})
        if parts[0] == "api":
            entries = [
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": self._etag(p)}
                for name, p in sorted(files.items())
            ]
            return self._json(entries)
        name = "/".join(parts[parts.index("resolve") + 2 :])
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        headers = {"ETag": f'"{self._etag(files[name])}"', "X-Repo-Commit": commit}
        return 200, headers, files[name].read_bytes()

    def _etag(self, path: Path) -> str:
        return hashlib.sha1(path.read_bytes()).hexdigest()

    def _json(self, value: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def hub_server(root: Path) -> Iterator[HubServer]:
    server = HubServer(root)
    try:
        yield server
    finally:
        server.close()
