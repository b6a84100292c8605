"""moto's S3 on loopback, one request at a time, with faults that answer in its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

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


def nothing(request: Request) -> None:
    """Let every request be answered."""
