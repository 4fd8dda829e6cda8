/** The tools, and the size of the brush. */

import type { App } from "../state/app";
import { LEAST_RADIUS, MOST_RADIUS } from "../state/brush";
import type { Tool } from "../state/types";
import { button, h, show } from "./dom";
import { icon, type IconName } from "./icons";

const TOOLS: readonly { tool: Tool; name: string; key: string; icon: IconName }[] = [
  { tool: "point", name: "Point and box", key: "P", icon: "point" },
  { tool: "scribble", name: "Scribble", key: "S", icon: "scribble" },
  { tool: "brush", name: "Brush", key: "B", icon: "brush" },
  { tool: "eraser", name: "Eraser", key: "E", icon: "eraser" },
  { tool: "move", name: "Move and select", key: "V", icon: "move" },
];

export function createToolRail({ store }: App): HTMLElement {
  const buttons = TOOLS.map(({ tool, name, key, icon: picture }) =>
    button(
      {
        class: "tool",
        testid: `tool-${tool}`,
        role: "radio",
        label: name,
        title: `${name} (${key})`,
        press: () => store.set({ tool }),
      },
      icon(picture),
    ),
  );
  const group = h("div", { class: "tools", role: "radiogroup", label: "Tools" }, ...buttons);
  group.addEventListener("keydown", (event) => {
    const step = ["ArrowDown", "ArrowRight"].includes(event.key) ? 1 : ["ArrowUp", "ArrowLeft"].includes(event.key) ? -1 : 0;
    if (step === 0) return;
    const at = TOOLS.findIndex(({ tool }) => tool === store.get().tool);
    const next = (at + step + TOOLS.length) % TOOLS.length;
    store.set({ tool: (TOOLS[next] as (typeof TOOLS)[number]).tool });
    buttons[next]?.focus();
    event.preventDefault();
  });

  // The slider is logarithmic: small sizes need fine steps, large ones coarse.
  const scale = Math.log(MOST_RADIUS / LEAST_RADIUS);
  const slider = h("input", { class: "range", testid: "brush-size", label: "Brush size", attrs: { type: "range", min: 0, max: 100 } });
  const dot = h("span", { class: "brush-dot", attrs: { "aria-hidden": "true" } });
  const number = h("span", { class: "brush-number" });
  slider.addEventListener("input", () => {
    store.set({ radius: Math.max(Math.round(LEAST_RADIUS * Math.exp((Number(slider.value) / 100) * scale)), LEAST_RADIUS) });
  });
  const size = h("div", { class: "brush-size card" }, h("span", { class: "brush-well" }, dot), slider, number);

  store.watch((state) => state.tool, (now) => {
    TOOLS.forEach(({ tool }, i) => {
      buttons[i]?.setAttribute("aria-checked", String(tool === now));
      buttons[i]?.setAttribute("tabindex", tool === now ? "0" : "-1");
    });
    show(size, now === "brush" || now === "eraser");
  });
  store.watch((state) => state.radius, (radius) => {
    slider.value = String((Math.log(radius / LEAST_RADIUS) / scale) * 100);
    slider.setAttribute("aria-valuetext", `${2 * radius} pixels`);
    number.textContent = `${2 * radius} px`;
    dot.style.transform = `scale(${Math.min(0.12 + Math.sqrt(radius / 120), 1)})`;
  });
  store.watch((state) => state.imageId !== null, (open) => buttons.forEach((each) => (each.disabled = !open)));
  return h("div", { class: "tool-rail" }, h("div", { class: "card" }, group), size);
}
