// What people do with the dashboard, in a browser against a real server: `node suite.mjs SERVER TOKEN`. Each part says its
// name; the first that fails ends it with what was seen.
import assert from "node:assert/strict";
import { Browser } from "./browser.mjs";
import { counted, inBothThemes, neverAsked, part, until, violations } from "./harness.mjs";
import { Api, HOSTILE, seed } from "./seed.mjs";
import * as choices from "./suite_choices.mjs";
import * as editor from "./suite_editor.mjs";
import * as forms from "./suite_forms.mjs";
import * as integrations from "./suite_integrations.mjs";
import * as keyboard from "./suite_keyboard.mjs";
import * as looks from "./suite_looks.mjs";
import * as more from "./suite_more.mjs";
import * as pages from "./suite_pages.mjs";

const [server, token] = process.argv.slice(2);
const admin = new Api(server, token);
const filled = await (async () => {
  const empty = await Browser.start(server);
  await part("empty pages say what to do next", async () => {
    assert.equal(await empty.open("/"), 200, "the sign-in page");
    assert.match(empty.page.url(), /\/sign-in$/);
    await pages.signIn(empty);
    await empty.signIn(token);
    await pages.empty(empty);
    assert.deepEqual(empty.complaints, []);
  });
  await empty.close();
  return seed(admin);
})();

const detections = (await admin.get("/detections")).items;
const lockdown = detections.find((detection) => detection.is_lockdown && detection.evidence.includes("203.0.113.66:4444"));
const hosts = (await admin.get("/hosts")).items;
const baseline = "source=repository&repository=octo%2Fhello";
const optional = async (path) => fetch(`${server}/api/v1${path}`, { headers: { authorization: `Bearer ${token}` } }).then((answer) => answer.ok);
const hasNotifications = await optional("/integrations");
const PAGES = [
  "/", "/policies", "/policies?show=unattached&search=not", "/policies/new", "/policies/new?from=hello-build", "/policies/hello-build", "/policies/hello-build/history",
  "/policies/hello-build/diff?from=1", "/policies/hello-build/attach", "/policies/hello-build/delete", "/policies/hello-build/rename", "/policies/hello-build/import",
  "/policies/hello-build/dry-run", "/policies/hello-build/dry-run?source=repository&repository=octo/hello", `/policies/hello-build/add-endpoint?endpoint=x.test:443&job=${filled.built}`,
  "/explain", "/explain?repository=octo/hello&workflow=ci.yml&cluster=prod-linux", "/runs", "/runs?blocked=true&repository=octo/hello", "/runs/4106-1", "/runs/4300-1",
  ...[filled.built, filled.hostile].flatMap((id) => ["", "/processes", "/files", "/detections", "/posture"].map((tab) => `/jobs/${id}${tab}`)),
  `/jobs/${filled.running}`, `/jobs/${filled.killed}/posture`,
  "/detections", `/detections?repository=${encodeURIComponent(HOSTILE)}`, "/destinations", "/destinations?status=blocked&scope=repository&target=octo/hello&days=7", "/baselines", `/baselines/of?${baseline}`,
  "/runners", `/runners/${hosts[0].id}`, `/runners/${hosts[1].id}`, "/install", "/install?kind=image", "/install?kind=arc", "/access", "/audit-log", "/audit-log?action=policy",
  ...(hasNotifications ? [`/detections/${lockdown.id}`, `/detections/${detections.find((one) => one.evidence.includes("script")).id}`, `/detections/${lockdown.id}/suppress`, "/suppressions", "/integrations", "/integrations/new", "/integrations/new?kind=slack", "/integrations/new?kind=s3", "/integrations/new?kind=otlp"] : []),
];

