// The picture of the page in the README: node web/e2e/screenshot.mjs docs/page.jpg, in the repository's root.

import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const IMAGE = "examples/images/astronaut.png";
const OBJECTS = [
  { category: "badge", box: [274, 337, 330, 379] },
  { category: "patch", box: [131, 345, 209, 423] },
  { category: "ring", box: [113, 147, 306, 293] },
  { category: "head", box: [150, 12, 304, 193] },
];

const db = join(mkdtempSync(join(tmpdir(), "anysam-")), "p.sqlite");
const server = spawn(".venv/bin/python", ["-m", "anysam", "app", "--no-browser", "--port", "0", "--db", db]);
const url = await new Promise((resolve) =>
  server.stderr.on("data", (data) => {
    const found = /at (http:\/\/\S+\/) /.exec(String(data));
    if (found) resolve(found[1]);
  }),
);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
const screen = (x, y) => page.evaluate(([x, y]) => window.anysam.toScreen(x, y), [x, y]);
const until = (test, argument) => page.waitForFunction(test, argument, { timeout: 60_000 });

await page.goto(url);
await until(() => document.documentElement.dataset.ready === "true");
await page.setInputFiles("[data-testid=file-input]", IMAGE);
await until(() => window.anysam.state().mode !== null && !window.anysam.state().busy);
for (const [i, { category, box }] of OBJECTS.entries()) {
  await page.fill("[data-testid=category-name]", category);
  await page.click("[data-testid=category-add]");
  await until((n) => window.anysam.state().categories.length === n, i + 1);
  await page.mouse.move(...(await screen(box[0], box[1])));
  await page.mouse.down();
  await page.mouse.move(...(await screen(box[2], box[3])), { steps: 5 });
  await page.mouse.up();
  await until((n) => window.anysam.state().objects.length === n && !window.anysam.state().predicting, i + 1);
  const { id } = (await page.evaluate(() => window.anysam.state().objects)).at(-1);
  await page.selectOption(`[data-testid="object-category-${id}"]`, { label: category });
  if (i < OBJECTS.length - 1) await page.keyboard.press("Escape");
}
await page.mouse.move(640, 790);
await until(() => window.anysam.state().save.state === "saved");
await page.waitForTimeout(500);
await page.screenshot({ path: process.argv[2], type: "jpeg", quality: 88 });
await browser.close();
server.kill();
