"""A served model is compared before it scores: with the same weights here, or with itself."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions
from reward_wire import reward_serving
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from seamcurate import (
    Attack,
    CausalLM,
    FakeModel,
    ModelReward,
    RewardEnsemble,
    RewardServer,
    SentenceEncoder,
    SequenceClassifier,
)
from seamcurate.errors import ModelError
from seamcurate.models import suspects
from seamcurate.models.backend import RewardConfig
from seamcurate.models.served import Served
from seamcurate.score import compared, noise


class Rows:
    def rows(self, columns):
        yield pa.Table.from_pylist(questions(20)).select(list(columns))


class Behind(Served):
    """A local model as if it were served: `local_kind` by the class of `weights`, `errs` changes the model that answers."""

    key = "behind"
    local_kind = SequenceClassifier

    def load(self):
        raise NotImplementedError

    def identity(self):
        return self.weights_identity()

    def count_tokens(self, texts):
        return 0


@pytest.fixture
def shared(tmp_path):
    compared.sample(Behind(model="m"), Rows(), tmp_path, "response")
    return tmp_path


def checked(shared, local, served, score=noise.rewards, same_as=None, **settings):
    """Check a model that answers as `served` against `local`; return the facts."""
    model = Behind.model_construct(model="m", same_as=same_as or local, **{"accept_difference": False, **settings})
    compared.check(model, served, shared, score)
    return compared.facts(shared)["compared"]


class Other:
    """A loaded reward model whose numbers are changed."""

    def __init__(self, model, change):
        self.model, self.change, self.calls = model, change, 0

    def ratings(self, prompts, responses, columns):
        self.calls += 1
        rated = self.model.ratings(prompts, responses, columns)
        return [[rating._replace(reward=self.change(rating.reward)) for rating in row] for row in rated]


@pytest.fixture(scope="module")
def reward(decoder_reward_folder):
    return SequenceClassifier(path=str(decoder_reward_folder), dtype="float32")


def with_bos(folder, copy):
    """Copy a model, with a tokenizer that begins texts by its end token, as GPT-2's does."""
    shutil.copytree(folder, copy)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token
    tokenizer.bos_token = end
    begin = TemplateProcessing(single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.save_pretrained(copy)
    return str(copy)


@pytest.fixture(scope="module")
def policy(policy_folder, tmp_path_factory):
    return CausalLM(path=with_bos(policy_folder, tmp_path_factory.mktemp("bos") / "policy"), dtype="float32")


def test_the_same_weights_are_the_same_and_are_compared_once(shared, reward):
    found = checked(shared, reward, Other(reward.load(), lambda x: x + 1e-6))
    assert found["decision"] == "same" and found["texts"] == 16 and 0 < found["differences"][0] < 1e-5
    assert found["line"].startswith("behind m gives the same scores as sequence_classifier")
    # A resumed run asks for one text alone.
    again = Other(reward.load(), lambda x: x)
    assert checked(shared, reward, again) == found and again.calls == 1


def test_each_served_member_of_an_ensemble_is_compared(tmp_path, reward):
    class Member(Behind, RewardConfig):
        gives: float = 0.0

        def load(self):
            return Other(reward.load(), lambda x: x + self.gives)

    def member(name, gives):
        return Member.model_construct(model=name, same_as=reward, accept_difference=False, gives=gives)

    right, wrong = (
        RewardEnsemble.model_construct(ensemble=(reward, member("a", 0.0), member("b", gives))) for gives in (1e-7, 0.5)
    )
    compared.sample(right, Rows(), tmp_path, "response")
    with pytest.raises(ModelError, match=r"^behind b gives other scores than .*repair the server"):
        compared.check(wrong, wrong.load(), tmp_path, noise.rewards)
    assert compared.facts(tmp_path)["compared"]["line"].startswith("behind a gives the same scores")
    loaded = right.load()
    unchanged = compared.check(right, loaded, tmp_path, noise.rewards)
    assert [found["line"][:8] for found in compared.facts(tmp_path)["compared"]] == ["behind a", "behind b"]
    next(model for config, model in loaded.loaded() if config.title == "behind b").change = lambda x: x - 1
    with pytest.raises(ModelError, match="behind b gives other scores than before"):
        unchanged()


def test_a_server_started_anew_with_other_weights_is_refused_in_the_middle(shared, reward):
    model = Behind.model_construct(model="m", same_as=reward, accept_difference=False)
    served = Other(reward.load(), lambda x: x)
    unchanged = compared.check(model, served, shared, noise.rewards)
    unchanged()
    served.change = lambda x: x + 0.1
    with pytest.raises(ModelError, match=r"behind m gives other scores than before: .* it was started anew"):
        unchanged()
    served.change = lambda x: None
    with pytest.raises(ModelError, match=r"gives no score for a text that had .*: it fails, or was started anew"):
        compared.check(model, served, shared, noise.rewards)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: 1 / (1 + 2.718281828459045**-x), "likely cause: the server applies a sigmoid"),
        (lambda x: 2 * x + 1, "likely cause: the server's scores are 2 times those here plus 1"),
        (lambda x: x + hash(round(1000 * x)) % 7, "none of the known causes explains it"),
    ],
)
def test_other_numbers_are_refused_with_the_likely_cause(shared, reward, change, cause):
    with pytest.raises(ModelError, match=cause) as refused:
        checked(shared, reward, Other(reward.load(), change))
    assert "accept the difference by `accept_difference: " in str(refused.value) and "\n" not in str(refused.value)
    assert compared.facts(shared) == {}


