/** Menus that open at a button: the browser closes them on Escape and on a press elsewhere, and the focus comes back. */

import { button, h } from "./dom";
import { icon, type IconName } from "./icons";

export interface Popover {
  readonly element: HTMLElement;
  close(): void;
}

/** Ties a panel to a button; `open` is called before it shows, to fill it. */
export function attachPopover(trigger: HTMLElement, element: HTMLElement, open: () => void = () => undefined): Popover {
  element.setAttribute("popover", "auto");
  element.classList.add("popover");
  trigger.setAttribute("aria-haspopup", "dialog");
  trigger.setAttribute("aria-expanded", "false");
  document.body.append(element);
  let wasOpen = false; // at the beginning of a press, which closes it as a press elsewhere does

  const isOpen = (): boolean => element.matches(":popover-open");
  trigger.addEventListener("pointerdown", () => (wasOpen = isOpen()));
  trigger.addEventListener("click", () => {
    const closing = wasOpen;
    wasOpen = false;
    if (isOpen()) return element.hidePopover();
    if (closing) return;
    open();
    element.showPopover({ source: trigger });
    place(trigger, element);
    element.querySelector<HTMLElement>("[autofocus], button:not(:disabled), input")?.focus();
  });
  element.addEventListener("toggle", (event) => {
    const shown = (event as ToggleEvent).newState === "open";
    trigger.setAttribute("aria-expanded", String(shown));
  });
  element.addEventListener("focusout", ({ relatedTarget }) => {
    const gone = relatedTarget instanceof Node && !element.contains(relatedTarget);
    if (gone && isOpen()) element.hidePopover();
  });
  element.addEventListener("keydown", (event) => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (step === 0 || event.target instanceof HTMLInputElement) return;
    const items = [...element.querySelectorAll<HTMLElement>("button:not(:disabled)")];
    const at = items.indexOf(document.activeElement as HTMLElement);
    items[(at + step + items.length) % items.length]?.focus();
    event.preventDefault();
  });
  return { element, close: () => element.hidePopover() };
}

function place(trigger: HTMLElement, element: HTMLElement): void {
  const at = trigger.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = element;
  const left = Math.min(Math.max(at.left + width > innerWidth - 8 ? at.right - width : at.left, 8), innerWidth - width - 8);
  const below = at.bottom + 6;
  const top = below + height > innerHeight - 8 ? Math.max(at.top - height - 6, 8) : below;
  element.style.left = `${Math.max(left, 8)}px`;
  element.style.top = `${top}px`;
}

export function menuItem(testid: string, name: IconName, text: string, hint: string, press: () => void): HTMLButtonElement {
  return button(
    { class: "menu-item", testid, press },
    icon(name),
    h("span", { class: "menu-text" }, text),
    hint ? h("span", { class: "menu-hint" }, hint) : null,
  );
}
