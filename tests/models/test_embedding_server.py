"""Embeddings of servers: what is sent, what is read, and what is refused; the server is the tests' own."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions
from embedding_wire import embedding_serving
from endpoint import body, hang_up, status
from vllm_server import write_encoder

from seamcurate import (
    EmbeddingServer,
    Models,
    Project,
    Recipe,
    Retrieve,
    SentenceEncoder,
    Source,
    Store,
    rer,
    run_local,
)
from seamcurate.errors import ModelError

TEXTS = [row["prompt"] for row in questions(40)] + ["", "use sort", "use sort"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("seamcurate.models.scoring_client.random.uniform", lambda low, high: 0.02)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def at(encoder_folder):
    with embedding_serving(encoder_folder) as endpoint:
        yield endpoint


def server(at, folder, **settings):
    same = {"same_as": SentenceEncoder(path=str(folder), dtype="float32")}
    return EmbeddingServer(
        **{"path": at.url, "model": "encoder", "timeout": 30, "retries": 2, "concurrency": 1, **same, **settings}
    )


def close(vectors, expected):
    return vectors.shape == expected.shape and np.abs(vectors - expected).max() < 1e-5


@pytest.mark.parametrize(
    "settings", [{}, {"max_tokens": 6}, {"max_tokens": 6, "truncation": "left"}, {"pooling": "mean", "max_tokens": 5}]
)
def test_served_embeddings_are_those_of_the_local_encoder(at, encoder_folder, settings):
    local = SentenceEncoder(path=str(encoder_folder), dtype="float32", **settings)
    vectors = server(at, encoder_folder, same_as=local).load().embed(TEXTS)
    assert close(vectors, local.load().embed(TEXTS)) and close(np.linalg.norm(vectors, axis=1), np.ones(len(TEXTS)))
    # One look at the server, and 42 distinct texts in two requests.
    assert [len(asked["input"]) for asked in at.requests] == [1, 32, 10]


def test_embeddings_are_scaled_here_or_come_as_they_are(at, encoder_folder):
    at.change = lambda vector: vector
    local = SentenceEncoder(path=str(encoder_folder), dtype="float32", normalise=False)
    asked = server(at, encoder_folder, same_as=local)
    assert close(asked.load().embed(TEXTS), local.load().embed(TEXTS))
    assert at.requests[-1]["use_activation"] is False
    scaled = server(at, encoder_folder)
    assert close(scaled.load().embed(TEXTS), scaled.local().load().embed(TEXTS))
    assert "use_activation" not in at.requests[-1]


def test_without_the_weights_here_texts_are_sent(at, encoder_folder):
    asked = server(at, encoder_folder, same_as="itself")
    assert close(asked.load().embed(TEXTS), server(at, encoder_folder).local().load().embed(TEXTS))
    assert at.requests[-1]["input"][-1] == "use sort" and asked.count_tokens(["four words of text"]) == 4


def test_a_server_without_a_list_of_models_is_asked_all_the_same(encoder_folder):
    with embedding_serving(encoder_folder, window=None) as at:
        assert server(at, encoder_folder).load().embed(["sort"]).shape == (1, 64)


@pytest.mark.parametrize("fault", [status(500), status(503), hang_up, body({"model": "encoder", "data": []})])
def test_faults_that_pass_change_nothing(at, encoder_folder, fault):
    asked = server(at, encoder_folder)
    embedder, local = asked.load(), asked.local().load()
    at.script = [fault] * 2
    assert close(embedder.embed(TEXTS), local.embed(TEXTS))


def test_one_text_at_fault_costs_itself_alone(at, encoder_folder, capsys):
    embedder = server(at, encoder_folder, same_as="itself").load()
    at.chance = lambda: lambda handler, asked: "" in asked["input"] and status(400, "an empty text")(handler, asked)
    vectors = embedder.embed(["sort", "", "list"])
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False, True]
    assert "1 text has no embedding: /v1/embeddings answered 400: an empty text" in capsys.readouterr().err


ROW = {"index": 0, "embedding": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            status(404, "The model `encoder` does not exist."),
            "/v1/embeddings answered 404: The model `encoder` does not",
        ),
        (body({"data": [ROW, ROW]}), "2 embeddings for 1 text, or indices that do not count them"),
        (body({"data": [{**ROW, "index": 1}]}), "1 embedding for 1 text, or indices that do not count them"),
        (body({"data": [{"index": 0, "embedding": "AACAPw=="}]}), "an embedding that is no list of numbers"),
        (body({"embeddings": [[1.0]]}), "/v1/embeddings answered with no data"),
    ],
)
def test_what_is_no_embedding_is_refused_in_one_line(at, encoder_folder, fault, message):
    at.chance = lambda: fault
    with pytest.raises(ModelError) as refused:
        server(at, encoder_folder).load()
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"embedding_server encoder at {at.url}: ")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"model": "other", "data": [ROW]}, "other answered, and encoder before; was the server started anew?"),
        ({"model": "encoder", "data": [ROW]}, "it gives 2 numbers a text, and gave 64 before"),
    ],
)
def test_another_model_in_the_middle_stops_the_run(at, encoder_folder, reply, message):
    embedder = server(at, encoder_folder).load()
    at.chance = lambda: body(reply)
    with pytest.raises(ModelError, match=message):
        embedder.embed(["sort"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"path": "http://127.0.0.1:9"},
            "embedding_server encoder at http://127.0.0.1:9: no answer: .*check the address",
        ),
        ({"model": "mine"}, "it serves encoder, not mine; name that by `model`"),
    ],
)
def test_a_server_that_is_another_is_refused_before_anything_is_embedded(at, encoder_folder, settings, message):
    for ask in ("check_server", "load"):
        with pytest.raises(ModelError, match=message):
            getattr(server(at, encoder_folder, **settings), ask)()


def test_a_window_shorter_than_the_texts_is_refused(encoder_folder):
    with (
        embedding_serving(encoder_folder, window=100) as at,
        pytest.raises(ModelError, match="reads 100 tokens, and texts may have 128; set `max_tokens: 100`"),
    ):
        server(at, encoder_folder).load()


def test_the_fingerprint_has_what_decides_an_embedding_and_no_address(at, encoder_folder):
    first = server(at, encoder_folder)
    assert (
        first.identity() == server(at, encoder_folder, path="http://127.0.0.1:1", concurrency=2, model="x").identity()
    )
    same = SentenceEncoder(path=str(encoder_folder), max_tokens=9)
    kinds = [first, server(at, encoder_folder, same_as=same), server(at, encoder_folder, same_as="itself")]
    kinds += [server(at, encoder_folder, same_as="itself", normalise=False)]
    assert len({json.dumps(kind.identity(), sort_keys=True) for kind in kinds}) == 4
    for settings, message in (
        ({"max_tokens": 3}, "set it there"),
        ({"same_as": "itself", "max_tokens": 3}, "no tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            server(at, encoder_folder, **settings)


@pytest.fixture
def recipe(at, encoder_folder, tmp_path):
    """A function that makes a recipe of every step that embeds."""
    pq.write_table(pa.Table.from_pylist(questions(30)), tmp_path / "rows.parquet")
    pq.write_table(pa.Table.from_pylist(questions(60, start=1000)), tmp_path / "corpus.parquet")

    def make(encoder):
        return Recipe(
            rows=Source(parquet=str(tmp_path / "rows.parquet")),
            corpus=Source(parquet=str(tmp_path / "corpus.parquet")),
            models=Models(encoder=encoder),
            steps=(Retrieve(k=3, band=(-1, 1)), *rer(fit="quantiles"), Project(landmarks=20)),
        )

    return make


@pytest.mark.slow
def test_every_step_that_embeds_compares_the_server_first_and_keeps_the_outcome(recipe, at, encoder_folder, tmp_path):
    report = run_local(recipe(server(at, encoder_folder)), tmp_path / "served")
    run_local(recipe(server(at, encoder_folder).local()), tmp_path / "local")
    here, there = Store(tmp_path / "local"), Store(tmp_path / "served")
    compared = [*there.records(), "embedding"]
    for name in compared:
        store = there.corpus_store if name == "embedding" else there
        if name not in ("rer_length", "rer_repetition", "rer"):
            outcome = store.facts(name)["compared"]
            assert (outcome["decision"], outcome["texts"] > 8) == ("same", True), name
            assert "embedding_server encoder gives the same scores as sentence_encoder" in store.facts(name)[
                "summary"
            ] or (name == "projection")
    assert sum("gives the same scores" in line for line in report.lines) >= 4
    columns = ("rer_query_relevance", "query_type_open", "rer")
    for served, local in zip(there.rows(columns), here.rows(columns), strict=True):
        for name in columns:
            assert served[name].to_pylist() == pytest.approx(local[name].to_pylist(), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda vector: vector[::-1], "none of the known causes explains it"),
        (lambda vector: vector / np.linalg.norm(vector), "likely cause: the server normalises embeddings"),
    ],
)
def test_a_server_of_other_embeddings_is_refused_with_the_likely_cause(
    recipe, at, encoder_folder, tmp_path, change, cause
):
    at.change = change
    raw = SentenceEncoder(path=str(encoder_folder), dtype="float32", normalise=False)
    with pytest.raises(ModelError, match=cause):
        run_local(recipe(server(at, encoder_folder, same_as=raw)), tmp_path / "store")
