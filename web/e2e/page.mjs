/** The page as a test sees it: its state, and what people do with it. Knows no scenario. */

const PATIENCE = 90_000; // milliseconds: an encoder on a busy machine
const POLL = 25;

export class PageUnderTest {
  constructor(page) {
    this.page = page;
  }

  /** Opens the address and waits for the first paint with the server's answer. */
  async visit(address) {
    await this.page.goto(address);
    await this.page.waitForSelector("html[data-ready='true']", { state: "attached", timeout: PATIENCE });
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
    return this.until((state) => state.imageId !== null && state.size !== null && state.mode !== null && state.busy === null);
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
