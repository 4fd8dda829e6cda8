// What is not the usual way through the page: a token, no decoder or a late one, no mouse, work that is stopped.
// Prints one JSON object: what each scenario saw.
//   node e2e/edges.mjs --url http://127.0.0.1:8000/ --token TOKEN --chromium /usr/bin/chromium --image photo.png

import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { PageUnderTest } from "./page.mjs";

const POINT = [0.5, 0.5]; // of the image
const LATE = 8000; // milliseconds: longer than the page waits for a decoder

const { values } = parseArgs({
  options: {
    url: { type: "string" },
    token: { type: "string" },
    chromium: { type: "string" },
    image: { type: "string" },
  },
});

const foreign = [];
const errors = [];
const seen = {};
const browser = await chromium.launch({ executablePath: values.chromium, args: ["--no-sandbox"] });
try {
  for (const scenario of [asksForTheToken, withoutDecoder, withoutWebAssembly, withLateDecoder, withoutMouse, stopped]) {
    const page = await newPage();
    seen[scenario.name] = await scenario(page);
    await page.page.context().close();
  }
} finally {
  await browser.close();
}
process.stdout.write(`${JSON.stringify({ ...seen, foreign, errors })}\n`);

async function newPage() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  const page = await context.newPage();
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol.startsWith("http") && origin !== new URL(values.url).origin) foreign.push(request.url());
  });
  page.on("pageerror", (error) => errors.push(String(error)));
  // A policy that is broken is told here; refused requests are what these scenarios are about.
  page.on("console", (message) => /policy|violat/i.test(message.text()) && errors.push(message.text()));
  return new PageUnderTest(page);
}

/** Opens the page with its token, and the image. */
async function open(page) {
  await page.visit(`${values.url}#token=${values.token}`);
  return page.openImage(values.image);
}

async function clickOnce(page) {
  const { size, objects } = await page.state();
  await page.click(size[1] * POINT[0], size[0] * POINT[1]);
  return (await page.answered(objects.length + 1)).objects.at(-1);
}

async function asksForTheToken(page) {
  await page.visit(values.url);
  const refused = [];
  for (const attempt of ["wrong", values.token]) {
    await page.byId("token-dialog").waitFor();
    await page.byId("token-input").fill(attempt);
    await page.press("token-submit");
    await page.page.waitForTimeout(500);
    refused.push(await page.byId("token-dialog").isVisible());
  }
  await page.until((state) => state.ready);
  await page.visit(`${values.url}?again#token=${values.token}`);
  await page.until((state) => state.ready);
  return { refused, address: page.page.url() };
}

async function withoutDecoder(page) {
  const problem = JSON.stringify({ type: "about:blank", title: "Not Found", status: 404, detail: "none" });
  await page.page.route("**/v1/decoder**", (route) =>
    route.fulfill({ status: 404, contentType: "application/problem+json", body: problem }),
  );
  const { mode, reason } = await open(page);
  return { mode, reason, object: await clickOnce(page) };
}

/** Also what is said of it to those who look at the badge, and to those who do not see it. */
async function withoutWebAssembly(page) {
  let scripts = 0;
  await page.page.route("**/assets/worker-*.js", async (route) => {
    scripts += 1;
    const response = await route.fetch();
    await route.fulfill({ response, body: `delete globalThis.WebAssembly;\n${await response.text()}` });
  });
  const { mode, reason } = await open(page);
  const said = await page.said();
  const badge = await page.byId("mode").textContent();
  await page.press("mode");
  const notice = await page.byId("notices").textContent();
  await page.byId("notices").getByLabel("Dismiss").click();
  return { scripts, mode, reason, said, badge, notice, object: await clickOnce(page) };
}

async function withLateDecoder(page) {
  await page.page.route("**/v1/decoder/info", async (route) => {
    await new Promise((resolve) => setTimeout(resolve, LATE));
    await route.continue();
  });
  const { mode, reason } = await open(page);
  const first = await clickOnce(page);
  await page.until((state) => state.mode === "browser");
  await page.press("done");
  return { mode, reason, first, second: await clickOnce(page) };
}

async function withoutMouse(page) {
  const { size, objects } = await open(page); // of the scenarios before
  await page.byId("stage").focus();
  // The first arrow shows the crosshair in the middle; two more go there and back.
  for (const key of ["ArrowRight", "ArrowLeft", "ArrowRight", "Enter"]) await page.key(key);
  const object = (await page.answered(objects.length + 1)).objects.at(-1);
  await page.key("Control+z");
  await page.answered(objects.length);
  return { size, object };
}

async function stopped(page) {
  const before = (await open(page)).objects.length;
  await page.press("everything");
  await page.until((state) => state.everything.running);
  await page.press("everything-cancel");
  const { proposals, objects } = await page.until((state) => !state.everything.running);
  return { proposals, added: objects.length - before, object: await clickOnce(page) };
}