/** Dialogs and menus, open. */
async function openThings({ page }) {
  await page.goto(`${server}/policies`);
  await page.click("button[aria-label='Actions for not-used']");
  assert.deepEqual(await violations(page), [], "an open menu");
  await page.click("#menu-not-used >> text=Attach");
  await page.waitForSelector("dialog[open]");
  assert.deepEqual(await violations(page), [], "an open dialog");
  await page.goto(`${server}/jobs/${filled.built}`);
  for (const menu of ["columns", "downloads"]) {
    await page.click(`button[popovertarget='${menu}']`);
    await page.waitForSelector(`#${menu}:popover-open`);
    assert.deepEqual(await violations(page), [], `the menu of ${menu}`);
    await page.keyboard.press("Escape");
  }
  await page.setViewportSize({ width: 390, height: 860 });
  await page.click("button[data-navigation]");
  assert.deepEqual(await violations(page), [], "the navigation of a phone");
  await page.setViewportSize({ width: 1280, height: 860 });
}

await part("home says what was in the last day, and leads there", async () => {
  const browser = await Browser.start(server);
  await browser.signIn(token);
  await pages.home(browser, admin);
  assert.deepEqual(browser.complaints, []);
  await browser.close();
});

// Both at the same time: each waits for its browser most of the time.
const themes = ["light", "dark"].map((theme) =>
  part(`every page, ${theme}: WCAG 2.2 AA, console, CSP, hostile texts`, async () => {
    const browser = await Browser.start(server, { theme });
    await browser.signIn(token);
    for (const path of PAGES) {
      assert.equal(await browser.open(path), 200, path);
      assert.deepEqual(await violations(browser.page, { colours: theme === "light" }), [], `${theme} ${path}`);
      assert.equal(await browser.page.evaluate(() => window.hacked), undefined, path);
      assert.deepEqual(await browser.page.evaluate(forms.foreign), [], `${path}: no markup of a job's`);
      // In the window of a desk, and of a phone.
      for (const width of theme === "dark" ? [1280, 390] : [1280]) {
        await browser.page.setViewportSize({ width, height: 860 });
        // Charts follow their place a moment later.
        await until(`${path} to fit into a window of ${width}`, () => browser.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
      }
      await browser.page.setViewportSize({ width: 1280, height: 860 });
      // Tables of ordinary texts fit in the window of a desk.
      if (!path.includes(filled.hostile)) {
        const clipped = () => [...document.querySelectorAll(".scroll")].filter((place) => place.scrollWidth > place.clientWidth + 1).map((place) => place.ariaLabel);
        await until(`the tables of ${path} to fit into their places`, async () => !(await browser.page.evaluate(clipped)).length);
      }
    }
    await openThings(browser);
    assert.deepEqual(browser.complaints, []);
    browser.allow(/the server responded with a status of 4\d\d/);
    await more.errors(browser, filled);
    assert.deepEqual(browser.complaints, []);
    await browser.close();
  }),
);
await Promise.all(themes);

await part("a phone: the menu opens, tables become cards", async () => {
  const browser = await Browser.start(server, { width: 390, height: 800 });
  await browser.signIn(token);
  await browser.open("/policies");
  assert.deepEqual(await violations(browser.page), []);
  await browser.page.click("button[data-navigation]");
  await browser.page.click("#side >> text=Runs");
  await browser.page.waitForURL("**/runs");
  assert.deepEqual(browser.complaints, []);
  await browser.close();
});

const browser = await Browser.start(server);
const { page } = browser;

await part("first load", async () => {
  const sizes = new Map();
  const debug = await browser.context.newCDPSession(page);
  await debug.send("Network.enable");
  await debug.send("Network.setCacheDisabled", { cacheDisabled: true });
  debug.on("Network.loadingFinished", (event) => sizes.set(event.requestId, event.encodedDataLength));
  await browser.signIn(token);
  sizes.clear();
  await browser.open("/");
  await page.waitForLoadState("networkidle");
  const bytes = [...sizes.values()].reduce((sum, size) => sum + size, 0);
  console.log(`  ${bytes} bytes over the wire`);
  assert.ok(bytes > 10_000 && bytes <= 150 * 1024, `${bytes} bytes`);
  await debug.send("Network.setCacheDisabled", { cacheDisabled: false });
  const paint = await page.evaluate(() => new Promise((resolve) => new PerformanceObserver((list) => resolve(list.getEntries().at(-1).startTime)).observe({ type: "largest-contentful-paint", buffered: true })));
  console.log(`  largest contentful paint after ${Math.round(paint)} ms`);
});

await part("the cookie is for the server alone", async () => {
  const cookies = await browser.context.cookies();
  const session = cookies.find((cookie) => cookie.name.endsWith("portcullis-session"));
  assert.ok(session.httpOnly && session.sameSite === "Lax" && session.path === "/");
  assert.equal(session.secure, session.name.startsWith("__Host-"));
  assert.equal(await page.evaluate(() => document.cookie.includes("session")), false);
});

await part("times are the reader's, UTC on hover; the theme is kept", async () => {
  await browser.open(`/jobs/${filled.built}`);
  const time = page.locator("dl.facts time").first();
  assert.match(await time.getAttribute("title"), / UTC$/);
  assert.doesNotMatch(await time.textContent(), /UTC/);
  await page.click("button[data-theme-toggle]");
  assert.equal(await page.getAttribute("html", "data-theme"), "dark");
  await browser.open("/runs");
  assert.equal(await page.getAttribute("html", "data-theme"), "dark", "set by the server: no flash");
  await page.click("button[data-theme-toggle]");
});

await part("times are those of the reader's zone", () => looks.times(browser, filled));
await part("charts, endpoints, processes by step: as people read them", () => looks.reading(browser, admin, filled));
await part("a policy from the form: text and form are one document", async () => {
  await browser.open("/policies/new");
  await page.fill("#f-name", "made-here");
  await page.selectOption("#f-mode", "block");
  await page.fill("#f-allowed", "github.com:443\n*.npmjs.org");
  await page.check("input[name='lockdown-mode.enabled']");
  await page.check("input[value='Reverse-Shell']");
  const text = await page.inputValue("#document");
  for (const line of ["name: made-here", "egress-policy: block", "*.npmjs.org", "enabled: true", "Reverse-Shell"]) assert.ok(text.includes(line), `${line} in ${text}`);
  await page.fill("#comment", `made <b>in</b> a browser`);
  await page.click("button[data-save]");
  await page.waitForURL("**/policies/made-here");
  assert.match(await page.textContent(".notice"), /Attach it/);
  const made = await admin.get("/policies/made-here");
  assert.equal(made.egress_policy, "block");
  assert.deepEqual(made.document.allowed_endpoints, ["github.com:443", "*.npmjs.org"]);
  assert.deepEqual(made.document.lockdown_mode.detections, ["Reverse-Shell"]);
});

// Browsers tell of every refusal; these parts ask for some.
browser.allow(/the server responded with a status of 4\d\d/);

await part("mistakes show as one types, and completion knows the schema", async () => {
  const content = page.locator(".editor .cm-content");
  await content.click();
  await page.keyboard.press("Control+End");
  await page.keyboard.type("fail-on-blok: true\n");
  await until("the store's message", async () => (await page.locator(".editor .cm-lint-marker-error").count()) > 0);
  await page.click("button[data-save]");
  await page.waitForSelector("main .alert");
  assert.match(await page.textContent("main .alert"), /fail-on-blok/);
  assert.match(await page.inputValue("#document"), /fail-on-blok/, "what was written is not lost");
  await browser.open("/policies/made-here");
  await content.click();
  await page.keyboard.press("Control+End");
  await page.keyboard.type("disable-s");
  await page.waitForSelector(".editor .cm-tooltip-autocomplete >> text=disable-sudo-and-containers");
  await page.keyboard.press("Escape");
});
await part("what the text says the form says", () => editor.views(browser, admin));
await part("a mistake has its line and the store's words; values complete", () => editor.typing(browser, admin));
await part("what a reviewer should know of a policy", () => editor.lint(browser, admin));
await part("lost updates are refused", async () => {
  await browser.open("/policies/made-here");
  await admin.call("PUT", "/policies/made-here", "name: made-here\negress-policy: audit\nallowed-endpoints: [other.test]\n");
  await page.fill("#f-description", "from an old page");
  await page.click("button[data-save]");
  assert.match(await page.textContent("main .alert"), /version 2 now/);
  assert.equal((await admin.get("/policies/made-here")).version, 2);
});

await part("history, difference, restore", async () => {
  await browser.open("/policies/made-here/history");
  await page.click("text=Compare with newest");
  await page.waitForURL("**/diff?from=1");
  await page.locator(".diff .removed").first().waitFor();
  await page.click("button:has-text('Restore version 1')");
  await page.waitForURL("**/policies/made-here");
  const made = await admin.get("/policies/made-here");
  assert.deepEqual([made.version, made.egress_policy], [3, "block"]);
});

await part("attach by the dialog, with completion and a warning; detach", async () => {
  await browser.open("/policies");
  await page.click("button[aria-label='Actions for made-here']");
  await page.click("#menu-made-here >> text=Attach");
  await page.waitForSelector("dialog[open]");
  await until("completion", async () => (await page.locator("#targets option[value='octo/hello']").count()) > 0);
  await page.fill("#target", "octo/hello");
  await page.waitForSelector("#target-check >> text=hello-build");
  assert.deepEqual(await violations(page), []);
  await page.click("dialog button.primary");
  await page.waitForSelector("main .alert");
  assert.match(await page.textContent("main .alert"), /hello-build/);
  await page.fill("#target", "octo/new");
  await page.click("form button.primary");
  await page.waitForURL("**/policies/made-here#attachments");
  assert.deepEqual((await admin.get("/policies/made-here")).attachments, [{ repository: "octo/new" }]);
  await page.click("button[aria-label='Detach from octo/new']");
  await page.waitForSelector(".notice >> text=Detached");
  assert.deepEqual((await admin.get("/policies/made-here")).attachments, []);
});

await part("rename, delete, search, filter", async () => {
  await browser.open("/policies/made-here/rename");
  await page.fill("#new-name", "renamed-here");
  await page.click("button:has-text('Rename')");
  await page.waitForURL("**/policies/renamed-here");
  await browser.open("/policies");
  await page.fill("#search", "RENAMED");
  await until("one row", async () => (await page.locator("#rows tr").count()) === 1);
  assert.match(page.url(), /search=RENAMED/);
  await page.fill("#search", HOSTILE);
  await page.waitForSelector("text=Nothing matches");
  await browser.open("/policies/renamed-here/delete");
  await page.click("button.danger");
  await page.waitForURL("**/policies");
  assert.equal(await optional("/policies/renamed-here"), false);
});

await part("explain says why", async () => {
  await browser.open("/explain");
  await page.fill("#repository", "octo/hello");
  await page.fill("#workflow", "ci.yml");
  await page.click("form button.primary");
  await page.waitForSelector(".considered .chosen");
  assert.match(await page.textContent(".considered .chosen"), /octo\/hello[\s\S]*hello-build/);
  await page.goto(`${server}/explain?context=${encodeURIComponent(HOSTILE)}`);
  assert.match(await page.textContent("main .alert"), /can't be understood/);
});

await part("from the run to the blocked call, and into the policy", async () => {
  await browser.open("/runs");
  await page.click("#rows >> text=CI >> nth=-1");
  await page.waitForURL("**/runs/*");
  await browser.open(`/runs/4106-1`);
  await page.click("td >> text=build");
  await page.waitForURL(`**/jobs/${filled.built}`);
  await page.selectOption("#status", "blocked");
  await until("three calls", async () => (await page.locator("#rows tr").count()) === 3);
  assert.match(page.url(), /status=blocked/);
  await page.fill("#endpoint", "telemetry");
  await until("one call", async () => (await page.locator("#rows tr").count()) === 1);
  assert.match(await page.textContent("#rows"), /no endpoint allows it/);
  assert.equal(await page.locator("th[data-column='packets']").isVisible(), false);
  await page.click("button[popovertarget='columns']");
  await page.check("input[value='packets']");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("td[data-column='packets']").first().isVisible(), true);
  await page.click("text=Add to policy");
  await page.waitForSelector(".diff .added >> text=telemetry.example.com:443");
  await page.click("button:has-text('Add to the policy')");
  await page.waitForURL("**/policies/hello-build");
  assert.ok((await admin.get("/policies/hello-build")).document.allowed_endpoints.includes("telemetry.example.com:443"));
});

await part("downloads have what is filtered, and no formulas", async () => {
  const get = (path) => page.evaluate(async (path) => (await fetch(path)).text(), path);
  const csv = await get(`/jobs/${filled.built}/network-events.csv?status=blocked`);
  assert.equal(csv.trim().split("\r\n").length, 4, csv);
  const lines = await get(`/jobs/${filled.built}/network-events.ndjson`);
  assert.equal(lines.trim().split("\n").map((line) => JSON.parse(line)).length, 16);
  const hostile = await get(`/jobs/${filled.hostile}/network-events.csv`);
  assert.doesNotMatch(hostile, /(^|,)"[=+@-]/m);
});

await part("a running job's calls appear by themselves", async () => {
  await browser.open(`/jobs/${filled.running}`);
  await counted(page.locator("#rows tr[id^=event]"), 1);
  const before = filled.live.events.length;
  filled.live.call(30, "blocked", "late.test", 443, undefined, "no endpoint allows it");
  await filled.host.upload(filled.live, before);
  await page.waitForSelector("#rows >> text=late.test:443");
  await until("the counters", async () => (await page.textContent(".counter.bad b").catch(() => "")) === "1");
  await counted(page.locator("#rows tr[id^=event]"), 2);
});

await part("a long running job is followed, and what was before can be had", () => pages.longRunning(browser, filled.host));
await part("every call and process has an address", () => pages.addresses(browser, filled, lockdown));
await part("from a destination to its runs and calls", () => pages.destinations(browser));
await part("hosts: what is in force, and why not more", () => pages.runners(browser, hosts));
await part("what is empty leads on; pages on a phone and in the dark", async () => {
  await pages.emptyParts(browser, filled);
  await pages.onAPhone(browser, filled);
});
await part("calls by process and step; columns stay as they were chosen", () => choices.calls(browser, filled));
await part("baselines of a job, an organization, a cluster", () => choices.baselines(browser, admin));
await part("every kind of target is completed; explain says why not", async () => {
  await choices.completion(browser);
  await choices.explain(browser, admin);
});
await part("endpoints of an organization, a cluster, a job", () => choices.imports(browser, admin));
await part("a policy's row, and counters that filter", () => choices.policies(browser, admin));
await part("editor, columns, download and \"add to policy\" by keyboard", async () => {
  await keyboard.edit(browser, admin);
  await keyboard.calls(browser, admin, filled.built);
});
await part("a policy from a baseline, and its endpoints", async () => {
  await browser.open("/baselines?source=repository");
  await page.click("#rows >> text=octo/hello");
  await page.waitForURL("**/baselines/of?*");
  assert.match(await page.textContent("dl.facts"), /State\s*(Creating|Stable|Unstable)/i);
  const exported = await page.evaluate(async (query) => (await fetch(`/baselines/endpoints.txt?${query}`)).text(), baseline);
  assert.match(exported, /^pypi\.org:443$/m);
  assert.doesNotMatch(exported, /collect\.evil\.test/);
  await page.fill("#name", "from-baseline");
  await page.click("button:has-text('Create policy')");
  await page.waitForURL("**/policies/from-baseline");
  assert.ok((await admin.get("/policies/from-baseline")).document.allowed_endpoints.includes("pypi.org:443"));
});

await part("import of endpoints: preview, then apply", async () => {
  await browser.open("/policies/not-used/import");
  await page.selectOption("#source", "list");
  await page.fill("#endpoints", "one.test:443 # why\n*.com\ntwo.test");
  await page.click("button:has-text('Preview')");
  await page.waitForSelector("main .alert, .diff .added");
  if ((await page.locator(".diff .added").count()) === 0) {
    await page.selectOption("#source", "list");
    await page.fill("#endpoints", "one.test:443 # why\ntwo.test");
    await page.click("button:has-text('Preview')");
    await page.waitForSelector(".diff .added");
  }
  assert.equal((await admin.get("/policies/not-used")).version, 1, "a preview writes nothing");
  await page.click("button:has-text('Add 2 endpoints')");
  await page.waitForURL("**/policies/not-used");
  assert.deepEqual((await admin.get("/policies/not-used")).document.allowed_endpoints.map((text) => text.split(":")[0]), ["one.test", "two.test"]);
});

await part("policies: menus, export, copy, replace, cancel", () => more.policies(browser, admin, filled.context));
await part("dry run and import: from what was seen into the policy", () => more.learning(browser, admin));
await part("lists: filters, more rows, downloads, chart", () => more.lists(browser, admin, filled));
await part("hosts say their version; an enrolment token is revoked", () => more.hosts(browser, admin, filled.host));
await part("tabs of a running job follow it", () => more.live(browser, filled));
await part("a policy is attached and detached by keyboard", () => keyboard.attach(browser, admin, "not-used"));
await part("enrolment token made on the spot; hosts are revoked", async () => {
  await browser.open("/install");
  await page.fill("#cluster", "lab");
  await page.click("button:has-text('Make a token')");
  const secret = await page.textContent("#secret");
  const enrolled = await new Api(server, secret).call("POST", "/enrol", { host_name: "fresh" });
  assert.equal(enrolled.cluster, "lab");
  await browser.open(`/runners/${enrolled.host_id}`);
  await page.click("button.danger");
  await page.waitForSelector("text=Revoked");
  assert.ok((await admin.get("/hosts")).items.find((host) => host.id === enrolled.host_id).revoked_at);
});

await part("tokens: made, shown once, revoked; the audit log has it", async () => {
  await browser.open("/access");
  await page.fill("#name", HOSTILE.slice(0, 90).trim());
  await page.selectOption("#role", "viewer");
  await page.click("button:has-text('Make a token')");
  await page.waitForSelector("#secret, main .alert");
  await browser.open("/access");
  await page.fill("#name", "short-lived");
  await page.fill("#days", "1");
  await page.click("button:has-text('Make a token')");
  const secret = await page.textContent("#secret");
  assert.equal((await new Api(server, secret).get("/policies")).items.length > 0, true);
  await inBothThemes(page, "/access with a fresh token");
  await browser.open("/access");
  assert.ok(!(await page.content()).includes(secret));
  await page.click("button[aria-label='Revoke short-lived']");
  await page.waitForSelector(".notice");
  await assert.rejects(new Api(server, secret).get("/policies"), /401/);
  await browser.open("/audit-log?action=token");
  assert.match(await page.textContent("#rows"), /token\.revoke/);
});

if (hasNotifications) {
  await part("a detection is suppressed by keyboard", () => keyboard.suppress(browser, admin, lockdown));
  await part("detections: preview, resolved, open again", () => more.detections(browser, admin, lockdown));
  await part("a lockdown's evidence; suppressed with a reason, and back", async () => {
    await browser.open("/detections");
    await page.click(`a[href='/detections/${lockdown.id}']`);
    await page.waitForSelector(".evidence >> text=203.0.113.66:4444");
    await page.click("text=Suppress >> nth=0");
    await page.waitForSelector("text=What it would suppress now");
    await page.fill("#reason", `known <i>good</i>`);
    await page.click("button.primary:has-text('Suppress')");
    await page.waitForURL(`**/detections/${lockdown.id}`);
    assert.equal((await admin.get(`/detections/${lockdown.id}`)).state, "suppressed");
    await browser.open("/suppressions");
    await page.click("button:has-text('Remove')");
    await page.waitForSelector(".notice");
    assert.equal((await admin.get(`/detections/${lockdown.id}`)).state, "new");
    await browser.open(`/detections/${lockdown.id}`);
    await page.click("button:has-text('Mark as resolved')");
    await page.waitForSelector(".notice");
    assert.equal((await admin.get(`/detections/${lockdown.id}`)).state, "resolved");
  });
  await part("detections by their state; who was killed", () => choices.states(browser, admin, lockdown));
  await part("integrations: made, tested, failed, tried again, changed, deleted", () => integrations.run(browser, admin, () => filled.detect()));
}
assert.deepEqual(browser.complaints, []);

await part("calls that a job never made before", () => pages.newCalls(browser, admin, filled.host));
await part("hostile texts in every field of every form", async () => {
  const sent = await forms.everyField(browser, [...PAGES, ...(await filled.integration())]);
  console.log(`  ${sent.length} forms`);
  await forms.whatWasKept(browser, ["/policies", "/policies/hello-build/history", "/suppressions", "/detections", "/access", "/integrations", "/audit-log", "/install", "/"]);
  assert.deepEqual(browser.complaints, []);
});

await part("forged forms do nothing", async () => {
  const post = (path, headers, fields) => page.evaluate(async ([path, headers, fields]) => (await fetch(path, { method: "POST", headers, body: new URLSearchParams(fields), redirect: "manual" })).status, [path, headers, fields]);
  assert.equal(await post("/policies/hello-build/delete", {}, { version: "3" }), 403, "without a proof");
  assert.equal(await post("/policies/hello-build/delete", {}, { version: "3", proof: "A".repeat(86) }), 403, "with a wrong one");
  const cookies = (await browser.context.cookies()).map((cookie) => `${cookie.name}=${cookie.value}`).join("; ");
  await browser.open("/policies/hello-build/delete");
  const proof = await page.inputValue("main input[name='proof']");
  const from = (origin) => fetch(`${server}/policies/hello-build/delete`, { method: "POST", redirect: "manual", headers: { cookie: cookies, origin, "sec-fetch-site": "cross-site" }, body: new URLSearchParams({ version: "1", proof }) });
  assert.equal((await from("https://evil.test")).status, 403, "from another site's page");
  assert.ok(await admin.get("/policies/hello-build"));
});

await part("roles: what a viewer may not do is neither shown nor done", async () => {
  const { secret } = await admin.call("POST", "/tokens", { name: "a viewer", role: "viewer" });
  const viewer = await Browser.start(server);
  viewer.allow(/status of 403/);
  await viewer.signIn(secret, "/policies/hello-build");
  await counted(viewer.page.locator("button[data-save]"), 0);
  await counted(viewer.page.locator("text=Audit log"), 0);
  for (const path of ["/policies/new", "/access", "/audit-log", "/policies/hello-build/attach"]) assert.equal(await viewer.open(path), 403, path);
  const proof = await viewer.page.inputValue("input[name='proof']");
  const status = await viewer.page.evaluate(async (proof) => (await fetch("/policies/hello-build/delete", { method: "POST", body: new URLSearchParams({ version: "3", proof }) })).status, proof);
  assert.equal(status, 403);
  // A token that is revoked ends the session with the next click.
  const { items } = await admin.get("/tokens");
  await admin.call("DELETE", `/tokens/${items.find((one) => one.name === "a viewer").id}`);
  await viewer.open("/runs");
  assert.match(viewer.page.url(), /\/sign-in\?next=%2Fruns$/);
  assert.deepEqual(viewer.complaints, []);
  await viewer.close();
});

await part("signing in and out", async () => {
  await page.click("text=Sign out");
  await page.waitForURL("**/sign-in");
  assert.equal((await browser.context.cookies()).filter((cookie) => cookie.name.endsWith("session")).length, 0);
  await page.fill("#token", "wrong");
  await page.click("form button.primary");
  await page.waitForSelector(".alert");
  assert.deepEqual(await violations(page), []);
  const log = (await admin.get("/audit-log?action=session")).items.map((entry) => entry.action);
  for (const action of ["session.begin", "session.end", "session.refuse"]) assert.ok(log.includes(action), action);
  await browser.open("/sign-in?next=https://evil.test/");
  await page.fill("#token", token);
  await page.click("form button.primary");
  await page.waitForURL(`${server}/`);
});
await browser.close();
assert.deepEqual(neverAsked(process.env.PORTCULLIS_PAGES ?? ""), [], "pages and forms that were never used");
console.log("all is well");
