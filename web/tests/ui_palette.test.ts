import { expect, test } from "vitest";
import { colourOfId, idOfRareColour, PALETTE } from "../src/state/palette";
import { makeId } from "../src/state/place";

test("objects made one after another have colours of their own, as long as there are any", () => {
  const ids: string[] = [];
  for (let i = 0; i < PALETTE.length / 2; i += 1) ids.push(idOfRareColour(makeId, ids));
  expect(new Set(ids.map(colourOfId)).size).toBe(ids.length);
});

test("colours are taken in turn when all are used", () => {
  let next = 0;
  const make = () => String((next += 1));
  const used = PALETTE.slice(1).map((colour) => {
    let id = make();
    while (colourOfId(id) !== colour) id = make();
    return id;
  });
  expect(colourOfId(idOfRareColour(make, used))).toBe(PALETTE[0]);
});
