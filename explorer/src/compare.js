// Two columns held against each other, of this store or of this one and another: what they agree on, and which rows moved most.

import { json } from "./api.js";
import { byId, clean, h, latest, number, percent, whole } from "./dom.js";
import { scatter } from "./scatter.js";
import { where } from "./selection.js";

export function compare(overview, more, open) {
  const place = byId("compared");
  const charts = [...overview.charts, ...more.others];
  if (charts.length < 2) {
    place.replaceChildren(h("p", { class: "state" }, "There is one numeric column or none: nothing to compare yet."));
    return { show() {} };
  }
  const options = (chosen) => [
    h("optgroup", { label: "this store" }, overview.charts.map((one) => h("option", { value: one.name, selected: one.name === chosen }, one.name))),
    ...(more.others.length
      ? [h("optgroup", { label: `other: ${clean(overview.other ?? "")}` }, more.others.map((one) => h("option", { value: one.name, selected: one.name === chosen }, one.name)))]
      : []),
  ];
  const first = charts[0].name;
  const twin = charts.find((one) => one.name === `other.${first}`);
  const second = (twin ?? charts.find((one) => one.name === "reward" && one.name !== first) ?? charts[1]).name;
  const pick = (label, chosen) => h("label", {}, `${label} `, h("select", { "aria-label": label, onchange: ask }, options(chosen)));
  const [a, b] = [pick("A", first), pick("B", second)];
  const rate = h("input", { type: "number", id: "compare-rate", min: 1, max: 99, step: 1, value: 20, "aria-label": "worst percent", onchange: ask });
  const swap = h("button", { class: "plain small", onclick: exchange }, "swap");
  const figures = h("div", { class: "figures", "aria-live": "polite" });
  const problem = h("p", { class: "problem", role: "alert" });
  const drawn = h("div", { class: "drawn" });
  const moved = h("div", { class: "moved" });
  place.replaceChildren(
    h("div", { class: "controls" }, a, b, swap, h("label", {}, "worst ", rate, " %"),
      more.others.length ? null : h("span", { class: "meaning" }, overview.other
        ? "the other store has no numeric column for these rows"
        : "start with --other STORE2 to compare another policy or reward model")),
    problem,
    figures,
    h("div", { class: "sides" }, drawn, moved),
  );
  const value = (label) => label.querySelector("select").value;
  let map = null;

  function exchange() {
    const [one, two] = [value(a), value(b)];
    [a.querySelector("select").value, b.querySelector("select").value] = [two, one];
    ask();
  }

  const work = latest(async () => {
    const [one, two] = [a, b].map((side) => charts.find((chart) => chart.name === value(side)));
    figures.classList.add("busy");
    try {
      const found = await json("compare", { first: one.name, second: two.name, rate: Number(rate.value) / 100, within: where() || "true" });
      problem.textContent = "";
      show(one, two, found);
    } catch (error) {
      problem.textContent = clean(error.message);
    }
    figures.classList.remove("busy");
  });
  function ask() {
    work();
  }

  function show(one, two, found) {
    const figure = (kind, name, text, of) => h("div", { class: `figure ${kind}` }, h("b", {}, text), h("span", {}, name), h("small", {}, of));
    const share = (part) => (part === null ? "–" : percent(part, 1));
    figures.replaceChildren(
      figure("", "rows with both", whole(found.rows), `of ${whole(overview.rows)}`),
      figure("", `overlap of the worst ${rate.value} %`, share(found.overlap), `${share(found.chance)} by chance`),
      figure("", "rows in both sets", whole(found.shared), `${whole(found.worst_a)} in A, ${whole(found.worst_b)} in B`),
      figure("", "rank correlation", number(found.correlation), "Spearman; 1 where worst is worst in both"),
    );
    if (!map || map.one !== one || map.two !== two) {
      map?.part.end();
      const part = scatter({ charts, groups: overview.groups, total: overview.rows, fixed: { x: one, y: two }, x: one.name, y: two.name, colour: "none", open, brush: false });
      map = { one, two, part };
      drawn.replaceChildren(part.card, h("p", { class: "meaning" }, `A, ${one.name}, across; B, ${two.name}, up. The lines are where the worst rows of each end.`));
    }
    map.part.mark({ x: found.cut_a, y: found.cut_b });
    const at = (row, side) => h("span", { class: "place" }, h("i", { style: { left: `${100 * row[side]}%` } }));
    moved.replaceChildren(
      h("div", { class: "title" }, h("h2", {}, "Rows that moved most"), h("span", { class: "meaning" }, "place among all rows, worst at the left")),
      found.moved.length
        ? h("div", { class: "scroll" }, h("table", { class: "rows" },
            h("thead", {}, h("tr", {}, ["row", "prompt"].map((name) => h("th", { scope: "col" }, name)),
              [["A", one], ["B", two]].map(([name, chart]) => [h("th", { scope: "col", class: "right", title: chart.name }, name), h("th", { scope: "col" }, `place in ${name}`)]))),
            h("tbody", {}, found.moved.map((row) =>
              h("tr", { tabindex: 0, "data-row": row.row_id, onclick: () => open(row.row_id), onkeydown: (event) => event.key === "Enter" && open(row.row_id) },
                h("td", { class: "right id" }, String(row.row_id)),
                h("td", { class: "prompt" }, clean(row.prompt ?? "")),
                h("td", { class: "right" }, number(row.a, one.whole)), h("td", {}, at(row, "place_a")),
                h("td", { class: "right" }, number(row.b, two.whole)), h("td", {}, at(row, "place_b")))))))
        : h("p", { class: "state" }, "No row has another place."),
    );
  }

  let shown = null;
  return {
    show() {
      map?.part.draw();
      // Again only where another selection was made meanwhile.
      if (shown === where()) return;
      shown = where();
      ask();
    },
  };
}
