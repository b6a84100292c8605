"""Packs give every architecture's own numbers, read each token once, and shrink when memory runs out."""

from __future__ import annotations

import math

import pytest
import torch

from seamcurate import CausalLM, SequenceClassifier
from seamcurate.errors import ModelError
from seamcurate.models import prefix
from seamcurate.models.prefix import Group, PrefixReader

pytestmark = pytest.mark.slow

GROUPS = [
    Group([5, 9, 13, 17, 21, 25, 29], [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12], [13, 14], [3, 4, 6, 9]]),
    Group([31, 33], [[40, 41, 42, 43]]),
    Group([50], [[51, 52], [52, 51, 50]]),
]
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
WIDE = SIZES | {"intermediate_size": 48}


def made(kind, **more):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**more)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def reader(model, budget=1000):
    head = prefix.output_head(model, model.get_output_embeddings())
    return PrefixReader(model, head, budget)


def sums(outputs, pack):
    """Log-probabilities, from the logits of one response at a time."""
    values = []
    for place, answer in zip(pack.targets, pack.answers, strict=True):
        logits = outputs(torch.tensor([place.before, *range(place.start, place.end - 1)])).float()
        values.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())
    return torch.stack(values)


def by_hand(model, groups):
    scores = []
    with torch.no_grad():
        for before, answers in groups:
            row = []
            for after in answers:
                logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
                row.append(sum(float(logits[len(before) - 1 + i, token]) for i, token in enumerate(after)))
            scores.append(row)
    return scores


def close(a, b, tolerance=1e-4):
    assert [len(row) for row in a] == [len(row) for row in b]
    for row, other in zip(a, b, strict=True):
        assert row == pytest.approx(other, abs=tolerance)


ARCHITECTURES = {
    "Qwen2": (WIDE | {"num_key_value_heads": 2}, True),
    "Qwen3": (WIDE | {"num_key_value_heads": 2, "head_dim": 16}, True),
    "Llama": (WIDE | {"num_key_value_heads": 4}, True),
    "Mistral": (WIDE | {"num_key_value_heads": 2, "sliding_window": 64}, True),
    "Phi3": (WIDE | {"num_key_value_heads": 4}, True),
    "GPTNeoX": (WIDE, True),
    "GPT2": (SIZES, True),
    "OPT": (WIDE | {"ffn_dim": 48, "word_embed_proj_dim": 32}, True),
    # Scaled logits, capped attention, biases by distance, a recurrent state: read the plain way.
    "Cohere": (WIDE | {"num_key_value_heads": 4, "logit_scale": 0.3}, False),
    "Gemma2": (WIDE | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64}, False),
    "Bloom": (SIZES | {"n_layer": 2, "n_head": 4}, False),
    "Mamba": ({k: v for k, v in SIZES.items() if "heads" not in k} | {"state_size": 4}, False),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_gives_its_own_numbers_shared_or_not(kind):
    sizes, shared = ARCHITECTURES[kind]
    model = made(kind, **sizes)
    expected = by_hand(model, GROUPS)
    ours = reader(model)
    assert ours.shared is shared
    close(ours.score(GROUPS, sums), expected)


@pytest.mark.parametrize("budget", [1, 9, 14, 20, 1000])
def test_a_prompt_that_goes_on_in_another_pack_is_kept_and_changes_no_score(budget):
    model = made("Qwen2", **ARCHITECTURES["Qwen2"][0])
    expected = by_hand(model, GROUPS)
    read = []
    model.get_input_embeddings().register_forward_hook(lambda _, ids, __: read.append(ids[0].numel()))
    ours = reader(model, budget)
    read.clear()
    close(ours.score(GROUPS, sums), expected)
    assert sum(read) == sum(len(before) + sum(map(len, answers)) for before, answers in GROUPS)
    # A pack is only larger than the budget where one prompt with one response is.
    assert max(read) <= max(budget, 10)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_what_each_span_sees():
    model = made("Qwen2", **ARCHITECTURES["Qwen2"][0])
    expected = by_hand(model, GROUPS)
    for budget in (12, 1000):
        ours = reader(model, budget)
        ours._attention.flex = True
        close(ours.score(GROUPS, sums), expected)


def test_a_response_outside_the_sliding_window_of_its_prompt_is_read_by_the_models_own_attention():
    model = made("Mistral", **ARCHITECTURES["Mistral"][0] | {"sliding_window": 20})
    long = [*GROUPS, Group(list(range(3, 40)), [[5, 6, 7], [8]])]
    expected = by_hand(model, long)
    ours = reader(model)
    assert ours.shared and ours._attention.window == 20
    close(ours.score(long, sums), expected)


