/** The panel beside the image. In small windows it lies over the image, and a button opens it. */

import { openProposals } from "../state/finding";
import type { App } from "../state/app";
import { button, h, show } from "./dom";
import { icon } from "./icons";

export interface SidePanel {
  readonly element: HTMLElement;
  readonly veil: HTMLElement; // over all else while the panel is open: a press there puts it away and does nothing else
  readonly trigger: HTMLElement;
}

const SMALL = "(max-width: 820px), (max-height: 480px)"; // as in the styles

export function createSidePanel({ store }: App, ...sections: HTMLElement[]): SidePanel {
  const element = h("aside", { class: "panel", testid: "panel", label: "Objects and categories", attrs: { id: "panel", tabindex: -1 } }, ...sections);
  const count = h("span", { class: "count" });
  const trigger = button(
    { class: "button panel-toggle", testid: "panel-toggle", press: () => (isOpen() ? close() : open()), attrs: { "aria-controls": "panel", "aria-expanded": "false" } },
    icon("layers"),
    count,
  );

  const veil = h("div", { class: "panel-veil", attrs: { hidden: true } });

  const isOpen = (): boolean => element.classList.contains("open");

  function change(opened: boolean): void {
    element.classList.toggle("open", opened);
    trigger.setAttribute("aria-expanded", String(opened));
    show(veil, opened);
    for (const beside of element.parentElement?.querySelectorAll<HTMLElement>(":scope > :is(header, main, footer)") ?? []) {
      beside.inert = opened;
    }
  }

  function open(): void {
    change(true);
    element.focus({ preventScroll: true });
  }

  function close(): void {
    const inside = element.contains(document.activeElement);
    change(false);
    if (inside) trigger.focus();
  }

  veil.addEventListener("click", close);
  matchMedia(SMALL).addEventListener("change", close);
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isOpen()) return;
    close();
    event.preventDefault();
    event.stopPropagation();
  });
  store.watch((state) => state.scene.objects.length, (number) => {
    count.textContent = number > 0 ? String(number) : "";
    trigger.setAttribute("aria-label", number > 0 ? `Objects: ${number}` : "Objects");
  });
  // What was found is to be seen, and chosen on the image.
  store.watch((state) => openProposals(state.proposals, state.scene.objects).length > 0, (found) => found && close());
  return { element, veil, trigger };
}
