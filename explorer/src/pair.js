// Two numeric columns against each other: how many rows fall where, all in grey and the selected in blue; a box selects.

import { h } from "./dom.js";
import { axis, short } from "./histogram.js";
import { drop, edge, selectBoxes, watchPairs } from "./selection.js";

export function pair(charts) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const box = h("div", { class: "box", hidden: true });
  const [top, bottom] = [h("span", { class: "high" }), h("span", { class: "low" })];
  const plot = h("div", { class: "plot map", tabindex: 0, role: "group", "aria-label": "Two columns against each other: drag a box to select, escape clears it" }, canvas, top, bottom, box);
  const range = h("output", { class: "range" });
  const clearing = h("button", { class: "quiet small", "aria-label": "Clear the box", hidden: true, onclick: () => set(null) }, "✕");
  const under = h("div");
  const pick = (label, chosen) =>
    h("select", { class: "small", "aria-label": label, onchange: lay }, charts.map((one) => h("option", { value: one.name, selected: one === chosen }, one.name)));
  const rows = pick("vertical column", charts[0]);
  const columns = pick("horizontal column", charts.find((one) => one.name === "reward" && one !== charts[0]) ?? charts[1]);
  const card = h(
    "article",
    { class: "card pairs" },
    h("header", {}, rows, h("span", { class: "meaning" }, "by"), columns, h("span", { class: "spring" }), range, clearing),
    plot,
    under,
  );
  let [x, y] = [charts[0], charts[0]];
  let clients = [];
  let all = [];
  let chosen = [];
  let area = null;

  function lay() {
    set(null);
    clients.forEach(drop);
    x = charts.find((one) => one.name === columns.value);
    y = charts.find((one) => one.name === rows.value);
    all = chosen = [];
    under.replaceChildren(axis(x));
    top.textContent = short(edge(y, y.bins));
    bottom.textContent = short(edge(y, 0));
    clients = [
      watchPairs(x, y, false, (found) => {
        all = found;
        draw();
      }),
      watchPairs(x, y, true, (found) => {
        chosen = found;
        draw();
      }),
    ];
  }

  function draw() {
    const style = getComputedStyle(plot);
    const across = x.bins * Math.max(1, Math.round(600 / x.bins));
    const down = y.bins * Math.max(1, Math.round(300 / y.bins));
    [canvas.width, canvas.height] = [across, down];
    const pen = canvas.getContext("2d");
    const [width, height] = [across / x.bins, down / y.bins];
    const paint = (cells, colour, least) => {
      const top = Math.log1p(cells.reduce((most, one) => Math.max(most, Number(one.rows)), 1));
      pen.fillStyle = colour;
      for (const { across: i, up: j, rows: n } of cells) {
        pen.globalAlpha = least + (1 - least) * (Math.log1p(Number(n)) / top);
        pen.fillRect(i * width, down - (j + 1) * height, width - 0.5, height - 0.5);
      }
    };
    paint(all, style.getPropertyValue("--all"), 0.45);
    paint(chosen, style.getPropertyValue("--blue"), 0.25);
  }

  function set(next) {
    if (String(next) === String(area)) return;
    area = next;
    box.hidden = clearing.hidden = !area;
    range.textContent = "";
    if (area) {
      const [left, right, low, high] = area;
      box.style.left = `${(100 * left) / x.bins}%`;
      box.style.width = `${(100 * (right - left + 1)) / x.bins}%`;
      box.style.bottom = `${(100 * low) / y.bins}%`;
      box.style.height = `${(100 * (high - low + 1)) / y.bins}%`;
      range.textContent = `${short(edge(y, low))} to ${short(edge(y, high + 1))} by ${short(edge(x, left))} to ${short(edge(x, right + 1))}`;
    }
    if (clients[1]) selectBoxes(clients[1], area && [[x, area.slice(0, 2)], [y, area.slice(2)]]);
  }

  const at = (event) => {
    const place = plot.getBoundingClientRect();
    const bin = (share, bins) => Math.max(0, Math.min(bins - 1, Math.floor(share * bins)));
    return [bin((event.clientX - place.left) / place.width, x.bins), bin((place.bottom - event.clientY) / place.height, y.bins)];
  };
  let from = null;
  plot.addEventListener("pointerdown", (event) => {
    plot.setPointerCapture(event.pointerId);
    from = at(event);
  });
  plot.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [i, j] = at(event);
    if (i !== from[0] || j !== from[1]) set([Math.min(i, from[0]), Math.max(i, from[0]), Math.min(j, from[1]), Math.max(j, from[1])]);
  });
  plot.addEventListener("pointerup", (event) => {
    const [i, j] = at(event);
    if (from && i === from[0] && j === from[1]) set(null);
    from = null;
  });
  plot.addEventListener("pointercancel", () => (from = null));
  plot.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !area) return;
    event.stopPropagation();
    set(null);
  });
  document.addEventListener("theme", draw);
  lay();
  return { card, clear: () => set(null), text: () => area && `${y.name} by ${x.name}: ${range.textContent}` };
}
