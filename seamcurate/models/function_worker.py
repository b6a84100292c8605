"""Call a reward function in a process of its own: a script that `function_process` starts, and that nothing imports.

One rule: whatever the function does, each request gets one reply, or the process ends. Requests and replies are lines of
JSON on a socket that the function does not see; what it prints goes nowhere. The script imports the standard library alone.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import inspect
import json
import math
import numbers
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

_OWNER_SECONDS = 1.0
"""How often the process looks whether the one that started it still runs."""
_REASON = 200
"""Most characters of a reason."""
_TEXT = 40
"""Most characters of a returned text that a reason repeats."""


def main() -> None:
    """Load the function that the first request names, and answer the others until the socket closes."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    requests = channel.makefile("rb")
    settings = json.loads(requests.readline())
    try:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = settings["memory"] * 2**20
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        function = _loaded(Path(settings["file"]), settings["name"])
        calls = _Calls(function, settings)
    except BaseException as error:
        _reply(channel, {"error": _line(error)})
        return
    _reply(channel, {})
    own = os.getpid()
    with asyncio.Runner() as runner:
        for line in requests:
            try:
                answer = calls.answer(json.loads(line), runner)
            except BaseException as error:
                answer = {"error": _line(error), "memory": isinstance(error, MemoryError)}
            if os.getpid() != own:
                # The function forked, and this is the copy.
                os._exit(0)
            _reply(channel, answer)


class _Calls:
    """Call one function in the way of its signature."""

    def __init__(self, function: Callable[..., Any], settings: dict[str, Any]) -> None:
        self.function, self.signature = function, settings["signature"]
        self.arguments: dict[str, Any] = settings["arguments"]
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            # A function written in C.
            self.accepted = None
        else:
            takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            self.accepted = None if takes_any else {*parameters}
            if self.signature != "openrlhf":
                _check(parameters.values(), {*_GIVEN[self.signature], *settings["columns"], *self.arguments})

    def answer(self, request: dict[str, Any], runner: asyncio.Runner) -> dict[str, Any]:
        """Return `values`, a pair of number and reason for each answer, or `error`, why the call gave none."""
        count = len(request["completions"])
        one_by_one = {"verl": self._verl, "verifiers": self._verifiers, "plain": self._plain}
        if give := one_by_one.get(self.signature):
            outcomes = [_tried(partial(give, request, i)) for i in range(count)]
            outcomes = runner.run(_all_awaited(outcomes))
            return {"values": [self._one(v) if reason is None else (None, reason) for v, reason in outcomes]}
        result = self._trl(request, count) if self.signature == "trl" else self._openrlhf(request, count)
        if inspect.isawaitable(result):
            result = runner.run(_awaited(result))
        return self._list(result, count)

    def _trl(self, request: dict[str, Any], count: int) -> Any:
        columns = {name: _repeated(value, count) for name, value in request["columns"].items()}
        given = {
            "prompts": _repeated(request["prompt"], count),
            "completions": request["completions"],
            "trainer_state": None,
            "log_extra": _ignore,
            "log_metric": _ignore,
        }
        return self._called({**given, **columns})

    def _openrlhf(self, request: dict[str, Any], count: int) -> Any:
        prompt = request["text"]
        queries = [prompt + answer for answer in request["answers"]]
        labels = _repeated(request["columns"].get("labels"), count)
        return self.function(queries, [prompt] * count, labels, **self.arguments)

    def _verl(self, request: dict[str, Any], i: int) -> Any:
        further = copy.deepcopy(request["columns"])
        # A ground truth that was not asked for is not given: None would be taken for one.
        given = {name: further.pop(name) for name in ("data_source", "ground_truth") if name in further}
        given = {"data_source": "seamcurate", **given, "solution_str": request["answers"][i]}
        return self._called({**given, **self._with_rest("extra_info", further)})

    def _verifiers(self, request: dict[str, Any], i: int) -> Any:
        further = copy.deepcopy(request["columns"])
        prompt, completion = copy.deepcopy((request["prompt"], request["completions"][i]))
        given = {"prompt": prompt, "completion": completion, "task": "default"}
        given |= {name: further.pop(name) for name in ("answer",) if name in further}
        given |= self._with_rest("info", further)
        return self._called({**given, "state": copy.deepcopy(given)})

    def _plain(self, request: dict[str, Any], i: int) -> Any:
        prompt, columns = copy.deepcopy((request["prompt"], request["columns"]))
        return self._called({"prompt": prompt, "response": request["answers"][i], **columns})

    def _with_rest(self, name: str, columns: dict[str, Any]) -> dict[str, Any]:
        """Gather the columns that are no parameters of the function in one mapping, the parameter `name`."""
        whole = columns.pop(name, {})
        parameters = {key: value for key, value in columns.items() if self.accepted is None or key in self.accepted}
        rest = {key: value for key, value in columns.items() if key not in (self.accepted or ())}
        return {**parameters, name: {**whole, **rest} if isinstance(whole, dict) else whole}

    def _called(self, given: dict[str, Any]) -> Any:
        """Call the function by name, with those of the values that it takes."""
        given |= self.arguments
        if self.accepted is not None:
            given = {name: value for name, value in given.items() if name in self.accepted}
        return self.function(**given)

    def _one(self, value: Any) -> tuple[float | None, str | None]:
        if isinstance(value, dict) and self.signature == "verl":
            if "score" not in value:
                return None, "the function returned a mapping without `score`"
            value = value["score"]
        return _number(value)

    def _list(self, result: Any, count: int) -> dict[str, Any]:
        if isinstance(result, dict) and self.signature == "openrlhf":
            if "rewards" not in result:
                return {"error": "the function returned a mapping without `rewards`"}
            result = result["rewards"]
        if callable(getattr(result, "tolist", None)):
            result = result.tolist()
            # A tensor of no dimensions is the single reward of a single answer, as OpenRLHF asks for them.
            result = [result] if not isinstance(result, list) and self.signature == "openrlhf" else result
        if not isinstance(result, list | tuple):
            return {"error": f"the function returned a {type(result).__name__}, not a list of one number an answer"}
        if len(result) != count:
            return {"error": f"the function returned {len(result)} numbers for {count} answers"}
        return {"values": [_number(value) for value in result]}


