"""The reward functions that come with seamcurate: how answers are written, and what is no reference."""

from __future__ import annotations

import doctest
import inspect
import re

import pytest
from jsonschema.exceptions import SchemaError
from referencing.exceptions import Unresolvable

from seamcurate import verifiers
from seamcurate.models.function import BUNDLED
from seamcurate.verifiers import choice_match, exact_match, number_match, regex_match, schema_match


def test_their_examples_run():
    assert doctest.testmod(verifiers).failed == 0
    tests = {test.name: test.examples for test in doctest.DocTestFinder().find(verifiers)}
    assert all(tests[f"seamcurate.verifiers.{name}"] for name in BUNDLED)


def test_each_is_a_function_that_trl_can_call():
    for name in BUNDLED:
        parameters = inspect.signature(getattr(verifiers, name)).parameters
        assert next(iter(parameters)) == "completions"
        assert any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    further = {"prompts": ["p"], "completion_ids": [[1]], "trainer_state": None, "log_metric": print}
    assert exact_match(completions=["a"], reference=["a"], **further) == [1.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The total is 1,234.", "1234"),
        ("$1,234,567.50 in all", "1234567.5"),
        ("In 2024, 3 apples, 4 pears: 7", "7"),
        ("x = -3", "-3"),
        ("5-3", "3"),
        ("minus: −2", "-2"),
        (r"\boxed{\frac{-1}{2}}", "-0.5"),
        (r"\boxed{\dfrac{3}{4}} and 9", "0.75"),
        (r"\boxed{x} then \boxed{12{,}000}", "12000"),
        (r"\boxed{ {7} } 8", "7"),
        ("reasoning 12\n#### 48", "48"),
        ("1/3", "1/3"),
        (".5", "0.5"),
        ("6.02e23", "602000000000000000000000"),
        ("1,23", "23"),
    ],
)
def test_numbers_are_read_as_people_write_them(text, number):
    assert number_match([text], [number]) == [1.0]
    assert number_match([text], [f"{number}1"]) == [0.0]


def test_what_is_no_number_is_no_match_and_as_a_reference_no_reward():
    assert number_match(["none", "1/0", "9" * 5000, r"\boxed{}"], ["1"] * 4) == [0.0] * 4
    assert number_match(["1"] * 3, ["none", None, []]) == [None] * 3
    assert number_match(["2", "2"], [["1", "2"], [1, 2.0]]) == [1.0, 1.0]
    assert number_match(["1e999999999"], ["1e999999999"]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        *("B", "b", "(B)", "B.", "B) because", "The answer is B.", "Answer: (b)", r"\boxed{B}", r"\boxed{\text{B}}"),
        *("**B**", "Option A is wrong, so the answer is **B**", "A or B? I take (B)", "answer B"),
    ],
)
def test_letters_are_read_as_people_write_them(text):
    assert choice_match([text, text], ["B", "C"]) == [1.0, 0.0]


def test_words_are_no_letters_and_indices_are():
    assert choice_match(["A dog", "Because", "", "E"], ["A", "B", "A", "E"]) == [0.0, 0.0, 0.0, None]
    assert choice_match(["(E)", "(E)", "A"], [4, "e", 7], choices="ABCDE") == [1.0, 1.0, None]


def test_texts_are_compared_in_one_unicode_form():
    assert exact_match(["cafe\u0301", "a  b\n"], ["caf\u00e9", "a b"]) == [1.0, 1.0]


def test_patterns_and_schemas_fail_where_they_are_wrong():
    with pytest.raises(re.error, match="unterminated"):
        regex_match(["a"], pattern="[a")
    with pytest.raises(SchemaError, match="is not valid"):
        schema_match([], schema={"type": "objekt"})


