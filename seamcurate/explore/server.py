"""The explorer's server: it listens on this machine only, requires a token, and only reads.

A browser lets any page on the web send requests to 127.0.0.1. So every request needs the token in a header that another
site's page cannot set. Its Host must be this machine: otherwise a domain that resolves to 127.0.0.1 would be accepted.
And its Origin must be this server.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, cast

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seamcurate import tables
from seamcurate.errors import QueryError, SeamcurateError, StoreError
from seamcurate.explore import bench, row, search, splits
from seamcurate.explore.about import about
from seamcurate.explore.compare import compare
from seamcurate.explore.formulas import formula
from seamcurate.explore.session import Chart, Session
from seamcurate.score import measured
from seamcurate.select import views
from seamcurate.sql.guard import unterminated
from seamcurate.storage import scratch
from seamcurate.store.store import Store

if TYPE_CHECKING:
    import uvicorn

PAGE = Path(__file__).parent / "static"
HEADER = "x-seamcurate-token"
_HOSTS = ("127.0.0.1", "localhost")
_VIEWS = ("rows", "candidates", "corpus", "ledger", "rejected", "scores")
_OTHER = ("other.rows", "other.candidates", "other.corpus", "other.ledger")
_UNBUILT = "the explorer's page was not built: run `make explorer` (npm is needed), or install the wheel"
_SHOWN = 1_000
_CHART_ROWS = 200_000
_CHART_BYTES = 1 << 26
_DOWNLOAD_SECONDS = 120.0
_CELL = 2_000
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NOTEBOOKS = "http://localhost:* http://127.0.0.1:* vscode-webview:"
"""Who may show the page in a frame when a notebook asked for it: pages of this machine, and the notebooks of VS Code."""
_HEADERS = [
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Mosaic(_Body):
    model_config = ConfigDict(extra="ignore")
    type: Literal["arrow", "json", "exec"]
    sql: str


class _Query(_Body):
    sql: str


class _Download(_Query):
    format: Literal["csv", "jsonl", "parquet"]


class _Page(_Body):
    where: str = "true"
    by: str
    descending: bool = False
    offset: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class _Cut(_Body):
    by: str
    cut: float
    keep: Literal["above", "below"] = "above"
    nulls: bool = False
    within: str = "true"


class _Search(_Body):
    text: Annotated[str, Field(min_length=1, max_length=1000)]


class _Compare(_Body):
    first: str
    second: str
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.2
    within: str = "true"


def application(session: Session, token: str, framed: bool = False) -> Starlette:
    """Return the explorer's web application for a session; every request needs the token, but for those for static files.

    With `framed`, a notebook's page on this machine may show the page in a frame.
    """

    def answer(work: Callable[[Request, bytes], Response]) -> Callable[..., object]:
        async def endpoint(request: Request) -> Response:
            if not _is_token(request.headers.get(HEADER, ""), token):
                return _problem(
                    "the token is missing or wrong: open the address that `seamcurate explore` printed", 403
                )
            body = await request.body()
            try:
                return await run_in_threadpool(work, request, body)
            except ValidationError as error:
                details = error.errors()[0]
                return _problem(f"{'.'.join(map(str, details['loc'])) or 'request'}: {details['msg']}", 400)
            except SeamcurateError as error:
                return _problem(str(error), 400)

        return endpoint

    async def page(request: Request) -> Response:
        if not _is_token(request.query_params.get("token", ""), token):
            return PlainTextResponse("Open the address that `seamcurate explore` printed; it ends in ?token=…\n", 403)
        if not (PAGE / "index.html").is_file():
            return PlainTextResponse(_UNBUILT + "\n", 503)
        return FileResponse(PAGE / "index.html", media_type="text/html")

    def overview(request: Request, body: bytes) -> Response:
        return JSONResponse(_overview(session))

    def state(request: Request, body: bytes) -> Response:
        return JSONResponse({"changed": session.changed()})

    def refresh(request: Request, body: bytes) -> Response:
        session.refresh()
        threading.Thread(target=_complete, args=(session,), daemon=True).start()
        return JSONResponse(_overview(session))

    def whole(request: Request, body: bytes) -> Response:
        return JSONResponse(_complete_overview(session))

    def mosaic(request: Request, body: bytes) -> Response:
        request_body = _Mosaic.model_validate_json(body)
        if request_body.type == "exec":
            raise QueryError("a store is only read")
        answer_table = session.chart(request_body.sql, _CHART_ROWS, _CHART_BYTES)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, answer_table.schema) as writer:
            writer.write_table(answer_table)
        return Response(sink.getvalue().to_pybytes(), media_type="application/vnd.apache.arrow.stream")

    def sql(request: Request, body: bytes) -> Response:
        started = perf_counter()
        shown: list[list[JsonValue]] = []
        with session.reading(_Query.model_validate_json(body).sql) as reader:
            names, kinds = reader.schema.names, [str(field.type) for field in reader.schema]
            for batch in reader:
                # By position: an answer may have two columns of one name.
                values = map(tables.python_values, batch.slice(0, _SHOWN + 1 - len(shown)).columns)
                shown += [[_cell(value) for value in line] for line in zip(*values, strict=True)]
                if len(shown) > _SHOWN:
                    break
        cut = len(shown) > _SHOWN
        return JSONResponse(
            {
                "columns": cast(JsonValue, names),
                "types": cast(JsonValue, kinds),
                "rows": cast(JsonValue, shown[:_SHOWN]),
                "truncated": cut,
                "seconds": perf_counter() - started,
            }
        )

    def download(request: Request, body: bytes) -> Response:
        request_body = _Download.model_validate_json(body)
        folder = scratch.make()
        file = folder.path / f"result.{request_body.format}"
        try:
            with session.reading(request_body.sql, seconds=_DOWNLOAD_SECONDS) as reader:
                tables.write(reader, request_body.format, file)
        except BaseException:
            folder.remove()
            raise
        return FileResponse(file, filename=file.name, background=BackgroundTask(folder.remove))

    def rows(request: Request, body: bytes) -> Response:
        return JSONResponse(_page(session, _Page.model_validate_json(body)))

    def filter_file(request: Request, body: bytes) -> Response:
        filter_sql = unterminated(_Query.model_validate_json(body).sql.strip())
        names = session.ask(f"SELECT * FROM ({filter_sql}\n) AS asked LIMIT 0").column_names
        if "row_id" not in [name.lower() for name in names]:
            raise QueryError("a filter returns row_id of the rows it keeps; add it to the SELECT")
        # A run has neither the table `scores` nor a second store.
        with session.cursor() as cursor:
            foreign = [name for name in cursor.check(filter_sql) if name not in views.VIEWS]
        if foreign:
            raise QueryError(f"a filter reads {', '.join(views.VIEWS)}, which a run has too, and not {foreign[0]}")
        title = "" if filter_sql.startswith("--") else "-- Rows chosen in the explorer.\n"
        return PlainTextResponse(f"{title}{filter_sql}\n")

    def one_row(request: Request, body: bytes) -> Response:
        return JSONResponse(row.row(session, int(request.path_params["row_id"])))

    def cut(request: Request, body: bytes) -> Response:
        settings = _Cut.model_validate_json(body)
        return JSONResponse(
            bench.bench(session, settings.by, settings.cut, settings.keep, settings.nulls, settings.within)
        )

    def prompt(request: Request, body: bytes) -> Response:
        row_id = int(request.path_params["row_id"])
        return JSONResponse({"prompt": row.prompts(session, [row_id], 300).get(row_id)})

    def searched(request: Request, body: bytes) -> Response:
        return JSONResponse(search.search(session, _Search.model_validate_json(body).text))

    def regions(request: Request, body: bytes) -> Response:
        return JSONResponse({"regions": cast(JsonValue, search.regions(session))})

    def compared(request: Request, body: bytes) -> Response:
        settings = _Compare.model_validate_json(body)
        return JSONResponse(compare(session, settings.first, settings.second, settings.rate, settings.within))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/overview", answer(overview)),
            Route("/api/whole", answer(whole)),
            Route("/api/state", answer(state)),
            Route("/api/refresh", answer(refresh), methods=["POST"]),
            Route("/api/mosaic", answer(mosaic), methods=["POST"]),
            Route("/api/sql", answer(sql), methods=["POST"]),
            Route("/api/download", answer(download), methods=["POST"]),
            Route("/api/filter", answer(filter_file), methods=["POST"]),
            Route("/api/rows", answer(rows), methods=["POST"]),
            Route("/api/row/{row_id:int}", answer(one_row)),
            Route("/api/prompt/{row_id:int}", answer(prompt)),
            Route("/api/search", answer(searched), methods=["POST"]),
            Route("/api/regions", answer(regions)),
            Route("/api/compare", answer(compared), methods=["POST"]),
            Route("/api/bench", answer(cut), methods=["POST"]),
            Mount("/static", StaticFiles(directory=PAGE, check_dir=False)),
        ],
        middleware=[Middleware(_Loopback, framed=framed)],
    )


def serve(store: Store, port: int = 0, open_browser: bool = False, other: Store | None = None) -> None:
    """Serve the explorer of a store on this machine until interrupted; its address, with the token, is printed.

    Args:
        store: The store.
        port: The port to listen on; 0 takes a free one.
        open_browser: Show the page in the default browser.
        other: A second store, for the SQL box to compare with: `other.rows`, `other.candidates` and so on.

    Raises:
        StoreError: There is no store, no page was built, or the port is taken.
    """
    prepared = _prepared(store, port, other, framed=False)
    print(f"{store.path}: explore it at {prepared.address}\n(Ctrl-C ends it)", flush=True)
    if open_browser:
        webbrowser.open(prepared.address)
    with prepared.listening:
        prepared.server.run(sockets=[prepared.listening])


class Started(NamedTuple):
    """A server in a thread of this process, which ends with the process."""

    address: str
    """The page's address, with its token."""
    server: uvicorn.Server
    listening: socket.socket
    thread: threading.Thread

    def stop(self) -> None:
        """End the server, and wait until it has ended."""
        self.server.should_exit = True
        self.thread.join()
        self.listening.close()


