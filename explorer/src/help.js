// The "?" beside a column: what it means, its formula and what it was measured to find, in a box that Escape or a second click closes.

import { clean, h } from "./dom.js";

let count = 0;

export function help({ name, meaning, formula, measured, made_by: madeBy }) {
  if (!meaning && !formula) return null;
  const id = `help-${++count}`;
  const box = h("div", { class: "help", id, hidden: true, role: "note" },
    h("p", {}, clean(meaning || "")),
    formula ? h("p", { class: "formula" }, formula) : null,
    measured ? h("p", { class: "measured" }, measured) : null,
    madeBy ? h("p", { class: "meaning" }, `made by ${clean(madeBy)}`) : null);
  const close = () => show(false);
  const show = (open) => {
    box.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  };
  const button = h("button", {
    class: "quiet ask", "aria-label": `What is ${name}?`, "aria-expanded": "false", "aria-controls": id,
    onclick: () => show(box.hidden),
    onkeydown: (event) => {
      if (event.key !== "Escape" || box.hidden) return;
      event.stopPropagation();
      close();
    },
    onblur: close,
  }, "?");
  return h("span", { class: "asked" }, button, box);
}
