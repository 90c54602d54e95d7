// The tour of docs/tour.md: `node tour.mjs SERVER TOKEN [DIRECTORY]` does what a new user does, in a browser, and keeps pictures.
//
// Jobs are real: this program asks who started it for them (`ask {"begin": …}` on its standard output), who runs them behind
// hooks and monitor and answers with a line of JSON (tests/tests/dashboard.rs).
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Browser } from "./browser.mjs";
import { part, until, violations } from "./harness.mjs";
import { Api } from "./seed.mjs";

const [server, token, directory] = process.argv.slice(2);
const admin = new Api(server, token);
const browser = await Browser.start(server, { width: 1280, height: 800 });
const { page } = browser;
/** Keeps a picture of the window; it begins where the page does, or where `from` is. */
const picture = async (name, { from, width = 1280, height = 800, theme = "light" } = {}) => {
  await page.setViewportSize({ width, height });
  // Colours change at once.
  await page.emulateMedia({ colorScheme: theme, reducedMotion: "reduce" });
  assert.deepEqual(await violations(page), [], name);
  if (directory) {
    await page.waitForLoadState("networkidle");
    await page.evaluate((from) => (from ? document.querySelector(from).scrollIntoView() : scrollTo(0, 0)), from);
    await page.screenshot({ path: join(directory, `${name}.png`) });
  }
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "no-preference" });
};
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const ask = async (request) => {
  console.log(`ask ${JSON.stringify(request)}`);
  const { value, done } = await answers.next();
  assert.ok(!done, "nobody answers");
  return JSON.parse(value);
};
const text = async (selector) => (await page.textContent(selector)).replace(/\s+/g, " ");
/** The rows of the job's calls that hold a text. */
const rows = (what) => page.locator("#rows tr[id^=event]", { hasText: what });

await part("sign in, and a host that has said its version", async () => {
  await browser.open("/sign-in");
  await picture("tour-1-sign-in");
  await browser.signIn(token);
  const cookies = await browser.context.cookies();
  const session = cookies.find((cookie) => cookie.name === "__Host-portcullis-session");
  assert.ok(session.secure && session.httpOnly, "by HTTPS");
  await browser.open("/runners");
  await until("the monitor's heartbeat", async () => {
    await page.reload();
    return /Linux \d/.test(await text("tbody"));
  });
  assert.match(await text("tbody"), /runner-host\s*prod-linux\s*\d+\.\d+\.\d+\s*Linux \d/);
  assert.equal(await page.locator("text=Not the server").count(), 0, "monitor and server are of one build");
});

await part("a policy from the form", async () => {
  await browser.open("/policies/new");
  await page.fill("#f-name", "hello-build");
  await page.fill("#f-description", "Builds of hello");
  await page.selectOption("#f-mode", "block");
  await page.fill("#f-allowed", "git.test:443\npypi.test:443\nfiles.pypi.test:443");
  await page.check("input[name='lockdown-mode.enabled']");
  await page.check("input[value='Reverse-Shell']");
  await picture("tour-2-policy");
  await page.fill("#comment", "First version");
  await page.click("button[data-save]");
  await page.waitForURL("**/policies/hello-build*");
});

await part("attached to a repository", async () => {
  await page.click("a:has-text('Attach') >> nth=0");
  await page.waitForSelector("dialog[open]");
  await page.fill("#target", "octo/hello");
  await picture("tour-3-attach");
  await page.click("dialog button.primary");
  await page.waitForSelector(".notice >> text=Attached");
});

const first = await ask({ begin: "build", run: 101 }).then(() => ask({ end: true }));
await part("the main job's blocked calls, each with who and why", async () => {
  assert.equal(first.outcome, "failure", "it may not upload what it has built");
  await browser.open("/runs");
  await page.click("#rows a >> text=CI");
  await page.waitForURL("**/runs/101-1");
  await page.click("td a >> text=build");
  await page.waitForURL(`**/jobs/${first.id}`);
  assert.match(await text("#job-head"), /Enforced/);
  assert.match(await text("#job-head"), /verified by GitHub/);
  assert.match(await text("#job-head"), /Destinations ?[1-9]\d*, [1-9]\d* of them blocked/);
  for (const name of ["git.test:443", "pypi.test:443"]) {
    assert.match(await rows(name).first().textContent(), /Allowed/, name);
  }
  // The dependency that sends the environment away, by a raw socket.
  const stolen = rows("203.0.113.66:4444").first();
  assert.match(await stolen.textContent(), /Blocked[\s\S]*python[\s\S]*install[\s\S]*no endpoint allows it\s*hello-build, version 1/);
  await stolen.locator("summary").click();
  assert.match(await stolen.locator("details").textContent(), /python[\s\S]*Started by[\s\S]*Runner\.Worker/);
  await stolen.locator("summary").click();
  await page.selectOption("#status", "blocked");
  await until("blocked calls alone", async () => (await rows("Allowed").count()) === 0);
  await picture("tour-4-blocked-call", { from: ".tabs" });
  await picture("tour-4-blocked-call-dark", { from: ".tabs", theme: "dark" });
  await picture("tour-4-blocked-call-phone", { from: "#rows", width: 390, height: 800 });
});

