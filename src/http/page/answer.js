// What a search gives, as it comes: raw hits, passages, the answer.

import { byId, fill, make, milliseconds } from "./dom.js";
import { hitItem, ranksOf } from "./hits.js";
import { timingBar } from "./timings.js";

let asked = null;
let rawHits = [];
let passages = [];

export function begin(request) {
  asked = request;
  rawHits = [];
  passages = [];
  byId("answer").hidden = false;
  fill(byId("raw-hits"), waiting("Searching with the query alone…"));
  fill(byId("expanded-hits"), waiting("Waiting for the passage…"));
  byId("expanded-hits").setAttribute("aria-busy", "true");
  fill(byId("timings"));
  badge(request.expansion === false || request.ranking === "lexical" ? "" : "working", "being written");
  showTexts(null);
}

const waiting = (text) => make("li", { className: "waiting" }, text);

export function raw(answer) {
  rawHits = answer.hits;
  fill(byId("raw-title"), "The query alone ", make("span", { className: "note" }, `after ${milliseconds(answer.took_ms)}`));
  fill(byId("raw-hits"), rawHits.length ? rawHits.map((hit) => hitItem(hit)) : waiting("No document matches."));
}

export function piece({ passage, text }) {
  passages[passage] = (passages[passage] ?? "") + text;
  showTexts(null);
}

/** Nothing more comes; what there is stays. */
export function stopped() {
  if (!rawHits.length && !passages.length) byId("answer").hidden = true;
  byId("expanded-hits").setAttribute("aria-busy", "false");
  badge("", "");
  const pending = document.querySelectorAll("#answer .waiting");
  for (const item of pending) fill(item, "Nothing came.");
}

/** Shows the answer; gives a line that says what it is. */
export function whole(answer) {
  const { expansion } = answer;
  const isExpanded = expansion.texts.length > 0;
  byId("expanded-hits").setAttribute("aria-busy", "false");
  badge(expansion.status, label(expansion));
  showTexts(expansion);
  fill(byId("timings"), timingBar(answer.timings));
  const [before, after] = [ranksOf(rawHits), ranksOf(answer.hits)];
  fill(byId("expanded-title"), isExpanded ? "With the passage " : "The answer ",
    make("span", { className: "note" }, `${answer.ranking}, ${answer.searched}, after ${milliseconds(answer.took_ms)}`));
  const hits = answer.hits.map((hit) => hitItem(hit, isExpanded ? { before, ranking: answer.ranking } : null));
  fill(byId("expanded-hits"), hits.length ? hits : waiting("No document matches."));
  if (rawHits.length && isExpanded) fill(byId("raw-hits"), rawHits.map((hit) => hitItem(hit, { after })));
  if (!isExpanded) fill(byId("raw-hits"), waiting(`The query was searched alone: ${why(expansion)}`));
  const count = answer.hits.length === 1 ? "1 hit" : `${answer.hits.length} hits`;
  return `${count} in ${milliseconds(answer.took_ms)}: ${isExpanded ? label(expansion) : why(expansion)}`;
}

function badge(kind, text) {
  const element = byId("expansion-badge");
  element.className = `badge ${kind}`;
  fill(element, text);
}

const label = ({ status, cut, reason }) => ({
  applied: cut ? "written, cut by the budget" : "written for this query",
  cached: "from the cache",
  supplied: "your own passage",
  disabled: "no expansion",
  skipped: "no expansion: no gain expected",
  degraded: `degraded: ${reasons[reason] ?? reason}`,
})[status] ?? status;

const reasons = {
  timeout: "no passage within the budget",
  overloaded: "the language model or the encoder has no place",
  llm_error: "the language model failed",
  empty_output: "the language model wrote nothing of use",
};

function why({ status, reason, detail }) {
  if (status === "disabled") return "no expansion was wanted.";
  if (status === "skipped") return "the gate expects no gain from an expansion.";
  const more = detail ? ` (${detail})` : "";
  return `${reasons[reason] ?? reason}${more}. A larger budget or another try may help.`;
}

/** The query and the passages with their weights: as they are being written, or as they were embedded. */
function showTexts(expansion) {
  const texts = expansion?.texts.length ? expansion.texts : passages.filter(Boolean);
  const isUsed = !expansion || expansion.texts.length > 0;
  const weight = expansion ? expansion.query_weight : null;
  const share = weight === null || !texts.length ? "" : ((1 - weight) / texts.length).toFixed(2);
  const row = (name, text, share, className) => make("div", { className: `embedded ${className}` },
    make("span", { className: "weight" }, share), make("p", {}, make("b", {}, `${name} `), text));
  const rows = [row("query", asked.query, weight === null ? "" : weight.toFixed(2), "")];
  for (const [i, text] of texts.entries()) {
    const name = texts.length > 1 ? `passage ${i + 1}` : "passage";
    rows.push(row(isUsed ? name : `${name}, not used`, text, isUsed ? share : "0", expansion ? "" : "writing"));
  }
  fill(byId("embedded"), rows, expansion && figures(expansion));
}

function figures({ output_tokens, joint_encoding, query_cosine, raw_overlap_at_10, gate }) {
  const parts = [];
  if (output_tokens) parts.push(`${output_tokens} tokens`);
  if (joint_encoding) parts.push("embedded behind the query, as one text");
  if (query_cosine !== undefined) parts.push(`cosine of query and passage ${query_cosine.toFixed(2)}`);
  if (raw_overlap_at_10 !== undefined) parts.push(`${Math.round(raw_overlap_at_10 * 100)} % of the ten best hits are the query's own`);
  if (gate) parts.push(`gate: predicted gain ${gate.predicted_gain.toFixed(3)}, threshold ${gate.threshold ?? "none"}`);
  return parts.length ? make("p", { className: "note" }, parts.join(" · ")) : null;
}
