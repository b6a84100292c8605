"""The keys of a store's records, and the fingerprints of rows and columns, are what they have always been.

Were one of these values another, every store made before would be computed anew.
"""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from seamcurate import FakeModel, Generate, Random, Recipe, Rewards, Source, Store, run_local

ROWS = [
    {"prompt": "2 + 2?", "response": "4", "topic": "sums"},
    {"prompt": "3 + 3?", "response": "6", "topic": "sums"},
    {"prompt": " ", "response": "8", "topic": "blank"},
]
ROWS_FINGERPRINT = "02f94941595726ce856b088c7a87cb63"
FINGERPRINTS = {
    "baseline_random": "2f0a376c1e749520a394dd2d11ebd770",
    "rewards_gpt": "4db30aa4ec2b65afc809dd9d0c74e08e",
    "worse_gpt": "741d99fb26303877aa8e24e891ccac7a",
}
STORE_KEYS = ["format", "rows", "source", "shard_rows", "complete", "seals", "shards", "sha256"]
STEP_KEYS = (
    *("step", "name", "config", "identity", "inputs", "corpus", "ancestry", "columns", "schema", "fingerprint"),
    "sha256",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = Source(jsonl=str(folder / "rows.jsonl"), response="response", shard_rows=2)
    steps = (Generate(generator=FakeModel(), k=2), Rewards(reward=FakeModel(), variant="gpt"), Random())
    run_local(Recipe(rows=source, steps=steps), folder / "store")
    return folder / "store"


def test_store_json_has_these_keys_and_this_fingerprint(store):
    record = json.loads((store / "store.json").read_text())
    assert list(record) == STORE_KEYS
    assert record["format"] == 3 and record["rows"] == ROWS_FINGERPRINT


def test_step_json_has_these_keys_and_these_fingerprints(store):
    records = {file.parent.name: json.loads(file.read_text()) for file in sorted(store.glob("columns/*/_step.json"))}
    assert {tuple(record) for record in records.values()} == {STEP_KEYS}
    assert {name: record["fingerprint"] for name, record in records.items()} == FINGERPRINTS


def test_shards_name_their_fingerprint_number_and_inputs(store):
    files = [
        store / "rows/00001.parquet",
        store / "rejected/00001.parquet",
        store / "columns/rewards_gpt/00001.parquet",
    ]
    footers = [pq.read_metadata(file).metadata for file in files]
    keys = [sorted(key.decode() for key in metadata if key.startswith(b"seamcurate.")) for metadata in footers]
    named = ["seamcurate.maker", "seamcurate.sha256", "seamcurate.shard"]
    assert keys == [named, named, ["seamcurate.made_of", *named]] and list(Store(store).records()) == list(FINGERPRINTS)
    assert [metadata[b"seamcurate.maker"].decode() for metadata in footers] == [
        ROWS_FINGERPRINT,
        f"{ROWS_FINGERPRINT} rejected",
        FINGERPRINTS["rewards_gpt"],
    ]
    assert [metadata[b"seamcurate.shard"] for metadata in footers] == [b"1"] * 3
    assert list(json.loads(footers[2][b"seamcurate.made_of"])) == ["worse_gpt"]
