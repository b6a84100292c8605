"""Adapter folders, as PEFT writes them: scored as the merged model is, with the base in the identity, or refused."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from seamcurate import CausalLM, SentenceEncoder, SequenceClassifier
from seamcurate.errors import ModelError
from seamcurate.models import checkpoint, weights
from seamcurate.models.masked import MaskedModel

peft = pytest.importorskip("peft", reason="adapters are merged by peft")

PROMPTS = ["how do I sort the list", "open a file"]
RESPONSES = [["use sort on list", "no"], ["open it"]]


def flat(groups):
    return [one for group in groups for one in group]


def adapted(auto, base, folder, tokenizer=None, task="CAUSAL_LM", heads=None, **options):
    """Write an adapter of a base with weights that matter, and beside it the same merged."""
    torch.manual_seed(3)
    targets = options.pop("target_modules", ["q_proj", "v_proj"])
    config = peft.LoraConfig(task_type=task, target_modules=targets, modules_to_save=heads, r=4)
    model = peft.get_peft_model(auto.from_pretrained(base, **options), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(folder)
    merged = folder.with_name(f"{folder.name}-merged")
    model.merge_and_unload().save_pretrained(merged)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        tokenizer.save_pretrained(merged)
    return folder, merged


@pytest.fixture
def adapter(policy_folder, tokenizer, tmp_path):
    """An adapter of a base that lies beside it, and the two merged."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(policy_folder, tmp_path / "base")
    return adapted(AutoModelForCausalLM, tmp_path / "base", tmp_path / "adapter", tokenizer)


def test_a_policy_given_as_an_adapter_is_scored_as_the_merged_model_is(adapter, policy_folder):
    folder, merged = adapter
    scored, whole, base = (
        [one.logprob for one in flat(CausalLM(path=str(path), dtype="float32").load().logprobs(PROMPTS, RESPONSES))]
        for path in (folder, merged, policy_folder)
    )
    assert scored == pytest.approx(whole, abs=1e-4)
    assert all(abs(a - b) > 0.01 for a, b in zip(scored, base, strict=True))


def plainly_scored(base, folder, tokenizer):
    """Score by transformers and PEFT alone, the adapter beside the base's weights, one text at a time."""
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    scores = []
    for prompt, answers in zip(PROMPTS, RESPONSES, strict=True):
        for answer in answers:
            before = tokenizer(f"Question: {prompt}\n\nAnswer:")["input_ids"]
            ids = tokenizer(f" {answer}")["input_ids"] + [tokenizer.eos_token_id]
            with torch.no_grad():
                logprobs = model(torch.tensor([before + ids])).logits[0].double().log_softmax(-1)
            rows = range(len(before) - 1, len(before) + len(ids) - 1)
            scores.append(sum(logprobs[row, token].item() for row, token in zip(rows, ids, strict=True)))
    return scores


def test_a_policy_given_as_an_adapter_is_scored_as_plain_peft_scores_it(adapter, tokenizer, tmp_path):
    folder, _ = adapter
    ours = [
        one.logprob for one in flat(CausalLM(path=str(folder), dtype="float32").load().logprobs(PROMPTS, RESPONSES))
    ]
    assert ours == pytest.approx(plainly_scored(tmp_path / "base", folder, tokenizer), abs=1e-4)


def test_a_base_is_named_in_the_recipe_where_it_lies_elsewhere(adapter, tmp_path, capfd):
    folder, _ = adapter
    expected = CausalLM(path=str(folder)).load().logprobs(PROMPTS, RESPONSES)
    identity = CausalLM(path=str(folder)).identity()
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(
        ModelError, match=r"neither a folder here nor reached on the Hub; put it there, name it by `base`"
    ):
        weights.check(CausalLM(path=str(folder)).origin)
    named = CausalLM(path=str(folder), base=str(tmp_path / "moved"))
    assert named.load().logprobs(PROMPTS, RESPONSES) == expected
    assert named.identity() == identity
    assert "warning:" in (told := capfd.readouterr().err) and "as `base` says; it was trained on" in told
    assert CausalLM(path="adapter", base="org/base@v2").named_paths() == ["adapter", "org/base@v2", "org/base"]
    with pytest.raises(ModelError, match=r"holds no adapter .*leave `base` out"):
        CausalLM(path=str(tmp_path / "moved"), base=str(folder)).identity()


