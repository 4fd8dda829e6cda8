// The page for those who do not see it, or use no pointer. Prints one JSON object: what each scenario saw.
//   node e2e/accessibility.mjs --url http://127.0.0.1:8000/ --chromium /usr/bin/chromium --image photo.png

import { contrasts } from "./contrasts.mjs";
import { runScenarios } from "./page.mjs";

await runScenarios([names, focus, announcements, contrast], { names: ["image"] });

/** An open image with two objects, one of them chosen, and a category. */
async function prepare(page, { url, image }, name) {
  await page.visitNewProject(url, name);
  const { size } = await page.openImage(image);
  await page.byId("category-name").fill("cup");
  await page.press("category-add");
  await page.until((state) => state.categories.length === 1);
  for (const place of [[0.48, 0.37], [0.8, 0.8]]) {
    const before = (await page.state()).objects.length;
    await page.press("tool-point");
    await page.click(size[1] * place[0], size[0] * place[1]);
    await page.answered(before + 1);
    if (before === 0) await page.press("done");
  }
  await page.press(`object-visible-${(await page.state()).objects[0].id}`);
  return size;
}

/** Does `act` in each state that has other controls. */
async function everywhere(page, act) {
  const found = { image: await act() };
  for (const [name, open] of [["export", "export-button"], ["project", "project-button"], ["help", "help-button"]]) {
    await page.press(open);
    found[name] = await act();
    await page.key("Escape");
  }
  const { id } = (await page.state()).categories[0];
  for (const [name, open] of [["category", `category-rename-${id}`], ["question", "image-remove"]]) {
    await page.press(open);
    found[name] = await act();
    await page.key("Escape");
  }
  await page.press("tool-brush");
  found.brush = await act();
  await page.press("tool-point");
  return found;
}

/** What Chromium tells assistive technology: each part with a role, its name and states. */
async function names(page, values) {
  const cdp = await page.page.context().newCDPSession(page.page);
  const tree = async () => {
    const { nodes } = await cdp.send("Accessibility.getFullAXTree");
    return nodes
      .filter((node) => !node.ignored)
      .map(({ role, name, properties }) => ({
        role: role?.value,
        name: name?.value ?? "",
        states: Object.fromEntries((properties ?? []).map((each) => [each.name, each.value.value])),
      }));
  };
  await page.visitNewProject(values.url, "Names, empty");
  const empty = await tree();
  await prepare(page, values, "Names");
  return { empty, ...(await everywhere(page, tree)) };
}

/** What has the focus: its test id or name, and whether one sees that it has. */
function focused(page) {
  return page.page.evaluate(() => {
    const element = document.activeElement;
    if (!element || element === document.body) return null;
    const { outlineStyle, outlineWidth } = getComputedStyle(element);
    const { left, top, width, height } = element.getBoundingClientRect();
    return {
      id: element.dataset.testid ?? element.getAttribute("aria-label") ?? element.textContent,
      part: element.closest("dialog, [popover], header, main, aside, footer")?.tagName ?? null,
      ring: outlineStyle !== "none" ? parseFloat(outlineWidth) : 0,
      inside: left >= -1 && top >= -1 && left + width <= innerWidth + 1 && top + height <= innerHeight + 1,
    };
  });
}

/** Tab from the beginning to the end; what opens takes the focus, keeps it, and gives it back. */
async function focus(page, values) {
  await prepare(page, values, "Focus");
  await page.byId("project-button").focus();
  await page.key("Shift+Tab"); // a key, so that Chromium shows where the focus is
  const order = [];
  for (let i = 0; i < 60; i++) {
    await page.key("Tab");
    const now = await focused(page);
    if (!now || (order.length > 0 && now.id === order[0].id)) break;
    order.push(now);
  }
  const { id } = (await page.state()).categories[0];
  const opened = {};
  for (const opener of ["help-button", "image-remove", `category-rename-${id}`, "export-button", "project-button"]) {
    await page.byId(opener).focus();
    await page.key("Enter");
    const inside = [await focused(page)];
    // Of a dialog all its controls and more; a menu may be left at its end.
    for (let i = 0; i < (opener === "export-button" || opener === "project-button" ? 2 : 6); i++) {
      await page.key("Tab");
      inside.push(await focused(page));
    }
    await page.key("Escape");
    opened[opener.replace(`-${id}`, "")] = { inside, after: (await focused(page))?.id.replace(`-${id}`, "") };
  }
  // A question that a menu asks: the focus goes back to the menu's button.
  await page.byId("project-button").focus();
  await page.key("Enter");
  await page.byId("project-rename").focus();
  await page.key("Enter");
  const asked = await focused(page);
  await page.key("Escape");
  const afterQuestion = (await focused(page))?.id;
  const toggled = [];
  for (let i = 0; i < 3; i++) {
    await page.press("export-button");
    toggled.push(await page.byId("export-menu").isVisible());
  }
  return { order, opened, asked: asked.id, afterQuestion, toggled };
}

/** What the live regions say, in order, while the keyboard does the work. */
async function announcements(page, { url, image }) {
  await page.visitNewProject(url, "Announcements");
  await page.page.evaluate(() => {
    window.spoken = [];
    for (const id of ["status", "notices"]) {
      const region = document.querySelector(`[data-testid=${id}]`);
      const live = region.getAttribute("aria-live") ?? { alert: "assertive", status: "polite" }[region.getAttribute("role")];
      new MutationObserver(() => window.spoken.push([live, region.textContent])).observe(region, { childList: true, subtree: true, characterData: true });
    }
  });
  const since = () => page.page.evaluate(() => window.spoken.splice(0));
  const found = {};
  await page.openImage(image);
  await page.page.waitForTimeout(50);
  found.opened = await since();
  await page.byId("stage").focus();
  for (const key of ["ArrowRight", "Enter"]) await page.key(key);
  const { area } = (await page.answered(1)).objects[0];
  found.clicked = await since();
  await page.key("Control+z");
  await page.answered(0);
  found.undone = await since();
  await page.page.route("**/v1/projects/*/export**", (route) => route.fulfill({ status: 507, contentType: "application/problem+json", body: '{"status": 507, "title": "Full", "detail": "The disk is full."}' }));
  await page.key("Control+Shift+z");
  await page.saved();
  await page.press("export-button");
  await page.press("export-coco");
  await page.byId("notices").getByText("The disk is full").waitFor();
  found.failed = await since();
  await page.press("everything");
  await page.until((state) => state.everything.running);
  found.started = await since();
  const bar = page.byId("everything-progress");
  found.progress = [await bar.getAttribute("aria-label"), await bar.evaluate((element) => element.position >= 0 || element.hasAttribute("value"))];
  await page.press("everything-cancel");
  await page.until((state) => !state.everything.running);
  found.cancelled = await since();
  return { ...found, area };
}

/** The texts of each state in light and dark, with how well they can be told from their ground. */
async function contrast(page, values) {
  await prepare(page, values, "Contrast");
  const found = {};
  for (const scheme of ["light", "dark"]) {
    await page.page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    found[scheme] = await everywhere(page, () => contrasts(page.page));
  }
  await page.visitNewProject(values.url, "Contrast, empty");
  found.dark.empty = await contrasts(page.page);
  await page.page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
  found.light.empty = await contrasts(page.page);
  return found;
}