def test_packs_shrink_when_memory_runs_out_and_nothing_is_scored_twice():
    model = made("Qwen2", **ARCHITECTURES["Qwen2"][0])
    expected = by_hand(model, GROUPS)
    ours, unused = reader(model), reader(model)
    embed, scored = model.get_input_embeddings(), []

    def full(_, ids):
        if ids[0].numel() > 16:
            raise torch.OutOfMemoryError("no memory left")

    hook = embed.register_forward_pre_hook(full)
    found = ours.score(GROUPS, lambda outputs, pack: scored.extend(pack.targets) or sums(outputs, pack))
    close(found, expected)
    assert 4 < ours.budget <= 16 and len(scored) == len({(p.group, p.response) for p in scored}) == 8
    hook.remove()
    embed.register_forward_pre_hook(lambda _, ids: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    assert ours.score(GROUPS[:1], sums) == [[None] * len(GROUPS[0].responses)]
    with pytest.raises(ModelError, match="a prompt and response of 8 tokens do not fit in the memory of cpu"):
        unused.score(GROUPS[:1], sums)


def flat(rows):
    return [one for row in rows for one in row]


@pytest.mark.parametrize("kind", ["Qwen2", "Bloom"])
def test_what_alone_does_not_fit_is_set_aside_and_told_where_others_fit(kind, capsys):
    model = made(kind, **ARCHITECTURES[kind][0])
    expected = by_hand(model, GROUPS)
    ours = reader(model)
    lengths = [[len(group.prompt) + len(r) for r in group.responses] for group in GROUPS]
    most = max(len(group.prompt) for group in GROUPS)

    def full(_, ids):
        if ids[0].numel() >= most:
            raise torch.OutOfMemoryError("no memory left")

    hook = model.get_input_embeddings().register_forward_pre_hook(full)
    found = flat(ours.score(GROUPS, sums))
    alone = [place for place, value in enumerate(found) if value is None]
    assert 0 < len(alone) < 8 and all(flat(lengths)[place] >= most for place in alone)
    for mine, theirs in zip(found, flat(expected), strict=True):
        assert mine is None or mine == pytest.approx(theirs, abs=1e-4)
    told = capsys.readouterr().err
    assert (
        f"warning: {len(alone)} texts of up to {max(map(max, lengths))} tokens do not fit in the memory of cpu" in told
    )
    hook.remove()
    close(ours.score(GROUPS, sums), expected)


def test_padded_packs_shrink_too():
    model = made("Bloom", **ARCHITECTURES["Bloom"][0])
    expected = by_hand(model, GROUPS)
    ours = reader(model)

    def full(_, ids):
        if ids[0].numel() > 30:
            raise torch.OutOfMemoryError("no memory left")

    model.get_input_embeddings().register_forward_pre_hook(full)
    close(ours.score(GROUPS, sums), expected)


def test_no_groups_and_groups_without_responses_give_nothing():
    ours = reader(made("GPT2", **SIZES))
    assert ours.score([], sums) == []
    assert ours.score([Group([4], [])], sums) == [[]]
    close(ours.score([Group([4], []), GROUPS[1]], sums), [[], by_hand(ours.model, GROUPS)[1]])


def test_the_same_pair_is_scored_once(policy_folder, decoder_reward_folder):
    for config in (CausalLM(path=str(policy_folder)), SequenceClassifier(path=str(decoder_reward_folder))):
        model = config.load()
        score = model.logprobs if isinstance(config, CausalLM) else model.rewards
        read = []
        model.model.get_input_embeddings().register_forward_hook(
            lambda _, ids, __, read=read: read.append(ids[0].numel())
        )
        once = score(["sort", "open"], [["a list", "a file"], ["it"]])
        tokens = sum(read)
        read.clear()
        again = score(["sort", "open", "sort"], [["a list", "a file", "a list"], ["it"], ["a file"]])
        assert sum(read) == tokens
        assert again == [[*once[0], once[0][0]], once[1], [once[0][1]]]


def test_a_decoder_reward_model_shares_its_prompts(decoder_reward_folder, encoder_reward_folder):
    assert SequenceClassifier(path=str(decoder_reward_folder)).load().reader is not None
    assert SequenceClassifier(path=str(encoder_reward_folder)).load().reader is None


def test_a_reward_is_read_where_transformers_reads_it_when_the_end_token_is_the_padding(
    decoder_reward_folder, tmp_path
):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(decoder_reward_folder)
    tokenizer = AutoTokenizer.from_pretrained(decoder_reward_folder)
    tokenizer.chat_template = None
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = SequenceClassifier(path=str(tmp_path), dtype="float32").load()
    assert loaded.reader is not None
    answers = ["use sort on list", "no"]
    for answer, score in zip(answers, loaded.rewards(["sort the list"], [answers])[0], strict=True):
        ids = tokenizer(f"Question: sort the list\n\nAnswer: {answer}")["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            assert score == pytest.approx(float(model.eval()(torch.tensor([ids])).logits[0, 0]), abs=1e-4)


# What a model's numbers depend on beside its text.

SMALL = {**WIDE, "num_key_value_heads": 4, "max_position_embeddings": 128}
LONG = Group(list(range(3, 40)), [[5, 6, 7], [8]])


def longrope():
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 6.0, 8.0, 10.0]}
    if ROPE == "rope_parameters":
        rope |= {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 20, "factor": 6.0}
    return made("Phi3", **SMALL | {"original_max_position_embeddings": 20, ROPE: rope})