def test_a_base_that_is_another_model_is_refused_in_one_line(adapter, decoder_reward_folder, tokenizer, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder, _ = adapter
    wider = Qwen2Config.from_pretrained(tmp_path / "base", hidden_size=32)
    Qwen2ForCausalLM(wider).save_pretrained(tmp_path / "another")
    refused = {
        tmp_path / "another": "another that cannot be merged in memory",
        decoder_reward_folder: "has no lm_head.weight, which would be initialised at random",
    }
    for other, said in refused.items():
        with pytest.raises(ModelError, match=said) as error:
            CausalLM(path=str(folder), base=str(other)).load()
        assert "\n" not in str(error.value)


def test_an_adapters_tokenizer_is_of_the_class_that_its_bases_kind_of_model_has(encoder_reward_folder, tmp_path):
    """The class that transformers chooses for a folder without a configuration reads other ids."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    words = json.loads((encoder_reward_folder / "tokenizer.json").read_text())
    # What decides the ids is then the class alone.
    (folder / "tokenizer.json").write_text(json.dumps(words | {"normalizer": None}))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(encoder_reward_folder)}))
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    (whole / "adapter_config.json").unlink()
    shutil.copy(encoder_reward_folder / "config.json", whole)
    ours, expected = (checkpoint.read_tokenizer(weights.Origin(str(path))) for path in (folder, whole))
    text = "SORT the List"
    assert type(ours) is type(expected) and ours(text)["input_ids"] == expected(text)["input_ids"]


def test_an_adapter_without_a_tokenizer_reads_by_its_bases(adapter):
    folder, merged = adapter
    for file in folder.iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    config = CausalLM(path=str(folder), dtype="float32")
    whole = CausalLM(path=str(merged), dtype="float32").load().logprobs(PROMPTS, RESPONSES)
    assert [one.logprob for one in flat(config.load().logprobs(PROMPTS, RESPONSES))] == pytest.approx(
        [one.logprob for one in flat(whole)], abs=1e-4
    )
    assert config.prompt_form() == CausalLM(path=str(merged)).prompt_form()
    assert weights.templates(weights.Origin(str(folder))) == weights.templates(weights.Origin(str(merged)))
    assert config.count_tokens(["sort the list"]) == CausalLM(path=str(merged)).count_tokens(["sort the list"])


@pytest.mark.parametrize("named", ["absolute", "working folder", "beside", "inside"])
def test_a_base_is_found_by_the_path_its_adapter_names(adapter, named, tmp_path, monkeypatch):
    folder, _ = adapter
    place = {"beside": "base", "inside": "own/base", "working folder": "elsewhere/base"}.get(named)
    if named == "inside":
        shutil.move(tmp_path / "base", folder / "own" / "base")
    if named == "working folder":
        (tmp_path / "work" / "elsewhere").mkdir(parents=True)
        shutil.move(tmp_path / "base", tmp_path / "work" / "elsewhere" / "base")
        monkeypatch.chdir(tmp_path / "work")
    settings = json.loads((folder / "adapter_config.json").read_text())
    before = {**settings, "base_model_name_or_path": place or str(tmp_path / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(before))
    assert CausalLM(path=str(folder)).load().logprobs(PROMPTS, RESPONSES)[0][0] is not None


def test_the_identity_of_an_adapter_holds_its_base_wherever_that_lies(adapter, tmp_path):
    folder, _ = adapter
    identity = weights.identity(weights.Origin(str(folder)))
    own, _, base = identity.partition(" on ")
    assert base == weights.identity(weights.Origin(str(tmp_path / "base"))) and own.startswith("sha256:")
    # Both elsewhere, and the base under another name: the same answers, the same identity.
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved / "lora")
    shutil.copytree(tmp_path / "base", moved / "renamed")
    settings = json.loads((moved / "lora" / "adapter_config.json").read_text())
    changed = {**settings, "base_model_name_or_path": "renamed"}
    (moved / "lora" / "adapter_config.json").write_text(json.dumps(changed))
    assert weights.identity(weights.Origin(str(moved / "lora"))) == identity
    # A base that was trained further answers otherwise.
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert weights.identity(weights.Origin(str(folder))) != identity
    (moved / "lora" / "adapter_config.json").write_text(json.dumps({**changed, "lora_alpha": 1}))
    assert weights.identity(weights.Origin(str(moved / "lora"))) != identity


def test_a_reward_model_given_as_an_adapter_brings_its_head(policy_folder, tokenizer, tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder, merged = adapted(
        AutoModelForSequenceClassification,
        policy_folder,
        tmp_path / "reward",
        tokenizer,
        task="SEQ_CLS",
        heads=["score"],
        num_labels=1,
    )
    scored, whole = (
        flat(SequenceClassifier(path=str(path), dtype="float32").load().rewards(PROMPTS, RESPONSES))
        for path in (folder, merged)
    )
    assert scored == pytest.approx(whole, abs=1e-4) and len(set(scored)) == 3
    three, whole_three = adapted(
        AutoModelForSequenceClassification,
        policy_folder,
        tmp_path / "three",
        tokenizer,
        task="SEQ_CLS",
        heads=["score"],
        num_labels=3,
    )
    with pytest.raises(ModelError, match="has 3 outputs; a reward model has one"):
        SequenceClassifier(path=str(three)).load()
    # The base has no head, so that its configuration tells nothing of the outputs.
    by_adapter, by_merged = (
        flat(
            SequenceClassifier(path=str(path), dtype="float32", output=2, outputs=(1,))
            .load()
            .ratings(PROMPTS, RESPONSES, {})
        )
        for path in (three, whole_three)
    )
    for ours, plain in zip(by_adapter, by_merged, strict=True):
        assert (ours.reward, *ours.outputs) == pytest.approx((plain.reward, *plain.outputs), abs=1e-4)
    with pytest.raises(ModelError, match="has no output 3; it has: 0, 1, 2"):
        SequenceClassifier(path=str(three), output=3).identity()
    with pytest.raises(ModelError, match=r"adapter of .* that is of another kind of model: .*score"):
        CausalLM(path=str(folder)).load()


def test_an_adapter_that_learned_added_tokens_is_given_room_for_them(policy_folder, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    longer = type(tokenizer).from_pretrained(policy_folder)
    longer.add_tokens(["<|begin|>", "<|end|>"])
    base = AutoModelForCausalLM.from_pretrained(policy_folder)
    base.resize_token_embeddings(len(longer))
    torch.manual_seed(5)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    model = peft.get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = str(policy_folder)
    model.save_pretrained(tmp_path / "adapter")
    longer.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    longer.save_pretrained(tmp_path / "merged")
    scored, whole = (
        [one.logprob for one in flat(CausalLM(path=str(tmp_path / name)).load().logprobs(PROMPTS, RESPONSES))]
        for name in ("adapter", "merged")
    )
    assert scored == pytest.approx(whole, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_an_encoder_given_as_an_adapter_embeds_as_the_merged_model_does(encoder_reward_folder, tmp_path, pooling):
    from transformers import AutoModel, AutoTokenizer

    bert = AutoTokenizer.from_pretrained(encoder_reward_folder)
    AutoModel.from_pretrained(encoder_reward_folder).save_pretrained(tmp_path / "base")
    bert.save_pretrained(tmp_path / "base")
    folder, merged = adapted(
        AutoModel,
        tmp_path / "base",
        tmp_path / "encoder",
        bert,
        task="FEATURE_EXTRACTION",
        target_modules=["query", "value"],
    )
    texts = ["sort list", "use merge on queue then parse it carefully"]
    ours, whole, base = (
        torch.from_numpy(SentenceEncoder(path=str(path), pooling=pooling, dtype="float32").load().embed(texts))
        for path in (folder, merged, tmp_path / "base")
    )
    assert torch.allclose(ours, whole, atol=1e-5) and not torch.allclose(ours, base, atol=1e-2)


def test_a_masked_model_given_as_an_adapter_writes_the_merged_models_words(masked_folder, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder, merged = adapted(
        AutoModelForMaskedLM,
        masked_folder,
        tmp_path / "masked",
        AutoTokenizer.from_pretrained(masked_folder),
        task=None,
        target_modules=["query", "value"],
    )
    texts, spans = ["use sort on list", "then parse it"], [(4, 8), (5, 10)]
    assert MaskedModel(str(folder), 5).likely(texts, spans) == MaskedModel(str(merged), 5).likely(texts, spans)


def test_an_adapter_that_cannot_be_merged_here_is_refused_in_one_line(adapter, policy_folder, tmp_path, monkeypatch):
    folder, _ = adapter
    settings = json.loads((folder / "adapter_config.json").read_text())

    def refused(said, **changed):
        (folder / "adapter_config.json").write_text(json.dumps(settings | changed))
        for attempt in (CausalLM(path=str(folder)).load, CausalLM(path=str(folder)).identity):
            with pytest.raises(ModelError, match=said) as error:
                attempt()
            assert "\n" not in str(error.value)

    refused("names? its base .*merge_and_unload", base_model_name_or_path=None)
    refused("of gone/base, which is neither a folder here .*merge_and_unload", base_model_name_or_path="gone/base")
    shutil.copytree(folder, tmp_path / "second")
    refused("of .*second, which is an adapter itself; merge", base_model_name_or_path="second")
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(ModelError, match=r"of the kind PROMPT_TUNING, .* cannot be merged"):
        CausalLM(path=str(folder)).load()
    (folder / "adapter_config.json").write_text("half of")
    with pytest.raises(ModelError, match="cannot be read as an adapter's configuration"):
        CausalLM(path=str(folder)).identity()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"peft merges, and that is not installed; .*merge_and_unload"):
        CausalLM(path=str(folder)).load()


def test_an_adapter_that_would_run_code_or_read_pickles_is_refused(adapter, tmp_path, monkeypatch):
    folder, _ = adapter
    settings = json.loads((folder / "adapter_config.json").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("open('ran', 'w').close()")
    named = {"megatron_config": {"a": 1}, "megatron_core": "theirs"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | named))
    with pytest.raises(ModelError, match="megatron_config has peft import a module that it names"):
        CausalLM(path=str(folder)).load()
    # PEFT follows these where it is asked to find the model's class by them, which it is not.
    mapping = {"auto_mapping": {"base_model_class": "Theirs", "parent_library": "theirs"}, "task_type": None}
    (folder / "adapter_config.json").write_text(json.dumps(settings | mapping))
    assert CausalLM(path=str(folder)).load().logprobs(PROMPTS, RESPONSES)
    assert not (tmp_path / "ran").exists()
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "XLORA", "adapters": {"0": "a/b"}}))
    with pytest.raises(ModelError, match="of the kind XLORA, which loads adapters from elsewhere"):
        CausalLM(path=str(folder)).load()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for attempt in (lambda: weights.check(weights.Origin(str(folder))), CausalLM(path=str(folder)).identity):
        with pytest.raises(ModelError, match=r"no \.safetensors weights, only adapter_model\.bin, which is pickled"):
            attempt()
    with pytest.raises(ModelError, match=r"without adapter_model\.safetensors \(of adapter_model\.bin"):
        CausalLM(path=str(folder)).load()


def test_a_classifiers_adapter_without_its_head_is_refused(policy_folder, tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    folder, _ = adapted(
        AutoModelForSequenceClassification,
        policy_folder,
        tmp_path / "reward",
        tokenizer,
        task="SEQ_CLS",
        heads=["score"],
        num_labels=1,
    )
    file = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "score" not in name}, file)
    settings = json.loads((folder / "adapter_config.json").read_text())
    for heads in (["score"], None):
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"modules_to_save": heads}))
        with pytest.raises(ModelError, match=r"score") as error:
            SequenceClassifier(path=str(folder)).load()
        assert "\n" not in str(error.value)


def test_an_adapter_beside_whole_weights_is_refused(adapter, policy_folder):
    folder, _ = adapter
    shutil.copy(policy_folder / "model.safetensors", folder)
    for attempt in (CausalLM(path=str(folder)).load, CausalLM(path=str(folder)).identity):
        with pytest.raises(ModelError, match="holds an adapter beside whole weights"):
            attempt()


def test_a_trainer_starts_from_an_adapter_and_its_base(adapter):
    pytest.importorskip("trl", reason="trainers need it")
    from seamcurate.train import SFTTraining
    from seamcurate.train.training import identity, open_policy

    folder, merged = adapter
    config = SFTTraining(lora=False)
    tokenizer, model = open_policy(folder, config)
    _, whole = open_policy(merged, config)
    ids = torch.tensor([tokenizer("sort the list")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, whole(ids).logits, atol=1e-4)
    assert " on sha256:" in identity(folder, config)


def test_grpo_without_lora_does_not_take_an_adapters_base_for_its_reference(adapter, tmp_path):
    pytest.importorskip("trl", reason="trainers need it")
    from seamcurate import RerReward
    from seamcurate.errors import TrainError
    from seamcurate.train import GroupTraining, grpo

    (tmp_path / "rows.jsonl").write_text('{"prompt": "how do I sort", "response": "use sort"}\n')
    with pytest.raises(TrainError, match=r"is an adapter, and without LoRA the KL penalty needs its whole weights"):
        grpo(adapter[0], RerReward(reward="li"), tmp_path / "rows.jsonl", tmp_path / "out", GroupTraining(lora=False))


def test_an_adapter_and_its_base_on_the_hub_are_known_by_their_commits(adapter, tmp_path, monkeypatch):
    """As the Hub's client keeps them: nothing is asked of the network."""
    from huggingface_hub import constants

    folder, _ = adapter
    expected = CausalLM(path=str(folder)).load().logprobs(PROMPTS, RESPONSES)
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/whole"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    cache = tmp_path / "cache"
    commits = {"lora": "a" * 40, "whole": "b" * 40, "later": "c" * 40}
    for name, source in {"lora": folder, "whole": tmp_path / "base", "later": tmp_path / "base"}.items():
        kept = cache / f"models--org--{name}"
        shutil.copytree(source, kept / "snapshots" / commits[name])
        (kept / "refs").mkdir()
        for reference in ("main", "v2"):
            (kept / "refs" / reference).write_text(commits[name])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    config = CausalLM(path="org/lora")
    assert config.identity()["causal_lm"] == f"org/lora@{commits['lora']} on org/whole@{commits['whole']}"
    assert config.load().logprobs(PROMPTS, RESPONSES) == expected
    whole = CausalLM(path=str(tmp_path / "base"))
    assert weights.templates(config.origin) == "" and config.prompt_form() == whole.prompt_form()
    assert config.count_tokens(["sort the list"]) == whole.count_tokens(["sort the list"])
    config.check_here()
    named = CausalLM(path="org/lora", base="org/later@v2")
    assert named.identity()["causal_lm"] == f"org/lora@{commits['lora']} on org/later@{commits['later']}"
    # The author's own folder is nobody else's.
    file = cache / "models--org--lora" / "snapshots" / commits["lora"] / "adapter_config.json"
    file.write_text(json.dumps(settings | {"base_model_name_or_path": "/home/author/base"}))
    with pytest.raises(
        ModelError, match="of /home/author/base, a folder of whoever made it; name it by `base`, or merge"
    ):
        config.identity()
    assert named.load().logprobs(PROMPTS, RESPONSES) == expected
