/** The notices of the packages that end up in the page; a licence that is not known to be permissive stops the build. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Plugin } from "vite";

const PERMISSIVE = new Set(["MIT", "ISC", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "0BSD", "CC0-1.0", "Unlicense"]);
const NOTICE_FILE = /^(licen[cs]e|copying|notice)/i;

const AUTHORS: Readonly<Record<string, string>> = {
  "onnxruntime-web": "Microsoft Corporation",
  "onnxruntime-common": "Microsoft Corporation",
};

const NO_WARRANTY_MIT =
  'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE ' +
  "WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS " +
  "OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR " +
  "OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.";

// Of licences under which packages come without the text.
const TEXTS: Readonly<Record<string, string>> = {
  MIT:
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated " +
    'documentation files (the "Software"), to deal in the Software without restriction, including without limitation ' +
    "the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and " +
    "to permit persons to whom the Software is furnished to do so, subject to the following conditions:\n\n" +
    "The above copyright notice and this permission notice shall be included in all copies or substantial portions of " +
    `the Software.\n\n${NO_WARRANTY_MIT}`,
  ISC:
    "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby " +
    "granted, provided that the above copyright notice and this permission notice appear in all copies.\n\n" +
    'THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ' +
    "ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, " +
    "DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, " +
    "WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE " +
    "USE OR PERFORMANCE OF THIS SOFTWARE.",
};

interface Package {
  readonly name: string;
  readonly version: string;
  readonly licence: string;
  readonly notices: string;
}

/** page writes third-party-licences.txt, on what it contains and what its workers do: those are bundled with `worker`. */
export function licences(): { page: Plugin; worker: Plugin } {
  const used = new Set<string>(); // folders of packages
  const moduleParsed = ({ id }: { id: string }): void => {
    const folder = packageFolder(id.replace(/^\0/, "").split("?")[0] as string);
    if (folder) addWithDependencies(folder, used);
  };
  return {
    worker: { name: "anysam-licences-worker", apply: "build", moduleParsed },
    page: {
      name: "anysam-licences",
      apply: "build",
      moduleParsed,
      generateBundle() {
        const packages = [...used].map(readPackage).sort((a, b) => a.name.localeCompare(b.name));
        refuseOthers(packages);
        this.emitFile({ type: "asset", fileName: "third-party-licences.txt", source: noticeText(packages) });
      },
    },
  };
}

/** Raises Error naming every package whose licence is not permissive. */
export function refuseOthers(packages: readonly Pick<Package, "name" | "licence">[]): void {
  const others = packages.filter(({ licence }) => !licence.split(" OR ").some((each) => PERMISSIVE.has(bare(each))));
  if (!others.length) return;
  const list = others.map(({ name, licence }) => `${name} (${licence || "no licence"})`).join(", ");
  throw new Error(`The page may only contain permissive packages (${[...PERMISSIVE].join(", ")}), found: ${list}.`);
}

function bare(licence: string): string {
  return licence.replace(/[()]/g, "").trim();
}

/** Bundles contain what their packages depend on, so that counts as used too. */
function addWithDependencies(folder: string, used: Set<string>): void {
  if (used.has(folder)) return;
  used.add(folder);
  const { dependencies } = JSON.parse(readFileSync(join(folder, "package.json"), "utf-8")) as {
    dependencies?: Record<string, string>;
  };
  for (const name of Object.keys(dependencies ?? {})) {
    const found = findPackage(name, folder);
    if (found) addWithDependencies(found, used);
  }
}

function findPackage(name: string, from: string): string | null {
  for (let folder = from; ; folder = dirname(folder)) {
    const candidate = join(folder, "node_modules", name);
    if (existsSync(join(candidate, "package.json"))) return candidate;
    if (folder === dirname(folder)) return null;
  }
}

function packageFolder(file: string): string | null {
  const match = /^(.*\/node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(file.replaceAll("\\", "/"));
  return match?.[1] ?? null;
}

function readPackage(folder: string): Package {
  const { name, version, license, author } = JSON.parse(readFileSync(join(folder, "package.json"), "utf-8")) as {
    name: string;
    version: string;
    license?: string;
    author?: string | { name: string };
  };
  const files = readdirSync(folder).filter((file) => NOTICE_FILE.test(file)).sort();
  const notices = files.map((file) => readFileSync(join(folder, file), "utf-8").trim()).join("\n\n");
  const holder = AUTHORS[name] ?? (typeof author === "object" ? author.name : (author ?? `the authors of ${name}`));
  return { name, version, licence: license ?? "", notices: notices || standardText(license ?? "", holder) };
}

/** Of a package that comes without its licence's text. Raises Error for a licence whose text is not known here. */
function standardText(licence: string, holder: string): string {
  const text = TEXTS[licence];
  if (!text) throw new Error(`A package by ${holder} comes without the text of its licence (${licence}); add it here.`);
  return `Copyright (c) ${holder}\n\n${text}`;
}

function noticeText(packages: readonly Package[]): string {
  const parts = packages.map(({ name, version, licence, notices }) => `${name} ${version} (${licence})\n\n${notices}\n`);
  const more = "What ONNX Runtime's WebAssembly was made of is listed in ThirdPartyNotices.txt of github.com/microsoft/onnxruntime.";
  return `This page contains these packages, under the terms that follow.\n${more}\n\n${parts.join(`\n${"-".repeat(78)}\n\n`)}`;
}
