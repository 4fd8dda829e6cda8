/** Actions on a project's categories; without projects they live in the page. */

import { type App, reasonOf } from "./app";
import { freshColour } from "./palette";
import type { Category } from "./types";

export interface Categories {
  add(name: string): Promise<Category | null>;
  rename(id: number, name: string): Promise<void>;
  recolour(id: number, colour: string): Promise<void>;
  remove(id: number): Promise<void>;
  /** The category of the objects made from now on. */
  use(id: number | null): void;
}

export function createCategories(app: App): Categories {
  const { store, backend, session, say } = app;
  let counter = 0; // ids without projects

  async function update(id: number, change: { name?: string; colour?: string }): Promise<void> {
    const { projectId, categories } = store.get();
    const put = (value: Category): void =>
      store.set((state) => ({ categories: state.categories.map((each) => (each.id === id ? value : each)) }));
    const before = categories.find((each) => each.id === id);
    if (!before) return;
    put({ ...before, ...change }); // at once; taken back when the server refuses
    try {
      if (projectId) put(await backend.updateCategory(projectId, id, change));
    } catch (error) {
      put(before);
      say.notice(`The category is not changed: ${reasonOf(error)}`);
    }
  }

  return {
    async add(name) {
      const { projectId, categories } = store.get();
      const wanted = name.trim();
      const same = categories.find((each) => each.name.toLowerCase() === wanted.toLowerCase());
      if (!wanted) return null;
      if (same) {
        store.set({ categoryId: same.id });
        return same;
      }
      const colour = freshColour(categories.map((each) => each.colour));
      try {
        const made = projectId
          ? await backend.createCategory(projectId, wanted, colour)
          : { id: (counter += 1), name: wanted, colour };
        store.set((state) => ({ categories: [...state.categories, made], categoryId: made.id }));
        return made;
      } catch (error) {
        say.notice(`The category is not added: ${reasonOf(error)}`);
        return null;
      }
    },
    rename: (id, name) => (name.trim() ? update(id, { name: name.trim() }) : Promise.resolve()),
    recolour: (id, colour) => update(id, { colour }),
    async remove(id) {
      const { projectId, categories, categoryId } = store.get();
      try {
        if (projectId) {
          await session.outbox?.flush(); // what still waits must not arrive with a category that is gone
          await backend.deleteCategory(projectId, id);
        }
      } catch (error) {
        say.notice(`The category is not deleted: ${reasonOf(error)}`);
        return;
      }
      const left = categories.filter((each) => each.id !== id);
      store.set({ categories: left, categoryId: categoryId === id ? (left[0]?.id ?? null) : categoryId });
    },
    use: (id) => store.set({ categoryId: id }),
  };
}
