"""Requests to the explorer's application without a browser or a socket."""

from __future__ import annotations

from typing import Any

import anyio
import httpx

from seamcurate.explore import Session, server

TOKEN = "the-token"


class Client:
    """Send requests to the application of a session, with the right token unless headers replace it."""

    def __init__(self, session: Session, framed: bool = False, **headers: str | bytes) -> None:
        self._app, self._headers = server.application(session, TOKEN, framed), {server.HEADER: TOKEN, **headers}

    def __call__(self, method: str, path: str, **request: Any) -> Any:
        async def send() -> Any:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                return await client.request(method, path, headers=self._headers, **request)

        return anyio.run(send)
