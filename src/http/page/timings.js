// Where the time of a search went: the longest path as a bar, every stage in words.

import { make, milliseconds } from "./dom.js";

const names = {
  encode_query_ms: "embed the query", search_raw_ms: "search with it", search_lexical_ms: "search by words",
  expansion_ms: "get the passage", first_token_ms: "to its first token", encode_expansion_ms: "embed the passage",
  search_ms: "search", fuse_ms: "fuse", fetch_ms: "read documents", own_ms: "the service itself",
};

export function timingBar(timings) {
  const raw = timings.encode_query_ms + timings.search_raw_ms;
  const longest = Math.max(raw, timings.expansion_ms, timings.search_lexical_ms);
  const first = longest === timings.expansion_ms ? [["expansion_ms", longest]]
    : longest === raw ? [["encode_query_ms", timings.encode_query_ms], ["search_raw_ms", timings.search_raw_ms]]
    : [["search_lexical_ms", longest]];
  const later = ["encode_expansion_ms", "search_ms", "fuse_ms", "fetch_ms", "own_ms"].map((name) => [name, timings[name]]);
  const path = [...first, ...later].filter(([, ms]) => ms > 0);
  const bar = make("div", { className: "bar", role: "img", "aria-label": `${milliseconds(timings.total_ms)} in all` },
    path.map(([name, ms]) => {
      const part = make("span", { className: `part ${name}`, title: `${names[name]}: ${milliseconds(ms)}` });
      part.style.flexGrow = String(ms);
      return part;
    }));
  const onPath = new Set(path.map(([name]) => name));
  const legend = Object.keys(names).filter((name) => timings[name] > 0).map((name) =>
    make("li", { className: onPath.has(name) ? "" : "beside" },
      onPath.has(name) && make("span", { className: `dot ${name}`, "aria-hidden": "true" }),
      `${names[name]} ${milliseconds(timings[name])}`, onPath.has(name) || name === "first_token_ms" ? "" : " (beside)"));
  return make("div", { className: "timings" }, bar, make("ul", {}, legend));
}
