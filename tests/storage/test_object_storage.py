"""Stores at s3://: the same bytes as in a folder, over a real S3 server on loopback, through its faults and ours."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import untimed, whole_recipe, write_files
from endpoint import serving
from s3_server import SECRET, nothing, objects_of, shards
from s3_server import serving as serve_objects

from seamcurate import (
    FakeModel,
    Generate,
    OpenAIServer,
    Random,
    Recipe,
    Retrieve,
    Source,
    Split,
    Store,
    plan,
    query,
    run_local,
    seam,
    study,
    tables,
)
from seamcurate.demo.story import run as run_demo
from seamcurate.errors import BusyError, DamagedError, HubError, SourceError, StaleError, StoreError
from seamcurate.explore import report
from seamcurate.publish import export as exporting
from seamcurate.publish.diff import diff
from seamcurate.publish.reproduce import check, reproduce
from seamcurate.run import integrity
from seamcurate.run.recipe import loads
from seamcurate.select.why import why
from seamcurate.storage import lock, objects, shard
from seamcurate.train import answer, sft

pytestmark = pytest.mark.slow

RETRIEVE = Retrieve(k=5, band=(0.5, 0.9))
KEEP = (Path(__file__).parents[2] / "recipes" / "keep_above_lowest.sql").read_text()
NAMES = map("bucket-{:03d}".format, itertools.count())


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with serve_objects(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture
def server(address):
    yield address
    address.fault = nothing


@cache
def client() -> Any:
    """What looks at the server beside the store."""
    import boto3

    return boto3.session.Session().resource("s3")


def new_bucket() -> Any:
    bucket = client().Bucket(next(NAMES))
    bucket.create()
    return bucket


@pytest.fixture
def bucket(server):
    """A bucket of the test's own."""
    return new_bucket()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another machine, which has read nothing yet."""
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "another cache"))


@pytest.fixture(scope="module")
def both(address, tmp_path_factory):
    """A whole recipe run at s3:// and into a folder, for tests that only read them."""
    bucket, folder = new_bucket(), tmp_path_factory.mktemp("both")
    recipe = retrieving(
        write_files(folder),
        rows=Source(parquet=str(folder / "rows.parquet"), shard_rows=20),
        splits={"train": Split(filter=KEEP, by="seam_contrast", rate=0.2)},
    )
    address = f"s3://{bucket.name}/some/store"
    reports = run_local(recipe, address), run_local(recipe, folder / "store")
    return SimpleNamespace(bucket=bucket, recipe=recipe, address=address, folder=folder / "store", reports=reports)


def simple(files, **parts) -> Recipe:
    """A recipe of 40 rows in three shards that is run with few requests."""
    return Recipe(**{"rows": Source(parquet=str(files[0]), shard_rows=15), "steps": (Random(),), **parts})


def retrieving(files, **parts) -> Recipe:
    """A recipe with a corpus and folders that steps share."""
    models = whole_recipe(*files)().models
    corpus = Source(parquet=str(files[1]), shard_rows=100)
    steps = (RETRIEVE, *seam("contrast", k=5))
    return simple(files, **{"corpus": corpus, "models": models, "steps": steps, **parts})


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ── the same as in a folder ──────────────────────────────────────────────────────────────────────────────


def test_a_run_gives_the_same_shards_as_into_a_folder(both):
    assert untimed(both.reports[0]) == untimed(both.reports[1])
    remote, on_disk = objects_of(both.bucket, "some/store"), files_of(both.folder)
    assert shards(remote) == shards(on_disk) and len(shards(remote)) > 15
    assert set(remote) == set(on_disk) - {".lock", "corpus/.lock"}


def test_running_again_computes_nothing_and_puts_nothing(both, server):
    before = objects_of(both.bucket, "some/store")
    start = len(server.requests)
    again = run_local(both.recipe, both.address)
    assert again.computed == 0 and again.lines == both.reports[0].lines
    assert objects_of(both.bucket, "some/store") == before
    put = {path for method, path in server.requests[start:] if method == "PUT"}
    assert {path.rsplit("/", 1)[1] for path in put} <= {".lock", "store.json"}


def test_another_machine_reads_what_a_folder_gives(both, elsewhere, tmp_path):
    remote, on_disk = Store(both.address).open(), Store(both.folder)
    assert remote.columns() == on_disk.columns() and len(remote) == len(on_disk)
    for sql in (
        "SELECT * FROM rows ORDER BY ALL",
        "SELECT * FROM candidates ORDER BY ALL",
        "SELECT * FROM corpus ORDER BY ALL",
        "SELECT * FROM ledger ORDER BY ALL",
        "SELECT * FROM rejected ORDER BY ALL",
    ):
        assert query(remote, sql).equals(query(on_disk, sql))
    assert list(why(remote, 17)) == list(why(on_disk, 17))
    for store in (remote, on_disk):
        list(exporting.export(both.recipe, store, "trl", tmp_path / f"{store is remote}"))
    assert files_of(tmp_path / "True") == files_of(tmp_path / "False")
    assert {line.rows for line in plan(both.recipe, both.address).lines} == {0}
    found = diff(both.address, both.folder)
    assert not found.inputs and [moves.rows.num_rows for moves in found.splits] == [0]


