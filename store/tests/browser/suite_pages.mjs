// Pages as people come to them: empty ones, Home's counters and where they lead, long running jobs, links to one event, runs of a
// destination, new calls, what is in force on hosts.
import assert from "node:assert/strict";
import { counted, inBothThemes, until, violations } from "./harness.mjs";
import { FEATURES, Recorder, context, jobId } from "./seed.mjs";

const number = (text) => Number(text.replace(/\D/g, ""));
const rows = (page) => page.locator("#rows tr[id^=event]");
const ids = (page) => page.$$eval("#rows tr[id^=event]", (all) => all.map((row) => Number(row.id.slice("event-".length))));

/** Pages without anything say what to do next, and lead there. */
export async function empty(browser) {
  const { page } = browser;
  for (const [path, text, next] of [
    ["/", "Three steps", "/policies/new"],
    ["/policies", "No policy yet", "/policies/new"],
    ["/runs", "No run yet", "/install"],
    ["/detections", "No detection", "/policies"],
    ["/suppressions", "Nothing is suppressed", "/detections"],
    ["/destinations", "No destination yet", "/install"],
    ["/baselines", "Nothing learned yet", "/install"],
    ["/baselines/of?source=repository&repository=octo%2Fnone", "No endpoint yet", "/runs"],
    ["/runners", "No host is enrolled", "/install"],
    ["/integrations", "Nobody is told yet", "/integrations/new?kind=webhook"],
  ]) {
    assert.equal(await browser.open(path), 200, path);
    assert.match(await page.textContent("main"), new RegExp(text), path);
    const links = await page.$$eval("main .empty a[href], main .steps a[href]", (all) => all.map((link) => link.getAttribute("href")));
    assert.ok(links.includes(next), `${path} leads to ${links}`);
    await inBothThemes(page, path);
  }
}

/** What is empty where others are not; and lists of which a filter leaves nothing. */
export async function emptyParts(browser, filled) {
  const { page } = browser;
  for (const path of [
    `/jobs/${filled.running}/files`,
    `/jobs/${filled.running}/posture`,
    `/jobs/${filled.many}/detections`,
    ...["/policies?search=nothing-like-it", "/runs?policy=nobody", "/detections?type=Cgroup-Escape", "/destinations?endpoint=nowhere", "/baselines?state=stable&repository=no/where", "/audit-log?action=nothing"],
    `/jobs/${filled.built}?endpoint=nowhere`,
  ]) {
    assert.equal(await browser.open(path), 200, path);
    assert.ok((await page.locator("main .empty a[href]").count()) > 0, `${path} leads nowhere`);
    assert.deepEqual(await violations(page), [], path);
  }
}

/** Who is not signed in sees one page: in both themes, and on a phone. */
export async function signIn(browser) {
  const { page } = browser;
  await browser.open("/sign-in");
  await inBothThemes(page, "/sign-in");
  await page.setViewportSize({ width: 390, height: 860 });
  assert.deepEqual(await violations(page), [], "/sign-in on a phone");
  await page.setViewportSize({ width: 1280, height: 860 });
}

/** Home says what the seed did in the last day, and each of its counters leads to that. */
export async function home(browser, admin) {
  const { page } = browser;
  await browser.open("/");
  const counters = await page.$$eval(".counters .counter", (all) => all.map((one) => [one.querySelector("span").textContent, one.querySelector("b").textContent, one.getAttribute("href")]));
  const summary = await admin.get("/summary");
  // Ten jobs, each of a run of its own. Two builds had a dependency that tried something, six packets each; of the job with many
  // calls every tenth was stopped; two of the hostile one, and one would have been.
  const expected = [
    [/^Runs, 1 job running$/, 10, summary.runs, "/runs?days=1"],
    [/^Calls blocked$/, 2 * 6 + 23 + 2, summary.blocked, "/runs?blocked=true&days=1"],
    [/^Calls that would be blocked$/, 1, summary.would_block, "/destinations?status=would-block&days=1"],
    [/^Detections, 2 jobs killed$/, 3, summary.detections, "/detections?days=1"],
    [/^New destinations$/, 9, summary.new_destinations, "#new-destinations"],
    [/^Jobs not fully enforced$/, 2, summary.weak_jobs, "/runners"],
  ];
  assert.equal(counters.length, expected.length);
  expected.forEach(([name, seeded, told, href], index) => {
    const [label, value, leads] = counters[index];
    assert.match(label, name);
    assert.deepEqual([number(value), told, leads], [seeded, seeded, href], label);
  });
  assert.deepEqual(await page.$$eval("#new-destinations code", (all) => all.length), Math.min(9, summary.newest.length));
  // The reason stands beside the host, without its page.
  assert.match(await page.textContent("main"), /runner-host-2[\s\S]*table-owner is missing: this kernel is older than 6\.9/);
  for (const [counter, path, count] of [["Runs", "/runs", 10], ["Calls blocked", "/runs", 4], ["would be blocked", "/destinations", 1], ["Detections", "/detections", 3]]) {
    await browser.open("/");
    await page.click(`a.counter >> text=${counter}`);
    await page.waitForURL((url) => url.pathname === path);
    await counted(page.locator("#rows > tr:not(#more)"), count);
    assert.equal(await page.inputValue("#days"), "1", `${counter}: of a day`);
  }
}

