"""Whole columns give what one text at a time gives, whatever the text."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from seamcurate import words
from seamcurate.score.rer import length_incentive, repetition_penalty

KINDS = ("wordpunct", "whitespace")
REPETITIVE = st.lists(
    st.sampled_from(["a", "b", "the cat ", "…", "é", " ", "\n", "--", "٣", "क्", "😀", "_"]), max_size=60
).map("".join)


def check(texts, kind):
    column = pa.array(texts, pa.string())
    known = ["" if text is None else text for text in texts]
    assert (words.counts(column, kind) / 100).tolist() == [length_incentive(text, kind) for text in known]
    assert words.distinct_trigrams(column, kind).tolist() == [repetition_penalty(text, kind) for text in known]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(texts=st.lists(st.none() | REPETITIVE | st.text(st.characters(exclude_categories=["Cs"])), max_size=12))
def test_columns_equal_the_formulas_text_by_text(kind, texts):
    check(texts, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_do_not_run_into_each_other_across_parts(monkeypatch, kind):
    monkeypatch.setattr(words, "_BYTES", 40)
    check(["word", "word", "", None, "word word word word", " ", "!", "!" * 100, "a b c a b c"] * 70, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_code_point_is_of_the_kind_it_has_in_one_text(kind):
    texts = [f"a{chr(code)}b" for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    pattern = regex.compile(r"\w+|[^\w\s]+")
    expected = [len(pattern.findall(text) if kind == "wordpunct" else text.split()) for text in texts]
    assert words.counts(pa.array(texts), kind).tolist() == expected


SCRIPTS = {
    "नमस्ते, दुनिया!": 4,  # Hindi
    "வணக்கம் உலகம்": 2,  # Tamil
    "สวัสดีชาวโลก": 1,  # Thai
    "مُحَمَّدٌ هُنَا": 2,  # vocalised Arabic
    "e\u0301te\u0301": 1,
    "می\u200cخواهم": 1,
    "x² ⓐ": 3,
}


@pytest.mark.parametrize(("text", "count"), SCRIPTS.items())
def test_combining_marks_belong_to_their_word_as_in_nltk(text, count):
    assert len(words.split(text)) == count == words.counts(pa.array([text]))[0]


@pytest.mark.slow
def test_words_are_nltks():
    tokenize = pytest.importorskip("nltk.tokenize", reason="nltk is not installed")
    texts = [*SCRIPTS, "It's 3.14 -- ok?\x1c\u2028end", "a_b\u203fc 10½ " + "".join(map(chr, range(0x300, 0x1000)))]
    for text in texts:
        assert words.split(text) == tokenize.wordpunct_tokenize(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("the " * 200, "the"),
        (" the the cat  cat sat ", "the cat sat"),
        ("Call sort on it.\nCall sort on it.\nCall sort on", "Call sort on it."),
        ("Sort it now, then stop. Sort it now,", "Sort it now, then stop."),
        ("It is 4.It is 4.It is 4.", "It is 4."),
        ("One, two. Then, then, three three three.", "One, two. Then, then, three."),
        ("  Nothing is said  again here. ", "Nothing is said  again here."),
        ("The sun. The", "The sun. The"),
        ("", ""),
    ],
)
def test_what_is_said_again_right_away_is_dropped(text, left):
    assert words.drop_repeats(text) == left


def test_copies_of_any_text_come_down_to_what_the_text_itself_does():
    for size in range(1, 8):
        for letters in itertools.product("abc", repeat=size):
            text = " ".join(letters)
            left = words.drop_repeats(text)
            assert words.drop_repeats(left) == left
            assert {words.drop_repeats(" ".join([text] * n)) for n in (2, 3, 5)} == {left}


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
