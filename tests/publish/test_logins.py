"""What is said of a token that the Hub does not accept: where it comes from decides what helps."""

from __future__ import annotations

import pytest
from huggingface_hub import constants
from publish import test_hub

from seamcurate.errors import HubError
from seamcurate.publish import hub

hub_server = test_hub.hub_server


def test_a_token_of_the_environment_is_told_apart_from_a_login(hub_server, monkeypatch, tmp_path):
    hub_server.add("me/curated", {})
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        HubError, match=r"does not accept the token; set another HF_TOKEN, which stands before any login$"
    ):
        hub.repository("me/curated")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_wrong")
    assert str(tmp_path / "token") == constants.HF_TOKEN_PATH
    with pytest.raises(HubError, match=r"does not accept the token; log in again with `hf auth login`$"):
        hub.repository("me/curated")