/** A running job that has more calls than a page: what it does shows at once, and what was before can be had. */
export async function longRunning(browser, host) {
  const { page } = browser;
  const id = jobId("long and running");
  const policy = { name: "hello-build", version: "2", scope: "repository" };
  const about = context(4500, { job: "long", repository: "octo/long" });
  const recorder = new Recorder(id, policy, Date.now() - 60_000);
  await host.start(id, about, policy, { start: recorder.start, target: "octo/long" });
  let at = 0;
  const call = async (count, name) => {
    const before = recorder.events.length;
    for (let more = 0; more < count; more += 1) recorder.call((at += 0.1), "allowed", name, 443, undefined, "github.com:443");
    await host.upload(recorder, before);
  };
  // Before its first call there is nothing to draw, and the page says so; then there is, and it grows.
  await browser.open(`/jobs/${id}`);
  await until("words in the place of a chart", async () => (await page.textContent(".reading")) === "Nothing yet.");
  await counted(page.locator(".chart canvas"), 0);
  await page.evaluate(() => (window.isTheSamePage = true));
  await call(150, "early.test");
  await page.waitForSelector(".chart canvas");
  // More than a page at once, and all of it is there.
  await counted(rows(page), 150);
  assert.equal(await page.evaluate(() => window.isTheSamePage), true);
  // Opened now: the first hundred, then what comes.
  await browser.open(`/jobs/${id}`);
  await counted(rows(page), 100);
  await call(1, "late.test");
  await page.waitForSelector("#rows >> text=late.test:443");
  assert.deepEqual((await ids(page)).slice(-2), [100, 151], "and fifty between");
  await page.click("#more a");
  await counted(rows(page), 151);
  await counted(page.locator("#more"), 0);
  await call(250, "burst.test");
  await counted(rows(page), 401);
  assert.deepEqual(await ids(page), Array.from({ length: 401 }, (_, index) => index + 1), "each once, in order");
  assert.deepEqual(await violations(page), []);
  // The end comes without being loaded anew.
  await host.report(recorder, about, { target: "octo/long" });
  await page.waitForSelector("#job-head >> text=Ended");
  await until("the rows to be no longer asked for", async () => (await page.locator("#live").count()) === 0);
}

