"""A hub on this machine: the few routes that huggingface_hub's uploads use, in the real shapes.

It keeps what it gets in memory, and every request with its answer's status.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from huggingface_hub import constants

WRITER, READER = "hf_" + "w" * 34, "hf_" + "r" * 34
ROLES = {WRITER: "write", READER: "read"}
OWNER = "ann"
BINARY = (".safetensors", ".gguf", ".parquet")


@dataclass
class Repo:
    """A repository: `kind` is model or dataset."""

    kind: str
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the server holds."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, int]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        if path.startswith("/blobs/"):  # as on S3: the address is the permission
            self.blobs[path.removeprefix("/blobs/")] = body
            return 200, {}
        if token not in ROLES:
            return 401, {"error": "Invalid credentials in Authorization header"}
        self.tokens.add(token)
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            access = {"displayName": "t", "role": ROLES[token]}
            return 200, {"type": "user", "name": OWNER, "auth": {"accessToken": access}}
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, self._batch(json.loads(body))
        if parts[0] == "api" and len(parts) >= 4:
            repo = self.repos.get(f"{parts[2]}/{parts[3]}")
            if repo is None:
                return 404, {"error": "Repository not found"}
            if len(parts) == 4:
                name = f"{parts[2]}/{parts[3]}"
                about = {"id": name, "modelId": name, "sha": "c" * 40, "private": repo.private}
                return 200, about | {"tags": [], "siblings": []}
            if parts[4] == "preupload":
                return 200, {"files": [self._mode(repo, one) for one in json.loads(body)["files"]]}
            if parts[4] == "commit":
                return 200, self._commit(f"{parts[2]}/{parts[3]}", repo, body)
        return 404, {"error": "Not found"}

    def _validate(self, content: str) -> tuple[int, Any]:
        try:
            head = yaml.safe_load(content.split("---")[1])
            assert isinstance(head, dict)
        except Exception as error:
            return 400, {"errors": [{"message": f"Invalid YAML: {error}"}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked["organization"] or OWNER
        name = f"{owner}/{asked['name']}"
        if owner != OWNER:
            return 403, {"error": "You don't have the rights to create a repository there"}
        kind = asked.get("type", "model")
        url = {"url": self._page(name, kind)}
        if name in self.repos:
            return 409, url | {"error": "You already created this repo"}
        self.repos[name] = Repo(kind, asked.get("visibility") == "private")
        return 200, url

    def _page(self, name: str, kind: str) -> str:
        return f"{self.address}/{'datasets/' if kind == 'dataset' else ''}{name}"

    def _mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        path = file["path"]
        large = path.endswith(BINARY)
        there = repo.files.get(path)
        oid = None
        if there is not None:
            whole = there if large else b"blob %d\0" % len(there) + there
            oid = (hashlib.sha256 if large else hashlib.sha1)(whole).hexdigest()
        mode = "lfs" if large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {
            "transfer": "basic",
            "objects": [
                one | {"actions": {"upload": {"href": f"{self.address}/blobs/{one['oid']}"}}}
                for one in asked["objects"]
            ],
        }

    def _commit(self, name: str, repo: Repo, body: bytes) -> dict[str, Any]:
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                repo.commits.append(value["summary"])
            elif row["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                repo.files[value["path"]] = self.blobs[value["oid"]]
        oid = "c" * 40
        return {"commitUrl": f"{self._page(name, repo.kind)}/commit/{oid}", "commitOid": oid}


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub that listens on loopback until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            path = urlsplit(self.path).path
            status, data = hub.answer(self.command, path, body, token)
            hub.requests.append((f"{self.command} {path}", status))
            content = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _handle

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the tests read `requests`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, and a person who is logged in there."""
    with serve_hub() as made:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its store is another server
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield made
