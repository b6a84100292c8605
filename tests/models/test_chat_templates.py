"""What models read by chat templates: all those that TRL carries, against one plain call of transformers a chat."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError

from seamcurate import CausalLM, SequenceClassifier
from seamcurate.errors import ModelError
from seamcurate.models import tokens
from seamcurate.models.template import FormSettings

PROMPTS: list[Any] = [
    "sort the list",
    [{"role": "user", "content": "sort it"}, {"role": "assistant", "content": "use sort"}, {"role": "user", "content": "why"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": " open a file "}],
]  # fmt: skip
ANSWERS = [
    "use sort on list",
    "use sort",
    "  spaced  ",
    "line\n\nnext <b>x</b>",
    "",
    "<think>\nhm\n</think>\n\nuse it",
    "\nno",
]
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not think | default(true) %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
"""As Qwen3's: an empty thought stands before every answer, and in a prompt only where nothing is to be thought."""
TURNS = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
"""As Gemma's: its turns end by another token than its texts."""


def with_template(tokenizer: Any, source: str) -> Any:
    """Return a tokenizer with a chat template and the special tokens that it spells."""
    from transformers import PreTrainedTokenizerFast

    chat_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>"
    )
    spelled = re.findall(r"<[|｜][^<>|｜\n]{1,40}[|｜]>|<(?:start|end)_of_turn>|<\|turn>|<turn\|>", source)
    chat_tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(spelled))})
    if "bos_token" in source:
        chat_tokenizer.add_special_tokens({"bos_token": "<BOS>"})
    chat_tokenizer.chat_template = source
    return chat_tokenizer


def chat(prompt: Any, answer: str) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [*asked, {"role": "assistant", "content": answer}]


def plain_call(tokenizer: Any, prompt: Any, answer: str) -> list[int]:
    return list(tokenizer.apply_chat_template(chat(prompt, answer), tokenize=True, return_dict=False))


def alike(sequences: list[list[int]]) -> int:
    """Count the ids that all begin with."""
    return next(
        (i for i, some in enumerate(zip(*sequences, strict=False)) if len(set(some)) > 1), min(map(len, sequences))
    )


@pytest.mark.slow
def test_a_reward_model_reads_what_every_template_of_trl_makes_of_the_whole_chat(tokenizer):
    trl = pytest.importorskip("trl", reason="trainers are not installed")
    read = 0
    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        chat_tokenizer = with_template(tokenizer, file.read_text())
        form = tokens.form_of(chat_tokenizer)
        for prompt in PROMPTS:
            try:
                wanted = [plain_call(chat_tokenizer, prompt, answer) for answer in ANSWERS]
            except TemplateError:
                # A template without a system's turn, or for turns in parts, has no form for these rows.
                with pytest.raises(TemplateError):
                    tokens.reward_group(chat_tokenizer, prompt, ANSWERS, 10_000, form)
                continue
            before, rest = tokens.reward_group(chat_tokenizer, prompt, ANSWERS, 10_000, form)
            assert [before + ids for ids in rest] == wanted, file.name
            # What they share is read once for all of them; of an empty answer a token must be left.
            assert len(before) >= alike(wanted) - 1, file.name
            read += 1
    assert read > 100


SYSTEM, USER, ASSISTANT, TOOL = ({"role": role, "content": role} for role in ("system", "user", "assistant", "tool"))


