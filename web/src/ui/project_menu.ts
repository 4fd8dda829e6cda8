/** The projects: which one is open, new, renamed, deleted. */

import type { App } from "../state/app";
import type { Projects } from "../state/session";
import { sameMembers } from "../state/store";
import { askText, confirm } from "./dialogs";
import { button, h, show } from "./dom";
import type { Files } from "./files";
import { icon } from "./icons";
import { attachPopover, menuItem } from "./popover";

export function createProjectMenu({ store }: App, projects: Projects, files: Files): HTMLElement {
  const name = h("span", { class: "project-name" });
  const trigger = button({ class: "button project-button", testid: "project-button", press: () => undefined }, icon("folder"), name, icon("down"));
  const list = h("div", { class: "menu-list" });
  const rename = menuItem("project-rename", "pencil", "Rename", "", () => void renameOpen());
  const remove = menuItem("project-delete", "trash", "Delete project", "", () => void deleteOpen());
  const management = h(
    "div",
    { class: "menu-part" },
    menuItem("project-new", "plus", "New project", "", () => void makeNew()),
    rename,
    remove,
  );
  const menu = h(
    "div",
    { class: "menu", testid: "project-menu", role: "dialog", label: "Projects" },
    list,
    h(
      "div",
      { class: "menu-part" },
      menuItem("menu-open-image", "image", "Add images", "Ctrl+O", () => leave(files.pickImages)),
      menuItem("menu-open-folder", "folder", "Open a folder as a project", "", () => leave(files.pickFolder)),
    ),
    management,
  );
  const popover = attachPopover(trigger, menu, fill);

  function leave(act: () => void): void {
    popover.close();
    act();
  }

  function open(): { id: string; name: string } | undefined {
    const { projects: all, projectId } = store.get();
    return all.find((project) => project.id === projectId);
  }

  function fill(): void {
    const { projects: all, projectId, info } = store.get();
    show(management, info?.projects ?? false);
    rename.disabled = remove.disabled = !open();
    list.replaceChildren(
      ...all.map((project) => {
        const item = menuItem(
          `project-item-${project.id}`,
          project.id === projectId ? "check" : "folder",
          project.name,
          project.images === 1 ? "1 image" : `${project.images} images`,
          () => leave(() => void (project.id !== projectId && projects.openProject(project.id))),
        );
        item.setAttribute("aria-current", String(project.id === projectId));
        return item;
      }),
    );
    if (info && !info.projects) {
      list.replaceChildren(h("p", { class: "note menu-note" }, "This server keeps no projects. What you make here is gone when the page closes: export it before."));
    }
  }

  async function makeNew(): Promise<void> {
    popover.close();
    const given = await askText("New project", "", "Create");
    if (given) await projects.createProject(given);
  }

  async function renameOpen(): Promise<void> {
    popover.close();
    const project = open();
    const given = project && (await askText("Rename project", project.name, "Rename"));
    if (project && given && given !== project.name) await projects.renameProject(project.id, given);
  }

  async function deleteOpen(): Promise<void> {
    popover.close();
    const project = open();
    if (!project) return;
    const sure = await confirm(`Delete “${project.name}”?`, "Its images and annotations are deleted from the server. This cannot be undone.", "Delete");
    if (sure) await projects.deleteProject(project.id);
  }

  store.watch(
    (state) => [state.projects, state.projectId, state.info],
    () => {
      const { info } = store.get();
      const text = open()?.name ?? (info && !info.projects ? "This session" : "No project");
      name.textContent = text;
      trigger.setAttribute("aria-label", `Project: ${text}`);
    },
    sameMembers,
  );
  return trigger;
}
