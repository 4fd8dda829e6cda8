/** The list of objects: choose, show or hide, delete, give a category. */

import type { App } from "../state/app";
import type { Editing } from "../state/editing";
import { sameMembers } from "../state/store";
import type { Category, SceneObject } from "../state/types";
import { button, h, keyed, show } from "./dom";
import { icon } from "./icons";
import { colourFor } from "./marks";

export interface ObjectsPanel {
  readonly element: HTMLElement;
  focusCategory(): void;
}

export function createObjectsPanel(app: App, editing: Editing): ObjectsPanel {
  const { store } = app;
  const list = h("ul", { class: "objects", testid: "objects", label: "Objects" });
  const nothing = h("p", { class: "note empty-list" }, "No objects yet. Click on something in the image.");
  const count = h("span", { class: "count" });
  const element = h("section", { class: "panel-section grow", label: "Objects" }, h("h2", {}, "Objects ", count), nothing, list);

  function nameOf(object: SceneObject, place: number, categories: readonly Category[]): string {
    return categories.find((each) => each.id === object.categoryId)?.name ?? object.label ?? `Object ${place}`;
  }

  function make(object: SceneObject): HTMLElement {
    const { id } = object;
    const select = h("select", { class: "object-category", testid: `object-category-${id}` });
    select.addEventListener("change", () => editing.setCategory(id, select.value === "" ? null : Number(select.value)));
    return h(
      "li",
      { class: "object" },
      button(
        { class: "object-main", testid: `object-${id}`, press: () => editing.select(store.get().scene.selected === id ? null : id) },
        h("span", { class: "swatch" }),
        h("span", { class: "object-name" }),
        h("span", { class: "object-area" }),
      ),
      select,
      button({ class: "icon-button object-eye", testid: `object-visible-${id}`, press: () => editing.toggleHidden(id) }),
      button({ class: "icon-button", testid: `object-delete-${id}`, title: "Delete (Del)", press: () => editing.remove(id) }, icon("trash")),
    );
  }

  const shown = new WeakMap<HTMLElement, readonly unknown[]>();

  function update(row: HTMLElement, object: SceneObject, place: number): void {
    const state = store.get();
    const selected = state.scene.selected === object.id;
    const hidden = state.hidden.has(object.id);
    const facts = [object, place, selected, hidden, state.categories, state.size];
    if (sameMembers(shown.get(row) ?? [], facts)) return;
    shown.set(row, facts);
    type Row = [HTMLButtonElement, HTMLSelectElement, HTMLButtonElement, HTMLButtonElement];
    const [main, select, eye, bin] = row.children as unknown as Row;
    const [swatch, name, area] = main.children as unknown as [HTMLElement, HTMLElement, HTMLElement];
    swatch.style.backgroundColor = colourFor(state, object.id, object.categoryId);
    const spoken = `Object ${place}`; // names are of categories, which several objects may share
    name.textContent = nameOf(object, place, state.categories);
    area.textContent = state.size ? share(object.area / (state.size[0] * state.size[1])) : "";
    main.setAttribute("aria-pressed", String(selected));
    main.setAttribute("aria-label", [...new Set([spoken, name.textContent, area.textContent])].filter(Boolean).join(", "));
    row.classList.toggle("selected", selected);
    row.classList.toggle("hidden-object", hidden);
    show(select, selected && state.categories.length > 0);
    if (selected) {
      const options = [new Option("No category", ""), ...state.categories.map((each) => new Option(each.name, String(each.id)))];
      select.replaceChildren(...options);
      select.value = state.categories.some((each) => each.id === object.categoryId) ? String(object.categoryId) : "";
      row.scrollIntoView?.({ block: "nearest" });
    }
    eye.replaceChildren(icon(hidden ? "eyeOff" : "eye"));
    select.setAttribute("aria-label", `Category of ${spoken}`);
    eye.setAttribute("aria-label", `${hidden ? "Show" : "Hide"} ${spoken}`);
    bin.setAttribute("aria-label", `Delete ${spoken}`);
    eye.title = hidden ? "Show (H)" : "Hide (H)";
  }

  store.watch(
    (state) => [state.scene.objects, state.scene.selected, state.hidden, state.categories, state.size],
    () => {
      const { objects } = store.get().scene;
      const places = new Map(objects.map((object, i) => [object.id, i + 1]));
      keyed(list, objects, (object) => object.id, make, (row, object) => update(row, object, places.get(object.id) ?? 0));
      show(nothing, objects.length === 0);
      count.textContent = objects.length > 0 ? String(objects.length) : "";
    },
    sameMembers,
  );

  return {
    element,
    focusCategory() {
      const select = list.querySelector<HTMLSelectElement>(".selected .object-category:not([hidden])");
      if (select) select.focus();
      else document.querySelector<HTMLElement>('[data-testid="category-name"]')?.focus();
    },
  };
}

function share(part: number): string {
  if (part >= 0.1) return `${(100 * part).toFixed(0)}%`;
  return part >= 0.001 ? `${(100 * part).toFixed(1)}%` : "<0.1%";
}
