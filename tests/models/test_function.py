"""Reward functions: four libraries' signatures, found and called as the library does; hostile functions; errors in one line."""

from __future__ import annotations

import datetime
import gc
import os
import signal
from pathlib import Path

import pytest

from seamcurate import FakeModel, RewardFunction
from seamcurate.errors import ModelError
from seamcurate.models.function import BUNDLED

WORKER = Path(__file__).parents[2] / "seamcurate" / "models" / "function_worker.py"

TRL = """
async def later(completions, reference, log_metric=None, **kwargs):
    assert log_metric("mean", 1.0) is None
    return [float(text == right) for text, right in zip(completions, reference)]

def exact(prompts, completions, reference, bonus=0.0, **kwargs):
    assert len(prompts) == len(completions) == len(reference) and kwargs["trainer_state"] is None
    return [float(text == right) + bonus for text, right in zip(completions, reference)]

def content(completions, **kwargs):
    return [len(completion[0]["content"]) for completion in completions]

def day(completions, when, **kwargs):
    return [len(value) for value in when]

def plain(completions, points):
    points[0] += 1
    return points
"""
VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "raise":
        raise ValueError("no such answer")
    right = float(solution_str == ground_truth)
    return {"score": right, "source": data_source} if right else extra_info.get("votes", 0)
"""
OPENRLHF = """
import numpy

def reward_func(queries, prompts, labels, **kwargs):
    print(queries)
    answers = [query[len(prompt):] for query, prompt in zip(queries, prompts)]
    reward = numpy.array([answer == label for answer, label in zip(answers, labels)], numpy.float32)
    return {"rewards": reward, "scores": reward, "extra_logs": {"mean": reward.mean()}}
"""
VERIFIERS = """
import asyncio

async def correct(completion, answer, state, info, difficulty):
    await asyncio.sleep(0)
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    assert state["completion"] == completion and state["answer"] == answer
    return float(text == answer) * difficulty + info.get("votes", 0)
"""


def named(folder, code, name, **fields):
    (folder / "verifier.py").write_text(code)
    return RewardFunction(path=f"{folder / 'verifier.py'}:{name}", **fields)


def rewarded(model, answers, prompt="2 + 2?", **columns):
    """Score the answers of one row."""
    (row,) = model.load().ratings([prompt], [answers], {name: [value] for name, value in columns.items()})
    return [rating.reward for rating in row]


def test_a_function_of_trl_gets_lists_and_its_columns_by_name(tmp_path):
    model = named(tmp_path, TRL, "exact", arguments={"bonus": 1})
    assert model.columns_read() == ("reference",)
    assert rewarded(model, ["4", "5"], reference="4") == [2, 1]
    assert rewarded(named(tmp_path, TRL, "later"), ["4", "5"], reference="4") == [1, 0]
    renamed = named(tmp_path, TRL, "exact", columns={"reference": "right answer"})
    assert renamed.columns_read() == ("right answer",)
    assert rewarded(renamed, ["4"], **{"right answer": "4"}) == [1]


def test_completions_of_chats_are_messages_and_those_of_text_only_where_asked(tmp_path):
    chat = [{"role": "user", "content": "2 + 2?"}]
    assert rewarded(named(tmp_path, TRL, "content"), ["four"], prompt=chat) == [4]
    assert rewarded(named(tmp_path, TRL, "content", chat=True), ["four"]) == [4]
    (row,) = named(tmp_path, TRL, "content").load().ratings(["2 + 2?"], [["four"]], {})
    assert row[0].reason.startswith("TypeError: ")


def test_values_that_json_lacks_are_given_as_text_and_changed_values_stay_in_their_row(tmp_path):
    assert rewarded(named(tmp_path, TRL, "day"), ["a"], when=datetime.date(2026, 1, 2)) == [len("2026-01-02")]
    loaded = named(tmp_path, TRL, "plain").load()
    first, second = loaded.ratings(["p", "q"], [["a", "b"], ["c"]], {"points": [1, 1]})
    assert [rating.reward for rating in first + second] == [2, 1, 2]


PLAIN = """
def score(prompt, response, reference, bonus=0):
    if isinstance(prompt, list):
        prompt = prompt[-1]["content"]
    return (response == reference) + bonus + len(prompt) / 100

def broken(prompt, response):
    return 1 / len(response)
