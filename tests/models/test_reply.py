"""Odd replies, sent by a real server to every step that reads one: each says what it says, and nothing it only quotes."""

from __future__ import annotations

import json

import pytest
from endpoint import completion, serving

from seamcurate import AskQueryType, Generate, Judge, OpenAIServer, RelevantSentences
from seamcurate.models import Reply
from seamcurate.models.reply import ending, read
from seamcurate.study import verdicts

WORSE = ["A list is sorted by turning it round.", "Call sort with the name of the module.", "No list can be sorted."]
# What is asked, what a model says in the end, what it thinks before, and what is to be read.
READERS = {
    "generate": (
        lambda: Generate(k=3)._conversation("How do I sort a list?", "Call sorted on it."),
        json.dumps({"answers": WORSE}),
        'The format is {"answers": ["the first answer", "the second answer", …]}.\n1. Turn it round.\n2. Invent a name.\n3. Deny it.',
        (WORSE, None),
        (None,),
    ),
    "judge": (
        lambda: Judge()._conversation("How do I sort a list?", "Call sorted on it.", [{"response": "No."}]),
        "It is fine. Rating: [[7]]",
        'The scale is 1 to 10, as in "Rating: [[5]]". Is it right?',
        (7.0, [7.0], None),
        (None, [None]),
    ),
    "ask_query_type": (
        lambda: AskQueryType()._conversation("How do I sort a list?"),
        "CLOSED-ENDED",
        "Is it OPEN-ENDED or CLOSED-ENDED? It is OPEN-ENDED.",
        ("closed", None),
        (None,),
    ),
    "relevant_sentences": (
        lambda: RelevantSentences()._conversation("How do I sort a list?", "Call sorted on it. Buy now."),
        '- "Call sorted on it." : Relevant\n- "Buy now." : Irrelevant',
        '- "Sentence 1" : Relevant',
        (0.5, None),
        (None,),
    ),
    "compare": (
        lambda: verdicts._conversation(
            "{question} {answer} {other}", verdicts._Question("m", "0", "How?", "Like this.", "No.", "first")
        ),
        "Both sort. [[A]]",
        'I am to write "[[B]]" if B is better.',
        ("win", None),
        (None,),
    ),
}


def says(text, finish="stop", **fields):
    reply = completion(text, finish)
    reply["choices"][0]["message"] |= fields
    return reply


READABLE = {
    "plain": lambda final, thought: says(final),
    "tags": lambda final, thought: says(f"<think>\n{thought}\n</think>\n\n{final}"),
    "no opening tag": lambda final, thought: says(f"{thought}\n</think>\n\n{final}"),
    "nothing thought": lambda final, thought: says(f"<think>\n\n</think>\n\n{final}"),
    "thought twice": lambda final, thought: says(f"<think>{thought}</think>\n<think>{thought}</think>{final}"),
    "thought after a word": lambda final, thought: says(f"Sure.\n<think>{thought}</think>{final}"),
    "another tag": lambda final, thought: says(f"<thinking>\n{thought}\n</thinking>\n{final}"),
    "a name before": lambda final, thought: says(f"<seed:think>{thought}</seed:think>{final}"),
    "brackets": lambda final, thought: says(f"[THINK]{thought}[/THINK]{final}"),
    "a solution": lambda final, thought: says(
        f"<|begin_of_thought|>{thought}<|end_of_thought|>\n<|begin_of_solution|>{final}<|end_of_solution|>"
    ),
    "an answer's tag": lambda final, thought: says(f"<think>{thought}</think>\n<answer>\n{final}\n</answer>"),
    "channels": lambda final, thought: says(
        f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{final}<|return|>"
    ),
    "channels without their marks": lambda final, thought: says(f"analysis{thought}assistantfinal{final}"),
    "a channel of another kind": lambda final, thought: says(f"<|channel>thought\n{thought}<channel|>{final}"),
    "spoken": lambda final, thought: says(f"Here is my thought process:\n{thought}\nHere is my response:\n{final}"),
    "fields of their own": lambda final, thought: says(final, reasoning_content=thought, reasoning=thought),
    "parts": lambda final, thought: says([{"type": "text", "text": final[:9]}, {"type": "text", "text": final[9:]}]),
    "parts of thinking": lambda final, thought: says(
        [{"type": "thinking", "thinking": [{"type": "text", "text": thought}]}, {"type": "text", "text": final}]
    ),
    "no reason for its end": lambda final, thought: says(final, None),
    "another word for its end": lambda final, thought: says(final, "end_turn"),
    "a number for its end": lambda final, thought: says(final, 1),
    "no refusal": lambda final, thought: says(final, refusal=False),
    "no usage": lambda final, thought: {**says(final), "usage": None},
    "foreign usage": lambda final, thought: {
        **says(final),
        "usage": {"prompt_tokens": 10.5, "completion_tokens": None},
    },
}
UNREADABLE = {
    "cut while thinking": (lambda final, thought: says(f"<think>\n{thought}", "length"), "length"),
    "cut while thinking without a tag": (lambda final, thought: says(thought, "length"), "length"),
    "cut in its own field": (lambda final, thought: says(None, "length", reasoning_content=thought), "length"),
    "cut in a channel": (lambda final, thought: says(f"<|channel|>analysis<|message|>{thought}", "length"), "length"),
    "cut by another name": (lambda final, thought: says(thought, "MAX_TOKENS"), "length"),
    "never ended": (lambda final, thought: says(f"<think>\n{thought}"), "nothing but thinking"),
    "only thought": (lambda final, thought: says(f"<think>\n{thought}</think>"), "nothing but thinking"),
    "filtered": (lambda final, thought: says(thought, "content_filter"), "content"),
    "refused": (lambda final, thought: says(None, refusal="I will not"), "refus"),
    "called a tool": (lambda final, thought: says(thought, "tool_calls"), "tool_calls"),
}


