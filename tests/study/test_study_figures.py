"""Figures as a reader of a printed page meets them: nothing lies on anything else, whatever methods are called."""

from __future__ import annotations

from itertools import combinations

import pyarrow as pa
import pytest

from seamcurate import FakeModel, study
from seamcurate.study import figure

LONG = "ppo-with-a-reward-model-whose-name-{}-is-as-long-as-any"
UNDERSCORED = "seam_contrast_with_a_long_description_of_the_run_number_{}"


def table(rows):
    return pa.Table.from_pylist(list(rows))


def runs(names, seeds=3, scale=1.0):
    return table(
        {"method": m, "seed": s, "quality": scale * (0.5 + 0.01 * i + 0.01 * ((i + s) % 3))}
        for i, m in enumerate(names)
        for s in range(seeds)
    )


def swept(names, rates):
    return table(
        {"method": m, "rate": r, "seed": s, "quality": 0.5 + r * (1 - r) + 0.01 * ((i + s) % 3)}
        for i, m in enumerate(names)
        for r in (rates if i else (0.0,))
        for s in range(3)
    )


def grid(policies, rewards, scale=1.0):
    return table(
        {"policy": p, "reward": r, "seed": s, "quality": scale * (i + j + 0.1 * s)}
        for i, p in enumerate(policies)
        for j, r in enumerate(rewards)
        for s in range(2)
    )


def checkpoints(names):
    return table(
        {"proxy": n, "checkpoint": 500 * c, "seed": s, "proxy_mean": c, "gold_mean": (c * (i + 2)) % 11 + s}
        for i, n in enumerate(names)
        for c in range(11)
        for s in range(2)
    )


def preferences(subsets):
    return table(
        {"prompt": f"p{i}", "chosen": f"sort {i}", "rejected": f"close {i} files", "subset": subsets[i % len(subsets)]}
        for i in range(60)
    )


def answers(names):
    return table(
        {"model": m, "prompt": f"p{i}", "query_type": kind, "response": f"a {i} b {k} c", "relevant_sentences": i / 20}
        for m in names
        for kind in ("open", "closed")
        for i in range(8)
        for k in range(2)
    )


PAPERS = [0, 50, 100, 500, 2500, 5000, 10000, 20000, 50000, 100000]
DRAWN = {
    "selection": lambda: study.selection(runs(["full", *map(UNDERSCORED.format, range(3))])),
    "selection, huge": lambda: study.selection(runs(["full", "seam", "random"], scale=-1e9)),
    "selection, one seed": lambda: study.selection(runs(["full", "seam"], 1)),
    "filter-rate": lambda: study.filter_rate(
        swept(["full", *map(UNDERSCORED.format, range(9)), "random"], (0.01, 0.02, 0.03, 0.1, 0.2, 0.4, 0.8))
    ),
    "saturation": lambda: study.saturation(grid(PAPERS, PAPERS)),
    "saturation, huge": lambda: study.saturation(grid(PAPERS[:5], PAPERS[:5], 123456.0)),
    "saturation, many": lambda: study.saturation(grid(range(40), PAPERS[:3])),
    "monotonicity": lambda: study.monotonicity(checkpoints(map(LONG.format, range(7)))),
    "preference": lambda: study.preference(
        preferences([f"subset {i} with a name that is quite long" for i in range(4)]),
        rewards={"my-org/a-reward-model-with-a-long-name-7b-v1.5": FakeModel(), "RER": FakeModel()},
    ),
    "responses": lambda: study.responses(answers([LONG.format(1), "b"])),
}


def written(drawn):
    """Each text that a figure shows, and where."""
    drawn.canvas.draw()
    texts = [*drawn.texts, *(text for legend in drawn.legends for text in legend.get_texts())]
    for axes in drawn.axes:
        if axes.get_visible():
            texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                texts += [label for tick in ticks for label in (tick.label1, tick.label2)]
            texts += [axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()]
    return [(text, text.get_window_extent()) for text in texts if text.get_visible() and text.get_text().strip()]


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_no_text_lies_on_another_and_none_leaves_the_page(name):
    drawn = DRAWN[name]().figure
    some = written(drawn)
    for (one, here), (other, there) in combinations(some, 2):
        # Aslant texts fill their boxes' diagonals alone.
        if 45 not in (one.get_rotation(), other.get_rotation()):
            wide = min(here.x1, there.x1) - max(here.x0, there.x0)
            high = min(here.y1, there.y1) - max(here.y0, there.y0)
            assert wide < 1 or high < 1, (one.get_text(), other.get_text())
        else:
            assert abs(here.x1 - there.x1) > 0.1 * drawn.dpi or abs(here.y1 - there.y1) > 0.1 * drawn.dpi
    # What is saved is cut to what is drawn: a text beyond the page would make it wider.
    left, right = min(place.x0 for _, place in some), max(place.x1 for _, place in some)
    assert right - left < 1.05 * figure._WIDTH * drawn.dpi


@pytest.mark.slow
def test_each_column_of_panels_has_numbers_below_it():
    for name in ("monotonicity", "preference"):
        drawn = DRAWN[name]().figure
        shown = [axes for axes in drawn.axes if axes.get_visible()]
        drawn.canvas.draw()
        lowest = {axes.get_subplotspec().colspan.start: axes for axes in shown}
        assert len(lowest) > 2 and len(shown) % len(lowest)
        for axes in lowest.values():
            assert any(label.get_visible() and label.get_text() for label in axes.get_xticklabels())


def test_a_name_keeps_its_hyphens():
    [title] = [axes.get_title(loc="left") for axes in study.monotonicity(checkpoints(["gold-r1"])).figure.axes]
    assert title.startswith("gold-r1 ρ = ")


def test_cells_of_a_heat_map_hold_their_numbers_however_large_or_small():
    for scale, wanted in ((1.0, "1.05"), (1e-5, "1.05e-05"), (1e6, "1.05e+06")):
        drawn = study.saturation(grid([1, 2, 3], [1, 2, 3], scale)).figure
        assert wanted in {text.get_text() for text in drawn.axes[0].texts}


def test_one_seed_is_said_to_have_no_interval():
    for name in ("selection, one seed", "selection"):
        note = " ".join(" ".join(text.get_text().split()) for text in DRAWN[name]().figure.texts)
        assert ("1 seed, which has no interval" in note) == (name != "selection")