def dynamic():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 20}
    return made("Llama", **SMALL | {ROPE: rope, "max_position_embeddings": 20})


def rope_setting():
    from transformers import LlamaConfig

    # transformers 5 has the settings of rotary embeddings in one place, 4.57 had them in `rope_scaling`.
    return "rope_parameters" if getattr(LlamaConfig(), "rope_parameters", None) else "rope_scaling"


ROPE = rope_setting()


@pytest.mark.parametrize("model", [longrope, dynamic])
def test_where_a_longer_text_turns_positions_by_another_angle_it_is_read_alone(model):
    groups = [*GROUPS, LONG, Group(list(range(3, 30)), [[5, 6, 7]])]
    # A model for each: `dynamic` goes on with the longest text it has read.
    expected = [[by_hand(model(), [Group(before, [one])])[0][0] for one in answers] for before, answers in groups]
    ours = reader(model())
    assert (ours.shared, ours.longest_batched) == (True, 20)
    # Each by itself, all at once, and again: neither neighbours nor what was read before change a score.
    for some in ([group] for group in groups):
        close(ours.score(some, sums), [expected[groups.index(some[0])]])
    close(ours.score(groups, sums), expected)
    close(ours.score(groups[::-1], sums), expected[::-1])


def test_by_hand_a_dynamic_embedding_goes_on_with_the_longest_text_it_read_until_it_forgets():
    from seamcurate.models import probe

    model = dynamic()
    longer, shorter = LONG, Group(list(range(3, 30)), [[5, 6, 7]])
    fresh = by_hand(model, [shorter])
    by_hand(model, [longer])
    assert by_hand(model, [shorter])[0][0] != pytest.approx(fresh[0][0], abs=1e-3)
    probe.forget_lengths(model)
    by_hand(model, [longer])
    close(by_hand(model, [shorter]), fresh)


def test_rotary_embeddings_of_one_angle_for_every_length_share_their_packs():
    for kind in ("linear", "yarn", "llama3"):
        rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
        model = made("Llama", **SMALL | {ROPE: rope})
        expected = by_hand(model, [*GROUPS, LONG])
        ours = reader(model)
        assert ours.shared and ours.longest_batched == math.inf
        close(ours.score([*GROUPS, LONG], sums), expected)


def test_a_chunk_that_a_model_keeps_in_its_mask_parts_no_response_from_its_prompt():
    pytest.importorskip("transformers", minversion="5")
    sizes = {**SMALL, "intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8, "attention_chunk_size": 16}
    model = made("Llama4Text", **sizes)
    groups = [*GROUPS, LONG]
    expected = by_hand(model, groups)
    ours = reader(model)
    assert ours.shared and ours._attention.window == 16
    close(ours.score(groups, sums), expected)


class Mixing(torch.nn.Module):
    """A layer in which the rows of a batch see each other, or each row its own later tokens, or chance."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, ids):
        rows = self.inner(ids)
        if self.how == "neighbours":
            return rows + rows.mean(dim=(0, 1), keepdim=True) * (len(rows) > 1)
        if self.how == "later":
            return rows + rows.mean(dim=1, keepdim=True)
        return rows + torch.randn_like(rows)


def mixing(how, **more):
    model = made("GPT2", **SIZES | more)
    model.transformer.wte = Mixing(model.transformer.wte, how)
    model.get_input_embeddings = lambda: model.transformer.wte.inner
    return model


def test_a_model_whose_rows_see_each_other_is_read_a_pair_at_a_time():
    model = mixing("neighbours")
    expected = by_hand(model, GROUPS)
    ours = reader(model)
    assert ours.longest_batched == 0
    close(ours.score(GROUPS, sums), expected)


def test_a_model_that_sees_later_tokens_or_answers_by_chance_is_no_policy():
    from seamcurate.models import probe

    for how, said in (
        ("later", "is no policy: each token sees the ones after it"),
        ("chance", "another score each time"),
    ):
        with pytest.raises(ModelError, match=f"the model {said}|the model gives the same text {said}"):
            probe.check_causal(mixing(how), "the model")
    for kind in ("Qwen2", "Bloom", "Mamba"):
        probe.check_causal(made(kind, **ARCHITECTURES[kind][0]), "the model")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_is_used_on_a_gpu(dtype):
    model = made("Qwen2", **ARCHITECTURES["Qwen2"][0] | {"hidden_size": 128})
    expected = by_hand(model, GROUPS)
    ours = reader(model.to("cuda", dtype))
    assert ours.shared and ours._attention.flex
    close(
        ours.score(GROUPS, lambda o, p: sums(lambda rows: o(rows.cuda()).cpu(), p)),
        expected,
        1e-3 if dtype == torch.float32 else 1,
    )