@pytest.mark.parametrize(
    ("template", "chat", "left_out"),
    [
        ("cohere2", [USER, ASSISTANT, TOOL, USER], "turn 3 (tool) of chats such as user, assistant, tool, user"),
        ("deepseek_r1_distill", [SYSTEM, SYSTEM, USER], "turn 1 (system) of chats such as system, system, user"),
        ("gptoss", [SYSTEM, USER, ASSISTANT, SYSTEM, USER], "turn 4 (system) of"),
        ("qwen3", [SYSTEM, USER, ASSISTANT, TOOL, USER], None),
    ],
)
def test_a_turn_that_a_template_leaves_out_is_told_once(template, chat, left_out, tokenizer, capsys, monkeypatch):
    trl = pytest.importorskip("trl", reason="trainers are not installed")
    monkeypatch.setattr(tokens, "_looked_at", set())
    monkeypatch.setattr(tokens, "_told", set())
    file = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
    chat_tokenizer = with_template(tokenizer, file.read_text())
    for _ in range(2):
        tokens.policy_group(chat_tokenizer, chat, ["use sort"], 99)
        tokens.reward_group(chat_tokenizer, chat, ["use sort", "no"], 999)
        tokens.policy_group(chat_tokenizer, [USER], ["use sort"], 99)
    lines = [line for line in capsys.readouterr().err.splitlines() if "leaves out" in line]
    assert len(lines) == (left_out is not None)
    assert all(f"leaves out {left_out}" in line for line in lines)


def test_the_first_chat_that_a_template_refuses_is_told_with_its_words(tokenizer, capsys, monkeypatch):
    monkeypatch.setattr(tokens, "_told", set())
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
    )
    chat_tokenizer = with_template(tokenizer, template)
    for chat in ([SYSTEM, USER], [SYSTEM, USER, ASSISTANT, USER]):
        with pytest.raises(TemplateError):
            tokens.policy_group(chat_tokenizer, chat, ["use sort"], 99)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "refuses" in line]
    assert line.endswith("refuses chats such as system, user, which have no score: System role not supported")


@pytest.mark.parametrize(
    ("template", "header"),
    [
        (TURNS, None),
        (THINKING, None),
        (TURNS.partition("{% if add_generation_prompt %}")[0], "'<start_of_turn>assistant\\n'"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None),
    ],
)
def test_a_policy_that_continues_a_prompt_without_its_header_is_told(template, header, tokenizer, capsys, monkeypatch):
    monkeypatch.setattr(tokens, "_looked_at", set())
    monkeypatch.setattr(tokens, "_told", set())
    chat_tokenizer = with_template(tokenizer, template)
    for prompt in ("sort", [USER, ASSISTANT, USER]):
        tokens.policy_group(chat_tokenizer, prompt, ["use sort"], 99)
        tokens.reward_group(chat_tokenizer, prompt, ["use sort", "no"], 99)
    lines = [line for line in capsys.readouterr().err.splitlines() if "add_generation_prompt" in line]
    assert len(lines) == (header is not None) and all(f"without {header}, which" in line for line in lines)


@pytest.mark.parametrize("template", ["idefics3", "smolvlm"])
def test_a_template_that_writes_no_text_is_refused(template, tokenizer):
    trl = pytest.importorskip("trl", reason="trainers are not installed")
    file = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
    chat_tokenizer = with_template(tokenizer, file.read_text())
    for group in (tokens.policy_group, tokens.reward_group):
        with pytest.raises(ModelError, match="writes nothing of what the user says"):
            group(chat_tokenizer, "sort the list", ["use sort"], 99)


def test_a_template_without_the_answer_gives_a_policy_its_prompt_and_a_reward_model_nothing(tokenizer):
    chat_tokenizer = with_template(tokenizer, "{{ messages[0].content }}")
    ids, _, _ = tokens.policy_group(chat_tokenizer, "sort", ["use sort"], 99)
    assert chat_tokenizer.decode(ids) == "sort"
    with pytest.raises(ModelError, match="does not write the answer"):
        tokens.reward_group(chat_tokenizer, "sort", ["use sort", "no"], 99)


def test_an_answer_is_cut_where_it_stands_and_what_closes_it_stays(tokenizer):
    chat_tokenizer = with_template(tokenizer, THINKING)
    long = "use sort on list " * 9
    whole = plain_call(chat_tokenizer, "sort", long)
    close = chat_tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    begin = chat_tokenizer(
        "<|im_start|>user\nsort<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", add_special_tokens=False
    )
    start = len(begin["input_ids"])
    for limit in range(start, len(whole) + 2):
        room = limit - start - len(close)
        expected = None if room < 1 else [*whole[: limit - len(close)], *close] if limit < len(whole) else whole
        assert tokens.reward_ids(chat_tokenizer, "sort", long, limit) == expected


