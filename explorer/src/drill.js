// One row opened: its texts, its candidates by reward, its scores and what became of it.

import { json } from "./api.js";
import { byId, clean, copy, h, number, percent } from "./dom.js";
import { difference } from "./diff.js";

export function drill(beside, changed) {
  const place = byId("drill");
  let now = null;
  let back = null;

  async function open(id) {
    if (place.hidden) back = document.activeElement;
    now = id;
    place.hidden = false;
    document.body.classList.add("drilled");
    changed(id);
    place.replaceChildren(head(id), h("p", { class: "state" }, "Reading the row…"));
    place.querySelector("h2").focus();
    try {
      const row = await json(`row/${id}`);
      if (now === id) place.replaceChildren(head(id), ...content(row));
    } catch (error) {
      if (now === id) place.replaceChildren(head(id), h("p", { class: "state error" }, error.message));
    }
    if (now === id) place.querySelector("h2").focus();
  }

  function close() {
    now = null;
    place.hidden = true;
    document.body.classList.remove("drilled");
    changed(null);
    back?.focus();
  }

  function step(by) {
    const next = now === null ? undefined : beside(now, by);
    if (next !== undefined) open(next);
  }

  const head = (id) =>
    h(
      "header",
      {},
      h("h2", { tabindex: -1 }, `Row ${id}`),
      h("span", { class: "spring" }),
      h("button", { class: "quiet", title: "Previous row (k)", "aria-label": "Previous row", onclick: () => step(-1) }, "↑"),
      h("button", { class: "quiet", title: "Next row (j)", "aria-label": "Next row", onclick: () => step(1) }, "↓"),
      h("button", { class: "quiet", title: "Close (Esc)", "aria-label": "Close the row", onclick: close }, "✕"),
    );

  return { open, close, step, isOpen: () => now !== null, now: () => now };
}

function content(row) {
  const wrong = row.candidates.filter((one) => one.misjudgement > 0).length;
  const scored = row.candidates.filter((one) => one.reward !== null).length;
  return [
    h("section", {}, h("h3", {}, "Prompt"), h("div", { class: "text lead", tabindex: 0 }, clean(row.prompt ?? ""))),
    row.response === null
      ? null
      : h("section", {}, h("h3", { class: "golden" }, "Golden response"), h("div", { class: "text golden", tabindex: 0 }, clean(row.response))),
    row.reference !== null && row.reference !== row.response
      ? h("section", {}, h("h3", {}, "Reference"), h("div", { class: "text", tabindex: 0 }, clean(row.reference)))
      : null,
    h(
      "section",
      {},
      h("h3", {}, "Verdicts"),
      h("ul", { class: "verdicts" }, row.verdicts.map((line) => h("li", { class: / dropped by /.test(line) ? "dropped" : "" }, clean(line)))),
    ),
    h(
      "section",
      {},
      h("h3", {}, "Candidates by reward"),
      h(
        "p",
        { class: "meaning" },
        row.candidates.length
          ? `The reward model prefers ${wrong} of ${scored} to the golden response (${percent(wrong, scored)}). Open one for its words.`
          : "No candidate: no similar question in the band, or the step did not run.",
      ),
      row.candidates.length ? candidates(row) : null,
    ),
    row.scores.length ? h("section", {}, h("h3", {}, "Scores"), scores(row.scores)) : null,
  ].filter(Boolean);
}

