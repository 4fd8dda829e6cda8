/** Files from the hidden inputs, from a drop (folders too) and from the clipboard. */

import type { Projects } from "../state/session";
import { h } from "./dom";

export interface Files {
  readonly element: HTMLElement;
  pickImages(): void;
  pickFolder(): void;
}

export function createFiles(projects: Projects): Files {
  const images = h("input", { testid: "file-input", label: "Images", attrs: { type: "file", multiple: true, accept: "image/*,.tif,.tiff", hidden: true } });
  const folder = h("input", { testid: "folder-input", label: "Folder", attrs: { type: "file", webkitdirectory: true, multiple: true, hidden: true } });
  const veil = h("div", { class: "drop-veil", attrs: { hidden: true, "aria-hidden": "true" } }, h("div", { class: "drop-card" }, "Drop images or a folder"));
  const element = h("div", {}, images, folder, veil);

  images.addEventListener("change", () => {
    void projects.addFiles([...(images.files ?? [])]);
    images.value = "";
  });
  folder.addEventListener("change", () => {
    const files = sorted([...(folder.files ?? [])]);
    void projects.addFiles(files, files[0]?.webkitRelativePath.split("/")[0] || "Folder");
    folder.value = "";
  });

  let depth = 0; // dragenter and dragleave come for every child
  const holdsFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
  window.addEventListener("dragenter", (event) => {
    if (!holdsFiles(event)) return;
    depth += 1;
    veil.hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (!holdsFiles(event)) return;
    depth = Math.max(depth - 1, 0);
    veil.hidden = depth === 0;
  });
  window.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!event.dataTransfer || !holdsFiles(event)) return;
    event.preventDefault();
    depth = 0;
    veil.hidden = true;
    // Entries must be taken before the event is over.
    const entries = [...event.dataTransfer.items].flatMap((item) => item.webkitGetAsEntry() ?? []);
    const loose = [...event.dataTransfer.files];
    void dropped(entries, loose).then(({ files, folderName }) => projects.addFiles(files, folderName));
  });
  window.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (files.length > 0) void projects.addFiles(files);
  });

  return { element, pickImages: () => images.click(), pickFolder: () => folder.click() };
}

/** One dropped folder becomes a project of its name; loose files are added to the open one. */
async function dropped(
  entries: readonly FileSystemEntry[],
  loose: readonly File[],
): Promise<{ files: File[]; folderName: string | undefined }> {
  const folders = entries.filter((entry) => entry.isDirectory);
  if (folders.length === 0) return { files: [...loose], folderName: undefined };
  const files = (await Promise.all(entries.map(filesOf))).flat();
  return { files: sorted(files), folderName: entries.length === 1 ? folders[0]?.name : undefined };
}

async function filesOf(entry: FileSystemEntry): Promise<File[]> {
  if (entry.isFile) {
    return [await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const inside: FileSystemEntry[] = [];
  // A reader gives a folder in portions, the last one is empty.
  for (;;) {
    const portion = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (portion.length === 0) break;
    inside.push(...portion);
  }
  return (await Promise.all(inside.map(filesOf))).flat();
}

function sorted(files: readonly File[]): File[] {
  const path = (file: File): string => file.webkitRelativePath || file.name;
  return [...files].sort((a, b) => path(a).localeCompare(path(b), undefined, { numeric: true }));
}