def test_a_difference_that_the_recipe_accepts_is_kept_with_its_cause(shared, reward):
    found = checked(shared, reward, Other(reward.load(), lambda x: x + 1), accept_difference=1.5)
    assert found["decision"] == "accepted" and found["differences"][0] == pytest.approx(1)
    assert "which the recipe accepts" in found["line"]


def test_each_suspect_of_a_reward_model_is_found(shared, decoder_reward_folder, tmp_path):
    plain = SequenceClassifier(path=with_bos(decoder_reward_folder, tmp_path / "bos"), form="plain", dtype="float32")
    causes = found_causes(shared, plain, noise.rewards)
    assert [cause.partition(";")[0] for cause in causes] == [
        "the server reads a second BOS",
        "the server reads no BOS",
        "the server reads the score at the answer's last token",
        "the server pools otherwise: the mean over all tokens",
        "the server pools otherwise: the first token",
        "the server's texts have another form: its chat template",
        "the server's texts have another form: `form: bare`",
    ]


def test_each_suspect_of_a_policy_is_found(shared, policy):
    assert len(found_causes(shared, policy, compared.per_token)) == 3


def found_causes(shared, model, score):
    """Serve a model in each of the ways that are suspected, and return what is found."""
    found = []
    for suspect in suspects.suspects(model):
        with pytest.raises(ModelError) as refused:
            checked(shared, model, suspect.load(), score)
        assert f"likely cause: {suspect.cause}" in str(refused.value)
        found.append(suspect.cause)
    return found


def test_another_precision_is_found_and_is_no_difference_where_it_is_named(shared, policy):
    half = policy.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(ModelError, match="likely cause: the server computes in bfloat16; name it by `dtype: bfloat16`"):
        checked(shared, policy, half.load(), compared.per_token)
    found = checked(shared, half, half.load(), compared.per_token)
    assert found["decision"] == "same" and found["floors"][0] > 1e-4


def test_a_server_that_depends_on_what_is_asked_beside_is_refused(shared, reward):
    served = Other(reward.load(), lambda x: x)
    served.change = lambda x: x + served.calls
    with pytest.raises(ModelError, match="its scores change by up to 23 when the same texts are asked one by one"):
        checked(shared, reward, served, same_as="itself")
    served.calls = 0
    with pytest.raises(ModelError, match="change by up to 23"):
        checked(shared, reward, served, same_as="itself", accept_difference=20)
    served.calls = 0
    assert (
        "which the recipe accepts: largest difference 23"
        in checked(shared, reward, served, same_as="itself", accept_difference=24)["line"]
    )


def test_a_server_is_held_against_itself_where_the_weights_are_too_large_for_here(shared, reward):
    found = checked(shared, None, reward.load(), same_as="itself")
    assert found["decision"] == "same" and "gives the same scores as itself, asked otherwise" in found["line"]


def test_scores_of_no_text_are_no_comparison(shared, reward):
    with pytest.raises(ModelError, match=r"could not be compared with sequence_classifier .*: no text has a score"):
        checked(shared, reward, Other(reward.load(), lambda x: None))
    assert checked(shared, reward, Other(reward.load(), lambda x: None), accept_difference=True)["texts"] == 0