await part("its processes, by step", async () => {
  await browser.open(`/jobs/${first.id}/processes`);
  const tree = await text(".trees");
  for (const what of ["Runner.Worker", "checkout", "git", "install", "get_requires_for_build_wheel", "203.0.113.66:4444"]) assert.ok(tree.includes(what), `${what} in ${tree}`);
  const steps = await page.locator(".trees h2").allTextContents();
  assert.deepEqual(steps, ["In no step", ...["clean", "checkout", "install", "build", "test", "report"].map((step) => `Step ${step}`)]);
  await picture("tour-4-processes", { from: ".tabs" });
});

await part("a name that was refused is allowed, from the job's page", async () => {
  await browser.open(`/jobs/${first.id}?status=blocked`);
  const upload = rows("api.ok.test").first();
  assert.match(await upload.textContent(), /Blocked[\s\S]*the name was asked for[\s\S]*report[\s\S]*no endpoint allows it/);
  await upload.locator("text=Add to policy").click();
  await page.waitForSelector(".diff .added >> text=api.ok.test");
  assert.equal(await text("h1"), "Allow api.ok.test:443");
  assert.match(await text(".head"), /asked for the name, and was refused before it could call/);
  await picture("tour-5-add-to-policy");
  await page.fill("#comment", "What is built is uploaded there");
  await page.click("button:has-text('Add to the policy')");
  await page.waitForURL("**/policies/hello-build*");
});

const second = await ask({ begin: "build", run: 102 }).then(() => ask({ end: true }));
await part("the next run is green", async () => {
  assert.equal(second.outcome, "success");
  await browser.open(`/jobs/${second.id}`);
  assert.match(await text("#job-head"), /hello-build, version 2/);
  await page.fill("#endpoint", "api.ok.test");
  await until("the upload", async () => (await rows("api.ok.test:443").count()) > 0 && (await rows("git.test").count()) === 0);
  assert.match(await rows("api.ok.test:443").first().textContent(), /Allowed/);
  assert.match(await text("#job-head"), /Nothing blocked/);
  await picture("tour-6-next-run", { height: 1000 });
});

// The lab's policy is made as a program would: by the API.
await admin.call("PUT", "/policies/lab", "name: lab\negress-policy: audit\nlockdown-mode: {enabled: true, detections: [Reverse-Shell]}\n");
await admin.call("POST", "/policies/lab/attachments", { repository: "octo/lab" });
await part("a job that runs is seen while it runs: calls, files, and its end", async () => {
  await ask({ begin: "lab", run: 103 });
  const { id } = await until("the job", async () => (await admin.get("/runs/103-1").catch(() => null))?.job_records?.[0]);
  await browser.open(`/jobs/${id}`);
  await page.evaluate(() => (window.isTheSamePage = true));
  assert.match(await text("#job-head"), /Running/);
  await page.waitForSelector("#rows tr[id^=event]:has-text('git.test')").catch(async (error) => {
    throw new Error(`${error.message}\n${await page.textContent("#rows")}\n${JSON.stringify((await admin.get(`/jobs/${id}/events?limit=100`)).items)}`);
  });
  const other = await browser.context.newPage();
  browser.watch(other);
  await other.goto(`${server}/jobs/${id}/files`);
  await other.waitForSelector("#part >> text=tree/crc32.c");
  assert.match(await other.textContent("#part"), /python/);
  await other.close();
  // Now it opens a shell for somebody, and is killed for it; this page has not been loaded again.
  await ask({ go: true });
  await page.waitForSelector("#job-head >> text=Ended");
  await page.waitForSelector("#job-head >> text=Lockdown");
  assert.equal(await page.evaluate(() => window.isTheSamePage), true);
  assert.equal((await ask({ end: true })).outcome, "failure");
});

await part("a lockdown's evidence, and a false one suppressed", async () => {
  const lockdown = (await admin.get("/detections?type=Reverse-Shell")).items.find((one) => one.is_lockdown);
  await browser.open("/detections");
  await page.click("#rows a >> text=Reverse-Shell");
  await page.waitForURL(`**/detections/${lockdown.id}`);
  assert.match(await text(".evidence >> nth=0"), /198\.51\.100\.200/);
  assert.match(await text("main"), /bash/);
  await picture("tour-7-lockdown");
  await page.click(".actions >> text=Suppress");
  await page.waitForSelector("text=What it would suppress now");
  await page.fill("#reason", "An exercise of the security team");
  await picture("tour-8-suppress");
  await page.click("button.primary:has-text('Suppress')");
  await page.waitForSelector(".notice >> text=Suppressed");
  assert.equal((await admin.get(`/detections/${lockdown.id}`)).state, "suppressed");
});

await part("a policy from a baseline, and its endpoints", async () => {
  await browser.open("/baselines/of?source=repository&repository=octo%2Fhello");
  await picture("tour-9-baseline");
  await page.fill("#name", "hello-learned");
  await page.click("button:has-text('Create policy')");
  await page.waitForURL("**/policies/hello-learned*");
  await picture("tour-9-policy");
  await browser.open("/baselines/of?source=repository&repository=octo%2Fhello");
  const [file] = await Promise.all([page.waitForEvent("download"), page.click("text=Export endpoints")]);
  const exported = readFileSync(await file.path(), "utf8");
  assert.deepEqual(exported.trim().split("\n").filter((line) => !line.startsWith("#")).sort(), ["api.ok.test:443", "files.pypi.test:443", "git.test:443", "pypi.test:443", "results-receiver.actions.githubusercontent.com:443"]);
  await browser.open("/");
  await picture("tour-10-home");
});
assert.deepEqual(browser.complaints, []);
await browser.close();
console.log("all is well");
process.exit(0);