def test_json_is_json():
    schema = {"type": "object", "required": ["a"]}
    texts = ['{"a": NaN}', '{"a": 1', "[" * 100_000, '{"b": 1}', ' {"a": 1} ', '```\n{"a": 1}```']
    assert schema_match(texts, schema=schema) == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    with pytest.raises(Unresolvable, match="example"):
        schema_match(['{"a": 1}'], schema={"$ref": "http://example.invalid/schema.json"})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"\boxed{\frac34}", "3/4"),
        (r"\frac{3}4", "0.75"),
        (r"\boxed{3\frac{1}{2}}", "3.5"),
        ("-1 1/2 cups", "-1.5"),
        ("3½", "3.5"),
        (r"\frac{1}{-2}", "-0.5"),
        (r"\boxed{12\text{ cm}^2}", "12"),
        ("The area is 12 cm^2.", "12"),
        (r"9.8\ m/s^{2}", "9.8"),
        (r"\boxed{90^\circ}", "90"),
        (r"\boxed{10_2}", "10"),
        (r"\boxed{3 \times 10^{5}}", "300000"),
        (r"6.02\times10^{23}", "6.02e23"),
        (r"\boxed{1.5 \cdot 10^{-3}}", "0.0015"),
        (r"\boxed{2^{10}}", "1024"),
        (r"\boxed{x = 5 - 3 = 2}", "2"),
        ("1\u202f234", "1234"),
        (r"1\ 234", "1234"),
        ("–3", "-3"),
        ("3–5 people: 4", "4"),
        (r"\boxed{ - 2 }", "-2"),
        (r"the radius is $\sqrt{12}$, about 3", "3"),
    ],
)
def test_numbers_in_latex_with_powers_and_units_are_read_whole(text, number):
    assert number_match([text], [number]) == [1.0]
    assert number_match([number], [text if "about" not in text else number]) == [1.0]


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        (r"2\sqrt{3}", "3"),
        (r"\frac{\sqrt{3}}{2}", "2"),
        (r"\frac{\pi}{2}", "2"),
        ("2π", "2"),
        ("2x + 3", "3"),
        ("x^2+1", "1"),
        ("3-2i", "3"),
        ("(1, 2)", "2"),
        ("1,234, 5", "5"),
        (r"2 \pm 1", "1"),
        (r"5 \times 3", "3"),
        ("7!", "7"),
    ],
)
def test_an_expression_is_no_number(expression, part):
    """The last of its digits is no answer: `\\boxed{3}` is not `2\\sqrt{3}`."""
    assert number_match([rf"So \boxed{{{expression}}}.", f"#### {expression}"], [part] * 2) == [0.0, 0.0]
    assert number_match([rf"\boxed{{{part}}}", part], [expression, rf"We get \boxed{{{expression}}}."]) == [None, None]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is option B.", "B"),
        ("The best choice is (b)", "B"),
        ("The answer choice is D.", "D"),
        ("Therefore the answer would be C.", "C"),
        ("The answer is a combination of these, so (C)", "C"),
        ("The answer is A because it is.", "A"),
        ("the answer is a", "A"),
        (r"\boxed{\textbf{C}}", "C"),
        (r"\boxed{\mathrm{C}}", "C"),
        (r"\boxed{\textbf{(C)}\ 12}", "C"),
        ("C\n\nIt is in all of them.", "C"),
        ("Option B", "B"),
    ],
)
def test_letters_are_read_as_models_write_them(text, letter):
    assert choice_match([text], [letter]) == [1.0]
    assert choice_match([text], ["ABCD".index(letter)]) == choice_match([text], [str("ABCD".index(letter))]) == [1.0]


def test_an_article_is_no_letter_and_a_text_of_line_ends_takes_no_time():
    assert choice_match(["the answer is a dog", "the answer is unknown"], ["A", "A"]) == [0.0, 0.0]
    assert choice_match(["answer" + "\n" * 50_000, "B"], ["A", "7"]) == [0.0, None]
    assert choice_match(["2", "3"], ["2", "2"], choices="1234") == [1.0, 0.0]
