// A numeric column: all rows in grey, the selected ones over them, and a brush of whole bins.

import { h, number, percent, s, whole } from "./dom.js";
import { help } from "./help.js";
import { edge, selectBins, watchBins } from "./selection.js";

const HEIGHT = 100;
// One bar that holds this many times the rows of all others.
const STEEP = 2;

export function bars(chart, kind) {
  const rects = Array.from({ length: chart.bins }, (_, i) =>
    s("rect", { class: kind, x: i + 0.06, width: 0.88, y: HEIGHT, height: 0 }),
  );
  return {
    rects,
    draw(counts, top, log) {
      const scale = log ? (n) => Math.log1p(n) / Math.log1p(top) : (n) => n / top;
      rects.forEach((rect, i) => {
        // A bin of few rows among many stays visible.
        const size = counts[i] ? Math.max(1.2, scale(counts[i]) * HEIGHT) : 0;
        rect.setAttribute("y", HEIGHT - size);
        rect.setAttribute("height", size);
      });
    },
  };
}

export function axis(chart) {
  const [from, to] = [edge(chart, 0), edge(chart, chart.bins)];
  const rough = chart.whole ? Math.max(1, (to - from) / 6) : (to - from) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const marks = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to + step * 1e-9; i++) {
    const place = (100 * (i * step - from)) / (to - from);
    const side = place < 5 ? "start" : place > 95 ? "end" : "";
    marks.push(h("span", { class: side, style: { left: `${place}%` } }, short(i * step)));
  }
  return h("div", { class: "axis", "aria-hidden": "true" }, marks);
}

// A thousandth of a bin is nothing to see.
export const end = (chart, value) => number(Math.abs(value) < chart.step / 1000 ? 0 : value, chart.whole);

export const short = (value) => String(Number(value.toPrecision(4))).replace("-", "−");

export function counted(chart, rows) {
  const counts = new Array(chart.bins).fill(0);
  for (const { bin, rows: n } of rows) counts[bin] = Number(n);
  return counts;
}