def start(store: Store) -> Started:
    """Serve the explorer of a store from a thread, for a page on this machine that shows it in a frame; see `serve`."""
    prepared = _prepared(store, 0, None, framed=True)
    arguments = {"sockets": [prepared.listening]}
    thread = threading.Thread(target=prepared.server.run, kwargs=arguments, daemon=True)
    thread.start()
    return Started(*prepared, thread)


class _Prepared(NamedTuple):
    address: str
    server: uvicorn.Server
    listening: socket.socket


def _prepared(store: Store, port: int, other: Store | None, framed: bool) -> _Prepared:
    """Listen on a port, and begin to read the store."""
    import uvicorn

    opened = Session(store, other)
    if not (PAGE / "index.html").is_file():
        raise StoreError(_UNBUILT)
    token = secrets.token_urlsafe(24)
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StoreError(f"port {port} cannot be had: {reason}; give another --port, or none") from error
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/?token={token}"
    # A large store takes seconds to read: begin before the page asks.
    threading.Thread(target=_warm, args=(opened,), daemon=True).start()
    # No access log: it would contain the token.
    application_ = application(opened, token, framed)
    config = uvicorn.Config(application_, log_level="warning", access_log=False, server_header=False)
    return _Prepared(address, uvicorn.Server(config), listening)


