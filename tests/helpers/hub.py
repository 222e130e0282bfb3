"""A server that answers as the Hugging Face hub does for models in folders of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest


@dataclass
class Hub:
    """The content of a hub."""

    commits: dict[str, Path] = field(default_factory=dict)
    """Folder of each commit of `org/tiny`."""
    names: dict[str, str] = field(default_factory=dict)
    """Commit of each branch and tag of `org/tiny`."""
    requests: list[str] = field(default_factory=list)
    """Paths of the requests so far."""

    def push(self, branch: str, folder: str) -> str:
        """Add a commit to a branch and return its hash."""
        commit = f"{len(self.commits) + 1:040x}"
        self.commits[commit] = Path(folder)
        self.names[branch] = commit
        return commit

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return the status, headers and content for a path."""
        self.requests.append(path)
        path, _, _ = path.partition("?")
        if "/org/gated" in path:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if "/org/broken" in path:
            return 500, {}, b"{}"
        if "/org/tiny" not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        found = re.fullmatch(r"(?:/api/models)?/org/tiny/(revision|tree|resolve)/([^/]+)/?(.*)", path)
        assert found, path
        kind, revision, file = found[1], unquote(found[2]), unquote(found[3])
        commit = self.names.get(revision, revision)
        if commit not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        folder = self.commits[commit]
        if kind == "resolve":
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{commit}-{file}"'}, (folder / file).read_bytes()
        entries = [
            {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": f"{commit}-{name}"}
            for name in sorted(os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())
        ]
        content: Any = {"id": "org/tiny", "sha": commit, "siblings": []} if kind == "revision" else entries
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Give a hub, to which this process goes with an empty cache, as `HF_ENDPOINT` and `HF_HUB_CACHE` would do."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", os.fspath(cache))
        yield hub
        server.shutdown()
