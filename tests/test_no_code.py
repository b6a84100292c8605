"""Nothing that comes with data or models runs: no pickle, no remote code, no template that leaves its sandbox."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_files

import seamcurate
from seamcurate import CausalLM, Recipe, SentenceEncoder, SequenceClassifier, Store, plan, query, run_local
from seamcurate.errors import DamagedError, ModelError, SeamcurateError
from seamcurate.models import tokens, weights
from seamcurate.models.masked import MaskedModel

PACKAGE = Path(seamcurate.__file__).parent
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is(call: ast.Call, keyword: str, value: object) -> bool:
    found = next((k.value for k in call.keywords if k.arg == keyword), None)
    return isinstance(found, ast.Constant) and found.value is value


def _dangers(source: str) -> list[str]:
    """Name what in a source could run code that came with data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in RUNS_CODE]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_CODE:
            found.append(str(node.module))
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func)
        if name in {"eval", "exec", "os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle"}:
            found.append(name)
        if name.startswith("yaml.") and name.split(".")[1] in {"load", "load_all", "full_load", "unsafe_load"}:
            found.append(name)
        if name == "torch.load" and not _is(node, "weights_only", True):
            found.append(name)
        if name in {"np.load", "numpy.load"} and not _is(node, "allow_pickle", False):
            found.append(name)
        if _is(node, "trust_remote_code", True) or _is(node, "shell", True) or _is(node, "allow_pickle", True):
            found.append(f"{name} with a flag")
        # peft's configurations are JSON alone.
        is_asked = name.endswith(".from_pretrained") and name != "peft.PeftConfig.from_pretrained"
        if is_asked and not any(k.arg == "trust_remote_code" for k in node.keywords):
            # Left out, transformers asks at the keyboard, and Enter in the wrong place runs it.
            found.append(f"{name} without trust_remote_code")
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_no_module_reads_pickles_or_runs_what_it_reads(file):
    assert _dangers(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load('x')",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "eval(text)",
        "A.from_pretrained('x')",
        "A.from_pretrained('x', trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds_each_of_them(source):
    assert _dangers(source)


EVIL = "from pathlib import Path\nPath({!r}).write_text('ran')\n"


@pytest.fixture
def with_code(policy_folder, tmp_path) -> tuple[Path, Path]:
    """A model folder that brings code of its own, and the file that its code would write."""
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(policy_folder, folder)
    (folder / "evil.py").write_text(
        EVIL.format(str(mark)) + "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class EvilConfig(Qwen2Config):\n    model_type = 'evil'\nclass EvilModel(Qwen2ForCausalLM):\n"
        "    config_class = EvilConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    kinds = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForMaskedLM")
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.EvilConfig"} | dict.fromkeys(kinds, "evil.EvilModel"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, mark


@pytest.mark.slow
def test_code_that_comes_with_weights_runs_only_where_it_is_asked_for(with_code, tmp_path, monkeypatch, capsys):
    from seamcurate.train import SFTTraining, sft

    folder, mark = with_code
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("nobody is asked at the keyboard"))
    data = tmp_path / "d.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 4, "completion": ["b"] * 4}), data)
    for attempt in (
        lambda: CausalLM(path=str(folder)).load(),
        lambda: SequenceClassifier(path=str(folder)).load(),
        lambda: SentenceEncoder(path=str(folder), pooling="mean").load(),
        lambda: SentenceEncoder(path=str(folder)).load(),
        lambda: MaskedModel(str(folder), 3),
        lambda: sft(folder, data, tmp_path / "out", SFTTraining()),
    ):
        with pytest.raises(SeamcurateError) as refused:
            attempt()
        assert "\n" not in str(refused.value) and not mark.exists()
    trusted = CausalLM(path=str(folder), trust_remote_code=True)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    capsys.readouterr()
    trusted.load()
    assert mark.read_text() == "ran"
    assert "warning: causal_lm" in capsys.readouterr().err
    assert trusted.identity()["trust_remote_code"] is True
    assert CausalLM(path=str(folder)).identity()["trust_remote_code"] is False


@pytest.mark.parametrize("kind", [CausalLM, SequenceClassifier, SentenceEncoder])
def test_a_folder_of_pickled_weights_alone_is_refused_in_one_line(kind, policy_folder, tmp_path):
    import torch

    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(policy_folder, folder)
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (Path.write_text, (mark, "ran"))

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    for attempt in (kind(path=str(folder)).load, kind(path=str(folder)).identity):
        with pytest.raises(ModelError) as refused:
            attempt()
        assert "\n" not in str(refused.value) and not mark.exists()
    assert "no .safetensors weights" in str(refused.value)


