"""The races run and compare answers; how fast they are is measured, never tested."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import machine, processes, table, work
from benchmarks import race as race_module
from benchmarks.__main__ import ALL, NAMES, _earlier
from benchmarks.race import Peer, Work, race

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_every_name_has_a_race_and_a_line_in_the_readme():
    told = (FOLDER / "README.md").read_text()
    for name in NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        assert module.__doc__ and callable(module.main) and f"`{name}`" in told


def test_a_race_records_a_line_a_peer_and_refuses_answers_that_differ(capsys, monkeypatch):
    monkeypatch.setattr(race_module, "lines", [])
    peers = {"peer": Peer(lambda: 1), "int8": Peer(lambda: 2, precise=False)}
    race("b", "some", lambda: 1, peers, lambda a, b: a == b, 2, work=Work(1e6, 3.0), difference=lambda a, b: b - a)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == race_module.lines
    assert [(line["against"], line["same"], line["difference"]) for line in lines] == [
        ("peer", True, 0),
        ("int8", False, 1),
    ]
    for line in lines:
        assert line["repeats"] == 2 and line["token_ratio"] == 3.0
        rate = max(line["product"]["float32"].values())
        assert line["share"]["ours"] == pytest.approx(1e6 / line["ours"] / rate / 1e9, abs=0.001)
    with pytest.raises(SystemExit, match="the answers of seamcurate and of peer differ"):
        race("b", "some", lambda: 1, {"peer": Peer(lambda: 2)}, lambda a, b: a == b, 1)
    assert json.loads(capsys.readouterr().out)["same"] is False


def test_a_race_counts_the_processor_time_of_processes_that_a_side_has(capsys):
    def busy() -> bool:
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
        return True

    race("b", "some", lambda: True, {"peer": Peer(busy)}, lambda a, b: a == b, 1)
    # The two clocks are not read at the same moment.
    assert json.loads(capsys.readouterr().out)["theirs"] >= 0.25


def test_the_work_of_a_model_is_what_a_profiler_counts(tmp_path):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel, Qwen2Config, Qwen2ForCausalLM

    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    policy = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, attn_implementation="eager"))
    encoder = BertModel(BertConfig(**sizes, attn_implementation="eager"))
    ids = torch.arange(20)[None]
    counted = []
    for model in (policy, encoder):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(input_ids=ids)
        counted.append(counter.get_total_flops())
    # The profiler counts the attention of eager layers to later tokens too, 400 pairs in place of 210, and all logits.
    expected = work.of_policy(policy.config, [(20, [1])]).flops
    masked = 3 * 4 * 4 * 8 * (400 - 210)
    assert expected + masked + 2 * 32 * 50 * 19 == counted[0]
    assert work.of_encoder(encoder.config, [20], pooler=True).flops == counted[1]
    assert work.token_ratio([(10, [5, 5]), (4, [1])]) == (30 + 5) / (20 + 5)


def test_rewards_of_packs_are_those_of_peers(capsys, monkeypatch):
    from benchmarks import inputs, rewards

    monkeypatch.setattr(inputs, "groups", lambda rows, count, *_: (["how?"], [["so", "or so", "no " * 9]]))
    rewards.main(0.1)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    raced = [line for line in lines if "ratio" in line]
    assert len(raced) >= 10 and all(line["same"] or line["reduced_precision"] for line in raced)
    assert all(line["install"] for line in lines if "ratio" not in line)


def test_loops_by_hand_give_the_likelihoods_of_packs(capsys, monkeypatch):
    from benchmarks import inputs, likelihood

    monkeypatch.setattr(inputs, "groups", lambda rows, count, *_: (["how?"], [["so", "or so", "no " * 9]]))
    likelihood.main(0.1)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    raced = [line for line in lines if "ratio" in line]
    assert {line["against"].split(",")[0] for line in raced} >= {"KV-cache loop", "transformers"}
    assert all(line["same"] and line["share"]["ours"] > 0 for line in raced)


def test_searches_find_what_brute_force_finds():
    from benchmarks import retrieval

    draw = np.random.default_rng(0)
    base = draw.standard_normal((5, 16)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    corpus, queries = retrieval.around(base, 3000, 1), retrieval.around(base, 12, 2)
    exact = retrieval.brute_force(queries, corpus)
    assert max(map(len, exact)) == retrieval.K
    assert retrieval.by_torch(queries, corpus) == retrieval.by_numpy(queries, corpus) == exact
    assert retrieval.by_faiss(queries, corpus, True) == retrieval.by_faiss(queries, corpus, False) == exact


@pytest.mark.parametrize("name", ["split", "sql", "overhead", "contamination"])
def test_small_races_agree(name, capsys, monkeypatch):
    from benchmarks import inputs

    some = [(f"what is {i} for, and when is it used?", f"it is used for {i} things " * (1 + i % 3)) for i in range(400)]
    monkeypatch.setattr(inputs, "pairs", lambda: some)
    inputs.tokenizer.cache_clear()
    if name == "overhead":
        monkeypatch.setattr(inputs, "groups", lambda rows, count, *_: (["how?"], [[f"so {i}" for i in range(31)]]))
    importlib.import_module(f"benchmarks.{name}").main(0.01)
    inputs.tokenizer.cache_clear()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines and all(line["same"] for line in lines)


def test_costs_are_measured_part_by_part_and_gone_on_with_where_they_were_stopped(tmp_path, capsys, monkeypatch):
    from benchmarks import scaling

    monkeypatch.setattr(scaling, "LINES", tmp_path / "lines.jsonl")
    monkeypatch.setattr(scaling, "STORES", tmp_path / "stores")
    monkeypatch.setattr(scaling, "MODELS_UP_TO", 0)
    stopped = dict(scaling.FREE)
    monkeypatch.setattr(scaling, "FREE", {name: stopped[name] for name in ("ingest", "length")})
    monkeypatch.setattr(scaling, "PARTS", {**scaling.FREE, **scaling.MODELS})
    monkeypatch.setattr(scaling.shutil, "rmtree", lambda *_, **__: None)
    scaling.main(0.0003)
    first = scaling.lines()
    assert [line["part"] for line in first] == ["ingest", "length"] and all(line["rows"] == 300 for line in first)
    assert all(line["cpu_s"] > 0 and line["bytes_out"] > 0 and line["bytes_in"] > 0 for line in first)
    monkeypatch.setattr(scaling, "FREE", {name: stopped[name] for name in ("ingest", "length", "split")})
    scaling.main(0.0003)
    assert scaling.lines()[:2] == first and [line["part"] for line in scaling.lines()[2:]] == ["split"]


def test_the_tables_of_scaling_are_what_was_measured():
    from benchmarks import scaling

    assert scaling.tables() in scaling.REPORT.read_text()


def test_a_table_shows_every_loss_and_what_was_not_run(tmp_path, monkeypatch):
    line = {"benchmark": "b", "setting": "some", "ratio": 2.0, "wall": {"ratio": 1.5}, "repeats": 2, "same": True}
    lines = [
        line | {"against": "slow", "share": {"ours": 0.8, "theirs": 0.4}, "token_ratio": 1.2},
        line | {"against": "shared", "token_ratio": 2.5},
        line | {"against": "quick", "ratio": 0.5},
        line | {"against": "small", "ratio": 0.25, "same": False, "reduced_precision": True, "difference": 0.05},
        {"benchmark": "b", "against": "absent", "not_run": "not installed", "install": "pip install absent"},
        {"benchmark": "c", "against": "", "failed": "no model"},
    ]
    described = {
        "processor": "P",
        "instruction_set": ["AVX2"],
        "cores": 2,
        "threads": 1,
        "memory_gib": 8.0,
        "versions": {},
    }
    runs = [{"names": ["b"], "day": "2026-01-01", "quick": True, "scale": None, "cpu_seconds": 60, "load": 1.0}]
    found = {"machine": described, "runs": runs, "results": lines}
    (tmp_path / "one.json").write_text(json.dumps(found))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.START}\nstale\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "PAGE", page)
    table.write()
    written = page.read_text()
    assert written == f"before\n{table.text()}\nafter\n" and "stale" not in written
    for row in (
        "| `b` | some | slow | 80% / 40% | 2.00 (1.50) | 1.2 | 2 |",
        "| `b` | some | shared |  | 2.00 (1.50)ᵗ | 2.5 | 2 |",
        "| `b` | some | quick |  | **0.50 (1.50)** |  | 2 |",
        "| `b` | some | small, answers differ by up to 0.05 |  | **0.25 (1.50)** |  | 2 |",
        "- `b`, absent: not installed: `pip install absent`",
        "- `c`: failed: no model",
        "4 comparisons; in 2 of them the peer took less CPU time (**bold**), and 1 are below the token ratio (ᵗ).",
    ):
        assert row in written


def test_libraries_are_held_to_avx2():
    if "avx2" not in machine.flags():
        pytest.skip("this processor has no AVX2")
    code = """
