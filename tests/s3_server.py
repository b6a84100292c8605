"""moto's S3 on loopback, one request at a time, with faults that answer in its place."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Request = dict[str, Any]
"""A request as WSGI hands it over."""


class S3Server:
    """A server with its own address; its buckets are those of every such server in this process."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: object, **__: object) -> None:
                pass

        self.fault: Callable[[Request], tuple[str, str] | None] = nothing
        """Returns the status and the error's code to answer with, or None for a right answer."""
        self.requests: list[tuple[str, str]] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        # moto looks whether an object is there and puts it in two steps, which S3 does in one.
        self._turn = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: Request, start: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append((request["REQUEST_METHOD"], request["PATH_INFO"]))
        with self._turn:
            found = self.fault(request)
            if found is None:
                return self._app(request, start)
        status, code = found
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
        return [content]


SECRET = "a-secret-that-nobody-sees"


@contextmanager
def serving(folder: Path) -> Iterator[S3Server]:
    """Serve, with the environment that names the server and no other keys of this machine's; copies go to a folder."""
    pytest.importorskip("boto3", reason="boto3 is not installed: extra s3")
    pytest.importorskip("moto.moto_server.werkzeug_app", reason="moto's server is not installed: extra test")
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "a-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        patch.setenv("SEAMCURATE_CACHE", str(folder / "cache"))
        yield server
    server.stop()


def objects_of(bucket: Any, prefix: str = "store") -> dict[str, bytes]:
    """Return the objects below a prefix."""
    found = bucket.objects.filter(Prefix=f"{prefix}/")
    return {one.key.removeprefix(f"{prefix}/"): one.get()["Body"].read() for one in found}


def shards(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Return the Parquet files among some."""
    return {name: content for name, content in contents.items() if name.endswith(".parquet")}


def nothing(request: Request) -> None:
    """Let every request be answered."""
