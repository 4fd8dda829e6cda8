/** What floats over the image: progress, a hint for the next step, the zoom. */

import type { App } from "../state/app";
import { openProposals } from "../state/finding";
import { sameMembers } from "../state/store";
import { button, h, show } from "./dom";
import { icon } from "./icons";
import type { Stage } from "./stage";

export function createHud({ store, say }: App, stage: Stage): HTMLElement {
  const text = h("span", { class: "progress-text" });
  const bar = h("progress", { class: "bar", testid: "progress", label: "Progress", attrs: { max: 1 } });
  const progress = h("div", { class: "progress card" }, text, bar);
  store.watch(
    (state) => [state.busy, state.adding],
    () => {
      const { busy, adding } = store.get();
      show(progress, busy !== null || adding !== null);
      const what = adding ? `Adding ${Math.min(adding.done + 1, adding.of)} of ${adding.of}` : (busy?.what ?? "");
      const done = adding && adding.of > 1 ? adding.done / adding.of : (busy?.done ?? null);
      text.textContent = what;
      bar.setAttribute("aria-label", what || "Progress");
      if (done === null) bar.removeAttribute("value");
      else bar.value = done;
    },
    sameMembers,
  );
  store.watch((state) => state.busy?.what ?? null, (what) => what && say.status(`${what}.`));

  const hint = h("div", { class: "hint", attrs: { "aria-hidden": "true" } });
  store.watch(
    (state) => {
      const { imageId, busy, scene, tool, pending, proposals, drawing } = state;
      if (!imageId || busy || pending || drawing) return "";
      if (openProposals(proposals, scene.objects).length > 0) return "Click a mask to keep it";
      if (scene.selected) return "";
      if (tool === "move") return "Drag to move · click to select";
      if (tool === "scribble") return "Draw over the object · Alt: over what is not part of it";
      if (tool === "eraser") return "Select an object to erase from";
      if (tool === "brush") return "Paint a new object";
      return matchMedia("(pointer: coarse)").matches ? "Tap an object, or draw a box around it" : "Click an object, or drag a box around it";
    },
    (value) => {
      hint.textContent = value;
      show(hint, value !== "");
    },
  );

  const level = button({ class: "zoom-level", testid: "zoom-level", label: "Zoom", title: "Fit (0)", press: () => stage.fit() });
  store.watch(
    (state) => state.view.scale,
    (scale) => {
      level.textContent = `${Math.round(100 * scale)}%`;
      level.setAttribute("aria-label", `Zoom ${level.textContent}; fit`);
    },
  );
  const zoom = h(
    "div",
    { class: "zoom card", role: "group", label: "Zoom" },
    button({ class: "icon-button", testid: "zoom-out", label: "Zoom out", title: "Zoom out (−)", press: () => stage.zoom(1 / 1.4) }, icon("minus")),
    level,
    button({ class: "icon-button", testid: "zoom-in", label: "Zoom in", title: "Zoom in (+)", press: () => stage.zoom(1.4) }, icon("plus")),
    button({ class: "icon-button", testid: "zoom-fit", label: "Fit the image", title: "Fit (0)", press: () => stage.fit() }, icon("fit")),
  );
  store.watch((state) => state.imageId !== null, (open) => show(zoom, open));
  return h("div", { class: "hud" }, progress, hint, zoom);
}
