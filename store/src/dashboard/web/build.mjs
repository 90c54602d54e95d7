// Bundles the dashboard's scripts and styles: `node build.mjs SOURCE TARGET`. Names carry a hash of the contents, so that
// browsers may keep them for good; each is written packed as well. `manifest.txt` lists what was made.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { basename, extname, join } from "node:path";
import { gzipSync } from "node:zlib";

const [source, target] = process.argv.slice(2);
const types = { ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml" };

const result = await build({
  entryPoints: ["app.js", "chart.js", "editor.js", "app.css"].map((name) => join(source, name)),
  bundle: true,
  minify: true,
  write: false,
  outdir: target,
  format: "iife",
  target: ["chrome123", "firefox120", "safari17.5"],
  legalComments: "inline",
  logLevel: "error",
  // The sources lie elsewhere than what npm installed.
  nodePaths: [join(process.cwd(), "node_modules")],
});

const files = result.outputFiles.map((file) => [basename(file.path), Buffer.from(file.contents)]);
files.push(["icon.svg", readFileSync(join(source, "icon.svg"))]);
const manifest = files.map(([name, body]) => {
  const hash = createHash("sha256").update(body).digest("hex").slice(0, 12);
  const extension = extname(name);
  const file = `${basename(name, extension)}-${hash}${extension}`;
  writeFileSync(join(target, file), body);
  writeFileSync(join(target, `${file}.gz`), gzipSync(body, { level: 9 }));
  return `${name}\t${file}\t${types[extension]}`;
});
writeFileSync(join(target, "manifest.txt"), manifest.join("\n") + "\n");
