"""A recipe on a Ray cluster: the same steps on the same store, with missing shards computed by many workers.

One rule: a run on a cluster differs from a local one only in where shards are computed. Workers, one a GPU, or one a core where the cluster has no
GPU, load a step and compute shards, which they read from and write to the store: it lies at `s3://`, where each node
has its own copies and its own keys in its environment, or in a folder that all nodes see. So must the models' paths.
Everything else stays in the process that was started: the store's lock, reading rows, preparing a step, asking endpoints (so
that answers are bought once and a limit in dollars holds), summing up, splits.

Anyone who can reach a cluster's ports can run code on its nodes (CVE-2023-48022), unless the cluster asks for a token.
The cluster that `local` starts asks for one; a cluster without a token needs a network that no stranger can reach.
"""

from __future__ import annotations

import builtins
import logging
import os
import secrets
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from seamcurate import errors, extras
from seamcurate.errors import ClusterError, StoreError, first_line
from seamcurate.run.local import Report, run, worker
from seamcurate.run.recipe import Recipe
from seamcurate.step import Step
from seamcurate.storage import lock, objects
from seamcurate.storage.objects import Place
from seamcurate.store.folder import filename, step_file
from seamcurate.store.store import StepOutput, Store

_TRIES = 3
"""Workers that may die while computing one shard before the run stops; Ray alone would try for ever."""
_PATIENCE = 5.0
"""Seconds within which an address must answer; Ray itself tries for minutes."""


def run_ray(
    recipe: Recipe,
    path: str | Path,
    address: str = "local",
    limit: int | None = None,
    replace: bool = False,
    max_usd: float | None = None,
    append: bool = False,
) -> Report:
    """Run a recipe on a Ray cluster; a session that this process has with one already is used and kept.

    Args:
        recipe: The rows, steps and splits to make.
        path: The store; on several machines, at `s3://` or in a folder that all of them see by the same path.
        address: `local` for a cluster on this machine that lasts as long as the run and answers this run alone,
            `auto` for the one this machine belongs to, or its HOST:PORT.
        limit: Stop at the shard that holds this many rows; see `run_local`.
        replace: Replace columns that another configuration made; see `run_local`.
        max_usd: The most US dollars that this run may spend on endpoints; see `run_local`.
        append: Read files that were added to the source; see `run_local`.

    Returns:
        The report that `run_local` returns.

    Raises:
        ClusterError: Ray is not installed, no cluster answers, or workers die while computing a shard.
        SeamcurateError: Whatever `run_local` raises, in a worker or in this process.

    Example:
        >>> from seamcurate import Recipe, run_ray
        >>> run_ray(Recipe.load("recipe.yaml"), "s3://bucket/store", address="auto")  # doctest: +SKIP
    """
    with _connected(address):
        return run(recipe, path, limit, replace, max_usd, _execute, append)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    # Both are read when ray is imported. Its C++ parts log to the terminal what the driver reports in one line.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == "local":
        # Ray listens on every address of the machine, and runs what it is sent. Where no mode is named, a cluster that it
        # starts asks for a token; only children of this process have this one. Ray keeps the first that it reads.
        os.environ.pop("RAY_AUTH_MODE", None)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(f"a run on Ray needs Ray: {extras.install('ray')} ({error})") from error
    if ray.is_initialized():
        yield
        return
    if address not in ("local", "auto"):
        _knock(address)
    # Nothing but shard numbers travels, so that the object store stays near the least that Ray takes.
    local_options = {"include_dashboard": False, "object_store_memory": 2**27} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local_options)
    except Exception as error:
        raise ClusterError(
            f"no Ray cluster at {address!r}: {first_line(error)}; start one by `ray start --head`, or give local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Refuse an address where nothing answers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise ClusterError(f"{address!r} is no address of a Ray cluster: give local, auto, or HOST:PORT of its head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error}; start one by `ray start --head`, or give local"
        ) from error


