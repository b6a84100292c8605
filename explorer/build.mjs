// Build the explorer's page into the package: one script, one style sheet, and the licences of what is bundled.
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "seamcurate", "explore", "static");
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.js", style: "src/style.css" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  metafile: true,
  legalComments: "none",
  // Mosaic can also load DuckDB from a content network; this page never leaves the machine.
  alias: { "@duckdb/duckdb-wasm": "./src/no_wasm.js" },
});
cpSync(join(here, "src", "index.html"), join(out, "index.html"));

const bundled = new Set(
  Object.keys(metafile.inputs)
    .filter((file) => file.includes("node_modules/"))
    .map((file) => file.slice(file.lastIndexOf("node_modules/") + 13).match(/^(@[^/]+\/[^/]+|[^/]+)/)[1]),
);
const licences = [...bundled].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
  if (!file && !license) throw new Error(`${name} says nothing of its licence`);
  const text = file ? readFileSync(join(folder, file), "utf8").trim() : "The package carries no licence text.";
  return `${name} ${version} (${license})\n\n${text}\n`;
});
writeFileSync(
  join(out, "THIRD_PARTY.txt"),
  `The explorer's script contains these packages.\n\n${licences.join(`\n${"─".repeat(80)}\n\n`)}`,
);
