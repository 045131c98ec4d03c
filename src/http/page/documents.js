// Documents: look up, add, delete.

import { asProblem, call } from "./api.js";
import { byId, fill, make, problemBox } from "./dom.js";

export function enter() {}

const path = (id) => `/documents/${encodeURIComponent(id)}`;

async function lookUp(id) {
  const place = byId("look-up-result");
  try {
    const document = await call("GET", path(id));
    const metadata = Object.keys(document.metadata ?? {}).length > 0;
    fill(place, make("article", { className: "document" },
      make("h3", {}, document.title || document.id),
      make("p", { className: "text open" }, document.text),
      metadata && make("pre", {}, JSON.stringify(document.metadata, null, 2)),
      make("p", { className: "actions" },
        make("button", { type: "button", onclick: () => edit(document) }, "Edit"), deleteButton(id))));
  } catch (error) {
    fill(place, problemBox(asProblem(error)));
  }
}

/** Asks once more before it deletes. */
function deleteButton(id) {
  const button = make("button", { type: "button", className: "danger" }, "Delete");
  let isSure = false;
  button.addEventListener("click", async () => {
    if (!isSure) {
      isSure = true;
      button.textContent = `Really delete ${id}?`;
      return;
    }
    try {
      await call("DELETE", path(id));
      fill(byId("look-up-result"), make("p", { className: "done" }, `${id} is deleted.`));
    } catch (error) {
      fill(byId("look-up-result"), problemBox(asProblem(error)));
    }
  });
  button.addEventListener("blur", () => {
    isSure = false;
    button.textContent = "Delete";
  });
  return button;
}

function edit(document) {
  byId("add-id").value = document.id;
  byId("add-heading").value = document.title ?? "";
  byId("add-text").value = document.text;
  byId("add-metadata").value = Object.keys(document.metadata ?? {}).length ? JSON.stringify(document.metadata) : "";
  byId("add-text").focus();
}

async function add() {
  const place = byId("add-result");
  try {
    const document = { id: byId("add-id").value, text: byId("add-text").value };
    if (byId("add-heading").value) document.title = byId("add-heading").value;
    const metadata = byId("add-metadata").value.trim();
    if (metadata) {
      try {
        document.metadata = JSON.parse(metadata);
      } catch (error) {
        throw new Error(`The metadata is not JSON: ${error.message}`);
      }
    }
    const { created } = await call("PUT", "/documents", { documents: [document] });
    fill(place, make("p", { className: "done" }, `${document.id} is ${created ? "stored" : "replaced"} and can be found.`));
  } catch (error) {
    fill(place, problemBox(asProblem(error)));
  }
}

byId("look-up-form").addEventListener("submit", (event) => {
  event.preventDefault();
  lookUp(byId("look-up-id").value);
});
byId("add-form").addEventListener("submit", (event) => {
  event.preventDefault();
  add();
});