def _execute(output: StepOutput, store: Store, shared: Path, shards: Sequence[int]) -> Iterator[int]:
    """Compute shards in the cluster's workers; see `run.Executor`."""
    import ray
    import ray.data

    # Where nothing is cleared away when a run begins, a killed one's counts are still there.
    _clear(objects.find(output.path, ".*.tries.tmp"))
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    workers = max(1, gpus or int(resources.get("CPU", 0)))
    results = ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards)).map(
        _Worker,
        fn_constructor_args=(output.step, output.fingerprint, str(store.path), lock.ticket(store.path), Path.cwd()),
        # One at a time, so that none waits behind another on one worker while the next is idle.
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    results.context.enable_progress_bars = results.context.print_on_execution_start = False
    # A shard may take longer than any patience.
    results.context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        for row in results.iter_rows():
            if row["failure"]:
                raise _failure(row)
            yield int(row["rows"])
        # Living workers are done by now: what remains was left half-written by workers that were killed.
        _clear([*objects.find(output.path, ".*.tmp"), *shared.glob(".*.tmp")])
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"step {output.step.name}: a worker cannot work: {first_line(error)}; every node needs this seamcurate, "
            "what was finished is kept"
        ) from error


def _clear(files: Sequence[Place]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


class _Worker:
    """Compute shards of one output, in a process of the cluster.

    Ray takes the step there, pickled as its class's name and its fields, one defined in the script itself as code.
    What goes wrong comes back as a value, since Ray would wrap it.
    """

    def __init__(self, step: Step, fingerprint: str, store: str, ticket: str, folder: Path) -> None:
        # Relative paths are relative to the folder in which the run was started.
        with suppress(OSError):
            os.chdir(folder)
        self.step, self.fingerprint, self.where, self.ticket = step, fingerprint, store, ticket
        self.work: Callable[[int], Iterator[int]] | None = None

    def __call__(self, row: Mapping[str, int]) -> dict[str, int | str]:
        try:
            return {"rows": self._rows(int(row["shard"])), "failure": "", "message": "", "trace": ""}
        except Exception as error:
            trace = f"in a worker on {socket.gethostname()}:\n{traceback.format_exc()}"
            return {"rows": 0, "failure": type(error).__name__, "message": str(error), "trace": trace}

    def _rows(self, number: int) -> int:
        with self._tried(number):
            # Not in __init__: an error there kills the worker instead of coming back as a value.
            self.work = self.work or worker(self.output, self.store, self._shared())
            return sum(self.work(number))

    @cached_property
    def store(self) -> Store:
        """Open the store as this node sees it."""
        store = Store(self.where)
        if not (store.path / "store.json").exists():
            raise StoreError(
                f"{store.path} is not there on {socket.gethostname()}: a run on Ray needs the store at s3://, with the "
                "same AWS_ENDPOINT_URL and keys on every node, or with what its recipe names in a folder that every "
                "node sees by the same path"
            )
        lock.join(store.path, self.ticket)
        return store

    @cached_property
    def output(self) -> StepOutput:
        """Return the output to compute, with its path as this node sees it."""
        return StepOutput(self.step, self.store.path / "columns" / self.step.name, self.fingerprint, {})

    def _shared(self) -> Path:
        return objects.local_folder(step_file(self.output.path, "shared"), self.fingerprint)

    @contextmanager
    def _tried(self, number: int) -> Iterator[None]:
        """Count the workers that died while computing a shard: each leaves a byte in a file, which a living one deletes."""
        file = self.output.path / f".{filename(number)}.tries.tmp"
        deaths = file.read_bytes() if file.exists() else b""
        try:
            file.write_bytes(deaths + b".")
        except OSError as error:
            raise StoreError(
                f"{file} cannot be written: {error.strerror}; what was finished is kept: fix that and run the same again"
            ) from error
        try:
            if len(deaths) >= _TRIES:
                raise ClusterError(
                    f"step {self.step.name}, shard {number}: {_TRIES} workers died of it, of memory perhaps; "
                    "make shards (`shard_rows`) or the model's batches smaller, what was finished is kept"
                )
            yield
        finally:
            file.unlink(missing_ok=True)


def _failure(row: Mapping[str, str]) -> Exception:
    """Return the exception that a worker reported: one of ours or Python's own, else a RuntimeError that names it."""
    name, message = row["failure"], row["message"]
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    try:
        error = kind(message) if isinstance(kind, type) and issubclass(kind, Exception) else None
    except TypeError:
        error = None
    error = error or RuntimeError(f"{name}: {message}")
    error.add_note(row["trace"])
    return error
