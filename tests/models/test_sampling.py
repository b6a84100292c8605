"""What a local policy answers: its distribution, and the same answers whatever shares a batch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from architectures import bytewise_tokenizer, save, tiny_config

from seamcurate import CausalLM
from seamcurate.models import Sample, Sampling, decoding, draws, prefix, sampling, tokens

PROMPTS = [
    "how do I sort the list and then merge all of it",
    "open a file",
    "x",
    "use the queue",
    "parse it carefully, step by step, then sort, then merge, then open it",
]
WHOLE = Sampling(max_tokens=12, seed=3)


def answers(sampler, requests, sampling=WHOLE):
    """What is yielded, by prompt and draw, each once."""
    found = {}
    for request, draw, sample in sampler.samples(requests, sampling):
        assert (requests[request][0], draw) not in found
        found[requests[request][0], draw] = sample
    return found


def texts(samples):
    return {key: (sample.text, sample.tokens, sample.finish) for key, sample in samples.items()}


def test_the_deviation_of_logits_is_torchs():
    logits = 3 * torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) + torch.tensor(
        [[0.0], [5], [-80], [0]]
    )
    logits[3, 7] = torch.nan
    deviations = sampling.deviation(logits)
    assert torch.allclose(deviations, logits.std(-1, keepdim=True), rtol=1e-5, equal_nan=True)
    assert deviations.isnan().tolist() == [[False], [False], [False], [True]]


def test_buffers_grow_in_small_steps_at_first_and_keep_what_they_hold():
    attention = decoding._BufferedAttention()
    like = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 4)
    attention.kept = {0: like}
    attention.fill(0, 3)
    assert [buffer.shape[2] for buffer in attention.buffers[0]] == [64, 64]
    widths = [attention._buffers(0, like, 3, columns)[0].shape[2] for columns in (64, 65, 200, 257, 100, 600)]
    assert widths == [64, 128, 256, 512, 512, 768]
    for buffer, states in zip(attention.buffers[0], like, strict=True):
        assert torch.equal(buffer[:3, :, :9], states.expand(3, -1, -1, -1)) and not buffer[:, :, 9:].any()


@pytest.fixture(scope="module")
def sampler(policy_folder):
    return CausalLM(path=str(policy_folder), dtype="float32").load_sampler()


@pytest.fixture(scope="module")
def whole(sampler):
    return answers(sampler, [(prompt, range(20)) for prompt in PROMPTS])


# The distribution of one token.

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5] + [-3.0 - i / 100 for i in range(595)]])


def frequencies(count, **settings):
    keys = [draws.key(1, [7], draw) for draw in range(count)]
    choice = draws.choose(LOGITS.expand(count, -1), keys, [0] * count, Sampling(**settings), None)
    return np.bincount(choice.tokens, minlength=LOGITS.shape[1]) / count, choice


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(temperature):
    shares, choice = frequencies(6_000, temperature=temperature)
    wanted = (LOGITS[0] / temperature).softmax(-1)
    # Five tokens by themselves and the rest together; four standard deviations.
    for share, probability in [*zip(shares[:5], wanted[:5], strict=True), (shares[5:].sum(), wanted[5:].sum())]:
        assert abs(share - float(probability)) < 4 * (0.25 / 6_000) ** 0.5
    assert choice.logprobs[0] == pytest.approx(float(wanted[choice.tokens[0]].log()), abs=1e-5)
    assert choice.logprobs_1[0] == pytest.approx(float(LOGITS[0].log_softmax(-1)[choice.tokens[0]]), abs=1e-5)


@pytest.mark.parametrize("top_p", [0.9, 0.5, 0.2])
def test_top_p_keeps_the_likeliest_tokens_and_their_proportions(top_p):
    probabilities = LOGITS[0].double().softmax(-1)
    order = probabilities.argsort(descending=True)
    inside = [int(i) for i in order if float(probabilities[probabilities > probabilities[i]].sum()) < top_p]
    shares, choice = frequencies(6_000, top_p=top_p)
    assert set(choice.tokens) <= set(inside) and (top_p > 0.4 or set(choice.tokens) == set(inside))
    kept = probabilities[inside] / probabilities[inside].sum()
    assert np.abs(shares[inside] - kept.numpy()).max() < 4 * (0.25 / 6_000) ** 0.5
    # Log-probabilities are those before the cut.
    assert choice.logprobs[0] == pytest.approx(float(probabilities[choice.tokens[0]].log()), abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.6}, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.0}])
def test_what_is_sure_is_not_changed_by_logits_that_are_wrong_by_the_margin(settings):
    rows, margin = 400, 0.05
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, 700, generator=generator)
    keys, positions = [draws.key(0, [1], draw) for draw in range(rows)], [3] * rows
    choice = draws.choose(logits, keys, positions, Sampling(**settings), torch.full((rows, 1), margin))
    assert 0.5 < np.mean(choice.sure) < 1
    changed = 0
    for _ in range(10):
        wrong = logits + margin * (2 * torch.rand(logits.shape, generator=generator) - 1)
        other = draws.choose(wrong, keys, positions, Sampling(**settings), None)
        differs = [a != b for a, b in zip(choice.tokens, other.tokens, strict=True)]
        changed += sum(differs)
        assert not any(differ and sure for differ, sure in zip(differs, choice.sure, strict=True))
    assert changed


def test_random_numbers_depend_on_seed_prompt_draw_position_and_attempt():
    keys = [draws.key(*parts) for parts in ((0, [1, 2], 0), (1, [1, 2], 0), (0, [12], 0), (0, [1, 2], 1))]
    numbers = [
        draws.noise(keys[:1], [4], 0, 600),
        draws.noise(keys[:1], [5], 0, 600),
        draws.noise(keys[:1], [4], 1, 600),
    ]
    numbers += [draws.noise([key], [4], 0, 600) for key in keys[1:]]
    assert len({row.tobytes() for row in numbers}) == len(numbers) and numbers[0].shape == (1, 3 + 256)
    assert draws.noise(keys, [4] * 4, 0, 600)[2].tobytes() == numbers[4].tobytes()


# The same answers, whatever shares a batch.


def test_answers_depend_neither_on_order_nor_on_what_else_is_asked(sampler, whole):
    assert len(whole) == 100 and len({sample.text for sample in whole.values()}) > 90
    shuffled = random.Random(5)
    for _ in range(3):
        requests = [(prompt, shuffled.sample(range(20), 7)) for prompt in shuffled.sample(PROMPTS, 4)]
        some = answers(sampler, requests)
        assert texts(some) == {key: texts(whole)[key] for key in some}
        for key, sample in some.items():
            assert sample.logprob == pytest.approx(whole[key].logprob, abs=1e-3)


@pytest.mark.parametrize("budget", [1, 100, 400])
def test_answers_do_not_depend_on_the_budget(policy_folder, whole, budget):
    smaller = CausalLM(path=str(policy_folder), dtype="float32", batch_tokens=budget).load_sampler()
    requests = [(prompt, range(12 if budget > 1 else 2)) for prompt in PROMPTS[1:4]]
    some = answers(smaller, requests)
    assert texts(some) == {key: texts(whole)[key] for key in some}


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 0.0}])
def test_tokens_that_rounding_could_decide_are_settled_by_the_text_alone(policy_folder, settings):
    sampling = WHOLE._replace(**settings, max_tokens=8)
    requests = [(prompt, range(4)) for prompt in PROMPTS[:3]]
    sampler = CausalLM(path=str(policy_folder), dtype="float32").load_sampler()
    quick = answers(sampler, requests, sampling)
    assert sampler.settled <= sampler.drawn / 50
    careful = CausalLM(path=str(policy_folder), dtype="float32").load_sampler()
    # As if no logit of a batch could be trusted.
    careful.decoders.margin = 1e3
    assert texts(answers(careful, requests, sampling)) == texts(quick)
    assert careful.settled > careful.drawn / 2


def test_answers_in_16_bit_are_the_same_to_the_last_bit(policy_folder):
    sampler = CausalLM(path=str(policy_folder), dtype="bfloat16").load_sampler()
    assert isinstance(sampler.decoders.ways[0][0], decoding.LockstepDecoder)
    whole = answers(sampler, [(prompt, range(20)) for prompt in PROMPTS[:3]])
    shuffled = random.Random(5)
    for _ in range(2):
        some = answers(sampler, [(prompt, shuffled.sample(range(20), 5)) for prompt in shuffled.sample(PROMPTS[:3], 2)])
        assert some == {key: whole[key] for key in some}


def test_a_model_whose_numbers_move_with_the_batch_is_sampled_one_answer_at_a_time(
    policy_folder, whole, monkeypatch, capsys
):
    monkeypatch.setattr(prefix.PrefixReader, "_batches_agree", lambda self: False)
    sampler = CausalLM(path=str(policy_folder), dtype="float32").load_sampler()
    assert "answers are sampled one at a time, which is slower" in capsys.readouterr().err
    read = []
    sampler.model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[0]))
    some = answers(sampler, [(prompt, range(3)) for prompt in PROMPTS[:2]])
    assert set(read) == {1} and texts(some) == {key: texts(whole)[key] for key in some}


def test_batches_shrink_when_memory_runs_out_and_no_answer_changes(policy_folder, whole):
    sampler = CausalLM(path=str(policy_folder), dtype="float32").load_sampler()
    refused = []

    def full(_, inputs):
        if inputs[0].shape[0] > 5:
            refused.append(inputs[0].shape[0])
            assert len(refused) < 20
            raise torch.OutOfMemoryError("no memory left")

    sampler.model.get_input_embeddings().register_forward_pre_hook(full)
    some = answers(sampler, [(prompt, range(20)) for prompt in PROMPTS[:2]])
    assert refused and texts(some) == {key: texts(whole)[key] for key in some} and len(some) == 40


def test_an_answer_that_does_not_fit_in_memory_by_itself_has_that_as_its_reason(policy_folder):
    sampler = CausalLM(path=str(policy_folder), dtype="float32").load_sampler()
    longest = len(tokens.prompt_ids(sampler.tokenizer, PROMPTS[0], sampler.form))

    def full(_, inputs):
        if inputs[0].shape[1] >= longest:
            raise torch.OutOfMemoryError("no memory left")

    sampler.model.get_input_embeddings().register_forward_pre_hook(full)
    some = answers(sampler, [(PROMPTS[0], [0, 1]), (PROMPTS[1], [0])])
    reason = f"prompt and answer of up to {longest + 12} tokens do not fit in memory"
    assert some[PROMPTS[0], 0] == some[PROMPTS[0], 1] == reason
    assert isinstance(some[PROMPTS[1], 0], Sample)


# What an answer is.


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probabilities_are_those_of_the_text_read_whole(policy_folder, sampler, monkeypatch, temperature):
    from transformers import AutoModelForCausalLM

    rows, ended = [], sampler._end
    monkeypatch.setattr(sampler, "_end", lambda row: rows.append(row) or ended(row))
    some = answers(sampler, [(prompt, range(3)) for prompt in PROMPTS], WHOLE._replace(temperature=temperature))
    model = AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.float32).eval()
    for row in {id(row): row for row in rows}.values():
        with torch.inference_mode():
            logits = model(torch.tensor([row.job.prompt + row.ids])).logits[0, len(row.job.prompt) - 1 : -1]
        expected = [
            float((logits / t).log_softmax(-1).gather(1, torch.tensor(row.ids)[:, None]).sum())
            for t in (temperature, 1)
        ]
        sample = some[PROMPTS[row.job.request], row.draw]
        assert [sample.logprob, sample.logprob_1] == pytest.approx(expected, abs=1e-3)
        assert sample.tokens == len(row.ids)


def test_answers_end_by_the_models_end_tokens_and_at_the_limit(policy_folder, whole):
    sampler = CausalLM(path=str(policy_folder), dtype="float32").load_sampler()
    sample = next(sample for sample in whole.values() if sample.finish == "length")
    assert sample.tokens == 12
    # Every token ends an answer: the first one does.
    sampler.ends = frozenset(range(len(sampler.tokenizer)))
    ended = answers(sampler, [(PROMPTS[0], range(3))])
    assert {(s.text, s.tokens, s.finish) for s in ended.values()} == {("", 1, "stop")}


def test_a_window_cuts_answers_and_refuses_prompts_that_fill_it(sampler, monkeypatch):
    length = len(tokens.prompt_ids(sampler.tokenizer, PROMPTS[1], sampler.form))
    monkeypatch.setattr(sampler, "window", length + 2)
    some = answers(sampler, [(PROMPTS[1], [0]), (PROMPTS[4], [0, 5]), (PROMPTS[2], [])])
    assert some[PROMPTS[1], 0].tokens <= 2
    longer = len(tokens.prompt_ids(sampler.tokenizer, PROMPTS[4], sampler.form))
    reason = f"the prompt has {longer} tokens and fills the window of {length + 2}"
    assert some[PROMPTS[4], 0] == some[PROMPTS[4], 5] == reason and len(some) == 3


def test_a_chat_that_the_template_refuses_has_that_as_its_reason(decoder_reward_folder, policy_folder, tmp_path):
    from transformers import AutoTokenizer

    chat = AutoTokenizer.from_pretrained(decoder_reward_folder)
    chat.chat_template = "{{ raise_exception('only one turn') if messages|length > 1 else messages[0].content }}"
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(tmp_path)
    for file in policy_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    chat.save_pretrained(tmp_path)
    sampler = CausalLM(path=str(tmp_path), dtype="float32").load_sampler()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    ((_, _, refused), (_, _, sampled)) = sampler.samples([(turns, [0]), (turns[:1], [0])], WHOLE)
    assert refused == "the chat template cannot render the prompt: only one turn"
    assert isinstance(sampled, Sample)


def test_logits_that_are_no_numbers_give_a_reason(policy_folder):
    sampler = CausalLM(path=str(policy_folder), dtype="float32").load_sampler()
    with torch.no_grad():
        sampler.model.get_output_embeddings().weight[5] = float("nan")
    ((_, _, reason),) = sampler.samples([(PROMPTS[0], [0])], WHOLE)
    assert reason == "the model gives numbers that are not finite; try dtype: float32"


def test_a_prompt_is_read_once_for_all_its_answers(policy_folder):
    sampler = CausalLM(path=str(policy_folder), dtype="float32").load_sampler()
    read = []
    sampler.model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape))
    list(sampler.samples([(prompt, range(8)) for prompt in PROMPTS[:2]], WHOLE))
    # Beside them, at most a few texts that settle a token.
    assert len([shape for shape in read if shape[1] > 1]) <= 2 + sampler.settled
    assert {shape[0] for shape in read if shape[1] == 1} <= set(range(1, 17)) and (16, 1) in read


def test_answers_are_yielded_before_all_are_finished(sampler):
    sampled = sampler.samples([(prompt, range(4)) for prompt in PROMPTS], WHOLE._replace(max_tokens=64))
    drawn = sampler.drawn
    next(sampled)
    assert sampler.drawn - drawn < 20 * 64
    sampled.close()
    assert sampler.decoders.ways[0][0].rows == 0


# Models of other kinds, against transformers' own generation.

DECODERS = {
    "llama": decoding.PlainDecoder,
    "gpt2": decoding.PlainDecoder,
    "mistral": decoding.CachedDecoder,
    "gemma2": decoding.CachedDecoder,
    "mamba": decoding.CachedDecoder,
    "bloom": decoding.CachedDecoder,
    "jamba": decoding.CachedDecoder,
}
"""Families with the decoder that serves texts longer than their sliding window."""


@pytest.mark.slow
@pytest.mark.parametrize("family", list(DECODERS))
def test_greedy_answers_equal_those_of_generate(family, tmp_path):
    import transformers

    tokenizer = bytewise_tokenizer(200)
    save(transformers.AutoModelForCausalLM, tiny_config(family), tokenizer, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    sampler = CausalLM(path=str(tmp_path), dtype="float32").load_sampler()
    some = answers(sampler, [(prompt, [0, 1]) for prompt in PROMPTS], Sampling(temperature=0.0, max_tokens=24))
    lengths = [len(tokens.prompt_ids(tokenizer, prompt)) + 24 for prompt in PROMPTS]
    assert {type(decoder) for decoder, _ in sampler.decoders.shares(lengths)} == {DECODERS[family]}
    for prompt in PROMPTS:
        ids = torch.tensor([tokens.prompt_ids(tokenizer, prompt)])
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
            )
        after = whole[0, ids.shape[1] :].tolist()
        expected = tokenizer.decode(after, skip_special_tokens=True).removeprefix(" ")
        assert some[prompt, 0] == some[prompt, 1]
        assert (some[prompt, 0].text, some[prompt, 0].tokens) == (expected, len(after))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "mamba"])
def test_answers_of_other_decoders_do_not_depend_on_what_else_is_asked(family, tmp_path):
    import transformers

    tokenizer = bytewise_tokenizer(200)
    save(transformers.AutoModelForCausalLM, tiny_config(family), tokenizer, tmp_path)
    sampler = CausalLM(path=str(tmp_path), dtype="float32").load_sampler()
    whole = answers(sampler, [(prompt, range(9)) for prompt in PROMPTS])
    some = answers(sampler, [(prompt, [8, 2]) for prompt in PROMPTS[::-2]])
    assert texts(some) == {key: texts(whole)[key] for key in some}
