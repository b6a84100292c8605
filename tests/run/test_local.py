"""A whole run on FakeModel: made once, resumed, refused when stale, the same bytes every time."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import (
    CausalLM,
    FakeModel,
    Models,
    Perplexity,
    Random,
    Recipe,
    Retrieve,
    SentenceEncoder,
    SequenceClassifier,
    Source,
    Split,
    Step,
    Store,
    check,
    column,
    query,
    rer,
    run_local,
    seam,
)
from seamcurate.errors import (
    BusyError,
    DamagedError,
    QueryError,
    RecipeError,
    SourceError,
    StaleError,
    StepError,
    StoreError,
)
from seamcurate.run.integrity import repair

pytestmark = pytest.mark.slow

LOWEST = (Path(__file__).parents[2] / "recipes" / "keep_above_lowest.sql").read_text()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.parquet"))}


def test_a_run_makes_every_column_and_the_split(recipe, tmp_path):
    report = run_local(recipe(), tmp_path / "store")
    assert (report.rows, report.rejected) == (40, 0)
    store = Store(tmp_path / "store")
    listed = {column.name: (column.done, column.shards, column.stale) for column in store.columns()}
    assert set(listed.values()) == {(3, 3, None)}
    wanted = {"worse_contrast", "reward", "rewards_contrast", "logprobs_contrast", "seam_contrast", "rer", "query_type"}
    assert wanted | {"baseline_random", "row_id", "prompt", "response", "reference"} <= set(listed)
    ledger = query(store, "SELECT split, count(*) AS n, sum(kept::INT) AS kept FROM ledger GROUP BY split").to_pylist()
    assert ledger == [{"split": "train", "n": 40, "kept": 32}]


def test_running_again_computes_nothing_and_changes_no_file(recipe, tmp_path):
    first = run_local(recipe(), tmp_path / "store")
    before = contents(tmp_path / "store")
    again = run_local(recipe(), tmp_path / "store")
    assert first.computed > 0 and again.computed == 0
    assert again.lines == first.lines
    assert contents(tmp_path / "store") == before


def test_two_runs_give_byte_identical_columns_wherever_they_lie(recipe, tmp_path):
    run_local(recipe(), tmp_path / "one")
    run_local(recipe(), tmp_path / "else" / "where")
    assert contents(tmp_path / "one") == contents(tmp_path / "else" / "where")


def test_a_deleted_shard_is_made_again_and_is_the_same(recipe, tmp_path):
    run_local(recipe(), tmp_path / "store")
    before = contents(tmp_path / "store")
    (tmp_path / "store/columns/rewards_contrast/00001.parquet").unlink()
    assert run_local(recipe(), tmp_path / "store").computed == 1
    assert contents(tmp_path / "store") == before


def test_a_limit_stops_at_a_shard_and_a_later_run_goes_on(recipe, tmp_path):
    steps = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5))
    part = run_local(recipe(steps=steps), tmp_path / "part", limit=16)
    assert part.rows == 30
    run_local(recipe(steps=steps), tmp_path / "part")
    run_local(recipe(steps=steps), tmp_path / "whole")
    columns = [{k: v for k, v in contents(tmp_path / n).items() if "splits" not in k} for n in ("part", "whole")]
    assert columns[0] == columns[1]


DYING = """
import os, signal, sys
from pathlib import Path
from seamcurate import Recipe, run_local
from seamcurate.store.store import Store

real, store, shards = Store.add, Path(sys.argv[2]), int(sys.argv[3])

def add(self, output, number, rows, added):
    real(self, output, number, rows, added)
    if len(list(store.glob("**/columns/*/0*.parquet"))) >= shards:
        os.kill(os.getpid(), signal.SIGKILL)