"""


def test_a_plain_function_gets_one_prompt_one_response_and_its_columns(tmp_path):
    model = named(tmp_path, PLAIN, "score", arguments={"bonus": 2})
    assert model.columns_read() == ("reference",)
    assert rewarded(model, ["4", "5"], reference="4") == [3.06, 2.06]
    chat = [{"role": "user", "content": "2 + 2?"}]
    assert rewarded(model, ["4"], prompt=chat, reference="4") == [3.06]
    (row,) = named(tmp_path, PLAIN, "broken").load().ratings(["q"], [["", "ab"]], {})
    assert [rating.reward for rating in row] == [None, 0.5] and row[0].reason.startswith("ZeroDivisionError")


def test_a_function_of_verl_is_called_for_each_answer(tmp_path):
    model = named(tmp_path, VERL, "compute_score", columns=["votes"])
    assert set(model.columns_read()) == {"reference", "votes"}
    (row,) = model.load().ratings(["2 + 2?"], [["4", "raise", "5"]], {"reference": ["4"], "votes": [7]})
    assert [rating.reward for rating in row] == [1, None, 7]
    assert row[1].reason == "ValueError: no such answer"


def test_a_function_of_openrlhf_gets_prompt_and_answer_as_one_text(tmp_path):
    model = named(tmp_path, OPENRLHF, "reward_func")
    assert model.columns_read() == ("reference",)
    assert rewarded(model, ["4", "5"], reference="4") == [1, 0]
    (tmp_path / "other").mkdir()
    code = "def score(queries, prompts, answers): return [float(q.endswith(a)) for q, a in zip(queries, answers)]"
    model = named(tmp_path / "other", code, "score", columns={"labels": "right"})
    assert model.columns_read() == ("right",) and rewarded(model, ["4", "5"], right="4") == [1, 0]


def test_a_function_of_verifiers_gets_what_it_names(tmp_path):
    model = named(tmp_path, VERIFIERS, "correct", columns=["votes"])
    assert set(model.columns_read()) == {"reference", "difficulty", "votes"}
    assert rewarded(model, ["4", "5"], reference="4", difficulty=3, votes=1) == [4, 1]


@pytest.mark.parametrize("signature", ["verl", "verifiers"])
def test_a_reference_that_was_not_asked_for_is_not_made_up(signature, tmp_path):
    sign, name = ("solution_str", "ground_truth") if signature == "verl" else ("completion", "answer")
    code = f"def score({sign}, **kwargs): return float({sign} == kwargs[{name!r}])"
    (row,) = named(tmp_path, code, "score").load().ratings(["p"], [[""]], {})
    assert row[0].reason == f"KeyError: '{name}'"
    assert rewarded(named(tmp_path, code, "score", columns={name: "right"}), ["4"], right="4") == [1]


@pytest.mark.parametrize(
    ("code", "name", "signature"),
    [
        *((TRL, "exact", "TRL"), (VERL, "compute_score", "verl")),
        *((OPENRLHF, "reward_func", "OpenRLHF"), (VERIFIERS, "correct", "verifiers")),
        (PLAIN, "score", "the plain kind"),
    ],
)
def test_whose_function_it_is_is_found_and_told(tmp_path, code, name, signature):
    assert f"is called as a function of {signature}, by its parameter" in named(tmp_path, code, name).summary()


def test_trl_s_own_function_runs(tmp_path):
    code = "from trl.rewards import think_format_reward"
    model = named(tmp_path, code, "think_format_reward", signature="trl", chat=True, seconds=120)
    assert rewarded(model, ["<think>\n2\n</think>\n4", "4"]) == [1, 0]


HOSTILE = """
import os, sys, time
import numpy

class Stop(BaseException):
    def __str__(self):
        raise Stop

def score(prompts, completions, **kwargs):
    rewards = []
    for text in completions:
        print("on standard output")
        os.write(1, b'{"values": []}\\n')
        if text == "exit": os._exit(3)
        if text == "loop":
            while True: pass
        if text == "eat": bytearray(10 << 30)
        if text == "fork" and os.fork() == 0: time.sleep(0.01)
        if text == "fork and end":
            if os.fork() == 0: time.sleep(60)
            os._exit(1)
        if text == "base": raise Stop
        if text == "exception": raise ValueError("first line\\nsecond line")
        if text == "sys.exit": sys.exit(1)
        if text == "Ctrl-C": raise KeyboardInterrupt
        if text == "crash": os.kill(os.getpid(), 11)
        if text == "few": continue
        if text == "secret": rewards.append(len(os.environ.get("MY_API_KEY", ""))); continue
        if text == "numpy": rewards.append(numpy.float32(0.5)); continue
        rewards.append({"true": True, "none": None, "nan": float("nan"), "text": "1.0", "huge": 10**400}.get(text, 7))
    return rewards