from benchmarks import machine
machine.hold_to_avx2()
import torch
print(torch.backends.cpu.get_cpu_capability(), machine.describe()["instruction_set"], machine.processor())
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent
    ).stdout
    assert shown == f"AVX2 ['AVX2'] {machine.processor()}, held to AVX2\n"


def test_lines_that_cannot_be_held_say_so():
    line = {"benchmark": "b", "setting": "some", "ratio": 2.0, "wall": {"ratio": 1.5}, "same": True, "repeats": 1}
    apart = [line | {"against": "ONNX Runtime"}, line | {"against": "vLLM", "setting": "some; `backend: onnx`"}]
    assert [table._row(one, True).count(machine.HELD.replace(",", ", not")) for one in apart] == [1, 1]
    assert not any("held" in table._row(one, False) for one in apart)
    assert "held" not in table._row(line | {"against": "vLLM"}, True)


def test_a_part_is_charged_with_the_processes_that_it_started():
    code = "import time; x = b'1' * 200_000_000\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    before, seconds = processes.peak_mb(), processes.children_s()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert processes.peak_mb() >= before + 190
        assert 0.4 < processes.children_s() - seconds < 5
        other.communicate(b"\n")
    assert 0.4 < processes.children_s() - seconds < 5


def test_no_folder_of_a_machine_is_kept(monkeypatch):
    monkeypatch.setattr(race_module, "lines", [])
    race_module.missing("b", "peer", "model /srv/models/model: cannot read /srv/models/x.onnx (0 / 1); remove it")
    assert race_module.lines[0]["not_run"] == "model model: cannot read x.onnx (0 / 1); remove it"
    for file in table.RESULTS.glob("*.json"):
        assert not re.search(r"/(home|root|tmp|work|Users)/", file.read_text())


