// What the parts of the suite have in common.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** The rules for WCAG 2.2 AA that look at colours. */
const COLOURS = ["color-contrast", "link-in-text-block"];
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];

/**
 * The violations that axe finds. Its script is put in by the debugger, because the page's policy lets no script in.
 * `colours`: only rules that depend on colours, for a page whose markup was looked at in another theme.
 */
export async function violations(page, { colours = false } = {}) {
  await page.evaluate(AXE);
  const only = colours ? { type: "rule", values: COLOURS } : { type: "tag", values: TAGS };
  const found = await page.evaluate((only) => window.axe.run(document, { runOnly: only, resultTypes: ["violations"] }), only);
  return found.violations.map((one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => `${node.html.slice(0, 160)} (${node.failureSummary.slice(0, 200)})`).join(" | ")}`);
}

/** axe in both themes, of what stands on a page now. The markup is the same, so that the dark one looks at colours alone. */
export async function inBothThemes(page, what) {
  assert.deepEqual(await violations(page), [], `${what}, light`);
  // Without motion: colours on their way from one theme to the other are nobody's.
  await page.emulateMedia({ colorScheme: "dark", reducedMotion: "reduce" });
  assert.deepEqual(await violations(page, { colours: true }), [], `${what}, dark`);
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "no-preference" });
}

/** A part of the suite; the first that fails ends it. */
export async function part(name, run) {
  const start = Date.now();
  try {
    await run();
  } catch (error) {
    console.error(`FAILED ${name}`);
    throw error;
  }
  console.log(`${name}: ${Date.now() - start} ms`);
}

/** Looks again and again until there is something. */
export async function until(what, look) {
  const end = Date.now() + Number(process.env.PORTCULLIS_TEST_PATIENCE_SECONDS ?? 20) * 1000;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Waits until a page has so many of something: what a click changes is there a moment later. */
export async function counted(locator, number) {
  await until(`${number} of ${locator}`, async () => (await locator.count()) === number);
}

/** The names of all that was asked of the server by a browser and was not refused: `POST /policies/x/attach`. */
export const asked = new Set();

/** Those of `pages` (`GET /policies/{name}`, one a line) that no browser has asked for. */
export function neverAsked(pages) {
  const literals = (path) => path.split("{").length;
  const patterns = pages.split("\n").filter(Boolean).sort((one, other) => literals(one) - literals(other)).map((page) => [page, new RegExp(`^${page.replace(/[.]/g, "\\$&").replace(/\{\w+\}/g, "[^/]+")}$`)]);
  const seen = new Set();
  for (const request of asked) {
    const found = patterns.find(([, pattern]) => pattern.test(request));
    if (found) seen.add(found[0]);
  }
  return patterns.map(([page]) => page).filter((page) => !seen.has(page));
}
