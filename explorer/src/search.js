// Rows by their words: what is typed selects the rows whose prompt or golden response contains it.

import { json } from "./api.js";
import { byId, clean, latest, whole } from "./dom.js";
import { selectRows } from "./selection.js";

export function search() {
  const input = byId("search");
  const note = byId("searched");
  // It selects and draws nothing.
  const client = {};
  let text = "";

  const look = latest(async (wanted) => {
    text = wanted.trim();
    if (input.value.trim() !== text) input.value = text;
    if (!text) {
      note.textContent = "";
      return selectRows(client, null, null);
    }
    note.textContent = "searching…";
    try {
      const found = await json("search", { text });
      note.textContent = found.total > found.rows.length ? `the first ${whole(found.rows.length)} of ${whole(found.total)} rows` : "";
      selectRows(client, found.rows, found.told);
    } catch (error) {
      note.textContent = clean(error.message);
    }
  });
  let timer;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => look(input.value), 250);
  });
  input.addEventListener("change", () => look(input.value));
  return {
    name: "search",
    clear: () => ((input.value = ""), look("")),
    text: () => (text ? `contains: ${clean(text)}` : null),
    state: () => text || null,
    restore: (kept) => look(kept),
  };
}
