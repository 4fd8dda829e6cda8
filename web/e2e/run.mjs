// The page in a real browser, as a person uses it. Prints one JSON object: what each scenario saw.
//   node e2e/run.mjs --url http://127.0.0.1:8000/ --chromium /usr/bin/chromium --image photo.png --out DIR

import { mkdirSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const { values } = parseArgs({
  options: {
    url: { type: "string" },
    chromium: { type: "string" },
    image: { type: "string" },
    out: { type: "string" },
    clicks: { type: "string", default: "20" },
  },
});
mkdirSync(values.out, { recursive: true });
const PATIENCE = { timeout: 60_000 };

const browser = await chromium.launch({ executablePath: values.chromium, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 820 }, acceptDownloads: true });
const page = await context.newPage();
const problems = [];
page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
page.on("console", (message) => message.type() === "error" && problems.push(`console: ${message.text()}`));

const find = (id) => page.locator(`[data-testid="${id}"]`);
const state = () => page.evaluate(() => window.anysam.state());
const ready = () =>
  page.waitForFunction(() => document.documentElement.dataset.ready === "true" && window.anysam.state().ready, null, PATIENCE);
const until = async (what, test) => {
  const end = Date.now() + PATIENCE.timeout;
  while (Date.now() < end) {
    const now = await state();
    if (test(now)) return now;
    await page.waitForTimeout(20);
  }
  throw new Error(`waited in vain: ${what}`);
};
const screen = (x, y) => page.evaluate(([x, y]) => window.anysam.toScreen(x, y), [x, y]);
const click = async (x, y) => page.mouse.click(...(await screen(x, y)));
const idle = (now) => !now.predicting && !now.busy;
const saved = (now) => now.save.state === "saved" && now.save.pending === 0;
const selected = (now) => now.objects.find((each) => each.id === now.selected);

const seen = {};

async function openPhoto() {
  await page.goto(values.url);
  await ready();
  await page.screenshot({ path: `${values.out}/empty.png` });
  await find("file-input").setInputFiles(values.image);
  const now = await until("the image is ready", (now) => now.mode !== null && idle(now));
  seen.opened = { size: now.size, mode: now.mode, reason: now.reason, isolated: await page.evaluate(() => crossOriginIsolated) };
}

async function clickTwice([width, height]) {
  await click(width * 0.48, height * 0.37);
  const first = await until("a mask", (now) => now.objects.length === 1 && idle(now) && selected(now)?.area > 0);
  const choices = selected(first).choices;
  await page.keyboard.press("3");
  const other = await until("the third mask", (now) => selected(now)?.choice === 2);
  await page.keyboard.press("1");
  await page.keyboard.down("Alt");
  await click(width * 0.48, height * 0.52);
  await page.keyboard.up("Alt");
  const second = await until("the mask after a click beside it", (now) => idle(now) && selected(now)?.prompt.points.length === 2);
  seen.clicks = {
    first: selected(first).area,
    third: selected(other).area,
    second: selected(second).area,
    labels: selected(second).prompt.labels,
    choices,
  };
}

async function undoAndRedo() {
  const before = selected(await state());
  await page.keyboard.press("Control+z");
  const undone = await until("undone", (now) => selected(now)?.prompt.points.length === 1);
  await page.keyboard.press("Control+Shift+z");
  const redone = await until("redone", (now) => selected(now)?.prompt.points.length === 2);
  seen.undo = { before: before.area, undone: selected(undone).area, redone: selected(redone).area };
}

async function box([width, height]) {
  await find("done").click();
  await page.mouse.move(...(await screen(width * 0.87, height * 0.05)));
  await page.mouse.down();
  await page.mouse.move(...(await screen(width * 0.5, height * 0.5)), { steps: 4 });
  await page.mouse.move(...(await screen(width * 0.25, height * 0.65)), { steps: 4 });
  await page.mouse.up();
  const now = await until("a box", (now) => now.objects.length === 2 && idle(now) && selected(now)?.prompt.box);
  seen.box = { area: selected(now).area, box: selected(now).box, prompt: selected(now).prompt.box };
}

