"""Hypothesis strategies of data that people and attackers have: any text, any JSON, any line, any cell."""

from __future__ import annotations

import json

from hostile import LINES, TEXTS
from hypothesis import strategies as st

short = [case.given for case in TEXTS if len(case.given) <= 200]

text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
"""Any code points, lone surrogates too."""

valid_text = st.one_of(
    st.sampled_from(short), st.text(max_size=8), st.text("\r\n\t \",;'\\|`<=@+-\0\x1b\u2028\u202e", max_size=6)
)
"""Text that can be written as UTF-8, much of it meant to break something."""

json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)

record = st.fixed_dictionaries(
    {"prompt": text | json_value},
    optional={"key": text | st.integers(0, 3), "a": json_value, "b": text, "c": st.floats() | st.integers()},
)

line = st.one_of(
    record.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
    st.just(b"{}"),
    st.sampled_from([case.given for case in LINES if len(case.given) <= 200 and b'"re' not in case.given]),
)
"""A line of a JSONL file, good or bad; none has the response or reference that must not show late."""

cell = st.none() | st.binary(max_size=4)
"""Bytes in a column of text, UTF-8 or not."""