def test_embeddings_that_are_not_normalised_or_pooled_otherwise_are_found(shared, encoder_reward_folder):
    encoder = SentenceEncoder(path=str(encoder_reward_folder), dtype="float32", pooling="mean")
    same = checked(shared, encoder, encoder.load(), compared.embeddings)
    assert same["decision"] == "same" and len(same["floors"]) == 5
    for changes, cause in (({"normalise": False}, "does not normalise"), ({"pooling": "cls"}, "`pooling: cls`")):
        (shared / "compared.json").unlink(missing_ok=True)
        with pytest.raises(ModelError, match=cause):
            checked(shared, encoder, encoder.model_copy(update=changes).load(), compared.embeddings)


def test_models_that_are_not_served_are_not_compared(tmp_path, reward):
    compared.sample(reward, Rows(), tmp_path, "response")
    compared.check(reward, None, tmp_path, noise.rewards)()
    assert list(tmp_path.iterdir()) == [] and compared.facts(tmp_path) == {}


def test_weights_that_are_not_here_are_asked_for(reward):
    with pytest.raises(
        ModelError, match=r"behind no/such_model: some rows .* `same_as: \{sequence_classifier: …\}`, or say"
    ):
        Behind(model="no/such_model").local()
    assert Behind(model="m", same_as="itself").local() is None
    assert Behind(model=reward.path).local() == SequenceClassifier(path=reward.path)


def test_the_identity_is_that_of_the_weights_or_of_the_name(reward):
    named = Behind(model=reward.path).identity()
    assert json.dumps(named) and "dtype" not in named["same_as"] and reward.path not in json.dumps(named)
    assert Behind(model="m", same_as="itself").identity() == {"model": "m"}


# ── rewards that no store samples rows for ───────────────────────────────────────────────────────────────


def test_a_trainers_reward_is_compared_on_the_first_texts_that_it_is_asked_for(decoder_reward_folder, capsys):
    with reward_serving("vllm", decoder_reward_folder) as at:
        served = RewardServer(
            path=at.url,
            api="vllm",
            model="rm",
            same_as=SequenceClassifier(path=str(decoder_reward_folder), dtype="float32"),
        )
        prompts, answers = (
            list(column) for column in zip(*((q["prompt"], q["response"]) for q in questions(6)), strict=True)
        )
        reward = ModelReward(reward=served).load()
        first = reward(prompts, answers)
        assert "reward_server rm gives the same scores as sequence_classifier" in capsys.readouterr().err
        asked = len(at.requests)
        assert reward(prompts, answers) == pytest.approx(first) and capsys.readouterr().err == ""
        # One request for each prompt, and one text again.
        assert len(at.requests) == asked + 6 + 1
        at.change = lambda value: value + 1
        with pytest.raises(ModelError, match="other scores than before"):
            reward(prompts, answers)
        with pytest.raises(ModelError, match="gives other scores than sequence_classifier"):
            ModelReward(reward=served).load()(prompts, answers)


def test_an_attack_compares_the_served_reward_model_first(decoder_reward_folder, tmp_path):
    (tmp_path / "shared").mkdir()
    table = pa.table({"word": ["quick"], "pos": ["a"], "synonym": ["fast"]})
    pq.write_table(table, tmp_path / "synonyms.parquet")
    rows = pa.table({"prompt": ["What is a hare?"], "response": ["A quick animal."]})
    with reward_serving("vllm", decoder_reward_folder) as at:
        weights = SequenceClassifier(path=str(decoder_reward_folder), dtype="float32")
        served = RewardServer(path=at.url, api="vllm", model="rm", same_as=weights)
        step = Attack(method="pwws", wordnet=str(tmp_path / "synonyms.parquet"), reward=served, encoder=FakeModel())
        step.prepare(Rows(), tmp_path / "shared")
        at.change = lambda value: value + 1
        with pytest.raises(ModelError, match="gives other scores than sequence_classifier"):
            step.load(tmp_path / "shared")
        at.change = lambda value: value
        added = step.load(tmp_path / "shared")(rows)
    facts = step.facts([added], tmp_path / "shared")
    assert facts["compared"]["decision"] == "same"
    assert facts["summary"].startswith("worse_adv: ") and "; reward_server rm gives the same scores" in facts["summary"]
