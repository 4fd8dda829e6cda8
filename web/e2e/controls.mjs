/** What can be pressed or filled in on a page, and where it lies. */

/**
 * For each control that is shown: name, role, box [left, top, width, height], whether it is disabled, whether it lies in the
 * window, and what lies over its middle, if something does. Of what scrolls, only what is wholly in sight counts.
 */
export function controls(page) {
  return page.evaluate(() => {
    const top = document.querySelector("dialog[open]") ?? document.querySelector("[popover]:popover-open") ?? document;
    const all = [...top.querySelectorAll("button, input, select, [role=option], [tabindex='0']")];
    const within = (x, y) => x >= 0 && y >= 0 && x <= innerWidth && y <= innerHeight;
    return all.flatMap((element) => {
      if (!element.checkVisibility({ visibilityProperty: true })) return [];
      const { left, top: y, width, height } = element.getBoundingClientRect();
      if (element.closest(".visually-hidden, [inert]")) return [];
      const [cx, cy] = [left + width / 2, y + height / 2];
      for (let box = element.parentElement; box; box = box.parentElement) {
        const frame = box.getBoundingClientRect();
        const scrolls = /auto|scroll/.test(getComputedStyle(box).overflowY + getComputedStyle(box).overflowX);
        const cut = left < frame.left || y < frame.top || left + width > frame.right || y + height > frame.bottom;
        if (scrolls && cut) return [];
      }
      const over = within(cx, cy) ? document.elementFromPoint(cx, cy) : null;
      const covered = over && !element.contains(over) && !over.contains(element) && element.getAttribute("role") !== "application";
      return [
        {
          name: element.getAttribute("aria-label") ?? element.textContent.trim(),
          testid: element.dataset.testid ?? null,
          box: [left, y, width, height],
          disabled: element.disabled === true,
          inside: within(left + 0.5, y + 0.5) && within(left + width - 0.5, y + height - 0.5),
          coveredBy: covered ? over.className.toString() || over.tagName : null,
        },
      ];
    });
  });
}