"""
ANSWERS = {
    "exit": "the function ended its process with status 3",
    "loop": "no answer in 2 seconds",
    "eat": "MemoryError",
    "fork": 7,
    "fork and end": "the function ended its process with status 1",
    "base": "Stop",
    "exception": "ValueError: first line",
    "sys.exit": "SystemExit: 1",
    "Ctrl-C": "KeyboardInterrupt",
    "crash": "the function's process was ended by SIGSEGV",
    "few": "the function returned 0 numbers for 1 answers",
    "secret": 0,
    "numpy": 0.5,
    "true": 1,
    "none": "the function returned None",
    "nan": "the function returned nan",
    "text": "the function returned the text '1.0', not a number",
    "huge": "the function returned int, not a number: OverflowError: int too large to convert to float",
    "plain": 7,
}


@pytest.mark.slow
def test_a_hostile_function_costs_no_other_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "secret")
    loaded = named(tmp_path, HOSTILE, "score", seconds=2).load()
    first, second = loaded.ratings(["p", "q"], [[*ANSWERS], ["plain", "plain"]], {})
    said = {
        text: rating.reward if rating.reason is None else rating.reason
        for text, rating in zip(ANSWERS, first, strict=True)
    }
    assert said == ANSWERS
    assert all(rating.reward is None for rating in first if rating.reason)
    assert [rating.reward for rating in second] == [7, 7]


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_asked_once_and_told_of(tmp_path, capsys):
    code = """
from pathlib import Path
def score(completions, **kwargs):
    with Path(__file__).with_name("calls.txt").open("a") as log:
        log.write(f"{completions}\\n")
    while "loop" in completions: pass
    return [1] * len(completions)
"""
    loaded = named(tmp_path, code, "score", seconds=0.7).load()
    for _ in range(2):
        assert [rating.reward for rating in loaded.ratings(["p"], [["a", "loop"]], {})[0]] == [1, None]
    assert (tmp_path / "calls.txt").read_text().splitlines() == ["['a', 'loop']", "['a']", "['loop']", "['a']"]
    said = capsys.readouterr().err
    assert said.count("no answer in 0.7 seconds for an answer; such answers have no reward") == 1


def processes():
    """List the processes of functions that this one started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if str(WORKER).encode() in command and int(status.rpartition(")")[2].split()[1]) == os.getpid():
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes by /proc")
def test_a_process_ends_with_its_model_and_is_started_anew_when_it_was_killed(tmp_path):
    before = {*processes()}
    loaded = named(tmp_path, TRL, "exact").load()
    (process,) = {*processes()} - before
    os.kill(process, signal.SIGKILL)
    rows = loaded.ratings(["p", "q"], [["4"], ["4"]], {"reference": ["4", "4"]})
    # The answer that was asked of the killed process is asked of the next one.
    assert [rating.reward for row in rows for rating in row] == [1, 1]
    (started_anew,) = {*processes()} - before
    assert started_anew != process
    del loaded
    gc.collect()
    assert started_anew not in processes()


def test_parameters_that_a_file_does_not_show_are_checked_when_it_is_loaded(tmp_path):
    (tmp_path / "inner.py").write_text(
        "def score(completions, solution, *rest, strict=False): return [1 for _ in solution]"
    )
    code = "from inner import score\nfixed = lambda completions, /: []\n"
    with pytest.raises(
        ModelError, match="cannot be loaded: TypeError: parameter solution has no value; name its column"
    ):
        named(tmp_path, code, "score", signature="trl").load()
    assert rewarded(named(tmp_path, code, "score", signature="trl", columns=["solution"]), ["a"], solution="4") == [1]
    with pytest.raises(ModelError, match="parameter completions cannot be given by its name"):
        named(tmp_path, code, "fixed").load()


def test_a_function_that_changes_while_it_is_used_ends_the_run(tmp_path):
    loaded = named(tmp_path, "import os\ndef score(completions): os._exit(1)\n", "score").load()
    assert loaded.ratings(["p"], [["a"]], {})[0][0].reward is None
    (tmp_path / "verifier.py").write_text("def score(completions): return [1]\n")
    with pytest.raises(ModelError, match="changed while it was in use; run again"):
        loaded.ratings(["p"], [["a"]], {})


