"""Code that asks by calling, as a coroutine that yields its questions, so that many of them share one batch.

It runs in a thread of its own, which waits while its question is answered: one thread runs at a time, and each has its own
random numbers, so that what it does depends on its answers and its seed alone.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np

from seamcurate.contrast.searches import Ask, Search
from seamcurate.errors import StepError, typed_line

T = TypeVar("T")


class _Stopped(BaseException):
    """Whoever waits for the thread's question is gone."""


def driven(questions: Generator[Ask, Any, T], ask: Callable[[Ask], Any]) -> T:
    """Run a coroutine of `searches` by calling: where `in_thread` calls from."""
    try:
        question = next(questions)
        while True:
            question = questions.send(ask(question))
    except StopIteration as ended:
        result: T = ended.value
        return result


class _Ended(NamedTuple):
    text: str
    error: BaseException | None = None


def in_thread(work: Callable[[Callable[[Ask], Any]], str], seed: int, name: str) -> Search:
    """Run what asks by calling as a coroutine, which yields its questions; it has random numbers of its own.

    Args:
        work: Is given a function from a question to its answer, and returns the text that it ends with.
        seed: Seed of its random numbers.
        name: What errors call it.

    Raises:
        StepError: `work` raised.
    """
    questions: SimpleQueue[Ask | _Ended] = SimpleQueue()
    answers: SimpleQueue[Any] = SimpleQueue()

    def ask(question: Ask) -> Any:
        questions.put(question)
        answer = answers.get()
        if answer is _Stopped:
            raise _Stopped
        return answer

    def run() -> None:
        try:
            ended = _Ended(work(ask))
        except BaseException as error:
            ended = _Ended("", error)
        questions.put(ended)

    thread = threading.Thread(target=run, name=name, daemon=True)
    randomness = _Randomness(seed)
    with randomness.used():
        thread.start()
        question = questions.get()
    try:
        while isinstance(question, Ask):
            answer = yield question
            with randomness.used():
                answers.put(answer)
                question = questions.get()
    finally:
        answers.put(_Stopped)
        thread.join()
    if question.error is not None:
        raise StepError(f"{name} failed: {typed_line(question.error)}") from question.error
    return question.text


class _Randomness:
    """Random numbers of its own for code that draws from `random` and from NumPy's global generator."""

    def __init__(self, seed: int) -> None:
        others = np.random.get_state()
        # SciPy draws from the global generator only where it was seeded by this call.
        np.random.seed(seed % 2**32)
        self.state: Any = (random.Random(seed).getstate(), np.random.get_state())
        np.random.set_state(others)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let it be everybody's, and leave the others' as they were."""
        others = random.getstate(), np.random.get_state()
        self._take(self.state)
        try:
            yield
        finally:
            self.state = random.getstate(), np.random.get_state()
            self._take(others)

    @staticmethod
    def _take(state: Any) -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
