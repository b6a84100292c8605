// Two numeric columns against each other, coloured by a third: a dot a row, or of many rows how many fall where.
// A box selects; what is not selected stays in grey. Hovering tells the prompt, a click opens the row.

import { json } from "./api.js";
import { categories, shade } from "./colour.js";
import { clean, h, latest, number, whole } from "./dom.js";
import { axis, end, short } from "./histogram.js";
import { drop, edge, nearest, reach, selectArea, watchCells, watchChosen, watchDots } from "./selection.js";

const DOTS = 20_000;
const GRID = [144, 84];
const REACH = 14;
const prompts = new Map();

// `settings`: charts, groups, total, x, y and colour by name, open(row), brush: whether a box selects.
export function scatter(settings) {
  const { charts, groups, open } = settings;
  const canvas = h("canvas", { "aria-hidden": "true" });
  const box = h("div", { class: "box", hidden: true });
  const across = h("i", { class: "cross x", hidden: true });
  const up = h("i", { class: "cross y", hidden: true });
  const tip = h("div", { class: "tip note", hidden: true });
  const named = h("div", { class: "regions", "aria-hidden": "true" });
  const [top, bottom] = [h("span", { class: "high" }), h("span", { class: "low" })];
  const plot = h(
    "div",
    {
      class: settings.brush ? "plot map" : "plot map still",
      tabindex: 0,
      role: "group",
      "aria-label": settings.brush
        ? "Scatter: drag a box to select, or move one with the arrow keys, with shift they change its size; escape clears it"
        : "Scatter of two columns: a click opens the row",
    },
    canvas, named, across, up, top, bottom, box, tip,
  );
  const range = h("output", { class: "range" });
  const clearing = h("button", { class: "quiet small", "aria-label": "Clear the box", hidden: true, onclick: () => set(null) }, "✕");
  const under = h("div");
  const legend = h("div", { class: "legend" });
  const pick = (label, chosen, options) =>
    h("label", {}, h("span", { class: "meaning" }, label),
      h("select", { class: "small", "aria-label": label, onchange: () => lay() }, options.map((one) => h("option", { value: one, selected: one === chosen }, one))));
  const names = charts.map((one) => one.name);
  const sides = {
    y: pick("up", settings.y, names),
    x: pick("across", settings.x, names),
    colour: pick("colour", settings.colour, ["none", ...names, ...groups.map((one) => one.name)]),
  };
  const chosenName = (side) => sides[side].querySelector("select").value;
  const card = h(
    "article",
    { class: "card pairs" },
    h("header", {}, settings.fixed ? null : [sides.y, sides.x], sides.colour),
    plot,
    under,
    h("footer", {}, legend, range, clearing),
  );

  let x;
  let y;
  let colour = null;
  let clients = [];
  let dots = null;
  let cells = { all: [], chosen: [] };
  let inside = null;
  let area = null;
  let only = null;
  const many = settings.total > DOTS;

  function lay() {
    const sides = settings.fixed ?? Object.fromEntries(["x", "y"].map((side) => [side, charts.find((one) => one.name === chosenName(side))]));
    // A box is of its two columns; another colour leaves it.
    const kept = x === sides.x && y === sides.y ? area : null;
    if (!kept) set(null);
    const before = clients;
    area = null;
    ({ x, y } = sides);
    colour = charts.find((one) => one.name === chosenName("colour")) ?? groups.find((one) => one.name === chosenName("colour")) ?? null;
    dots = inside = only = null;
    cells = { all: [], chosen: [] };
    under.replaceChildren(axis(x));
    top.textContent = short(edge(y, y.bins));
    bottom.textContent = short(edge(y, 0));
    explain();
    name();
    clients = many
      ? [
          watchCells(x, y, colour, GRID, false, (found) => ((cells.all = found), draw())),
          watchCells(x, y, colour, GRID, true, (found) => ((cells.chosen = found), draw())),
        ]
      : [
          watchDots(x, y, colour, (found) => ((dots = found), draw())),
          watchChosen(x, y, (found) => ((inside = new Set(found)), draw())),
        ];
    if (!settings.brush) clients.splice(1).forEach(drop);
    // The new box is there before the old one goes, so that nothing else is selected in between.
    set(kept);
    if (kept && before[1]) selectArea(before[1], null);
    before.forEach(drop);
  }

  // The words of the map's regions, where they lie on average.
  async function name() {
    named.replaceChildren();
    if (x.name !== "projection_x" || y.name !== "projection_y") return;
    try {
      const { regions } = await json("regions");
      if (x.name !== "projection_x" || y.name !== "projection_y") return;
      named.replaceChildren(...regions.map(([left, up, words]) =>
        h("span", { style: { left: `${100 * share(x, left)}%`, bottom: `${100 * share(y, up)}%` } }, clean(words))));
    } catch {
      // The map is there without them.
    }
  }

  // What the colours mean.
  function explain() {
    legend.replaceChildren();
    if (!colour) return;
    if (colour.values) {
      const { names, hue } = categories(colour);
      const entry = (name, text) =>
        h("span", { class: "entry", onpointerenter: () => ((only = [name]), draw()), onpointerleave: () => ((only = null), draw()) },
          h("i", { style: { background: hue(name) } }), text);
      legend.append(
        ...names.map((name) => entry(name, clean(name))),
        ...(colour.values.filter(([name]) => name !== null).length > names.length ? [entry("\u0000other", "other")] : []),
        ...(colour.values.some(([name]) => name === null) ? [entry(null, "no value")] : []),
      );
      return;
    }
    const tone = shade(colour);
    const [low, high] = reach(colour);
    const stops = Array.from({ length: 9 }, (_, i) => tone(low + (i / 8) * (high - low)));
    const worse = (end) => (colour.worst === end ? h("span", { class: "worse" }, end === "low" ? "◂ worse" : "worse ▸") : null);
    legend.append(
      worse("low") ?? "",
      h("span", {}, `${colour.low < low ? "≤ " : ""}${end(colour, low)}`),
      h("i", { class: "ramp", style: { background: `linear-gradient(90deg, ${stops.join(", ")})` } }),
      h("span", {}, `${colour.high > high ? "≥ " : ""}${end(colour, high)}`),
      worse("high") ?? "",
      colour.present < settings.total ? h("span", { class: "entry" }, h("i", { style: { background: tone(null) } }), "no value") : "",
    );
  }

  // Where a value lies, 0 to 1; what lies outside the bins lies at the edge.
  const share = (chart, value) => Math.max(0, Math.min(1, (value - edge(chart, 0)) / (chart.bins * chart.step)));

  function draw() {
    const place = plot.getBoundingClientRect();
    if (!x || !place.width) return;
    const style = getComputedStyle(plot);
    const grey = style.getPropertyValue("--all");
    const fallback = style.getPropertyValue("--blue");
    const ratio = devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.round(place.width * ratio), Math.round(place.height * ratio)];
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const paint = !colour ? () => fallback : colour.values ? ((of) => (value) => of.hue(of.key(value)))(categories(colour)) : shade(colour);
    const dimmed = (value) => only !== null && colour?.values && categories(colour).key(value) !== only[0];
    if (many) cloud(pen, place, grey, paint, dimmed);
    else if (dots) points(pen, place, grey, paint, dimmed);
    cross(across, settings.cut?.x, x, "left");
    cross(up, settings.cut?.y, y, "bottom");
  }

  function cross(line, value, chart, side) {
    line.hidden = value === undefined || value === null;
    if (!line.hidden) line.style[side] = `${100 * share(chart, value)}%`;
  }

  function points(pen, place, grey, paint, dimmed) {
    const size = Math.max(1.4, Math.min(4, 60 / Math.sqrt(dots.row.length)));
    const at = (i) => [3 + share(x, dots.x[i]) * (place.width - 6), place.height - 3 - share(y, dots.y[i]) * (place.height - 6)];
    const dot = (i, radius) => {
      const [left, down] = at(i);
      pen.beginPath();
      pen.arc(left, down, radius, 0, 2 * Math.PI);
      pen.fill();
    };
    dots.at = at;
    const out = (i) => inside && !inside.has(dots.row[i]);
    pen.fillStyle = grey;
    const front = [];
    for (let i = 0; i < dots.row.length; i++) {
      if (out(i) || dimmed(dots.colour?.[i])) dot(i, size * 0.8);
      else front.push(i);
    }
    // The worst lie on top, rows without a value below.
    if (colour && !colour.values) {
      const sign = colour.worst === "low" ? -1 : 1;
      const rank = (i) => (Number.isFinite(dots.colour[i]) ? sign * dots.colour[i] : -Infinity);
      front.sort((i, j) => rank(i) - rank(j));
    }
    pen.globalAlpha = 0.85;
    for (const i of front) {
      pen.fillStyle = paint(dots.colour?.[i] ?? null);
      dot(i, size);
    }
    pen.globalAlpha = 1;
  }

  function cloud(pen, place, grey, paint, dimmed) {
    const [width, height] = [place.width / GRID[0], place.height / GRID[1]];
    const fill = (one, tone, alpha) => {
      pen.globalAlpha = alpha;
      pen.fillStyle = tone;
      pen.fillRect(one.across * width, place.height - (one.up + 1) * height, width + 0.3, height + 0.3);
    };
    const most = (list) => Math.log1p(list.reduce((top, one) => Math.max(top, Number(one.rows)), 1));
    const shown = settings.brush ? cells.chosen : cells.all;
    if (settings.brush) for (const one of cells.all) fill(one, grey, 0.35 + (0.5 * Math.log1p(Number(one.rows))) / most(cells.all));
    const log = most(shown);
    for (const one of shown) {
      const strength = 0.3 + (0.7 * Math.log1p(Number(one.rows))) / log;
      fill(one, dimmed(one.colour) ? grey : paint(one.colour ?? null), strength);
    }
    pen.globalAlpha = 1;
  }

  function set(next) {
    if (String(next) === String(area)) return;
    area = next;
    box.hidden = clearing.hidden = !area;
    range.textContent = "";
    if (area) {
      const [left, right, low, high] = area;
      box.style.left = `${100 * left}%`;
      box.style.width = `${100 * (right - left)}%`;
      box.style.bottom = `${100 * low}%`;
      box.style.height = `${100 * (high - low)}%`;
      const [a, b, c, d] = values(area);
      range.textContent = `${short(c)} to ${short(d)} by ${short(a)} to ${short(b)}`;
    }
    if (settings.brush && clients[1]) selectArea(clients[1], area && [[x, values(area).slice(0, 2), area.slice(0, 2)], [y, values(area).slice(2), area.slice(2)]]);
  }

  const value = (chart, part) => Number((edge(chart, 0) + part * chart.bins * chart.step).toPrecision(6));
  const values = ([left, right, low, high]) => [value(x, left), value(x, right), value(y, low), value(y, high)];

  const at = (event) => {
    const place = plot.getBoundingClientRect();
    const part = (one) => Math.max(0, Math.min(1, one));
    return [part((event.clientX - place.left) / place.width), part((place.bottom - event.clientY) / place.height)];
  };

  // The row under the pointer, of many rows one of the nearest cell.
  async function rowAt(event) {
    const place = plot.getBoundingClientRect();
    if (!many) {
      if (!dots?.at) return null;
      const [left, down] = [event.clientX - place.left, event.clientY - place.top];
      let best = null;
      let least = REACH ** 2;
      for (let i = 0; i < dots.row.length; i++) {
        if (inside && !inside.has(dots.row[i])) continue;
        const [a, b] = dots.at(i);
        const far = (a - left) ** 2 + (b - down) ** 2;
        if (far < least) [best, least] = [i, far];
      }
      return best === null ? null : { row: dots.row[best], x: dots.x[best], y: dots.y[best], colour: dots.colour?.[best] ?? null, rows: 1 };
    }
    const [a, b] = at(event);
    const far = (one) => Math.hypot(((one.across + 0.5) / GRID[0] - a) * place.width, ((one.up + 0.5) / GRID[1] - b) * place.height);
    const near = (settings.brush ? cells.chosen : cells.all).map((one) => [far(one), one]).filter(([size]) => size < REACH);
    if (!near.length) return null;
    const found = near.reduce((best, one) => (one[0] < best[0] ? one : best))[1];
    const row = await nearest(clients.at(-1), x, y, colour, GRID, [found.across, found.up], settings.brush);
    return row && { ...row, rows: Number(found.rows) };
  }

  const tell = latest(async (event) => {
    const found = await rowAt(event);
    if (!found || from) return void (tip.hidden = true);
    if (!prompts.has(found.row)) {
      if (many) await new Promise((done) => setTimeout(done, 60));
      try {
        prompts.set(found.row, (await json(`prompt/${found.row}`)).prompt ?? "");
      } catch (error) {
        return void (tip.hidden = true);
      }
    }
    if (!hovered) return;
    const place = plot.getBoundingClientRect();
    const lines = [[y.name, found.y, y.whole], [x.name, found.x, x.whole]];
    if (colour && colour !== x && colour !== y) lines.push([colour.name, found.colour, colour.whole]);
    tip.replaceChildren(
      h("b", {}, clean(prompts.get(found.row))),
      h("span", {}, `row ${found.row}${found.rows > 1 ? `, one of ${whole(found.rows)} here` : ""}`),
      h("dl", {}, lines.map(([name, one, integer]) => [h("dt", {}, name), h("dd", {}, number(one, integer))])),
    );
    tip.hidden = false;
    const [left, down] = [event.clientX - place.left, event.clientY - place.top];
    tip.classList.toggle("left", left > place.width / 2);
    tip.classList.toggle("above", down > place.height / 2);
    tip.style.setProperty("--left", `${left}px`);
    tip.style.setProperty("--down", `${down}px`);
  });

  let from = null;
  let hovered = false;
  plot.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    plot.setPointerCapture(event.pointerId);
    from = { start: at(event), event, moved: false };
    tip.hidden = true;
  });
  plot.addEventListener("pointermove", (event) => {
    hovered = true;
    if (!from) return void tell(event);
    if (!settings.brush || Math.hypot(event.clientX - from.event.clientX, event.clientY - from.event.clientY) < 4) return;
    from.moved = true;
    const [i, j] = at(event);
    const [a, b] = from.start;
    set([Math.min(i, a), Math.max(i, a), Math.min(j, b), Math.max(j, b)]);
  });
  plot.addEventListener("pointerup", async (event) => {
    const clicked = from && !from.moved;
    from = null;
    if (!clicked) return;
    const found = await rowAt(event);
    if (found) open(found.row);
    else set(null);
  });
  plot.addEventListener("pointercancel", () => (from = null));
  plot.addEventListener("pointerleave", () => ((hovered = false), (tip.hidden = true)));
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "Escape" && area) {
      event.stopPropagation();
      return set(null);
    }
    if (!by || !settings.brush) return;
    event.preventDefault();
    if (!area) return set([0.375, 0.625, 0.375, 0.625]);
    const step = 1 / 24;
    let [left, right, low, high] = area;
    const move = (a, b, d) => (a + d < -1e-9 || b + d > 1 + 1e-9 ? [a, b] : [a + d, b + d]);
    const grow = (a, b, d) => [a, Math.max(a + step, Math.min(1, b + d))];
    const change = event.shiftKey ? grow : move;
    [left, right] = change(left, right, by[0] * step);
    [low, high] = change(low, high, by[1] * step);
    set([left, right, low, high]);
  });
  document.addEventListener("theme", () => (explain(), draw()));
  new ResizeObserver(draw).observe(plot);
  lay();
  return {
    card,
    draw,
    clear: () => set(null),
    text: () => area && `${y.name} by ${x.name}: ${range.textContent}`,
    mark(cut) {
      settings.cut = cut;
      draw();
    },
    end: () => clients.forEach(drop),
    name: "scatter",
    state: () => ({ x: x.name, y: y.name, colour: colour?.name ?? "none", area: area && values(area) }),
    restore(state) {
      for (const side of ["x", "y", "colour"]) {
        const select = sides[side].querySelector("select");
        if ([...select.options].some((one) => one.value === state[side])) select.value = state[side];
      }
      lay();
      if (state.area && x.name === state.x && y.name === state.y) {
        const [a, b, c, d] = state.area;
        set([share(x, a), share(x, b), share(y, c), share(y, d)]);
      }
    },
  };
}
