"""Every public name's docstring has an example, and the examples run."""

from __future__ import annotations

import contextlib
import doctest
import io
import sys

import pytest

import seamcurate

NAMES = [name for name in seamcurate.__all__ if name != "__version__"]


def examples(name: str) -> list[doctest.DocTest]:
    """Return the examples of a name's own docstring and, of a class, of its methods."""
    value = getattr(seamcurate, name)
    module = sys.modules[value.__module__]
    return [test for test in doctest.DocTestFinder().find(value, name, module) if test.examples]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example(name):
    assert name in [test.name for test in examples(name)], f"the docstring of seamcurate.{name} has no >>> example"


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = io.StringIO()
    for test in examples(name):
        # Progress and notes of the examples go to standard error, which no example compares.
        with contextlib.redirect_stderr(io.StringIO()):
            runner.run(test, out=report.write)
    assert not runner.failures, report.getvalue()