_GIVEN = {
    "trl": ("prompts", "completions", "trainer_state", "log_extra", "log_metric"),
    "verl": ("data_source", "solution_str", "extra_info"),
    "verifiers": ("prompt", "completion", "state", "info", "task"),
    "plain": ("prompt", "response"),
}
"""What is given by name beside columns and arguments."""


def _check(parameters: Iterable[inspect.Parameter], given: set[str]) -> None:
    """Refuse a function with a parameter that gets no value: its file need not show its parameters."""
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"parameter {parameter.name} cannot be given by its name")
        needs = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needs and parameter.name not in given:
            raise TypeError(f"parameter {parameter.name} has no value; name its column in `columns`")


def _loaded(file: Path, name: str) -> Callable[..., Any]:
    # As if the file were run as a script: it imports modules beside it, and finds its own files.
    sys.path.insert(0, str(file.parent))
    os.chdir(file.parent)
    spec = importlib.util.spec_from_file_location("reward_function", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Callable[..., Any] = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, not a function")
    return function


def _tried(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what a call returned and no reason, or nothing and the reason; running out of memory ends the request."""
    try:
        return call(), None
    except MemoryError:
        raise
    except BaseException as error:
        return None, _line(error)


async def _all_awaited(outcomes: list[tuple[Any, str | None]]) -> list[tuple[Any, str | None]]:
    """Wait for those values that are coroutines, all at once."""

    async def awaited(value: Any, reason: str | None) -> tuple[Any, str | None]:
        if not inspect.isawaitable(value):
            return value, reason
        try:
            return await value, None
        except MemoryError:
            raise
        except BaseException as error:
            return None, _line(error)

    return list(await asyncio.gather(*(awaited(*outcome) for outcome in outcomes)))


async def _awaited(value: Any) -> Any:
    return await value


def _number(value: Any) -> tuple[float | None, str | None]:
    """Return a returned value as a number, or the reason why it is none."""
    if value is None:
        return None, "the function returned None"
    if isinstance(value, str):
        shown = value if len(value) <= _TEXT else value[: _TEXT - 1] + "…"
        return None, f"the function returned the text {shown!r}, not a number"
    kind = type(value).__name__
    try:
        if callable(getattr(value, "item", None)):
            # Scalars of numpy and torch, and their arrays of one element.
            value = value.item()
        number = float(value) if isinstance(value, numbers.Real | Decimal) else None
    except BaseException as error:
        return None, f"the function returned {kind}, not a number: {_line(error)}"[:_REASON]
    if number is None:
        return None, f"the function returned {kind}, not a number"
    return (number, None) if math.isfinite(number) else (None, f"the function returned {number}")


def _repeated(value: Any, count: int) -> list[Any]:
    """Return one copy of a row's value for each answer: a function may change what it is given."""
    return [copy.deepcopy(value) for _ in range(count)]


def _ignore(*values: object) -> None:
    """Take what a function logs with TRL's loggers."""


def _line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    kind = type(error).__name__
    try:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    except BaseException:
        line = ""
    return (f"{kind}: {line}" if line else kind)[:_REASON]


def _reply(channel: socket.socket, value: dict[str, Any]) -> None:
    channel.sendall(json.dumps(value).encode() + b"\n")


def _end_with(owner: int) -> None:
    """End this process when the one that started it has ended."""
    while os.getppid() == owner:
        time.sleep(_OWNER_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
