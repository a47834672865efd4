// SPDX-License-Identifier: Apache-2.0
// What opens over the page: confirmation, the operator's token, keyboard help. Native dialogs keep the focus and close on Escape.

import { h, setText, show } from "../dom.js";

function open(dialog) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.showModal();
}

/** Ask before something that cannot be taken back; true if it is wanted. */
export function confirm(title, text, action) {
  return new Promise((resolve) => {
    const no = h("button", { type: "button", class: "quiet", autofocus: true, on: { click: () => dialog.close() } }, "Cancel");
    const yes = h("button", { type: "button", class: "primary", on: { click: () => dialog.close("yes") } }, action);
    const dialog = h(
      "dialog",
      { "aria-labelledby": "confirm-title", "aria-describedby": "confirm-text" },
      h("h2", { id: "confirm-title" }, title),
      h("p", { id: "confirm-text" }, text),
      h("div", { class: "dialog-actions" }, no, yes),
    );
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"));
    open(dialog);
  });
}

/** The token: `tryToken(token)` gives an error's text, or "" if it is right. Only this tab keeps it. */
export function controlDialog(session, tryToken, forget) {
  const close = h("button", { type: "button", class: "quiet", on: { click: () => dialog.close() } }, session.control && !session.authorized ? "Cancel" : "Close");
  const error = h("p", { class: "bad-ink", role: "alert", id: "token-error" });
  show(error, false);
  const field = h("input", { type: "password", id: "token", autocomplete: "off", spellcheck: "false", required: true, autofocus: true, "aria-describedby": "token-error" });
  const submit = async (event) => {
    event.preventDefault();
    const refused = await tryToken(field.value.trim());
    if (!refused) return dialog.close();
    setText(error, refused);
    show(error, true);
    field.select();
    return undefined;
  };
  const leave = () => {
    forget();
    dialog.close();
  };
  const actions = (...buttons) => h("div", { class: "dialog-actions" }, close, ...buttons);
  const body = session.authorized
    ? [
        h("p", {}, `You may pause and resume the run, end a round, and exclude nodes, as “${session.name || "operator"}”. This tab keeps the token until it is closed.`),
        actions(h("button", { type: "button", class: "primary", on: { click: leave } }, "Give up control")),
      ]
    : session.control
      ? [
          h(
            "form",
            { on: { submit } },
            h("label", { for: "token" }, "Token"),
            field,
            error,
            h("p", { class: "soft" }, "From the coordinator's token file. Only this tab keeps it, until it is closed."),
            actions(h("button", { type: "submit", class: "primary" }, "Take control")),
          ),
        ]
      : [h("p", {}, "This dashboard only shows. To act on the run from here, start the coordinator with --dashboard-token-file."), actions()];
  const dialog = h("dialog", { "aria-labelledby": "control-title" }, h("h2", { id: "control-title" }, session.control ? "Control" : "Read-only"), ...body);
  open(dialog);
}

const KEYS = [
  ["/", "filter the nodes"],
  ["j k", "walk through the nodes; in the table also the arrows"],
  ["Enter", "open the node"],
  ["Esc", "back to the run, or clear the filter"],
  ["a", "only nodes that need attention, and all again"],
  ["?", "this help"],
];

export function helpDialog() {
  const rows = KEYS.flatMap(([key, what]) => [h("dt", {}, ...key.split(" ").map((one) => h("kbd", {}, one))), h("dd", {}, what)]);
  const dialog = h(
    "dialog",
    { "aria-labelledby": "help-title" },
    h("h2", { id: "help-title" }, "Keyboard"),
    h("dl", { class: "keys" }, ...rows),
    h("div", { class: "dialog-actions" }, h("button", { type: "button", class: "primary", autofocus: true, on: { click: () => dialog.close() } }, "Close")),
  );
  open(dialog);
}
