// The threshold bench: drag a cut on any score and see what would stay.

import { json } from "./api.js";
import { axis, bars, canvas, counted } from "./histogram.js";
import { byId, clean, copy, h, latest, number, percent, whole } from "./dom.js";
import { drop, edge, watchBins, where } from "./selection.js";

export function bench(overview, open) {
  const place = byId("bench");
  if (!overview.charts.length) {
    place.replaceChildren(h("p", { class: "state" }, "No numeric column has a value yet."));
    return { show() {} };
  }
  // As the store's own split has it, where a cut made one.
  const made = (one) => overview.cuts.find((cut) => cut.column === one.name);
  let chart = overview.charts.find((one) => one.name === overview.cuts[0]?.column) ?? overview.charts[0];
  let client = null;
  let counts = [];
  let cut = chart.low;
  let front;
  const end = (one) => edge(one, one.bins);
  const select = h("select", { id: "bench-by", onchange: (event) => pick(overview.charts.find((one) => one.name === event.target.value)) },
    overview.charts.map((one) => h("option", { value: one.name, selected: one === chart }, one.name)));
  const own = h("span", { class: "meaning" });
  const keep = h("select", { id: "bench-keep", "aria-label": "Which side is kept", onchange: () => ask() }, h("option", { value: "above" }, "keep the cut and above"), h("option", { value: "below" }, "keep the cut and below"));
  const nulls = h("input", { type: "checkbox", id: "bench-nulls", onchange: () => ask() });
  const typed = h("input", { type: "number", id: "bench-cut", step: "any", "aria-label": "cut", onchange: () => move(Number(typed.value)) });
  const plot = h("div", { class: "plot tall" });
  const under = h("div");
  const handle = h("div", { class: "cut", role: "slider", tabindex: 0, "aria-label": "cut" });
  const figures = h("div", { class: "figures" });
  const recipe = h("code", { id: "bench-recipe" });
  const problem = h("p", { class: "problem", role: "alert" });
  const mixes = h("div", { class: "mixes" });
  const near = h("div", { class: "near" });
  place.replaceChildren(
    h("div", { class: "controls" }, h("label", {}, "Score ", select), h("label", {}, "Cut ", typed), keep, h("label", {}, nulls, " keep rows without a value"), own),
    h("article", { class: "card" }, plot, under),
    figures,
    h("p", { class: "recipe" }, recipe, h("button", { class: "plain small", onclick: () => copy(recipe.textContent, "recipe line") }, "copy")),
    problem,
    mixes,
    near,
  );

  const ask = latest(async () => {
    draw();
    try {
      const found = await json("bench", { by: chart.name, cut, keep: keep.value, nulls: nulls.checked, within: where() || "true" });
      problem.textContent = "";
      show(found);
    } catch (error) {
      problem.textContent = clean(error.message);
    }
  });

  function pick(one) {
    chart = one;
    keep.value = chart.worst === "low" ? "above" : "below";
    const all = bars(chart, "all");
    front = bars(chart, "in");
    plot.replaceChildren(canvas(all, front), handle);
    under.replaceChildren(axis(chart));
    if (client) drop(client);
    let begun = false;
    client = watchBins(chart, true, (rows) => {
      if (chart !== one) return;
      counts = counted(chart, rows);
      all.draw(counts, Math.max(1, ...counts), true);
      if (begun) return void draw();
      begun = true;
      start();
    });
  }

  // Begin with the store's own split, else where about a fifth of the rows would go, as the paper's filter does.
  function start() {
    const split = made(chart);
    own.textContent = split ? `as split ${split.name} has it` : "";
    if (split) {
      keep.value = split.keep;
      nulls.checked = split.nulls;
      return move(split.cut, true);
    }
    const total = counts.reduce((sum, n) => sum + n, 0);
    const order = chart.worst === "low" ? counts.map((_, i) => i) : counts.map((_, i) => counts.length - 1 - i);
    let seen = 0;
    const bin = order.find((i) => (seen += counts[i]) >= total * 0.2) ?? 0;
    move(chart.worst === "low" ? edge(chart, bin) : edge(chart, bin + 1));
  }

  function move(value, exact = false) {
    if (!Number.isFinite(value)) return;
    // As fine as a pixel tells apart, and no finer: the recipe line is read by people.
    const digits = Math.max(0, 1 - Math.floor(Math.log10(chart.step / 5)));
    if (!exact) own.textContent = "";
    cut = exact ? value : Number(value.toFixed(Math.min(12, digits)));
    typed.value = cut;
    ask();
  }

  function draw() {
    const place = (cut - chart.first) / (end(chart) - chart.first);
    handle.style.left = `${100 * Math.max(0, Math.min(1, place))}%`;
    handle.setAttribute("aria-valuenow", cut);
    handle.setAttribute("aria-valuemin", chart.low);
    handle.setAttribute("aria-valuemax", chart.high);
    const above = keep.value === "above";
    front.draw(
      counts.map((n, i) => ((above ? edge(chart, i + 1) > cut : edge(chart, i) <= cut) ? n : 0)),
      Math.max(1, ...counts),
      true,
    );
  }

  function at(event) {
    const box = plot.getBoundingClientRect();
    const share = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    return chart.first + share * (end(chart) - chart.first);
  }
  plot.addEventListener("pointerdown", (event) => {
    plot.setPointerCapture(event.pointerId);
    handle.focus();
    move(at(event));
  });
  plot.addEventListener("pointermove", (event) => plot.hasPointerCapture(event.pointerId) && move(at(event)));
  handle.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageDown: -5, PageUp: 5 }[event.key];
    if (!by) return;
    event.preventDefault();
    move(cut + (by * chart.step) / (event.shiftKey ? 10 : 1));
  });

  function show(found) {
    const figure = (name, value, of) => h("div", { class: "figure" }, h("b", {}, value), h("span", {}, name), h("small", {}, of));
    figures.replaceChildren(
      figure("percentile of the cut", percent(found.lower, found.rows - found.without), "of rows with a value lie below it"),
      figure("rows kept", whole(found.kept), `${percent(found.kept, found.rows)} of ${whole(found.rows)}`),
      figure("rows dropped", whole(found.rows - found.kept), found.without ? `${whole(found.without)} have no value` : "all have a value"),
      figure("candidates misjudged", percent(found.misjudged_kept, found.candidates_kept), `${percent(found.misjudged, found.candidates)} of all`),
      figure("characters, median", whole(found.length_kept), `${whole(found.length)} of all`),
    );
    recipe.textContent = found.recipe;
    mixes.replaceChildren(lengths(found), ...found.mixes.map((mix) => shares(mix, found)));
    const told = aligned([...found.near.below, ...found.near.above].map((one) => one.value));
    near.replaceChildren(side("Just below the cut", found.near.below, keep.value === "above", told), side("At the cut and above", found.near.above, keep.value === "below", told));
  }

  const pair = (name, all, kept, most) =>
    h("div", { class: "pair" }, h("span", { class: "label" }, name),
      h("span", { class: "track" }, h("i", { class: "all", style: { width: `${(100 * all) / most}%` } }), h("i", { class: "in", style: { width: `${(100 * kept) / most}%` } })),
      h("span", { class: "count" }, percent(kept, 1)), h("span", { class: "count faint" }, percent(all, 1)));

  const card = (name, meaning, lines) =>
    h("article", { class: "card" }, h("header", {}, h("h3", {}, name)), h("p", { class: "meaning" }, meaning), lines);

  function lengths(found) {
    const { step, bins } = found.lengths;
    const all = bins.reduce((sum, one) => sum + one.rows, 0) || 1;
    const kept = bins.reduce((sum, one) => sum + one.kept, 0) || 1;
    const most = Math.max(1e-9, ...bins.map((one) => Math.max(one.rows / all, one.kept / kept)));
    return card("Response length", `characters, ${whole(step)} a bar; grey all rows, blue kept ones`, [h("div", { class: "columns" }, bins.map((one) =>
        h("span", { title: `${whole(one.bin * step)} to ${whole((one.bin + 1) * step)}: ${percent(one.kept, kept)} of kept, ${percent(one.rows, all)} of all` },
          h("i", { class: "all", style: { height: `${(100 * one.rows) / all / most}%` } }), h("i", { class: "in", style: { height: `${(100 * one.kept) / kept / most}%` } })))), axis({ first: 0, step, bins: bins.length, whole: true })]);
  }

  function shares(mix, found) {
    const parts = mix.values.map((one) => [one.value === null ? "no value" : clean(one.value), one.rows / (found.rows || 1), one.kept / (found.kept || 1)]);
    const most = Math.max(1e-9, ...parts.flatMap(([, all, kept]) => [all, kept]));
    return card(mix.name, "share of kept rows, and of all rows", h("div", { class: "values" }, parts.map((one) => pair(...one, most))));
  }

  // All with as many decimals as tell the nearest two apart, so that they line up.
  function aligned(values) {
    const sorted = [...values].sort((one, two) => one - two);
    const gaps = sorted.slice(1).map((value, i) => value - sorted[i]).filter((gap) => gap > 0);
    const fine = Math.min(chart.step / 100, ...gaps);
    const digits = chart.whole ? 0 : Math.max(0, Math.min(12, Math.ceil(-Math.log10(fine))));
    return (value) => value.toFixed(digits).replace("-", "−");
  }

  const side = (name, rows, dropped, told) =>
    h("article", { class: dropped ? "card side dropped" : "card side" },
      h("header", {}, h("h3", {}, name), h("span", { class: "badge" }, dropped ? "dropped" : "kept")),
      rows.length
        ? h("ol", {}, rows.map((one) => h("li", {}, h("button", { class: "linkish", onclick: () => open(one.row_id) }, h("span", { class: "number" }, told(one.value)), h("span", { class: "clip" }, clean(one.prompt ?? ""))))))
        : h("p", { class: "state" }, "No row on this side."));

  let shown = false;
  let within = "";
  // Another selection: the same cut, of its rows.
  function changed() {
    if (!shown || within === where()) return;
    within = where();
    ask();
  }
  return {
    changed,
    show() {
      if (shown) return changed();
      shown = true;
      within = where();
      pick(chart);
    },
  };
}
