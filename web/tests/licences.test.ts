import { expect, test } from "vitest";
import { refuseOthers } from "../licences";

test("permissive licences pass, a choice with one of them too", () => {
  expect(() =>
    refuseOthers([
      { name: "a", licence: "MIT" },
      { name: "b", licence: "(GPL-3.0 OR Apache-2.0)" },
    ]),
  ).not.toThrow();
});

test.each(["AGPL-3.0", "", "SEE LICENSE IN LICENSE", "MIT AND GPL-2.0"])("anything else stops the build: '%s'", (licence) => {
  expect(() => refuseOthers([{ name: "some-package", licence }])).toThrow("some-package");
});
