"""A loopback Hugging Face Hub: data-set repositories in memory, behind the addresses the real clients call.

It keeps commits, stores large files by their SHA-256, checks tokens, writes down what was asked of it, and fails on
request. Xet's tokens name a `local://` folder, into which the real `hf_xet` then stores.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

try:
    from huggingface_hub.utils._http import close_session
except ImportError:  # before 1.0
    from huggingface_hub.utils import reset_sessions as close_session

LARGE = (".parquet", ".png")
"""What goes through LFS or Xet, as the Hub's .gitattributes has it."""


@dataclass(frozen=True)
class Blob:
    """One file of a commit."""

    size: int
    sha256: str | None
    """Of a large file; None of a regular one."""
    content: bytes = b""

    @property
    def oid(self) -> str:
        if self.sha256 is not None:
            return hashlib.sha1(self.sha256.encode()).hexdigest()
        return hashlib.sha1(b"blob %d\0" % self.size + self.content).hexdigest()

    def described(self, path: str) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256 is not None:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass
class Repo:
    """A repository: its commits, oldest first, each with all its files."""

    private: bool = False
    commits: list[tuple[str, dict[str, Blob]]] = field(default_factory=list)

    def commit(self, files: dict[str, Blob]) -> str:
        text = json.dumps([len(self.commits), sorted((path, blob.oid) for path, blob in files.items())])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, Blob]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Fault:
    """What to answer instead, the first `times` times that a request matches."""

    request: str
    """A pattern for `METHOD /path`."""
    status: int
    """0 closes the connection without a word."""
    times: int = 1
    after: int = 0
    """How many matching requests pass before."""
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, object] = field(default_factory=dict)
    done: bool = False
    """Do what was asked first, and then fail: the answer is lost, not the request."""


