"""A stand-in of the Hugging Face hub on localhost: as much of its HTTP interface as huggingface_hub uses here.

Repositories live in memory. Files ending in .safetensors go through the LFS protocol, others inside the commit.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import huggingface_hub

TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = "0" * 40


@dataclass
class Hub:
    """What the server holds, and the requests that it got."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS, by SHA-256
    requests: list[str] = field(default_factory=list)
    full: bool = False  # refuses uploads


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, **headers: str) -> None:
        self.answer({"error": "refused"}, status, **headers)

    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # -- download ---------------------------------------------------------------------------------------------------

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        match = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(tree|resolve|revision)/([^/]+)/?(.*))?", path)
        repository = match and self.hub.repositories.get(match[1])
        if not repository or (repository.private and not self.is_owner()):
            return self.refuse(401, X_Error_Code="RepoNotFound")
        kind, name, files = match[2], match[4], repository.files
        if kind == "tree":
            lfs = {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n.endswith(".safetensors")}
            return self.answer([
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest(),
                 **({"lfs": {"oid": lfs[n], "size": len(c), "pointerSize": 134}} if n in lfs else {})}
                for n, c in files.items()
            ])  # fmt: skip
        if kind == "resolve":
            if name not in files:
                return self.refuse(404, X_Error_Code="EntryNotFound")
            digest = hashlib.sha256(files[name]).hexdigest()
            return self.answer(files[name], ETag=f'"{digest}"', X_Repo_Commit=repository.commit)
        siblings = [{"rfilename": n} for n in files]
        self.answer({"id": match[1], "sha": repository.commit, "private": repository.private, "siblings": siblings})

    # -- upload -----------------------------------------------------------------------------------------------------

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        data = self.body()
        if self.hub.full:
            return self.refuse(403)
        digest = self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != digest:
            return self.refuse(400)
        self.hub.objects[digest] = data
        self.answer({})

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self.body()
        self.hub.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.answer({"warnings": [], "errors": []})
        if not self.is_owner():
            return self.refuse(401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            known = name in self.hub.repositories
            private = asked.get("visibility") == "private" or bool(asked.get("private"))  # of newer and older clients
            self.hub.repositories.setdefault(name, Repository(private=private))
            return self.answer({"url": f"{self.hub.url}/{name}"}, 409 if known else 200)
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            where = f"{self.hub.url}/lfs"
            upload = [{**o, "actions": {"upload": {"href": f"{where}/{o['oid']}"}}} for o in objects]
            return self.answer({"transfer": "basic", "objects": upload})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            return self.answer({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]})  # fmt: skip
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        self.refuse(404)

    def commit(self, name: str, lines: list[dict]) -> None:
        repository = self.hub.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
        repository.commit = hashlib.sha1(repr(sorted(repository.files.items())).encode()).hexdigest()
        url = f"{self.hub.url}/{name}/commit/{repository.commit}"
        self.answer({"commitUrl": url, "commitOid": repository.commit, "success": True})


def pretend_online(monkeypatch: object, url: str) -> None:
    """Points this process at a hub: huggingface_hub read its environment on import, offline."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    values = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)  # transformers lists a repository's files by it


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
