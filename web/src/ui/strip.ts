/** The project's images in a row of small pictures. */

import type { App } from "../state/app";
import type { Projects } from "../state/session";
import type { Shelf } from "../state/storage";
import { sameMembers } from "../state/store";
import type { ImageItem } from "../state/types";
import { confirm } from "./dialogs";
import { button, h, keyed, show } from "./dom";
import type { Files } from "./files";
import { icon } from "./icons";
import { thumbnail } from "./photo";

const [WIDTH, HEIGHT] = [144, 108];

export function createStrip(app: App, projects: Projects, files: Files, shelf: Promise<Shelf<Blob>>): HTMLElement {
  const { store, backend } = app;
  const list = h("div", { class: "strip-list", testid: "strip", role: "listbox", label: "Images", attrs: { "aria-orientation": "horizontal" } });
  const add = button({ class: "strip-add", testid: "strip-add", label: "Add images", title: "Add images", press: () => files.pickImages() }, icon("plus"));
  const remove = button({ class: "icon-button", testid: "image-remove", label: "Remove this image", title: "Remove this image", press: () => void removeOpen() }, icon("trash"));
  const element = h("footer", { class: "strip" }, list, add, remove);

  // Small pictures are made one after another, and only of images that come into sight.
  let line: Promise<void> = Promise.resolve();
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        line = line.then(() => fillThumbnail(target as HTMLElement)).catch(() => undefined);
      }
    },
    { root: null, rootMargin: "200px" },
  );

  async function fillThumbnail(option: HTMLElement): Promise<void> {
    const id = option.dataset["key"] ?? "";
    const { images, projectId } = store.get();
    const item = images.find((each) => each.id === id);
    if (!item || !option.isConnected) return;
    const cache = await shelf;
    let small: Blob | null | undefined = await cache.get(id).catch(() => undefined);
    if (!small) {
      const whole = item.file ?? (projectId ? await backend.imageFile(projectId, id) : null);
      small = whole && (await thumbnail(whole, WIDTH, HEIGHT));
      if (small && projectId) await cache.put(new Map([[id, small]])).catch(() => undefined);
    }
    if (!small) return;
    const url = URL.createObjectURL(small);
    const picture = h("img", { attrs: { alt: "", src: url, draggable: false } });
    picture.addEventListener("load", () => URL.revokeObjectURL(url));
    option.prepend(picture);
  }

  function make(item: ImageItem): HTMLElement {
    const option = h("div", { class: "thumb", testid: `image-${item.id}`, role: "option", title: item.name, label: item.name }, h("span", { class: "thumb-name" }, item.name));
    option.addEventListener("click", () => void projects.openImage(item.id));
    seen.observe(option);
    return option;
  }

  list.addEventListener("keydown", (event) => {
    const options = [...list.children] as HTMLElement[];
    const at = options.indexOf(document.activeElement as HTMLElement);
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (step !== 0) options[Math.min(Math.max(at + step, 0), options.length - 1)]?.focus();
    else if (event.key === "Enter" || event.key === " ") void projects.openImage(options[at]?.dataset["key"] ?? "");
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  async function removeOpen(): Promise<void> {
    const { images, imageId, info } = store.get();
    const item = images.find((each) => each.id === imageId);
    if (!item) return;
    const where = info?.projects ? "The image and its annotations are deleted from the project." : "Its objects are gone with it.";
    if (await confirm(`Remove “${item.name}”?`, where, "Remove")) await projects.deleteImage(item.id);
  }

  store.watch(
    (state) => [state.images, state.imageId],
    () => {
      const { images, imageId } = store.get();
      show(element, images.length > 0);
      remove.disabled = imageId === null;
      keyed(list, images, (item) => item.id, make, (option, item) => {
        const open = item.id === imageId;
        option.setAttribute("aria-selected", String(open));
        option.setAttribute("tabindex", open || (imageId === null && item === images[0]) ? "0" : "-1");
      });
      list.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
    },
    sameMembers,
  );
  return element;
}
