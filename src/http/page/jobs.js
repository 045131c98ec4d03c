// Jobs: the list, and starting one.

import { asProblem, call } from "./api.js";
import { byId, fill, make, moment, problemBox } from "./dom.js";

let timer = null;

export function enter() {
  fill(byId("start-result"));
  refresh();
}

export function leave() {
  clearTimeout(timer);
}

async function refresh() {
  clearTimeout(timer);
  try {
    const { jobs } = await call("GET", "/admin/jobs?limit=50");
    fill(byId("jobs-list"), jobs.length ? table(jobs) : make("p", { className: "note" }, "There are no jobs yet."));
    if (jobs.some((job) => ["queued", "running"].includes(job.status))) timer = setTimeout(refresh, 3000);
  } catch (error) {
    fill(byId("jobs-list"), problemBox(asProblem(error)));
  }
}

function table(jobs) {
  const rows = jobs.map((job) => make("tr", {},
    make("th", { scope: "row" }, make("a", { href: `#/jobs/${encodeURIComponent(job.id)}` }, job.kind),
      make("div", { className: "note" }, job.id)),
    make("td", {}, make("span", { className: `badge ${job.status}` }, job.status)),
    make("td", {}, job.status === "running" ? job.stage ?? "" : ""),
    make("td", {}, moment(job.created_at))));
  const heads = ["Kind", "Status", "Stage", "Accepted"].map((name) => make("th", { scope: "col" }, name));
  return make("div", { className: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, rows)));
}

const list = (text) => text.split(/[\s,]+/).filter(Boolean);
const one = (text) => text.trim();
const collections = { label: "Collections, in the server's data folder", read: list };
/** The fields of each kind: their place in the request, and how they are read. */
const fields = {
  snapshot: {},
  reindex: {},
  retrain: {
    recipe: { label: "Recipe", read: one, hint: "smoke" },
    "evaluate.collections": collections,
    "evaluate.max_queries": { label: "Most queries of a collection", read: Number },
    "promotion.when": { label: "Activate when", read: one, choices: ["never", "significant", "not_worse", "always"] },
    "pairs.datasets": { label: "Uploaded datasets", read: list },
  },
  evaluate: {
    collections,
    bundle: { label: "Bundle (the active one)", read: one },
    against: { label: "Against (none)", read: one },
    max_queries: { label: "Most queries of a collection", read: Number },
  },
  import: {
    path: { label: "Path on the server's machine", read: one },
    what: { label: "What it is", read: one, choices: ["bundle", "encoder", "encoder_adapter", "expander", "expander_adapter"] },
    name: { label: "Name", read: one },
    activate: { label: "Activate it", read: (text) => text === "yes", choices: ["no", "yes"] },
  },
};

function showFields() {
  const inputs = Object.entries(fields[byId("job-kind").value]).map(([name, field]) => {
    const input = field.choices
      ? make("select", {}, field.choices.map((choice) => make("option", {}, choice)))
      : make("input", { placeholder: field.hint ?? "" });
    input.name = name;
    return make("label", {}, `${field.label} `, input);
  });
  fill(byId("job-fields"), inputs);
  showJson();
}

/** The request that the fields make. */
function fromFields() {
  const kind = byId("job-kind").value;
  const body = { kind };
  for (const input of byId("job-fields").querySelectorAll("input, select")) {
    if (input.value.trim() === "") continue;
    const path = input.name.split(".");
    let place = body;
    for (const step of path.slice(0, -1)) place = place[step] ??= {};
    place[path.at(-1)] = fields[kind][input.name].read(input.value);
  }
  return body;
}

function showJson() {
  byId("job-json").value = JSON.stringify(fromFields(), null, 2);
}

async function start() {
  try {
    let body;
    try {
      body = JSON.parse(byId("job-json").value);
    } catch (error) {
      throw new Error(`What is to be sent is not JSON: ${error.message}`);
    }
    const job = await call("POST", "/admin/jobs", body);
    location.hash = `#/jobs/${encodeURIComponent(job.id)}`;
  } catch (error) {
    fill(byId("start-result"), problemBox(asProblem(error)));
  }
}

byId("job-kind").addEventListener("change", showFields);
byId("job-fields").addEventListener("input", showJson);
byId("jobs-refresh").addEventListener("click", refresh);
byId("start-form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
showFields();
