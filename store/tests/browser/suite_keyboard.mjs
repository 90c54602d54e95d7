// The same without a mouse: every step by keys, and one sees where one is.
import assert from "node:assert/strict";
import { until } from "./harness.mjs";

/** Presses Tab until what has the focus matches. It must be seen: an outline, or a frame of its own. */
async function tabTo(page, selector, key = "Tab") {
  for (let presses = 0; presses < 150; presses += 1) {
    const found = await page.evaluate((selector) => {
      let at = document.activeElement;
      while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
      if (!at?.matches(selector)) return null;
      const style = getComputedStyle(at);
      return { outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0, seen: at.getClientRects().length > 0 };
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
