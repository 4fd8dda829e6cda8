// Files in and out of the page: several at once, folders, drops, imports. Prints one JSON object: what each scenario saw.
//   node e2e/files.mjs --url http://127.0.0.1:8000/ --chromium /usr/bin/chromium --folder DIR --loose A --other B --out DIR

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { runScenarios } from "./page.mjs";

await runScenarios([folder, several, drops, imports], { names: ["folder", "loose", "other", "out"], context: { acceptDownloads: true } });

function names(state) {
  return state.images.map((image) => image.name);
}

function masks(state) {
  return state.objects.map(({ id, area, segmentation }) => ({ id, area, segmentation }));
}

/** Waits until so many images are there, and one can be clicked. */
async function added(page, count) {
  await page.until((state) => state.images.length === count);
  return page.opened();
}

async function clickMiddle(page) {
  const { size, objects } = await page.state();
  await page.click(size[1] / 2, size[0] / 2);
  return masks(await page.answered(objects.length + 1));
}

/** A folder becomes a project of its name; from image to image by keys and by the strip; all is there after a reload. */
async function folder(page, { url, folder }) {
  await page.visitNewProject(url, "Before the folder");
  await page.byId("folder-input").setInputFiles(folder);
  const first = await added(page, 3);
  const project = (await page.state()).project.name;
  const made = { [first.imageName]: await clickMiddle(page) };
  await page.key("PageDown");
  const second = await page.until((state) => state.imageName !== first.imageName && state.mode !== null && state.busy === null);
  const emptyThere = second.objects.length;
  made[second.imageName] = await clickMiddle(page);
  await page.saved();
  await page.key("PageUp");
  const back = masks(await page.until((state) => state.imageName === first.imageName && state.mode !== null));
  await page.page.reload();
  await page.opened();
  const after = {};
  for (const { id, name } of first.images) {
    await page.press(`image-${id}`);
    await page.until((state) => state.imageId === id && state.mode !== null && state.busy === null);
    after[name] = masks(await page.state());
  }
  return { project, names: names(first), emptyThere, made, back: { [first.imageName]: back }, after };
}

/** Several files, one of them no image: it is told, the others are there. The same file again is the same image. */
async function several(page, { url, folder, loose, other, out }) {
  await page.visitNewProject(url, "Several");
  await page.byId("file-input").setInputFiles([loose, other, `${out}/broken.png`]);
  await page.page.getByTestId("notices").getByText("broken.png").waitFor();
  const state = await added(page, 2);
  const notice = await page.byId("notices").textContent();
  await page.byId("file-input").setInputFiles([loose]);
  await page.page.waitForTimeout(300);
  await page.until((now) => now.images.length === 2);
  await page.byId("file-input").setInputFiles([`${folder}/notes.txt`]);
  await page.page.getByTestId("notices").getByText("no image among").waitFor();
  return { names: names(state), notice, again: names(await page.state()) };
}

/** Files that scripts made, as a page does it, and a folder that the browser itself hands over. */
async function drops(page, { url, folder, loose }) {
  await page.visitNewProject(url, "Drops");
  const veiled = await page.page.evaluate(
    ([data, name]) => {
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
      const say = (kind) => document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
      say("dragenter");
      const shown = document.querySelector(".drop-veil").checkVisibility();
      const taken = !say("dragover");
      say("drop");
      return { shown, taken, gone: !document.querySelector(".drop-veil").checkVisibility() };
    },
    [readFileSync(loose).toString("base64"), basename(loose)],
  );
  const dropped = await added(page, 1);
  const cdp = await page.page.context().newCDPSession(page.page);
  const data = { items: [], files: [folder], dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) await cdp.send("Input.dispatchDragEvent", { type, x: 300, y: 300, data });
  const second = await page.until((state) => state.projectId !== dropped.projectId && state.images.length === 3);
  await page.opened();
  return { veiled, first: names(dropped), project: second.project.name, second: names(second) };
}

/** What one project exports as COCO, another one takes; a wrong file is refused and nothing is lost. */
async function imports(page, { url, loose, out }) {
  await page.visitNewProject(url, "From");
  await page.openImage(loose);
  await clickMiddle(page);
  await page.press("done");
  const { size } = await page.state();
  await page.drag([size[1] * 0.1, size[0] * 0.1, size[1] * 0.4, size[0] * 0.5]);
  const exported = masks(await page.answered(2));
  await page.saved();
  await page.press("export-button");
  const [download] = await Promise.all([page.page.waitForEvent("download"), page.press("export-coco")]);
  const file = `${out}/from.json`;
  await download.saveAs(file);

  await page.visitNewProject(url, "To");
  await page.openImage(loose);
  const notices = page.byId("notices");
  const give = async (path, words) => {
    await page.press("export-button");
    const [chooser] = await Promise.all([page.page.waitForEvent("filechooser"), page.press("import")]);
    await chooser.setFiles(path);
    await notices.getByText(words).waitFor();
    const text = await notices.locator(".toast").last().textContent();
    await notices.getByLabel("Dismiss").last().click();
    return { text, masks: masks(await page.state()), images: names(await page.state()) };
  };
  const taken = await give(file, "2 annotations imported");
  const again = await give(file, "0 annotations imported");
  const { projectId } = await page.state();
  const wrong = {};
  for (const [name, text] of [["no.json", "{ not json"], ["list.json", '{"images": 3}'], ["loose_mask_1.png", "\x89PNG\r\n\x1a\nbroken"]]) {
    await page.byId("import-input").setInputFiles({ name, mimeType: "application/octet-stream", buffer: Buffer.from(text, "latin1") });
    await notices.locator(".toast").first().waitFor();
    wrong[name] = { text: await notices.textContent(), masks: masks(await page.state()) };
    await notices.getByLabel("Dismiss").first().click();
  }
  await page.page.reload();
  const reloaded = masks(await page.until((state) => state.objects.length > 0 && state.mode !== null));
  return { file, projectId, imageId: (await page.state()).imageId, exported, taken, again, wrong, reloaded };
}
