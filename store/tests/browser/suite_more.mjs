// The rest of what can be clicked: exports, duplicates, filters, more rows, menus, copying, and pages that tell of an error.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { asked, counted, inBothThemes, until, violations } from "./harness.mjs";
import { Api, FEATURES } from "./seed.mjs";

/** Clicks what begins a download, and returns the file's name and text. */
async function download(page, click) {
  const [file] = await Promise.all([page.waitForEvent("download"), click()]);
  // A download's answer is no page's; where it came from is known all the same.
  asked.add(`GET ${new URL(file.url()).pathname}`);
  return [file.suggestedFilename(), readFileSync(await file.path(), "utf8")];
}

/** Everything that is done with a policy from its menus. */
export async function policies(browser, admin, context) {
  const { page } = browser;
  const menu = async (name, entry) => {
    await browser.open("/policies");
    await page.click(`button[aria-label='Actions for ${name}']`);
    await page.waitForSelector(`#menu-${name}:popover-open`);
    assert.deepEqual(await violations(page), [], "an open menu");
    return page.locator(`#menu-${name} >> text="${entry}"`);
  };
  const [name, text] = await download(page, async () => (await menu("org-base", "Export")).click());
  assert.deepEqual([name, text.includes("egress-policy: audit"), text.includes("organization: octo")], ["org-base.yaml", true, true], text);
  const [, all] = await download(page, () => page.click("text=Export all"));
  for (const policy of ["hello-build", "org-base", "not-used"]) assert.ok(all.includes(`name: ${policy}`), all);
  await (await menu("org-base", "Duplicate")).click();
  await page.waitForURL("**/policies/new?from=org-base");
  await page.fill("#f-name", "org-copy");
  await page.click("button[data-save]");
  await page.waitForURL("**/policies/org-copy*");
  assert.deepEqual((await admin.get("/policies/org-copy")).attachments, [], "a copy is attached to nothing");
  // Saved as it should be, from the form.
  await page.fill("#f-description", "The copy");
  await page.fill("#comment", "says what it is");
  await page.click("button[data-save]");
  await page.waitForSelector(".notice >> text=Saved as a new version");
  assert.deepEqual([(await admin.get("/policies/org-copy")).version, (await admin.get("/policies/org-copy/versions")).items[0].comment], [2, "says what it is"]);
  await page.click("button[data-save]");
  await page.waitForSelector(".notice >> text=Nothing had changed");
  // Its history, by the menu; what changed in a version.
  await (await menu("org-copy", "History")).click();
  await page.click("text=What changed");
  await page.waitForSelector(".diff .added >> text=The copy");
  // A target that has a policy: replaced when it is asked for.
  await browser.open("/policies");
  await page.click("button[aria-label='Actions for org-copy']");
  await page.click("#menu-org-copy >> text=Attach");
  await page.waitForSelector("dialog[open]");
  await page.selectOption("#kind", "organization");
  await page.fill("#target", "octo");
  await page.check("#target-check input[name='replace']");
  await page.click("dialog button.primary");
  await page.waitForSelector(".notice >> text=Attached");
  assert.deepEqual([(await admin.get("/policies/org-copy")).attachments, (await admin.get("/policies/org-base")).attachments], [[{ organization: "octo" }], []]);
  await (await menu("org-copy", "Detach")).click();
  await page.click("button[aria-label='Detach from octo']");
  await page.waitForSelector(".notice >> text=Detached");
  await admin.call("POST", "/policies/org-base/attachments", { organization: "octo" });
  await page.click("button[popovertarget='policy-menu']");
  await page.click("#policy-menu >> text=Delete");
  await page.click("button.danger");
  await page.waitForSelector(".notice >> text=The policy was deleted");
  // What is counted filters.
  await page.click("a.counter >> text=Not attached");
  await page.waitForURL("**/policies?show=unattached");
  await page.locator("#rows >> text=not-used").first().waitFor();
  await counted(page.locator("#rows >> text=hello-build"), 0);
  // The dialog can be cancelled.
  await page.click("button[aria-label='Actions for not-used']");
  await page.click("#menu-not-used >> text=Attach");
  await page.click("dialog >> text=Cancel");
  await counted(page.locator("dialog"), 0);
  // A context is pasted.
  await browser.open("/explain");
  await page.click("text=Or paste a job’s context");
  await page.fill("#context", JSON.stringify(context));
  await page.click("form button.primary");
  await page.waitForSelector(".considered .chosen >> text=hello-build");
}