def test_pickled_weights_are_not_even_fetched():
    from huggingface_hub.utils import filter_repo_objects

    pickled = ["pytorch_model.bin", "1_Pooling/pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt"]
    there = [*pickled, "tf_model.h5", "model.safetensors", "config.json"]
    assert [*filter_repo_objects(there, allow_patterns=list(weights.FILES))] == ["model.safetensors", "config.json"]


def test_neither_training_nor_attacks_read_pickled_weights(policy_folder, masked_folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from seamcurate.train import SFTTraining
    from seamcurate.train.training import open_model

    attempts = {
        policy_folder: lambda folder: open_model(folder, AutoModelForCausalLM, SFTTraining()),
        masked_folder: lambda folder: MaskedModel(str(folder), 3),
    }
    for original, attempt in attempts.items():
        folder = tmp_path / original.name
        shutil.copytree(original, folder)
        (folder / "model.safetensors").unlink()
        torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
        with pytest.raises(SeamcurateError, match=r"safetensors") as refused:
            attempt(folder)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{% set x = cycler.__init__.__globals__.os.system('touch ' ~ messages[0].content) %}",
        "{{ self.__init__.__globals__ }}",
        "{{ (messages|attr('__class__')).__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(template, tokenizer, tmp_path):
    from jinja2.exceptions import TemplateError
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    made.chat_template = template
    mark = tmp_path / "ran"
    with pytest.raises(TemplateError):
        tokens.prompt_ids(made, str(mark))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ range(10 ** 9) }}", "OverflowError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_a_chat_template_that_fails_is_named_in_one_line(template, said, tokenizer):
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, name_or_path="their/model")
    made.chat_template = template
    with pytest.raises(ModelError, match=f"the chat template of their/model fails: {said}: .*; correct it") as refused:
        tokens.reward_group(made, "a prompt", ["one", "two"], 100)
    assert "\n" not in str(refused.value)


LOOPING = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
IN_A_SECOND = "from seamcurate.models import tokens; tokens._SECONDS = 1.0; from seamcurate.cli import main; main()"


def test_a_recipe_with_a_reward_function_is_read_and_planned_without_running_it(tmp_path):
    write_files(tmp_path)
    mark = tmp_path / "ran"
    (tmp_path / "verifier.py").write_text(EVIL.format(str(mark)) + "def score(completions, reference): return [1.0]\n")
    (tmp_path / "recipe.yaml").write_text(
        "rows: {parquet: rows.parquet, response: response, reference: reference}\n"
        "models: {reward: {function: 'verifier.py:score'}}\nsteps: [reward: {}]\n"
    )
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert plan(recipe, tmp_path / "store").rows == 40
    assert [step.identity() for step in recipe.ready()] and not mark.exists()
    # A run is what runs it, in a process of its own.
    run_local(recipe, tmp_path / "store")
    assert mark.read_text() == "ran" and "reward_function" not in sys.modules


def test_a_chat_template_that_loops_for_long_ends_the_command_in_one_line(decoder_reward_folder, tmp_path):
    write_files(tmp_path)
    shutil.copytree(decoder_reward_folder, tmp_path / "theirs")
    (tmp_path / "theirs/chat_template.jinja").write_text(LOOPING)
    (tmp_path / "recipe.yaml").write_text(
        "rows: {parquet: rows.parquet}\ncorpus: {parquet: corpus.parquet}\n"
        "models: {policy: {fake: p}, reward: {sequence_classifier: theirs}, encoder: {fake: e}}\n"
        "steps: [retrieve: {k: 5, band: [0.5, 0.9]}, seam: {k: 5}]\n"
    )
    command = [sys.executable, "-c", IN_A_SECOND, "run", str(tmp_path / "recipe.yaml"), str(tmp_path / "store")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1] == (
        f"error: the chat template of {tmp_path}/theirs is not done with a row after 1 seconds; correct it, or take "
        "another model"
    )


@pytest.mark.slow
def test_a_link_in_a_store_s_place_for_a_shard_is_not_followed(recipe, tmp_path):
    run_local(recipe(splits={}), tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    shard = tmp_path / "theirs/rows/00001.parquet"
    shard.unlink()
    shard.symlink_to(tmp_path / "mine/rows/00001.parquet")
    with pytest.raises(DamagedError, match="is a link and no file of the store"):
        query(Store(tmp_path / "theirs"), "SELECT * FROM rows")
    # A store on another disk, or a folder of it, may be linked: that is its owner's doing.
    (tmp_path / "linked").symlink_to(tmp_path / "mine")
    assert query(Store(tmp_path / "linked"), "SELECT * FROM rows").num_rows == 40
