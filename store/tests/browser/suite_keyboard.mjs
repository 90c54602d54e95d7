// The same without a mouse: every step by keys, and one sees where one is.
import assert from "node:assert/strict";
import { counted, inBothThemes, until } from "./harness.mjs";

/** Presses Tab until what has the focus matches. It must be seen: an outline, or a frame of its own. */
export async function tabTo(page, selector, key = "Tab") {
  for (let presses = 0; presses < 150; presses += 1) {
    const found = await page.evaluate((selector) => {
      let at = document.activeElement;
      while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
      if (!at?.matches(selector)) return null;
      // The frame of the editor is that of its place.
      const framed = [at, at.getRootNode().host].filter(Boolean).map((element) => getComputedStyle(element));
      return { outline: framed.some((style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0), seen: at.getClientRects().length > 0 };
    }, selector);
    if (found) {
      assert.deepEqual(found, { outline: true, seen: true }, selector);
      return;
    }
    await page.keyboard.press(key);
  }
  throw new Error(`the keyboard does not get to ${selector}`);
}

/** Attaches a policy from the list of policies, and detaches it on its page. */
export async function attach(browser, admin, policy) {
  const { page } = browser;
  await browser.open("/policies");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
  await page.keyboard.press("Enter");
  await tabTo(page, `button[aria-label='Actions for ${policy}']`);
  await page.keyboard.press("Enter");
  await page.waitForSelector(`#menu-${policy}:popover-open`);
  await tabTo(page, `#menu-${policy} a[href$='/attach']`);
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog[open]");
  // Escape closes it, and one is where one was.
  await page.keyboard.press("Escape");
  await until("the dialog to close", async () => (await page.locator("dialog[open]").count()) === 0);
  await tabTo(page, `button[aria-label='Actions for ${policy}']`, "Shift+Tab");
  await page.keyboard.press("Enter");
  await page.waitForSelector(`#menu-${policy}:popover-open`);
  await tabTo(page, `#menu-${policy} a[href$='/attach']`);
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog[open]");
  await tabTo(page, "dialog select#kind");
  await page.keyboard.type("Org");
  await tabTo(page, "dialog input#target");
  await page.keyboard.type("by-keyboard");
  await tabTo(page, "dialog button.primary");
  await page.keyboard.press("Enter");
  await page.waitForURL(`**/policies/${policy}*`);
  await page.waitForSelector(".notice >> text=Attached");
  assert.deepEqual((await admin.get(`/policies/${policy}`)).attachments, [{ organization: "by-keyboard" }]);
  await tabTo(page, "button[aria-label='Detach from by-keyboard']");
  await page.keyboard.press("Space");
  await page.waitForSelector(".notice >> text=Detached");
  assert.deepEqual((await admin.get(`/policies/${policy}`)).attachments, []);
}

/** Suppresses a detection, beginning at the list. */
export async function suppress(browser, admin, detection) {
  const { page } = browser;
  await browser.open("/detections");
  await tabTo(page, `a[href='/detections/${detection.id}']`);
  await page.keyboard.press("Enter");
  await page.waitForURL(`**/detections/${detection.id}`);
  await tabTo(page, ".actions a.primary");
  await page.keyboard.press("Enter");
  await page.waitForURL("**/suppress");
  await tabTo(page, "#days");
  await page.keyboard.type("7");
  await tabTo(page, "#reason");
  await page.keyboard.type("known, by keyboard");
  await page.keyboard.press("Enter");
  await page.waitForURL(`**/detections/${detection.id}*`);
  assert.equal((await admin.get(`/detections/${detection.id}`)).state, "suppressed");
  const [rule] = (await admin.get("/suppressions")).items;
  assert.deepEqual([rule.reason, rule.kind ?? rule.type], ["known, by keyboard", detection.type ?? detection.kind]);
  const days = (new Date(rule.expires_at) - Date.now()) / 86_400_000;
  assert.ok(days > 6.9 && days < 7.1, `it ends in ${days} days`);
  await browser.open("/suppressions");
  await tabTo(page, "td.tools button");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".notice");
  assert.equal((await admin.get(`/detections/${detection.id}`)).state, "new");
}

/** Writes a policy in the editor and saves it: the editor takes Tab for nothing, so that one gets out of it. */
export async function edit(browser, admin) {
  const { page } = browser;
  await browser.open("/policies/new");
  await page.waitForSelector(".editor .cm-content");
  await tabTo(page, ".cm-content");
  await page.keyboard.press("Control+a");
  await page.keyboard.type("name: by-keys");
  await page.keyboard.press("Enter");
  await page.keyboard.type("egress-policy: b");
  // What completes is offered, chosen and taken by keys; axe looks at it in both themes.
  await page.waitForSelector(".editor .cm-tooltip-autocomplete >> text=block");
  await inBothThemes(page, "a list of completions");
  // Just opened, it does not take Enter for a choice yet.
  await until("the completion", async () => {
    await page.keyboard.press("Enter");
    return /egress-policy: block/.test(await page.inputValue("#document"));
  });
  await page.keyboard.press("Escape");
  await tabTo(page, "#comment");
  await page.keyboard.type("without a mouse");
  await tabTo(page, "button[data-save]");
  await page.keyboard.press("Enter");
  await page.waitForURL("**/policies/by-keys*");
  const made = await admin.get("/policies/by-keys");
  assert.deepEqual([made.egress_policy, (await admin.get("/policies/by-keys/versions")).items[0].comment], ["block", "without a mouse"]);
  await admin.call("DELETE", "/policies/by-keys");
}

/** Columns, downloads and "add to policy" of a job's calls. */
export async function calls(browser, admin, job) {
  const { page } = browser;
  await admin.call("POST", "/policies/hello-build/attachments", { repository: "octo/hello" }).catch(() => null);
  const before = (await admin.get("/policies/hello-build")).document.allowed_endpoints;
  await browser.open(`/jobs/${job}?endpoint=collect.evil`);
  await tabTo(page, "button[popovertarget='columns']");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#columns:popover-open");
  await tabTo(page, "#columns input[value='packets']");
  await page.keyboard.press("Space");
  await until("the column", () => page.locator("th[data-column='packets']").isVisible());
  await page.keyboard.press("Escape");
  await counted(page.locator("#columns:popover-open"), 0);
  await tabTo(page, "button[popovertarget='downloads']");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#downloads:popover-open");
  await tabTo(page, "#downloads a[href*='.csv']");
  const [file] = await Promise.all([page.waitForEvent("download"), page.keyboard.press("Enter")]);
  assert.equal(file.suggestedFilename(), `${job}-network.csv`);
  await page.keyboard.press("Escape");
  await tabTo(page, "#rows details > summary");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#rows details[open]");
  await tabTo(page, "#rows .tools a");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".diff .added >> text=collect.evil.test:443");
  await tabTo(page, "#comment");
  await page.keyboard.type("by keyboard");
  await tabTo(page, "main button.primary");
  await page.keyboard.press("Enter");
  await page.waitForURL("**/policies/hello-build*");
  const { document } = await admin.get("/policies/hello-build");
  assert.deepEqual(document.allowed_endpoints, [...before, "collect.evil.test:443"]);
  await page.evaluate(() => localStorage.clear());
}