/** Recorded runs are judged by a policy, and what is missing is added; endpoints come from a baseline and from a file. */
export async function learning(browser, admin) {
  const { page } = browser;
  await admin.call("PUT", "/policies/learning", "name: learning\negress-policy: block\nallowed-endpoints: [github.com:443]\n");
  await browser.open("/policies/learning");
  await page.click(".tabs >> text=Dry run");
  await page.selectOption("#source", "repository");
  await page.fill("#repository", "octo/hello");
  await page.selectOption("#days", "7");
  await page.click("button:has-text('Try it')");
  await page.waitForSelector("text=What it does not allow");
  const judged = await admin.call("POST", "/policies:dry-run", { policy: "learning", runs_of: { source: "repository", repository: "octo/hello" }, since: new Date(Date.now() - 7 * 86_400_000).toISOString() });
  assert.ok(judged.blocked > 0 && judged.allowed > 0 && judged.jobs > 0, JSON.stringify(judged));
  const counters = (await page.locator(".counters .counter b").allTextContents()).map((text) => Number(text.replace(/\D/g, "")));
  assert.deepEqual(counters, [judged.jobs, judged.allowed, judged.blocked, judged.would_block], "the counters are the API's");
  assert.match(await page.textContent(".counters"), new RegExp(`Jobs of ${judged.runs} runs`));
  await page.locator("tr", { hasText: "pypi.org:443" }).first().locator("text=Add to policy").click();
  await page.waitForSelector(".diff .added");
  await page.fill("#comment", "found by the dry run");
  await page.click("button:has-text('Add to the policy')");
  await page.waitForSelector(".notice >> text=The endpoint was added");
  assert.equal((await admin.get("/policies/learning")).version, 2);
  await page.click(".tabs >> text=Import endpoints");
  await page.selectOption("#source", "repository");
  await page.fill("#repository", "octo/hello");
  await page.click("button:has-text('Preview')");
  await page.waitForSelector(".diff .added >> text=files.pythonhosted.org:443");
  await page.click("button:has-text('Add ')");
  await page.waitForSelector(".notice >> text=The endpoints were imported");
  assert.ok((await admin.get("/policies/learning")).document.allowed_endpoints.includes("files.pythonhosted.org:443"));
  await page.click(".tabs >> text=Import endpoints");
  await page.selectOption("#source", "list");
  await page.setInputFiles("#file", { name: "endpoints.txt", mimeType: "text/plain", buffer: Buffer.from("from-a-file.test:443\n") });
  await until("the file to be read", async () => (await page.inputValue("#endpoints")).includes("from-a-file.test"));
  await page.click("button:has-text('Preview')");
  await page.waitForSelector(".diff .added >> text=from-a-file.test:443");
  await page.click("button:has-text('Add 1 endpoint')");
  await page.waitForSelector(".notice");
  assert.ok((await admin.get("/policies/learning")).document.allowed_endpoints.includes("from-a-file.test:443"));
  await browser.open("/baselines/of?source=repository&repository=octo%2Fhello");
  const [name, text] = await download(page, () => page.click("text=Export endpoints"));
  assert.ok(name.endsWith(".txt") && text.includes("pypi.org:443"), `${name}: ${text}`);
}

