"""How many threads this process, and the processes it starts, compute with: one number for every library.

One rule: a library reads its number from the environment when it is loaded, and one that is loaded already is told.
"""

from __future__ import annotations

import os
import sys

from seamcurate.errors import SeamcurateError

VARIABLE = "SEAMCURATE_THREADS"
"""The variable of the environment that limits threads as `--threads` does; the processes that this one starts read it."""
_LIBRARIES = (
    "OMP_NUM_THREADS",  # torch, FAISS, pyarrow, scikit-learn
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",  # NumPy
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",  # tokenizers
    "POLARS_MAX_THREADS",
    "ARROW_IO_THREADS",
)


def limit(count: int) -> None:
    """Let every library compute with at most `count` threads, from now on and in this process and those it starts.

    Args:
        count: The number, 1 or more.

    Raises:
        SeamcurateError: It is less than 1.

    Example:
        >>> from seamcurate import threads
        >>> threads.limit(2)
        >>> threads.available()
        2
    """
    if count < 1:
        raise SeamcurateError(f"{count} threads: give 1 or more")
    os.environ.update(dict.fromkeys((VARIABLE, *_LIBRARIES), str(count)))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(count)
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].set_cpu_count(count)
        sys.modules["pyarrow"].set_io_thread_count(count)


def available() -> int:
    """Return how many threads may compute: the limit, or else as many as this process has cores.

    Raises:
        SeamcurateError: The limit of the environment is no number.
    """
    limited = os.environ.get(VARIABLE)
    if limited is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not (limited.isascii() and limited.isdecimal() and int(limited)):
        raise SeamcurateError(f"{VARIABLE}={limited} is no number of threads; give 1 or more")
    return int(limited)


def follow_environment() -> None:
    """Give the libraries the limit of the environment, if it is a number, as far as they have none of their own."""
    limited = os.environ.get(VARIABLE, "")
    if limited.isascii() and limited.isdecimal() and int(limited):
        for name in _LIBRARIES:
            os.environ.setdefault(name, limited)
