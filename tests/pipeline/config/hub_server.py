"""A stand-in for the Hugging Face hub on this machine: repositories from folders, over HTTP.

Answers what `huggingface_hub` asks to fetch a snapshot: what a repository is, its files, and each
file with its headers. Counts what it was asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GATED = "gated"


@dataclass
class Hub:
    """Repositories by kind and name ("models/org/name"): revision -> commit -> files."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict[str, Any])
    refs: dict[str, dict[str, str]] = field(default_factory=dict[str, Any])
    asked: list[str] = field(default_factory=list[str])
    gated: set[str] = field(default_factory=set[str])

    def push(self, repository: str, files: dict[str, bytes], ref: str = "main") -> str:
        """Add a commit that the ref means from now on; returns its hash."""
        content = repr(sorted(files.items())).encode()
        commit = hashlib.sha1(content).hexdigest()
        self.commits.setdefault(repository, {})[commit] = files
        self.refs.setdefault(repository, {})[ref] = commit
        return commit

    def commit_of(self, repository: str, revision: str) -> str | None:
        found = self.refs.get(repository, {}).get(revision, revision)
        return found if found in self.commits.get(repository, {}) else None


def _blob(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve() -> Generator[Hub, None, None]:
    """A hub that answers at its `url`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as there
            del format, args

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/").replace("%2F", "/")
            hub.asked.append(path)
            parts = path.split("/")
            if parts[0] == "api":
                repository = "/".join(parts[1:4])
                what, revision = (*parts[4:], "", "main")[:2]
                revision = "/".join(parts[5:]) or "main"
                self._api(repository, what, revision)
            else:
                kind = "datasets" if parts[0] == "datasets" else "models"
                rest = parts[kind == "datasets" :]
                repository = f"{kind}/{rest[0]}/{rest[1]}"
                commit = hub.commit_of(repository, rest[3])
                files = hub.commits[repository][commit] if commit else {}
                self._file(files.get("/".join(rest[4:])), commit or "", body=body)

        def _api(self, repository: str, what: str, revision: str) -> None:
            if repository in hub.gated:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
                return
            if repository not in hub.commits:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            commit = hub.commit_of(repository, revision)
            if commit is None:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            files = hub.commits[repository][commit]
            if what == "tree":
                found: Any = [
                    {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
                    for name, content in files.items()
                ]
            else:
                name = repository.partition("/")[2]
                siblings = [{"rfilename": name} for name in files]
                found = {"id": name, "sha": commit, "siblings": siblings, "tags": []}
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

        def _file(self, content: bytes | None, commit: str, *, body: bool) -> None:
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": commit}
            self._send(200, content, headers, body=body)

        def _send(
            self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