def test_numbers_outside_what_the_recipe_says_are_no_rewards(tmp_path):
    code = "def score(completions): return [float(text) for text in completions]"

    def rated(**fields):
        (row,) = named(tmp_path, code, "score", **fields).load().ratings(["p"], [["1", "0", "0.5", "1e39"]], {})
        return [rating.reward if rating.reason is None else rating.reason for rating in row]

    too_large = "the function returned 1e+39, which is too large"
    assert rated() == [1, 0, 0.5, too_large]
    assert rated(binary=True) == [1, 0, "the function returned 0.5, and its rewards are 0 or 1", too_large]
    outside = "the function returned {}, outside its scale [0.5, 2.0]"
    assert rated(scale=(0.5, 2)) == [1, outside.format("0"), 0.5, too_large]
    assert named(tmp_path, code, "score", scale=(0.5, 2)).scale_range() == (0.5, 2)
    assert RewardFunction(path="exact_match").scale_range() == (0, 1)


BAD = {
    "a syntax error": (
        "def score(completions:\n    pass",
        {},
        r"verifier\.py:1: '\(' was never closed; correct the file",
    ),
    "no such function": (
        "def scored(completions): ...",
        {},
        "has no function 'score'; it defines scored; did you mean `scored`",
    ),
    "a class": ("class score: ...", {}, "score is a class; name a function"),
    "unknown parameters": ("def score(x, y): ...", {}, "its parameters are x, y; say `signature: trl | verl"),
    "two libraries' parameters": ("def score(completions, completion): ...", {}, "say `signature: trl"),
    "parameters elsewhere": ("from other import score", {}, "its file does not show its parameters; say `signature"),
    "another signature": (
        "def score(solution_str): ...",
        {"signature": "trl"},
        "a function of TRL takes prompts, completions, .* by name, and this one takes solution_str",
    ),
    "too few for OpenRLHF": (
        "def score(queries, labels): ...",
        {},
        "OpenRLHF takes queries, prompts, labels, in this order, and this one takes queries, labels",
    ),
    "what verl does not give": (
        "def score(solution_str, ground_truth, judge): ...",
        {},
        "give judge by `arguments` or `columns`",
    ),
    "what only a trainer has": (
        "def score(completions, completion_ids): ...",
        {},
        "needs completion_ids, which only a trainer has",
    ),
    "an unknown argument": (
        "def score(completions, strict=True): ...",
        {"arguments": {"stric": False}},
        "arguments: it has no parameter 'stric'; it takes completions, strict; did you mean `strict`",
    ),
    "an unknown column": (
        "def score(completions): ...",
        {"columns": ["votes"]},
        "columns: it has no parameter 'votes'",
    ),
    "a column that OpenRLHF does not give": (
        "def score(queries, prompts, answers, votes=None): ...",
        {"signature": "openrlhf", "columns": ["votes"]},
        "columns: votes: OpenRLHF gives `labels` alone; say {labels: COLUMN}",
    ),
    "null bytes": ("\0", {}, r"verifier\.py.*(is no Python file|null bytes; correct the file)"),
}


@pytest.mark.parametrize(("code", "fields", "message"), BAD.values(), ids=BAD)
def test_a_function_that_cannot_be_called_is_refused_in_one_line_and_nothing_runs(code, fields, message, tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "verifier.py").write_text(f"{code}\nopen({str(mark)!r}, 'w')\n")
    model = RewardFunction(path=f"{tmp_path / 'verifier.py'}:score", **fields)
    for ask in (model.columns_read, model.identity):
        with pytest.raises(ModelError, match=message) as refused:
            ask()
        assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_what_is_read_of_a_function_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    model = named(tmp_path, f"open({str(mark)!r}, 'w')\ndef score(completions, answer): ...\n", "score")
    assert model.columns_read() == ("answer",) and model.identity() and model.summary()
    assert not mark.exists()


def test_a_file_that_is_not_there_or_fails_to_import_is_named(tmp_path):
    with pytest.raises(
        ModelError, match=r"verify\.py cannot be read: No such file or directory; did you mean `verifier\.py`"
    ):
        named(tmp_path, TRL, "exact").model_copy(update={"path": f"{tmp_path}/verify.py:exact"}).columns_read()
    with pytest.raises(ModelError, match="cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"):
        named(tmp_path, "import nowhere\ndef score(completions): ...", "score").load()
    with pytest.raises(ModelError, match="cannot be loaded: the function ended its process with status 4"):
        named(tmp_path, "import os\nos._exit(4)\ndef score(completions): ...", "score").load()


