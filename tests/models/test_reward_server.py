"""Rewards of servers: what is sent, what is read, and what is refused; the servers are the tests' own."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions
from endpoint import body, hang_up, status
from reward_wire import reward_serving

from seamcurate import Models, Recipe, Reward, RewardServer, SequenceClassifier, Source, Store, query, run_local
from seamcurate.errors import ModelError

APIS = ("vllm", "sglang", "openrlhf")
PROMPTS = [row["prompt"] for row in questions(6)] + [[{"role": "user", "content": "sort a list"}]]
ANSWERS = [[row["response"], "no", ""] for row in questions(6)] + [["use sort"] * 2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("seamcurate.models.scoring_client.random.uniform", lambda low, high: 0.02)


@pytest.fixture
def at(decoder_reward_folder):
    with reward_serving("vllm", decoder_reward_folder) as endpoint:
        yield endpoint


def server(at, folder, api="vllm", **settings):
    texts = {} if "same_as" in settings else {"same_as": SequenceClassifier(path=str(folder))}
    return RewardServer(**{"path": at.url, "api": api, "model": "rm", "timeout": 30, "retries": 2, **texts, **settings})


def flat(rows):
    return [value for row in rows for value in row]


@pytest.mark.parametrize("api", APIS)
def test_served_rewards_are_those_of_the_local_classifier(decoder_reward_folder, api):
    with reward_serving(api, decoder_reward_folder) as at:
        asked = server(at, decoder_reward_folder, api)
        rewards = asked.load().rewards(PROMPTS, ANSWERS)
    local = asked.local().load().rewards(PROMPTS, ANSWERS)
    assert [len(row) for row in rewards] == [len(row) for row in local]
    assert flat(rewards) == pytest.approx(flat(local), abs=1e-4)
    # A prompt's answers are one request, and equal ones are sent once.
    assert len(at.requests) == (3 if api == "sglang" else 1) + 7 - (api == "sglang")


def test_an_encoders_pair_and_a_cut_answer_are_sent_as_the_local_classifier_reads_them(encoder_reward_folder):
    with reward_serving("vllm", encoder_reward_folder, window=64) as at:
        settings = {"same_as": SequenceClassifier(path=str(encoder_reward_folder), form="plain", max_tokens=24)}
        asked = server(at, encoder_reward_folder, **settings)
        answers = [["sort the list " * 20, "sort"]]
        rewards = asked.load().rewards(PROMPTS[:1], answers)
    assert flat(rewards) == pytest.approx(flat(asked.local().load().rewards(PROMPTS[:1], answers)), abs=1e-4)
    assert max(map(len, at.requests[-1]["input"])) == 24


def test_each_answer_without_a_reward_has_its_reason(at, decoder_reward_folder):
    model = server(at, decoder_reward_folder).load()
    at.change = lambda value: float("nan") if abs(value - nan) < 1e-9 else value
    nan = flat(server(at, decoder_reward_folder).local().load().rewards([PROMPTS[0]], [["odd"]]))[0]
    at.change = lambda value: None if abs(value - nan) < 1e-5 else value
    ratings = model.ratings([PROMPTS[0], "long " * 500], [["odd", "even"], ["a"]], {})
    assert ratings[0][0][:3] == (None, "the server's reward is nan", ()) and ratings[0][1].reward is not None
    assert ratings[1][0][:3] == (None, "the prompt leaves no room for the answer in 256 tokens", ())


def test_one_text_at_fault_costs_itself_alone(at, decoder_reward_folder):
    model = server(at, decoder_reward_folder).load()
    (ids,) = [text.sent for text in model.sent.group(PROMPTS[0], ["odd"])]

    def refuse(handler, asked):
        return ids in asked["input"] and status(400, "such a text is not read")(handler, asked)

    at.chance = lambda: refuse
    (row,) = model.ratings([PROMPTS[0]], [["even", "odd", "other"]], {})
    assert [rating.reason for rating in row] == [None, "/classify answered 400: such a text is not read", None]


@pytest.mark.parametrize("fault", [status(500), status(503), hang_up, body({"model": "rm", "data": []})])
def test_faults_that_pass_change_nothing(at, decoder_reward_folder, fault):
    asked = server(at, decoder_reward_folder)
    model, local = asked.load(), asked.local().load()
    at.script = [fault] * 2
    assert flat(model.rewards(PROMPTS, ANSWERS)) == pytest.approx(flat(local.rewards(PROMPTS, ANSWERS)), abs=1e-4)


DATA = [{"index": 0, "probs": [1.0]}]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (body({"model": "other", "data": DATA}), "other answered; was the server started anew?"),
        (body({"model": "rm", "data": [{"index": 0, "probs": [1.0, 2.0]}]}), "it gives 2 numbers a text, and the model has 1 outputs"),
        (status(404, "The model `rm` does not exist."), "/classify answered 404: The model `rm` does not exist."),
        (body({"model": "rm", "data": DATA * 2}), "/classify answered with indices that do not count its data"),
        (body({"model": "rm", "data": [{"index": 1, "probs": [1.0]}]}), "/classify answered with indices that do not count"),
        (body({"model": "rm", "data": [{"index": 0, "probs": ["1"]}]}), "/classify answered with a reward that is no number"),
        (body({"model": "rm", "rewards": [1.0]}), "/classify answered with no data"),
    ],
)  # fmt: skip
def test_what_is_no_reward_of_the_model_is_refused_in_one_line(at, decoder_reward_folder, fault, message):
    at.chance = lambda: fault
    with pytest.raises(ModelError) as refused:
        server(at, decoder_reward_folder).load()
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"reward_server rm at {at.url}: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "http://127.0.0.1:9"}, "reward_server rm at http://127.0.0.1:9: no answer: .*check the address"),
        ({"model": "mine"}, "it serves rm, not mine; name that by `model`"),
        ({"api": "sglang"}, "/v1/embeddings answered 404: Not Found; .*start SGLang with `--is-embedding`"),
        ({"api": "openrlhf"}, "/get_reward answered 404: Not Found; .*start it by `python -m openrlhf"),
    ],
)
def test_a_server_that_is_another_is_refused_before_anything_is_scored(at, decoder_reward_folder, settings, message):
    with pytest.raises(ModelError, match=message):
        server(at, decoder_reward_folder, **settings).load()


def test_a_server_of_another_api_is_refused_by_the_look_at_it(decoder_reward_folder):
    with (
        reward_serving("openrlhf", decoder_reward_folder) as at,
        pytest.raises(ModelError, match=r"it lists no models under /v1/models, .* check the address and `api`"),
    ):
        server(at, decoder_reward_folder).check_server()


def test_a_window_shorter_than_the_texts_is_refused(decoder_reward_folder):
    with reward_serving("vllm", decoder_reward_folder, window=100) as at:
        with pytest.raises(ModelError, match="reads 100 tokens, and texts may have 256; set `max_tokens: 100`"):
            server(at, decoder_reward_folder).load()
        reward = SequenceClassifier(path=str(decoder_reward_folder), max_tokens=100)
        assert server(at, decoder_reward_folder, same_as=reward).load().rewards(["a"], [["b"]])[0][0] is not None


def test_openrlhf_is_sent_no_text_that_gives_other_tokens(decoder_reward_folder):
    with reward_serving("openrlhf", decoder_reward_folder) as at:
        model = server(at, decoder_reward_folder, "openrlhf").load()
        ((spelled, plain),) = model.ratings(["sort"], [["<|im_end|>", "list"]], {})
    assert spelled.reason == "no text gives the tokens that the model should read, and this server takes text alone"
    assert plain.reward is not None


def test_the_fingerprint_has_what_decides_a_reward_and_no_address(at, decoder_reward_folder, monkeypatch):
    monkeypatch.setenv("RM_KEY", "sk-canary")
    first = server(at, decoder_reward_folder)
    moved = server(at, decoder_reward_folder, path="http://127.0.0.1:1", concurrency=2, api_key="RM_KEY", model="x")
    assert first.identity() == moved.identity()
    kinds = [
        first,
        server(at, decoder_reward_folder, api="sglang"),
        server(at, decoder_reward_folder, same_as=SequenceClassifier(path=str(decoder_reward_folder), form="plain")),
        server(at, decoder_reward_folder, same_as="itself", tokenizer=str(decoder_reward_folder)),
        server(at, decoder_reward_folder, same_as="itself", tokenizer=str(decoder_reward_folder), max_tokens=9),
        server(at, decoder_reward_folder, same_as="itself", tokenizer=str(decoder_reward_folder), model="x"),
    ]
    assert len({json.dumps(kind.identity(), sort_keys=True) for kind in kinds}) == len(kinds)
    assert first.count_tokens(["sort the list"]) == first.local().count_tokens(["sort the list"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api": "verl"}, "verl's reward loop has no API of its own, it asks vLLM or SGLang"),
        ({"path": "http://me:secret@host"}, "the server's address is http"),
        ({"form": "plain"}, "form: the tokens are those of `same_as`; set it there"),
        ({"same_as": None, "tokenizer": "t"}, "tokenizer: is for `same_as: itself`"),
        ({"same_as": None, "pair": True, "form": "chat"}, "pair: true gives prompt and answer as two segments"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(at, decoder_reward_folder, settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        server(at, decoder_reward_folder, **settings)
    assert "secret" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("api", APIS)
def test_a_run_compares_first_and_goes_on_after_the_server_went_away(decoder_reward_folder, tmp_path, api):
    pq.write_table(pa.Table.from_pylist(questions(16)), tmp_path / "rows.parquet")
    source = Source(parquet=str(tmp_path / "rows.parquet"), shard_rows=4)
    with reward_serving(api, decoder_reward_folder) as at:
        reward = server(at, decoder_reward_folder, api, retries=0, concurrency=1)
        recipe = Recipe(rows=source, models=Models(reward=reward), steps=(Reward(),))
        shards = tmp_path / "store" / "columns" / "reward"
        at.chance = lambda: status(503) if [*shards.glob("00001.parquet")] else None
        with pytest.raises(ModelError, match="reward_server rm gives no score for a text that had"):
            run_local(recipe, tmp_path / "store")
        kept = {file: file.stat().st_mtime_ns for file in shards.glob("0*.parquet")}
        at.chance = lambda: None
        report = run_local(recipe, tmp_path / "store")
    assert 2 <= len(kept) < 4 and kept == {file: file.stat().st_mtime_ns for file in kept}
    assert any("reward_server rm gives the same scores as sequence_classifier" in line for line in report.lines), report
    texts = [row["prompt"] for row in questions(16)], [[row["response"]] for row in questions(16)]
    expected = reward.local().load().rewards(*texts)
    rows = query(Store(tmp_path / "store"), "SELECT reward, reward_reason FROM rows ORDER BY row_id").to_pylist()
    assert [row["reward"] for row in rows] == pytest.approx(flat(expected), abs=1e-4)
    assert {row["reward_reason"] for row in rows} == {None}