@dataclass
class Hub:
    """The state of the server; tests read and write it freely."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=lambda: {"hf_write": "write", "hf_read": "read"})
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    created: list[dict[str, object]] = field(default_factory=list)
    cas: Path | None = None
    """Where Xet stores."""
    xet: dict[str, str] = field(default_factory=dict)
    """Xet's hash of a large file, by its SHA-256: such a file is read from where Xet stores, and by no other way."""

    def add(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> str:
        """Commit files to a repository, made if it is not there; returns the commit."""
        repo = self.repos.setdefault(repo_id, Repo(private))
        before = dict(repo.commits[-1][1]) if repo.commits else {}
        return repo.commit(before | {path: self._blob(path, content) for path, content in files.items()})

    def files(self, repo_id: str) -> dict[str, Blob]:
        """Return the files of a repository's newest commit."""
        return self.repos[repo_id].commits[-1][1]

    def content(self, repo_id: str, path: str) -> bytes:
        """Return one file of a repository's newest commit."""
        return self.bytes(self.files(repo_id)[path])

    def bytes(self, blob: Blob) -> bytes:
        return blob.content if blob.sha256 is None else self.large[blob.sha256]

    def count(self, request: str) -> int:
        """Count the requests that matched a pattern so far."""
        return sum(re.search(request, line) is not None for line in self.asked)

    def _blob(self, path: str, content: bytes) -> Blob:
        if not path.endswith(LARGE):
            return Blob(len(content), None, content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.large[sha256] = content
        return Blob(len(content), sha256)

    def fault(self, request: str) -> Fault | None:
        for one in self.faults:
            if one.times > 0 and re.search(one.request, request):
                if one.after > 0:
                    one.after -= 1
                    continue
                one.times -= 1
                return one
        return None


@contextmanager
def serving(cas: Path | None = None) -> Iterator[Hub]:
    """Serve a Hub on the loopback until the block ends."""
    hub = Hub(cas=cas)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def answering_here(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a Hub to which the clients in this process speak by LFS; they keep what they cache in a folder."""
    from huggingface_hub import constants

    with serving() as server:
        resolve = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "ENDPOINT", server.address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", resolve)
        patch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", resolve, raising=False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield server
        close_session()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: Hub

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        split = urlsplit(self.path)
        path, query = unquote(split.path), parse_qs(split.query)
        line = f"{self.command} {path}"
        self.state.asked.append(line)
        fault = self.state.fault(line)
        if fault is not None and fault.done:
            self.muted = True
            self.route(path, query, body)
        self.muted = False
        if fault is None:
            self.route(path, query, body)
        elif fault.status == 0:
            self.close_connection = True
            self.connection.close()
        else:
            self.json(fault.status, fault.body, **fault.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - names that http.server looks for

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        if self.muted:
            return
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, status: int, value: object, **headers: str) -> None:
        self.reply(status, json.dumps(value).encode(), content_type="application/json", **headers)

    def missing(self, status: int, code: str) -> None:
        self.json(status, {"error": code}, x_error_code=code)

    @property
    def right(self) -> str | None:
        """What the request's token may do: write, read, or nothing."""
        return self.state.tokens.get(self.headers.get("authorization", "").removeprefix("Bearer "))

    def route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        hub = self.state
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.json(200, {"warnings": [], "errors": []})
        elif match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() != match[1]:
                self.json(400, {"error": "another content"})
                return
            hub.large[match[1]] = body
            self.reply(200, b"")
        elif path == "/verify":
            asked = json.loads(body)
            self.json(200 if asked["oid"] in hub.large else 404, {})
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            if self.may(match[1], "write"):
                objects = [self.action(one) for one in json.loads(body)["objects"]]
                self.json(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/([a-z-]+)/?(.*))?", path):
            write = match[2] in ("preupload", "commit", "xet-write-token")
            if self.may(match[1], "write" if write else "read"):
                self.api(match[1], match[2] or "revision", match[3] or "main", query, body)
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if self.may(match[1], "read"):
                self.resolve(hub.repos[match[1]], match[2], match[3])
        else:
            self.missing(404, "EntryNotFound")

    def may(self, repo_id: str, right: str) -> bool:
        """Check a right, and answer as the Hub does where it is lacking."""
        repo = self.state.repos.get(repo_id)
        authorization = self.headers.get("authorization")
        if authorization is not None and self.right is None:
            self.json(
                401, {"error": "Invalid credentials"}, x_error_message="Invalid credentials in Authorization header"
            )
        elif repo is None or (repo.private and self.right is None):
            self.missing(404 if self.right else 401, "RepoNotFound")
        elif right == "write" and self.right != "write":
            self.json(403, {"error": "no"}, x_error_message="you must use a write token")
        else:
            return True
        return False

    def create(self, asked: dict[str, object]) -> None:
        hub, repo_id = self.state, f"{asked['organization']}/{asked['name']}"
        hub.created.append(asked)
        if self.right != "write" or asked["organization"] == "foreign":
            self.json(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        elif repo_id in hub.repos:
            self.json(
                409, {"error": "You already created this dataset repo", "url": f"{hub.address}/datasets/{repo_id}"}
            )
        else:
            private = asked.get("visibility") == "private" or asked.get("private") is True
            hub.repos[repo_id] = Repo(private)
            hub.repos[repo_id].commit({".gitattributes": Blob(0, None)})
            self.json(200, {"url": f"{hub.address}/datasets/{repo_id}", "name": repo_id, "id": "1"})

    def action(self, asked: dict[str, object]) -> dict[str, object]:
        """Say where a large object is to be put, or nothing where it is there."""
        oid, size = str(asked["oid"]), asked["size"]
        if oid in self.state.large:
            return {"oid": oid, "size": size}
        upload = {"href": f"{self.state.address}/lfs/{oid}", "header": {}}
        return {
            "oid": oid,
            "size": size,
            "actions": {"upload": upload, "verify": {"href": f"{self.state.address}/verify"}},
        }

    def api(self, repo_id: str, verb: str, rest: str, query: dict[str, list[str]], body: bytes) -> None:
        hub, repo = self.state, self.state.repos[repo_id]
        revision, _, below = rest.partition("/")
        found = repo.at(revision)
        if found is None:
            self.missing(404, "RevisionNotFound")
            return
        oid, files = found
        if verb == "revision":
            readme = files.get("README.md")
            info: dict[str, object] = {"_id": "1", "id": repo_id, "sha": oid, "private": repo.private, "tags": []}
            info |= {"siblings": [{"rfilename": path} for path in files], "cardData": _front(readme)}
            self.json(200, info)
        elif verb == "tree":
            self.json(200, _tree(files, below, query.get("recursive", ["false"])[0].lower() in ("true", "1")))
        elif verb == "paths-info":
            asked = parse_qs(body.decode())["paths"] if b"paths=" in body else json.loads(body)["paths"]
            self.json(200, [files[path].described(path) for path in asked if path in files])
        elif verb == "preupload":
            modes = []
            for one in json.loads(body)["files"]:
                there = files.get(one["path"])
                mode = "lfs" if one["path"].endswith(LARGE) else "regular"
                same = None if there is None else there.sha256 or there.oid
                modes.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": same})
            self.json(200, {"files": modes})
        elif verb in ("xet-write-token", "xet-read-token"):
            where, until = f"local://{hub.cas}", int(time.time()) + 3600
            headers = {"X_Xet_Cas_Url": where, "X_Xet_Access_Token": "xet", "X_Xet_Token_Expiration": str(until)}
            self.json(200, {"casUrl": where, "accessToken": "xet", "exp": until}, **headers)
        elif verb == "commit":
            self.commit(repo_id, repo, [json.loads(line) for line in body.splitlines()])
        else:
            self.missing(404, "EntryNotFound")

    def commit(self, repo_id: str, repo: Repo, lines: list[dict[str, dict[str, str]]]) -> None:
        hub, (head, files) = self.state, repo.commits[-1]
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit", head) != head:
                    self.json(412, {"error": "A commit has happened since. Please refresh and try again."})
                    return
            elif line["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = Blob(len(content), None, content)
            elif line["key"] == "lfsFile":
                if value["oid"] not in hub.large and hub.cas is None:
                    self.json(400, {"error": f"LFS pointer to a file that does not exist: {value['path']}"})
                    return
                files[value["path"]] = Blob(int(value["size"]), value["oid"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files)
        self.json(
            200, {"commitUrl": f"{hub.address}/datasets/{repo_id}/commit/{oid}", "commitOid": oid, "success": True}
        )

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        found = repo.at(revision)
        if found is None or path not in found[1]:
            self.missing(404, "EntryNotFound" if found else "RevisionNotFound")
            return
        blob = found[1][path]
        etag = blob.sha256 or blob.oid
        stored = self.state.xet.get(etag)
        if stored is not None and self.command != "HEAD":
            self.json(500, {"error": "read it through Xet"})
            return
        content = b"" if stored is not None else self.state.bytes(blob)
        headers = {"etag": f'"{etag}"', "x_repo_commit": found[0], "accept_ranges": "bytes"}
        if blob.sha256 is not None:
            headers |= {"x_linked_etag": f'"{etag}"', "x_linked_size": str(blob.size)}
        if stored is not None:
            route = urlsplit(self.path).path.split("/resolve/")[0]
            headers |= {
                "x_xet_hash": stored,
                "x_xet_refresh_route": f"{self.state.address}/api{route}/xet-read-token/{revision}",
            }
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if span is None:
            self.reply(200, content, **headers)
            return
        first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        headers["content_range"] = f"bytes {first}-{last}/{len(content)}"
        self.reply(206, content[first : last + 1], **headers)

    def log_message(self, *_: object) -> None:
        return


def _tree(files: dict[str, Blob], below: str, recursive: bool) -> list[dict[str, object]]:
    prefix = f"{below}/" if below else ""
    inside = {path: blob for path, blob in files.items() if path.startswith(prefix)}
    folders = {
        prefix + "/".join(parts[: depth + 1])
        for path in inside
        for parts in [path.removeprefix(prefix).split("/")[:-1]]
        for depth in range(len(parts) if recursive else min(1, len(parts)))
    }
    entries = [{"type": "directory", "path": one, "size": 0, "oid": "2" * 40} for one in sorted(folders)]
    shown = {path for path in inside if recursive or "/" not in path.removeprefix(prefix)}
    return entries + [files[path].described(path) for path in sorted(shown)]


def _front(readme: Blob | None) -> object:
    import yaml

    found = re.match(r"---\n(.*?)\n---\n", readme.content.decode(), re.DOTALL) if readme else None
    return yaml.safe_load(found[1]) if found else {}
