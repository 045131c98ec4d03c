// Bundles: the list, activation, rollback.

import { asProblem, call } from "./api.js";
import { byId, fill, make, milliseconds, moment, problemBox } from "./dom.js";

let timer = null;

export function enter() {
  fill(byId("bundles-status"));
  refresh();
}

export function leave() {
  clearTimeout(timer);
}

async function refresh() {
  clearTimeout(timer);
  try {
    const listed = await call("GET", "/admin/bundles");
    byId("rollback").disabled = !listed.previous || Boolean(listed.activation);
    fill(byId("bundles-list"), listed.activation && underWay(listed.activation), ended(listed), table(listed));
    if (listed.activation) timer = setTimeout(refresh, 1000);
  } catch (error) {
    byId("rollback").disabled = true;
    fill(byId("bundles-list"), problemBox(asProblem(error)));
  }
}

function underWay({ bundle, stage, done, total }) {
  const bar = make("progress", { "aria-label": `activation of ${bundle}`, max: total || 1, value: done || 0 });
  return make("div", { className: "card" }, make("p", {}, `${bundle} is being activated: ${stage}`, total ? `, ${done} of ${total}` : ""), bar);
}

function ended({ last_activation: last, activation }) {
  if (!last?.problem || activation) return null;
  return problemBox({ ...last.problem, title: `the last activation (${last.bundle}) failed` });
}

function table({ bundles, activation }) {
  const model = (part) => part?.model?.split("/").pop() ?? "none";
  const rows = bundles.map((bundle) => {
    const { manifest } = bundle;
    const state = bundle.active ? "active" : bundle.previous ? "previous" : "";
    return make("tr", {},
      make("th", { scope: "row" }, bundle.name, make("div", { className: "note" }, bundle.id)),
      make("td", {}, state && make("span", { className: `badge ${state}` }, state)),
      make("td", {}, model(manifest?.encoder)),
      make("td", {}, model(manifest?.expander)),
      make("td", {}, moment(bundle.created_at)),
      make("td", {}, !bundle.active && make("button", {
        type: "button", disabled: Boolean(activation), "aria-label": `Activate ${bundle.name}`,
        onclick: () => change(`/admin/bundles/${encodeURIComponent(bundle.id)}/activate`),
      }, "Activate")));
  });
  const heads = ["Name", "State", "Encoder", "Expander", "Made", ""].map((name) => make("th", { scope: "col" }, name));
  return make("div", { className: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, rows)));
}

async function change(path) {
  const status = byId("bundles-status");
  fill(status, "Changing over…");
  try {
    const going = call("POST", path, { wait_ms: 5000 });
    setTimeout(refresh, 300);
    const done = await going;
    fill(status, done.changed === undefined
      ? "The change goes on; this page follows it."
      : `${done.active} answers now: ${done.embedded} documents embedded, ${done.kept} kept, in ${milliseconds(done.took_ms)}.`);
  } catch (error) {
    fill(status, problemBox(asProblem(error)));
  }
  refresh();
}

byId("bundles-refresh").addEventListener("click", refresh);
byId("rollback").addEventListener("click", () => change("/admin/bundles/rollback"));
