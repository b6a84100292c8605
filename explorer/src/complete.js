// Completion in the SQL box: views, their columns, and the words and functions of SQL, at the caret.

import { clean, h } from "./dom.js";

const WORDS =
  "SELECT FROM WHERE GROUP BY ALL ORDER BY LIMIT OFFSET HAVING QUALIFY WITH AS JOIN LEFT JOIN USING ON AND OR NOT IN IS NULL BETWEEN LIKE ILIKE CASE WHEN THEN ELSE END DISTINCT UNION ALL ASC DESC NULLS LAST OVER PARTITION BY FILTER TABLESAMPLE DESCRIBE";
const FUNCTIONS =
  "abs approx_quantile arg_max arg_min avg ceil coalesce concat corr count covar_pop date_trunc dense_rank entropy exp floor greatest histogram isfinite isnan kurtosis lag lead least len length ln log10 lower max median min mode ntile percent_rank power quantile_cont rank regexp_extract regexp_matches regr_slope replace round row_number sign skewness split_part sqrt starts_with stddev strlen substr sum trim unnest upper var_pop";
const LIMIT = 9;

const named = (text, kind) => [...new Set(text.split(" "))].map((name) => ({ name, insert: name, kind }));

// `views`: what there is, columns by view; `quoted` writes a name as SQL has it.
export function complete(input, views, quoted) {
  const columns = new Map();
  for (const [view, list] of Object.entries(views)) {
    for (const one of list) {
      if (!one.name.startsWith("_")) columns.set(one.name, { name: one.name, insert: quoted(one.name), kind: columns.has(one.name) ? columns.get(one.name).kind : view });
    }
  }
  const all = [
    ...Object.keys(views).map((name) => ({ name, insert: name, kind: "view" })),
    ...columns.values(),
    ...named(FUNCTIONS, "function").map((one) => ({ ...one, insert: `${one.name}(` })),
    ...named(WORDS, "SQL"),
  ];
  const list = h("ul", { id: "sql-completion", role: "listbox", "aria-label": "Completions", hidden: true });
  input.after(list);
  input.setAttribute("aria-controls", "sql-completion");
  input.setAttribute("aria-autocomplete", "list");
  let shown = [];
  let at = 0;
  let word = "";

  function suggest(asked) {
    const before = input.value.slice(0, input.selectionStart);
    word = /[\p{L}_][\p{L}\p{N}_.]*$/u.exec(before)?.[0] ?? "";
    const inText = (before.match(/'/g) ?? []).length % 2 === 1 || /--[^\n]*$/.test(before);
    if (inText || (!asked && (word.length < 2 || input.selectionStart !== input.selectionEnd))) return hide();
    const after = word.slice(word.lastIndexOf(".") + 1).toLowerCase();
    const whole = word.toLowerCase();
    const pool = word.includes(".") ? [...columns.values(), ...all.filter((one) => one.kind === "view")] : all;
    const hit = (one) => {
      const name = one.name.toLowerCase();
      if (one.kind === "view") return name.startsWith(whole) ? 0 : -1;
      return name.startsWith(after) ? 0 : name.split(/[_.]/).some((part) => part.startsWith(after)) ? 1 : name.includes(after) && after.length > 2 ? 2 : -1;
    };
    shown = pool
      .map((one) => ({ ...one, rank: hit(one) }))
      .filter((one) => one.rank >= 0 && one.name.toLowerCase() !== after)
      .sort((a, b) => a.rank - b.rank)
      .slice(0, LIMIT);
    if (!shown.length) return hide();
    at = 0;
    list.replaceChildren(
      ...shown.map((one, i) =>
        h("li", { role: "option", id: `completion-${i}`, "aria-selected": String(i === 0), onpointerdown: (event) => (event.preventDefault(), accept(i)) },
          h("span", {}, clean(one.name)), h("span", { class: "type" }, clean(one.kind)))),
    );
    const { left, top } = caret(input);
    list.style.left = `${left}px`;
    list.style.top = `${top}px`;
    list.hidden = false;
    input.setAttribute("aria-activedescendant", "completion-0");
  }

  function hide() {
    list.hidden = true;
    input.removeAttribute("aria-activedescendant");
  }

  function move(by) {
    at = (at + by + shown.length) % shown.length;
    [...list.children].forEach((one, i) => one.setAttribute("aria-selected", String(i === at)));
    input.setAttribute("aria-activedescendant", `completion-${at}`);
  }

  function accept(i) {
    const one = shown[i];
    const start = input.selectionStart - (one.kind === "view" ? word.length : word.length - word.lastIndexOf(".") - 1);
    input.setSelectionRange(start, input.selectionStart);
    // Not setRangeText, which the browser's undo does not know.
    document.execCommand("insertText", false, one.insert);
    hide();
  }

  input.addEventListener("input", () => suggest(false));
  input.addEventListener("blur", hide);
  input.addEventListener("click", hide);
  input.addEventListener("keydown", (event) => {
    if (event.key === " " && event.ctrlKey) {
      event.preventDefault();
      return suggest(true);
    }
    if (list.hidden || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      move(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Tab" || event.key === "Enter") {
      event.preventDefault();
      accept(at);
    } else if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      hide();
    } else if (/^(ArrowLeft|ArrowRight|Home|End)$/.test(event.key)) hide();
  });
}

// Where the caret is, below its line: a textarea does not say, so its text is laid out once more beside it.
function caret(input) {
  const style = getComputedStyle(input);
  const mirror = h("div", { "aria-hidden": "true", class: "mirror" });
  for (const name of ["font", "padding", "border", "lineHeight", "tabSize", "width"]) mirror.style[name] = style[name];
  const mark = h("span", {}, "\u200b");
  mirror.append(input.value.slice(0, input.selectionStart), mark);
  input.parentElement.append(mirror);
  const left = Math.min(mark.offsetLeft, input.clientWidth - 240) + input.offsetLeft;
  const top = mark.offsetTop - input.scrollTop + input.offsetTop + parseFloat(style.lineHeight);
  mirror.remove();
  return { left: Math.max(input.offsetLeft, left), top };
}
