"""What a policy answers, on a real model made here: as it samples, beside the rows' own columns, the same each time."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from training import answered, chat, parquet, plain  # noqa: F401

from seamcurate import study
from seamcurate.errors import StoreError, TrainError
from seamcurate.train import Answering, SFTTraining, answer, sft

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def learnt(plain, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("learnt")
    config = SFTTraining(lora=False, learning_rate=1e-2, max_length=64, num_train_epochs=8, eval_rows=0, warmup_steps=0)
    sft(plain, parquet(folder / "d.parquet", answered()), folder / "policy", config)
    return folder / "policy"


def test_a_policy_answers_as_it_was_taught_beside_the_rows_own_columns(learnt, tmp_path):
    rows = [{"prompt": row["prompt"], "query_type": "closed", "response": "golden"} for row in answered(6)]
    rows.append({"prompt": "Where is the cat? " * 40, "query_type": "open", "response": "golden"})
    data, config = parquet(tmp_path / "d.parquet", rows), Answering(max_new_tokens=16, samples=2, batch_size=5)
    assert answer(learnt, data, tmp_path / "answers" / "a.parquet", config) == 12
    table = pq.read_table(tmp_path / "answers" / "a.parquet")
    assert sorted(table.column_names) == ["model", "prompt", "query_type", "response", "sample"]
    assert table["prompt"].to_pylist() == [row["prompt"] for row in rows[:6] for _ in range(2)]
    assert table["sample"].to_pylist() == [0, 1] * 6 and set(table["model"].to_pylist()) == {"policy"}
    assert sum(text.startswith("The ") for text in table["response"].to_pylist()) > 9
    assert answer(learnt, data, tmp_path / "b.parquet", config) == 12
    assert pq.read_table(tmp_path / "b.parquet") == table
    found = study.responses(tmp_path / "b.parquet").table.to_pylist()
    assert [row["responses"] for row in found] == [12] and 0 < found[0]["self_bleu"] <= 1


def test_chat_prompts_are_answered_in_their_template(chat, tmp_path):  # noqa: F811
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in answered(3)]
    assert answer(chat, parquet(tmp_path / "d.parquet", rows), tmp_path / "a.parquet", Answering(max_new_tokens=4)) == 3
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["prompt"].to_pylist() == [row["prompt"] for row in rows]
    assert not any("<|" in text for text in table["response"].to_pylist())


def test_what_cannot_be_answered_is_refused_in_one_line(learnt, tmp_path):
    data = parquet(tmp_path / "d.parquet", [{"prompt": "a"}])
    with pytest.raises(
        TrainError, match="none of 1 prompts leaves room for 128 tokens of answer; lower max_new_tokens"
    ):
        answer(learnt, data, tmp_path / "a.parquet", Answering(max_new_tokens=128))
    with pytest.raises(TrainError, match="has no column `prompt`"):
        answer(learnt, parquet(tmp_path / "e.parquet", [{"text": "a"}]), tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()
    with pytest.raises(TrainError, match="is a folder; name the Parquet file to write"):
        answer(tmp_path / "no model is read", data, tmp_path)
    with pytest.raises(StoreError, match="cannot be written: Not a directory"):
        answer(tmp_path / "no model is read", data, data / "answers" / "a.parquet")
