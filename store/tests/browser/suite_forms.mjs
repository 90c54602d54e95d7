// Hostile texts in every field of every form: what people type is as little trusted as what jobs say.
import assert from "node:assert/strict";
import { violations } from "./harness.mjs";
import { HOSTILE } from "./seed.mjs";

/** Longer than any field may be. */
const LONG = `${HOSTILE} `.repeat(400);

/** What people may write as a name: it is kept, and shown. */
const SHORT = HOSTILE.replace(/[\u200b-\u2069]/g, "").slice(0, 90).trim();

/**
 * Fills one form of a page and says what it is; nothing when it has no fields. `everything`: fields that people don't see as
 * well, and choices that are not offered.
 */
function fill([index, given, everything]) {
  const form = document.querySelectorAll("main form, dialog form")[index];
  if (!form) return null;
  // An address has its end sooner than a body.
  const method = form.getAttribute("method") ?? "get";
  const text = method === "get" ? given.slice(0, 2000) : given;
  const names = [];
  for (const control of form.elements) {
    if (!control.name || control.name === "proof") continue;
    const isSeen = control.offsetParent !== null && !control.disabled;
    if (!everything && !(isSeen && ["text", "search", "password", "textarea"].includes(control.type))) continue;
    control.disabled = false;
    if (control.type === "number") control.type = "text";
    if (control.tagName === "SELECT") control.add(new Option(text, text));
    control.removeAttribute("maxlength");
    if (control.type === "checkbox") control.checked = true;
    control.value = text;
    names.push(control.name);
  }
  return names.length === 0 ? null : `${method} ${new URL(form.getAttribute("action"), location).pathname.replace(/[0-9a-f]{32}/g, "ID")} ${names.join(" ")}`;
}

function send(index) {
  window.isBefore = true;
  const form = document.querySelectorAll("main form, dialog form")[index];
  HTMLFormElement.prototype.submit.call(form);
}

/** Every form of `paths`, each with all fields hostile and too long, and with the fields that people see. */
export async function everyField(browser, paths) {
  const { page } = browser;
  const done = new Set();
  for (const path of paths) {
    // Many pages have the same forms: it is looked at first which of this page are new.
    await browser.open(path);
    let isFresh = true;
    for (const [text, everything] of [[LONG, true], [SHORT, false]]) {
      for (let index = 0; ; index += 1) {
        if (!isFresh) await browser.open(path);
        if (index >= (await page.locator("main form, dialog form").count())) break;
        isFresh = false;
        const form = await page.evaluate(fill, [index, text, everything]);
        if (form === null || done.has(`${everything} ${form}`)) {
          isFresh = true;
          continue;
        }
        done.add(`${everything} ${form}`);
        const isAnswer = (response) => response.request().isNavigationRequest() && (response.status() < 300 || response.status() >= 400);
        const [answer] = await Promise.all([page.waitForResponse(isAnswer), page.evaluate(send, index)]);
        await page.waitForFunction(() => !window.isBefore && document.readyState === "complete");
        assert.ok(answer.status() < 500, `${form} of ${path}: ${answer.status()}`);
        await harmless(page, `${form} of ${path}`);
      }
    }
  }
  assert.ok(done.size >= 40, `${done.size} forms were found`);
  return [...done];
}

/** Elements that no template has, also within the editor; its own images have no address and stand for nothing. */
export function foreign() {
  const roots = [document.querySelector("main"), ...[...document.querySelectorAll(".editor")].map((editor) => editor.shadowRoot)];
  const found = roots.flatMap((root) => [...(root?.querySelectorAll("script, img:not(.cm-widgetBuffer), iframe, object, svg:not([aria-hidden]), [onerror], [onload], [onclick]") ?? [])]);
  return found.map((element) => element.outerHTML.slice(0, 200));
}

/** Nothing of a text became markup, ran, or left its place. */
export async function harmless(page, what) {
  assert.equal(await page.evaluate(() => window.hacked), undefined, what);
  assert.deepEqual(await page.evaluate(foreign), [], `${what}: markup`);
  const links = await page.evaluate(() => [...document.querySelectorAll("main a[href]")].map((link) => link.protocol));
  assert.deepEqual(links.filter((scheme) => !["http:", "https:"].includes(scheme)), [], `${what}: links`);
  assert.equal(await page.locator("html").evaluate((html) => html.hasAttribute("onload") || document.cookie.includes("a=b")), false, what);
}

/** What was kept is shown on these pages, and nothing else comes of it. */
export async function whatWasKept(browser, paths) {
  for (const path of paths) {
    assert.equal(await browser.open(path), 200, path);
    await harmless(browser.page, path);
    assert.deepEqual(await violations(browser.page), [], path);
    const wide = await browser.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${path}: ${wide} px too wide`);
  }
}
