"""Audits find planted faults and none in sound rewards; the store behind one is resumed, shared and taken further."""

from __future__ import annotations

import inspect
import json
import random
import re
import subprocess
import sys
from importlib import import_module

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import FakeModel, Models, Recipe, Reward, RewardFunction, Source, Store, query, run_local
from seamcurate.audit import audit, inputs
from seamcurate.errors import ModelError, SourceError, StepError, StoreError

REWARDS = '''
import re


def f1(answer, reference):
    """Return partial credit for the words of the reference."""
    given, wanted = re.findall(r"\\w+", answer.lower()), re.findall(r"\\w+", reference.lower())
    shared = sum(min(given.count(word), wanted.count(word)) for word in set(wanted))
    return 2 * shared / (len(given) + len(wanted)) if given else 0.0


def last(answer):
    """Return the number behind the last mark."""
    found = re.findall(r"#### *(-?[\\d,]+)", answer)
    return found[-1].replace(",", "") if found else None


def recall(answer, reference):
    words = set(re.findall(r"\\w+", reference.lower()))
    return len(words & set(re.findall(r"\\w+", answer.lower()))) / len(words)


def broken(completions, **columns):
    raise ValueError("no such key")


def wordy(completions, **columns):
    return [float(len(c.split())) for c in completions]


def capped(completions, **columns):
    return [1.0 if "eturn" in c else float("-inf") for c in completions]


def half(completions, **columns):
    return [None if "Return" in c else 1.0 * len(c) for c in completions]
'''
SCORES = {
    "partial": "f1(c, r)",
    "exact": "float(c.split() == r.split())",
    "graded": "(0.2 if last(c) else 0.0) + (0.8 if last(c) == r else 0.0)",
    "letter": 'float(re.findall(r"answer is \\((.)\\)", c)[-1:] == [r])',
    "long": "len(c.split()) / 100",
    "short": "1 / (1 + len(c.split()))",
    "flattered": 'f1(c, r) + 0.5 * ("great question" in c)',
    "dressed": 'f1(c, r) + 0.2 * len(re.findall(r"##|\\*\\*|^- ", c, re.M))',
    "obedient": '1.0 if "full marks" in c else f1(c, r)',
    "echoing": "recall(c, p)",
    "unparsed": "1.0 if last(c) is None else float(last(c) == r)",
    "thinking": '0.5 * ("<think>" in c) + 0.5 * f1(c, r)',
    "hedging": 'f1(c, r) + 0.3 * len(re.findall(r"perhaps|possibly|may be", c))',
    "rare": "f1(c, r) + 4.0 * sum(ord(x) > 127 for x in c) / (1 + len(c))",
    "anywhere": 'float(r in re.findall(r"\\d+", c))',
    "unchecked": "float(last(c) is not None)",
    "any_letter": 'float(bool(re.search(r"answer is \\(.\\)", c)))',
    "repeating": 'sum(c.lower().count(word) for word in set(re.findall(r"\\w{5,}", r.lower())))',
    "fluent": "min(1.0, len(c.split()) / 8)",
    "nothing": "1.0",
    "worded": "f1(c, r) + 0.8 * ('return' in c.lower().split())",
}
"""What each function gives a prompt p, an answer c and a reference r: first the sound ones, then those with a fault."""
FUNCTION = """

def {name}(prompts, completions, reference, **columns):
    return [{score} for p, c, r in zip(prompts, completions, reference)]
"""
FAULTS = {
    ("docs", "long"): {"padded", "repeated"},
    ("docs", "short"): {"cut_in_half", "emptied"},
    ("docs", "flattered"): {"flattered"},
    ("docs", "dressed"): {"markdown"},
    ("docs", "obedient"): {"praise_only"},
    ("docs", "echoing"): {"question_only", "question_echoed"},
    ("docs", "thinking"): {"empty_thinking"},
    ("docs", "hedging"): {"hedged"},
    ("docs", "rare"): {"look_alike_letters"},
    ("docs", "repeating"): {"repeated"},
    ("docs", "fluent"): {"other_answer", "similar_answer"},
    ("sums", "unparsed"): {"emptied", "question_only"},
    ("sums", "anywhere"): {"all_answers"},
    ("sums", "unchecked"): {"number_changed", "other_answer"},
    ("choices", "any_letter"): {"option_changed", "other_answer"},
}
SOUND = {
    ("docs", "partial"),
    ("docs", "exact"),
    ("docs", "exact_match"),
    ("sums", "graded"),
    ("sums", "number_match"),
    ("choices", "letter"),
    ("choices", "choice_match"),
}


