/** What a new user sees first: where to begin. */

import type { App } from "../state/app";
import type { Projects } from "../state/session";
import { button, h, show } from "./dom";
import { drawExample } from "./example";
import type { Files } from "./files";
import { icon } from "./icons";

export function createEmpty({ store }: App, projects: Projects, files: Files): HTMLElement {
  const title = h("h1", {});
  const text = h("p", {});
  const actions = h(
    "div",
    { class: "empty-actions" },
    button({ class: "button primary large", testid: "open-image", press: () => files.pickImages() }, icon("image"), "Open images"),
    button({ class: "button large", testid: "open-folder", press: () => files.pickFolder() }, icon("folder"), "Open folder"),
  );
  const example = button(
    {
      class: "link",
      testid: "open-example",
      press: () => void drawExample().then((file) => projects.addFiles([file])),
    },
    "or try a drawn example",
  );
  const retry = button({ class: "button primary large", testid: "retry", press: () => void projects.start() }, "Try again");
  const element = h("section", { class: "empty", testid: "empty", label: "No image open" }, art(), title, text, actions, example, retry);

  store.watch(
    (state) => `${state.connection} ${state.imageId !== null} ${state.message} ${state.adding !== null}`,
    () => {
      const { connection, imageId, message, adding } = store.get();
      const offline = connection === "offline";
      show(element, imageId === null && connection !== "connecting" && connection !== "token");
      show(actions, !offline && !adding);
      show(example, !offline && !adding);
      show(retry, offline);
      title.textContent = offline ? "The server does not answer" : adding ? "Adding images" : "Point at anything";
      text.textContent = offline
        ? message || "Is it still running?"
        : adding
          ? ""
          : matchMedia("(pointer: coarse)").matches
            ? "Open images or a folder. Tap a thing and get its exact outline."
            : "Drop an image here, paste one, or open a folder. Click on a thing and get its exact outline.";
    },
  );
  return element;
}

/** A pear being outlined: what the page does, in one drawing. */
function art(): SVGSVGElement {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 240 150");
  svg.setAttribute("class", "empty-art");
  svg.setAttribute("aria-hidden", "true");
  const shapes: readonly [string, Record<string, string>][] = [
    ["rect", { x: "20", y: "8", width: "200", height: "134", rx: "12", class: "art-frame" }],
    ["path", { d: "M20 104c30-10 60 4 96-4s70-12 104 0v30a12 12 0 0 1-12 12H32a12 12 0 0 1-12-12z", class: "art-ground" }],
    ["circle", { cx: "170", cy: "88", r: "25", class: "art-other" }],
    ["path", { d: "M96 34c10 0 13 8 14 18 2 15 19 24 19 44 0 19-15 29-33 29S63 115 63 96c0-20 17-29 19-44 1-10 4-18 14-18z", class: "art-object" }],
    ["path", { d: "M96 35c0-8 3-13 9-16", class: "art-stem" }],
    ["path", { d: "M108 92l21 8.500-8.500 3.600-3.800 8.600z", class: "art-pointer" }],
  ];
  for (const [name, attributes] of shapes) {
    const shape = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
    svg.append(shape);
  }
  return svg;
}
