// One hit of a list, and how its rank changed.

import { make } from "./dom.js";

export const ranksOf = (hits) => new Map(hits.map((hit) => [hit.id, hit.rank]));

/** A hit. `compared` has the ranks `before` (for a hit of the answer) or `after` (for a hit of the query alone). */
export function hitItem(hit, compared = null) {
  const heading = hit.title || hit.id;
  const item = make("li", { className: "hit", value: hit.rank },
    make("div", { className: "hit-head" },
      make("span", { className: "rank", "aria-hidden": "true" }, String(hit.rank)),
      make("h3", {}, breakable(heading)),
      compared && change(hit, compared)),
    hit.text && text(hit.text),
    details(hit, heading));
  item.dataset.id = hit.id;
  return item;
}

function details(hit, heading) {
  const parts = [`score ${hit.score.toFixed(3)}`];
  if (hit.id !== heading) parts.unshift(hit.id);
  const { query_cosine, expansion_cosines } = hit.explain ?? {};
  if (expansion_cosines?.length) {
    parts.push(`query ${query_cosine.toFixed(2)}, passage ${expansion_cosines.map((c) => c.toFixed(2)).join(" ")}`);
  }
  const line = parts.join(" · ");
  const metadata = Object.entries(hit.metadata ?? {});
  if (!metadata.length) return make("p", { className: "note" }, line);
  const said = metadata.map(([name, value]) => make("div", {}, `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`));
  return make("details", { className: "note" }, make("summary", {}, line), said);
}

/** Long names without spaces may break behind their punctuation. */
const breakable = (name) => name.split(/(?<=::|[/._-])/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));

function change(hit, { before, after, ranking }) {
  if (after) {
    const rank = after.get(hit.id);
    if (rank === undefined) return mark("gone", "gone", "not among the answer's hits");
    return rank === hit.rank ? null : mark("moved", `→ ${rank}`, `rank ${rank} in the answer`);
  }
  // The dense ranking without expansion is known beyond the hits that are shown.
  const deeper = ranking === "dense" ? hit.explain?.rank_without_expansion : null;
  const was = before.get(hit.id) ?? deeper ?? null;
  if (was === null) return mark("new", "new", "the query alone does not find it");
  if (was > hit.rank) return mark("up", `▲${was - hit.rank}`, `up from rank ${was}`);
  if (was < hit.rank) return mark("down", `▼${hit.rank - was}`, `down from rank ${was}`);
  return mark("same", "=", "the same rank");
}

const mark = (kind, shown, said) =>
  make("span", { className: `change ${kind}`, title: said },
    make("span", { "aria-hidden": "true" }, shown), make("span", { className: "quiet" }, said));

/** Long texts are cut by the style sheet; a click shows all of one. */
function text(whole) {
  const paragraph = make("p", { className: "text" }, whole);
  if (whole.length <= 220) return paragraph;
  const button = make("button", { type: "button", className: "link", "aria-expanded": "false" }, "more");
  button.addEventListener("click", () => {
    const isOpen = paragraph.classList.toggle("open");
    button.textContent = isOpen ? "less" : "more";
    button.setAttribute("aria-expanded", String(isOpen));
  });
  return make("div", {}, paragraph, button);
}
