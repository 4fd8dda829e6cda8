/** The status line for screen readers, and notices that stay until they are read. */

import type { Say } from "../state/app";
import { button, h } from "./dom";
import { icon } from "./icons";

const STAY = 9000; // milliseconds of a notice that asks nothing, and for each letter of it
const STAY_LETTER = 60;
const MOST = 4;

export function createToasts(): { readonly say: Say; readonly element: HTMLElement } {
  const status = h("div", { class: "visually-hidden", testid: "status", role: "status", attrs: { "aria-live": "polite" } });
  const notices = h("div", { class: "toasts", testid: "notices", role: "alert" });
  const element = h("div", {}, status, notices);

  const say: Say = {
    status(text) {
      status.textContent = text;
    },
    notice(text, action) {
      const same = [...notices.children].find((each) => each.firstElementChild?.textContent === text);
      same?.remove();
      const close = (): void => toast.remove();
      const toast = h(
        "div",
        { class: "toast" },
        h("span", { class: "toast-text" }, text),
        action
          ? button(
              {
                class: "button small",
                press: () => {
                  close();
                  action.run();
                },
              },
              action.label,
            )
          : null,
        button({ class: "icon-button", label: "Dismiss", press: close }, icon("close")),
      );
      notices.append(toast);
      while (notices.children.length > MOST) notices.firstElementChild?.remove();
      if (!action) closeUnread(toast, STAY + STAY_LETTER * text.length);
    },
  };
  return { say, element };
}

/** Takes a notice away after a while, but not from under the pointer or the focus. */
function closeUnread(toast: HTMLElement, milliseconds: number): void {
  const read = (): unknown => (toast.matches(":hover, :focus-within") ? setTimeout(read, STAY) : toast.remove());
  setTimeout(read, milliseconds);
}
