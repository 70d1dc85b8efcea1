"""A stand-in of the Hugging Face hub on localhost: it answers downloads as huggingface_hub asks for them.

Repositories live in memory. They are created over HTTP; files come from huggingface_hub's `upload_folder`, replaced.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

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
    requests: list[str] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        match = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(tree|resolve|revision)/([^/]+)/?(.*))?", path)
        repository = match and self.hub.repositories.get(match[1])
        if not repository or (repository.private and not self.is_owner()):
            return self.answer({}, 401, X_Error_Code="RepoNotFound")
        kind, name, files = match[2], match[4], repository.files
        if kind == "tree":
            return self.answer([{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in files.items()])
        if kind == "resolve":
            if name not in files:
                return self.answer({}, 404, X_Error_Code="EntryNotFound")
            digest = hashlib.sha256(files[name]).hexdigest()
            return self.answer(files[name], ETag=f'"{digest}"', X_Repo_Commit=repository.commit)
        siblings = [{"rfilename": n} for n in files]
        self.answer({"id": match[1], "sha": repository.commit, "private": repository.private, "siblings": siblings})

    def do_POST(self) -> None:
        """Creates a repository, or lets its owner write to it."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.hub.requests.append(f"POST {self.path}")
        if not self.is_owner():
            return self.answer({}, 401)
        if self.path.endswith("/commit"):
            return self.answer({})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))  # of newer and older clients
        name = f"{asked['organization']}/{asked['name']}"
        self.hub.repositories.setdefault(name, Repository(private=private))
        self.answer({"url": f"{self.hub.url}/{name}"})


def pretend_online(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Points this process at a hub: huggingface_hub read its environment on import, offline."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)  # transformers lists a repository's files by it
    # transformers keeps its client. One that was made before knows another address, and would wait 46 s for it.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)


@contextmanager
def running_hub() -> Iterator[Hub]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = _Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def upload_folder(api: object, *, repo_id: str, folder_path: str, **_: object) -> str:
        hf_raise_for_status(get_session().post(f"{hub.url}/{repo_id}/commit", headers=build_hf_headers(), json={}))
        repository, folder = hub.repositories[repo_id], Path(folder_path)
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        repository.files |= files
        repository.commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        return f"{hub.url}/{repo_id}/commit/{repository.commit}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
        yield hub
    server.shutdown()
    server.server_close()