FIELDS = {
    "answers": "generate",
    "rating": "judge",
    "query_type": "ask_query_type",
    "sentences": "relevant_sentences",
    "verdict": "compare",
}
"""Whose schema has which property."""


@pytest.fixture(scope="module")
def at():
    with serving() as endpoint:
        yield endpoint


def ask(at, complete):
    """Have every reader ask, and answer each with its own words in the same odd form; returns what each reads."""

    def answer(asked):
        (field,) = FIELDS.keys() & asked["response_format"]["json_schema"]["schema"]["properties"].keys()
        return complete(*READERS[FIELDS[field]][1:3])

    at.complete = answer
    model = OpenAIServer(path="m", base_url=at.url, retries=0, timeout=20).load()
    return dict(zip(READERS, map(tuple, model.converse([reader[0] for reader in READERS.values()])), strict=True))


@pytest.mark.parametrize("odd", READABLE)
def test_an_answer_is_read_however_it_comes(at, odd):
    assert ask(at, READABLE[odd]) == {name: reader[3] for name, reader in READERS.items()}


@pytest.mark.parametrize("odd", UNREADABLE)
def test_what_is_no_answer_is_never_read_as_one_and_says_why(at, odd):
    complete, reason = UNREADABLE[odd]
    read_values = ask(at, complete)
    assert {name: values[:-1] for name, values in read_values.items()} == {n: r[4] for n, r in READERS.items()}
    assert reason.replace("length", "cut short") in read_values.pop("generate")[-1]
    assert [values[-1] for values in read_values.values() if reason not in values[-1]] == []


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        '{"answers": ["the <think> tag", "ends with </think>", "a\n</think>\nb"]}',
        '```json\n{"answers": ["</think>"]}\n```',
        "R1 writes <think> before and </think> after its thoughts.",
        "The mark `</think>` ends it.",
        "  kept with its blanks \n",
    ],
)
def test_an_answer_that_speaks_of_thinking_is_left_as_it_is(text):
    assert read(Reply(text, "stop", "m")).text == text


def test_a_failure_is_its_own_reason():
    assert read(Reply("", "", "m", "no answer within 5 s")) == ("", "failure", "no answer within 5 s")


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("COMPLETE", "stop"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("model_context_window_exceeded", "length"),
        ("SAFETY", "content_filter"),
        ("content_filtered", "content_filter"),
        ("abort", "abort"),
    ],
)
def test_servers_words_for_an_end_are_translated(word, meaning):
    assert ending(word) == meaning
