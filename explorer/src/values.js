// A column of labels: a bar for each of the most frequent values, more of them when asked for; a click selects one, another takes it back.

import { clean, h, whole } from "./dom.js";
import { help } from "./help.js";
import { selectValues, watchValues } from "./selection.js";

const SHOWN = 5;
const LISTED = 200;

export function values(group, told) {
  const listed = group.values.slice(0, LISTED);
  const more = listed.length - SHOWN;
  const beyond = group.values.length - listed.length;
  const top = Math.max(1, ...listed.map(([, rows]) => rows));
  const chosen = new Set();
  const clearing = h("button", { class: "quiet small", "aria-label": `Clear ${group.name}`, hidden: true, onclick: clear }, "✕");
  const lines = new Map(
    listed.map(([value, rows], i) => {
      const bar = h("i", { class: "in" });
      const count = h("span", { class: "count" });
      const line = h(
        "button",
        { class: "value", "aria-pressed": "false", hidden: i >= SHOWN, onclick: () => toggle(value) },
        h("span", { class: "label", title: value === null ? "no value" : clean(value) }, value === null ? "no value" : clean(value)),
        h("span", { class: "track" }, h("i", { class: "all", style: { width: `${(100 * rows) / top}%` } }), bar),
        count,
      );
      return [value, { line, bar, count }];
    }),
  );
  const list = h("div", { class: "values" }, [...lines.values()].map((one) => one.line));
  const fold = h("button", { class: "quiet small", "aria-expanded": "false", onclick: () => unfold(fold.getAttribute("aria-expanded") === "false") });
  const card = h(
    "article",
    { class: "card group", "data-column": group.name },
    h("header", {}, h("h3", { title: group.meaning || group.name }, group.name), help(group.name, group.meaning), clearing),
    h("p", { class: "meaning", title: group.meaning }, group.meaning || "column of the source"),
    list,
    more > 0 ? h("footer", {}, fold, beyond > 0 ? h("span", {}, `and ${whole(beyond)} rarer ones`) : null) : null,
  );

  function unfold(open) {
    fold.setAttribute("aria-expanded", String(open));
    fold.textContent = open ? "fewer" : `${whole(more)} more value${more === 1 ? "" : "s"}`;
    list.classList.toggle("open", open);
    listed.forEach(([value], i) => (lines.get(value).line.hidden = !open && i >= SHOWN && !chosen.has(value)));
  }
  unfold(false);

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
    selectValues(client, group.name, [...chosen], told);
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
