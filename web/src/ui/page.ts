/** Puts the parts of the page together. */

import { type App, reasonOf } from "../state/app";
import { createCategories } from "../state/categories";
import { createEditing } from "../state/editing";
import { createFinding } from "../state/finding";
import { createProjects } from "../state/session";
import { openShelf } from "../state/storage";
import { createCategoriesPanel } from "./panel_categories";
import { createChooser } from "./chooser";
import { askToken } from "./dialogs";
import { h } from "./dom";
import { createEmpty } from "./empty";
import { createExportMenu } from "./export_menu";
import { createFiles } from "./files";
import { installHook } from "./hook";
import { createHud } from "./hud";
import { listenToKeys } from "./keyboard";
import { createFindPanel } from "./panel_find";
import { createObjectsPanel } from "./panel_objects";
import { createProjectMenu } from "./project_menu";
import { createSidePanel } from "./side_panel";
import { createStage } from "./stage";
import { createStrip } from "./strip";
import { startTheme } from "./theme";
import { createToolRail } from "./tool_rail";
import { createTopbar } from "./topbar";

export function startPage(root: HTMLElement, app: App, toasts: HTMLElement, useToken: (token: string) => void): void {
  const { store, session } = app;
  const theme = startTheme(store);
  const editing = createEditing(app);
  const finding = createFinding(app);
  const projects = createProjects(app, editing, finding);
  const categories = createCategories(app);
  const files = createFiles(projects);
  const stage = createStage(app, editing, finding);
  const find = createFindPanel(app, finding);
  const objects = createObjectsPanel(app, editing);
  const view = h(
    "main",
    { class: "view" },
    stage.element,
    createToolRail(app),
    createHud(app, stage),
    createChooser(app, editing, stage.photo),
    createEmpty(app, projects, files),
  );
  const panel = createSidePanel(app, find.element, objects.element, createCategoriesPanel(app, categories, editing));
  const topbar = createTopbar(app, editing, {
    project: createProjectMenu(app, projects, files),
    exporting: createExportMenu(app, projects),
    nextTheme: theme.next,
    panel: panel.trigger,
  });
  const strip = createStrip(app, projects, files, openShelf<Blob>("thumbnails"));
  root.replaceChildren(topbar, view, panel.veil, panel.element, strip, files.element, toasts);

  listenToKeys({
    app,
    editing,
    finding,
    projects,
    files,
    stage,
    focusText: find.focusText,
    focusCategory: objects.focusCategory,
  });
  installHook(app, stage.element);

  store.watch((state) => state.connection, (connection) => {
    if (connection !== "token") return;
    void askToken().then((token) => {
      useToken(token);
      return projects.start();
    });
  });
  store.watch((state) => state.imageId !== null, (open) => {
    root.classList.toggle("has-image", open);
  });
  store.watch((state) => {
    const image = state.images.find((each) => each.id === state.imageId);
    return image ? `${image.name} · anysam` : "anysam";
  }, (title) => (document.title = title));

  // A link to another project or image, followed in this tab. The page's own changes of its address do not come here.
  window.addEventListener("hashchange", () => void projects.start());
  window.addEventListener("online", () => void session.outbox?.flush());
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") void session.outbox?.flush();
  });
  // What waits is kept in the browser and sent at the next visit; only where it cannot be kept must one ask.
  window.addEventListener("beforeunload", (event) => {
    const { save, info, scene } = store.get();
    const memoryOnly = info?.projects === false && scene.objects.length > 0;
    if (memoryOnly || (save.pending > 0 && session.outbox?.durable === false)) event.preventDefault();
  });
  projects.start().catch((error: unknown) => app.say.notice(reasonOf(error)));
}