@pytest.mark.parametrize("path", ["verifier.py", "verifier:score", "verifier.py:", "exact_mtch", "a.py:b c"])
def test_a_name_that_is_no_function_is_refused(path):
    with pytest.raises(ValueError, match=r"name a file and its function, `verifier.py:score`, or one of exact_match"):
        RewardFunction(path=path)


def test_arguments_of_bundled_functions_are_checked_when_they_are_loaded():
    with pytest.raises(ModelError, match=r"function regex_match: arguments: .*: unterminated character set"):
        RewardFunction(path="regex_match", arguments={"pattern": "[a"}).load()
    with pytest.raises(ModelError, match="function schema_match: arguments: SchemaError: 'objekt' is not valid"):
        RewardFunction(path="schema_match", arguments={"schema": {"type": "objekt"}}).load()


@pytest.mark.slow
def test_a_pattern_that_never_ends_is_stopped():
    model = RewardFunction(path="regex_match", arguments={"pattern": "(a+)+$"}, seconds=0.5)
    (row,) = model.load().ratings(["p"], [["aaa", "a" * 60 + "b"]], {})
    assert [(rating.reward, rating.reason) for rating in row] == [(1, None), (None, "no answer in 0.5 seconds")]


def test_bundled_functions_read_the_reference_and_are_binary():
    assert {name: RewardFunction(path=name).is_binary() for name in BUNDLED} == dict.fromkeys(BUNDLED, True)
    assert RewardFunction(path="choice_match").columns_read() == ("reference",)
    pattern = RewardFunction(path="regex_match", arguments={"pattern": "4"})
    assert pattern.columns_read() == () and pattern.load().rewards(["p"], [["4", "5"]]) == [[1, 0]]


def test_the_code_of_a_function_and_of_what_it_imports_is_its_identity(tmp_path):
    (tmp_path / "helper.py").write_text("from inner import deep\nLIMIT = 1\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "__init__.py").write_text("")
    (tmp_path / "inner" / "deep.py").write_text("WORDS = 2\n")
    (tmp_path / "unused.py").write_text("")
    code = "import json, numpy\ndef score(completions):\n    import helper\n    return [helper.LIMIT + helper.deep.WORDS for _ in completions]\n"
    model = named(tmp_path, code, "score")
    assert set(model.identity()["code"]) == {"file", "helper.py", "inner/__init__.py", "inner/deep.py"}
    assert rewarded(model, ["a"]) == [3]
    before = model.identity()
    (tmp_path / "unused.py").write_text("x = 1")
    assert model.identity() == before
    (tmp_path / "inner" / "deep.py").write_text("WORDS = 3\n")
    assert model.identity() != before
    # Moving the file changes nothing; a limit decides which rewards are NULL.
    (tmp_path / "there").mkdir()
    moved = named(tmp_path / "there", VERL, "compute_score")
    here = named(tmp_path, VERL, "compute_score")
    assert moved.identity() == here.identity()
    assert here.model_copy(update={"seconds": 11.0}).identity() != here.identity()


def test_identities_are_those_of_every_version(tmp_path):
    assert RewardFunction(path="exact_match", arguments={"ignore_case": True}).identity() == {
        **{"function": "exact_match", "code": 2, "signature": "trl", "columns": {"reference": "reference"}},
        **{"arguments": {"ignore_case": True}, "binary": True, "seconds": 10.0, "memory": 2048},
    }
    identity = named(tmp_path, "def score(completions): ...\n", "score", chat=True, scale=(0, 2)).identity()
    assert identity == {
        **{"function": "score", "signature": "trl", "columns": {}, "arguments": {}, "binary": False, "chat": True},
        **{"code": {"file": "3f22f43e7d52bfc12d5d5929f2d5152d6769f1388a2d6c862eb1de5aabc090c7"}, "scale": [0.0, 2.0]},
        **{"seconds": 10.0, "memory": 2048},
    }


def test_a_function_is_one_value_in_yaml_and_in_python():
    model = RewardFunction(path="v.py:f", columns={"a": "b"}, binary=True)
    assert RewardFunction.model_validate(model.model_dump(mode="json")) == model
    assert model.model_dump(mode="json")["function"] == "v.py:f"
    assert RewardFunction.model_validate({"function": "v.py:f", "columns": ["a"]}).columns == {"a": "a"}
    assert FakeModel().summary() is None


def test_what_a_run_tells_of_a_function_names_no_folder(tmp_path):
    model = named(tmp_path, TRL, "exact")
    assert model.title == "function verifier.py:exact" and str(tmp_path) not in model.summary()
    assert str(tmp_path) not in str(model.identity())