export function canvas(...groups) {
  const bins = groups[0].rects.length;
  return s(
    "svg",
    { viewBox: `0 0 ${bins} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...groups.map((one) => s("g", {}, one.rects)),
  );
}

export function histogram(chart, total, settings) {
  const back = bars(chart, "all");
  const front = bars(chart, "in");
  let all = new Array(chart.bins).fill(0);
  let chosen = all;
  let brush = null;

  const range = h("output", { class: "range" });
  const clear = h("button", { class: "quiet small", title: "Clear this selection", "aria-label": `Clear ${chart.name}`, hidden: true, onclick: () => set(null) }, "✕");
  const shade = h("div", { class: "brush", hidden: true });
  const tip = h("div", { class: "tip", hidden: true });
  const plot = h(
    "div",
    {
      class: "plot",
      tabindex: 0,
      role: "group",
      "aria-label": `Histogram of ${chart.name}. Left and right move a selection, with shift they widen it, escape clears it.`,
    },
    canvas(back, front),
    shade,
    tip,
  );
  const heights = h("span", { class: "meaning", hidden: true, title: "One bar holds most rows: heights are logarithmic, so that the others can be seen" }, "log");
  const missing = total - chart.present;
  const progress = chart.done < chart.shards ? `${chart.done} of ${chart.shards} shards` : null;
  const card = h(
    "article",
    { class: "card chart", "data-column": chart.name },
    h("header", {}, h("h3", { title: chart.meaning || chart.name }, chart.name), help(chart), heights, range, clear),
    h("p", { class: "meaning", title: chart.meaning }, chart.meaning || `column of ${chart.made_by}`),
    plot,
    axis(chart),
    h(
      "footer",
      {},
      h("span", { class: "worse" }, chart.worst === "low" ? "◂ worse" : ""),
      h("span", { class: "spread" }, [progress, missing ? `${percent(missing, total)} without a value` : `${end(chart, chart.low)} to ${end(chart, chart.high)}`].filter(Boolean).join(" · ")),
      h("span", { class: "worse" }, chart.worst === "high" ? "worse ▸" : ""),
    ),
  );

  function draw() {
    const top = Math.max(1, ...all);
    // One bar of nearly all rows would leave the others no height.
    const steep = settings.scale === "shares" && top > STEEP * (all.reduce((sum, n) => sum + n, 0) - top) && all.filter(Boolean).length > 2;
    const log = settings.scale === "log" || steep;
    heights.hidden = !steep;
    // As shares, each is as high as its own highest bin: what differs then is the shape.
    const own = settings.scale === "shares" ? Math.max(1, ...chosen) : top;
    back.draw(all, top, log);
    front.draw(chosen, own, log);
  }

  function show() {
    shade.hidden = clear.hidden = !brush;
    plot.classList.toggle("brushed", Boolean(brush));
    if (!brush) return (range.textContent = "");
    const [from, to] = brush;
    shade.style.left = `${(100 * from) / chart.bins}%`;
    shade.style.width = `${(100 * (to - from + 1)) / chart.bins}%`;
    range.textContent = `${short(edge(chart, from))} to ${short(edge(chart, to + 1))}`;
    front.rects.forEach((rect, i) => rect.classList.toggle("out", i < from || i > to));
  }

  function set(bins) {
    if (String(bins) === String(brush)) return;
    brush = bins;
    if (!bins) front.rects.forEach((rect) => rect.classList.remove("out"));
    show();
    selectBins(client, chart, bins);
  }

  watchBins(chart, false, (rows) => {
    all = counted(chart, rows);
    draw();
  });
  const client = watchBins(chart, true, (rows) => {
    chosen = counted(chart, rows);
    draw();
  });

  const at = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.max(0, Math.min(chart.bins - 1, Math.floor(((event.clientX - box.left) / box.width) * chart.bins)));
  };
  let drag = null;
  plot.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const bin = at(event);
    plot.setPointerCapture(event.pointerId);
    const inside = brush && bin >= brush[0] && bin <= brush[1] && brush[1] - brush[0] < chart.bins - 1;
    drag = inside ? { from: bin, brush, moved: false } : { from: bin, brush: null, moved: false };
  });
  plot.addEventListener("pointermove", (event) => {
    const bin = at(event);
    tip.hidden = false;
    tip.style.left = `${(100 * (bin + 0.5)) / chart.bins}%`;
    tip.textContent = `${short(edge(chart, bin))} to ${short(edge(chart, bin + 1))}: ${whole(chosen[bin])} of ${whole(all[bin])}`;
    if (!drag) return;
    if (bin !== drag.from) drag.moved = true;
    if (!drag.moved) return;
    if (!drag.brush) return set([Math.min(bin, drag.from), Math.max(bin, drag.from)]);
    const [from, to] = drag.brush;
    const by = Math.max(-from, Math.min(chart.bins - 1 - to, bin - drag.from));
    set([from + by, to + by]);
  });
  plot.addEventListener("pointerup", (event) => {
    // A click takes one bin, or clears what it falls into.
    if (drag && !drag.moved) set(drag.brush ? null : [at(event), at(event)]);
    drag = null;
  });
  plot.addEventListener("pointercancel", () => (drag = null));
  plot.addEventListener("pointerleave", () => (tip.hidden = true));
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape" && brush) {
      event.stopPropagation();
      return set(null);
    }
    if (!by) return;
    event.preventDefault();
    if (!brush) return set(by > 0 ? [0, 0] : [chart.bins - 1, chart.bins - 1]);
    let [from, to] = brush;
    if (event.shiftKey) to = Math.max(from, Math.min(chart.bins - 1, to + by));
    else if (from + by >= 0 && to + by < chart.bins) [from, to] = [from + by, to + by];
    set([from, to]);
  });

  return {
    card,
    draw,
    clear: () => set(null),
    name: chart.name,
    text: () => brush && `${chart.name}: ${range.textContent}`,
    // As values, since more rows may make other bins; an end stays an end.
    state: () => brush && [brush[0] === 0 ? null : edge(chart, brush[0]), brush[1] === chart.bins - 1 ? null : edge(chart, brush[1] + 1)],
    restore([low, high]) {
      const bin = (value) => Math.max(0, Math.min(chart.bins, Math.round((value - chart.first) / chart.step)));
      const from = low === null ? 0 : Math.min(chart.bins - 1, bin(low));
      set([from, Math.max(from, high === null ? chart.bins - 1 : bin(high) - 1)]);
    },
  };
}

