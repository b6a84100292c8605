"""The form of prompts: by a chat template, plain, bare, or a text of one's own, with the same ids as by hand."""

from __future__ import annotations

import datetime
import json
import shutil

import pytest
from pydantic import ValidationError

from seamcurate import CausalLM, SequenceClassifier
from seamcurate.errors import ModelError, RecipeError, TrainError
from seamcurate.models import tokens
from seamcurate.models.template import Form, FormSettings
from seamcurate.run.recipe import loads

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "sort the list"},
    {"role": "assistant", "content": "use sort"},
    {"role": "user", "content": "and then"},
    {"role": "user", "content": "merge it"},
]


@pytest.mark.parametrize(
    ("form", "prompt", "answer", "chat"),
    [
        ("plain", "Question: open a file\n\nAnswer:", " use open", None),
        ("bare", "open a file", "use open", "be brief\nsort the list\nuse sort\nand then\nmerge it"),
        (
            "Human: {prompt}\nRobot:",
            "Human: open a file\nRobot:",
            " use open",
            "be brief\n\nHuman: sort the list\nRobot: use sort\n\nHuman: and then\n\nmerge it\nRobot:",
        ),
        (
            "### {prompt}\n### ",
            "### open a file\n### ",
            "use open",
            "be brief\n\n### sort the list\n### use sort\n\n### and then\n\nmerge it\n### ",
        ),
    ],
)
def test_a_form_says_what_stands_around_prompt_and_answer(form, prompt, answer, chat, decoder_reward_folder, tokenizer):
    known = Form(form)
    assert (known.prompt("open a file"), known.response("use open")) == (prompt, answer)
    assert known.generated(answer) == "use open"
    if chat is not None:
        assert known.prompt(CHAT) == chat

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    # Also where the tokenizer has a chat template.
    read = CausalLM(path=str(decoder_reward_folder), form=form).prompt_form()
    end = tokenizer.eos_token_id
    assert tokens.policy_ids(tokenizer, "open a file", "use open", 99, read) == (ids(prompt), [*ids(answer), end])
    assert tokens.reward_ids(tokenizer, "open a file", "use open", 99, read) == [*ids(prompt + answer), end]


def test_the_text_of_the_plain_form_is_the_plain_form(tokenizer):
    text = Form("Question: {prompt}\n\nAnswer:")
    for prompt in ("sort", CHAT[:4]):
        assert text.prompt(prompt) == Form("plain").prompt(prompt)
    assert text.response("x") == Form("plain").response("x")


def test_a_form_s_own_special_tokens_are_tokens_and_a_prompt_s_are_text(tokenizer):
    read = tokens.form_of(tokenizer, FormSettings(form="<|im_start|>{prompt}<|im_end|>\n"))
    ids = tokens.prompt_ids(tokenizer, "sort<|im_end|>", read)
    assert (ids[0], ids.count(tokenizer.eos_token_id)) == (tokenizer.convert_tokens_to_ids("<|im_start|>"), 1)
    assert tokenizer.decode(ids) == "<|im_start|>sort<|im_end|><|im_end|>\n"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("form: chatty", "form is chat, plain, bare, or a text that contains {prompt}, not 'chatty'"),
        ("form: plain, template: {a: 1}", "this form uses none; leave one of the two out"),
        ("template: {tokenize: true}", "template: tokenize is set by scoring itself; leave it out"),
        ("date: someday", "date"),
        ("form: bare, pair: true", "unknown key"),
    ],
)
def test_a_wrong_form_in_a_recipe_is_one_line(setting, said):
    with pytest.raises(RecipeError) as refused:
        loads(f"rows: {{jsonl: rows.jsonl}}\nmodels:\n  policy: {{causal_lm: models/sft, {setting}}}\n")
    assert str(refused.value).startswith("recipe:3: models.policy") and said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_python_and_yaml_name_forms_alike():
    written = "{causal_lm: models/sft, form: 'Q: {prompt}', template: null, date: 2026-01-31}"
    recipe = loads(f"rows: {{jsonl: rows.jsonl}}\nmodels: {{policy: {written}}}\n")
    assert recipe.models.policy == CausalLM(path="models/sft", form="Q: {prompt}", date=datetime.date(2026, 1, 31))
    assert recipe.models.policy.model_dump(mode="json")["date"] == "2026-01-31"
    with pytest.raises(ValidationError, match="pair: true gives prompt and answer as two segments"):
        SequenceClassifier(path="x", pair=True, form="bare")


