"""The explorer: a server that only reads and only answers its own page, and that page in a real browser."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Browser, executable

from seamcurate import (
    FakeModel,
    LengthIncentive,
    Project,
    Random,
    Recipe,
    Retrieve,
    Source,
    Store,
    query,
    run_local,
    seam,
)
from seamcurate.cli.scoring import columns
from seamcurate.errors import DamagedError, QueryError, StoreError
from seamcurate.score import measured
from seamcurate.select import views
from seamcurate.select.why import why

pytest.importorskip("starlette", reason="starlette is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from explorer_client import TOKEN, Client  # noqa: E402

from seamcurate.explore import Session, report  # noqa: E402
from seamcurate.explore import server as served  # noqa: E402
from seamcurate.explore.bench import bench, recipe_line  # noqa: E402
from seamcurate.explore.compare import compare  # noqa: E402
from seamcurate.explore.row import row  # noqa: E402
from seamcurate.explore.search import regions  # noqa: E402

HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script> \u202egnp.exe"


@pytest.fixture(scope="module")
def session(finished) -> Session:
    return Session(finished)


@pytest.fixture
def ask(session):
    return Client(session)


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_nothing_is_answered_without_the_token(session):
    wrong = Client(session, **{served.HEADER: "another"})
    for method, path in [
        ("GET", "/api/overview"),
        ("GET", "/api/row/1"),
        ("POST", "/api/sql"),
        ("POST", "/api/refresh"),
    ]:
        assert wrong(method, path).status_code == 403
    assert Client(session)("GET", "/").status_code == 403
    assert Client(session)("GET", "/?token=another").status_code == 403
    # What no token holds is refused like any other, not met with an error of ours.
    assert Client(session, **{served.HEADER: "é".encode("latin-1")})("GET", "/api/overview").status_code == 403
    assert Client(session)("GET", "/?token=%C3%A9").status_code == 403


@pytest.mark.slow
def test_another_host_or_origin_is_refused(session):
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = Client(session, **headers)("POST", "/api/sql", json={"sql": "SELECT 1"})
        assert answer.status_code == 403 and "own page" in answer.json()["error"]
        assert (
            answer.headers["referrer-policy"] == "no-referrer" and "access-control-allow-origin" not in answer.headers
        )
    own = Client(session, origin="http://127.0.0.1:8000")("POST", "/api/sql", json={"sql": "SELECT 1"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    assert "default-src 'none'" in own.headers["content-security-policy"]


def test_every_answer_and_every_refusal_carries_the_same_headers(session):
    whole = {
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }
    own, foreign = Client(session), Client(session, host="evil.example")
    answers = [
        own("GET", "/api/overview"),
        own("GET", f"/?token={TOKEN}"),
        own("GET", "/"),
        own("POST", "/api/sql", json={"sql": "nonsense"}),
        own("POST", "/api/mosaic", json={"type": "exec", "sql": "SELECT 1"}),
        own("GET", "/static/nothing.js"),
        foreign("GET", f"/?token={TOKEN}"),
    ]
    assert [answer.status_code for answer in answers if answer.status_code != 503][-5:] == [403, 400, 400, 404, 403]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in whole} == whole
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE scores",
        "SELECT 1; SELECT 2",
        "EXPLAIN ANALYZE DELETE FROM scores",
        "COPY (SELECT 1) TO 'x.csv'",
        "SET memory_limit = '1TB'",
        "SELECT * FROM read_text('/etc/passwd')",
        "",
    ],
)
def test_only_one_select_over_the_store_is_answered(ask, sql):
    for path, more in [("sql", {}), ("download", {"format": "csv"}), ("mosaic", {"type": "arrow"})]:
        answer = ask("POST", f"/api/{path}", json={"sql": sql, **more})
        assert answer.status_code == 400 and answer.json()["error"]
    assert ask("POST", "/api/sql", json={"sql": "SELECT count(*) FROM scores"}).json()["rows"] == [[40]]


def test_a_predicate_of_the_page_cannot_leave_its_select(ask):
    for where in ("true) UNION ALL (SELECT 1", "true; DROP TABLE scores", "true) --"):
        assert ask("POST", "/api/rows", json={"where": where, "by": "row_id"}).status_code == 400


def test_a_query_that_takes_too_long_is_stopped(finished):
    short = Session(finished, seconds=0.3)
    short.refresh()
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"stopped after 0\.3 seconds"):
        # Without the limit it takes some seconds, and is answered.
        short.ask("SELECT sum(a.range * b.range) FROM range(50000) a, range(50000) b")
    assert time.monotonic() - started < 5
    assert short.ask("SELECT 1 AS one").to_pylist() == [{"one": 1}]


@pytest.mark.slow
def test_a_query_that_takes_more_memory_than_it_may_is_answered_from_disk(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    small = Session(finished, seconds=300, memory="64MB")
    sorted_by_text = "SELECT md5(range::VARCHAR) || repeat('x', 64) AS t FROM range(1500000) ORDER BY t"
    (answer,) = small.ask(f"SELECT max(t) AS last FROM ({sorted_by_text} LIMIT 1 OFFSET 1400000)").to_pylist()
    assert answer["last"].startswith("e")
    for opened in (
        small._current(),
        views.opened(finished, ["reward"], "64MB"),
        views.connect(finished, memory="64MB"),
    ):
        connection = getattr(opened, "connection", opened)
        ((limit,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
        assert limit == "61.0 MiB"
    del small, opened, connection
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_sql_answers_values_as_they_are(ask):
    sql = "SELECT 1 AS a, 2 AS a, 'x' AS t, 'nan'::DOUBLE AS n, NULL AS z, 9007199254740995 AS big, [1, 2] AS l"
    answer = ask("POST", "/api/sql", json={"sql": sql}).json()
    assert answer["columns"] == ["a", "a", "t", "n", "z", "big", "l"]
    assert answer["rows"] == [[1, 2, "x", "nan", None, "9007199254740995", "[1, 2]"]] and not answer["truncated"]
    many = ask("POST", "/api/sql", json={"sql": "SELECT range FROM range(1000000000)"}).json()
    assert len(many["rows"]) == 1000 and many["truncated"]
    wrong = ask("POST", "/api/sql", json={"sql": "SELECT rewards FROM rows"})
    assert wrong.status_code == 400 and "columns of rows: row_id, prompt" in wrong.json()["error"]


def test_answers_are_downloaded_whole(ask, finished):
    sql = "SELECT row_id, prompt, rewards_contrast FROM rows ORDER BY row_id"
    parquet = ask("POST", "/api/download", json={"sql": sql, "format": "parquet"})
    assert pq.read_table(io.BytesIO(parquet.content)).equals(query(finished, sql))
    csv = ask("POST", "/api/download", json={"sql": "SELECT row_id FROM rows ORDER BY 1 LIMIT 2", "format": "csv"})
    assert csv.text == "row_id\n0\n1\n" and "attachment" in csv.headers["content-disposition"]


@pytest.mark.slow
def test_a_filter_is_one_that_a_recipe_takes(ask, recipe, tmp_path):
    text = ask("POST", "/api/filter", json={"sql": "SELECT row_id FROM rows WHERE seam_contrast < 0;"}).text
    (tmp_path / "chosen.sql").write_text(text)
    from seamcurate import Split
    from seamcurate.select import filters

    run_report = run_local(recipe(splits={"x": Split(filter=filters.read("chosen.sql", tmp_path))}), tmp_path / "store")
    kept = query(Store(tmp_path / "store"), "SELECT count(*) AS n FROM ledger WHERE kept").to_pylist()[0]["n"]
    assert kept == query(Store(tmp_path / "store"), "SELECT row_id FROM rows WHERE seam_contrast < 0").num_rows > 0
    assert run_report.lines
    assert "row_id" in ask("POST", "/api/filter", json={"sql": "SELECT prompt FROM rows"}).json()["error"]


@pytest.mark.slow
def test_a_filter_reads_only_what_a_run_has(finished):
    ask = Client(Session(finished, other=finished))
    for view in ("scores", "other.rows"):
        answer = ask("POST", "/api/filter", json={"sql": f"SELECT row_id FROM {view} WHERE reward > 0"})
        assert answer.status_code == 400 and answer.json()["error"].endswith(f"not {view}")
        within = f"SELECT row_id FROM rows WHERE row_id IN (SELECT row_id FROM {view})"
        assert ask("POST", "/api/filter", json={"sql": within}).status_code == 400
    own = "WITH scores AS (SELECT row_id FROM rows) SELECT row_id FROM rows JOIN ledger USING (row_id)"
    assert ask("POST", "/api/filter", json={"sql": own}).status_code == 200


@pytest.mark.slow
def test_every_numeric_column_has_a_chart_whose_bins_hold_its_rows(session, finished):
    numeric = {c.name for c in finished.columns() if pa.types.is_floating(c.kind) or pa.types.is_integer(c.kind)}
    assert {chart.column.name for chart in session.charts} == {
        name
        for name in numeric - {"row_id"}
        if query(finished, f'SELECT 1 FROM rows WHERE isfinite("{name}"::DOUBLE)').num_rows
    }
    for chart in session.charts:
        assert chart.first <= chart.high < chart.first + chart.step * chart.bins * (1 + 1e-9)
        assert chart.bins <= 130
    assert next(c.worst for c in session.charts if c.column.name == "seam_contrast") == "low"


def test_rows_come_worst_first_and_in_pages(ask, finished):
    sql = "SELECT row_id FROM rows WHERE reward > 0 ORDER BY seam_contrast NULLS LAST, row_id LIMIT 5 OFFSET 3"
    page = {"where": '"reward" > 0', "by": "seam_contrast", "offset": 3, "limit": 5}
    rows = ask("POST", "/api/rows", json=page).json()["rows"]
    assert [one["row_id"] for one in rows] == query(finished, sql)["row_id"].to_pylist()
    assert (
        rows[0]["prompt"]
        == query(finished, f"SELECT prompt FROM rows WHERE row_id = {rows[0]['row_id']}")["prompt"][0].as_py()
    )


def test_an_opened_row_is_what_the_views_say_of_it(session, finished):
    shown_row = row(session, 7)
    (expected,) = query(finished, "SELECT * FROM rows WHERE row_id = 7").to_pylist()
    candidates = query(finished, "SELECT * FROM candidates WHERE row_id = 7 ORDER BY reward DESC, rank").to_pylist()
    assert (shown_row["prompt"], shown_row["response"], shown_row["reward"]) == (
        expected["prompt"],
        expected["response"],
        expected["reward"],
    )
    assert candidates and [
        {
            key: one[key]
            for key in ("rank", "variant", "response", "similarity", "reward", "logprob", "weight", "misjudgement")
        }
        for one in shown_row["candidates"]
    ] == [
        {
            key: one[key]
            for key in ("rank", "variant", "response", "similarity", "reward", "logprob", "weight", "misjudgement")
        }
        for one in candidates
    ]
    assert {one["name"]: one["value"] for one in shown_row["scores"]}["rer"] == expected["rer"]
    assert {one["name"] for one in shown_row["scores"] if one["whole"]} == {"candidates_contrast"}
    assert re.match("split train: (kept|dropped) by rule", shown_row["verdicts"][0])
    with pytest.raises(QueryError, match="has no row 4000"):
        row(session, 4000)


def test_a_row_whose_candidates_are_lost_is_an_error_and_not_one_without_candidates(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "store")
    opened = Session(Store(tmp_path / "store"))
    assert row(opened, 7)["candidates"]
    (tmp_path / "store/columns/worse_contrast/00000.parquet").unlink()
    with pytest.raises(DamagedError, match=r"worse_contrast/00000\.parquet is missing"):
        row(opened, 7)


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "nulls"), [("above", False), ("below", True)])
def test_the_benchs_recipe_line_makes_the_same_cut(session, recipe, tmp_path, keep, nulls):
    import yaml

    from seamcurate import Split
    from seamcurate.select import filters

    cut = session.ask("SELECT median(seam_contrast) AS m FROM scores").to_pylist()[0]["m"]
    preview = bench(session, "seam_contrast", cut, keep, nulls)
    ((name, parameters),) = yaml.safe_load(preview["recipe"]).items()
    split = Split(**parameters | {"filter": filters.read(parameters["filter"], tmp_path)})
    run_local(recipe(splits={name: split}), tmp_path / "store")
    kept = query(Store(tmp_path / "store"), "SELECT row_id FROM ledger WHERE kept").num_rows
    assert 0 < kept < 40 and preview["kept"] == kept
    below, above = preview["near"]["below"], preview["near"]["above"]
    assert max(one["value"] for one in below) <= cut <= min(one["value"] for one in above)
    assert sum(one["kept"] for one in preview["lengths"]["bins"]) == kept
    assert recipe_line("odd, name", 1.0, "above", False).startswith('train: {filter: keep_between.sql, by: "odd, name"')


def test_a_split_is_a_label_of_each_row_and_its_cut_is_where_the_threshold_starts(session, finished, ask):
    overview = ask("GET", "/api/overview").json()
    (group,) = [group for group in overview["groups"] if group["name"].startswith("split ")]
    ledger = query(finished, "SELECT kept, count(*) AS rows FROM ledger GROUP BY ALL").to_pylist()
    rows = {line["kept"]: line["rows"] for line in ledger}
    assert dict(group["values"]) == {"kept": rows[True], "dropped: drop the lowest 20 % by seam_contrast": rows[False]}
    # What the page says of a label in SQL is what the label holds.
    for (_, count), predicate in zip(group["values"], overview["told"][group["name"]], strict=True):
        assert query(finished, f"SELECT row_id FROM rows WHERE {predicate}").num_rows == count
    (cut,) = overview["cuts"]
    found = bench(session, cut["column"], cut["cut"], cut["keep"], cut["nulls"])
    assert (found["kept"], found["rows"] - found["kept"]) == (rows[True], rows[False])
    assert found["lower"] == rows[False]


def test_a_search_finds_words_of_prompts_and_golden_responses_and_says_so_in_sql(ask, finished):
    texts = query(finished, "SELECT row_id, prompt, response FROM rows ORDER BY row_id").to_pylist()
    word = texts[3]["prompt"].split()[-1].upper()
    found = ask("POST", "/api/search", json={"text": word}).json()
    expected = [r["row_id"] for r in texts if word.lower() in f"{r['prompt']}\n{r['response']}".lower()]
    assert found["rows"] == expected and found["total"] == len(expected) > 0
    assert query(finished, f"SELECT row_id FROM rows WHERE {found['told']}").num_rows == len(expected)
    quote = ask("POST", "/api/search", json={"text": "it's 100 % ' OR true"}).json()
    assert quote["rows"] == [] and query(finished, f"SELECT 1 FROM rows WHERE {quote['told']}").num_rows == 0


def test_a_cut_and_a_comparison_keep_to_the_selected_rows(session, finished):
    inside = query(finished, "SELECT seam_contrast AS s FROM rows WHERE reward > 0.5")["s"].to_pylist()
    found = bench(session, "seam_contrast", -0.1, "above", False, '"reward" > 0.5')
    assert found["rows"] == len(inside) < 40
    assert found["kept"] == sum(value is not None and value >= -0.1 for value in inside)
    assert sum(line["rows"] for mix in found["mixes"][:1] for line in mix["values"]) == len(inside)
    compared = compare(session, "seam_contrast", "reward", 0.2, '"reward" > 0.5')
    assert compared["rows"] == sum(value is not None for value in inside)
    with pytest.raises(QueryError):
        bench(session, "seam_contrast", -0.1, "above", False, "true) --")


def test_the_page_says_which_models_band_and_day_made_the_columns_and_no_folder(ask, finished):
    overview = ask("GET", "/api/overview").json()
    facts = dict(overview["about"])
    assert facts["policy"] == "policy (fake)" and facts["band"] == "0.5 to 0.9" and facts["date"] >= "2026-01-01"
    formulas = {column["name"]: column["formula"] for column in overview["columns"]}
    assert formulas["seam_contrast"].startswith("−(k / n) · Σ w") and formulas["prompt"] == ""
    assert formulas["rer_length"] == "LI = words of the response / 100"


def test_regions_of_the_map_are_named_by_words_of_their_own(tmp_path):
    topics = {"sets": "union of two sets", "files": "open a binary file", "dates": "parse a date string"}
    corners = {"sets": (0.0, 0.0), "files": (1.0, 0.0), "dates": (0.5, 1.0)}
    rows = [
        {"prompt": f"how do I {text} please {i}", "projection_x": corners[name][0], "projection_y": corners[name][1]}
        for name, text in topics.items()
        for i in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"))), tmp_path / "store")
    named = regions(Session(Store(tmp_path / "store")))
    assert len(named) == 3
    for region in named:
        (topic,) = [name for name, corner in corners.items() if corner == pytest.approx((region.x, region.y))]
        assert set(region.words.split(" · ")) <= set(topics[topic].split())


def test_dates_that_python_does_not_have_are_shown_as_text(tmp_path):
    columns = {"prompt": ["question"], "response": ["answer"], "day": pa.array([2**31 - 1], pa.date32())}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"))), tmp_path / "store")
    store = Store(tmp_path / "store")
    assert "infinity" in repr(store.sql("SELECT day FROM rows"))
    answer = Client(Session(store))("POST", "/api/sql", json={"sql": "SELECT day FROM rows"}).json()
    assert answer["rows"] == [["infinity"]]
    assert Client(Session(store))("GET", "/api/row/0").status_code == 200
    assert next(iter(why(store, 0))) == "row 0: question"


def test_nothing_is_said_of_a_sources_column_for_its_name(tmp_path, capsys):
    rows = [{"prompt": f"question {i}", "response": "answer", "reward": i / 7} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"))), tmp_path / "store")
    overview = Client(Session(Store(tmp_path / "store")))("GET", "/api/overview").json()
    (column,) = [column for column in overview["columns"] if column["name"] == "reward"]
    (chart,) = [chart for chart in overview["charts"] if chart["name"] == "reward"]
    assert (column["measured"], column["formula"]) == ("", "") == (chart["measured"], chart["formula"])
    columns(str(tmp_path / "store"))
    assert "reward" in (shown := capsys.readouterr().out) and "Measured" not in shown


def test_lengths_that_no_response_has_keep_their_place(tmp_path):
    rows = [{"prompt": f"question {i}", "response": "x" * (5 if i % 2 else 1000), "score": i} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"))), tmp_path / "store")
    lengths = bench(Session(Store(tmp_path / "store")), "score", 10, "above", False)["lengths"]
    assert lengths["step"] == 50 and [one["bin"] for one in lengths["bins"]] == list(range(21))
    assert {one["bin"]: one["rows"] for one in lengths["bins"] if one["rows"]} == {0: 10, 20: 10}


@pytest.mark.parametrize(
    ("golden", "answer", "marked"),
    [
        ("a b c", "a x c", ["x"]),
        ("a b", "a b", []),
        ("", "new", ["new"]),
        # Answers of 1,900 words are compared to their end, and what is longer is not called different.
        ("word " * 1900 + "end", "word " * 1900 + "other", ["other"]),
        ("word " * 5000, "word " * 5000 + "other", []),
        ("word", "word" + " more" * 3000, None),
    ],
)
def test_words_that_differ_are_marked_and_what_is_not_compared_is_not(golden, answer, marked):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    module = Path(__file__).parents[2] / "explorer/src/diff.js"
    code = (
        f"import {{ difference }} from {json.dumps(module.as_uri())};"
        "let text = ''; process.stdin.on('data', (part) => (text += part)).on('end', () => "
        "console.log(JSON.stringify(difference(...JSON.parse(text)))));"
    )
    asked = json.dumps([golden, answer])
    done = subprocess.run(
        [node, "--input-type=module", "-e", code], input=asked, capture_output=True, text=True, check=True, timeout=60
    )
    parts = json.loads(done.stdout)
    assert "".join(part["text"] for part in parts) == answer
    if marked is None:
        assert [part["same"] for part in parts] == [True, False, None]
    else:
        assert [part["text"].strip() for part in parts if part["same"] is False] == marked


@pytest.mark.slow
def test_columns_appear_while_a_run_fills_the_store(recipe, tmp_path):
    run_local(recipe(steps=(Retrieve(k=5, band=(0.5, 0.9)),), splits={}), tmp_path / "store", limit=20)
    session = Session(Store(tmp_path / "store"))
    session.refresh()
    assert "seam_contrast" not in [chart.column.name for chart in session.charts] and not session.changed()
    # The explorer holds no lock: the run goes on beside it.
    run_local(recipe(steps=(Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5)), splits={}), tmp_path / "store")
    assert session.changed()
    session.refresh()
    assert "seam_contrast" in [chart.column.name for chart in session.charts] and not session.changed()


@pytest.mark.slow
def test_a_second_store_is_there_to_compare_with(finished):
    both = Session(finished, other=finished)
    answer = Client(both)("GET", "/api/whole").json()
    assert {one["name"] for one in answer["others"]} == {f"other.{chart.column.name}" for chart in both.charts}
    assert [one["name"] for one in answer["views"]["other.rows"]] == [one["name"] for one in answer["views"]["rows"]]
    joined = "SELECT 1 FROM rows JOIN other.rows AS o USING (row_id) WHERE o.reward = rows.reward"
    assert both.ask(joined).num_rows == both.ask("SELECT 1 FROM rows WHERE reward IS NOT NULL").num_rows > 0


@pytest.mark.slow
def test_charts_are_there_before_files_that_no_chart_needs_are_verified(recipe, tmp_path):
    run_local(recipe(), tmp_path / "store")
    store = Store(tmp_path / "store")
    needed, unneeded = (
        store.path / "columns/seam_contrast/00000.parquet",
        store.path / "columns/worse_contrast/00000.parquet",
    )
    unneeded.write_bytes(unneeded.read_bytes()[:-9] + b"x" + unneeded.read_bytes()[-8:])
    session = Session(store)
    ask = Client(session)
    assert ask("GET", "/api/overview").status_code == 200
    assert ask("POST", "/api/mosaic", json={"type": "arrow", "sql": "SELECT count(*) FROM scores"}).status_code == 200
    assert ask("POST", "/api/rows", json={"by": "seam_contrast"}).json()["rows"]
    for path in ("whole", "row/1"):
        assert "00000.parquet" in ask("GET", f"/api/{path}").json()["error"]
    for sql in ("SELECT seam_contrast FROM rows", f"SELECT * FROM read_parquet('{unneeded}')"):
        assert ask("POST", "/api/sql", json={"sql": sql}).status_code == 400
        assert ask("POST", "/api/mosaic", json={"type": "arrow", "sql": sql}).status_code == 400
    needed.write_bytes(needed.read_bytes()[:-9] + b"x" + needed.read_bytes()[-8:])
    assert "00000.parquet" in Client(Session(store))("GET", "/api/overview").json()["error"]


@pytest.mark.slow
def test_two_columns_are_compared_by_their_worst_rows_and_by_their_places(recipe, finished, tmp_path):
    make = recipe().models.model_copy(update={"reward": FakeModel(path="another")})
    run_local(recipe(models=make), tmp_path / "other")
    other = Store(tmp_path / "other")
    session = Session(finished, other)
    a, b = (
        query(store, "SELECT seam_contrast AS s FROM rows ORDER BY row_id")["s"].to_pylist()
        for store in (finished, other)
    )
    both = [i for i in range(40) if a[i] is not None and b[i] is not None]
    for rate in (0.95, 0.2):
        comparison = compare(session, "seam_contrast", "other.seam_contrast", rate)
        size = math.ceil(rate * len(both))
        worst = [{i for i in sorted(both, key=lambda i: s[i])[:size] if s[i] < 0} for s in (a, b)]
        shared = len(worst[0] & worst[1])
        assert (comparison["rows"], comparison["worst_a"], comparison["worst_b"]) == (
            len(both),
            len(worst[0]),
            len(worst[1]),
        )
        assert comparison["shared"] == shared and comparison["overlap"] == 2 * shared / (len(worst[0]) + len(worst[1]))
    spearman = pytest.importorskip("scipy.stats", reason="scipy is not installed").spearmanr
    assert comparison["correlation"] == pytest.approx(spearman([a[i] for i in both], [b[i] for i in both]).statistic)
    moves = [round(abs(one["place_a"] - one["place_b"]), 9) for one in comparison["moved"]]
    assert moves == sorted(moves, reverse=True) and all(one["prompt"] for one in comparison["moved"])
    # Bad is high here, and low there: the same rows all the same.
    mirrored = compare(session, "seam_contrast", "discrepancy_contrast", 0.2)
    assert mirrored["correlation"] == pytest.approx(1) and mirrored["worst_a"] <= mirrored["worst_b"]
    with pytest.raises(QueryError, match="is no numeric column"):
        compare(session, "prompt", "reward", 0.2)


def test_rows_of_another_source_are_not_compared_by_their_place(bare, finished):
    assert Session(bare, finished).others == []


@pytest.fixture
def bare(tmp_path) -> Store:
    """A store of rows alone: messages for prompts, and names and values that no one expects."""
    odd = 'a "quoted" name, <b>{x}</b> $y'
    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "response": "an answer",
            odd: [0.5, float("nan"), float("inf"), None][i % 4],
            "same": 7,
            "empty": None,
            "source": ["web", "book's", None][i % 3],
            "flag": bool(i % 2),
        }
        for i in range(24)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"))), tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.mark.slow
def test_a_store_without_scores_and_with_odd_names_is_explored(bare):
    session, ask = Session(bare), Client(Session(bare))
    odd = next(chart.column.name for chart in session.charts if "quoted" in chart.column.name)
    present = {chart.column.name: chart.present for chart in session.charts}
    assert present == {odd: 6, "same": 24}
    assert {g.column.name: dict(g.values) for g in session.groups} == {
        "flag": {"false": 12, "true": 12},
        "source": {"web": 8, "book's": 8, None: 8},
    }
    assert ask("GET", "/api/overview").status_code == 200
    rows = ask("POST", "/api/rows", json={"by": odd}).json()["rows"]
    assert len(rows) == 24 and rows[0]["prompt"] == "question 0" and rows[0][odd] == 0.5
    opened = ask("GET", "/api/row/1").json()
    assert (opened["prompt"], opened["response"], opened["candidates"]) == ("question 1", "an answer", [])
    assert opened["verdicts"] == ["no split has been made yet"]
    assert bench(session, odd, 0.5, "above", False)["kept"] == 6
    assert report(bare, bare.path / "report.html")


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(StoreError, match="is no store"):
        Session(Store(tmp_path))


@pytest.mark.slow
def test_a_report_is_one_page_that_loads_nothing(finished, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    page_file, *figures = report(finished, tmp_path / "report.html", tmp_path / "figures")
    html = page_file.read_text()
    session = Session(finished)
    drawn, pictures = figures[::2], figures[1::2]
    assert (
        len(drawn) == len(session.charts) + len(session.groups) == html.count("<svg ")
        and "<h2>Worst by seam_contrast</h2>" in html
    )
    assert not re.search(r"<script|<link|<img|src=|url\(|@import", html)
    counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</title></rect>", drawn[0].read_text())]
    assert sum(counts) == session.charts[0].present
    (labels,) = [one.read_text() for one in drawn if one.stem.endswith("query_type")]
    labelled = dict(re.findall(r"<title>(\w+): ([\d,]+)</title></rect>", labels))
    assert (
        labelled == {str(value): str(rows) for value, rows in session.groups[-1].values}
        and sum(map(int, labelled.values())) == 40
    )
    # Alone, a figure says what it is of; a page says where nothing lies on this machine.
    assert all(
        one.partition("_")[2] in text.replace("split train", "split_train")
        for one, text in ((f.stem, f.read_text()) for f in drawn)
    )
    assert 'font-weight="600">seam_contrast</text>' in drawn[0].read_text() and str(finished.path.parent) not in html
    assert [one.stem for one in pictures] == [one.stem for one in drawn]
    assert all(one.read_bytes().startswith(b"\x89PNG") for one in pictures)
    again = report(finished, tmp_path / "report.html", tmp_path / "again")
    assert [one.read_bytes() for one in again] == [one.read_bytes() for one in (page_file, *figures)]


@pytest.mark.slow
def test_a_report_shows_the_map_of_its_rows(bare, tmp_path):
    steps = (Project(encoder=FakeModel(path="encoder")), LengthIncentive())
    run_local(Recipe(rows=Source(parquet=str(bare.path.parent / "rows.parquet")), steps=steps), bare.path)
    _, *figures = report(bare, tmp_path / "report.html", tmp_path / "figures")
    (drawn,) = [one for one in figures if one.name.endswith("map.svg")]
    assert drawn.read_text().count("<circle") == 24
    # Its darkest dots are the worst ones, so that its ground stays light.
    assert '<h2>Map</h2><div class="card light">' in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_figures_end_where_the_values_do(finished, tmp_path):
    from seamcurate.explore import figure

    low, high = query(finished, "SELECT min(reward), max(reward) FROM rows").to_pylist()[0].values()
    report(finished, tmp_path / "report.html", tmp_path / "figures")
    (drawn,) = (tmp_path / "figures").glob("*_reward.svg")
    assert re.findall("<text [^>]*>([^<]*)</text>", drawn.read_text())[:2] == [f"{low:.4g}", f"{high:.4g}"]
    chart = next(one for one in Session(finished).charts if one.column.name == "reward")
    points = [figure.Point(0.0, 0.0, value, 1) for value in (low, high)]
    colours = {shape.fill for shape in figure.scatter(chart, chart, chart, points, 4).shapes}
    assert colours == {figure.shade(0.0), figure.shade(1.0)}
    far = chart._replace(low=low - 100, high=high + 100)
    assert [end[0] for end in figure.ends(far)] == ["≤", "≥"]


def test_a_name_that_no_font_here_has_is_drawn_without_a_warning(tmp_path):
    pytest.importorskip("matplotlib")
    from seamcurate.explore import figure

    drawn = figure.Figure("名\tby row_id", 200, 60, [], [figure.Label(1, "名\tof", "start")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.png(drawn, tmp_path / "map.png")
    assert "名 by row_id" in figure.svg(drawn, sized=True) and (tmp_path / "map.png").stat().st_size > 500


def test_figures_without_matplotlib_are_svg_and_say_so(finished, tmp_path):
    # A fresh interpreter to which matplotlib is not installed.
    code = (
        "import sys; sys.modules['matplotlib'] = None; from pathlib import Path; from seamcurate import Store;"
        "from seamcurate.explore import report; print(len(report(Store(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))))"
    )
    args = [str(finished.path), str(tmp_path / "report.html"), str(tmp_path / "figures")]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == 1 + len(list((tmp_path / "figures").glob("*.svg")))
    assert done.stderr.count("[study]") == 1


def test_the_server_answers_on_this_machine_alone_and_writes_no_token_down(finished, tmp_path):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    (tmp_path / "index.html").write_text("the page")
    # It talks more than it is meant to, as it may one day.
    code = (
        "import sys, uvicorn; from pathlib import Path; from seamcurate import Store; from seamcurate.explore import server\n"
        "quiet = uvicorn.Config\n"
        "uvicorn.Config = lambda app, **options: quiet(app, **{**options, 'log_level': 'info'})\n"
        "server.PAGE = Path(sys.argv[2]); server.serve(Store(sys.argv[1]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(finished.path), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            token, port = address.partition("=")[2], int(re.search(r":(\d+)/", address)[1])
            # Another address of this machine stands for the network: what listens everywhere answers there too.
            for host in ("127.0.0.2", "::1"):
                with pytest.raises(OSError), socket.create_connection((host, port), 5):
                    pass
            assert httpx.get(address, trust_env=False).text == "the page"
            assert httpx.get(address, trust_env=False, headers={"host": "evil.example"}).status_code == 403
        finally:
            process.terminate()
        output = "".join(process.communicate(timeout=30))
    assert len(token) >= 32 and "Application startup complete" in output and token not in output


def test_a_port_that_is_taken_is_told(finished, tmp_path, monkeypatch):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    (tmp_path / "index.html").write_text("the page")
    monkeypatch.setattr(served, "PAGE", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StoreError, match=f"port {port} cannot be had: .*; give another --port"):
            served.serve(finished, port)


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The address of a real server over a store whose first prompt is hostile."""
    if executable() is None:
        pytest.skip("no Chromium is installed")
    if not (served.PAGE / "index.html").is_file():
        pytest.skip("the page was not built: make explorer")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    pytest.importorskip("websockets", reason="websockets is not installed")
    from conftest import whole_recipe, write_files

    folder = tmp_path_factory.mktemp("page")
    rows, corpus = write_files(folder)
    for file in (rows, corpus):
        table = pq.read_table(file).to_pylist()
        for one in table:
            one["response"] = f"{HOSTILE} {one['response']}"
        table[0]["prompt"] = f"{table[0]['prompt']} {HOSTILE}"
        pq.write_table(pa.Table.from_pylist(table), file)
    make = whole_recipe(rows, corpus)
    whole = make()
    run_local(make(steps=(*whole.steps, Project())), folder / "store")
    run_local(make(models=whole.models.model_copy(update={"reward": FakeModel(path="another")})), folder / "other")
    process, url = served_at(Store(folder / "store"), Store(folder / "other"))
    yield url
    process.terminate()
    process.wait(20)