Store.add = add
run_local(Recipe.load(sys.argv[1]), store)
"""

RECIPE = """
rows: {parquet: rows.parquet, shard_rows: 15}
corpus: {parquet: corpus.parquet, shard_rows: 64}
models: {policy: {fake: policy}, reward: {fake: reward}, encoder: {fake: encoder}}
steps: [retrieve: {k: 5, band: [0.5, 0.9]}, seam: {k: 5}, rer: {fit: quantiles}, random]
splits: {train: {filter: keep_above_lowest.sql, by: seam_contrast}}
"""


@pytest.mark.parametrize("shards", [1, 7, 20])
def test_a_killed_run_goes_on_where_it_stopped(files, tmp_path, shards):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-c", DYING, str(tmp_path / "recipe.yaml"), str(tmp_path / "store"), str(shards)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == -signal.SIGKILL
    done = contents(tmp_path / "store")
    report = run_local(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "store")
    run_local(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "whole")
    after = contents(tmp_path / "store")
    assert {k: v for k, v in after.items() if k in done} == done
    assert after == contents(tmp_path / "whole")
    assert report.computed > 0
    assert not list((tmp_path / "store").rglob("*.tmp"))


@pytest.mark.parametrize("shards", [1, 2])
def test_a_run_killed_while_reading_rows_goes_on_and_is_the_same(files, tmp_path, shards):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    dying = DYING.replace("Store.add", "Store.add_rows").replace(
        "output, number, rows, added", "number, rows, rejected"
    )
    dying = dying.replace("**/columns/*/0*.parquet", "rows/0*.parquet")
    command = [sys.executable, "-c", dying, str(tmp_path / "recipe.yaml"), str(tmp_path / "store"), str(shards)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == -signal.SIGKILL
    done = contents(tmp_path / "store/rows")
    assert len(done) == shards
    run_local(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "store")
    run_local(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_another_configuration_is_refused_naming_what_changed_and_both_ways_out(recipe, tmp_path):
    run_local(recipe(), tmp_path / "store")
    before = contents(tmp_path / "store")
    other = recipe(steps=(Retrieve(k=4, band=(0.5, 0.9)), *seam("contrast", k=5)))
    with pytest.raises(StaleError) as refused:
        run_local(other, tmp_path / "store")
    message = str(refused.value)
    assert "columns/worse_contrast was made by another configuration: worse_contrast.k: 5 → 4" in message
    assert "--replace" in message and "another store" in message and "\n" not in message
    assert contents(tmp_path / "store") == before


def test_a_folder_without_a_finished_shard_is_nobodys_loss(recipe, tmp_path):
    run_local(recipe(), tmp_path / "store")
    for file in (tmp_path / "store/columns/rer").glob("0*.parquet"):
        file.unlink()
    changed = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5), *rer(fit="paper"), Random())
    assert run_local(recipe(steps=changed), tmp_path / "store").computed == 3


def test_a_change_two_steps_upstream_is_refused_too(recipe, tmp_path):
    steps = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5))
    run_local(recipe(steps=steps), tmp_path / "store")
    # Only the first step again, under --replace: what follows from it is left behind, out of date.
    run_local(recipe(steps=(Retrieve(k=4, band=(0.5, 0.9)),), splits={}), tmp_path / "store", replace=True)
    store = Store(tmp_path / "store")
    stale = {c.name: c.stale for c in store.columns() if c.stale}
    assert set(stale) >= {"rewards_contrast", "logprobs_contrast", "seam_contrast"} and "reward" not in stale
    with pytest.raises(StaleError, match="column 'seam_contrast' is out of date"):
        store.table(0, ["seam_contrast"])
    assert "seam_contrast" not in query(store, "SELECT * FROM rows LIMIT 0").column_names
    new = (Retrieve(k=4, band=(0.5, 0.9)), *seam("contrast", k=5))
    with pytest.raises(
        StaleError, match=r"rewards_contrast was made by another configuration: worse_contrast\.k: 5 → 4"
    ):
        run_local(recipe(steps=new), tmp_path / "store")
    run_local(recipe(steps=new), tmp_path / "store", replace=True)
    run_local(recipe(steps=new), tmp_path / "fresh")
    assert not [c for c in store.columns() if c.stale]
    seams = [contents(tmp_path / n)["columns/seam_contrast/00000.parquet"] for n in ("store", "fresh")]
    assert seams[0] == seams[1]


def test_a_new_policy_recomputes_likelihoods_only(recipe, tmp_path):
    run_local(recipe(), tmp_path / "store")
    before = contents(tmp_path / "store")
    models = Models(policy=FakeModel(path="new"), reward=FakeModel(path="reward"), encoder=FakeModel(path="encoder"))
    run_local(recipe(models=models), tmp_path / "store", replace=True)
    after = contents(tmp_path / "store")
    changed = {Path(k).parts[1] for k in after if after[k] != before.get(k) and k.startswith("columns")}
    assert changed == {"logprobs_contrast", "seam_contrast"}


def test_a_replacement_that_is_cut_short_leaves_nothing_that_is_taken_for_the_new_columns(
    recipe, tmp_path, monkeypatch
):
    def cut_short(folder):
        for file in Path(folder).iterdir():
            if file.is_file():
                file.unlink()
        raise KeyboardInterrupt

    run_local(recipe(), tmp_path / "store")
    other = recipe(steps=(Retrieve(k=4, band=(0.5, 0.9)), *seam("contrast", k=5)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", cut_short)
        run_local(other, tmp_path / "store", replace=True)
    run_local(other, tmp_path / "store", replace=True)
    run_local(other, tmp_path / "fresh")
    made = [tmp_path / name / "columns/worse_contrast" for name in ("store", "fresh")]
    again, fresh = ({str(f.relative_to(one)): f.read_bytes() for f in one.rglob("*") if f.is_file()} for one in made)
    assert again == fresh


def test_a_damaged_shard_is_named_and_never_read(recipe, tmp_path):
    run_local(recipe(), tmp_path / "store")
    file = tmp_path / "store/columns/reward/00001.parquet"
    damaged = bytearray(file.read_bytes())
    damaged[30] ^= 4
    file.write_bytes(damaged)
    with pytest.raises(DamagedError, match=r"columns/reward/00001\.parquet was altered"):
        query(Store(tmp_path / "store"), "SELECT reward FROM rows")


def test_a_second_run_on_a_busy_store_is_refused(recipe, tmp_path):
    with Store(tmp_path / "store").hold(), pytest.raises(BusyError, match="another run works on"):
        run_local(recipe(), tmp_path / "store")


def test_what_killed_runs_left_half_written_is_cleared_wherever_it_lies_and_nothing_else_is(recipe, tmp_path):
    store = tmp_path / "store"
    run_local(recipe(), store)
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    files = ["rows/.00000.parquet.0.tmp", "rejected/.00000.parquet.0.tmp", "columns/.embedding.0.tmp/00000.parquet"]
    files += [
        f"columns/embedding/{name}" for name in (".00000.parquet.0.tmp", ".shared.tmp/a.npy", "_shared/.a.json.0.tmp")
    ]
    lefts = [store / "corpus" / file for file in (".store.json.0.tmp", *files)]
    lefts += [store / file.replace("embedding", "reward") for file in (".store.json.0.tmp", *files)]
    lefts += [store / f"splits/.train{what}.tmp/_split.json" for what in ("", ".old")]
    for left in lefts:
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_text("half of")
    (store / "notes.tmp").write_text("mine")
    assert check(Store(store)).findings == []
    assert run_local(recipe(), store).computed == 0
    (store / "notes.tmp").unlink()
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before
    assert not list(store.rglob(".*.tmp"))


def test_a_store_that_vanishes_between_two_shards_is_not_begun_anew_in_the_middle(recipe, tmp_path, monkeypatch):
    real = Source.chunks

    def chunks(self, *given):
        for chunk in real(self, *given):
            if chunk.number == 1:
                shutil.rmtree(tmp_path / "store")
            yield chunk

    monkeypatch.setattr(Source, "chunks", chunks)
    with pytest.raises(StoreError, match=r"rejected cannot be used: No such file or directory; .*run the same again"):
        run_local(recipe(corpus=None, steps=(Random(),), splits={}), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_corpus_that_another_run_works_on_is_neither_read_nor_embedded(recipe, tmp_path):
    (tmp_path / "store").mkdir()
    made = recipe(steps=(Retrieve(k=5, band=(0.5, 0.9)),), splits={})
    with Store(tmp_path / "store/corpus").hold(), pytest.raises(BusyError, match=r"another run works on .*/corpus"):
        run_local(made, tmp_path / "store")
    assert not (tmp_path / "store/corpus/rows").exists()
    run_local(made, tmp_path / "store")
    shared = made.model_copy(update={"corpus": Source(store=str(tmp_path / "store/corpus"))})
    with Store(tmp_path / "store/corpus").hold(), pytest.raises(BusyError, match=r"another run works on .*/corpus"):
        run_local(shared, tmp_path / "other")


def test_rows_of_another_source_are_refused(recipe, files, tmp_path):
    run_local(recipe(), tmp_path / "store")
    pq.write_table(pq.read_table(files[0]).slice(1), files[0])
    with pytest.raises(StaleError, match="holds the rows of another source, or its source changed since"):
        run_local(recipe(), tmp_path / "store")
    assert run_local(recipe(), tmp_path / "store", replace=True).rows == 39


def test_a_lost_row_shard_is_not_passed_over(recipe, tmp_path):
    run_local(recipe(), tmp_path / "store")
    before = contents(tmp_path / "store")
    (tmp_path / "store/rows/00001.parquet").unlink()
    with pytest.raises(DamagedError, match=r"rows.00001\.parquet is missing"):
        repair(Store(tmp_path / "store"), [])
    assert run_local(recipe(), tmp_path / "store").computed == 0
    assert contents(tmp_path / "store") == before


def test_bad_rows_are_set_aside_and_counted(recipe, tmp_path):
    rows = tmp_path / "dirty.jsonl"
    good = '{"prompt": "how do I sort the list", "response": "use sort"}\n'
    rows.write_text(good + '{"prompt": "  ", "response": "x"}\n' + "not json\n" + good.replace("sort", "merge"))
    store = tmp_path / "store"
    report = run_local(recipe(rows=Source(jsonl=str(rows)), steps=(Random(),), corpus=None, splits={}), store)
    assert (report.rows, report.rejected) == (2, 2)
    assert report.lines[0] == "2 source rows were set aside: SELECT * FROM rejected"
    aside = query(Store(store), "SELECT row_id, reason FROM rejected ORDER BY row_id").to_pylist()
    assert [a["row_id"] for a in aside] == [1, 2]
    assert query(Store(store), "SELECT row_id FROM rows ORDER BY 1")["row_id"].to_pylist() == [0, 3]


def test_a_source_of_bad_rows_only_is_refused(recipe, tmp_path):
    rows = tmp_path / "bad.jsonl"
    rows.write_text('{"prompt": ""}\n')
    with pytest.raises(SourceError, match="every source row was set aside"):
        run_local(recipe(rows=Source(jsonl=str(rows)), splits={}, steps=()), tmp_path / "store")


def test_a_corpus_is_made_once_and_shared(recipe, files, tmp_path):
    run_local(recipe(), tmp_path / "first")
    shared = Source(store=str(tmp_path / "first/corpus"))
    before = contents(tmp_path / "first")
    report = run_local(recipe(corpus=shared), tmp_path / "second")
    assert contents(tmp_path / "first") == before
    one, two = (contents(tmp_path / n) for n in ("first", "second"))
    assert {k: v for k, v in one.items() if k.startswith("columns")} == {
        k: v for k, v in two.items() if k.startswith("columns")
    }
    assert not (tmp_path / "second/corpus").exists()
    assert report.rows == 40


def test_a_step_adds_columns_and_nothing_else(recipe, tmp_path):
    run_local(recipe(), tmp_path / "store")
    store = Store(tmp_path / "store")
    for folder in (tmp_path / "store/columns").iterdir():
        for number in store.shards:
            ids = pq.read_table(folder / f"{number:05d}.parquet", columns=["row_id"])["row_id"]
            assert ids.equals(store.table(number, ["row_id"])["row_id"])


def test_steps_out_of_order_are_refused_before_anything_is_computed(recipe, tmp_path):
    with pytest.raises(StepError, match="step rewards_contrast reads column 'worse_contrast', which neither"):
        run_local(recipe(steps=seam("contrast")), tmp_path / "store")


def test_retrieval_without_a_corpus_is_refused(recipe, tmp_path):
    with pytest.raises(StepError, match="give the recipe a `corpus`"):
        run_local(recipe(corpus=None), tmp_path / "store")


def test_a_source_column_that_a_step_would_add_is_refused(recipe, tmp_path):
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a b"], "response": ["c"], "baseline_random": [0.5]}), rows)
    with pytest.raises(StepError, match=r"rename: {baseline_random: source_baseline_random}"):
        run_local(recipe(rows=Source(parquet=str(rows)), steps=(Random(),), splits={}), tmp_path / "store")


def test_ctrl_c_leaves_a_store_that_goes_on(recipe, files, tmp_path):
    script = (
        "import sys, time\n"
        "from seamcurate import CausalLM, FakeModel, Models, Perplexity, Random, Recipe, Source, run_local\n"
        "from seamcurate.store.store import Store\n"
        "real = Store.add\n"
        "def slow(self, *a):\n"
        "    real(self, *a); print('shard', flush=True); time.sleep(60)\n"
        "Store.add = slow\n"
        "run_local(Recipe(rows=Source(parquet=sys.argv[1], shard_rows=15), steps=(Random(),)), sys.argv[2])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(files[0]), str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"shard\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    steps = (Random(),)
    assert run_local(recipe(steps=steps, corpus=None, splits={}), tmp_path / "store").computed == 2


def test_facts_and_warnings_stand_beside_the_columns(recipe, tmp_path):
    report = run_local(recipe(steps=(Retrieve(band=(0.8, 0.9)), *rer()), splits={}), tmp_path / "store")
    facts = Store(tmp_path / "store").facts("worse_contrast")
    assert facts["rows"] == 40 and facts["summary"] in report.lines
    assert any(line.startswith("warning: rer: AR lies in [-1, 1]") for line in report.lines)


def test_chat_rows_run_through_real_models_and_the_score_is_the_formulas(
    tmp_path, policy_folder, decoder_reward_folder, encoder_reward_folder
):
    def chat(i, words):
        turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": words}]
        return {"prompt": turns, "response": f"use {words} step {i}", "reference": words}

    asked = [f"{a} the {b}" for a in ("sort", "merge", "parse") for b in ("list", "queue", "file", "table")]
    for name, part in (("rows", asked[::2]), ("corpus", asked[1::2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(chat(i, w)) + "\n" for i, w in enumerate(part)))
    reward = SequenceClassifier(path=str(decoder_reward_folder), dtype="float32")
    policy = CausalLM(path=str(policy_folder), dtype="float32")
    recipe = Recipe(
        rows=Source(jsonl=str(tmp_path / "rows.jsonl"), shard_rows=4),
        corpus=Source(jsonl=str(tmp_path / "corpus.jsonl")),
        models=Models(
            policy=policy,
            reward=reward,
            encoder=SentenceEncoder(path=str(encoder_reward_folder), pooling="mean"),
            base=policy,
        ),
        steps=(Retrieve(k=4, band=(-1, 1)), *seam("contrast", k=4), *rer(), Perplexity()),
    )
    run_local(recipe, tmp_path / "store")
    run_local(recipe, tmp_path / "again")
    assert contents(tmp_path / "store") == contents(tmp_path / "again")
    store = Store(tmp_path / "store")
    rows = query(store, "SELECT * FROM rows ORDER BY row_id").to_pylist()
    assert len(rows) == 6 and all(row["candidates_contrast"] == 4 for row in rows)
    assert any(row["seam_contrast"] < 0 for row in rows)
    judge, speaker = reward.load(), policy.load()
    for row in rows:
        worse = query(store, f"SELECT response FROM candidates WHERE row_id = {row['row_id']} ORDER BY rank")
        texts = worse["response"].to_pylist()
        ((golden, *others),) = judge.rewards([row["prompt"]], [[row["response"], *texts]])
        terms = [
            math.exp(one.logprob / one.tokens) * max(other - golden, 0)
            for one, other in zip(speaker.logprobs([row["prompt"]], [texts])[0], others, strict=True)
        ]
        assert row["seam_contrast"] == pytest.approx(-sum(terms), abs=1e-4)
        ((own,),) = speaker.logprobs([row["prompt"]], [[row["response"]]])
        assert row["baseline_perplexity"] == pytest.approx(math.exp(-own.logprob / own.tokens), rel=1e-4)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (
            {"filter": LOWEST, "by": "seam_contrst", "rate": 0.2},
            "split s: by: 'seam_contrst' is no column of this store",
        ),
        ({"filter": LOWEST, "by": "seam_contrast", "rat": 0.2}, "split s: the filter has no parameter 'rat'"),
        ({"filter": "SELECT row_id FRM rows"}, "split s: Parser Error"),
        ({"filter": "SELECT misjudgment FROM candidates"}, "split s: Binder Error"),
        ({"filter": "SELECT prompt FROM rows"}, "split s: its filter returns no row_id"),
        ({"filter": "SELECT row_id FROM 'other.parquet'"}, "split s: a query reads the views alone"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_before_anything_is_computed(recipe, tmp_path, split, said):
    fine = Split(filter="SELECT row_id FROM candidates WHERE misjudgement > 0 GROUP BY row_id")
    steps = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5))
    with pytest.raises((RecipeError, QueryError), match=said):
        run_local(recipe(steps=steps, splits={"fine": fine, "s": Split(**split)}), tmp_path / "store")
    assert list((tmp_path / "store").rglob("columns/*/_step.json"))
    assert not list((tmp_path / "store").rglob("columns/*/[0-9]*.parquet"))
    assert not (tmp_path / "store" / "splits").exists()


IDS = {"text": ["a1", "b2", "a1", "d4", "b2", "f6"], "whole numbers": [1, 2, 1, 4, 2, 6]}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "arrow", "store"])
def test_an_id_that_was_there_before_is_set_aside_over_shards_and_after_a_kill(kind, ids, tmp_path):
    asked = [{"uid": own, "prompt": f"p{i}", "response": "r"} for i, own in enumerate(ids)]
    table = pa.Table.from_pylist(asked)
    place = tmp_path / f"a.{kind}"
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "a.csv").write_text("uid,prompt,response\n" + "".join(f"{r['uid']},{r['prompt']},r\n" for r in asked))
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    if kind == "store":
        run_local(Recipe(rows=Source(parquet=str(tmp_path / "a.parquet"))), place)
    source = Source(**{kind: str(place)}, id="uid", shard_rows=2)
    recipe = Recipe(rows=source, corpus=None if kind == "store" else source)
    first, second = str(ids[0]), str(ids[1])
    for store in ("whole", "resumed"):
        if store == "resumed":
            run_local(recipe, tmp_path / store, limit=2)
        run_local(recipe, tmp_path / store)
        for folder in ("", *(() if kind == "store" else ("corpus",))):
            found = query(tmp_path / store / folder, "SELECT row_id, id FROM rows ORDER BY row_id").to_pylist()
            assert [tuple(row.values()) for row in found] == [
                (0, first),
                (1, second),
                (3, str(ids[3])),
                (5, str(ids[5])),
            ]
            aside = query(tmp_path / store / folder, "SELECT row_id, reason FROM rejected ORDER BY row_id").to_pylist()
            assert [tuple(row.values()) for row in aside] == [
                (2, f"duplicate id '{first}'"),
                (4, f"duplicate id '{second}'"),
            ]


def test_ids_are_compared_where_every_row_of_a_shard_was_set_aside(tmp_path):
    prompts = [None, None, "p", "q"]
    lines = [{"uid": own, "prompt": prompt} for own, prompt in zip("abcc", prompts, strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    recipe = Recipe(rows=Source(jsonl=str(tmp_path / "a.jsonl"), id="uid", shard_rows=2))
    run_local(recipe, tmp_path / "store", limit=1)
    run_local(recipe, tmp_path / "store")
    assert query(tmp_path / "store", "SELECT row_id, id FROM rows").to_pylist() == [{"row_id": 2, "id": "c"}]


def test_what_has_no_effect_on_a_corpus_that_is_a_store_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"uid": "a", "prompt": "p", "response": "r"}\n')
    rows = Source(jsonl=str(tmp_path / "a.jsonl"))
    run_local(Recipe(rows=rows), tmp_path / "corpus")
    with pytest.raises(SourceError, match="corpus: id has no effect on a store"):
        run_local(Recipe(rows=rows, corpus=Source(store=str(tmp_path / "corpus"), id="uid")), tmp_path / "store")


class Lengths(Step):
    """A step of a user's own, which returns what it is told to."""

    gives: Literal["table", "polars", "pandas", "dict", "long", "words"] = "table"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("response",)

    @property
    def adds(self) -> pa.Schema:
        return pa.schema([column("length", pa.int32(), "letters"), column("first", pa.string(), "first letter")])

    def load(self, shared):
        def measure(rows: pa.Table) -> object:
            texts = rows["response"].to_pylist()
            lengths = pa.array([len(text) for text in texts], pa.uint32())
            # Other libraries than pyarrow have text of their own types.
            firsts = pa.array([text[0] for text in texts], pa.string_view())
            if self.gives == "long":
                lengths = pa.array([10**12] * len(texts))
            if self.gives == "words":
                lengths = pa.array(["1"] * len(texts))
            made = pa.table({"length": lengths, "first": firsts})
            if self.gives == "polars":
                return pl.DataFrame({"length": lengths, "first": firsts})
            return {"dict": made.to_pydict, "pandas": made.to_pandas}.get(self.gives, lambda: made)()

        return measure


def test_a_step_may_return_any_arrow_types_that_fit_and_what_does_not_is_one_line(tmp_path):
    pq.write_table(pa.table({"prompt": ["a?", "b?"], "response": ["one", "three"]}), tmp_path / "rows.parquet")
    rows = Source(parquet=str(tmp_path / "rows.parquet"))
    for gives in ("table", "polars", "pandas"):
        run_local(Recipe(rows=rows, steps=(Lengths(gives=gives),)), tmp_path / gives)
        made = query(Store(tmp_path / gives), "SELECT length, first FROM rows ORDER BY row_id").to_pylist()
        assert made == [{"length": 3, "first": "o"}, {"length": 5, "first": "t"}]
    for gives, said in (
        ("dict", "step lengths, shard 0: returned a dict, not a pyarrow Table or a Polars or pandas frame"),
        ("long", "step lengths, shard 0: returned values of other types than it declares: "),
        ("words", "step lengths, shard 0: returned 'length' as string, and declares int32"),
    ):
        with pytest.raises(StepError, match=said) as raised:
            run_local(Recipe(rows=rows, steps=(Lengths(gives=gives),)), tmp_path / gives)
        assert "\n" not in str(raised.value)
