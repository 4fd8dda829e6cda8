/** Questions in the middle of the page: a name, yes or no, the server's token, the sheet of keys. */

import { GESTURES, keyCaps, SHORTCUTS } from "../state/shortcuts";
import { button, h } from "./dom";
import { icon } from "./icons";

function open(dialog: HTMLDialogElement): void {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  // A press on the backdrop is a press on the dialog itself.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.showModal();
}

/** Asks for a short text; null when the user leaves. */
export function askText(title: string, value: string, act: string): Promise<string | null> {
  return new Promise((resolve) => {
    const input = h("input", { class: "field", testid: "ask-input", label: title, attrs: { value, maxlength: 200, required: true, autofocus: true } });
    let answer: string | null = null;
    const form = h(
      "form",
      { class: "dialog-body", attrs: { method: "dialog" } },
      h("h2", {}, title),
      input,
      h(
        "div",
        { class: "dialog-actions" },
        button({ class: "button", press: () => dialog.close() }, "Cancel"),
        h("button", { class: "button primary", testid: "ask-submit", attrs: { type: "submit" } }, act),
      ),
    );
    form.addEventListener("submit", () => (answer = input.value.trim() || null));
    const dialog = h("dialog", { class: "dialog", label: title }, form);
    dialog.addEventListener("close", () => resolve(answer));
    open(dialog);
    input.select();
  });
}

export function confirm(title: string, text: string, act: string): Promise<boolean> {
  return new Promise((resolve) => {
    let answer = false;
    const dialog = h(
      "dialog",
      { class: "dialog", label: title, role: "alertdialog" },
      h(
        "div",
        { class: "dialog-body" },
        h("h2", {}, title),
        h("p", {}, text),
        h(
          "div",
          { class: "dialog-actions" },
          button({ class: "button", press: () => dialog.close() }, "Cancel"),
          button(
            {
              class: "button danger",
              testid: "confirm",
              press: () => {
                answer = true;
                dialog.close();
              },
            },
            act,
          ),
        ),
      ),
    );
    dialog.addEventListener("close", () => resolve(answer));
    open(dialog);
  });
}

/** Asks for the server's token until there is one: nothing works without. */
export function askToken(): Promise<string> {
  return new Promise((resolve) => {
    const input = h("input", {
      class: "field",
      testid: "token-input",
      label: "Token",
      attrs: { type: "password", required: true, autocomplete: "off", autofocus: true },
    });
    const form = h(
      "form",
      { class: "dialog-body", attrs: { method: "dialog" } },
      h("h2", {}, "This server asks for a token"),
      h("p", {}, "Whoever started it has it: the value given to --token. It is kept until this tab is closed."),
      input,
      h("div", { class: "dialog-actions" }, h("button", { class: "button primary", testid: "token-submit", attrs: { type: "submit" } }, "Continue")),
    );
    const dialog = h("dialog", { class: "dialog", testid: "token-dialog", label: "This server asks for a token" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", () => resolve(input.value.trim()));
    document.body.append(dialog);
    dialog.addEventListener("close", () => dialog.remove());
    dialog.showModal();
  });
}

export function showHelp(): void {
  if (document.querySelector("dialog.help")) return;
  const mac = /mac/i.test(navigator.platform);
  const caps = (key: string): HTMLElement => h("span", { class: "keys" }, ...keyCaps(key, mac).map((cap) => h("kbd", {}, cap)));
  const groups = ["Object", "Tools", "View", "Project"] as const;
  const dialog = h(
    "dialog",
    { class: "dialog help", testid: "help", label: "Keyboard shortcuts" },
    h(
      "div",
      { class: "dialog-body" },
      h(
        "div",
        { class: "dialog-head" },
        h("h2", {}, "Keyboard and pointer"),
        button({ class: "icon-button", label: "Close", press: () => dialog.close(), attrs: { autofocus: true } }, icon("close")),
      ),
      h(
        "div",
        { class: "help-columns" },
        h(
          "section",
          {},
          h("h3", {}, "Pointer"),
          h("dl", {}, ...GESTURES.flatMap(({ how, does }) => [h("dt", {}, how), h("dd", {}, does)])),
        ),
        ...groups.map((group) =>
          h(
            "section",
            {},
            h("h3", {}, group),
            h(
              "dl",
              { class: "shortcuts" },
              ...SHORTCUTS.filter((shortcut) => shortcut.group === group).flatMap(({ keys, does }) => [
                h("dt", {}, ...keys.slice(0, 2).map(caps)),
                h("dd", {}, does),
              ]),
            ),
          ),
        ),
      ),
    ),
  );
  open(dialog);
}
