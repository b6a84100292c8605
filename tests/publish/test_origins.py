"""Where rows come from: licences through stores of stores, and an author's files behind links."""

from __future__ import annotations

import pytest
from publish import test_hub

from seamcurate import Recipe, Source, run_local
from seamcurate.errors import HubError
from seamcurate.publish import hub
from seamcurate.publish import reproduce as reproduction

pytestmark = pytest.mark.slow
finished_work, work, hub_server = test_hub.finished_work, test_hub.work, test_hub.hub_server


def test_files_that_a_link_leads_to_are_read_where_their_folder_is_named_too(work, hub_server, tmp_path):
    hub.push(work.recipe, work.store, "me/curated")
    files = work.recipe.parent
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("rows.parquet", "corpus.parquet"):
        (linked / name).symlink_to(files / name)
    with pytest.raises(
        HubError, match=rf"rows\.parquet leads by a link to .*allow its folder by one more --files {files}$"
    ):
        reproduction.reproduce("me/curated", tmp_path / "linked-again", files=linked)
    assert reproduction.reproduce("me/curated", tmp_path / "linked-again", files=[linked, files]).identical


def test_the_licence_is_carried_through_stores_of_stores(hub_server, tmp_path):
    hub_server.add("me/rows", {"README.md": b"---\nlicense: cc-by-sa-4.0\n---\n"})
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2?"}\n')
    commit = Source(hub="me/rows").identity()["commit"]

    class Downloaded(Source):
        def identity(self):
            return {**super().identity(), "hub": "me/rows", "commit": commit}

    run_local(Recipe(rows=Downloaded(jsonl=str(tmp_path / "rows.jsonl"))), tmp_path / "first")
    for before, after in (("first", "second"), ("second", "third")):
        run_local(Recipe(rows=Source(store=str(tmp_path / before))), tmp_path / after)
        recipe = Recipe(rows=Source(store=str(tmp_path / after)))
        assert hub._licences(hub._api("me/rows"), recipe) == ["cc-by-sa-4.0"]
    # The same folder with rows of another source has another licence.
    run_local(Recipe(rows=Source(jsonl=str(tmp_path / "rows.jsonl"))), tmp_path / "third", replace=True)
    assert hub._licences(hub._api("me/rows"), recipe) == []