@pytest.fixture
def thinking_reward(tokenizer, decoder_reward_folder, tmp_path) -> Path:
    folder = shutil.copytree(decoder_reward_folder, tmp_path / "reward")
    (folder / "chat_template.jinja").write_text(THINKING)
    return folder


def test_rewards_of_a_template_that_thinks_equal_plain_calls(thinking_reward):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    chat_tokenizer = AutoTokenizer.from_pretrained(thinking_reward)
    model = AutoModelForSequenceClassification.from_pretrained(thinking_reward).eval()
    scored = SequenceClassifier(path=str(thinking_reward), dtype="float32").load().rewards(PROMPTS, [ANSWERS] * 3)
    for prompt, row in zip(PROMPTS, scored, strict=True):
        for answer, score in zip(ANSWERS, row, strict=True):
            with torch.no_grad():
                wanted = float(model(input_ids=torch.tensor([plain_call(chat_tokenizer, prompt, answer)])).logits[0, 0])
            assert score == pytest.approx(wanted, abs=1e-4)


def test_an_empty_answer_closed_by_padding_is_read_at_the_prompts_last_token(
    tokenizer, decoder_reward_folder, tmp_path
):
    """As transformers reads it: at the last token that is not padding, and here padding closes the turn."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = shutil.copytree(decoder_reward_folder, tmp_path / "reward")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|pad|>{% endfor %}"
    )
    chat_tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ((empty, full),) = (
        SequenceClassifier(path=str(folder), dtype="float32").load().rewards(["sort"], [["", "use sort"]])
    )
    for answer, score in (("", empty), ("use sort", full)):
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([plain_call(chat_tokenizer, "sort", answer)])).logits[0, 0]
        assert score == pytest.approx(float(wanted), abs=1e-4)


def test_a_policy_continues_the_generation_prompt_with_the_templates_arguments(tokenizer):
    chat_tokenizer = with_template(tokenizer, THINKING)
    begin = "<|im_start|>user\nsort<|im_end|>\n<|im_start|>assistant\n"
    for arguments, thought in ((None, ""), ({"think": False}, "<think>\n\n</think>\n\n")):
        form = tokens.form_of(chat_tokenizer, FormSettings(template=arguments))
        before, after = tokens.policy_ids(chat_tokenizer, "sort", "use sort", 99, form)
        assert (chat_tokenizer.decode(before), chat_tokenizer.decode(after)) == (begin + thought, "use sort<|im_end|>")


# ── where a policy's answer ends ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("template", "ends", "closing"),
    [
        (TURNS, ["<end_of_turn>", "<|im_end|>"], "<end_of_turn>"),
        (TURNS, ["<|im_end|>", "<end_of_turn>"], "<end_of_turn>"),
        (TURNS, ["<end_of_turn>"], "<end_of_turn>"),
        # The model was never made to end by it.
        (TURNS, ["<|im_end|>"], "<|im_end|>"),
        (TURNS, [], "<|im_end|>"),
        # The template writes none of the model's ends, or nothing after an answer at all.
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", ["<end_of_turn>"], "<|im_end|>"),
        ("{{ messages[0].content }}", ["<end_of_turn>"], "<|im_end|>"),
        (
            "{{ messages[0].content }}{{ raise_exception('no answers') if messages|length > 1 }}",
            ["<end_of_turn>"],
            "<|im_end|>",
        ),
    ],
)
def test_an_answer_ends_as_the_model_ends_turns(template, ends, closing, tokenizer):
    chat_tokenizer = with_template(tokenizer, template)
    chat_tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    form = tokens.form_of(chat_tokenizer, FormSettings(), chat_tokenizer.convert_tokens_to_ids(ends))
    assert chat_tokenizer.convert_ids_to_tokens(form.end) == closing
    assert (
        chat_tokenizer.decode(tokens.policy_ids(chat_tokenizer, "sort", "use sort", 99, form)[1])
        == f"use sort{closing}"
    )
    assert (
        chat_tokenizer.decode(tokens.policy_group(chat_tokenizer, "sort", ["use sort"], 99, form)[1][0])
        == f"use sort{closing}"
    )
    # In a form without turns, texts end.
    bare = tokens.form_of(chat_tokenizer, FormSettings(form="bare"), chat_tokenizer.convert_tokens_to_ids(ends))
    assert (
        chat_tokenizer.decode(tokens.policy_ids(chat_tokenizer, "sort", "use sort", 99, bare)[1])
        == "use sort<|im_end|>"
    )


@pytest.fixture
def turning_policy(tokenizer, tmp_path) -> Path:
    """A policy as Gemma's: `generation_config` names two ends, the template writes one of them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

    chat_tokenizer = with_template(tokenizer, TURNS)
    set_seed(0)
    config = Qwen2Config(
        vocab_size=len(chat_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, eos_token_id=chat_tokenizer.eos_token_id,
        bos_token_id=None, pad_token_id=chat_tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [
        chat_tokenizer.eos_token_id,
        chat_tokenizer.convert_tokens_to_ids("<end_of_turn>"),
    ]
    model.save_pretrained(tmp_path / "policy")
    chat_tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def test_likelihoods_count_the_token_that_ends_a_turn(turning_policy):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chat_tokenizer, model = (
        AutoTokenizer.from_pretrained(turning_policy),
        AutoModelForCausalLM.from_pretrained(turning_policy),
    )
    ids = [chat_tokenizer(text, add_special_tokens=False)["input_ids"] for text in (
        "<start_of_turn>user\nsort<end_of_turn>\n<start_of_turn>assistant\n", "use sort<end_of_turn>"
    )]  # fmt: skip
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids[0] + ids[1]])).logits[0].double().log_softmax(-1)
    wanted = math.fsum(float(logits[len(ids[0]) - 1 + i, token]) for i, token in enumerate(ids[1]))
    config = CausalLM(path=str(turning_policy), dtype="float32")
    ((found,),) = config.load().logprobs(["sort"], [["use sort"]])
    assert (found.logprob, found.tokens) == (pytest.approx(wanted, abs=1e-4), len(ids[1]))
    # Whoever writes prompts for trainers knows it from the files alone; they are part of the identity.
    assert config.prompt_form().end == chat_tokenizer.convert_tokens_to_ids("<end_of_turn>")
    before = config.identity()
    (turning_policy / "generation_config.json").write_text(f'{{"eos_token_id": {chat_tokenizer.eos_token_id}}}')
    assert config.prompt_form().end == chat_tokenizer.eos_token_id and config.identity() != before


def test_fine_tuning_learns_the_token_that_ends_a_turn(turning_policy, tmp_path, monkeypatch):
    trl = pytest.importorskip("trl", reason="trainers are not installed")
    from seamcurate.train import SFTTraining, sft

    seen: list[dict[str, Any]] = []

    class Spy(trl.SFTTrainer):
        def __init__(self, *rest: Any, **named: Any) -> None:
            seen.extend(named["train_dataset"])
            super().__init__(*rest, **named)

    monkeypatch.setattr(trl, "SFTTrainer", Spy)
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "sort", "completion": "use sort"}\n')
    sft(turning_policy, data, tmp_path / "out", SFTTraining(max_steps=1, lora=False, eval_rows=0))
    chat_tokenizer = CausalLM(path=str(tmp_path / "out")).tokenizer()
    (row,) = seen
    learnt = [token for token, one in zip(row["input_ids"], row["completion_mask"], strict=True) if one]
    assert chat_tokenizer.decode(learnt) == "use sort<end_of_turn>"
    # And the trained policy is scored with it.
    assert CausalLM(path=str(tmp_path / "out")).prompt_form().end == learnt[-1]