async function timeClicks([width, height]) {
  const times = [];
  for (let i = 0; i < Number(values.clicks) + 1; i++) {
    await page.keyboard.press("n");
    const count = (await state()).objects.length;
    await click(width * (0.1 + ((i * 37) % 80) / 100), height * (0.1 + ((i * 53) % 80) / 100));
    const now = await until("a timed click", (now) => idle(now) && now.objects.length === count + 1 && now.lastClickMs !== null);
    if (i > 0) times.push(now.lastClickMs);
    await page.keyboard.press("Control+z");
    await until("taken back", (now) => now.objects.length === count);
  }
  times.sort((a, b) => a - b);
  seen.click_ms = { median: times[times.length >> 1], most: times.at(-1), clicks: times.length };
}

async function brush([width, height]) {
  await page.keyboard.press("v");
  await page.keyboard.press("j");
  const before = await until("an object is selected", (now) => now.selected !== null);
  await page.keyboard.press("b");
  await page.mouse.move(...(await screen(width * 0.05, height * 0.95)));
  await page.mouse.down();
  await page.mouse.move(...(await screen(width * 0.12, height * 0.95)), { steps: 3 });
  await page.mouse.up();
  const after = await until("the brush", (now) => selected(now)?.area > selected(before).area);
  await page.keyboard.press("Control+z");
  await until("no brush", (now) => selected(now)?.area === selected(before).area);
  await page.keyboard.press("p");
  seen.brush = { before: selected(before).area, after: selected(after).area };
}

async function category() {
  await find("category-name").fill("cup");
  await find("category-add").click();
  const made = await until("a category", (now) => now.categories.length === 1);
  const object = (await state()).objects[0].id;
  if ((await state()).selected !== object) await find(`object-${object}`).click();
  await find(`object-category-${object}`).selectOption({ label: "cup" });
  await until("an object has it", (now) => now.objects[0].category === "cup");
  seen.category = made.categories[0].name;
}

async function exportAndCompare() {
  await until("all is saved", saved);
  await find("export-button").click();
  const [download] = await Promise.all([page.waitForEvent("download", PATIENCE), find("export-coco").click()]);
  const file = `${values.out}/export.json`;
  await download.saveAs(file);
  const now = await state();
  const response = await context.request.get(
    new URL(`/v1/projects/${now.projectId}/images/${now.imageId}/annotations`, values.url).href,
  );
  seen.export = {
    coco: JSON.parse(readFileSync(file, "utf8")).annotations,
    api: (await response.json()).annotations,
    shown: now.objects.map((each) => ({ id: each.id, area: each.area, segmentation: each.segmentation })),
  };
}

async function reload() {
  const before = await state();
  await page.reload();
  await ready();
  const after = await until("the same objects", (now) => now.objects.length === before.objects.length && now.mode !== null);
  const facts = (now) => now.objects.map((each) => [each.id, each.area, each.category]).sort();
  seen.reload = { before: facts(before), after: facts(after), image: after.imageName };
}

async function everything() {
  await page.keyboard.press("Escape");
  await find("everything").click();
  const now = await until("everything", (now) => now.proposals !== null && !now.everything.running);
  await page.waitForTimeout(300);
  await page.screenshot({ path: `${values.out}/everything.png` });
  const before = now.objects.length;
  await find("proposals-keep-all").click();
  const kept = await until("kept", (now) => now.objects.length > before && saved(now));
  seen.everything = { proposals: now.proposals, objects: kept.objects.length - before };
  await page.keyboard.press("Control+z");
  await until("taken back", (now) => now.objects.length === before && saved(now));
}

async function looks([width, height]) {
  await page.mouse.move(...(await screen(width * 0.9, height * 0.9)));
  await page.waitForTimeout(400);
  await page.screenshot({ path: `${values.out}/page.png` });
  await page.keyboard.press("?");
  await find("help").waitFor(PATIENCE);
  await page.screenshot({ path: `${values.out}/help.png` });
  await page.keyboard.press("Escape");
  await page.emulateMedia({ colorScheme: "dark" });
  await page.waitForTimeout(200);
  await page.screenshot({ path: `${values.out}/dark.png` });
  await page.setViewportSize({ width: 390, height: 760 });
  await page.waitForTimeout(300);
  await page.screenshot({ path: `${values.out}/narrow.png` });
}

try {
  await openPhoto();
  const { size } = await state();
  const place = [size[1], size[0]]; // width, height
  for (const scenario of [clickTwice, undoAndRedo, box, timeClicks, brush, category, exportAndCompare, reload, everything, looks])
    await scenario(place);
} catch (error) {
  problems.push(String(error.stack ?? error));
  await page.screenshot({ path: `${values.out}/failed.png` });
}
console.log(JSON.stringify({ ...seen, problems }));
await browser.close();
