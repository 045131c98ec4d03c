// The search page: the form, and the events of a search.

import { asProblem, call, events, isAbort } from "./api.js";
import * as answer from "./answer.js";
import { byId, fill, problemBox } from "./dom.js";

let underWay = null;
let lastQuery = null;

export function enter({ parameters }) {
  const query = parameters.get("q");
  if (query && query !== lastQuery) {
    byId("query").value = query;
    search();
  }
  if (!window.matchMedia("(pointer: coarse)").matches) byId("query").focus();
  defaults();
}

/** Shows what the server does where a field is left empty. */
async function defaults() {
  try {
    const { defaults, limits, bundle } = await call("GET", "/info");
    byId("budget").placeholder = defaults.expansion_timeout_ms;
    byId("max-tokens").placeholder = defaults.expansion_max_tokens;
    byId("query-weight").placeholder = defaults.query_weight ?? 0.5;
    byId("expansion").options[0].textContent = `as the server is set up (${defaults.expansion})`;
    byId("ranking").options[0].textContent = `as the server is set up (${defaults.ranking})`;
    byId("top-k").max = limits.top_k;
    byId("expansion").querySelector("[value=auto]").disabled = !bundle.gate;
  } catch {
    // The first search will say what is wrong.
  }
}

function number(id) {
  const text = byId(id).value.trim();
  return text === "" ? undefined : Number(text);
}

/** What is sent. Throws where a field can't be read. */
function request() {
  const expansion = byId("expansion").value;
  const body = { query: byId("query").value, explain: true };
  if (number("top-k") !== undefined) body.top_k = number("top-k");
  if (byId("ranking").value) body.ranking = byId("ranking").value;
  const filter = byId("filter").value.trim();
  if (filter) {
    try {
      body.filter = JSON.parse(filter);
    } catch (error) {
      throw new Error(`The filter is not JSON: ${error.message}`);
    }
  }
  const details = {
    timeout_ms: number("budget"), max_tokens: number("max-tokens"), query_weight: number("query-weight"),
  };
  if (expansion === "off") return { ...body, expansion: false };
  if (expansion === "own") details.texts = [byId("own").value];
  else if (expansion) details.mode = expansion;
  if (Object.values(details).some((value) => value !== undefined)) body.expansion = details;
  return body;
}

async function search() {
  underWay?.abort();
  const own = (underWay = new AbortController());
  const status = byId("search-status");
  fill(byId("search-problem"));
  lastQuery = byId("query").value;
  history.replaceState(null, "", `#/search?q=${encodeURIComponent(lastQuery)}`);
  try {
    const body = request();
    answer.begin(body);
    fill(status, "Searching…");
    byId("stop").hidden = false;
    let ended = false;
    for await (const { event, data } of events("POST", "/search", { body, signal: own.signal })) {
      if (event === "raw") {
        answer.raw(data);
        fill(status, "The query's own hits are there; waiting for the passage…");
      } else if (event === "expansion") answer.piece(data);
      else if (event === "answer") {
        fill(status, answer.whole(data));
        ended = true;
      } else if (event === "error") {
        failed(data);
        ended = true;
      }
    }
    if (!ended) failed({ code: "unreachable", title: "the search was cut off", detail: "The server ended it early." });
  } catch (error) {
    if (own.signal.aborted && underWay !== own) return; // another search has begun
    if (isAbort(error)) {
      fill(status, "Stopped.");
      answer.stopped();
    } else failed(asProblem(error));
  }
  if (underWay === own) {
    underWay = null;
    byId("stop").hidden = true;
  }
}

function failed(problem) {
  fill(byId("search-status"));
  fill(byId("search-problem"), problemBox(problem));
  answer.stopped();
}

byId("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
byId("stop").addEventListener("click", () => underWay?.abort());
byId("expansion").addEventListener("change", () => {
  byId("own-field").hidden = byId("expansion").value !== "own";
});
document.addEventListener("keydown", (event) => event.key === "Escape" && underWay?.abort());