def test_settings_of_a_chat_template_need_one(policy_folder, decoder_reward_folder):
    """Before anything is computed: the fingerprint needs the model's identity."""
    for setting in ({"form": "chat"}, {"template": {"a": 1}}, {"date": datetime.date(2026, 1, 31)}):
        with pytest.raises(
            ModelError, match="needs a chat template, and its tokenizer has none; leave it out, or save"
        ):
            CausalLM(path=str(policy_folder), **setting).identity()
    with pytest.raises(ModelError, match="its prompts hold no date; leave `date` out"):
        CausalLM(path=str(decoder_reward_folder), date=datetime.date(2026, 1, 31)).identity()


def test_the_form_is_part_of_the_identity_only_where_it_is_set(decoder_reward_folder):
    path = str(decoder_reward_folder)
    same = [SequenceClassifier(path=path, **setting).identity() for setting in ({}, {"template": {}}, {"form": None})]
    assert same[0] == same[1] == same[2] and not {"form", "template", "date"} & set(same[0])
    other = [{"form": "chat"}, {"form": "bare"}, {"form": "{prompt}"}, {"template": {"a": 1}}, {"template": {"a": 2}}]
    made = [json.dumps(SequenceClassifier(path=path, **setting).identity()) for setting in other]
    assert len({json.dumps(same[0]), *made}) == 1 + len(other)


def test_arguments_reach_the_chat_template(decoder_reward_folder, tmp_path):
    folder = shutil.copytree(decoder_reward_folder, tmp_path / "thinker")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not think %}no thought {% endif %}{% endif %}"
    )
    for think, begin in ((False, "no thought "), (True, "")):
        model = SequenceClassifier(path=str(folder), template={"think": think})
        tokenizer = model.tokenizer()
        ids = tokens.prompt_ids(tokenizer, "sort", model.prompt_form(tokenizer))
        assert tokenizer.decode(ids) == f"<|im_start|>user\nsort<|im_end|><|im_start|>assistant\n{begin}"


def test_what_train_writes_into_a_tokenizer_is_its_form(decoder_reward_folder, tmp_path):
    model = CausalLM(path=str(decoder_reward_folder))
    tokenizer = model.tokenizer()
    assert model.prompt_form(tokenizer).chat
    tokens.remember_form(tokenizer, tokens.form_of(tokenizer, FormSettings(form="bare")))
    shutil.copytree(decoder_reward_folder, tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    trained = CausalLM(path=str(tmp_path / "trained"))
    assert trained.prompt_form().name == "bare"
    assert CausalLM(path=str(tmp_path / "trained"), form="chat").prompt_form().chat


@pytest.mark.slow
def test_a_form_travels_with_what_is_trained_in_it(policy_folder, tmp_path, monkeypatch):
    """Scoring, the next trainer and its rewards read the same ids, and nobody has to say the form again."""
    trl = pytest.importorskip("trl", reason="trainers are not installed")
    from seamcurate.train import GroupTraining, RewardTraining, SFTTraining, grpo, reward, sft

    seen: list[object] = []

    class Spy(trl.GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *rest, **named):
            seen.extend(prompt_ids)
            return super()._generate_single_turn(prompt_ids, *rest, **named)

    monkeypatch.setattr(trl, "GRPOTrainer", Spy)
    form = "Human: {prompt}\nRobot:"
    data, pairs = tmp_path / "d.jsonl", tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "sort", "completion": "use sort"}) + "\n")
    pairs.write_text(json.dumps({"prompt": "sort", "chosen": "use sort", "rejected": "no"}) + "\n")
    once = {"max_steps": 1, "lora": False, "eval_rows": 0, "max_length": 64}
    record = sft(policy_folder, data, tmp_path / "sft", SFTTraining(form=form, **once))
    assert record["config"]["form"] == form
    reward(tmp_path / "sft", pairs, tmp_path / "reward", RewardTraining(**once))
    options = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
    texts: list[str] = []

    def lengths(completions: list[str], **more: object) -> list[float]:
        texts.extend(completions)
        return [float(len(text)) for text in completions]

    grpo(tmp_path / "sft", lengths, data, tmp_path / "grpo", GroupTraining(**once, **options))
    for trained in ("sft", "reward", "grpo"):
        assert CausalLM(path=str(tmp_path / trained)).prompt_form().name == form
    tokenizer = CausalLM(path=str(tmp_path / "grpo")).tokenizer()
    assert seen == [tokenizer("Human: sort\nRobot:", add_special_tokens=False)["input_ids"]] * 2
    # Two models of the same files but for their form are two models.
    other = sft(policy_folder, data, tmp_path / "plain", SFTTraining(**once))
    assert other["tokens"] != record["tokens"] and other["config"]["form"] is None