/** Filters of every list, more rows, columns, downloads, and what one hovers over. */
export async function lists(browser, admin, filled) {
  const { page } = browser;
  const rows = () => page.locator("#rows > tr").count();
  const filtered = async (path, fill, expected) => {
    await browser.open(path);
    await fill();
    await until(`${path}: ${expected}`, async () => page.url().includes(expected));
    await page.waitForLoadState("networkidle");
  };
  await filtered("/runs", () => page.check("input[name='detections']"), "detections=true");
  await counted(page.locator("#rows >> text=#4106"), 0);
  await filtered("/runs", () => page.fill("#policy", "nobody"), "policy=nobody");
  await page.waitForSelector("#rows >> text=Nothing matches");
  await filtered("/detections", () => page.selectOption("#type", "Reverse-Shell"), "type=Reverse-Shell");
  assert.ok((await rows()) >= 2);
  await filtered("/detections", () => page.selectOption("#state", "resolved"), "state=resolved");
  await filtered("/destinations", () => page.selectOption("#status", "blocked"), "status=blocked");
  await counted(page.locator("#rows >> text=Allowed"), 0);
  await filtered("/baselines", () => page.selectOption("#source", "cluster"), "source=cluster");
  await page.waitForSelector("#rows >> text=prod-linux");
  await until("one baseline", async () => (await rows()) === 1);
  await filtered("/audit-log", () => page.fill("#action", "policy.attach"), "action=policy.attach");
  await until("attachments alone", async () => (await page.locator("#rows >> text=policy.write").count()) === 0);
  // Two hundred calls and more: a page at a time.
  await browser.open(`/jobs/${filled.many}`);
  await counted(page.locator("#rows tr[id^=event]"), 100);
  await page.click("#more a");
  await until("the next hundred", async () => (await page.locator("#rows tr[id^=event]").count()) === 200);
  await page.click("#more a");
  await until("all", async () => (await page.locator("#rows tr[id^=event]").count()) === filled.manyCalls);
  await counted(page.locator("#more"), 0);
  // What one sees is what one gets.
  await page.selectOption("#status", "blocked");
  await until("blocked calls", async () => (await page.locator("#rows >> text=Allowed").count()) === 0);
  const blocked = await page.locator("#rows tr[id^=event]").count();
  for (const [format, count] of [["CSV", (text) => text.trim().split("\r\n").length - 1], ["JSON lines", (text) => text.trim().split("\n").length]]) {
    await page.click("button[popovertarget='downloads']");
    const [name, text] = await download(page, () => page.click(`#downloads >> text="${format}"`));
    assert.ok(name.startsWith(filled.many) && count(text) === blocked, `${name}: ${count(text)} of ${blocked}`);
  }
  assert.deepEqual(await violations(page), [], "with a filter");
  // Who it was, with ancestors, where one asks for it.
  await page.click("#rows summary >> nth=0");
  assert.match(await page.textContent("#rows details[open]"), /Started by[\s\S]*Runner\.Worker/);
  assert.deepEqual(await violations(page), [], "with a process open");
  // The chart says what is below the pointer.
  const chart = await page.locator(".chart .u-over").boundingBox();
  await page.mouse.move(chart.x + chart.width / 2, chart.y + chart.height / 2);
  await until("what the chart says", async () => /\d+ blocked/.test(await page.textContent(".reading")));
  // Every call can be linked to.
  assert.match(await page.locator("#rows tr >> nth=0").getAttribute("id"), /^event-\d+$/);
}

/** Hosts: what they say of themselves, a token for them, and an end of both. */
export async function hosts(browser, admin, host) {
  const { page } = browser;
  const server = browser.server;
  const version = (await fetch(`${server}/openapi.json`).then((answer) => answer.json())).info.version;
  await host.api.call("POST", "/host/heartbeat", { version, kernel: "6.18.0-test" });
  await browser.open("/runners");
  const row = page.locator("tbody tr", { hasText: "6.18.0-test" });
  assert.match(await row.textContent(), new RegExp(version.replaceAll(".", "\\.")));
  await counted(row.locator(".badge >> text=Not the server"), 0);
  await host.api.call("POST", "/host/heartbeat", { version: "0.0.1", kernel: "6.18.0-test" });
  await browser.open("/runners");
  assert.match(await row.textContent(), /0\.0\.1 Not the server/);
  await row.locator("a").first().click();
  await page.waitForSelector("text=version 0.0.1");
  for (const feature of FEATURES) assert.ok((await page.textContent("main")).includes(feature.name), feature.name);
  // A token that nobody should use any more; what is to be typed is copied.
  await browser.context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await browser.open("/install?kind=arc");
  await page.fill("#cluster", "to-be-revoked");
  await page.fill("#hosts", "3");
  await page.click("button:has-text('Make a token')");
  const secret = await page.textContent("#secret");
  await page.click("button[data-copy='secret']");
  await page.waitForSelector("button >> text=Copied");
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), secret);
  await inBothThemes(page, "with a secret");
  await page.locator("tr", { hasText: "to-be-revoked" }).locator("button:has-text('Revoke')").click();
  await page.waitForSelector(".notice >> text=The enrolment token was revoked");
  await assert.rejects(new Api(server, secret).call("POST", "/enrol", { host_name: "late" }), /401/);
  await browser.open("/runners?revoked=true");
  assert.deepEqual(await violations(page), []);
}

