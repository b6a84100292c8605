// The selected rows, worst first; the server sorts and pages.

import { json } from "./api.js";
import { byId, clean, h, latest, number } from "./dom.js";
import { where } from "./selection.js";

const PAGE = 30;
const COLUMNS = 6;

export function rowTable(overview, open) {
  const charts = overview.charts.slice(0, COLUMNS);
  const first = overview.charts[0];
  let by = first ? first.name : "row_id";
  let descending = first ? first.worst === "high" : false;
  let rows = [];
  const body = h("tbody");
  const message = h("p", { class: "state" });
  const more = h("button", { class: "plain", hidden: true, onclick: () => load(rows.length) }, "Show more");
  const columns = [
    { name: "row_id", label: "row", worst: "low" },
    { name: null, label: "prompt" },
    { name: null, label: "misjudged", numeric: true },
    ...charts.map((chart) => ({ name: chart.name, label: chart.name, worst: chart.worst, numeric: true, title: chart.meaning })),
  ];
  const heads = columns.map((column) =>
    h(
      "th",
      { scope: "col", class: column.numeric ? "right" : "", title: column.title },
      column.name ? h("button", { class: "sort", onclick: () => sort(column) }, column.label) : column.label,
    ),
  );
  const table = h("table", { class: "rows" }, h("thead", {}, h("tr", {}, heads)), body);
  byId("rows").replaceChildren(h("div", { class: "scroll" }, table), message, more);

  function sort(column) {
    if (by === column.name) descending = !descending;
    else [by, descending] = [column.name, column.worst === "high"];
    load(0);
  }

  const load = latest(async (offset) => {
    columns.forEach((column, i) =>
      heads[i].setAttribute("aria-sort", column.name === by ? (descending ? "descending" : "ascending") : "none"),
    );
    table.classList.add("busy");
    try {
      const page = await json("rows", { where: where() || "true", by, descending, offset, limit: PAGE });
      rows = offset ? [...rows, ...page.rows] : page.rows;
      if (!offset) body.replaceChildren();
      body.append(...page.rows.map(line));
      more.hidden = page.rows.length < PAGE;
      message.textContent = rows.length ? "" : "No row is in the selection: clear one of its parts above.";
      message.className = "state";
    } catch (error) {
      message.textContent = error.message;
      message.className = "state error";
    }
    table.classList.remove("busy");
  });

  function line(row) {
    const share = row._candidates ? (row._misjudged ?? 0) / row._candidates : 0;
    const wrong = h(
      "td",
      { class: "right misjudged" },
      row._candidates
        ? h("span", { class: "share" }, h("i", { style: { width: `${100 * share}%` } }))
        : null,
      h("span", { class: "of" }, row._candidates ? `${Math.round(row._misjudged ?? 0)} / ${row._candidates}` : "none"),
    );
    return h(
      "tr",
      {
        tabindex: 0,
        "data-row": row.row_id,
        onclick: () => open(row.row_id),
        onkeydown: (event) => {
          if (event.key === "Enter") open(row.row_id);
          const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
          if (next && event.currentTarget[next]) {
            event.preventDefault();
            event.currentTarget[next].focus();
          }
        },
      },
      h("td", { class: "right id" }, String(row.row_id)),
      h("td", { class: "prompt" }, clean(row.prompt ?? "")),
      wrong,
      charts.map((chart) => h("td", { class: "right" }, number(row[chart.name], chart.whole))),
    );
  }

  return {
    reload: () => load(0),
    // The row beside one in the list, for going through it without closing the row.
    beside(id, by) {
      const place = rows.findIndex((row) => row.row_id === id);
      return place < 0 ? undefined : rows[place + by]?.row_id;
    },
    mark(id) {
      for (const one of body.children) one.toggleAttribute("aria-current", one.dataset.row === String(id));
    },
  };
}
