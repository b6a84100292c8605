"""Rows with each prompt and response once: a pair that several rows hold is scored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from seamcurate.models.protocols import Prompt, Responses

T = TypeVar("T")


class Distinct(NamedTuple):
    """The distinct prompts of some rows with their distinct responses, and where each row's responses are among them."""

    groups: list[tuple[Prompt, list[str]]]
    positions: list[list[tuple[int, int]]]
    """For each response of each row: the number of its group, and its number in the group."""

    def regroup(self, scores: Sequence[Sequence[T]]) -> list[list[T]]:
        """Return each row's scores, from the scores of each group."""
        return [[scores[group][member] for group, member in row] for row in self.positions]


def distinct(prompts: Sequence[Prompt], responses: Responses) -> Distinct:
    """Put equal prompts into one group, and equal responses of a group into one.

    Example:
        >>> distinct(["p", "q", "p"], [["a", "b"], ["a"], ["b"]])
        Distinct(groups=[('p', ['a', 'b']), ('q', ['a'])], positions=[[(0, 0), (0, 1)], [(1, 0)], [(0, 1)]])
    """
    groups: list[tuple[Prompt, list[str]]] = []
    group_numbers: dict[object, int] = {}
    response_numbers: list[dict[str, int]] = []
    positions = []
    for prompt, answers in zip(prompts, responses, strict=True):
        key = prompt if isinstance(prompt, str) else tuple((turn["role"], turn["content"]) for turn in prompt)
        group = group_numbers.setdefault(key, len(groups))
        if group == len(groups):
            groups.append((prompt, []))
            response_numbers.append({})
        members = groups[group][1]
        row = []
        for answer in answers:
            member = response_numbers[group].setdefault(answer, len(members))
            if member == len(members):
                members.append(answer)
            row.append((group, member))
        positions.append(row)
    return Distinct(groups, positions)


def regroup(values: Sequence[T], groups: Sequence[Sequence[object]]) -> list[list[T]]:
    """Cut a flat list into lists of the lengths of `groups`.

    Example:
        >>> regroup([1, 2, 3], [["a"], ["b", "c"]])
        [[1], [2, 3]]
    """
    regrouped, start = [], 0
    for group in groups:
        regrouped.append(list(values[start : start + len(group)]))
        start += len(group)
    return regrouped
