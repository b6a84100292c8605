"""Runs on a real Ray cluster of several nodes on this machine: the bytes of a local run, whoever is killed meanwhile."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import untimed
from endpoint import serving
from hostile import FIRST_LINE, LINES, TEXTS
from s3_server import objects_of, shards
from s3_server import serving as serve_objects

from seamcurate import (
    Generate,
    OpenAIServer,
    Random,
    Retrieve,
    Rollouts,
    Source,
    Step,
    Store,
    check,
    column,
    query,
    run_local,
    run_ray,
    seam,
)
from seamcurate.errors import BudgetError, ClusterError, StepError, StoreError
from seamcurate.models import calls
from seamcurate.run import cluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "run")))


class Watched(Step):
    """Tell a file who works on which shard and when it is done; dawdle, fail or die as told."""

    log: str
    seconds: float = 0.0
    fails: str = ""
    dies: bool = False

    @property
    def inputs(self):
        return ("prompt",)

    @property
    def adds(self):
        return pa.schema([column("length", pa.int32(), "characters of the prompt")])

    def identity(self):
        return {"step": "Watched"}

    def load(self, shared):
        if self.fails == "load":
            raise StepError("step watched lacks what it needs; give it that")
        if self.fails == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")

        def count(rows):
            shard = rows["row_id"][0].as_py() // 5
            self.tell("began", shard)
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fails == "rows" and shard == 0:
                raise ZeroDivisionError("shard 0 is\nodd")
            time.sleep(self.seconds)
            lengths = [len(prompt) for prompt in rows["prompt"].to_pylist()]
            self.tell("ended", shard)
            return pa.table({"length": pa.array(lengths, pa.int32())})

        return count

    def tell(self, what, shard):
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        with Path(self.log).open("a") as log:
            log.write(f"{what} {shard} {os.getpid()} {node}\n")

    def told(self):
        lines = Path(self.log).read_text().splitlines() if Path(self.log).exists() else []
        return [(what, int(shard), int(pid), node) for what, shard, pid, node in map(str.split, lines)]


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.parquet"))}


def wait(condition, seconds=60.0):
    """Wait for a condition, which the tests then hold to be true."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A server of objects, whose address and keys every node has in its environment; None where moto is not there."""
    try:
        with serve_objects(tmp_path_factory.mktemp("objects")) as server:
            yield server
    except pytest.skip.Exception:
        yield None


