"""What values show of themselves in a notebook, and the explorer in its cell."""

from __future__ import annotations

import functools
import http.server
import re
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import pyarrow as pa
import pytest
from browser import Browser, executable
from explorer_client import TOKEN, Client

from seamcurate import FakeModel, LengthIncentive, Recipe, Reward, Source, Split, Store, markup, plan, run_local
from seamcurate.errors import StoreError
from seamcurate.explore import Session, inline, server
from seamcurate.run.local import Report

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\x1b[2J\u202e</td></table>"


class Parsed(HTMLParser):
    """The tags of a page, which must be closed in order, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text, self._open = list[str](), "", list[str]()
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attributes if name.startswith("on")]
        self.tags.append(tag)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_store_shows_its_counts_its_worst_rows_its_coverage_and_its_warnings(finished):
    page = Parsed(finished._repr_html_())
    for text in (
        "40 rows in 3 shards, 0 set aside",
        "corpus of 200 rows",
        "split train: ",
        "kept",
        "Worst by seam_contrast",
    ):
        assert text in page.text
    findings = [line for folder in finished.records() for line in finished.findings(folder)]
    assert findings and all(line in page.text for line in findings)
    lowest = finished.sql("SELECT row_id FROM rows ORDER BY seam_contrast, row_id LIMIT 1").arrow()["row_id"][0]
    first = re.search(r"Worst by.*?<tbody><tr><td[^>]*>(\d+)<", finished._repr_html_(), re.DOTALL)
    assert first is not None and int(first[1]) == lowest.as_py()
    assert all(column.name in page.text for column in finished.columns())
    assert re.fullmatch(r"<Store .*: 40 rows, \d+ columns; splits train>", repr(finished))


def test_rows_of_strangers_are_escaped(tmp_path):
    turns = [{"role": "user", "content": HOSTILE}]
    rows = [{"prompt": turns, "response": HOSTILE, "score": -1.0, HOSTILE: HOSTILE}]
    schema = pa.schema(
        [
            ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("response", pa.string()),
            pa.field("seam_own", pa.float64()),
            (HOSTILE, pa.string()),
        ]
    )
    table = pa.table([[turns], [HOSTILE], [-1.0], [HOSTILE]], schema=schema)
    run_local(Recipe(rows=Source(data=table, response="response")), tmp_path / "store")
    store = Store(tmp_path / "store")
    html = store._repr_html_()
    page = Parsed(html)
    assert len(rows) == 1 and "Worst by seam_own" in page.text and "user: <img src=x" in page.text
    assert not {"script", "img"} & set(page.tags)
    assert not set("\x1b\u202e") & set(html + repr(store) + repr(store.sql("SELECT * FROM rows")))
    Parsed(store.sql("SELECT * FROM rows")._repr_html_())
    Parsed(Report(1, 0, 1, 1, [HOSTILE, f"warning: {HOSTILE}"])._repr_html_())
    Parsed(markup.block(HOSTILE, markup.table([HOSTILE], [[HOSTILE]], HOSTILE), markup.details(HOSTILE, "")))


def test_a_folder_that_is_no_store_and_a_damaged_one_show_that(tmp_path, finished):
    assert repr(Store(tmp_path)) == f"<Store {tmp_path}: no store yet>"
    assert "is no store; make one with" in Parsed(Store(tmp_path)._repr_html_()).text
    recipe = Recipe(rows=Source(data=[{"prompt": "a", "response": "b"}], response="response"))
    run_local(recipe, tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text("{", encoding="utf-8")
    assert "not readable as JSON" in Parsed(Store(tmp_path / "store")._repr_html_()).text
    assert "not readable as JSON" in repr(Store(tmp_path / "store"))


def test_a_report_and_a_plan_show_what_the_command_line_prints(tmp_path):
    recipe = Recipe(
        rows=Source(data=[{"prompt": "a", "response": "b"}, {"prompt": "c", "response": ""}], response="response"),
        steps=[Reward(reward=FakeModel()), LengthIncentive()],
        splits={"train": Split(filter="SELECT row_id FROM rows")},
    )
    estimate = plan(recipe, tmp_path / "store")
    assert str(estimate).splitlines()[0] == "1 row (1 set aside), corpus of 0"
    assert re.search(r"^ ?reward +1 +1 +\d+ +[\d.]+ s +fake", str(estimate), re.MULTILINE)
    page = Parsed(estimate._repr_html_())
    assert "1 row (1 set aside)" in page.text and "rows to do" in page.text and page.tags.count("tr") == 3
    report = run_local(recipe, tmp_path / "store")
    assert str(report).splitlines()[0] == "1 row, 1 read, 2 shards computed"
    assert "  1 source rows were set aside: SELECT * FROM rejected" in str(report)
    assert "source rows were set aside" in Parsed(report._repr_html_()).text
    assert str(run_local(recipe, tmp_path / "store")).splitlines()[0] == "1 row, everything was there"


# ── the explorer in a cell ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def page_built(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<p>the page</p>", encoding="utf-8")
    monkeypatch.setattr(server, "PAGE", tmp_path)


@pytest.mark.slow
def test_the_explorer_answers_from_a_thread_until_it_is_stopped(finished, page_built):
    threads = threading.active_count()
    explorer = finished.explore(height=500)
    try:
        html = explorer._repr_html_()
        assert (
            Parsed(html).tags == ["iframe", "p", "a"] and f'src="{explorer.address}"' in html and 'height="500"' in html
        )
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", explorer.address)
        assert httpx.get(explorer.address).text == "<p>the page</p>"
        assert httpx.get(explorer.address.partition("?")[0]).status_code == 403
        assert repr(explorer) == f"the explorer is at {explorer.address}"
    finally:
        explorer.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(explorer.address)
    assert threading.active_count() <= threads + 1


@pytest.fixture
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.mark.slow
@pytest.mark.skipif(executable() is None, reason="Chromium is not installed")
@pytest.mark.skipif(not (server.PAGE / "index.html").is_file(), reason="the page is not built: `make explorer`")
def test_a_page_of_another_site_on_this_machine_shows_the_explorer_in_a_frame(finished, browser, tmp_path):
    explorer = finished.explore()
    (tmp_path / "notebook.html").write_text(explorer._repr_html_(), encoding="utf-8")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as notebook:
        threading.Thread(target=notebook.serve_forever, daemon=True).start()
        try:
            # To the browser, localhost and 127.0.0.1 are two sites.
            browser.open(f"http://localhost:{notebook.server_port}/notebook.html")
            # A page that is refused asks for nothing more; one that is shown asks for its style, its script and the store.
            state, until = explorer._server.server.server_state, time.monotonic() + 20
            while state.total_requests < 6 and time.monotonic() < until:
                time.sleep(0.05)
            assert state.total_requests >= 6
        finally:
            notebook.shutdown()
            explorer.stop()


def test_a_notebook_may_frame_the_page_itself_and_nothing_else(finished, page_built):
    session = Session(finished)
    framing = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "iframe"}
    framed = Client(session, framed=True, **framing)
    page = framed("GET", f"/?token={TOKEN}")
    assert page.status_code == 200
    assert (
        "frame-ancestors http://localhost:* http://127.0.0.1:* vscode-webview:"
        in page.headers["content-security-policy"]
    )
    assert framed("GET", "/?token=another").status_code == 403
    assert framed("GET", "/api/overview").status_code == 403
    assert (
        Client(session, framed=True, **framing | {"sec-fetch-dest": "document"})("GET", f"/?token={TOKEN}").status_code
        == 403
    )
    assert Client(session, framed=True, **framing, host="evil.example")("GET", f"/?token={TOKEN}").status_code == 403
    assert Client(session, **framing)("GET", f"/?token={TOKEN}").status_code == 403


def test_an_explorer_without_a_page_is_refused_in_a_line(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "PAGE", tmp_path)
    with pytest.raises(StoreError, match="the explorer's page was not built"):
        inline.Explorer(finished)


def test_a_ledger_shows_what_each_rule_did_and_is_a_frame(finished):
    ledger = finished.ledger("train")
    assert (len(ledger), ledger.kept, ledger.dropped) == (40, 32, 8)
    assert [(rule.rule, rule.kept, rule.dropped) for rule in ledger.rules] == [
        ("drop the lowest 20 % by seam_contrast", 32, 8)
    ]
    frame = ledger.df()
    assert frame["kept"].sum() == 32 and ledger.rules[0].low == frame["value"].min()
    first = int(frame.loc[~frame["kept"], "row_id"].iloc[0])
    page = Parsed(ledger._repr_html_())
    for text in ("split train: 40 rows, 32 kept, 8 dropped", "drop the lowest 20 % by seam_contrast", f"{first}"):
        assert text in page.text
    assert "out of date" not in page.text and "32" in repr(ledger)
    with pytest.raises(StoreError, match="has no split 'dev'; it has train"):
        finished.ledger("dev")
