"""A small HTTP server that stands for the Hugging Face Hub: it serves data sets, and takes models, as a test says."""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _cache_assets

from biencoder.data.files.hub_copy import local_copy

TOKEN = "hf_of_a_test"
USER = "ada"

Answer = tuple[int, bytes, dict[str, str]]


class Repository:
    """The files of the last commit, and what the Hub says of them."""

    def __init__(self, files: Mapping[str, bytes], *, private: bool = False, writable: bool = True) -> None:
        self.files = dict(files)
        self.private, self.writable = private, writable

    @property
    def commit(self) -> str:
        """40 hex digits over the files."""
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()


class FakeHub:
    """Serves ``data_sets`` and ``models`` by name; a test changes them, and sets ``broken`` to a path that fails."""

    def __init__(self) -> None:
        self.data_sets: dict[str, Repository] = {}
        self.models: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # large files, by SHA-256
        self.broken = ""  # requests with this in their path get an error
        self.paths: list[str] = []
        self.closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables of a process that takes this for the Hub and ``home`` for its cache."""
        free_of_hub = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return free_of_hub | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | more

    def stand_in(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Let this process take it for the Hub, although the libraries have read their variables already."""
        changes: list[tuple[Any, str, Any]] = [
            (constants, "ENDPOINT", self.url),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"),
            (constants, "HF_HUB_OFFLINE", False),
            (constants, "HF_HUB_DISABLE_XET", True),
            (constants, "HF_HUB_CACHE", str(home / "hub")),
            (_cache_assets, "HF_ASSETS_CACHE", str(home / "assets")),
            (datasets.config, "HF_ENDPOINT", self.url),
            (datasets.config, "HUB_DATASETS_URL", self.url + "/datasets/{repo_id}/resolve/{revision}/{path}"),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_DATASETS_CACHE", str(home / "datasets")),
            (datasets.config, "HF_MODULES_CACHE", str(home / "modules")),
        ]
        for owner, name, value in changes:
            monkeypatch.setattr(owner, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        local_copy.cache_clear()

    def close(self) -> None:
        """From now on, nothing answers."""
        self.closed = True
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, method: str, path: str, body: bytes, token: str) -> Answer:
        """What the Hub says to a request."""
        self.paths.append(f"{method} {path}")
        if self.broken and self.broken in path:
            return _json({"error": "the disks of the Hub are full"}, 507)
        words = [unquote(word) for word in path.strip("/").split("/")]
        if words[:2] == ["api", "datasets"]:
            return self._of_repository(self.data_sets, words[2:], body)
        if words[:2] == ["api", "models"]:
            return self._of_repository(self.models, words[2:], body)
        if words[0] == "datasets" and words[3:4] == ["resolve"]:
            return self._file("/".join(words[1:3]), "/".join(words[5:]))
        if words == ["api", "whoami-v2"]:
            return _json({"type": "user", "name": USER, "orgs": []}) if token == TOKEN else _json({}, 401)
        if words == ["api", "repos", "create"]:
            return self._create(json.loads(body), token)
        if words == ["api", "validate-yaml"]:
            return _json({"errors": [], "warnings": []})
        if words[2:] == ["info", "lfs", "objects", "batch"]:
            return self._where_to_put(json.loads(body))
        if words[0] == "put":
            self.stored[words[1]] = body
            return 200, b"", {}
        return _missing("EntryNotFound")

    def _of_repository(self, kind: dict[str, Repository], words: list[str], body: bytes) -> Answer:
        name, rest = "/".join(words[:2]), words[2:]
        if name not in kind:
            return _missing("RepoNotFound")
        found = kind[name]
        if rest[:1] == ["revision"] and rest[1] not in ("main", found.commit):
            return _missing("RevisionNotFound")
        if not rest or rest[0] == "revision":
            files = [{"rfilename": file} for file in found.files]
            return _json({"id": name, "sha": found.commit, "private": found.private, "siblings": files})
        if rest[0] == "tree":
            return _tree(found.files, "".join(f"{word}/" for word in rest[2:]))
        if rest[0] == "paths-info":
            asked = json.loads(body)["paths"]
            return _json([_entry(file, content) for file, content in found.files.items() if file in asked])
        if rest[0] == "auth-check":
            return _json({}) if found.writable or rest[1:] != ["write"] else _json({"error": "read only"}, 403)
        if rest[0] == "preupload":
            return _json({"files": [_how_to_send(file["path"]) for file in json.loads(body)["files"]]})
        if rest[0] == "commit":
            self._commit(found, body)
            return _json({"commitUrl": f"{self.url}/{name}/commit/{found.commit}", "commitOid": found.commit})
        return _missing("EntryNotFound")

    def _file(self, name: str, file: str) -> Answer:
        if name not in self.data_sets:
            return _missing("RepoNotFound")
        found = self.data_sets[name]
        if file not in found.files:
            return _missing("EntryNotFound", {"X-Repo-Commit": found.commit})
        etag = hashlib.sha1(found.files[file]).hexdigest()
        return 200, found.files[file], {"X-Repo-Commit": found.commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}

    def _create(self, asked: dict[str, Any], token: str) -> Answer:
        owner, name = asked.get("organization") or USER, asked["name"]
        if token != TOKEN:
            return _json({"error": "Invalid username or password."}, 401)
        if owner != USER:
            return _json({"error": f"You don't have the rights to create a model under {owner}"}, 403)
        full = f"{owner}/{name}"
        said = {"url": f"{self.url}/{full}", "id": full, "name": full}
        if full in self.models:
            return _json({"error": "You already created this model repo"} | said, 409)
        self.models[full] = Repository({}, private=bool(asked.get("private") or asked.get("visibility") == "private"))
        return _json(said)

    def _where_to_put(self, asked: dict[str, Any]) -> Answer:
        objects = [
            each | {"actions": {"upload": {"href": f"{self.url}/put/{each['oid']}"}}} for each in asked["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, found: Repository, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found.files[value["path"]] = self.stored[value["oid"]]


def _json(content: Any, status: int = 200) -> Answer:
    return status, json.dumps(content).encode(), {"Content-Type": "application/json"}


def _missing(code: str, headers: dict[str, str] | None = None) -> Answer:
    return 404, b'{"error": "not found"}', {"X-Error-Code": code} | (headers or {})


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _tree(files: Mapping[str, bytes], below: str) -> Answer:
    """The files and folders in a folder, as the Hub lists them."""
    inside = {name: content for name, content in files.items() if name.startswith(below)}
    here = [_entry(name, content) for name, content in inside.items() if "/" not in name[len(below) :]]
    folders = {below + name[len(below) :].partition("/")[0] for name in inside if "/" in name[len(below) :]}
    return _json([*here, *({"type": "directory", "path": folder, "oid": "0"} for folder in sorted(folders))])


def _how_to_send(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith((".safetensors", ".bin")) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            if hub.closed:  # a connection from before
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = str(self.headers.get("Authorization", "")).removeprefix("Bearer ")
            status, content, headers = hub.answer(self.command, urlsplit(self.path).path, body, token)
            asked = self.headers.get("Range")
            if status == 200 and asked:
                start, _, stop = asked.removeprefix("bytes=").partition("-")
                last = min(int(stop or len(content) - 1), len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
                status, content = 206, content[int(start) : last + 1]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
