/** The page as a test sees it: its state, and what people do with it. Knows no scenario. */

import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const PATIENCE = 90_000; // milliseconds: an encoder on a busy machine
const POLL = 25;

/**
 * Runs scenarios, each in a page of its own, and prints one JSON object: what each of them saw, by its name, with `errors`.
 * names: of the command's options, beside url and chromium. context: what Playwright calls so; a scenario may have its own.
 */
export async function runScenarios(scenarios, { names, context = {} }) {
  const options = Object.fromEntries(["url", "chromium", ...names].map((name) => [name, { type: "string" }]));
  const { values } = parseArgs({ options });
  const browser = await chromium.launch({ executablePath: values.chromium, args: ["--no-sandbox"] });
  const seen = {};
  const errors = [];
  try {
    for (const scenario of scenarios) {
      const page = await newPage(browser, { viewport: { width: 1280, height: 800 }, ...context, ...scenario.context });
      page.page.on("pageerror", (error) => errors.push(`${scenario.name}: ${error}`));
      seen[scenario.name] = await scenario(page, values);
      await page.page.context().close();
    }
  } catch (error) {
    throw new Error([...errors, error.message].join("\n"), { cause: error });
  } finally {
    await browser.close();
  }
  process.stdout.write(`${JSON.stringify({ ...seen, errors })}\n`);
}

async function newPage(browser, options) {
  const context = await browser.newContext(options);
  return new PageUnderTest(await context.newPage());
}

export class PageUnderTest {
  constructor(page) {
    this.page = page;
  }

  /** Opens the address and waits for the first paint with the server's answer. */
  async visit(address) {
    await this.page.goto(address);
    await this.page.waitForSelector("html[data-ready='true']", { state: "attached", timeout: PATIENCE });
  }

  /** Opens an empty project, made for this. Returns its id. */
  async visitNewProject(address, name) {
    const made = await this.page.request.post(new URL("/v1/projects", address).href, { data: { name } });
    const { id } = await made.json();
    await this.visit(`${address}#project=${id}`);
    await this.until((state) => state.projectId === id);
    return id;
  }

  state() {
    return this.page.evaluate(() => window.anysam.state());
  }

  /** Waits until `holds` says true of the state, and returns it. Asked from here: the page's policy allows no eval. */
  async until(holds) {
    const end = Date.now() + PATIENCE;
    for (;;) {
      const state = await this.state();
      if (holds(state)) return state;
      if (Date.now() > end) throw new Error(`Waited ${PATIENCE / 1000} s for: ${holds}`);
      await new Promise((resolve) => setTimeout(resolve, POLL));
    }
  }

  byId(id) {
    return this.page.getByTestId(id);
  }

  async press(id) {
    await this.byId(id).click();
  }

  key(name) {
    return this.page.keyboard.press(name);
  }

  async openImage(path) {
    await this.byId("file-input").setInputFiles(path);
    return this.opened();
  }

  /** Waits until an image can be clicked. */
  opened() {
    return this.until((state) => state.imageId !== null && state.size !== null && state.mode !== null && state.busy === null);
  }

  /** What is said to those who do not see the page. */
  said() {
    return this.byId("status").textContent();
  }

  /** In pixels of the image. */
  async click(x, y, options = {}) {
    const [left, top] = await this.toScreen(x, y);
    await this.page.mouse.click(left, top, options);
  }

  async drag([x0, y0, x1, y1]) {
    await this.page.mouse.move(...(await this.toScreen(x0, y0)));
    await this.page.mouse.down();
    await this.page.mouse.move(...(await this.toScreen((x0 + x1) / 2, (y0 + y1) / 2)));
    await this.page.mouse.move(...(await this.toScreen(x1, y1)));
    await this.page.mouse.up();
  }

  toScreen(x, y) {
    return this.page.evaluate(([px, py]) => window.anysam.toScreen(px, py), [x, y]);
  }

  /** Waits until nothing is asked and there are so many objects. */
  answered(count) {
    return this.until((state) => !state.predicting && state.objects.length === count);
  }

  saved() {
    return this.until((state) => state.save.state === "saved" && state.save.pending === 0);
  }
}
