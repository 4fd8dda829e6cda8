/** Finding many objects: by words, and everything at once; what was found is offered until it is kept or discarded. */

import type { App } from "../state/app";
import { type Finding, openProposals } from "../state/finding";
import { GRANULARITIES } from "../state/granularity";
import { sameMembers } from "../state/store";
import { button, h, show } from "./dom";
import { icon } from "./icons";

export interface FindPanel {
  readonly element: HTMLElement;
  focusText(): void;
}

export function createFindPanel(app: App, finding: Finding): FindPanel {
  const { store } = app;
  const input = h("input", {
    class: "field",
    testid: "text-input",
    label: "Find by words",
    attrs: { type: "text", placeholder: "the red car", maxlength: 200, autocomplete: "off", spellcheck: false },
  });
  const find = h("button", { class: "button", testid: "text-find", attrs: { type: "submit" } }, "Find");
  const reason = h("p", { class: "note", testid: "text-reason", attrs: { id: "text-reason" } });
  const form = h("form", { class: "row" }, h("div", { class: "field-icon" }, icon("search"), input), find);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void finding.text(input.value);
  });

  const slider = h("input", {
    class: "range",
    testid: "granularity",
    label: "Granularity",
    attrs: { type: "range", min: 0, max: GRANULARITIES.length - 1, step: 1 },
  });
  const step = h("span", { class: "note", attrs: { "aria-hidden": "true" } }); // the slider says it
  slider.addEventListener("input", () => store.set({ granularity: Number(slider.value) }));
  const everything = button({ class: "button primary wide", testid: "everything", title: "Find everything (G)", press: () => void finding.everything() }, icon("sparkle"), "Find everything");
  const bar = h("progress", { class: "bar", testid: "everything-progress", label: "Finding everything", attrs: { max: 1 } });
  const cancel = button({ class: "button small", testid: "everything-cancel", press: () => finding.cancel() }, "Cancel");
  const working = h("div", { class: "working" }, bar, cancel);

  const count = h("span", {});
  const offers = h(
    "div",
    { class: "offers", testid: "proposals" },
    h("p", { class: "offers-text" }, count, h("span", { class: "note" }, " Click one to keep it.")),
    h(
      "div",
      { class: "row" },
      button({ class: "button primary small", testid: "proposals-keep-all", title: "Keep all (A)", press: () => finding.keepAll() }, "Keep all"),
      button({ class: "button small", testid: "proposals-discard", press: () => finding.discard() }, "Discard"),
    ),
  );

  store.watch(
    (state) => [state.info?.text ?? false, state.info !== null, state.imageId !== null && state.busy === null, state.finding !== null],
    ([text, known, ready, running]) => {
      input.disabled = !text;
      find.disabled = !text || !ready || Boolean(running);
      reason.textContent = known && !text ? "Words need a server that was started with a text model." : "";
      show(reason, Boolean(known) && !text);
      if (text) input.removeAttribute("aria-describedby");
      else input.setAttribute("aria-describedby", "text-reason");
      everything.disabled = !ready;
      show(everything, !running);
      show(working, Boolean(running));
    },
    sameMembers,
  );
  store.watch((state) => state.finding, (now) => {
    if (!now) return;
    bar.setAttribute("aria-label", now.what === "text" ? "Finding by words" : "Finding everything");
    if (now.done === null) bar.removeAttribute("value");
    else bar.value = now.done;
  });
  store.watch((state) => state.granularity, (value) => {
    slider.value = String(value);
    const name = GRANULARITIES[value]?.name ?? "";
    slider.setAttribute("aria-valuetext", name);
    step.textContent = name;
  });
  store.watch(
    (state) => openProposals(state.proposals, state.scene.objects).length,
    (open) => {
      show(offers, open > 0);
      count.textContent = open === 1 ? "1 mask found." : `${open} masks found.`;
    },
  );

  const element = h(
    "section",
    { class: "panel-section", label: "Find" },
    h("h2", {}, "Find"),
    form,
    reason,
    h("div", { class: "row spread granularity" }, h("span", { class: "note" }, "Everything"), step),
    h("div", { class: "slider-row" }, icon("minus"), slider, icon("plus")),
    everything,
    working,
    offers,
  );
  return { element, focusText: () => (input.disabled ? slider.focus() : input.focus()) };
}
