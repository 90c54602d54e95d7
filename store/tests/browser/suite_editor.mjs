// The policy's editor: the text and the form are one document, mistakes have their line, values complete.
import assert from "node:assert/strict";
import { inBothThemes, until, violations } from "./harness.mjs";

/** Puts a text where the cursor of the editor is. */
const paste = (page, text) =>
  page.locator(".editor .cm-content").evaluate((content, text) => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text/plain", text);
    content.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
  }, text);

/** Puts a text into the editor, in the place of what is there. */
async function write(page, text) {
  await page.locator(".editor .cm-content").click();
  await page.keyboard.press("Control+A");
  await paste(page, text);
  await until("the text", async () => (await page.inputValue("#document")) === text);
}

/** Whether an element is within the window. */
const isInSight = (page, selector) =>
  page.locator(selector).evaluate((element) => {
    const place = element.getBoundingClientRect();
    return place.top >= 0 && place.bottom <= innerHeight;
  });

/** What the text says the form says, and the other way round; also while the text is no YAML. */
export async function views(browser, admin) {
  const { page } = browser;
  await browser.open("/policies/new");
  await write(
    page,
    "name: two-views\ndescription: Both say the same\nextends: [org-base, not-used]\negress-policy: block\nallowed-endpoints:\n  - a.test:443 # why\n  - b.test\ndenied-endpoints: [c.test]\nlockdown-mode:\n  enabled: true\n  detections: [Reverse-Shell]\nfail-on-block: true\non-failure: closed\n",
  );
  const fields = async (...names) => Object.fromEntries(await Promise.all(names.map(async (name) => [name, await page.inputValue(`#f-${name}`)])));
  assert.deepEqual(await fields("name", "description", "extends", "mode", "allowed", "denied", "failure"), {
    name: "two-views", description: "Both say the same", extends: "org-base not-used", mode: "block", allowed: "a.test:443\nb.test", denied: "c.test", failure: "closed",
  });
  const ticked = await page.locator("[data-policy-form] input:checked").evaluateAll((boxes) => boxes.map((box) => `${box.name}${box.value === "on" ? "" : ` ${box.value}`}`));
  assert.deepEqual(ticked, ["lockdown-mode.enabled", "lockdown-mode.detections Reverse-Shell", "fail-on-block"]);
  // A change in the form is one in the text, and of nothing else.
  await page.fill("#f-extends", "org-base not-used hello-build");
  const text = await page.inputValue("#document");
  assert.match(text, /^extends:\n\s*- org-base\n\s*- not-used\n\s*- hello-build\n/m);
  assert.match(text, /- a\.test:443 # why\n/, "a comment stays while one edits");
  await page.fill("#f-extends", "");
  assert.doesNotMatch(await page.inputValue("#document"), /extends/);
  await page.fill("#f-extends", "org-base");
  // Text that is no YAML: the form says so, and waits.
  assert.equal(await page.isVisible("[data-broken]"), false);
  await write(page, "name: [two-views\n");
  assert.equal(await page.isVisible("[data-broken]"), true);
  assert.equal(await page.isDisabled("#f-name"), true);
  assert.deepEqual(await violations(page), [], "while the text is no YAML");
  await write(page, "name: two-views\nextends: [org-base, not-used]\nallowed-endpoints:\n  - a.test:443 # why\n");
  assert.equal(await page.isVisible("[data-broken]"), false);
  assert.equal(await page.isDisabled("#f-name"), false);
  assert.equal(await page.inputValue("#f-extends"), "org-base not-used");
  // What saves both is in sight wherever one is, on a phone as well.
  for (const width of [390, 1280]) {
    await page.setViewportSize({ width, height: 860 });
    for (const there of ["#f-name", "#f-failure"]) {
      await page.locator(there).focus();
      assert.ok((await isInSight(page, "[data-save]")) && (await isInSight(page, there)), `${there} and what saves it at ${width} px`);
    }
  }
  // The gutter is as high as the box, also with few lines.
  const heights = await page.evaluate(() => {
    const box = document.querySelector(".editor");
    return [box.clientHeight, box.shadowRoot.querySelector(".cm-gutters").getBoundingClientRect().height];
  });
  assert.ok(Math.abs(heights[0] - heights[1]) < 3, `${heights}`);
  // A version has no comments, and one is told before.
  assert.match(await page.textContent("#policy-text .help"), /comments and layout are not kept/);
  await page.fill("#comment", "from both");
  await page.click("button[data-save]");
  await page.waitForURL("**/policies/two-views*");
  assert.deepEqual((await admin.get("/policies/two-views")).document.extends, ["org-base", "not-used"]);
  assert.doesNotMatch(await page.inputValue("#document"), /# why/);
  await browser.open("/policies/two-views/delete");
  await page.click("button.danger");
  await page.waitForURL("**/policies");
}

/** The messages and the completion of the editor. */
export async function typing(browser, admin) {
  const { page } = browser;
  await browser.open("/policies/new");
  const wrong = "name: typed\negress-policy: block\nallowed-endpoints:\n  - a.test:443\n  - b.test:99999\n";
  await write(page, wrong);
  const said = await admin.call("POST", "/policies:validate?source=policy.yaml", wrong).then(
    () => assert.fail("the store takes it"),
    (error) => JSON.parse(error.message.slice(error.message.indexOf("{"))),
  );
  const [mistake] = said.errors;
  assert.match(mistake.place, /:5(:\d+)?$/, JSON.stringify(said));
  const marker = page.locator(".editor .cm-lint-marker-error");
  await marker.waitFor();
  const [at, line] = [await marker.boundingBox(), await page.locator(".editor .cm-line >> nth=4").boundingBox()];
  assert.ok(at.y >= line.y - 1 && at.y + at.height <= line.y + line.height + 1, `the marker at ${JSON.stringify(at)}, its line at ${JSON.stringify(line)}`);
  await marker.hover();
  const told = await page.locator(".editor .cm-tooltip-lint").textContent();
  for (const words of [mistake.message, mistake.hint]) assert.ok(told.includes(words), `${words} in ${told}`);
  await inBothThemes(page, "a message");
  await page.mouse.move(0, 0);
  // Without the mistake there is no marker.
  await write(page, wrong.replace("99999", "443"));
  await until("no marker", async () => (await marker.count()) === 0);
  // Values, of a key, of a list in brackets, of a list of lines.
  const option = (text) => page.locator(".editor .cm-tooltip-autocomplete .cm-completionLabel").filter({ hasText: new RegExp(`^${text}$`) });
  await write(page, "name: typed\negress-policy: ");
  await page.keyboard.type("b");
  await option("block").waitFor();
  assert.deepEqual(await violations(page), [], "what can be written");
  await page.keyboard.press("Enter");
  await until("the value", async () => (await page.inputValue("#document")) === "name: typed\negress-policy: block");
  for (const begun of ["lockdown-mode:\n  detections: [Privileged-Container, ", "lockdown-mode:\n  detections:\n    - "]) {
    await write(page, begun);
    await page.keyboard.type("R");
    await option("Reverse-Shell").waitFor();
    await option("Runner-Worker-Memory-Read").waitFor();
    await page.keyboard.press("Escape");
  }
  // A long list in brackets keeps nobody waiting: what is typed behind it is there, and completes.
  const many = Array.from({ length: 40 }, (_, at) => `endpoint-${at}.test:443`).join(", ");
  await write(page, `name: typed\nallowed-endpoints: [${many}, last.test:44`);
  await page.keyboard.press("Control+Space");
  await page.keyboard.type("3]");
  await paste(page, "\nfail-on-block: ");
  await page.keyboard.type("t");
  await option("true").waitFor();
  await page.keyboard.press("Escape");
}

/** What the store finds worth a look stands below a policy. */
export async function lint(browser, admin) {
  const { page } = browser;
  await admin.call("PUT", "/policies/worth-a-look", "name: worth-a-look\negress-policy: block\nallowed-endpoints: ['*.amazonaws.com:443', '10.0.0.0/7:443', a.test, a.test]\nlockdown-mode: {enabled: true, detections: []}\n");
  const { items } = await admin.get("/policies/worth-a-look/lint");
  assert.ok(items.length >= 3, JSON.stringify(items));
  await browser.open("/policies/worth-a-look");
  const shown = await page.locator("#lint li").allTextContents();
  assert.equal(shown.length, items.length);
  items.forEach((item, at) => {
    for (const words of [item.endpoint ?? "", item.message, item.hint]) assert.ok(shown[at].includes(words), `${words} in ${shown[at]}`);
  });
  assert.deepEqual(await violations(page), []);
  await browser.open("/policies/not-used");
  assert.match(await page.textContent("#lint"), /Nothing was found/);
  await browser.open("/policies/worth-a-look/delete");
  await page.click("button.danger");
  await page.waitForURL("**/policies");
}