def test_records_among_very_many_shards_are_found_without_listing_these(bucket, server):
    for name in ("a", "b"):
        for number in range(25):
            bucket.put_object(Key=f"store/columns/{name}/{number:05d}.parquet", Body=b"")
    for name in ("a", "b", "c"):
        bucket.put_object(Key=f"store/columns/{name}/_step.json", Body=b"{}")
        bucket.put_object(Key=f"store/columns/{name}/_shared/_step.json", Body=b"{}")
    folder = objects.place(f"s3://{bucket.name}/store/columns")

    def ten_at_a_time(params, **_):
        params.setdefault("MaxKeys", 10)

    event, start = "before-parameter-build.s3.ListObjectsV2", len(server.requests)
    folder.bucket.client.meta.events.register(event, ten_at_a_time)
    try:
        found = [str(file) for file in folder.glob("*/*step.json", past_shards=True)]
        # A request finds ten shards of a folder; the next begins behind its last one.
        assert len(server.requests) - start == 3
        assert found == [f"{folder}/{name}/_step.json" for name in "abc"]
        assert found == [str(file) for file in folder.glob("*/*step.json")]
    finally:
        folder.bucket.client.meta.events.unregister(event, ten_at_a_time)


def test_what_was_copied_is_not_downloaded_again(both, server):
    query(Store(both.address), "SELECT count(*) FROM rows")
    start = len(server.requests)
    query(Store(both.address), "SELECT * FROM candidates")
    got = {path for method, path in server.requests[start:] if method == "GET"}
    assert not {path for path in got if path.endswith(".parquet")}


def test_the_views_see_no_other_file(both, tmp_path):
    from seamcurate.errors import QueryError

    pq.write_table(pq.read_table(both.folder / "rows/00000.parquet"), tmp_path / "private.parquet")
    for place in (tmp_path / "private.parquet", f"{both.address}/rows/00000.parquet"):
        with pytest.raises(QueryError):
            query(Store(both.address), f"SELECT * FROM '{place}'")


def test_the_explorer_reads_it(both):
    from seamcurate.explore.row import row
    from seamcurate.explore.session import Session

    remote, on_disk = Session(Store(both.address)), Session(Store(both.folder))
    assert remote.charts == on_disk.charts and not remote.changed()
    assert row(remote, 17) == row(on_disk, 17)


def test_a_repository_is_prepared_from_it(both, tmp_path):
    from seamcurate.publish import hub

    (tmp_path / "recipe.yaml").write_text(
        f"rows: {{parquet: {both.folder.parent}/rows.parquet, shard_rows: 20}}\n"
        f"corpus: {{parquet: {both.folder.parent}/corpus.parquet, shard_rows: 100}}\n"
        "models: {policy: {fake: policy}, reward: {fake: reward}, encoder: {fake: encoder}}\n"
        "steps: [retrieve: {k: 5, band: [0.5, 0.9]}, seam: {k: 5}]\n"
        "splits: {train: {filter: keep_above_lowest.sql, by: seam_contrast, rate: 0.2}}\n"
    )
    remote = hub.prepare(tmp_path / "recipe.yaml", Store(both.address), "me/prompts")
    on_disk = hub.prepare(tmp_path / "recipe.yaml", Store(both.folder), "me/prompts")
    assert remote.files == on_disk.files and remote.card == on_disk.card
    assert files_of(remote.folder) == files_of(on_disk.folder)


def test_a_store_is_copied_up_and_down_object_by_object(both, bucket, tmp_path):
    for name, content in files_of(both.folder).items():
        if not name.endswith(".lock"):
            bucket.put_object(Key=f"copied/up/{name}", Body=content)
    address = f"s3://{bucket.name}/copied/up"
    assert run_local(both.recipe, address).computed == 0
    for name, content in objects_of(both.bucket, "some/store").items():
        (tmp_path / "down" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "down" / name).write_bytes(content)
    assert query(Store(address), "SELECT * FROM rows").equals(query(Store(tmp_path / "down"), "SELECT * FROM rows"))


def test_rows_and_corpora_may_lie_in_other_stores_there(files, bucket, tmp_path):
    at = f"s3://{bucket.name}"
    run_local(simple(files, rows=Source(parquet=str(files[1]), shard_rows=100)), f"{at}/shared")
    run_local(simple(files, rows=Source(parquet=str(files[1]), shard_rows=100)), tmp_path / "shared")
    recipe = retrieving(files, steps=(RETRIEVE,))
    for corpus, store in ((f"{at}/shared", f"{at}/store"), (f"{at}/shared", str(tmp_path / "mixed"))):
        run_local(recipe.model_copy(update={"corpus": Source(store=corpus)}), store)
    run_local(recipe.model_copy(update={"corpus": Source(store=str(tmp_path / "shared"))}), tmp_path / "store")
    assert shards(objects_of(bucket)) == shards(files_of(tmp_path / "store")) == shards(files_of(tmp_path / "mixed"))
    with pytest.raises(StoreError, match=r"cannot name a corpus on this machine.*give it one at s3:// too"):
        run_local(recipe.model_copy(update={"corpus": Source(store=str(tmp_path / "shared"))}), f"{at}/other")
    assert Source(store=f"{at}/shared").identity() == Source(store=str(tmp_path / "shared")).identity()
    assert len(list(Source(store=f"{at}/shared").chunks())) == 1


