/** The project's categories: the one that new objects get, their names and colours. */

import type { App } from "../state/app";
import type { Categories } from "../state/categories";
import type { Editing } from "../state/editing";
import { sameMembers } from "../state/store";
import type { Category } from "../state/types";
import { confirm } from "./dialogs";
import { button, h, keyed } from "./dom";
import { icon } from "./icons";

export function createCategoriesPanel(app: App, categories: Categories, editing: Editing): HTMLElement {
  const { store } = app;
  const list = h("div", { class: "chips", role: "group", label: "Category of new objects" });
  const input = h("input", { class: "field", testid: "category-name", label: "New category", attrs: { type: "text", placeholder: "New category", maxlength: 200, autocomplete: "off" } });
  const add = h("button", { class: "icon-button framed", testid: "category-add", label: "Add category", attrs: { type: "submit" } }, icon("plus"));
  const form = h("form", { class: "row" }, input, add);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void categories.add(input.value).then((made) => {
      if (!made) return;
      input.value = "";
      give(made.id);
    });
  });

  /** A category that is pressed is for what comes, and for the selected object. */
  function give(id: number): void {
    categories.use(id);
    const { selected } = store.get().scene;
    if (selected) editing.setCategory(selected, id);
  }

  function make(category: Category): HTMLElement {
    const { id } = category;
    const use = button({ class: "chip-main", testid: `category-${id}`, press: () => give(id) }, h("span", { class: "swatch" }), h("span", {}));
    const edit = button({ class: "chip-edit", testid: `category-rename-${id}`, press: () => openEditor(id) }, icon("pencil"));
    return h("div", { class: "chip" }, use, edit);
  }

  function openEditor(id: number): void {
    const category = store.get().categories.find((each) => each.id === id);
    if (!category) return;
    const name = h("input", { class: "field", testid: `category-name-${id}`, label: "Name", attrs: { value: category.name, maxlength: 200, required: true } });
    const colour = h("input", { class: "colour", testid: `category-colour-${id}`, label: "Colour", attrs: { type: "color", value: category.colour } });
    const body = h(
      "form",
      { class: "dialog-body", attrs: { method: "dialog" } },
      h("h2", {}, "Category"),
      h("div", { class: "row" }, colour, name),
      h(
        "div",
        { class: "dialog-actions" },
        button({ class: "button danger-text", testid: `category-delete-${id}`, press: () => void removeIt() }, "Delete"),
        h("span", { class: "spacer" }),
        button({ class: "button", press: () => dialog.close() }, "Cancel"),
        h("button", { class: "button primary", testid: `category-save-${id}`, attrs: { type: "submit" } }, "Save"),
      ),
    );
    const dialog = h("dialog", { class: "dialog", label: "Category" }, body);
    async function removeIt(): Promise<void> {
      dialog.close();
      if (await confirm(`Delete “${category?.name}”?`, "Its objects stay, without a category.", "Delete")) await categories.remove(id);
    }
    body.addEventListener("submit", () => {
      if (name.value.trim() !== category.name) void categories.rename(id, name.value);
      if (colour.value !== category.colour) void categories.recolour(id, colour.value);
    });
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    name.select();
  }

  store.watch(
    (state) => [state.categories, state.categoryId],
    () => {
      const state = store.get();
      keyed(list, state.categories, (each) => String(each.id), make, (chip, each) => {
        const [use, edit] = chip.children as unknown as [HTMLElement, HTMLElement];
        (use.children[0] as HTMLElement).style.backgroundColor = each.colour;
        (use.children[1] as HTMLElement).textContent = each.name;
        use.setAttribute("aria-pressed", String(each.id === state.categoryId));
        edit.setAttribute("aria-label", `Edit category ${each.name}`);
        chip.classList.toggle("active", each.id === state.categoryId);
      });
    },
    sameMembers,
  );

  const element = h("section", { class: "panel-section", label: "Categories" }, h("h2", {}, "Categories"), list, form);
  store.watch(
    (state) => state.connection === "ready" && (state.projectId !== null || state.info?.projects === false),
    (usable) => {
      input.disabled = !usable;
      add.disabled = !usable;
    },
  );
  return element;
}
