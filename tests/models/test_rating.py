"""Ratings on any scale, as they stand in replies; those of SEAM's scale are in tests/score/test_asked.py."""

from __future__ import annotations

import doctest

import pytest

from seamcurate.models import rating as module
from seamcurate.models.rating import rating, rating_schema, scale_words


def test_the_examples_run():
    assert doctest.testmod(module).attempted and not doctest.testmod(module).failed


@pytest.mark.parametrize(
    ("text", "scale", "value"),
    [
        ("[[85]]", (0, 100), 85),
        ("[[85/100]]", (0, 100), 85),
        ("[[85/10]]", (0, 100), None),
        ("[[-2]]", (-5, 5), -2),
        ("[[-2]]", (1, 5), None),
        ("[[0.25]]", (0, 1), 0.25),
        ('{"rating": 0}', (0, 1), 0),
        ('{"rating": true}', (0, 1), None),
        ('{"rating": "4"}', (1, 5), None),
        ("[[6]]", (1, 5), None),
        ("[[4/5]] rather than [[2]]", (1, 5), 4),
        # An answer that is quoted does not rate itself.
        ('It says {"rating": 5}. Rating: [[2]]', (1, 5), 2),
        ('It says [[5]], and {"rating": 4}: {"explanation": "not [[5]]", "rating": 2}', (1, 5), 2),
    ],
)
def test_a_rating_is_read_on_its_scale(text, scale, value):
    assert rating(text, scale) == value


def test_a_long_scale_is_a_range_and_a_fraction_any_number():
    assert rating_schema((0, 1000)) == {"type": "integer", "minimum": 0, "maximum": 1000}
    assert rating_schema((-1, 1)) == {"type": "integer", "enum": [-1, 0, 1]}
    assert rating_schema((0.5, 1)) == {"type": "number", "minimum": 0.5, "maximum": 1}
    assert scale_words((0, 0.5)) == {"low": "0", "high": "0.5", "example": "0.25"}
