"""Stores at s3://: the same bytes as in a folder, over a real S3 server on loopback and through its faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", reason="needs boto3: extra s3")
moto_server = pytest.importorskip("moto.moto_server.werkzeug_app", reason="needs moto[s3], flask and flask-cors: extra test")

from seamcurate import Random, Recipe, Retrieve, Source, Store, objects, query, run_local, seam
from seamcurate.errors import BusyError, DamagedError, StaleError, StoreError

STEPS = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5), Random())


class Server:
    """moto's S3 on loopback; `fault` may answer a request in its place."""

    def __init__(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: object, **__: object) -> None:
                pass

        self.app = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
        self.fault: Callable[[dict[str, Any]], tuple[str, str] | None] = lambda request: None
        self.requests: list[tuple[str, str]] = []
        # moto looks and puts in two steps, which S3 does in one.
        self._turn = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Any:
        self.requests.append((request["REQUEST_METHOD"], request["PATH_INFO"]))
        found = self.fault(request)
        if found is not None:
            status, code = found
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
            return [body]
        with self._turn:
            return self.app(request, start)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "cache"))
    yield running
    running.fault = lambda request: None


@pytest.fixture
def bucket(server: Server, tmp_path: Path) -> Any:
    """A bucket of the test's own."""
    name = f"test-{abs(hash(tmp_path)) % 10**9}"
    made = boto3.resource("s3").Bucket(name)
    made.create()
    return made


def contents(bucket: Any, prefix: str) -> dict[str, bytes]:
    return {
        one.key.removeprefix(f"{prefix}/"): one.get()["Body"].read()
        for one in bucket.objects.filter(Prefix=f"{prefix}/")
        if one.key.endswith(".parquet")
    }


def local_contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.parquet"))}


def test_a_run_gives_the_same_objects_as_files_in_a_folder(recipe, bucket, tmp_path):
    there = f"s3://{bucket.name}/some/store"
    report, local = run_local(recipe(), there), run_local(recipe(), tmp_path / "store")
    assert report == local
    assert contents(bucket, "some/store") == local_contents(tmp_path / "store")
    again = run_local(recipe(), there)
    assert again.computed == 0 and again.lines == report.lines
    assert [c._replace(stale=None) for c in Store(there).columns()] == Store(tmp_path / "store").columns()
