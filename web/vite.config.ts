import { defineConfig } from "vitest/config";
import { licences } from "./licences.ts";

const SERVER = process.env.ANYSAM_SERVER ?? "http://127.0.0.1:8000";

// Of onnxruntime-web the build without its WebAssembly inside: that is a file of its own, which the browser compiles
// while it loads.
const CONDITIONS = ["onnxruntime-web-use-extern-wasm", "module", "browser", "development|production"];

const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

const NOTICES = licences();

export default defineConfig({
  plugins: [NOTICES.page],
  resolve: { conditions: CONDITIONS },
  build: {
    outDir: "../src/anysam/serve/page",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the page's policy allows no data: scripts
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 1000,
  },
  worker: { format: "es", plugins: () => [NOTICES.worker] },
  server: { headers: ISOLATED, proxy: { "/v1": SERVER, "/readyz": SERVER } },
  preview: { headers: ISOLATED, proxy: { "/v1": SERVER, "/readyz": SERVER } },
  test: { include: ["tests/**/*.test.ts"], environment: "node", testTimeout: 60_000 },
});