def test_the_command_line_takes_an_address_and_tells_no_key(files, bucket):
    (files[0].parent / "recipe.yaml").write_text("rows: {parquet: rows.parquet, shard_rows: 15}\nsteps: [random]\n")
    address = f"s3://{bucket.name}/store"

    def cli(*arguments):
        command = [sys.executable, "-m", "seamcurate.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    said = [
        cli("run", str(files[0].parent / "recipe.yaml"), address),
        cli("columns", f"s3://{bucket.name}-not-there/store"),
    ]
    assert [one.returncode for one in said] == [0, 2]
    assert said[0].stdout.startswith(f"{address}: 40 rows, 40 read, 3 shards computed")
    assert said[1].stderr == (
        f"error: s3://{bucket.name}-not-there/store/store.json: there is no such bucket; make it first, or correct the name\n"
    )
    assert not [one for one in said if SECRET in one.stdout + one.stderr or "a-key" in one.stdout + one.stderr]
    assert not [name for name, content in objects_of(bucket).items() if SECRET.encode() in content]


# ── stopping, going on, replacing ────────────────────────────────────────────────────────────────────────

DYING = """
import os, signal, sys
from seamcurate import Recipe, run_local
from seamcurate.storage import lock
from seamcurate.storage import objects
real, left = objects.ObjectPath.put, [int(sys.argv[3])]

def put(self, content, copy=True):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, content, copy)

objects.ObjectPath.put, lock.LEASE_SECONDS = put, 1.0
run_local(Recipe.load(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize("puts", [int(n) for n in os.environ.get("SEAMCURATE_KILLS", "9").split(",")])
def test_a_killed_run_goes_on_once_its_lock_has_ended_and_is_the_same(files, bucket, tmp_path, puts):
    (tmp_path / "recipe.yaml").write_text(
        "rows: {parquet: rows.parquet, shard_rows: 15}\nsteps: [random]\n"
        "splits: {train: {filter: 'SELECT row_id FROM rows WHERE baseline_random > 0.3'}}\n"
    )
    recipe, address = Recipe.load(tmp_path / "recipe.yaml"), f"s3://{bucket.name}/store"
    command = [sys.executable, "-c", DYING, str(tmp_path / "recipe.yaml"), address, str(puts)]
    with subprocess.Popen(command) as run:
        process = run.pid
    assert run.returncode == -signal.SIGKILL
    done = shards(objects_of(bucket))
    try:
        run_local(recipe, address)
    except BusyError as error:
        assert f"process {process}" in str(error) and "1.0 s after its last sign" in str(error)
        time.sleep(2.5)
        run_local(recipe, address)
    run_local(recipe, tmp_path / "whole")
    after = shards(objects_of(bucket))
    assert after == shards(files_of(tmp_path / "whole")) and {name: after[name] for name in done} == done
    assert not [name for name in objects_of(bucket) if name.endswith(".lock")]


def test_a_limit_stops_at_a_shard_and_a_later_run_goes_on(files, bucket, tmp_path):
    recipe, address = simple(files), f"s3://{bucket.name}/store"
    assert run_local(recipe, address, limit=16).rows == 30
    run_local(recipe, address)
    run_local(recipe, tmp_path / "store")
    assert shards(objects_of(bucket)) == shards(files_of(tmp_path / "store"))


def test_another_configuration_is_refused_and_replaced_on_request(files, bucket, tmp_path):
    address = f"s3://{bucket.name}/store"
    run_local(simple(files), address)
    before, other = objects_of(bucket), simple(files, steps=(Random(seed=2),))
    with pytest.raises(StaleError, match=rf"{address}/columns/\w+ was made by another configuration: .*seed: 0 → 2"):
        run_local(other, address)
    assert shards(objects_of(bucket)) == shards(before)
    run_local(other, address, replace=True)
    run_local(other, tmp_path / "store")
    assert shards(objects_of(bucket)) == shards(files_of(tmp_path / "store")) != shards(before)


@pytest.mark.parametrize(("removals", "goes_on"), [(0, False), (1, True), (2, False), (3, True), (5, True)])
def test_a_replacement_that_is_cut_short_leaves_no_shard_under_another_name(files, bucket, server, removals, goes_on):
    address = f"s3://{bucket.name}/store"
    run_local(simple(files), address)
    before, left, other = (
        shards(objects_of(bucket)),
        itertools.count(removals, -1),
        simple(files, steps=(Random(seed=2),)),
    )

    def fault(request):
        removal = request["REQUEST_METHOD"] == "DELETE" and "/columns/" in request["PATH_INFO"]
        return ("403 Forbidden", "AccessDenied") if removal and next(left) <= 0 else None

    server.fault = fault
    with pytest.raises(StoreError, match="AccessDenied"):
        run_local(other, address, replace=True)
    server.fault = nothing
    if not goes_on:
        # As it was: what is left of the old columns is taken, the rest made again.
        run_local(simple(files), address)
        assert shards(objects_of(bucket)) == before
    run_local(other, address, replace=True)
    assert not query(Store(address), "SELECT * FROM rows WHERE baseline_random IS NULL").num_rows


def test_rows_read_anew_leave_none_of_the_old(files, bucket):
    address = f"s3://{bucket.name}/store"
    run_local(simple(files), address)
    pq.write_table(pq.read_table(files[0]).slice(12), files[0])
    assert run_local(simple(files), address, replace=True).rows == 28
    assert query(Store(address), "SELECT count(*) AS n FROM rows").to_pylist() == [{"n": 28}]


def test_a_split_is_made_anew_when_its_filter_changes(files, bucket):
    address = f"s3://{bucket.name}/store"
    for low, kept in ((10, 30), (35, 5)):
        split = Split(filter=f"SELECT row_id FROM rows WHERE row_id >= {low}")
        assert run_local(simple(files, splits={"train": split}), address).lines == [
            f"split train: {kept} of 40 rows kept"
        ]
    assert query(Store(address), "SELECT count(*) AS n FROM ledger WHERE kept").to_pylist() == [{"n": 5}]


def test_new_files_cost_their_own_shards_there_too_and_strays_are_named(files, bucket, tmp_path):
    address, folder = f"s3://{bucket.name}/store", tmp_path / "dumps"
    folder.mkdir()
    table = pq.read_table(files[0])
    low = Split(
        filter="SELECT row_id FROM rows WHERE row_id NOT IN (SELECT row_id FROM ledger WHERE split = 'all' AND kept)"
    )
    splits = {"low": low, "all": Split(filter="SELECT row_id FROM rows WHERE row_id < 9")}
    recipe = simple(files, rows=Source(parquet=str(folder), shard_rows=15), splits=splits)
    pq.write_table(table.slice(0, 20), folder / "a.parquet")
    assert run_local(recipe, address).computed == 2
    pq.write_table(table.slice(20), folder / "b.parquet")
    with pytest.raises(StaleError, match="run with --append"):
        run_local(recipe, address)
    report = run_local(recipe, address, append=True)
    assert (report.rows, report.read, report.computed) == (40, 25, 2)
    assert report.lines == ["split all: 9 of 40 rows kept", "split low: 31 of 40 rows kept"]
    run_local(simple(files, splits=splits), tmp_path / "whole")
    asked = "SELECT * FROM rows ORDER BY row_id", "SELECT * FROM ledger ORDER BY split, row_id"
    assert [query(Store(address), one) for one in asked] == [query(Store(tmp_path / "whole"), one) for one in asked]
    for name in (
        "rows/00000 (1).parquet",
        "rows/0.parquet",
        "columns/baseline_random/1.parquet",
        "columns/x/step.json",
    ):
        bucket.put_object(Key=f"store/{name}", Body=b"{}")
    assert [query(Store(address), one).num_rows for one in asked] == [40, 80]
    assert run_local(recipe, address).computed == 0
    assert [line.removeprefix(f"{address}/").partition(" is no file")[0] for line in found(address)[0]] == [
        "rows/0.parquet",
        "rows/00000 (1).parquet",
        "columns/baseline_random/1.parquet",
        "columns/x",
    ]
    assert [one.rows for one in exporting.export(recipe, Store(address), "trl", tmp_path / "out")] == [31, 9]


# ── two runs at once ─────────────────────────────────────────────────────────────────────────────────────


def test_a_second_run_is_refused_and_told_whose_the_first_is(files, bucket):
    address = f"s3://{bucket.name}/store"
    with (
        Store(address).hold(),
        pytest.raises(BusyError, match=f"another run works on {address} .*process {os.getpid()}, since"),
    ):
        run_local(simple(files), address)
    assert run_local(simple(files), address).rows == 40


def test_of_many_runs_at_once_one_works_and_the_others_are_refused(files, bucket, tmp_path):
    address, told = f"s3://{bucket.name}/store", []
    together = threading.Barrier(4)

    def one():
        together.wait()
        try:
            told.append(run_local(simple(files), address).computed)
        except BusyError:
            told.append(None)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Whoever came after the first was done found everything there.
    assert told.count(3) == 1 and set(told) <= {3, 0, None}
    run_local(simple(files), tmp_path / "store")
    assert shards(objects_of(bucket)) == shards(files_of(tmp_path / "store"))


def test_a_run_whose_lock_was_taken_writes_nothing_more(bucket, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.4)
    store = Store(f"s3://{bucket.name}/store")
    with store.hold(), pytest.raises(BusyError, match="another run took the lock"):
        store.update(first=1)
        bucket.put_object(Key="store/.lock", Body=json.dumps({"token": "another's", "owner": "another"}))
        for number in range(100):
            store.update(second=number)
            time.sleep(0.05)
    assert b"another's" in objects_of(bucket)[".lock"]


def test_who_works_for_a_run_writes_as_long_as_that_one_holds_the_lock(bucket, monkeypatch):
    address = f"s3://{bucket.name}/store"
    with Store(address).hold():
        ticket = lock.ticket(objects.place(address))
        # As another process sees it: another environment, another client.
        monkeypatch.setenv("AWS_OTHER", "process")
        worker = Store(address)
        lock.join(worker.path, ticket)
        worker.update(first=1)
        held = objects_of(bucket)[".lock"]
        bucket.put_object(Key="store/.lock", Body=held.replace(ticket.encode(), b"another's"))
        with pytest.raises(BusyError, match=f"{address}: another run took the lock"):
            worker.update(second=2)
        bucket.Object("store/.lock").delete()
        with pytest.raises(BusyError, match=f"{address}: another run took the lock"):
            (worker.path / "columns/x/_shared").put_folder(Path("nowhere"), "a")
    assert "second" not in worker.about


def test_a_lock_is_renewed_while_its_run_lives(bucket, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    with Store(f"s3://{bucket.name}/store").hold():
        time.sleep(3.0)
        with pytest.raises(BusyError), Store(f"s3://{bucket.name}/store").hold():
            pass


def test_a_server_that_ignores_conditions_is_refused(files, bucket, server):
    def fault(request):
        request.pop("HTTP_IF_NONE_MATCH", None)

    server.fault = fault
    with pytest.raises(StoreError, match="takes no notice of If-None-Match"):
        run_local(simple(files), f"s3://{bucket.name}/store")
    assert not objects_of(bucket)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("403 Forbidden", "InvalidAccessKeyId", r"the server refuses these keys \(InvalidAccessKeyId\)"),
        ("403 Forbidden", "SignatureDoesNotMatch", r"the server refuses these keys \(SignatureDoesNotMatch\)"),
        ("503 Slow Down", "SlowDown", r"the server answered 503 \(SlowDown\); what was finished is kept"),
    ],
)
def test_a_refusal_is_one_line_without_keys(files, bucket, server, status, code, said):
    server.fault = lambda request: (status, code)
    with pytest.raises(StoreError, match=said) as error:
        run_local(simple(files), f"s3://{bucket.name}/store")
    assert "\n" not in str(error.value) and SECRET not in str(error.value) and "a-key" not in str(error.value)


def test_a_bucket_that_is_not_there_and_keys_that_are_not_there_are_told(files, server, monkeypatch):
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/store.*: there is no such bucket; make it first"):
        run_local(simple(files), "s3://no-such-bucket/store")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        run_local(simple(files), "s3://no-such-bucket/store")


def test_a_server_that_goes_away_costs_only_what_was_not_finished(files, bucket, server, tmp_path):
    address, puts = f"s3://{bucket.name}/store", itertools.count()
    gone = threading.Event()

    def fault(request):
        if request["REQUEST_METHOD"] == "PUT" and next(puts) == 10:
            gone.set()
        if gone.is_set():
            request["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError

    server.fault = fault
    with pytest.raises(
        StoreError, match=r"the server cannot be reached \(\w+\); check AWS_ENDPOINT_URL; what was finished"
    ):
        run_local(simple(files), address)
    server.fault = nothing
    done = shards(objects_of(bucket))
    assert done
    # Its lock it could not take away.
    bucket.Object("store/.lock").delete()
    run_local(simple(files), address)
    run_local(simple(files), tmp_path / "store")
    after = shards(objects_of(bucket))
    assert after == shards(files_of(tmp_path / "store")) and {name: after[name] for name in done} == done


def test_a_put_that_fails_is_sent_again(files, bucket, server, tmp_path):
    tried, failed = set(), []

    def fault(request):
        path = request["PATH_INFO"]
        if request["REQUEST_METHOD"] != "PUT" or path in tried or not path.endswith(("1.parquet", ".lock")):
            return None
        tried.add(path)
        failed.append(path)
        return "500 Internal Server Error", "InternalError"

    server.fault = fault
    run_local(simple(files), f"s3://{bucket.name}/store")
    run_local(simple(files), tmp_path / "store")
    assert len(failed) == 4
    assert shards(objects_of(bucket)) == shards(files_of(tmp_path / "store"))


def test_a_lock_whose_answer_got_lost_is_known_as_ones_own(files, bucket, server):
    lost = []

    def fault(request):
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith(".lock") and not lost:
            content = request["wsgi.input"].read(int(request["CONTENT_LENGTH"]))
            lost.append(content)
            # What boto3 frames for the wire is unframed: the object is the JSON in it.
            bucket_put(content[content.index(b"{") : content.rindex(b"}") + 1])
            request["CONTENT_LENGTH"] = "0"
            return "500 Internal Server Error", "InternalError"
        return None

    def bucket_put(content):
        from moto.s3.models import s3_backends

        s3_backends["123456789012"]["aws"].put_object(bucket.name, "store/.lock", content)

    server.fault = fault
    assert run_local(simple(files), f"s3://{bucket.name}/store").rows == 40 and lost


@pytest.mark.parametrize("name", ["rows/00001.parquet", "columns/random/00002.parquet", "splits/train/ledger.parquet"])
def test_a_flipped_bit_is_found_by_whoever_read_it_before_and_by_others(files, bucket, name, monkeypatch, tmp_path):
    address, split = f"s3://{bucket.name}/store", Split(filter="SELECT row_id FROM rows WHERE row_id > 9")
    run_local(simple(files, splits={"train": split}), address)
    whole = objects_of(bucket)
    name = next(one for one in whole if one.endswith(name.split("/", 1)[1]) and one.startswith(name.split("/")[0]))
    damaged = bytearray(whole[name])
    damaged[30] ^= 4
    bucket.put_object(Key=f"store/{name}", Body=bytes(damaged))
    for folder in (None, tmp_path / "another cache"):
        if folder:
            monkeypatch.setenv("SEAMCURATE_CACHE", str(folder))
        with pytest.raises(DamagedError, match=f"{address}/{name} was altered"):
            query(Store(address), f"SELECT * FROM {'ledger' if name.startswith('splits') else 'rows'}")


def test_a_damaged_copy_is_fetched_again(files, bucket):
    address = f"s3://{bucket.name}/store"
    run_local(simple(files), address)
    rows = query(Store(address), "SELECT * FROM rows")
    for number in range(3):
        copy = (objects.place(address) / "rows" / f"{number:05d}.parquet").copy()
        copy.write_bytes(copy.read_bytes()[:-40] + bytes(40))
    assert query(Store(address), "SELECT * FROM rows").equals(rows)


def test_what_a_step_shares_is_whole_or_made_again_and_altered_files_are_found(
    files, bucket, elsewhere, tmp_path, monkeypatch
):
    address, recipe = f"s3://{bucket.name}/store", retrieving(files, steps=(RETRIEVE,))
    run_local(recipe, address)
    before = objects_of(bucket)
    shared = "columns/worse_contrast/_shared"
    for name in (f"{shared}/{objects.LISTED}", "columns/worse_contrast/00001.parquet"):
        bucket.Object(f"store/{name}").delete()
    assert run_local(recipe, address).computed == 1
    assert objects_of(bucket).keys() == before.keys() and shards(objects_of(bucket)) == shards(before)
    bucket.put_object(Key=f"store/{shared}/row_ids.npy", Body=before[f"{shared}/row_ids.npy"][:-1] + b"!")
    bucket.Object("store/columns/worse_contrast/00001.parquet").delete()
    # Whoever has a copy had it checked; a third machine has none.
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "a third cache"))
    with pytest.raises(DamagedError, match=f"{address}/{shared}/row_ids.npy was altered"):
        run_local(recipe, address)


def folder_of(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    shard.write_checksums(folder)
    return folder


def test_what_several_add_to_a_folder_is_what_the_first_added_for_all(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "cache"))
    shared = Store(f"s3://{bucket.name}/store").path / "columns/reward/_shared"
    one = shared.put_folder(folder_of(tmp_path / "made", sample="the same"), "maker")
    # Another machine, which began before anything was added.
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "another cache"))
    address = Store(f"s3://{bucket.name}/store").path / "columns/reward/_shared"
    other = address.copy_folder("maker")
    assert one != other and files_of(one) == files_of(other)
    for folder, content in ((other, "theirs"), (one, "ours")):
        (folder / "noise").write_text(content)
        shard.write_checksums(folder)
    known, real = address._list(), type(address)._list
    address.put_folder(other, "maker")
    # As seen before the other's list was put.
    monkeypatch.setattr(type(address), "_list", lambda self: dict(known))
    shared.put_folder(one, "maker")
    monkeypatch.setattr(type(address), "_list", real)
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "a third cache"))
    for again in (shared, address):
        copy = again.copy_folder("maker")
        shard.verify_folder(copy)
        assert files_of(copy)["noise"] == b"theirs" and files_of(copy)["sample"] == b"the same"


@pytest.mark.parametrize("name", ["../../../evil", "{tmp_path}/evil"])
def test_a_list_that_names_files_outside_its_folder_is_refused_and_nothing_is_written(
    bucket, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "cache"))
    name = name.format(tmp_path=tmp_path)
    shared = Store(f"s3://{bucket.name}/store").path / "columns/reward/_shared"
    client().meta.client.put_object(Bucket=bucket.name, Key=f"{shared.key}/{name}", Body=b"evil")
    listed = f"{hashlib.sha256(b'evil').hexdigest()}  {name}\n"
    bucket.put_object(Key=f"{shared.key}/{objects.LISTED}", Body=listed.encode())
    with pytest.raises(DamagedError, match="names files outside its folder"):
        shared.copy_folder("maker")
    assert not list(tmp_path.rglob("*evil*"))


def test_what_was_put_is_not_downloaded_again_by_who_made_it(files, bucket, server):
    start = len(server.requests)
    run_local(retrieving(files, steps=(RETRIEVE, *seam("contrast", k=5)[:1])), f"s3://{bucket.name}/store")
    got = [path for method, path in server.requests[start:] if method == "GET" and "/_shared/" in path]
    assert any("/columns/reward/_shared/noise.json" in path for _, path in server.requests[start:])
    # Who adds a file looks whose was the first.
    assert {path.rsplit("/", 1)[1] for path in got} == {objects.LISTED, "noise.json"}


def test_a_copy_is_not_taken_away_under_another_process(files, bucket, monkeypatch):
    address = f"s3://{bucket.name}/store"
    run_local(simple(files), address)
    copy = (Store(address).path / "rows/00000.parquet").copy()
    # Taken away and written again, its folder would be another.
    (copy.parent / "of this one").touch()
    monkeypatch.setenv("AWS_OTHER", "process")
    assert (Store(address).path / "rows/00000.parquet").copy() == copy
    assert (copy.parent / "of this one").exists()


def test_a_bought_answer_is_an_object_and_never_bought_again(bucket, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"question {i}", "response": f"answer {i}"}) + "\n" for i in range(6))
    )
    monkeypatch.setenv("OPENAI_API_KEY", "a-paid-key")
    address = f"s3://{bucket.name}/store"
    with serving() as endpoint:
        model = OpenAIServer(path="worse-1", base_url=endpoint.url, timeout=5, concurrency=2)
        recipe = Recipe(rows=Source(jsonl=str(rows), shard_rows=3), steps=(Generate(k=4, generator=model),))
        run_local(recipe, address)
        bought = [name for name in objects_of(bucket) if name.startswith("calls/replies/")]
        assert len(endpoint.requests) == 6 == len(bought)
        # As killed before its shards were put, and gone on with by another machine.
        monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "another cache"))
        before = shards(objects_of(bucket))
        for name in [one for one in before if one.startswith("columns")]:
            bucket.Object(f"store/{name}").delete()
        assert run_local(recipe, address).computed == 2
        assert len(endpoint.requests) == 6 and shards(objects_of(bucket)) == before
    assert not [name for name, content in objects_of(bucket).items() if b"a-paid-key" in content]


def test_an_answer_that_cannot_be_kept_stops_the_buying(bucket, server, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"question {i}", "response": f"answer {i}"}) + "\n" for i in range(20))
    )
    monkeypatch.setenv("OPENAI_API_KEY", "a-paid-key")
    server.fault = lambda request: (
        ("403 Forbidden", "AccessDenied")
        if request["REQUEST_METHOD"] == "PUT" and "/calls/" in request["PATH_INFO"]
        else None
    )
    with serving() as endpoint:
        model = OpenAIServer(path="worse-1", base_url=endpoint.url, timeout=5, concurrency=2)
        recipe = Recipe(rows=Source(jsonl=str(rows)), steps=(Generate(k=4, generator=model),))
        with pytest.raises(StoreError, match=r"an answer cannot be kept: .*AccessDenied.*nothing more is bought"):
            run_local(recipe, f"s3://{bucket.name}/store")
        assert sum(endpoint.paid.values()) < 6


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────


def found(address):
    checked = integrity.check(Store(address))
    return [str(finding) for finding in checked.findings], checked.summary


def test_a_whole_store_is_found_whole_and_what_a_killed_run_had_put_is_no_damage(both, bucket):
    findings, summary = found(both.address)
    assert findings == [] and summary.startswith(f"{both.address}: ") and summary.endswith(" MB: whole")
    address = copied(bucket, objects_of(both.bucket, "some/store"))
    shared = "store/columns/reward/_shared"
    bucket.put_object(Key=f"{shared}/not-yet-listed.json", Body=b"{}")
    bucket.put_object(Key="store/columns/next/_shared/half.npy", Body=b"0")
    bucket.put_object(Key="store/columns/reward/.00000.parquet.tries.tmp", Body=b".")
    assert found(address)[0] == []


def copied(bucket, whole):
    for name, content in whole.items():
        bucket.put_object(Key=f"store/{name}", Body=content)
    return f"s3://{bucket.name}/store"


def damage(bucket, name, content):
    damaged = bytearray(content)
    damaged[len(damaged) // 3] ^= 4
    bucket.put_object(Key=f"store/{name}", Body=bytes(damaged))


def delete(bucket, prefix):
    for one in bucket.objects.filter(Prefix=f"store/{prefix}"):
        one.delete()


def test_damage_is_named_by_its_address_and_what_is_said_to_do_about_it_does(both, bucket):
    whole = objects_of(both.bucket, "some/store")
    address, names = (
        copied(bucket, whole),
        {
            "columns/reward/00001.parquet": "columns/reward/00001.parquet was altered",
            "columns/seam_contrast/_facts.json": "columns/seam_contrast/_facts.json was altered",
            "columns/worse_contrast/_shared/row_ids.npy": "columns/worse_contrast/_shared is not what was made: row_ids.npy",
            "corpus/columns/embedding/00001.parquet": "corpus/columns/embedding/00001.parquet was altered",
            "splits/train/ledger.parquet": "splits/train ledger.parquet was altered",
        },
    )
    for name in names:
        damage(bucket, name, whole[name])
    findings, summary = found(address)
    for said in names.values():
        (line,) = [line for line in findings if line.startswith(f"{address}/{said}")]
        assert line.endswith("; delete it there and run its recipe again")
    assert summary.endswith(f": {len(findings)} findings") and str(objects.cache_folder()) not in str(findings)
    for said in names.values():
        delete(bucket, said.partition(" ")[0])
    run_local(both.recipe, address)
    assert found(address)[0] == []
    after = objects_of(bucket)
    assert shards(after) == shards(whole) and set(after) == set(whole)


@pytest.mark.parametrize(
    ("name", "said", "doomed"),
    [
        ("rows/00001.parquet", "put a copy of it back, or delete it and store.json there and run", ["store.json"]),
        ("store.json", "delete it there and run its recipe again", []),
        ("columns/baseline_random/_step.json", "delete it there and run its recipe again", []),
    ],
)
def test_damage_to_what_others_are_held_against_is_mended_as_is_said(files, bucket, name, said, doomed):
    address = f"s3://{bucket.name}/store"
    run_local(simple(files), address)
    whole = objects_of(bucket)
    damage(bucket, name, whole[name])
    assert re.match(f"{address}/{name} was altered .*; {said}", found(address)[0][0])
    with pytest.raises(DamagedError, match=f"{address}/{name} was altered .*delete it and run the recipe again"):
        query(Store(address), "SELECT * FROM rows")
    for one in (name, *doomed):
        delete(bucket, one)
    run_local(simple(files), address)
    assert found(address)[0] == [] and objects_of(bucket) == whole


def test_an_altered_answer_is_named_and_bought_anew_alone(bucket, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"question {i}", "response": "answer"}) + "\n" for i in range(3)))
    monkeypatch.setenv("OPENAI_API_KEY", "a-paid-key")
    address = f"s3://{bucket.name}/store"
    with serving() as endpoint:
        model = OpenAIServer(path="worse-1", base_url=endpoint.url, timeout=5, concurrency=2)
        recipe = Recipe(rows=Source(jsonl=str(rows)), steps=(Generate(k=4, generator=model),))
        run_local(recipe, address)
        before = objects_of(bucket)
        name = next(name for name in before if name.startswith("calls/replies/"))
        altered = json.loads(before[name]) | {"text": "another"}
        bucket.put_object(Key=f"store/{name}", Body=json.dumps(altered))
        (line,) = found(address)[0]
        assert line.startswith(
            f"{address}/{name} is an answer that was altered; put a copy of it back, or move it away"
        )
        for one in bucket.objects.filter(Prefix="store/columns"):
            one.delete()
        run_local(recipe, address)
        assert sum(endpoint.paid.values()) == 4 and found(address)[0] == []
        for one in bucket.objects.filter(Prefix="store/calls"):
            one.delete()
        (line,) = found(address)[0]
        assert "holds no answer, and worse_gpt was made of some" in line


def test_a_corpus_there_is_checked_with_the_store_here(files, bucket, tmp_path):
    at = f"s3://{bucket.name}/corpus"
    run_local(simple(files, rows=Source(parquet=str(files[1]), shard_rows=100), steps=()), at)
    run_local(retrieving(files, corpus=Source(store=at), steps=(RETRIEVE,)), tmp_path / "store")
    assert found(tmp_path / "store")[0] == []
    bucket.Object("corpus/rows/00001.parquet").delete()
    assert any(f"{at}/rows" in line for line in found(tmp_path / "store")[0])
    for one in bucket.objects.filter(Prefix="corpus"):
        one.delete()
    assert found(tmp_path / "store")[0][0].startswith(f"{at}/store.json is missing, and with it the store's corpus")


DOWNLOADING = """
import os, signal, sys
from seamcurate import Store
from seamcurate.run import integrity

