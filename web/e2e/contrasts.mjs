/** How well the texts of a page can be told from what they stand on, by WCAG 2. */

/**
 * For each text that is shown and can be used: the text, its colour and its ground as [red, green, blue], 0 to 255, after all
 * that is translucent. Disabled controls are left out, as WCAG does, and what stands on pictures and gradients: their ground
 * is not one colour.
 */
export async function contrasts(page) {
  // Two frames: after a change of the scheme the first one may have old colours beside new ones.
  await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve()))));
  return page.evaluate(() => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
      context.clearRect(0, 0, 1, 1);
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
      return [r, g, b, a / 255];
    };
    const over = (top, below) => below.map((value, i) => (i < 3 ? top[i] * top[3] + value * (1 - top[3]) : 1));
    const ground = (element) => {
      const layers = [];
      for (let each = element; each; each = each.parentElement) {
        const style = getComputedStyle(each);
        if (style.backgroundImage !== "none") return null;
        layers.push(rgba(style.backgroundColor));
        if (layers.at(-1)[3] === 1) break;
        if (each.matches("main, .hud, .chooser")) break; // what lies under it is the image
      }
      return layers.reverse().reduce((below, top) => over(top, below), rgba(getComputedStyle(document.body).backgroundColor));
    };
    const opacity = (element) => {
      let all = 1;
      for (let each = element; each; each = each.parentElement) all *= Number(getComputedStyle(each).opacity);
      return all;
    };
    const top = document.querySelector("dialog[open]") ?? document.querySelector("[popover]:popover-open") ?? document.body;
    const found = [];
    const add = (element, text, colour, seen) => {
      const below = ground(element);
      if (!below || seen === 0) return;
      const [r, g, b, a] = rgba(colour);
      found.push({ text, of: element.className.toString(), colour: over([r, g, b, a * seen], below).slice(0, 3), ground: below.slice(0, 3) });
    };
    for (const element of top.querySelectorAll("*")) {
      if (!element.checkVisibility({ visibilityProperty: true }) || element.closest(":disabled, .visually-hidden, .thumb, option")) continue;
      const style = getComputedStyle(element);
      const text = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data.trim()).join(" ").trim();
      if (text) add(element, text, style.color, opacity(element));
      if (element.placeholder && !element.value) {
        const hint = getComputedStyle(element, "::placeholder");
        add(element, element.placeholder, hint.color, opacity(element) * Number(hint.opacity));
      }
    }
    return found;
  });
}
