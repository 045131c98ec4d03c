// Small helpers for building the page. Whatever comes from the server becomes text, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text, and nothing (null, false) is left out. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Puts children in the place of what an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
}

export const milliseconds = (ms) =>
  ms >= 10000 ? `${(ms / 1000).toFixed(1)} s` : `${ms >= 100 ? ms.toFixed(0) : ms >= 1 ? ms.toFixed(1) : ms.toFixed(2)} ms`;

export const moment = (text) => (text ? new Date(text).toLocaleString() : "");

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** A problem in plain words: what is wrong, and what helps. */
export function problemBox(problem) {
  const errors = (problem.errors ?? []).filter((error) => error.pointer);
  return make("div", { className: "problem", role: "alert" },
    make("strong", {}, problem.title ?? "something went wrong"),
    make("p", {}, problem.detail ?? ""),
    errors.length > 1 && make("ul", {}, errors.map((error) =>
      make("li", {}, make("code", {}, error.pointer), ` ${error.detail}`))),
    remedy(problem),
    problem.request_id && make("p", { className: "note" }, `Request ${problem.request_id}`));
}

function remedy(problem) {
  const tip = {
    unauthorized: "Type a key into the field at the top.",
    forbidden: "This needs a key of a higher role: type it into the field at the top.",
    overloaded: "Try again in a moment.",
    deadline_exceeded: "Allow more time in the options, or try again later.",
    unreachable: "Check that the server runs and that this page still comes from it.",
  }[problem.code];
  return tip ? make("p", { className: "remedy" }, tip) : null;
}