@pytest.fixture(scope="module")
def nodes(storage, tmp_path_factory):
    """Two nodes of one core each, with caches of their own."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        # On a starved machine a node may answer late. Ray would take it for dead, and its driver, this process, would exit.
        patch.setenv("RAY_health_check_timeout_ms", "120000")
        patch.setenv("PYTHONPATH", PATH)
        from ray.cluster_utils import Cluster

        small = {"num_cpus": 1, "object_store_memory": 2**27}
        cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        cluster.small = small
        cluster.add_node(**small, env_vars={"SEAMCURATE_CACHE": str(tmp_path_factory.mktemp("another cache"))})
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


@pytest.fixture
def watched(recipe, tmp_path):
    """A function that makes a recipe of one watched step over eight shards of five rows."""

    def make(**how):
        rows = recipe().rows.model_copy(update={"shard_rows": 5})
        step = Watched(log=str(tmp_path / "log"), **how)
        return recipe(rows=rows, corpus=None, steps=(step,), splits={})

    return make


def test_a_run_on_ray_gives_the_bytes_of_a_local_one_and_then_has_nothing_to_do(nodes, recipe, tmp_path):
    whole = os.environ.get("SEAMCURATE_RAY_WHOLE")
    steps = recipe().steps if whole else (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5)[:1])
    job = recipe(steps=steps, splits=recipe().splits if whole else {})
    local_report = run_local(job, tmp_path / "here")
    ray_report = run_ray(job, tmp_path / "there", nodes.address)
    assert untimed(ray_report) == untimed(local_report)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert run_ray(job, tmp_path / "there", nodes.address).computed == 0


def test_a_policy_s_samples_are_spread_kept_and_not_drawn_again(nodes, recipe, tmp_path):
    rows = recipe().rows.model_copy(update={"shard_rows": 5})

    def job(n):
        return recipe(rows=rows, corpus=None, steps=(Rollouts(n=n),), splits={})

    ray_report = run_ray(job(2), tmp_path / "there", nodes.address)
    assert untimed(ray_report) == untimed(run_local(job(2), tmp_path / "here"))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    kept = sorted(tmp_path.glob("there/calls/samples/*/calls.sqlite"))
    assert len(kept) == 8 and not check(Store(tmp_path / "there")).findings
    counts = [calls.examine(file)[0] for file in kept]
    run_ray(job(3), tmp_path / "there", nodes.address, replace=True)
    # One more a row, and what was there stays.
    assert [calls.examine(file)[0] for file in kept] == [count // 2 * 3 for count in counts]
    run_local(job(3), tmp_path / "whole")
    assert contents(tmp_path / "there") == contents(tmp_path / "whole")


def test_hostile_rows_are_taken_and_set_aside_on_ray_as_they_are_here(nodes, recipe, tmp_path):
    texts = [json.dumps({"prompt": case.given, "response": case.given}) for case in TEXTS if len(case.given) <= 200]
    lines = [FIRST_LINE, *(case.given for case in LINES), *map(str.encode, texts)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    source = Source(jsonl=str(tmp_path / "a.jsonl"), response="response", shard_rows=60)
    job = recipe(rows=source, corpus=None, steps=seam("contrast")[:1], splits={})
    local_report, ray_report = run_local(job, tmp_path / "here"), run_ray(job, tmp_path / "there", nodes.address)
    assert untimed(ray_report) == untimed(local_report) and local_report.rows + local_report.rejected == len(lines)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    rewarded = query(Store(tmp_path / "there"), "SELECT prompt, reward FROM rows ORDER BY row_id DESC")
    assert rewarded["prompt"].to_pylist()[: len(texts)] == [json.loads(text)["prompt"] for text in texts][::-1]
    assert rewarded["reward"].null_count == 0


def test_killed_workers_and_a_killed_node_cost_only_what_they_had_in_hand(nodes, watched, tmp_path):
    doomed = nodes.add_node(**nodes.small)
    nodes.wait_for_nodes()
    job, lost = watched(seconds=1), []
    step = job.steps[0]

    def hand(events):
        """What is being worked on: began and not ended."""
        ended = {(shard, pid) for what, shard, pid, _ in events if what == "ended"}
        return [one for one in events if one[0] == "began" and one[1:3] not in ended]

    def kill():
        assert wait(lambda: any(one[3] == doomed.node_id for one in hand(step.told())))
        lost.extend(one for one in hand(step.told()) if one[3] == doomed.node_id)
        # What a worker killed while it writes leaves.
        (tmp_path / "store/columns/watched/.00003.parquet.0.tmp").touch()
        nodes.remove_node(doomed, allow_graceful=False)
        assert wait(lambda: any(one[3] != doomed.node_id for one in hand(step.told())))
        lost.append(next(one for one in hand(step.told()) if one[3] != doomed.node_id))
        os.kill(lost[-1][2], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    report = run_ray(job, tmp_path / "store", nodes.address)
    killer.join()
    began = Counter(shard for what, shard, _, _ in step.told() if what == "began")
    assert len(lost) == 2 and report.computed == 8
    assert began == Counter(range(8)) + Counter(shard for _, shard, _, _ in lost)
    run_local(job, tmp_path / "here")
    assert contents(tmp_path / "store") == contents(tmp_path / "here")
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_a_store_at_s3_gets_the_bytes_of_a_folder_whoever_is_killed_meanwhile(
    nodes, storage, recipe, tmp_path, monkeypatch
):
    if storage is None:
        pytest.skip("moto's server is not installed: extra test")
    import boto3

    bucket = boto3.session.Session().resource("s3").Bucket("a-bucket")
    bucket.create()
    # Left by a run that was killed, and no sign against this one's workers.
    bucket.put_object(Key="store/columns/watched/.00003.parquet.tries.tmp", Body=b"...")
    monkeypatch.setenv("OPENAI_API_KEY", "a-paid-key")
    watched, holders = Watched(log=str(tmp_path / "log"), seconds=1), set()

    def kill():
        assert wait(lambda: any(one[0] == "began" for one in watched.told()))
        holders.add(json.loads(bucket.Object("store/.lock").get()["Body"].read())["owner"].rpartition(" ")[2])
        os.kill(watched.told()[0][2], signal.SIGKILL)

    with serving() as endpoint:
        generate = Generate(k=2, generator=OpenAIServer(path="m", base_url=endpoint.url))
        whole = os.environ.get("SEAMCURATE_RAY_WHOLE")
        steps = recipe().steps if whole else seam("contrast", k=5)[:1]
        parts = {} if whole else {"corpus": None, "splits": {}}
        rows = recipe().rows.model_copy(update={"shard_rows": 5})
        job = recipe(rows=rows, steps=(watched, *steps, generate, Rollouts(n=2)), **parts)
        killer = threading.Thread(target=kill)
        killer.start()
        ray_report = run_ray(job, "s3://a-bucket/store", nodes.address)
        killer.join()
        began = [(shard, pid) for what, shard, pid, _ in watched.told() if what == "began"]
        assert Counter(shard for shard, _ in began) == Counter([*range(8), began[0][0]])
        assert holders == {str(os.getpid())} and os.getpid() not in {pid for _, pid in began}
        bought = sum(endpoint.paid.values())
        assert bought == 40 and ray_report.computed == (4 if whole else 0) + 8 * (len(steps) + 3)
        assert run_ray(job, "s3://a-bucket/store", nodes.address).computed == 0
        local_report = run_local(job, tmp_path / "store")
    assert local_report.lines == ray_report.lines
    stored_objects = objects_of(bucket)
    assert shards(stored_objects) == contents(tmp_path / "store")
    assert not [name for name in stored_objects if name.endswith((".lock", ".tmp"))]
    assert "columns/reward/_shared/noise.json" in stored_objects
    # An object a sample: two for each of the five rows of a shard.
    assert len([name for name in stored_objects if name.startswith("calls/samples/00003/replies/")]) == 10


DRIVER = """
import sys
from test_cluster import Watched
from seamcurate import cli
from seamcurate.run import recipe
recipe.STEPS["watched"] = Watched
sys.argv = ["seamcurate", "run", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_whose_own_process_is_stopped_goes_on_from_what_is_there(nodes, files, watched, tmp_path, how):
    job, store = watched(seconds=1), tmp_path / "store"
    step = f"watched: {{log: {tmp_path / 'log'}, seconds: 1}}"
    (tmp_path / "recipe.yaml").write_text(f"rows: {{parquet: rows.parquet, shard_rows: 5}}\nsteps: [{step}]")
    command = [sys.executable, "-c", DRIVER, "recipe.yaml", "store", "--ray", nodes.address]
    environment = {**os.environ, "PYTHONPATH": PATH}
    driver = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert wait(lambda: len(contents(store / "columns")) > 1)
    os.killpg(driver.pid, how)
    said = driver.communicate(timeout=60)[1]
    if how == signal.SIGINT:
        assert driver.returncode == 130
        assert said.splitlines()[-1].startswith("stopped; what was finished is kept")
        assert "Traceback" not in said
    done = contents(store / "columns")
    ended = {int(Path(name).stem) for name in done}
    report = run_ray(job, store, nodes.address)
    began = Counter(shard for what, shard, _, _ in job.steps[0].told() if what == "began")
    assert 0 < report.computed <= 8 - len(done) and {began[shard] for shard in ended} == {1}
    after = contents(store / "columns")
    assert {name: after[name] for name in done} == done
    run_local(job, tmp_path / "here")
    assert contents(store) == contents(tmp_path / "here")


@pytest.mark.parametrize("fails", ["load", "rows"])
def test_what_goes_wrong_in_a_worker_is_told_as_it_is_at_home(nodes, watched, tmp_path, fails):
    raised = []
    for run in (run_local, lambda *given: run_ray(*given, nodes.address)):
        with pytest.raises((StepError, ZeroDivisionError)) as caught:
            run(watched(fails=fails), tmp_path / f"store-{len(raised)}")
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]
    assert "in a worker on" in caught.value.__notes__[0]


