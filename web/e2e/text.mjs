// Words in the page of a server with a text model. Prints one JSON object: what each scenario saw.
//   node e2e/text.mjs --url http://127.0.0.1:8000/ --chromium /usr/bin/chromium --image photo.png --texts 'red car|blue dog'

import { runScenarios } from "./page.mjs";

await runScenarios([words], { names: ["image", "texts"] });

function counts({ proposals, objects }) {
  return { proposals, objects: objects.length };
}

/** Each text by itself: what was offered and kept. The last is taken back and discarded. */
async function words(page, { url, image, texts }) {
  await page.visitNewProject(url, "Words");
  await page.openImage(image);
  const found = {};
  const { engineImage } = await page.state();
  for (const text of texts.split("|")) {
    await page.key("Escape");
    await page.key("/"); // the field for words, whatever had the focus
    await page.page.keyboard.type(text);
    await page.key("Enter");
    const offered = await page.until((state) => state.proposals !== null && !state.everything.running);
    const said = await page.said();
    const before = offered.objects.length;
    await page.press("proposals-keep-all");
    const kept = (await page.until((state) => state.objects.length === before + offered.proposals)).objects.slice(before);
    found[text] = { offered: offered.proposals, said, kept };
    await page.byId("text-input").fill("");
  }
  // What was kept last, taken back, is offered again.
  await page.press("undo");
  const undone = await page.until((state) => state.proposals > 0);
  await page.press("proposals-discard");
  const discarded = await page.state();
  await page.saved();
  return { engineImage, found, undone: counts(undone), discarded: counts(discarded) };
}