def _warm(session: Session) -> None:
    # An error is not shown here: the first request meets it again, and shows it.
    with contextlib.suppress(SeamcurateError, OSError):
        session.refresh()
    _complete(session)


def _complete(session: Session) -> None:
    with contextlib.suppress(SeamcurateError, OSError):
        session.complete()


def _is_token(text: str, token: str) -> bool:
    # compare_digest raises an error for text that is not ASCII, but not for bytes.
    return hmac.compare_digest(text.encode(), token.encode())


class _Loopback:
    """Refuse requests that do not come from this server's own page on this machine; add the headers to every response."""

    def __init__(self, app: ASGIApp, framed: bool = False) -> None:
        self._app, self._framed = app, framed
        policy = _POLICY.replace("frame-ancestors 'none'", f"frame-ancestors {_NOTEBOOKS}") if framed else _POLICY
        self._headers = [(b"content-security-policy", policy.encode()), *_HEADERS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        foreign = origin is not None and origin != f"http://{host}"
        # To a browser a notebook at localhost is another site than 127.0.0.1. Only the page itself may be framed by one, and
        # it needs the token like any other.
        framed = self._framed and request.url.path == "/" and request.headers.get("sec-fetch-dest") == "iframe"
        foreign = foreign or (request.headers.get("sec-fetch-site") == "cross-site" and not framed)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        if host.rsplit(":", 1)[0] not in _HOSTS or foreign:
            await _problem("the explorer answers only its own page on this machine", 403)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def _problem(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status)


def _overview(session: Session) -> dict[str, JsonValue]:
    """Return what the page shows first: columns, charts and groups."""
    return {
        "store": str(session.store.path),
        "rows": session.rows,
        "columns": [
            {
                "name": c.name,
                "made_by": c.made_by,
                "done": c.done,
                "shards": c.shards,
                "meaning": c.meaning,
                "formula": formula(c.name, c.made_by),
                "measured": measured.sentence(c.name, c.made_by),
                "stale": c.stale,
            }
            for c in session.columns
        ],
        "charts": [_chart(chart) for chart in session.charts],
        "groups": [
            {"name": g.column.name, "meaning": g.column.meaning, "values": cast(JsonValue, [list(v) for v in g.values])}
            for g in session.groups
        ],
        "cuts": [cut._asdict() for cut in session.cuts],
        "told": {
            group.column.name: [splits.told(group.column.name, value) for value, _ in group.values]
            for group in session.groups
            if splits.names([group.column.name])
        },
        "about": cast(JsonValue, about(session.store)),
        "other": str(session.other.path) if session.other else None,
    }


def _complete_overview(session: Session) -> dict[str, JsonValue]:
    """Return what is known after every file is verified: the views, and the other store's columns."""
    return {
        "views": {
            name: [
                {"name": str(column["column_name"]), "type": str(column["column_type"])}
                for column in session.ask(f"SELECT column_name, column_type FROM (DESCRIBE {name})").to_pylist()
            ]
            for name in (*_VIEWS, *(_OTHER if session.other else ()))
        },
        "others": [_chart(chart) for chart in session.others],
    }


def _chart(chart: Chart) -> JsonValue:
    return {
        "name": chart.column.name,
        "meaning": chart.column.meaning,
        "formula": formula(chart.column.name, chart.column.made_by),
        "measured": measured.sentence(chart.column.name, chart.column.made_by),
        "made_by": chart.column.made_by,
        "done": chart.column.done,
        "shards": chart.column.shards,
        "present": chart.present,
        "low": chart.low,
        "high": chart.high,
        "first": chart.first,
        "step": chart.step,
        "bins": chart.bins,
        "worst": chart.worst,
        "whole": bool(pa.types.is_integer(chart.column.kind)),
    }


def _page(session: Session, settings: _Page) -> dict[str, JsonValue]:
    names = [chart.column.name for chart in session.charts]
    groups = [group.column.name for group in session.groups]
    if settings.by not in [*names, *groups, "row_id"]:
        raise QueryError(f"{settings.by!r} is no column to sort by")
    sort_column, order = views.quoted(settings.by), "DESC" if settings.descending else "ASC"
    listed = ", ".join(["row_id", "_candidates", "_misjudged", *map(views.quoted, [*names, *groups])])
    # The newline and the parenthesis end a comment that the predicate may open.
    page: list[dict[str, JsonValue]] = session.chart(
        f"SELECT {listed} FROM scores WHERE ({settings.where}\n) ORDER BY {sort_column} {order} NULLS LAST, row_id "
        f"LIMIT {settings.limit} OFFSET {settings.offset}"
    ).to_pylist()
    texts = row.prompts(session, [cast(int, line["row_id"]) for line in page], 200)
    return {"rows": [{**line, "prompt": texts.get(cast(int, line["row_id"]))} for line in page]}


def _cell(value: object) -> JsonValue:
    """Return a value as JSON; long text is cut, and values that JSON does not have become text."""
    if value is None or isinstance(value, bool | int):
        # Above 2^53 a browser would round the number.
        return str(value) if isinstance(value, int) and abs(value) > 2**53 else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Decimal):
        exact = int(value) if value == value.to_integral_value() else float(value)
        return exact if abs(exact) <= 2**53 else f"{value:f}"
    # JSON has no dates and times.
    plain = not isinstance(value, list | dict)
    text = str(value) if plain else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
