// The tour of docs/tour.md: `node tour.mjs SERVER TOKEN DIRECTORY` does what a new user does, in a browser, and keeps pictures.
// Jobs are told to the store by its API, as a runner host's monitor tells them.
import assert from "node:assert/strict";
import { join } from "node:path";
import { Browser } from "./browser.mjs";
import { Api, FEATURES, Host, Recorder, jobId } from "./seed.mjs";

const [server, token, directory] = process.argv.slice(2);
const admin = new Api(server, token);
const browser = await Browser.start(server, { width: 1160, height: 720 });
const { page } = browser;
const picture = async (name) => {
  await page.waitForLoadState("networkidle");
  await page.screenshot({ path: join(directory, `${name}.png`) });
  console.log(name);
};

const program = (exe, argv, step, pid) => ({ pid, start_time: pid * 10, exe, argv, uid: 1001, cwd: "/home/runner/work/hello/hello", ancestors: [{ pid: 950, exe: "/usr/bin/bash" }, { pid: 900, exe: "/home/runner/bin/Runner.Worker" }], step });
const context = (run, job) => ({
  repository: "octo/hello", repository_owner: "octo", workflow_ref: "octo/hello/.github/workflows/ci.yml@refs/heads/main", workflow: "CI", job, run_id: run, run_attempt: 1,
  git_ref: "refs/heads/main", sha: "5f1d0c9b8a7e6f5d4c3b2a190817263544332211", event_name: "push", actor: "mona", server_url: "https://github.com", runner_name: "runner-1",
});

/** One run of the build: clone, install, test; `allowed` says what the policy lets through. */
async function build(host, run, allowed, { shell = false } = {}) {
  const { version } = await admin.get("/policies/hello-build");
  const policy = { name: "hello-build", version: String(version), scope: "repository" };
  const start = Date.now() - 25_000;
  const recorder = new Recorder(jobId(`tour ${run}`), policy, start);
  const job = shell ? "deploy" : "build";
  await host.start(recorder.id, context(run, job), policy, { start });
  const calls = [["/usr/bin/git", ["git", "fetch", "origin"], "checkout", "github.com"], ["/usr/bin/python3.12", ["pip", "install", "-r", "requirements.txt"], "install", "pypi.org"], ["/usr/bin/python3.12", ["pip", "install", "-r", "requirements.txt"], "install", "files.pythonhosted.org"]];
  let at = 1;
  for (const [exe, argv, step, name] of calls) {
    const isAllowed = allowed.includes(name);
    const who = program(exe, argv, step, 1000 + Math.round(at));
    recorder.add("process", at, { process: who, count: 1 });
    for (let times = 0; times < 4; times += 1) recorder.call((at += 1.3), isAllowed ? "allowed" : "blocked", name, 443, who, isAllowed ? `${name}:443` : "no endpoint allows it", `192.0.2.${Math.round(at)}`, 3);
  }
  if (shell) recorder.add("detection", at, { detection: "Reverse-Shell", evidence: "standard input and output of /usr/bin/bash (1042) lead to 203.0.113.66:4444 through a pipe of /usr/bin/nc (1041)", is_lockdown: true, process: program("/usr/bin/bash", ["bash", "-i"], "deploy", 1042) });
  await host.upload(recorder);
  await host.report(recorder, context(run, job), { features: FEATURES });
  return recorder.id;
}

await browser.open("/sign-in");
await picture("tour-1-sign-in");
await browser.signIn(token);
const host = await Host.enrol(admin, "prod-linux", "runner-host-1");

await browser.open("/policies/new");
await page.fill("#f-name", "hello-build");
await page.fill("#f-description", "Builds of hello");
await page.selectOption("#f-mode", "block");
await page.fill("#f-allowed", "github.com:443\npypi.org:443");
await page.check("input[name='lockdown-mode.enabled']");
await page.check("input[value='Reverse-Shell']");
await picture("tour-2-policy");
await page.fill("#comment", "First version");
await page.click("button[data-save]");
await page.waitForURL("**/policies/hello-build");

await page.click("a:has-text('Attach') >> nth=0");
await page.waitForSelector("dialog[open]");
await page.fill("#target", "octo/hello");
await picture("tour-3-attach");
await page.click("dialog button.primary");
await page.waitForSelector(".notice");

const first = await build(host, 101, ["github.com", "pypi.org"]);
await browser.open("/runs/101-1");
await page.click("td >> text=build");
await page.waitForURL(`**/jobs/${first}`);
await page.selectOption("#status", "blocked");
await page.waitForSelector("#rows >> text=files.pythonhosted.org:443");
await page.locator("form.filters").scrollIntoViewIfNeeded();
await page.evaluate(() => document.querySelector(".tabs").scrollIntoView());
await picture("tour-4-blocked-call");

await page.click("text=Add to policy >> nth=0");
await page.waitForSelector(".diff .added");
await picture("tour-5-add-to-policy");
await page.fill("#comment", "Packages come from there");
await page.click("button:has-text('Add to the policy')");
await page.waitForURL("**/policies/hello-build");

const everything = ["github.com", "pypi.org", "files.pythonhosted.org"];
const second = await build(host, 102, everything);
await browser.open(`/jobs/${second}`);
assert.equal(await page.textContent(".counter >> nth=0 >> b"), "0", "the next run has no blocked call");
await picture("tour-6-next-run");

await build(host, 103, everything, { shell: true });
const [lockdown] = (await admin.get("/detections?type=Reverse-Shell")).items;
await browser.open("/detections");
await page.click("#rows >> text=Reverse-Shell");
await page.waitForURL(`**/detections/${lockdown.id}`);
await picture("tour-7-lockdown");
await page.click(".actions >> text=Suppress");
await page.waitForSelector("text=What it would suppress now");
await page.fill("#reason", "An exercise of the security team");
await picture("tour-8-suppress");
await page.click("button.primary:has-text('Suppress')");
await page.waitForSelector(".notice");

await browser.open("/baselines/of?source=repository&repository=octo%2Fhello");
await picture("tour-9-baseline");
await page.fill("#name", "hello-learned");
await page.click("button:has-text('Create policy')");
await page.waitForURL("**/policies/hello-learned");
const exported = await page.evaluate(async () => (await fetch("/baselines/endpoints.txt?source=repository&repository=octo%2Fhello")).text());
for (const name of everything) assert.ok(exported.includes(`${name}:443`), exported);
await browser.open("/");
await picture("tour-10-home");
assert.deepEqual(browser.complaints, []);
await browser.close();
