// The page under fingers, on a telephone. Prints one JSON object: what each scenario saw.
//   node e2e/touch.mjs --url http://127.0.0.1:8000/ --chromium /usr/bin/chromium --image photo.png --out DIR

import { controls } from "./controls.mjs";
import { runScenarios } from "./page.mjs";

const HOLD = 700; // milliseconds: longer than a tap
const PHONE = { hasTouch: true, isMobile: true, deviceScaleFactor: 2 };
const PORTRAIT = { width: 390, height: 844 };
const LANDSCAPE = { width: 844, height: 390 };

await runScenarios([fingers, portrait, landscape], { names: ["image", "out"], context: { ...PHONE, viewport: PORTRAIT } });

/** Taps and drags of fingers: places are pixels of the image. */
async function hand(page) {
  const cdp = await page.page.context().newCDPSession(page.page);
  let down = [];
  const send = async (type, touchPoints) => {
    await cdp.send("Input.dispatchTouchEvent", { type, touchPoints });
    // Chromium hands moves on with the next frame.
    await page.page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => resolve())));
  };
  return {
    /** Puts fingers down or moves them: CSS pixels, one place for each finger. */
    async put(...places) {
      const type = places.length > down.length ? "touchStart" : "touchMove";
      down = places.map(([x, y], id) => ({ x, y, id }));
      await send(type, down);
    },
    /** Takes the last fingers away until so many are left. */
    async lift(left = 0) {
      await send("touchEnd", down.slice(left));
      down = down.slice(0, left);
    },
    async tap(place, milliseconds = 0) {
      await this.put(place);
      await page.page.waitForTimeout(milliseconds);
      await this.lift();
    },
  };
}

async function fingers(page, { url, image }) {
  await page.visitNewProject(url, "Fingers");
  const { size, engineImage } = await page.openImage(image);
  const [height, width] = size;
  const finger = await hand(page);
  const at = (x, y) => page.toScreen(width * x, height * y);

  await finger.tap(await at(0.48, 0.37));
  const tapped = await page.answered(1);
  await finger.tap(await at(0.48, 0.52), HOLD);
  const held = await page.until((state) => !state.predicting && state.objects[0]?.prompt.points.length === 2);

  const middle = await at(0.5, 0.5);
  const spread = (from, dx, dy) => [[from[0] - dx, from[1] - dy], [from[0] + dx, from[1] + dy]];
  const shifted = ([x, y]) => [x + 40, y + 60];
  const before = await page.state();
  await finger.put(spread(middle, 30, 10)[0]);
  await finger.put(...spread(middle, 30, 10));
  await finger.put(...spread(middle, 60, 20));
  await finger.put(...spread(shifted(middle), 60, 20));
  const under = await at(0.5, 0.5);
  // One finger goes earlier than the other, and a third one comes: nobody lifts two at once.
  await finger.lift(1);
  await finger.put([middle[0] - 30, middle[1]]);
  await finger.put([middle[0] - 60, middle[1]]);
  const oneLeft = await page.state();
  await finger.lift();
  await finger.put(...spread(middle, 30, 10));
  await finger.put(...spread(middle, 30, 10), [middle[0], middle[1] + 80]);
  await finger.put(...spread(middle, 32, 12), [middle[0], middle[1] + 90]);
  await finger.lift();
  const after = await page.state();

  await page.press("zoom-level");
  await page.press("done");
  await finger.put(await at(0.25, 0.05));
  for (const part of [0.3, 0.6, 1]) await finger.put(await at(0.25 + 0.62 * part, 0.05 + 0.6 * part));
  await finger.lift();
  const boxed = await page.answered(2);
  await page.press("tool-move");
  await finger.put(middle);
  await finger.put([middle[0] + 20, middle[1] + 30]);
  await finger.lift();
  const panned = await page.state();
  await page.saved();
  return {
    engineImage,
    tapped: tapped.objects[0],
    held: held.objects[0],
    pinch: {
      scales: [before.view.scale, oneLeft.view.scale],
      // Where the middle of the image went, and where the fingers' middle went.
      moved: [under[0] - middle[0], under[1] - middle[1]],
      views: [oneLeft.view, after.view],
      points: after.objects[0].prompt.points.length,
      objects: after.objects.length,
    },
    box: boxed.objects[1].prompt.box,
    pan: [panned.view.tx - boxed.view.tx, panned.view.ty - boxed.view.ty],
    objects: panned.objects.length,
  };
}

/** Every state in which the page has other controls: none may lie outside or under another. */
async function layouts(page, { url, image, out }, name) {
  const window = page.page.viewportSize();
  const found = {};
  const look = async (state) => {
    await page.page.waitForTimeout(300); // moves of 0.22 s
    await page.page.screenshot({ path: `${out}/${name}-${state}.png` });
    found[state] = await controls(page.page);
  };
  await page.visitNewProject(url, "Telephone");
  await look("empty");
  const { size } = await page.openImage(image);
  const stage = await page.byId("stage").boundingBox();
  await look("image");
  const finger = await hand(page);
  await finger.tap(await page.toScreen(size[1] * 0.48, size[0] * 0.37));
  await page.answered(1);
  await look("object");
  await page.press("tool-brush");
  await look("brush");
  await page.press("tool-point");
  await page.press("panel-toggle");
  await look("panel");
  await page.byId("category-name").scrollIntoViewIfNeeded();
  await look("categories");
  await page.key("Escape");
  await page.page.waitForTimeout(300);
  const closed = !(await page.byId("everything").isVisible());
  await page.press("export-button");
  await look("export");
  await page.key("Escape");
  await page.press("project-button");
  await look("project");
  await page.key("Escape");
  await page.press("help-button");
  await look("help");
  await page.key("Escape");
  const scrolled = await page.page.evaluate(() => [document.scrollingElement.scrollLeft, document.scrollingElement.scrollTop]);
  return { window, stage, found, closed, scrolled };
}

function portrait(page, values) {
  return layouts(page, values, "portrait");
}

async function landscape(page, values) {
  await page.page.setViewportSize(LANDSCAPE);
  return layouts(page, values, "landscape");
}