/** Every call has an address that leads to it; a detection leads to its process, a process to itself. */
export async function addresses(browser, filled, lockdown) {
  const { page } = browser;
  const isSeen = (id) => until(`#${id} to be seen`, () => page.evaluate((id) => {
    const at = document.getElementById(id)?.getBoundingClientRect();
    return at !== undefined && document.querySelector(":target")?.id === id && at.top >= -1 && at.bottom <= innerHeight;
  }, id));
  await browser.open(`/jobs/${filled.many}`);
  await page.click("#more a");
  await counted(rows(page), 200);
  const link = await page.getAttribute("#event-180 td[data-label='Time'] a", "href");
  assert.equal(link, `/jobs/${filled.many}?cursor=179#event-180`);
  await browser.open(link);
  await isSeen("event-180");
  assert.equal((await ids(page))[0], 180);
  // A row over all columns leaves the others their width.
  const { width, height } = await page.locator("#event-180 td[data-label='Process']").boundingBox();
  assert.ok(width > 90 && height < 90, `${width} px, in ${height} px`);
  assert.deepEqual(await violations(page), [], "in the middle of the calls");
  await page.click("#before a");
  await page.waitForSelector("#event-1");
  await browser.open(`/jobs/${filled.built}/files`);
  await page.click("td[data-label='Time'] a");
  await page.waitForURL(/\/files\?cursor=\d+#event-\d+$/);
  await isSeen(new URL(page.url()).hash.slice(1));
  await browser.open(`/detections/${lockdown.id}`);
  await page.click("text=Among the job’s processes");
  await page.waitForURL(`**/jobs/${filled.killed}/processes#process-2020-20200`);
  await isSeen("process-2020-20200");
  assert.match(await page.textContent("#process-2020-20200"), /bash[\s\S]*Reverse-Shell/);
  await page.click("#process-2020-20200 > a");
  assert.deepEqual(await violations(page), [], "with a process marked");
}

/** From a destination to the runs that called it, to the calls themselves, and into the policy. */
export async function destinations(browser) {
  const { page } = browser;
  await browser.open("/destinations");
  await page.fill("#endpoint", "telemetry");
  await counted(page.locator("#rows > tr"), 1);
  assert.match(page.url(), /endpoint=telemetry/);
  await page.selectOption("#scope", "repository");
  await page.fill("#target", "octo/hello");
  await until("those of a repository", async () => /target=octo%2Fhello/.test(page.url()) && (await page.locator("#rows > tr").count()) === 1);
  await until("a link that stays there", async () => /repository=octo%2Fhello/.test(await page.getAttribute("#rows td a", "href")));
  await page.click("#rows td a");
  await page.waitForURL((url) => url.pathname === "/runs" && url.searchParams.get("endpoint") === "telemetry.example.com:443");
  assert.deepEqual([await page.inputValue("#endpoint"), await page.inputValue("#repository")], ["telemetry.example.com:443", "octo/hello"]);
  await counted(page.locator("#rows > tr"), 2);
  await page.click("#rows tr:has-text('#4106') a >> nth=0");
  await page.waitForURL((url) => url.pathname === "/runs/4106-1");
  await page.click("td a >> text=build");
  await page.waitForURL((url) => url.pathname.startsWith("/jobs/") && url.searchParams.get("endpoint") === "telemetry.example.com:443");
  await counted(rows(page), 1);
  assert.match(await page.getAttribute("#rows a:has-text('Add to policy')", "href"), /add-endpoint\?endpoint=telemetry\.example\.com%3A443/);
  // Runs by an endpoint that nobody called.
  await browser.open("/runs");
  await page.fill("#endpoint", "telemetry.example.com");
  await page.waitForSelector("#rows >> text=Nothing matches");
}

/** A job that has always called the same calls somewhere else: the call is marked, and can be had alone. */
export async function newCalls(browser, admin, host) {
  const { page } = browser;
  const policy = { name: "hello-build", version: "2", scope: "repository" };
  let id;
  for (let run = 4600; run <= 4610; run += 1) {
    id = jobId(`steady ${run}`);
    const about = context(run, { job: "steady", repository: "octo/steady" });
    const recorder = new Recorder(id, policy, Date.now() - 30_000);
    await host.start(id, about, policy, { start: recorder.start, target: "octo/steady" });
    recorder.call(1, "allowed", "usual.test", 443, undefined, "usual.test:443");
    if (run === 4610) recorder.call(2, "allowed", "never-before.test", 443, undefined, "usual.test:443").call(3, "allowed", "usual.test", 443, undefined, "usual.test:443");
    await host.upload(recorder);
    await host.report(recorder, about, { target: "octo/steady" });
  }
  const [found] = (await admin.get(`/detections?job=${id}&type=New-Outbound-Network-Call`)).items;
  assert.equal(found.endpoint, "never-before.test:443");
  await browser.open(`/jobs/${id}`);
  await counted(rows(page), 3);
  await counted(page.locator("#rows .badge >> text=New"), 1);
  assert.match(await page.textContent("#rows tr:has(.badge:text-is('New'))"), /never-before\.test:443/);
  await page.selectOption("#status", "new");
  await counted(rows(page), 1);
  assert.match(page.url(), /status=new/);
  assert.match(await page.textContent("#rows"), /never-before\.test:443/);
  assert.deepEqual(await violations(page), []);
  const csv = await page.evaluate(async (path) => (await fetch(path)).text(), `/jobs/${id}/network-events.csv?status=new`);
  assert.match(csv.trim().split("\r\n")[1], /never-before\.test:443.*"new"$/);
  // Its detection leads to it, and says whose it is.
  await browser.open(`/detections/${found.id}`);
  await page.click("text=The call");
  await page.waitForURL(`**/jobs/${id}?cursor=1#event-2`);
  await page.waitForSelector("#event-2:target >> text=never-before.test:443");
}

/** What is in force on a host, and why it is less than it should be: in the list and on its page. */
export async function runners(browser, hosts) {
  const { page } = browser;
  const weak = hosts.find((host) => host.name === "runner-host-2");
  await browser.open("/runners");
  const row = await page.locator("tbody tr", { hasText: "runner-host-2" }).textContent();
  assert.match(row, /Degraded[\s\S]*table-owner is missing: this kernel is older than 6\.9/);
  await counted(page.locator("tbody tr:has-text('runner-host-1') >> text=is missing"), 0);
  await browser.open(`/runners/${weak.id}`);
  assert.match(await page.textContent("tr:has-text('table-owner')"), /Missing[\s\S]*this kernel is older than 6\.9, and no systemd keeps the socket/);
  assert.match(await page.textContent(".alert.warn"), /enforcement can be tampered with by root; tampering is recorded/);
  for (const { name } of FEATURES.slice(0, 2)) assert.match(await page.textContent(`tr:has-text('${name}')`), /Active/, name);
}

/** Pages that people look at on a phone: by axe as well, not only by their width. */
export async function onAPhone(browser, filled) {
  const { page } = browser;
  await page.setViewportSize({ width: 390, height: 860 });
  for (const path of ["/", "/runs", `/jobs/${filled.many}`, `/jobs/${filled.built}/processes`, "/detections", "/destinations", "/runners", "/install", "/policies/hello-build", "/explain?repository=octo/hello"]) {
    await browser.open(path);
    assert.deepEqual(await violations(page), [], `${path} on a phone`);
  }
  await page.setViewportSize({ width: 1280, height: 860 });
  for (const path of [`/jobs/${filled.many}`, ...["/processes", "/files", "/detections", "/posture"].map((tab) => `/jobs/${filled.running}${tab}`)]) {
    await browser.open(path);
    await inBothThemes(page, path);
  }
}
