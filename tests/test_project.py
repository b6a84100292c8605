"""The project's own promises: public names, floors, the manual's tree and commands, no stray words."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import seamcurate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_public_name_is_there_and_is_documented():
    assert seamcurate.__all__ == sorted(seamcurate.__all__)
    for name in seamcurate.__all__:
        value = getattr(seamcurate, name)
        assert name == "__version__" or value.__doc__
        assert type(value).__name__ != "module"
    assert dir(seamcurate) == sorted(seamcurate.__all__)
    assert set(seamcurate._MODULES) | {"__version__"} == set(seamcurate.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        seamcurate.nothing  # noqa: B018


def test_public_names_stay_functions_after_their_modules_were_imported():
    script = "import seamcurate.run.local, seamcurate.run.recipe; from seamcurate import plan, rer, seam; seam(), rer(), plan.__call__"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_floors_hold():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_importing_the_package_loads_nothing_heavy():
    heavy = (
        "torch",
        "transformers",
        "faiss",
        "trl",
        "datasets",
        "duckdb",
        "pyarrow",
        "sklearn",
        "sentence_transformers",
    )
    script = f"import seamcurate.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux's OpenMP runtimes say of themselves")
@pytest.mark.parametrize(("own", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_of_torch_wait_without_spinning_unless_the_user_says_otherwise(own, policy):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= own | {"OMP_DISPLAY_ENV": "TRUE"}
    script = "import seamcurate, torch"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    # The runtime that torch loaded says what it goes by.
    assert re.findall(r"OMP_WAIT_POLICY *= *'(\w+)'", done.stderr) == [policy]


def test_reading_a_store_loads_no_model_library(finished):
    script = (
        "import sys\nfrom seamcurate import Store, query\n"
        f"query(Store({str(finished.path)!r}), 'SELECT count(*) FROM rows')\n"
        "print([m for m in ('torch', 'transformers', 'faiss', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_manuals_tree_is_the_disks():
    architecture = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(seamcurate/.*?)```", architecture, re.DOTALL)
    assert block is not None
    told = {line.split("#")[0].strip() for line in block[1].splitlines() if line.startswith("  ")}
    there = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "seamcurate").iterdir()
        if not path.name.startswith(("__pycache__", "."))
    }
    assert told == there


def test_every_column_a_step_adds_is_in_the_manual():
    """Of every step that a recipe can name or that runs on a corpus, by the columns it declares."""
    from seamcurate import Embed, Nearest, Source
    from seamcurate.run.recipe import STEPS

    listed = set(re.findall(r"^\| `([^`]+)` \|", (DOCS / "reference" / "columns.md").read_text(), re.MULTILINE))
    settings = {"attack": {"wordnet": "wordnet"}, "reward_reliability": {"truth": "quality"}}
    settings["nearest"] = {"to": Source(jsonl="test.jsonl"), "name": "test"}
    steps = [Embed()]
    for name, maker in STEPS.items():
        made = maker(**settings.get(name, {}))
        steps += made if isinstance(made, tuple) else (made,)
    for options in ({"fit": "quantiles"}, {"asked": True}):
        steps += STEPS["rer"](**options)
    assert len({type(step) for step in steps}) >= 24
    for step in steps:
        for name in step.adds.names:
            variant = getattr(step, "variant", None)
            if isinstance(step, Nearest):
                name = name.replace("test", "{name}")
            assert name in listed or (variant and name.removesuffix(variant) + "{variant}" in listed), name


def test_the_manuals_verbs_are_the_command_lines():
    manual = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    for group in ([], ["train"]):
        shown = subprocess.run(
            [sys.executable, "-m", "seamcurate.cli", *group, "--help"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        verbs = re.findall(r"^  (\w+)  ", shown.split("Commands:")[1], re.MULTILINE)
        assert verbs and all(f"seamcurate {' '.join([*group, verb])}" in manual for verb in verbs)


def test_every_study_is_in_the_manual():
    from seamcurate.study.studies import STUDIES

    page = (DOCS / "how-to" / "study.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in (study.name for study in STUDIES))


@pytest.mark.parametrize("name", ["quickstart", "own_step"])
def test_examples_run(name, tmp_path):
    script = ROOT / "examples" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True, check=True, timeout=60
    )
    assert {"quickstart": "misjudged", "own_step": "3  Perhaps 4"}[name] in done.stdout


def test_the_sweep_example_reads_a_finished_store(finished, tmp_path):
    import shutil

    shutil.copytree(finished.path, tmp_path / "store")
    script = ROOT / "examples" / "sweep_filter_rate.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True, check=True, timeout=60
    )
    dropped = [int(line.split()[1]) for line in done.stdout.splitlines()[1:]]
    assert len(dropped) == 6 and dropped == sorted(dropped) and dropped[0] == 4


def test_the_lock_pins_torch_and_never_both_faiss_builds():
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    names = [line.split("==")[0].lower() for line in lock]
    assert "torch==2.13.0" in lock and "faiss-cpu" in names and "faiss-gpu" not in names
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lock)


def test_modules_open_with_what_they_are():
    for file in (ROOT / "seamcurate").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name == "seamcurate.cli":
            continue
        assert (importlib.import_module(name).__doc__ or "").strip(), name
