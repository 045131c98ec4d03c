// One job, followed by its events to its end.

import { asProblem, call, events, isAbort, Refused } from "./api.js";
import { Curves } from "./curves.js";
import { byId, duration, fill, make, moment, problemBox } from "./dom.js";

const LISTED = 200;
const AGAIN_MS = 2000;
let following = null;
let job = null;
let curves = null;

export function enter({ id }) {
  leave();
  following = new AbortController();
  job = null;
  curves = new Curves(byId("job-curves"));
  for (const place of ["job-state", "job-progress", "job-problem", "job-outcome", "job-events"]) fill(byId(place));
  fill(byId("job-title"), id);
  follow(id, following.signal);
}

export function leave() {
  following?.abort();
}

/** Reads the events, and comes back behind the last one when the connection breaks. */
async function follow(id, signal) {
  let last = null;
  while (!signal.aborted) {
    try {
      const headers = last === null ? {} : { "last-event-id": last };
      for await (const event of events("GET", `/admin/jobs/${encodeURIComponent(id)}/events`, { headers, signal })) {
        last = event.id;
        happened(event.data);
      }
      if (hasEnded(job?.status)) return;
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      fill(byId("job-problem"), problemBox(asProblem(error)));
      const isCutOff = error instanceof Refused && error.problem.code === "unreachable";
      if (!isCutOff) return;
    }
    await new Promise((wake) => setTimeout(wake, AGAIN_MS));
  }
}

const hasEnded = (status) => status !== undefined && !["queued", "running"].includes(status);

function happened(event) {
  if (event.event === "status") {
    job = event.job;
    showState();
    showProgress(job.stage, job.progress);
  } else if (event.event === "stage") showProgress(event.stage, null);
  else if (event.event === "progress") {
    showProgress(event.stage, event.progress);
    curves.add(event.stage, event.progress);
    return; // too many for the list
  }
  log(event);
}

function showState() {
  fill(byId("job-title"), `${job.kind} `, make("span", { className: `badge ${job.status}` }, job.status));
  const times = [["accepted", job.created_at], ["started", job.started_at], ["ended", job.finished_at]];
  fill(byId("job-state"), make("p", { className: "note" },
    [job.id, ...times.filter(([, at]) => at).map(([name, at]) => `${name} ${moment(at)}`), job.attempts > 1 && `${job.attempts} attempts`]
      .filter(Boolean).join(" · ")));
  byId("job-cancel").hidden = hasEnded(job.status);
  byId("job-resume").hidden = !["failed", "cancelled", "interrupted"].includes(job.status);
  fill(byId("job-problem"), job.problem && problemBox(job.problem));
  fill(byId("job-outcome"),
    job.result && make("section", { className: "card" }, make("h2", {}, "Result"), make("pre", {}, JSON.stringify(job.result, null, 2))),
    make("details", {}, make("summary", {}, "What was asked for"), make("pre", {}, JSON.stringify(job.request, null, 2))));
}

function showProgress(stage, progress) {
  if (!stage || job?.status === "queued") return;
  const parts = [];
  if (progress?.total) parts.push(`${progress.done} of ${progress.total} ${progress.unit ?? ""}`);
  if (progress?.stages) parts.push(`stage ${Math.min(progress.stages_done + 1, progress.stages)} of ${progress.stages}`);
  if (progress?.eta_seconds) parts.push(`about ${duration(progress.eta_seconds)} left`);
  if (progress?.loss !== undefined) parts.push(`loss ${progress.loss.toFixed(4)}`);
  if (progress?.reward_margin !== undefined) parts.push(`reward margin ${progress.reward_margin.toFixed(4)}`);
  // Without a value the bar moves to and fro.
  const bar = !hasEnded(job?.status)
    && make("progress", { "aria-label": `progress of ${stage}`, max: 1, value: progress?.fraction });
  fill(byId("job-progress"), make("p", {}, make("b", {}, stage), parts.length ? ` ${parts.join(" · ")}` : ""), bar);
}

function log(event) {
  const said = {
    status: () => event.job.status,
    stage: () => `stage ${event.stage}${event.why ? `: ${event.why}` : ""}`,
    note: () => `${event.stage}: ${event.text}`,
  }[event.event]?.() ?? event.event;
  const place = byId("job-events");
  place.append(make("li", {}, make("time", { dateTime: event.at }, new Date(event.at).toLocaleTimeString()), ` ${said}`));
  while (place.childElementCount > LISTED) place.firstElementChild.remove();
}

async function act(what) {
  const id = job.id;
  try {
    await call("POST", `/admin/jobs/${encodeURIComponent(id)}/${what}`);
    if (what === "resume") enter({ id });
  } catch (error) {
    fill(byId("job-problem"), problemBox(asProblem(error)));
  }
}

byId("job-cancel").addEventListener("click", () => act("cancel"));
byId("job-resume").addEventListener("click", () => act("resume"));