def test_a_shard_that_kills_its_workers_stops_the_run(nodes, watched, tmp_path):
    job = watched(dies=True)
    with pytest.raises(
        ClusterError, match=r"step watched, shard 0: 3 workers died of it, .* what was finished is kept"
    ):
        run_ray(job, tmp_path / "store", nodes.address, limit=5)
    assert [shard for _, shard, _, _ in job.steps[0].told()] == [0, 0, 0]


def test_endpoints_are_asked_by_the_run_itself_whose_limit_holds(nodes, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    with serving() as endpoint:
        prices = {"usd_per_million_input": 100, "usd_per_million_output": 100, "max_tokens": 1000}
        model = OpenAIServer(path="m", base_url=endpoint.url, concurrency=1, **prices)
        job = recipe(corpus=None, steps=(Generate(k=2, generator=model), Random()), splits={})
        with pytest.raises(BudgetError, match=r"stopped before the limit of \$0\.4"):
            run_ray(job, tmp_path / "store", nodes.address, max_usd=0.4)
        bought = sum(endpoint.paid.values())
        assert 0 < bought < 40
        report = run_ray(job, tmp_path / "store", nodes.address)
        assert len(endpoint.paid) == 40 and set(endpoint.paid.values()) == {1}
        assert any(line.startswith(f"worse_gpt: {40 - bought} calls, ") for line in report.lines)


KNOCK = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=20)), "nodes")
"""


class Knocking(Watched):
    """Ask the cluster for its nodes: as one of its own does, and as a stranger of this machine or another."""

    def load(self, shared):
        import ray

        command = [sys.executable, "-c", KNOCK, ray.get_runtime_context().gcs_address]
        other = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        heard = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environments = (None, other | {"RAY_AUTH_MODE": "disabled"})
        asked = [subprocess.Popen(command, env=environment, **heard) for environment in environments]
        told = [one.communicate()[0].strip().splitlines()[-1][:80] for one in asked]
        Path(self.log).write_text("\n".join(told))
        return super().load(shared)

    def tell(self, what, shard):
        pass


def test_a_cluster_on_this_machine_lasts_as_long_as_the_run_and_answers_it_alone(files, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    step = f"watched: {{log: {tmp_path / 'log'}}}"
    (tmp_path / "recipe.yaml").write_text(f"rows: {{parquet: rows.parquet, shard_rows: 40}}\nsteps: [{step}]")
    home = tmp_path / "home"
    home.mkdir()
    # Whatever the user said of other clusters.
    environment = {**os.environ, "PYTHONPATH": PATH, "RAY_AUTH_MODE": "disabled", "HOME": str(home)}
    environment.pop("RAY_AUTH_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.replace("Watched", "Knocking"), "recipe.yaml", "store", "--ray", "local"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "store: 40 rows, 40 read, 1 shard computed\n"
    assert not [line for line in done.stderr.splitlines() if "Error" in line or "Warning" in line]
    friend, stranger = (tmp_path / "log").read_text().splitlines()
    assert friend == "1 nodes" and "InvalidAuthToken" in stranger
    # Ray's own token would lie in a file that others may read.
    assert not (home / ".ray").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: "),
        ("nonsense", "'nonsense' is no address of a Ray cluster: give local, auto, or HOST:PORT"),
        ("ray://127.0.0.1:1", "'ray://127.0.0.1:1' is no address of a Ray cluster"),
    ],
)
def test_an_address_without_a_cluster_is_refused_in_one_line(watched, tmp_path, address, message):
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(ClusterError) as refused:
        run_ray(watched(), tmp_path / "store", address)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_without_ray_the_error_says_what_to_install(watched, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"a run on Ray needs Ray: .*pip install .*\[ray\]"):
        run_ray(watched(), tmp_path / "store")


def test_a_node_that_does_not_see_the_store_says_so(watched, tmp_path, monkeypatch):
    # A worker goes to the run's folder, and this one is the tests' own process.
    monkeypatch.chdir(tmp_path)
    job = watched()
    run_local(job, tmp_path / "store")
    output = Store(tmp_path / "store").plan(job.ready())[0]
    failed = cluster._Worker(output.step, output.fingerprint, str(tmp_path / "elsewhere"), "", tmp_path)({"shard": 0})
    with pytest.raises(StoreError, match=r"elsewhere is not there on .*: a run on Ray needs the store"):
        raise cluster._failure(failed)


def test_a_disk_that_is_full_where_a_worker_is_says_so_in_one_line(watched, tmp_path, monkeypatch):
    # A worker goes to the run's folder, and this one is the tests' own process.
    monkeypatch.chdir(tmp_path)
    job = watched()
    run_local(job, tmp_path / "store")
    output = Store(tmp_path / "store").plan(job.ready())[0]
    full = output._replace(step=output.step.model_copy(update={"fails": "disk"}))
    failed = cluster._Worker(full.step, full.fingerprint, str(tmp_path / "store"), "", tmp_path)({"shard": 0})
    with pytest.raises(StoreError, match=r"watched/_shared cannot be made: No space left on device; fix that and run"):
        raise cluster._failure(failed)
