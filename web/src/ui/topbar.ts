/** The bar at the top: the project, what is saved, undo and redo, export, theme, help. */

import type { App } from "../state/app";
import type { Theme } from "../state/app_state";
import type { Editing } from "../state/editing";
import { sameMembers } from "../state/store";
import { showHelp } from "./dialogs";
import { button, h, show } from "./dom";
import { icon, type IconName } from "./icons";

export interface TopbarParts {
  readonly project: HTMLElement;
  readonly exporting: HTMLElement;
  readonly nextTheme: () => void;
  readonly panel: HTMLElement; // opens the panel where it lies over the image
}

const THEMES: Readonly<Record<Theme, { icon: IconName; name: string }>> = {
  auto: { icon: "auto", name: "as the system" },
  light: { icon: "sun", name: "light" },
  dark: { icon: "moon", name: "dark" },
};

export function createTopbar(app: App, editing: Editing, parts: TopbarParts): HTMLElement {
  const { store, session } = app;
  const undo = button({ class: "icon-button", testid: "undo", label: "Undo", title: "Undo (Ctrl+Z)", press: () => editing.undo() }, icon("undo"));
  const redo = button({ class: "icon-button", testid: "redo", label: "Redo", title: "Redo (Ctrl+Shift+Z)", press: () => editing.redo() }, icon("redo"));
  store.watch(
    (state) => [state.scene.past.length > 0 || state.pending !== null, state.scene.future.length > 0, state.imageId !== null],
    ([past, future, open]) => {
      undo.disabled = !past || !open;
      redo.disabled = !future || !open;
    },
    sameMembers,
  );

  const save = h("span", { class: "save-text", testid: "save-state" });
  const saveIcon = h("span", { class: "save-icon" });
  const retry = button({ class: "button small", testid: "save-retry", press: () => void session.outbox?.flush() }, "Save now");
  const saving = h("div", { class: "save", role: "group", label: "Saving" }, saveIcon, save, retry);
  store.watch(
    (state) => [state.save, state.info, state.images.length > 0],
    () => {
      const { save: now, info, images } = store.get();
      show(saving, info !== null && (images.length > 0 || now.pending > 0));
      if (info && !info.projects) {
        save.textContent = "In memory only";
        saving.title = "This server keeps no projects: export before you close the page.";
        saving.dataset["state"] = "memory";
        saveIcon.replaceChildren(icon("warn"));
        show(retry, false);
        return;
      }
      saving.dataset["state"] = now.state;
      saving.title = now.error ?? "";
      const many = now.pending > 1 ? ` (${now.pending})` : "";
      const texts = { saved: "Saved", saving: "Saving", waiting: `Not saved yet${many}`, failed: `Not saved${many}` };
      save.textContent = texts[now.state];
      saveIcon.replaceChildren(icon(now.state === "saved" ? "check" : now.state === "saving" ? "cloud" : "warn"));
      show(retry, now.state === "waiting" || now.state === "failed");
    },
    sameMembers,
  );
  store.watch((state) => state.save.state === "waiting", (waits) => waits && app.say.status("Not saved yet. It is tried again."));
  // "Not saved yet" is shown; what the server refuses for good must be read.
  store.watch((state) => (state.save.state === "failed" ? state.save.error : null), (error) => {
    if (error) app.say.notice(`Not saved: ${error}`, { label: "Try again", run: () => void session.outbox?.flush() });
  });

  const modeText = h("span", {});
  const mode = button({ class: "mode", testid: "mode", press: () => app.say.notice(mode.title) }, icon("bolt"), modeText);
  store.watch(
    (state) => [state.mode, state.modeReason],
    () => {
      const { mode: now, modeReason } = store.get();
      show(mode, now !== null);
      modeText.textContent = now === "browser" ? "In your browser" : "On the server";
      mode.dataset["mode"] = now ?? "";
      mode.title = now === "browser" ? "Clicks are answered on this device." : serverReason(modeReason);
    },
    sameMembers,
  );

  const theme = button({ class: "icon-button", testid: "theme", press: parts.nextTheme });
  store.watch((state) => state.theme, (now) => {
    theme.replaceChildren(icon(THEMES[now].icon));
    theme.title = `Theme: ${THEMES[now].name}`;
    theme.setAttribute("aria-label", theme.title);
  });

  return h(
    "header",
    { class: "topbar" },
    h("div", { class: "brand" }, logo(), h("span", { class: "brand-name" }, "anysam")),
    parts.project,
    h("div", { class: "spacer" }),
    mode,
    saving,
    h("div", { class: "bar-group" }, undo, redo),
    parts.exporting,
    h(
      "div",
      { class: "bar-group" },
      theme,
      button({ class: "icon-button", testid: "help-button", label: "Keyboard shortcuts", title: "Help (?)", press: showHelp }, icon("help")),
    ),
    parts.panel,
  );
}

function serverReason(reason: string | null): string {
  return reason ? `Clicks are answered by the server. ${reason}` : "Clicks are answered by the server.";
}

function logo(): SVGSVGElement {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "logo");
  svg.setAttribute("aria-hidden", "true");
  for (const [d, name] of [
    ["M12 2.500c5 0 9.500 3.600 9.500 9 0 6-4.800 10-10 10S2.500 17.800 2.500 12.500 6.500 2.500 12 2.500z", "logo-ring"],
    ["M9 8l9 3.700-4 1.500-1.700 4z", "logo-pointer"],
  ] as const) {
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", d);
    path.setAttribute("class", name);
    svg.append(path);
  }
  return svg;
}
