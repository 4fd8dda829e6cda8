/** Files out and in: the project's annotations in the formats that other programs read. */

import { type App, reasonOf } from "../state/app";
import { cocoDocument } from "../state/coco";
import type { Imported } from "../state/backend";
import type { Projects } from "../state/session";
import { button, download, h, show } from "./dom";
import { icon } from "./icons";
import { attachPopover, menuItem } from "./popover";

const FORMATS: readonly { format: string; name: string; hint: string }[] = [
  { format: "coco", name: "COCO", hint: "run lengths, .json" },
  { format: "coco-polygons", name: "COCO polygons", hint: ".json" },
  { format: "yolo", name: "YOLO", hint: ".zip" },
  { format: "labelme", name: "labelme", hint: ".zip" },
  { format: "png", name: "PNG masks", hint: "one each, .zip" },
  { format: "labels", name: "Label map", hint: "one an image, .zip" },
  { format: "cutout", name: "Cut-outs", hint: "transparent, .zip" },
  { format: "geojson", name: "GeoJSON", hint: ".zip" },
  { format: "json", name: "anysam JSON", hint: ".zip" },
];

const MOST_LINES = 5;

export function createExportMenu(app: App, projects: Projects): HTMLElement {
  const { store, backend, session, say } = app;
  const trigger = button({ class: "button", testid: "export-button", label: "Export", press: () => undefined }, icon("export"), h("span", { class: "wide-only" }, "Export"));
  const items = FORMATS.map(({ format, name, hint }) => ({
    format,
    item: menuItem(`export-${format}`, "export", name, hint, () => void save(format)),
  }));
  const input = h("input", { testid: "import-input", label: "Annotations to import", attrs: { type: "file", accept: ".json,.png,.zip,.geojson", hidden: true } });
  const importing = menuItem("import", "folder", "Import annotations", ".json .zip .png", () => {
    popover.close();
    input.click();
  });
  const note = h("p", { class: "note menu-note" }, "This server keeps no projects: COCO is made here, the other formats need projects.");
  const menu = h(
    "div",
    { class: "menu", testid: "export-menu", role: "dialog", label: "Export" },
    note,
    h("div", { class: "menu-list" }, ...items.map(({ item }) => item)),
    h("div", { class: "menu-part" }, importing),
    input,
  );
  const popover = attachPopover(trigger, menu, () => {
    const { info, projectId } = store.get();
    const kept = info?.projects ?? false;
    show(note, !kept);
    for (const { format, item } of items) item.disabled = kept ? !projectId : format !== "coco";
    importing.disabled = !projectId;
  });
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    input.value = "";
    if (file) void read(file);
  });

  async function save(format: string): Promise<void> {
    popover.close();
    const { projectId, images, categories } = store.get();
    try {
      if (!projectId) {
        const known = images.flatMap(({ id, name, size }) => {
          const scene = projects.sceneOfImage(id);
          const shape = id === store.get().imageId ? store.get().size : (size ?? scene?.objects[0]?.rle.size);
          return scene && shape ? [{ name, size: shape, objects: scene.objects }] : [];
        });
        const text = JSON.stringify(cocoDocument(known, categories));
        download(new Blob([text], { type: "application/json" }), "annotations.json");
        return;
      }
      await session.outbox?.flush();
      if (store.get().save.pending > 0) {
        say.notice("Some annotations are not saved yet and would be missing. Save them first.");
        return;
      }
      const { blob, name } = await backend.exportProject(projectId, format);
      download(blob, name);
      say.status(`Exported ${name}.`);
    } catch (error) {
      say.notice(`Export: ${reasonOf(error)}`);
    }
  }

  async function read(file: File): Promise<void> {
    const { projectId } = store.get();
    if (!projectId) return;
    try {
      await session.outbox?.flush();
      const { imported, skipped } = await backend.importInto(projectId, file);
      await projects.reloadAnnotations();
      say.notice([`${imported} annotations imported.`, ...skippedLines(skipped)].join("\n"));
    } catch (error) {
      say.notice(`${file.name} was not imported: ${reasonOf(error)}`);
    }
  }

  store.watch((state) => state.images.length > 0, (some) => (trigger.disabled = !some));
  return trigger;
}

/** What was left out and why, equal lines once. */
function skippedLines(skipped: Imported["skipped"]): string[] {
  if (skipped.length === 0) return [];
  const counts = new Map<string, number>();
  for (const { what, why } of skipped) counts.set(`${what}: ${why}`, (counts.get(`${what}: ${why}`) ?? 0) + 1);
  const lines = [...counts].map(([line, count]) => (count > 1 ? `${line} (${count} times)` : line));
  const more = lines.length > MOST_LINES ? [`and ${lines.length - MOST_LINES} more`] : [];
  return [`${skipped.length} skipped:`, ...lines.slice(0, MOST_LINES), ...more];
}