def killed(copy):
    os.kill(os.getpid(), signal.SIGKILL)

integrity._drop_unlisted = killed
integrity.check(Store(sys.argv[1]))
"""


def test_what_a_killed_check_had_downloaded_is_cleared_by_the_next(files, bucket, elsewhere):
    address = f"s3://{bucket.name}/store"
    run_local(simple(files), address)
    before = set(objects.cache_folder().iterdir())
    subprocess.run([sys.executable, "-c", DOWNLOADING, address], timeout=60, check=False)
    (left,) = set(objects.cache_folder().iterdir()) - before
    assert (left / "store" / "rows" / "00000.parquet").is_file()
    assert found(address)[0] == [] and set(objects.cache_folder().iterdir()) == before


def test_an_object_that_would_be_written_outside_the_copy_is_refused(files, bucket, tmp_path):
    address = f"s3://{bucket.name}/store"
    run_local(simple(files), address)
    bucket.put_object(Key="store/rows/../../../escaped", Body=b"x")
    with pytest.raises(StoreError, match=r"escaped is no object of a store; delete it"):
        found(address)
    assert not list(objects.cache_folder().parent.rglob("escaped"))


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_address_that_lost_a_slash_as_a_path_is_the_same_one(bucket):
    assert str(Store(Path(f"s3://{bucket.name}/a/b/")).path) == f"s3://{bucket.name}/a/b"
    assert Store("a/b").path == Path("a/b") and Store(Path("/a/b")).path == Path("/a/b")


@pytest.mark.parametrize("where", ["gs://bucket/store", "abfs://box/store", "https://host/store", "s3a://bucket/store"])
def test_other_kinds_of_address_are_refused(where):
    with pytest.raises(StoreError, match=r":// is not supported: a store is a folder, or s3://bucket/prefix"):
        Store(where)


@pytest.mark.parametrize("where", ["s3://key:hidden-secret@bucket/store", "s3://UPPER/store", "s3://a_b/hidden-secret"])
def test_a_key_in_an_address_is_refused_and_not_repeated(where):
    with pytest.raises(StoreError, match="keys come from the environment, never from the address") as error:
        Store(where)
    assert "hidden-secret" not in str(error.value)


@pytest.mark.parametrize("where", ["s3://bucket/private", "s3:/bucket/private"])
def test_a_strangers_recipe_reads_no_bucket_with_our_keys(where):
    with pytest.raises(HubError, match="outside its own folder; it is not run"):
        check(f"rows: {{store: '{where}'}}", "me/prompts")


def test_what_is_written_to_a_folder_alone_says_so_before_anything_is_done(tmp_path, monkeypatch, both):
    monkeypatch.chdir(tmp_path)
    out, store, judge = Path("s3://bucket/out"), Store(both.folder), FakeModel()
    recipe = Recipe(rows=Source(jsonl="x"), splits={"a": Split(filter=KEEP)})
    writers = {
        "demo": lambda: run_demo(out),
        "reproduce": lambda: reproduce("me/prompts", out),
        "report": lambda: report(store, out),
        "sql": lambda: tables.write(None, "csv", out),
        "study": lambda: study.run("overlap", [store, store], out),
        "compare": lambda: study.compare(["none"], "none", judge, out),
        "train": lambda: sft("none", "none", out),
        "answer": lambda: answer("none", "none", out),
    }
    exporters = [
        lambda: list(exporting.export(recipe, store, "trl", out)),
        lambda: exporting.to_trl(store, "train", out),
        lambda: exporting.to_verl(store, "train", str(out)),
        lambda: report(store, Path("report.html"), out),
    ]
    for verb, write in [*writers.items(), *zip(["export"] * 3 + ["report"], exporters, strict=True)]:
        with pytest.raises(
            StoreError, match=f"{verb} writes to a folder of this machine, not to s3://bucket/out; write"
        ):
            write()
    assert not list(tmp_path.iterdir())


def test_rows_are_read_at_s3_from_stores_alone():
    for kind in ("parquet", "jsonl", "csv", "arrow"):
        with pytest.raises(SourceError, match=r"s3://b/rows\.x is no file of this machine; copy it here, or name a"):
            loads(f"rows: {{{kind}: 's3://b/rows.x'}}")