def test_an_answer_is_asked_for_and_read_in_the_form(policy_folder, tmp_path):
    pytest.importorskip("trl", reason="trainers are not installed")
    import pyarrow.parquet as pq

    from seamcurate.train import Answering, answer

    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": "sort the list"}) + "\n")
    given = {}
    for form in (None, "plain", "bare"):
        out = tmp_path / "answers.parquet"
        assert answer(policy_folder, data, out, Answering(max_new_tokens=8, form=form)) == 1
        given[form] = pq.read_table(out)["response"].to_pylist()
    assert given[None] == given["plain"] != given["bare"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--form", "chatty"],
            "error: --form form is chat, plain, bare, or a text that contains {prompt}, not 'chatty'",
        ),
        (["--template", "x"], "error: --template is no JSON"),
        (["--template", "[1]"], "error: --template is a JSON object, like"),
        (["--form", "chat"], "`form: chat` needs a chat template, and its tokenizer has none"),
        (["--template", '{"a": 1}'], "`template` holds arguments of a chat template, and its prompts have the form"),
    ],
)
def test_a_trainer_s_wrong_form_is_one_line(options, said, policy_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl", reason="trainers are not installed")
    from seamcurate.cli import main

    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": "sort", "completion": "use sort"}) + "\n")
    command = ["seamcurate", "train", "sft", "--model", str(policy_folder), "--data", str(data), "--out"]
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert said in line


def test_a_yaml_file_configures_a_reward_model_with_its_form(decoder_reward_folder, tmp_path):
    from seamcurate import rewards

    file = tmp_path / "reward.yaml"
    file.write_text(json.dumps({"sequence_classifier": str(decoder_reward_folder), "form": "bare"}))
    model = SequenceClassifier(path=str(decoder_reward_folder), form="bare")
    assert rewards.read(str(file))(["sort"], ["use sort"]) == model.load().rewards(["sort"], [["use sort"]])[0]
    assert rewards.read(str(file))(["sort"], ["use it"]) != rewards.read(str(decoder_reward_folder))(
        ["sort"], ["use it"]
    )
    file.write_text(json.dumps({"sequence_classifier": "x", "form": "chatty"}))
    with pytest.raises(TrainError, match="form is chat, plain, bare"):
        rewards.read(str(file))


def test_a_reward_model_whose_text_nothing_decides_says_what_it_reads(
    encoder_reward_folder, decoder_reward_folder, capsys
):
    SequenceClassifier(path=str(encoder_reward_folder)).load()
    assert (
        r"it reads 'Question: …\n\nAnswer: …'. Write `form` for another text, or `pair: true`"
        in capsys.readouterr().err
    )
    for decided in (
        SequenceClassifier(path=str(encoder_reward_folder), form="plain"),
        SequenceClassifier(path=str(encoder_reward_folder), pair=True),
        SequenceClassifier(path=str(decoder_reward_folder)),
    ):
        decided.load()
        assert "it reads" not in capsys.readouterr().err
