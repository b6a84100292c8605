// A column of labels: a bar for each of the most frequent values; a click selects it, another takes it back.

import { clean, h, whole } from "./dom.js";
import { selectValues, watchValues } from "./selection.js";

const SHOWN = 5;

export function values(group) {
  const shown = group.values.slice(0, SHOWN);
  const rest = group.values.length - shown.length;
  const top = Math.max(1, ...shown.map(([, rows]) => rows));
  const chosen = new Set();
  const clearing = h("button", { class: "quiet small", "aria-label": `Clear ${group.name}`, hidden: true, onclick: clear }, "✕");
  const lines = new Map(
    shown.map(([value, rows]) => {
      const bar = h("i", { class: "in" });
      const count = h("span", { class: "count" });
      const line = h(
        "button",
        { class: "value", "aria-pressed": "false", onclick: () => toggle(value) },
        h("span", { class: "label" }, value === null ? "no value" : clean(value)),
        h("span", { class: "track" }, h("i", { class: "all", style: { width: `${(100 * rows) / top}%` } }), bar),
        count,
      );
      return [value, { line, bar, count }];
    }),
  );
  const card = h(
    "article",
    { class: "card group", "data-column": group.name },
    h("header", {}, h("h3", { title: group.meaning || group.name }, group.name), clearing),
    h("p", { class: "meaning", title: group.meaning }, group.meaning || "column of the source"),
    h("div", { class: "values" }, [...lines.values()].map((one) => one.line)),
    rest > 0 ? h("footer", {}, h("span", {}, `and ${whole(rest)} more values`)) : null,
  );

  function toggle(value) {
    if (!chosen.delete(value)) chosen.add(value);
    publish();
  }

  function clear() {
    chosen.clear();
    publish();
  }

  function publish() {
    clearing.hidden = !chosen.size;
    for (const [value, { line }] of lines) line.setAttribute("aria-pressed", String(chosen.has(value)));
    card.classList.toggle("chosen", chosen.size > 0);
    selectValues(client, group.name, [...chosen]);
  }

  const client = watchValues(group.name, true, (rows) => {
    const found = new Map(rows.map((one) => [one.value ?? null, Number(one.rows)]));
    for (const [value, { bar, count }] of lines) {
      const n = found.get(value) ?? 0;
      bar.style.width = `${(100 * n) / top}%`;
      count.textContent = whole(n);
    }
  });
  const named = () => [...chosen].map((value) => (value === null ? "no value" : clean(value))).join(", ");
  return {
    card,
    clear,
    name: group.name,
    text: () => (chosen.size ? `${group.name}: ${named()}` : null),
    state: () => (chosen.size ? [...chosen] : null),
    restore(names) {
      for (const name of names) chosen.add(name);
      publish();
    },
  };
}
