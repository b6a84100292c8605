"""An audit's output: lines for terminals of any width, JSON, HTML, exit codes, and mistakes in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from completion_wire import completion_serving
from typer.testing import CliRunner

from seamcurate.audit import FAILURES, Audit
from seamcurate.audit.page import page
from seamcurate.audit.result import signed
from seamcurate.audit.terminal import differing, lines
from seamcurate.cli import app
from seamcurate.contrast import PROBES

REWARD = """
def score(completions, reference, **columns):
    return [float(r in c) for c, r in zip(completions, reference)]


def matched(completions, reference, **columns):
    return [float(r == c.split()[-1]) if c else 0.0 for c, r in zip(completions, reference)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    (folder / "reward.py").write_text(REWARD)
    rows = [
        {"question": f"How much is {n} + {n}? <b>", "solution": f"It is {2 * n}", "reference": f"{2 * n}"}
        for n in range(20, 60)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(folder, *arguments, reward="reward.py:score"):
    command = [
        "audit",
        "--reward",
        f"{folder}/{reward}",
        "--data",
        f"{folder}/sums.jsonl",
        "--store",
        f"{folder}/store",
    ]
    return CliRunner().invoke(app, [*command, *map(str, arguments)])


@pytest.fixture(scope="module")
def found(folder):
    done = run(folder, "--json")
    assert done.exit_code == 0, done.output
    return Audit.model_validate_json(done.stdout)


def test_json_holds_the_whole_audit_and_is_read_back(folder, found):
    again = json.loads(run(folder, "--json").stdout)
    assert again == found.model_dump(mode="json")
    assert again["schema_version"] == 1 and again["rows"] == 40 and again["unit"] == "rewards"
    assert {"headline", "probes", "golden", "length", "worst", "second", "store", "recipe"} <= again.keys()
    (exploit,) = [probe for probe in again["probes"] if probe["exploit"]]
    assert "a hundred words" not in again["headline"]
    assert exploit["probe"] == "all_answers" and exploit["at_fault"]["share"] == 1 and exploit["at_fault"]["n"] == 40


@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_lines_fit_the_terminal(found, width):
    shown = list(lines(found, width, ("exploit",)))
    places = {line for line in shown if line.startswith(("store", "recipe"))}
    assert all(len(line) <= max(72, min(width, 120)) for line in shown if line not in places)
    assert shown[0] == "function reward.py:score on 40 rows of sums.jsonl"
    assert "1 exploit pays on more than half of the rows" in " ".join(shown)
    (row,) = [line for line in shown if line.startswith("! all_answers")]
    assert re.search(r"40 +100 % +91 to 100 +0", row)
    assert ("the right answer between two wrong ones" in row) == (width >= 110)
    assert FAILURES["exploit"].split(":")[0] in " ".join(shown)


def test_the_page_holds_every_probe_and_escapes_what_rows_hold(found):
    html = page(found)
    assert all(f">{probe.probe}</td>" in html for probe in found.probes)
    assert "<b>" not in html.replace('<b class="', "") and "&lt;b&gt;" in html
    # A column that narrow screens hide is hidden whole.
    assert html.count("class=what>") == len(found.probes) + 1
    assert "http" not in html and "<script" not in html


def test_a_faulty_reward_ends_with_3_where_asked_to_and_a_sound_one_with_0(folder):
    failing = run(folder, "--fail-on", "golden,exploit", "--html", folder / "page.html")
    assert failing.exit_code == 3 and "fails by exploit: a probe is an exploit" in failing.stdout
    assert (folder / "page.html").read_text().startswith("<!doctype html>")
    assert run(folder, "--fail-on", "golden", "--fail-on", "disagreement").exit_code == 0
    sound = run(folder, "--fail-on", "exploit", "--fail-on", "golden", reward="reward.py:matched")
    assert sound.exit_code == 0 and "no exploit found" in sound.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--fail-on", "exploits"),
            "--fail-on takes exploit, golden, disagreement, not 'exploits'; did you mean `exploit`?",
        ),
        (("--prompt", "questoin"), "no column 'questoin' for prompt"),
        (("--second", "absent.py:score"), "absent.py"),
        (("--against", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, message):
    from seamcurate.errors import SeamcurateError

    done = run(folder, *arguments)
    assert isinstance(done.exception, SeamcurateError)
    assert message in str(done.exception) and "\n" not in str(done.exception)


@pytest.mark.slow
def test_a_policys_folder_answers_the_prompts(folder, policy_folder):
    done = run(
        folder, "--policy", policy_folder, "--limit", 3, "--store", folder / "sampled", "--html", folder / "said.html"
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"causal_lm [^/ ]+ is paid more than the golden response for \S+ %", " ".join(done.stdout.split()))
    assert "of 24 samples" in " ".join(done.stdout.split())
    assert "samples of causal_lm" in (folder / "said.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_policys_server_is_named_by_its_address(folder, policy_folder, api):
    with completion_serving(api, policy_folder, name=str(policy_folder)) as at:
        done = run(folder, "--policy", at.url, "--limit", 2, "--store", folder / f"served {api}")
        assert done.exit_code == 0, done.output
        assert "of 16 samples" in " ".join(done.stdout.split())
        entry = at.pages["/v1/models"]["data"][0]
        at.pages["/v1/models"]["data"] = [entry, {**entry, "id": "an adapter"}]
        refused = run(folder, "--policy", at.url, "--limit", 2, "--store", folder / "never")
        assert "its address alone does not say enough" in str(refused.exception)


def test_numbers_and_texts_are_shortened_for_a_person():
    assert [signed(value) for value in (0.314, -0.951, 0.001, 2.0, -0.999)] == ["+.31", "-.95", "0", "+2.00", "-1.00"]
    golden = "A list keeps the order of its items, and a set does not."
    assert differing(golden, "A dict.") == "A dict."
    assert differing(golden, golden + " So there.") == "… order of its items, and a set does not. So there."
    assert differing(golden, golden[:50]) == "… the order of its items, and a set doe (ends here)"


def test_the_manual_lists_every_probe_and_failure():
    page, gate = (
        (Path(__file__).parents[2] / "docs" / "how-to" / name).read_text(encoding="utf-8")
        for name in ("audit-a-reward.md", "gate-a-ci.md")
    )
    rows, failures = (re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE) for text in (page, gate))
    assert rows == [(p.name, f"{p.kind} | {p.purpose} | {p.finds} | {p.tolerated:.0%}") for p in PROBES]
    assert [name for name, _ in failures] == list(FAILURES)
    fields = ("headline", "golden_length", "second")
    assert all(f"`{field}`" in gate for field in Audit.model_fields if field in fields)
