"""GGUF files: a tiny policy written as one is scored as the policy is; damaged and foreign files are refused."""

from __future__ import annotations

import json
import shutil
import sys

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from seamcurate import CausalLM, Recipe, plan
from seamcurate.errors import ModelError, RecipeError, TrainError
from seamcurate.models import weights
from seamcurate.models.gguf_file import header
from seamcurate.run.recipe import loads

PROMPTS = ["how do I sort the list 12", "open a file"]
RESPONSES = [["use sort on list", "no"], ["open it"]]
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(policy, file, tokenizer=None, template=None, splits="qwen2", kind=gguf.GGMLQuantizationType.F32, **values):
    """Write a Qwen2 folder's model as a GGUF file, its tokenizer with it where one is given."""
    model = AutoModelForCausalLM.from_pretrained(policy)
    config = model.config
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    # transformers 4.57 has it on its own.
    writer.add_rope_freq_base((getattr(config, "rope_parameters", None) or vars(config))["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if tokenizer is not None:
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        controls = {token["content"] for token in described["added_tokens"]}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splits)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in controls else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_pad_token_id(tokenizer.pad_token_id)
        if template is not None:
            writer.add_chat_template(template)
    for key, value in values.items():
        writer.add_uint16(key.replace("_", "."), value)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for i in range(config.num_hidden_layers):
        names |= {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in PARTS.items()}
    states = {name: value.float().numpy() for name, value in model.state_dict().items()}
    for ours, theirs in names.items():
        for suffix in ("weight", "bias"):
            if (value := states.get(f"{theirs}.{suffix}")) is not None:
                # As llama.cpp does, vectors stay as they are.
                one = kind if value.ndim == 2 else gguf.GGMLQuantizationType.F32
                writer.add_tensor(f"{ours}.{suffix}", gguf.quants.quantize(value, one), raw_dtype=one)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def file(policy_folder, tokenizer, tmp_path_factory):
    return write(policy_folder, tmp_path_factory.mktemp("gguf") / "model.gguf", tokenizer)


def scores(config):
    rows = config.load().logprobs(PROMPTS, RESPONSES)
    return [(one.logprob, one.tokens) for row in rows for one in row]


def test_a_gguf_file_is_scored_as_the_model_that_it_was_made_from(file, policy_folder, tokenizer):
    whole = CausalLM(path=str(policy_folder), dtype="float32")
    config = CausalLM(path=str(file), dtype="float32")
    for (ours, tokens), (expected, expected_tokens) in zip(scores(config), scores(whole), strict=True):
        assert ours == pytest.approx(expected, abs=1e-4) and tokens == expected_tokens
    assert config.prompt_form() == whole.prompt_form()
    assert config.count_tokens(["sort the list"]) == whole.count_tokens(["sort the list"])
    assert config.load().logprobs([""], [["a" * 2000]])[0][0] == whole.load().logprobs([""], [["a" * 2000]])[0][0]


def test_quantised_blocks_are_dequantised_to_the_values_that_the_file_means(policy_folder, tokenizer, tmp_path):
    """8-bit blocks of 32; the same values in a folder are scored the same."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3, **sizes)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path / "whole")
    kind = gguf.GGMLQuantizationType.Q8_0
    quantised = write(tmp_path / "whole", tmp_path / "q8.gguf", tokenizer, kind=kind)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.copy_(torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), kind), kind)))
    model.save_pretrained(tmp_path / "dequantised")
    for folder in ("whole", "dequantised"):
        tokenizer.save_pretrained(tmp_path / folder)
    ours, same, before = (
        [logprob for logprob, _ in scores(CausalLM(path=str(path), dtype="float32"))]
        for path in (quantised, tmp_path / "dequantised", tmp_path / "whole")
    )
    assert ours == pytest.approx(same, abs=1e-4) and ours != pytest.approx(before, abs=1e-3)


def test_another_tokenizer_is_read_in_place_of_the_files_own(file, policy_folder, decoder_reward_folder, tmp_path):
    bare = write(policy_folder, tmp_path / "bare.gguf")
    for attempt in (CausalLM(path=str(bare)).load, lambda: CausalLM(path=str(bare)).count_tokens(["a"])):
        with pytest.raises(ModelError, match=r"bare\.gguf holds no tokenizer; name the folder, .* by `tokenizer_of`"):
            attempt()
    # A folder with a template, so that the form is its.
    config = CausalLM(path=str(bare), tokenizer_of=str(decoder_reward_folder), dtype="float32")
    whole = tmp_path / "whole"
    shutil.copytree(policy_folder, whole)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        shutil.copy(decoder_reward_folder / name, whole)
    expected = scores(CausalLM(path=str(whole), dtype="float32"))
    assert [logprob for logprob, _ in scores(config)] == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)
    assert config.prompt_form() == CausalLM(path=str(whole)).prompt_form()
    with pytest.raises(ModelError, match="holds no tokenizer; give `tokenizer_of` a folder"):
        CausalLM(path=str(bare), tokenizer_of=str(tmp_path)).identity()


def test_a_tokenizer_that_transformers_does_not_know_how_to_cut_texts_for_is_told(
    policy_folder, tokenizer, tmp_path, capfd
):
    for splits in ("qwen2", "smollm"):
        CausalLM(path=str(write(policy_folder, tmp_path / f"{splits}.gguf", tokenizer, splits=splits))).tokenizer()
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning:")]
    assert (
        len(told) == 1
        and "smollm.gguf: transformers cuts texts as GPT-2 does, where this tokenizer says 'smollm'" in told[0]
    )


def test_the_identity_of_a_gguf_file_is_its_content_and_its_tokenizers(file, policy_folder, tokenizer, tmp_path):
    def identity(path, **settings):
        return CausalLM(path=str(path), **settings).identity()["causal_lm"]

    shutil.copy(file, tmp_path / "renamed.gguf")
    assert identity(file) == identity(tmp_path / "renamed.gguf") and identity(file).startswith("sha256:")
    assert "tokenizer_of" not in CausalLM(path=str(file)).identity()
    shutil.copytree(policy_folder, tmp_path / "elsewhere")
    own, other = identity(file), identity(file, tokenizer_of=str(policy_folder))
    assert other == identity(file, tokenizer_of=str(tmp_path / "elsewhere")) and other.startswith(f"{own} with sha256:")
    # The weights beside the tokenizer are not read.
    (tmp_path / "elsewhere" / "model.safetensors").unlink()
    assert other == identity(file, tokenizer_of=str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere" / "chat_template.jinja").write_text(TEMPLATE)
    assert other != identity(file, tokenizer_of=str(tmp_path / "elsewhere"))


def test_a_template_in_a_gguf_file_is_the_form_of_its_prompts(
    policy_folder, decoder_reward_folder, tokenizer, tmp_path
):
    from tokenizers import AddedToken

    chats = write(policy_folder, tmp_path / "chats.gguf", tokenizer, TEMPLATE)
    assert header(chats).template == TEMPLATE and header(chats).ends == (tokenizer.eos_token_id,)
    config = CausalLM(path=str(chats), dtype="float32")
    assert config.prompt_form().name == "chat"
    other = CausalLM(path=str(write(policy_folder, tmp_path / "bare.gguf")), tokenizer_of=str(decoder_reward_folder))
    assert scores(config) == scores(other)
    dated = write(policy_folder, tmp_path / "dated.gguf", tokenizer, "{{ strftime_now('%d %b') }}" + TEMPLATE)
    assert CausalLM(path=str(dated))._writes_date and not config._writes_date
    with pytest.raises(ModelError, match="`form: chat` needs a chat template"):
        CausalLM(path=str(write(policy_folder, tmp_path / "none.gguf", tokenizer)), form="chat").identity()
    # Characters outside the byte alphabet: transformers does not know such a control token for one.
    longer = type(tokenizer).from_pretrained(policy_folder)
    longer.add_special_tokens({"additional_special_tokens": [AddedToken("<｜user｜>", special=True)]})
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    model.resize_token_embeddings(len(longer))
    model.save_pretrained(tmp_path / "longer")
    cut = write(tmp_path / "longer", tmp_path / "cut.gguf", longer, TEMPLATE.replace("<|im_start|>", "<｜user｜>"))
    with pytest.raises(ModelError, match=r"reads the control token '<｜user｜>' of its tokenizer as \d+ others; name"):
        CausalLM(path=str(cut)).load()


def test_a_file_that_cannot_be_read_whole_is_refused_in_one_line(file, policy_folder, tokenizer, tmp_path, monkeypatch):
    def refused(path, said, **settings):
        config = CausalLM(path=str(path), **settings)
        for attempt in (lambda: weights.check(config.origin), config.load):
            with pytest.raises(ModelError, match=said) as error:
                attempt()
            assert "\n" not in str(error.value)

    content = file.read_bytes()
    for length, said in (
        (len(content) - 100, "cut short"),
        (3000, "cut short"),
        (30, "cut short"),
        (2, "no GGUF file"),
    ):
        (tmp_path / "short.gguf").write_bytes(content[:length])
        refused(tmp_path / "short.gguf", said)
    refused(tmp_path / "gone.gguf", "is not there; give the path of a file|is no folder here")
    refused("gone.gguf", r"GGUF file gone\.gguf is not there; give the path of a file, or org/repository/file\.gguf")
    refused("org/repository/gone.gguf", "'org/repository' is no folder here, and the Hub did not answer")
    parts = write(policy_folder, tmp_path / "model-00001-of-00003.gguf", tokenizer, split_count=3)
    refused(parts, "is one of 3 parts of a model; join them by `llama-gguf-split --merge`")
    for package in ("gguf", "accelerate"):
        copy = tmp_path / f"{package}.gguf"
        shutil.copy(file, copy)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            refused(copy, rf"the package {package}, which is not installed; .*pip install .*\[gguf\]")


def test_a_kind_of_model_that_transformers_does_not_read_from_such_files_is_refused_in_one_line(file, tmp_path):
    content = file.read_bytes()
    (tmp_path / "other.gguf").write_bytes(content.replace(b"qwen2", b"qwenX"))
    with pytest.raises(ModelError, match="qwenX") as error:
        CausalLM(path=str(tmp_path / "other.gguf")).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "reward: {sequence_classifier: model.gguf}",
            r"GGUF file is read as a policy \(causal_lm\); give a reward model",
        ),
        ("encoder: {sentence_encoder: model.gguf}", "GGUF file is read as a policy .*; give an encoder as a folder"),
        ("policy: {causal_lm: model.gguf, base: other}", "a GGUF file is no adapter; leave base out"),
        ("policy: {causal_lm: model, tokenizer_of: other}", "tokenizer_of is for a GGUF file"),
    ],
)
def test_a_gguf_file_where_none_is_read_is_refused_with_its_place_in_the_recipe(model, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        loads(f"rows: {{jsonl: q.jsonl}}\nmodels: {{{model}}}\nsteps: [random: {{}}]\n", tmp_path)


def test_a_recipe_names_a_file_beside_it(file, tmp_path):
    shutil.copy(file, tmp_path / "model.gguf")
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": PROMPTS[0], "response": RESPONSES[0][0]}))
    text = "rows: {jsonl: q.jsonl}\nmodels: {base: {causal_lm: model.gguf}}\nsteps: [perplexity: {}]\n"
    recipe = loads(text, tmp_path)
    assert isinstance(recipe, Recipe) and recipe.models.base.path == str(tmp_path / "model.gguf")
    (line,) = plan(recipe, str(tmp_path / "store")).lines
    assert (line.calls, line.tokens > 5) == (1, True)


def test_a_file_of_the_hub_is_known_by_its_commit(file, policy_folder, tmp_path, monkeypatch):
    """As the Hub's client keeps it: nothing is asked of the network."""
    from huggingface_hub import constants

    commit, kept = "c" * 40, tmp_path / "models--org--files"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    (kept / "snapshots" / commit / "q8").mkdir(parents=True)
    shutil.copy(file, kept / "snapshots" / commit / "q8" / "model.gguf")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = CausalLM(path="org/files/q8/model.gguf")
    assert config.identity()["causal_lm"] == f"org/files/q8/model.gguf@{commit}"
    assert scores(config) == scores(CausalLM(path=str(file)))
    with pytest.raises(ModelError, match=r"'org/files' is no folder here|has no file"):
        CausalLM(path="org/files/q4/model.gguf").identity()


def test_training_from_a_gguf_file_is_refused(file):
    from seamcurate.train import SFTTraining
    from seamcurate.train.training import identity

    with pytest.raises(TrainError, match="is a GGUF file, which can only score"):
        identity(str(file), SFTTraining())