def served_at(store: Store, *more: Store) -> tuple[subprocess.Popen[str], str]:
    """Start a real server, and return it with its address."""
    code = (
        "import sys; from seamcurate import Store; from seamcurate.explore import serve\n"
        "serve(Store(sys.argv[1]), other=Store(sys.argv[2]) if sys.argv[2:] else None)"
    )
    paths = [str(one.path) for one in (store, *more)]
    process = subprocess.Popen([sys.executable, "-c", code, *paths], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


@pytest.fixture(scope="module")
def browser(address) -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def page(browser, address) -> Browser:
    shown(browser, address)
    browser.until("document.querySelector('#t-rows').dataset.rows == '40'")
    return browser


def shown(page: Browser, address: str) -> None:
    """Open the page anew and wait until its charts, its rows and its counts are there: they come in any order."""
    page.open("about:blank")
    page.until("location.href == 'about:blank'")
    page.open(address)
    page.until("document.documentElement.dataset.state == 'ready' && document.querySelector('#rows tbody tr')")
    page.until("document.querySelector('#t-rows').dataset.rows")


def settled(page: Browser) -> int:
    """Return how many rows are selected, once that no longer changes: a drag selects at each of its steps."""
    seen: list[int] = []
    while len(seen) < 8 or len(set(seen[-8:])) > 1:
        seen.append(int(page.run("document.querySelector('#t-rows').dataset.rows")))
        time.sleep(0.1)
    return seen[-1]


def test_the_server_listens_on_this_machine_alone(address):
    host, port = re.match(r"http://([\d.]+):(\d+)/", address).groups()
    assert host == "127.0.0.1"
    others = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in others:
        with contextlib.closing(socket.socket()) as tried:
            tried.settimeout(1)
            assert tried.connect_ex((other, int(port))) != 0


def test_a_brush_filters_every_other_chart_the_counts_and_the_rows(page):
    other = "[...document.querySelectorAll('[data-column=reward] rect.in')].map(r => r.getAttribute('height')).join()"
    before = page.run(other)
    page.drag("[data-column=seam_contrast] .plot", 0.02, 0.5)
    page.until("+document.querySelector('#t-rows').dataset.rows < 40")
    page.until(f"{other} != '{before}'")
    selected = settled(page)
    page.until(f"document.querySelectorAll('#rows tbody tr').length == {selected}")
    assert 0 < selected < 40 and page.text("#chips").startswith("seam_contrast")
    page.click("#chips button")
    page.until("document.querySelector('#t-rows').dataset.rows == '40'")


def test_a_box_on_the_map_selects_by_both_columns_and_stays_when_its_colour_changes(page):
    page.drag("#overview .plot.map", 0.1, 0.9, down=(0.2, 0.8))
    page.until("document.querySelector('#chips').textContent.startsWith('projection_y by projection_x')")
    page.until("+document.querySelector('#t-rows').dataset.rows < 40")
    selected = settled(page)
    assert 0 < selected < 40
    page.run("document.querySelector('#as-sql').click()")
    sql = page.run("document.querySelector('#sql').value")
    assert "projection_x" in sql and "projection_y" in sql
    page.click("#tab-overview")
    assert "worse" in page.text("#overview .legend")
    page.run(
        "(() => { const s = document.querySelector('#overview .pairs select[aria-label=colour]'); s.value = 'query_type';"
        " s.dispatchEvent(new Event('change')) })()"
    )
    page.until("document.querySelectorAll('#overview .legend .entry').length > 0")
    assert settled(page) == selected
    page.run("document.querySelector('#overview .plot.map').focus()")
    page.key("Escape")
    page.until("document.querySelector('#t-rows').dataset.rows == '40'")
    page.key("ArrowRight")
    page.until("document.querySelector('#chips').textContent.startsWith('projection_y')")


DOT = """(() => {
  const plot = document.querySelector('#overview .plot.map'), box = plot.getBoundingClientRect();
  const canvas = plot.querySelector('canvas'), pen = canvas.getContext('2d'), ratio = canvas.width / box.width;
  const all = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 3; i < all.length; i += 4) if (all[i] > 200) {
    const p = (i - 3) / 4; return [box.x + (p % canvas.width) / ratio, box.y + 2 + Math.floor(p / canvas.width) / ratio] }
})()"""


COLOUR = """(() => { const s = document.querySelector('#overview .pairs select[aria-label=colour]'); s.value = '%s';
  s.dispatchEvent(new Event('change')); return [...document.querySelectorAll('#overview .legend > span:not(.worse, .entry)')].map((e) => e.innerText) })()"""


def test_the_maps_legend_ends_where_the_values_do(page):
    ends = page.run(COLOUR % "reward")
    assert " to ".join(ends) == page.text("[data-column=reward] footer .spread")
    assert page.run(COLOUR % "seam_contrast")[1] == "0.000"


def test_a_dot_on_the_map_tells_its_prompt_and_opens_its_row(page):
    page.run("document.querySelector('#overview .plot.map').scrollIntoView({block: 'center'})")
    page.until(DOT)
    x, y = page.run(DOT)
    page.hover(x, y)
    page.until("!document.querySelector('#overview .tip.note').hidden")
    tooltip = page.text("#overview .tip.note")
    assert "how do I" in tooltip and "projection_x" in tooltip
    row_id = re.search(r"row (\d+)", tooltip)[1]
    page.press(x, y)
    page.until(f"document.querySelector('#drill h2')?.innerText == 'Row {row_id}'")
    page.key("Escape")


def test_two_columns_and_two_stores_are_compared(page):
    page.click("#tab-compare")
    page.until("document.querySelector('.moved tbody tr')")
    assert page.run("document.querySelector('#compared select').value") == "seam_contrast"
    assert page.run("document.querySelectorAll('#compared select')[1].value") == "other.seam_contrast"
    assert "by chance" in page.text("#compared .figures")
    row_id = page.run("document.querySelector('.moved tbody tr').dataset.row")
    page.run("document.querySelector('.moved tbody tr').focus()")
    page.key("Enter")
    page.until(f"document.querySelector('#drill h2')?.innerText == 'Row {row_id}'")
    page.key("Escape")


def test_names_are_completed_by_keyboard_and_an_answer_is_drawn(page):
    page.click("#tab-query")
    page.run("(() => { const i = document.querySelector('#sql'); i.value = ''; i.focus() })()")
    page.type("SELECT seam_c")
    page.until("!document.querySelector('#sql-completion').hidden")
    page.key("Enter")
    page.type(" FROM cand")
    page.until("!document.querySelector('#sql-completion').hidden")
    page.key("Escape")
    page.until("document.querySelector('#sql-completion').hidden")
    page.type("idates AS c JOIN rows AS r USING (row_id) WHERE r.rewar")
    page.until("!document.querySelector('#sql-completion').hidden")
    page.key("ArrowDown")
    page.key("Tab")
    page.until("document.querySelector('#sql-completion').hidden")
    sql = page.run("document.querySelector('#sql').value")
    assert sql.startswith("SELECT seam_contrast FROM candidates AS c") and re.search(r"r\.rewards?_?\w*$", sql)
    page.run("document.querySelector('#sql').value = 'SELECT seam_contrast, prompt FROM rows; '")
    page.key("Enter", modifiers=2)
    page.until("document.querySelectorAll('#sql-result tbody tr').length == 40")
    page.run("document.querySelector('#sql-result [data-view=seam_contrast]').click()")
    page.until("document.querySelector('#sql-result .answer rect')")
    drawn = page.run(
        "[...document.querySelectorAll('#sql-result rect title')].map(t => +t.textContent.split(': ')[1]).reduce((a, b) => a + b, 0)"
    )
    assert f"{drawn} values" in page.text("#sql-result .answer")
    page.until("document.querySelector('#history').textContent.includes('SELECT seam_contrast, prompt')")


def test_refreshing_keeps_the_selection_and_what_was_typed(page):
    page.run("document.querySelector('[data-column=reward] .plot').focus()")
    page.key("ArrowRight")
    page.until("+document.querySelector('#t-rows').dataset.rows < 40")
    page.until("document.documentElement.dataset.whole == 'ready'")
    selected, chips = settled(page), page.text("#chips")
    page.run(
        "(() => { document.querySelector('#sql').value = 'SELECT 7 AS kept'; document.body.dataset.before = '1' })()"
    )
    page.click("#refresh")
    page.until("!document.body.dataset.before && document.documentElement.dataset.state == 'ready'")
    page.until(f"document.querySelector('#t-rows').dataset.rows == '{selected}'")
    page.until("document.documentElement.dataset.whole == 'ready'")
    assert page.text("#chips") == chips and page.run("document.querySelector('#sql').value") == "SELECT 7 AS kept"
    page.click("#chips button")
    page.until("document.querySelector('#t-rows').dataset.rows == '40'")


def test_a_chart_is_brushed_by_keys(page):
    page.run("document.querySelector('[data-column=reward] .plot').focus()")
    page.key("ArrowRight")
    page.until("document.querySelector('#chips').textContent.startsWith('reward')")
    page.key("Escape")
    page.until("document.querySelector('#chips').textContent == ''")


def test_a_row_opens_to_its_candidates_with_hostile_text_as_text(page):
    page.run("document.querySelector('#rows tbody tr').focus()")
    page.key("Enter")
    page.until("document.querySelector('#drill .candidates details')")
    assert "<img src=x onerror=" in page.text("#drill") and "\u202e" not in page.text("#drill")
    page.run("document.querySelector('#drill details').open = true")
    page.until("document.querySelector('#drill details .diff ins')")
    own, golden = (
        page.run(f"[...document.querySelectorAll('#drill details .diff {one}')].map((e) => e.textContent)")
        for one in ("ins", "del")
    )
    whole = page.run("[...document.querySelectorAll('#drill details .diff')].map((e) => e.innerText)")
    assert whole[1] == page.text("#drill .text.golden") and own and golden and not {*own} & {*golden}
    # Told apart without colour.
    line = "getComputedStyle(document.querySelector('#drill details .diff del')).textDecorationLine"
    assert page.run(line) == "line-through"
    assert "answers:" in page.text("#drill details .opened")
    assert page.run("document.querySelectorAll('#drill details.wrong').length") == int(
        re.search(r"prefers (\d+) of", page.text("#drill"))[1]
    )
    assert not re.search(r"candidates_contrast\s+\d+\.", page.text("#drill"))
    first = page.text("#drill h2")
    page.key("j")
    page.until(f"document.querySelector('#drill h2').innerText != '{first}'")
    page.key("Escape")
    page.until("document.querySelector('#drill').hidden")
    assert page.run("window.hacked === undefined && document.querySelectorAll('main img, aside img').length === 0")


CUT_OFF = """[...document.querySelectorAll('#drill .heads span, #sql-result .title > p')]
  .filter((e) => e.scrollWidth > e.clientWidth + 1 || e.clientHeight > 3 * parseFloat(getComputedStyle(e).fontSize))
  .map((e) => e.textContent)"""


@pytest.mark.parametrize("width", [1280, 2560])
def test_headings_fit_on_a_laptop_and_on_a_large_screen(page, width):
    page.resize(width, 1000)
    try:
        page.run("document.querySelector('#rows tbody tr').focus()")
        page.key("Enter")
        page.until("document.querySelector('#drill .heads')")
        page.run("document.querySelector('#tab-query').click()")
        page.until("document.documentElement.dataset.whole == 'ready'")
        page.run("document.querySelector('#sql').value = 'SELECT * FROM rows'")
        page.run("document.querySelector('#sql-run').click()")
        page.until("document.querySelector('#sql-result .title > p')")
        assert page.run(CUT_OFF) == []
    finally:
        page.resize(1440, 900)


def test_sql_is_asked_and_answered_on_a_small_screen_without_scrolling(page):
    page.resize(800, 600)
    try:
        page.run("document.querySelector('#tab-query').click()")
        page.until("document.documentElement.dataset.whole == 'ready'")
        assert page.run("document.querySelector('#sql-run').getBoundingClientRect().bottom") < 500
        page.click("#tab-overview")
    finally:
        page.resize(1440, 900)


def test_an_empty_selection_says_so_and_not_that_scores_lack(page):
    page.run("document.querySelector('[data-column=reward] .plot').focus()")
    page.key("ArrowRight")
    page.until("document.querySelector('#chips').textContent.startsWith('reward')")
    page.run("document.querySelector('[data-column=rer] .plot').focus()")
    page.key("ArrowRight")
    page.until("document.querySelector('#t-rows').dataset.rows == '0'")
    page.until("document.querySelector('#rows').textContent.includes('No row is in the selection')")
    assert page.text("#t-misjudged small") == page.text("#t-none small") == ""


def test_the_selection_becomes_sql_that_finds_as_many_rows(page):
    page.drag("[data-column=reward] .plot", 0.05, 0.6)
    page.until("+document.querySelector('#t-rows').dataset.rows < 40")
    page.click("#as-sql")
    page.click("#sql-run")
    page.until("document.querySelector('#sql-result .meaning')")
    page.until(
        "document.querySelector('#sql-result .meaning').innerText.split(' ')[0] == document.querySelector('#t-rows').dataset.rows"
    )
    page.run("document.querySelector('#sql').value = 'SELECT nothing FROM rows'")
    page.click("#sql-run")
    page.until("document.querySelector('#sql-problem').textContent.includes('columns of rows')")
    # A refused query is a failed request to the browser, which says so by itself.
    page.problems = [one for one in page.problems if "400" not in one]


def test_many_rows_are_drawn_by_how_many_fall_where_and_are_brushed(browser, address, tmp_path):
    rows = int(os.environ.get("SEAMCURATE_EXPLORE_ROWS", "25000"))
    texts = pa.array([f"question {i}" for i in range(rows)])
    answers = pa.array([f"{'word ' * (i % 37)}{i}" for i in range(rows)])
    far = pa.array([10**6 if i == 7 else i % 100 for i in range(rows)])
    pq.write_table(pa.table({"prompt": texts, "response": answers, "far": far}), tmp_path / "rows.parquet")
    steps = (LengthIncentive(), Random())
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet")), steps=steps), tmp_path / "store")
    process, url = served_at(Store(tmp_path / "store"))
    try:
        browser.open(url)
        browser.until(f"document.querySelector('#t-rows')?.dataset.rows == '{rows}'", 60)
        browser.until("document.querySelector('#rows tbody tr')")
        assert browser.run(COLOUR % "far") == ["0", "≥ 100"]
        painted = "(() => { const c = document.querySelector('.map canvas'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n })()"
        browser.until(f"{painted} > 1000")
        browser.drag(".plot.map", 0.2, 0.7, down=(0.2, 0.7))
        # A selection follows the pointer: what is compared is the one where the drag ended, 0.7 of the map's width.
        as_sql = "(document.querySelector('#as-sql').click(), document.querySelector('#sql').value)"
        browser.until(f"{as_sql}.includes('<= 0.7)')")
        predicate = browser.run(as_sql)
        selected = query(Store(tmp_path / "store"), predicate).num_rows
        assert rows / 20 < selected < rows / 2
        browser.click("#tab-overview")
        browser.until(f"document.querySelector('#t-rows').dataset.rows == '{selected}'")
        browser.run("document.querySelector('.map').scrollIntoView({block: 'center'})")
        x, y, width, height = browser.run(
            "(() => { const b = document.querySelector('.map').getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })()"
        )
        browser.hover(x + width * 0.4, y + height * 0.4)
        browser.until("!document.querySelector('.tip.note').hidden")
        assert "question" in browser.text(".tip.note")
    finally:
        browser.open("about:blank")
        process.terminate()
        process.wait(20)


def test_every_source_is_there_to_select_and_not_the_most_frequent_alone(browser, address, tmp_path):
    rows = [{"prompt": f"question {i}", "source": f"source {i % 8}"} for i in range(80)] + [
        {"prompt": "one", "source": "rare"}
    ] * 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"))), tmp_path / "store")
    process, url = served_at(Store(tmp_path / "store"))
    try:
        shown(browser, url)
        seen = "[...document.querySelectorAll('[data-column=source] .value')].filter((e) => e.offsetHeight).length"
        assert browser.run(seen) == 5 and browser.text("[data-column=source] footer") == "4 more values"
        browser.click("[data-column=source] footer button")
        assert browser.run(seen) == 9
        browser.run("[...document.querySelectorAll('[data-column=source] .value')].at(-1).click()")
        browser.until("document.querySelector('#t-rows').dataset.rows == '2'")
        browser.click("[data-column=source] footer button")
        # What is selected stays to be seen.
        assert browser.run(seen) == 6 and browser.text("#chips").startswith("source: rare")
    finally:
        # A page that is left open asks on, and finds nobody.
        browser.open("about:blank")
        process.terminate()
        process.wait(20)


def test_the_cut_is_dragged_and_its_recipe_line_follows(page):
    page.click("#tab-cut")
    page.until("document.querySelector('.near li')")
    line = page.text("#bench-recipe")
    kept = page.text("#bench .figure b")
    page.drag("#bench .plot", 0.3, 0.8)
    page.until(f"document.querySelector('#bench-recipe').innerText != {line!r}")
    page.until(f"document.querySelector('#bench .figure b').innerText != {kept!r}")
    assert page.text("#bench-recipe").startswith("train: {filter: keep_between.sql, by: seam_contrast, low: -")
    near = page.run("[...document.querySelectorAll('.near .number')].map((e) => e.textContent)")
    assert len(near) > 10 and len({len(one.partition(".")[2]) for one in near}) == 1
    assert page.run("document.querySelectorAll('.mixes .axis span').length") > 2


def test_a_search_selects_rows_and_is_part_of_the_selections_sql(page):
    word = page.run("[...document.querySelectorAll('#rows tbody td.prompt')].at(-1).textContent")
    page.run(f"document.querySelector('#search').value = {json.dumps(word)}")
    page.run("document.querySelector('#search').dispatchEvent(new Event('change'))")
    page.until("document.querySelector('#chips').textContent.startsWith('contains:')")
    page.until("+document.querySelector('#t-rows').dataset.rows < 40")
    selected = settled(page)
    assert selected > 0
    page.click("#as-sql")
    assert "The selection (contains:" in page.text("#query .within")
    page.click("#sql-run")
    page.until(f"document.querySelectorAll('#sql-result tbody tr').length == {selected}")
    # A line with a row_id opens its row.
    page.click("#sql-result tbody tr")
    page.until("document.querySelector('#drill h2')")
    assert page.text("#drill h2").startswith("Row ")
    page.key("Escape")


def test_a_split_is_a_filter_and_the_selection_holds_on_every_tab(page):
    page.run("[...document.querySelectorAll('[data-column=\"split train\"] .value')].at(-1).click()")
    page.until("document.querySelector('#t-rows').dataset.rows == '8'")
    assert page.text("#chips").startswith("split train: dropped: drop the lowest 20 %")
    page.click("#tab-cut")
    page.until("document.querySelector('#bench .figures b')")
    assert page.text("#cut .within").startswith("Of the selected rows only (split train: dropped")
    page.until("document.querySelector('#bench .figures').textContent.includes('0.0 % of 8')")
    page.run("document.querySelector('#tab-compare').click()")
    page.until("document.querySelector('#compared .figures b')?.textContent == '8'")
    page.click("#chips button")
    page.until("document.querySelector('#compared .figures b').textContent != '8'")
    assert page.text("#compare .within") == ""


def test_a_columns_help_gives_its_meaning_its_formula_and_what_it_was_measured_to_find(page):
    page.click("[data-column=seam_contrast] .ask")
    assert "Σ w · max(R(I∘r*) − R(I∘r), 0)" in page.text("[data-column=seam_contrast] .formula")
    assert (
        page.text("[data-column=seam_contrast] .measured") == measured.sentence("seam_contrast", "seam_contrast") != ""
    )
    page.key("Escape")
    assert page.run("document.querySelector('[data-column=seam_contrast] .help').hidden")


TOO_WIDE = """(() => [...document.querySelectorAll('header, main, .totals, .about')].filter((e) => e.offsetHeight)
  .map((e) => Math.max(e.scrollWidth, e.getBoundingClientRect().right)).filter((right) => right > innerWidth + 1))()"""


def test_every_tab_fits_a_telephone(page):
    page.resize(400, 860)
    try:
        for tab in ("overview", "query", "cut", "compare"):
            page.run(f"document.querySelector('#tab-{tab}').click()")
            page.until(f"document.querySelector('#{tab} select, #{tab} textarea')?.offsetHeight")
            assert page.run("document.documentElement.scrollWidth") <= 400, tab
            assert page.run(TOO_WIDE) == [], tab
    finally:
        page.resize(1440, 900)


def test_nothing_keeps_people_from_using_the_page(page):
    axe = Path(__file__).parents[2] / "explorer" / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("axe-core was not installed: make explorer")
    page.run(axe.read_text())
    found = """axe.run(document, {resultTypes: ['violations']})
      .then((r) => r.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 100))}`))"""
    for tab, there in (
        ("query", "#sql-run:enabled"),
        ("cut", ".near li"),
        ("compare", "#compared .figures b"),
        ("overview", "#rows tbody tr"),
    ):
        page.run(f"document.querySelector('#tab-{tab}').click()")
        page.until(f"document.querySelector('{there}')")
        assert page.run(found) == [], tab
    page.run("document.querySelector('#rows tbody tr').click()")
    page.until("document.querySelector('#drill .scores')")
    page.dark(True)
    page.until("document.documentElement.dataset.theme == 'dark'")
    assert page.run(found) == []
    page.dark(False)


def test_the_page_is_dark_where_the_browser_is(page):
    def paper() -> str:
        return str(page.run("getComputedStyle(document.body).backgroundColor"))

    light = paper()
    page.dark(True)
    page.until("document.documentElement.dataset.theme == 'dark'")
    assert paper() != light
    page.dark(False)
    page.until("document.documentElement.dataset.theme == 'light'")


def test_nothing_left_the_machine_and_nothing_was_complained_of(page):
    asked = [url for url in page.requests if not url.startswith(("data:", "blob:", "about:"))]
    assert len(asked) > 20 and all(url.startswith("http://127.0.0.1:") for url in asked)
    assert page.problems == []


def test_an_error_of_the_server_is_told(browser, address):
    browser.open(address.replace("token=", "token=x"))
    browser.until("document.body.innerText.includes('seamcurate explore')")
    browser.problems.clear()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Decimal(780), 780),
        (Decimal("7.50"), 7.5),
        (Decimal(2**60), "1152921504606846976"),
        (date(2026, 1, 2), "2026-01-02"),
        (2**53 + 1, "9007199254740993"),
        ([1, "é"], '[1, "é"]'),
        (float("inf"), "inf"),
        (None, None),
    ],
)
def test_what_json_lacks_is_shown_as_plain_text(value, shown):
    assert served._cell(value) == shown


def test_the_page_fills_the_readmes_picture(browser, address):
    """`SEAMCURATE_PICTURE_OF=STORE` takes the README's own picture, of that store."""
    store, file = os.environ.get("SEAMCURATE_PICTURE_OF"), Path(__file__).parents[2] / "explorer/screenshot.png"
    process, url = served_at(Store(store)) if store else (None, address)
    try:
        with tempfile.TemporaryDirectory() as folder:
            shot = file if store else Path(folder) / "page.png"
            shown(browser, url)
            browser.drag("[data-column=reward] .plot", 0.02, 0.45)
            settled(browser)
            # What the pointer says of a bar would cover what the chart says of itself.
            browser.hover(2, 2)
            browser.until("document.querySelector('[data-column=reward] .tip').hidden")
            browser.picture(shot)
            content = shot.read_bytes()
    finally:
        if process is not None:
            process.terminate()
            process.wait(20)
    # What is blank is compressed to next to nothing.
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 20_000
