"""Whole columns give what one text at a time gives, whatever the text."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamcurate import words
from seamcurate.white_box import length_incentive, repetition_penalty

KINDS = ("wordpunct", "whitespace")
REPETITIVE = st.lists(
    st.sampled_from(["a", "b", "the cat ", "…", "é", " ", "\n", "--", "٣", "क्", "😀", "_"]), max_size=60
).map("".join)


def check(texts, kind):
    column = pa.array(texts, pa.string())
    known = ["" if text is None else text for text in texts]
    assert (words.counts(column, kind) / 100).tolist() == [length_incentive(text, kind) for text in known]
    assert words.distinct_trigrams(column, kind).tolist() == [repetition_penalty(text, kind) for text in known]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(texts=st.lists(st.none() | REPETITIVE | st.text(st.characters(exclude_categories=["Cs"])), max_size=12))
def test_columns_equal_the_formulas_text_by_text(kind, texts):
    check(texts, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_do_not_run_into_each_other_across_parts(monkeypatch, kind):
    monkeypatch.setattr(words, "_BYTES", 40)
    check(["word", "word", "", None, "word word word word", " ", "!", "!" * 100, "a b c a b c"] * 70, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_point_is_of_the_kind_python_gives_it(kind):
    texts = [f"a{chr(code)}b" for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    pattern = re.compile(r"\w+|[^\w\s]+")
    expected = [len(pattern.findall(text) if kind == "wordpunct" else text.split()) for text in texts]
    assert words.counts(pa.array(texts), kind).tolist() == expected


def test_an_empty_column_gives_nothing_and_a_slice_its_own_rows():
    assert words.counts(pa.array([], pa.string())).tolist() == []
    assert words.distinct_trigrams(pa.array([None, ""], pa.string())).tolist() == [1.0, 1.0]
    whole = pa.array(["x", "a b c a b c", "y z"])
    assert words.counts(whole.slice(1, 1)).tolist() == [6]
    assert words.counts(whole.cast(pa.large_string())).tolist() == [1, 6, 2]


def test_many_different_words_are_told_apart():
    text = " ".join(f"w{i}" for i in range(200_000))
    assert words.distinct_trigrams(pa.array([text, text + " " + text]))[0] == 1.0
    twice = words.distinct_trigrams(pa.array([text + " " + text]))[0]
    assert twice == pytest.approx(np.float64(200_000) / 399_998)