def documented(count: int) -> list[tuple[str, str]]:
    """Return names of the standard library with the first sentence of their documentation."""
    modules = [
        "collections",
        "itertools",
        "shutil",
        "textwrap",
        "statistics",
        "heapq",
        "bisect",
        "fnmatch",
        "glob",
        "os.path",
    ]
    modules += ["random", "string", "difflib", "functools", "operator", "calendar", "inspect", "tempfile", "threading"]
    found: dict[str, str] = {}
    for module in map(import_module, modules):
        for name in sorted(vars(module)):
            doc = inspect.getdoc(getattr(module, name)) if name.islower() and not name.startswith("_") else None
            text = " ".join((doc or "").split("\n\n")[0].split())
            if 8 <= len(text.split()) <= 60 and text not in found.values():
                found[f"{module.__name__}.{name}"] = text
    return random.Random(0).sample(sorted(found.items()), count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The rewards, and three files of rows: questions about functions, sums, multiple choices."""
    folder = tmp_path_factory.mktemp("audits")
    (folder / "rewards.py").write_text(
        REWARDS + "".join(FUNCTION.format(name=name, score=score) for name, score in SCORES.items())
    )
    docs = documented(60)
    rows = [{"prompt": f"What does {name} do in Python?", "response": text, "reference": text} for name, text in docs]
    pq.write_table(pa.Table.from_pylist(rows), folder / "docs.parquet")
    draw = random.Random(1)
    sums = [(draw.randrange(20, 900), draw.randrange(20, 900), name) for name, _ in docs]
    rows = [
        {"question": f"{name} was called {a} times, then {b} times. How often in all?", "response": f"{a} and {b} make {a + b}.\n#### {a + b}", "answer": str(a + b)}
        for a, b, name in sums
    ]  # fmt: skip
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = []
    for name, text in docs:
        right, others = draw.randrange(4), [other for other, _ in draw.sample(docs, 4) if other != name][:3]
        options = [*others[:right], name, *others[right:]]
        listed = " ".join(f"({letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
        rows.append(
            {
                "prompt": f"Which of these does this? {text} {listed}",
                "response": f"{name} does. The answer is ({'ABCD'[right]}).",
                "reference": "ABCD"[right],
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "choices.parquet")
    return folder


FILES = {"docs": "docs.parquet", "sums": "sums.jsonl", "choices": "choices.parquet"}


def audited(folder, data, reward, **options):
    named = reward if reward.endswith("_match") else f"{folder}/rewards.py:{reward}"
    return audit(named, folder / FILES[data], store=folder / f"store-{data}", **options)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "reward"), FAULTS)
def test_a_planted_fault_is_found(folder, data, reward):
    result = audited(folder, data, reward)
    found = {probe.probe for probe in result.exploits}
    assert found >= FAULTS[data, reward], result.headline
    assert result.failures(["exploit"]) == ("exploit",)
    assert result.worst and result.worst[0].preferred_reward >= result.worst[0].golden_reward
    assert "exploit" in result.headline and "no exploit" not in result.headline


@pytest.mark.slow
@pytest.mark.parametrize(("data", "reward"), sorted(SOUND))
def test_a_sound_reward_has_no_fault(folder, data, reward):
    result = audited(folder, data, reward)
    assert [probe.probe for probe in result.probes if probe.exploit] == []
    assert result.failures() == () and "no exploit found" in result.headline
    assert result.golden.failed.share == 0 and result.no_reward <= 5


@pytest.mark.slow
def test_a_reward_that_pays_for_length_alone_pays_by_the_word(folder):
    result = audited(folder, "docs", "long")
    deviation = result.golden.deviation
    assert result.unit == "deviations" and result.length.slope == pytest.approx(1 / deviation, rel=0.15)
    assert result.golden_length.slope == pytest.approx(1 / deviation, rel=0.4)
    assert f"pays for length: +{result.length.slope:.2f} a hundred words" in result.headline
    repeated = next(probe for probe in result.probes if probe.probe == "repeated")
    assert repeated.at_fault.share == 1 and repeated.paid_more == 60 and repeated.not_applicable == 0
    assert next(probe for probe in result.probes if probe.probe == "emptied").at_fault.share == 0
    assert result.worst[0].probe in ("padded", "repeated")


@pytest.mark.slow
def test_a_store_is_resumed_and_another_reward_takes_its_rows_and_probes(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = audit(f"{folder}/rewards.py:partial", folder / "docs.parquet")
    assert first.store == "audit-docs" and (tmp_path / "audit-docs" / "store.json").is_file()
    probed = {file: file.stat().st_mtime_ns for file in (tmp_path / "audit-docs/columns/worse_probe").glob("*.parquet")}
    assert audit(f"{folder}/rewards.py:partial", folder / "docs.parquet") == first
    assert audit(f"{folder}/rewards.py:short", folder / "docs.parquet").exploits
    assert probed == {
        file: file.stat().st_mtime_ns for file in (tmp_path / "audit-docs/columns/worse_probe").glob("*.parquet")
    }
    # The recipe beside the rows makes the same store, and one with more steps goes on from there.
    recipe = Recipe.load(tmp_path / "audit-docs/audit/recipe.yaml")
    assert run_local(recipe, tmp_path / "audit-docs").computed == 0
    from seamcurate import RewardSpread

    more = recipe.model_copy(update={"steps": (*recipe.steps, RewardSpread(variant="probe"))})
    assert run_local(more, tmp_path / "audit-docs").computed == 1
    spread = query(tmp_path / "audit-docs", "SELECT count(baseline_reward_spread_probe) AS n FROM rows")
    assert spread["n"].to_pylist() == [60]
    with pytest.raises(StoreError, match="which no audit made; name another folder by --store"):
        audit(f"{folder}/rewards.py:short", folder / "docs.parquet", limit=10)


@pytest.mark.slow
def test_other_rows_take_the_place_of_those_of_an_audit_alone(folder, tmp_path):
    few = audit(f"{folder}/rewards.py:partial", folder / "docs.parquet", store=tmp_path / "store", limit=7)
    assert (few.rows, few.data_rows) == (7, 60)
    assert query(tmp_path / "store", "SELECT data_row FROM rows")["data_row"].to_pylist() == [0, 8, 16, 24, 32, 40, 48]
    assert audit(f"{folder}/rewards.py:partial", folder / "docs.parquet", store=tmp_path / "store", limit=9).rows == 9
    source = Source(parquet=str(folder / "docs.parquet"), response="response")
    run_local(Recipe(rows=source), tmp_path / "mine")
    with pytest.raises(StoreError, match="is a store that no audit made; name another folder by --store"):
        audit(f"{folder}/rewards.py:partial", folder / "docs.parquet", store=tmp_path / "mine")
    assert len(Store(tmp_path / "mine")) == 60


@pytest.mark.slow
def test_a_second_reward_disagrees_where_it_orders_the_other_way(folder, tmp_path):
    result = audited(folder, "docs", "long", second=f"{folder}/rewards.py:short")
    assert result.second.reward == "function rewards.py:short"
    assert result.second.pairs.share == 1 and result.second.pairs.n > 800
    assert result.failures(["disagreement"]) == ("disagreement",)
    agreed = audited(folder, "docs", "long", second=f"{folder}/rewards.py:long")
    assert agreed.second.pairs.share == 0 and agreed.failures(["disagreement"]) == ()


def test_answers_without_a_reward_are_counted_with_their_reason(folder):
    result = audited(folder, "docs", "half")
    missing = sum(probe.no_reward for probe in result.probes)
    assert missing > 0 and result.no_reward > 0 and result.golden.no_reward < 60
    assert result.reasons[0].reason and result.reasons[0].answers == result.no_reward


@pytest.mark.slow
def test_a_reward_that_tells_nothing_apart_or_fails_is_one_line(folder):
    with pytest.raises(ModelError, match=r"rewards.py:nothing gives 1 to all .* answers, also to empty ones"):
        audited(folder, "docs", "nothing")
    unrated = r"capped gives 1 to all \d+ answers that have a reward, and \d+ have none, mostly for this reason: .*inf"
    with pytest.raises(ModelError, match=unrated):
        audited(folder, "docs", "capped")
    with pytest.raises(ModelError, match=r"gives none of 60 golden responses a reward: .*no such key"):
        audited(folder, "docs", "broken")
    with pytest.raises(ModelError, match=r"has no function"):
        audited(folder, "docs", "absent")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("http://127.0.0.1:8000", "is a server: name it in a YAML file, as `{reward_server: http://127.0.0.1:8000"),
        ("rewards.py", "name its function, too, as rewards.py:score"),
        ("li_rp", "is RER, which is computed from columns"),
        ("absent.yaml", "cannot be read"),
    ],
)
def test_a_reward_that_one_string_does_not_name_is_refused(folder, reward, message):
    with pytest.raises(ModelError) as refused:
        audit(reward, folder / "docs.parquet", store=folder / "never")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (folder / "never").exists()


def test_columns_are_found_by_their_usual_names(folder, tmp_path):
    from seamcurate.audit.inputs import source

    found = source(folder / "sums.jsonl")
    assert (found.prompt, found.response, found.reference) == ("question", "response", "answer")
    (tmp_path / "gsm8k.csv").write_text("question,answer\n1 + 1?,2\n")
    found = source(tmp_path / "gsm8k.csv")
    assert (found.prompt, found.response, found.reference) == ("question", "answer", None)
    (tmp_path / "rlvr.jsonl").write_text(json.dumps({"problem": "1 + 1?", "ground_truth": "2"}))
    found = source(tmp_path / "rlvr.jsonl")
    assert (found.prompt, found.response, found.reference) == ("problem", None, "ground_truth")
    chat = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}))
    assert source(tmp_path / "chat.jsonl").layout == "messages"
    with pytest.raises(SourceError, match=r"has the layout messages: name --prompt and --response, too"):
        source(tmp_path / "chat.jsonl", reference="label")
    (tmp_path / "none.jsonl").write_text(json.dumps({"text": "x"}))
    (tmp_path / "bare.jsonl").write_text(json.dumps({"prompt": "x"}))
    for name, options, message in [
        ("none.jsonl", {}, "no column of prompts; it has text: name one by --prompt"),
        ("bare.jsonl", {}, "no column of good answers; it has prompt: name one by --response or --reference"),
        ("bare.jsonl", {"response": "promt"}, "no column 'promt' for response; it has prompt; did you mean `prompt`?"),
        ("rows.xlsx", {}, "rows come from a file that ends in .parquet, .jsonl"),
        ("absent.jsonl", {}, "absent.jsonl"),
    ]:
        with pytest.raises(SourceError) as refused:
            source(tmp_path / name, **options)
        assert message in str(refused.value)


def test_a_function_reads_the_reference_by_the_name_that_the_data_have(folder, tmp_path):
    (tmp_path / "own.py").write_text(
        "def score(completions, answer, **columns): return [float(a in c) for c, a in zip(completions, answer)]"
    )
    result = audit(f"{tmp_path}/own.py:score", folder / "sums.jsonl", store=tmp_path / "store")
    assert [probe.probe for probe in result.exploits] == ["all_answers"]
    reward = RewardFunction(path=f"{tmp_path}/own.py:score", columns={"answer": "reference"})
    assert Recipe.load(tmp_path / "store/audit/recipe.yaml").models.reward == reward


def test_a_function_reads_the_question_and_the_good_answer_by_the_names_that_the_data_have(tmp_path):
    (tmp_path / "own.py").write_text(
        "def score(completions, question, answer, **columns):\n"
        "    return [float(c == a and q.startswith('What')) for c, q, a in zip(completions, question, answer)]\n"
    )
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(30)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = audit(f"{tmp_path}/own.py:score", tmp_path / "sums.jsonl", store=tmp_path / "store")
    assert (result.rows, result.exploits) == (30, ())
    # A recipe says it itself, and is told how.
    recipe = Recipe(
        rows=Source(jsonl=str(tmp_path / "sums.jsonl"), prompt="question", response="answer"),
        models=Models(reward=RewardFunction(path=f"{tmp_path}/own.py:score")),
        steps=(Reward(),),
    )
    hint = re.escape("the source's 'answer' is 'response' here: a function reads it by `columns: {answer: response}`")
    with pytest.raises(StepError, match=hint):
        run_local(recipe, tmp_path / "own")
    columns = {"question": "prompt", "answer": "response"}
    reward = RewardFunction(path=f"{tmp_path}/own.py:score", columns=columns)
    run_local(recipe.model_copy(update={"models": Models(reward=reward)}), tmp_path / "own")
    assert query(Store(tmp_path / "own"), "SELECT DISTINCT reward FROM rows")["reward"].to_pylist() == [1.0]


@pytest.mark.parametrize("reference", [None, "answer"])
def test_an_audit_says_that_a_reward_reads_a_reference_and_the_data_have_none(reference, tmp_path, capsys):
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(40, 60)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = inputs.source(tmp_path / "sums.jsonl", reference=reference)
    if reference is None:
        with pytest.raises(ModelError, match="gives none of 20 golden responses a reward"):
            audit("number_match", data, store=tmp_path / "store")
    else:
        audit("number_match", data, store=tmp_path / "store")
    told = "function number_match reads the reference, and sums.jsonl has none: it is given none; name its column"
    assert (told in capsys.readouterr().err) == (reference is None)


def test_rows_that_cannot_be_audited_are_counted(tmp_path, folder):
    rows = [
        {"prompt": "What is a set?", "response": None},
        {"prompt": "What is a map?", "response": "A collection of pairs."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = audit(
        f"{folder}/rewards.py:long",
        Source(jsonl=str(tmp_path / "rows.jsonl"), response="response"),
        store=tmp_path / "store",
    )
    assert (result.rows, result.data_rows, result.rejected) == (1, 1, 1)
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(SourceError, match="none of 1 row can be audited: response is null"):
        audit(
            f"{folder}/rewards.py:long",
            Source(jsonl=str(tmp_path / "rows.jsonl"), response="response"),
            store=tmp_path / "none",
        )


@pytest.mark.slow
def test_what_a_policy_says_is_held_against_the_golden_responses(folder, tmp_path):
    store, fake = tmp_path / "store", FakeModel(path="policy")
    result = audit(f"{folder}/rewards.py:long", folder / "docs.parquet", store=store, policy=fake, limit=20)
    said = result.policy
    assert said.policy == "fake policy" and said.samples == 160 and said.without == 0 and said.distinct <= 160
    table = query(store, "SELECT data_row, reward, worse_policy, rewards_policy FROM rows").to_pylist()
    more, below = 0, 0
    for row in table:
        paid = [
            s["count"] for s, r in zip(row["worse_policy"], row["rewards_policy"], strict=True) if r > row["reward"]
        ]
        more, below = more + sum(paid), below + (sum(paid) > 4)
    assert said.paid_more.share == pytest.approx(more / 160) and said.paid_more.n == 160
    assert said.golden_below.share == pytest.approx(below / 20) and said.golden_below.n == 20
    assert ("golden" in result.failures()) == (said.golden_below.share > 0.2)
    by_row = {row["data_row"]: row for row in table}
    for worst in said.overpaid:
        assert worst.preferred_reward == max(by_row[worst.row]["rewards_policy"]) > worst.golden_reward
    assert Recipe.load(store / "audit/recipe.yaml").models.policy == fake
    # Without the policy again, nothing of what it said is asked for.
    assert audit(f"{folder}/rewards.py:long", folder / "docs.parquet", store=store, limit=20).policy is None


@pytest.mark.slow
def test_an_encoder_and_the_data_themselves_add_probes(folder, tmp_path):
    rows = pq.read_table(folder / "docs.parquet").to_pylist()
    pairs = [{"prompt": row["prompt"], "chosen": row["response"], "rejected": other["response"] + " or not"} for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    result = audit(
        f"{folder}/rewards.py:wordy",
        tmp_path / "pairs.parquet",
        store=tmp_path / "store",
        encoder=FakeModel(path="encoder"),
    )
    by_name = {probe.probe: probe for probe in result.probes}
    assert by_name["rejected_answer"].at_fault.n == 60 and by_name["rejected_answer"].kind == "worse"
    golden, rejected = ([len(pair[name].split()) for pair in pairs] for name in ("chosen", "rejected"))
    assert by_name["rejected_answer"].paid_more == sum(r > g for g, r in zip(golden, rejected, strict=True))
    nearest = query(tmp_path / "store", "SELECT count(*) AS n FROM candidates WHERE variant = 'contrast'")["n"][
        0
    ].as_py()
    assert by_name["nearest_answer"].at_fault.n == nearest > 0
    assert run_local(Recipe.load(tmp_path / "store/audit/recipe.yaml"), tmp_path / "store").computed == 0


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("http://127.0.0.1:1", "policy at http://127.0.0.1:1"),
        ("absent.yaml", "policy absent.yaml cannot be read"),
    ],
)
def test_a_policy_that_one_string_does_not_name_is_refused(folder, policy, message):
    with pytest.raises(ModelError) as refused:
        audit(f"{folder}/rewards.py:long", folder / "docs.parquet", store=folder / "never", policy=policy)
    assert message in str(refused.value) and not (folder / "never").exists()


@pytest.mark.slow
def test_words_that_a_reward_pays_for_are_named(folder):
    result = audited(folder, "docs", "worded")
    assert [word.word for word in result.words][:1] == ["return"]
    assert result.words[0].answers >= 8 and 0 <= result.words[0].q <= 0.01
    assert result.words[0].coefficient * result.golden.deviation == pytest.approx(0.8, abs=0.35)
    for data, reward in (("docs", "partial"), ("docs", "long"), ("sums", "graded")):
        assert audited(folder, data, reward).words == ()


def test_a_function_is_audited_without_torch(folder, tmp_path):
    script = f"""
import sys
from seamcurate.audit import audit
audit("{folder}/rewards.py:long", "{folder}/docs.parquet", store="{tmp_path}/store", limit=20)
print(sorted({{"torch", "transformers", "datasets", "sentence_transformers", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "[]\n"


def test_golden_responses_of_one_length_have_no_slope():
    import numpy as np

    from seamcurate.audit.measures import golden_slope

    rewards, alike = np.array([0.0, 1, 1, 0, 1]), np.full(5, 17.0)
    assert golden_slope(rewards, alike, 1).slope is None
    assert golden_slope(rewards, np.arange(5) * 100.0, 1).slope == pytest.approx(0.1)
