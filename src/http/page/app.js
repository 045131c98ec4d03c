// Which page is shown, the key, and the line about the server.

import { key, useKey } from "./api.js";
import { byId, fill } from "./dom.js";
import * as search from "./search.js";
import * as documents from "./documents.js";
import * as bundles from "./bundles.js";
import * as jobs from "./jobs.js";
import * as job from "./job.js";

const views = { search, documents, bundles, jobs, job };
const titles = { search: "expandr", documents: "Documents", bundles: "Bundles", jobs: "Jobs", job: "Job" };
let shown = null;

/** From "#/jobs/job-1?x=y" to a view, the rest of its path, and its parameters. */
function place() {
  const [path, parameters] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  const view = name === "jobs" && rest[0] ? "job" : name in views ? name : "search";
  return { view, id: decodeURIComponent(rest.join("/")), parameters: new URLSearchParams(parameters ?? "") };
}

function show() {
  if (location.hash === "#main") return;
  const at = place();
  if (shown && shown !== at.view) views[shown].leave?.();
  const isChange = shown !== null && shown !== at.view;
  shown = at.view;
  for (const name of Object.keys(views)) byId(`view-${name}`).hidden = name !== at.view;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link.getAttribute("href") === `#/${at.view === "job" ? "jobs" : at.view}`;
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = at.view === "search" ? titles.search : `${titles[at.view]} – expandr`;
  views[at.view].enter(at);
  if (isChange && at.view !== "search") byId("main").focus();
}

async function aboutServer() {
  try {
    const health = await (await fetch("/health", { cache: "no-store" })).json();
    const count = health.documents.toLocaleString();
    fill(byId("server"), `${count} documents · ${health.bundle}${health.expander ? "" : " · no language model"}`);
  } catch {
    fill(byId("server"), "the server does not answer");
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  showKey();
  views[shown].enter(place());
});

function showKey() {
  fill(byId("key-note"), key() ? "in use in this tab" : "");
  byId("key").placeholder = key() ? "•••••••• (empty: forget it)" : "where the server has keys";
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    if (shown !== "search") location.hash = "#/search";
    byId("view-search").hidden = false;
    byId("query").focus();
    byId("query").select();
  }
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

window.addEventListener("hashchange", show);
showKey();
show();
aboutServer();
setInterval(() => document.hidden || aboutServer(), 30000);