function candidates(row) {
  const rewards = [row.reward, ...row.candidates.map((one) => one.reward)].filter((value) => value !== null);
  const low = Math.min(...rewards);
  const span = Math.max(...rewards) - low || 1;
  const likely = (one) => (one.logprob === null || !one.n_tokens ? null : Math.exp(one.logprob / one.n_tokens));
  const most = Math.max(1e-12, ...row.candidates.map((one) => likely(one) ?? 0));
  const at = (reward) => `${4 + (92 * (reward - low)) / span}%`;
  const golden = row.reward;

  const track = (one) =>
    h(
      "span",
      { class: "track reward" },
      one.reward === null
        ? null
        : [
            golden === null ? null : h("i", { class: one.misjudgement > 0 ? "gap wrong" : "gap", style: gap(one.reward) }),
            h("i", { class: one.golden ? "dot golden" : one.misjudgement > 0 ? "dot wrong" : "dot", style: { left: at(one.reward) } }),
          ],
      golden === null ? null : h("i", { class: "line", style: { left: at(golden) } }),
    );
  const gap = (reward) => ({
    left: at(Math.min(reward, golden)),
    width: `${(92 * Math.abs(reward - golden)) / span}%`,
  });
  const lines = [...row.candidates];
  if (golden !== null) {
    const place = lines.findIndex((one) => one.reward === null || one.reward <= golden);
    lines.splice(place < 0 ? lines.length : place, 0, { golden: true, reward: golden, response: row.response });
  }
  const list = lines.map((one) => {
    const value = one.golden ? null : likely(one);
    const cells = [
      h("span", { class: "mark" }, one.golden ? "golden" : one.misjudgement > 0 ? "misjudged" : ""),
      h("span", { class: "number" }, number(one.reward)),
      track(one),
      h("span", { class: "number" }, value === null ? "–" : number(value)),
      h("span", { class: "track likelihood" }, value === null ? null : h("i", { style: { width: `${(100 * value) / most}%` } })),
      h("span", { class: "number" }, number(one.golden ? null : one.similarity)),
      h("span", { class: "clip" }, clean(one.response ?? "text not in the store")),
    ];
    if (one.golden) return h("div", { class: "candidate golden" }, cells);
    const details = h("details", { class: one.misjudgement > 0 ? "wrong" : "" }, h("summary", { class: "candidate" }, cells));
    // Words are compared when asked for: a row may have hundreds of long candidates.
    details.addEventListener("toggle", () => details.open && details.childElementCount === 1 && details.append(opened(row, one)));
    return details;
  });
  return h(
    "div",
    { class: "candidates" },
    h("div", { class: "candidate heads", "aria-hidden": "true" }, ["", "reward", "", "likelihood / token", "", "similarity", "response"].map((name, i) => h("span", { class: [1, 3, 5].includes(i) ? "number" : "" }, name))),
    list,
  );
}

function opened(row, one) {
  const text = one.response ?? "";
  const golden = row.response;
  const parts = golden === null ? [{ text, same: true }] : difference(golden, text);
  const lacked = golden === null ? [] : difference(text, golden);
  const short = [...parts, ...lacked].every((part) => part.same !== null);
  // Underlined or struck through: not told by colour alone.
  const marked = (kind, list) => h("div", { class: "text diff", tabindex: 0 }, list.map((part) => (part.same === false ? h(kind, {}, clean(part.text)) : clean(part.text))));
  const facts = [
    `${one.variant} ${one.rank}`,
    one.source_row_id === null ? null : `corpus row ${one.source_row_id}`,
    one.misjudgement === null ? null : `misjudgement ${number(one.misjudgement)}`,
    one.weight === null ? null : `weight ${number(one.weight)}`,
    one.logprob === null ? null : `log-probability ${number(one.logprob)} over ${one.n_tokens} tokens`,
    one.count > 1 ? `drawn ${one.count} times` : null,
    one.finish === "length" ? "cut at the most tokens" : null,
  ].filter(Boolean);
  return h(
    "div",
    { class: "opened" },
    one.source_prompt ? h("p", { class: "source" }, h("b", {}, "answers: "), clean(one.source_prompt)) : null,
    marked("ins", parts),
    lacked.length ? h("p", { class: "source" }, h("b", {}, "golden response: "), "struck through is what this one lacks, underlined above what it has more", short ? "" : "; too long to compare to its end") : null,
    lacked.length ? marked("del", lacked) : null,
    h("p", { class: "meaning" }, facts.join(" · ")),
    h("button", { class: "quiet small", onclick: () => copy(text, "response") }, "copy"),
  );
}

function scores(list) {
  return h(
    "dl",
    { class: "scores" },
    list.map((one) => h("div", { title: one.meaning }, h("dt", {}, one.name), h("dd", {}, number(one.value, one.whole)), h("dd", { class: "meaning" }, one.meaning))),
  );
}