def test_a_file_of_results_keeps_the_lines_of_other_races_of_the_same_machine(tmp_path):
    described = {"processor": "P", "threads": 1, "versions": {"torch": "2"}}
    runs = [{"names": ["text", "sql"]}, {"names": ["split"]}]
    lines = [{"benchmark": name} for name in ("text", "sql", "split")]
    file = tmp_path / "one.json"
    assert _earlier(file, described, ["text"]) == ([], [])
    file.write_text(json.dumps({"machine": described, "runs": runs, "results": lines}))
    assert _earlier(file, described, ["text", "split"]) == ([lines[1]], [runs[0]])
    with pytest.raises(SystemExit, match="its results are of other threads"):
        _earlier(file, described | {"threads": 2}, ["text"])


def test_the_table_of_the_page_is_that_of_the_files_of_results():
    assert table.results(), "benchmarks/results holds no file"
    assert table.text() in table.PAGE.read_text()
    for found in table.results():
        is_held = found["machine"]["processor"].endswith(machine.HELD)
        # Held to fewer instructions, a machine shows the races of models alone.
        assert is_held or {line["benchmark"] for line in found["results"]} >= set(ALL)
        for line in table.losses(found["results"]):
            assert table._row(line, is_held) in table.PAGE.read_text() and "**" in table._row(line, is_held)