/** A detection of which only a part is accepted; resolved, and opened again. */
export async function detections(browser, admin, detection) {
  const { page } = browser;
  await browser.open(`/detections/${detection.id}/suppress`);
  await page.selectOption("#scope", "everywhere");
  await page.fill("#process", "/nothing/like/*");
  await page.click("button:has-text('Preview')");
  await page.waitForSelector("text=0 detections");
  await page.fill("#process", "");
  await page.fill("#days", "3");
  await page.click("button:has-text('Preview')");
  await page.waitForURL("**/suppress?*");
  const found = Number((await page.textContent("h2:has-text('What it would suppress') + p")).match(/\d+/)[0]);
  assert.ok(found >= 2, `${found} detections everywhere`);
  assert.deepEqual((await admin.get("/suppressions")).items, [], "a preview keeps nothing");
  await browser.open(`/detections/${detection.id}`);
  for (const [button, state] of [["Mark as resolved", "resolved"], ["Open again", "new"]]) {
    await page.click(`button:has-text('${button}')`);
    await page.waitForSelector(".notice");
    assert.equal((await admin.get(`/detections/${detection.id}`)).state, state);
  }
}

/** Tabs of a running job follow it. */
export async function live(browser, filled) {
  const { page } = browser;
  const { live: recorder, host } = filled;
  const upload = async (add) => {
    const before = recorder.events.length;
    add();
    await host.upload(recorder, before);
  };
  const who = { ...recorder.events.find((event) => event.process).process, pid: 4077, start_time: 40_770, exe: "/usr/bin/late-process", argv: ["late-process"] };
  for (const [tab, text, add] of [
    ["processes", "late-process", () => recorder.add("process", 40, { process: who, count: 1 })],
    ["files", "src/late.c", () => recorder.add("file", 41, { path: "/home/runner/work/hello/hello/src/late.c", process: who })],
    ["detections", "late evidence", () => recorder.add("detection", 42, { detection: "Sudo-Use", evidence: "late evidence", is_lockdown: false, process: who })],
    ["posture", "late change", () => recorder.add("posture", 43, { reason: "late change", posture: { level: "degraded", scope: "host", features: FEATURES, warnings: [] } })],
  ]) {
    await browser.open(`/jobs/${filled.running}/${tab}`);
    await counted(page.locator(`#part >> text=${text}`), 0);
    await page.evaluate(() => (window.isTheSamePage = true));
    await upload(add);
    await page.waitForSelector(`#part >> text=${text}`);
    assert.equal(await page.evaluate(() => window.isTheSamePage), true, "without being loaded anew");
    assert.deepEqual(await violations(page), [], tab);
  }
}

/** What people see when something is not there, or not theirs: pages like the others, in words. */
export async function errors(browser, filled) {
  const { page } = browser;
  for (const [path, status] of [["/nowhere", 404], ["/policies/nothing-like-it", 404], ["/jobs/nothing", 404], ["/runs/1-1", 404], ["/detections/nothing", 404], ["/runners/nothing", 404], ["/integrations/nothing", 404], [`/jobs/${filled.built}?status=wrong`, 400], ["/policies/hello-build/diff?from=77", 404], ["/runs?cursor=%3Cscript%3E", 400]]) {
    assert.equal(await browser.open(path), status, path);
    assert.equal(await page.locator("main .alert").count(), 1, path);
    assert.deepEqual(await violations(page), [], path);
  }
  // Programs get the API's own answer.
  const answer = await fetch(`${browser.server}/nowhere`);
  assert.deepEqual([answer.status, answer.headers.get("content-type")], [404, "application/problem+json"]);
}
