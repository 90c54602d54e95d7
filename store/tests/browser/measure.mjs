// How long pages take, as a browser sees it: `node measure.mjs SERVER TOKEN TIMES` prints a line of JSON for each page, with
// the time of the server's answer and of the largest contentful paint of each time, in milliseconds. Nothing is in a cache
// but what the browser may keep. Each page is held to what the suite's are: axe finds nothing, and nothing is on the console.
import assert from "node:assert/strict";
import { Browser } from "./browser.mjs";
import { violations } from "./harness.mjs";
import { Api } from "./seed.mjs";

const [server, token, times] = process.argv.slice(2);
const admin = new Api(server, token);
await admin.call("PUT", "/policies/measured", "name: measured\negress-policy: audit\nallowed-endpoints: [github.com:443]\n").catch(() => null);
const runs = (await admin.get("/runs?limit=100")).items;
const jobs = [];
for (const run of runs.slice(0, Number(times))) jobs.push((await admin.get(`/runs/${run.id}`)).job_records[0].id);
const { repository } = runs[0];
// The endpoint that the fewest runs called, and the one that most did.
const called = (await admin.get(`/destinations?limit=1000&repository=${encodeURIComponent(repository)}`)).items.sort((one, other) => one.runs - other.runs);
const runsOf = (destination) => `/runs?endpoint=${encodeURIComponent(destination.endpoint)}`;
const scope = `source=repository&repository=${encodeURIComponent(repository)}`;
const one = (list, turn) => list[turn % list.length];
const PAGES = {
  "home": () => "/",
  "policies": () => "/policies",
  "a policy": () => "/policies/measured",
  "a policy's dry run": () => `/policies/measured/dry-run?${scope}&days=7`,
  "explain": () => `/explain?repository=${encodeURIComponent(repository)}&workflow=ci.yml`,
  "runs": () => "/runs",
  "runs with blocked calls": () => "/runs?blocked=true",
  "runs of a day": () => "/runs?days=1",
  "runs of an endpoint that few called": () => runsOf(called[0]),
  "runs of an endpoint that many called": () => runsOf(called.at(-1)),
  "runs of an endpoint that nobody called": () => "/runs?endpoint=nobody.test:443",
  "a run": (turn) => `/runs/${one(runs, turn).id}`,
  "a job's calls": (turn) => `/jobs/${one(jobs, turn)}`,
  "a job's blocked calls": (turn) => `/jobs/${one(jobs, turn)}?status=blocked`,
  "a job's processes": (turn) => `/jobs/${one(jobs, turn)}/processes`,
  "a job's posture": (turn) => `/jobs/${one(jobs, turn)}/posture`,
  "detections": () => "/detections",
  "detections of a day": () => "/detections?days=1",
  "destinations": () => "/destinations",
  "blocked destinations of a week": () => "/destinations?status=blocked&days=7",
  "baselines": () => "/baselines",
  "a repository's baseline": () => `/baselines/of?${scope}`,
  "runners": () => "/runners",
  "install": () => "/install",
  "integrations": () => "/integrations",
  "access": () => "/access",
  "audit log": () => "/audit-log",
};
const browser = await Browser.start(server);
await browser.signIn(token);
for (const [name, address] of Object.entries(PAGES)) {
  const found = { page: name, server: [], paint: [] };
  // The first look fills the browser's cache of scripts; it is not counted.
  for (let turn = -1; turn < Number(times); turn += 1) {
    const path = address(turn + 1);
    const status = await browser.open(path);
    if (status !== 200) throw new Error(`${path}: ${status}`);
    const measured = await browser.page.evaluate(
      () =>
        new Promise((resolve) => {
          const [load] = performance.getEntriesByType("navigation");
          new PerformanceObserver((list) => resolve({ server: load.responseEnd - load.requestStart, paint: list.getEntries().at(-1).startTime })).observe({ type: "largest-contentful-paint", buffered: true });
        }),
    );
    if (turn < 0) continue;
    found.server.push(measured.server);
    found.paint.push(measured.paint);
  }
  // Not while it is measured: axe takes longer than the page.
  assert.deepEqual(await violations(browser.page), [], name);
  console.log(JSON.stringify(found));
}
assert.deepEqual(browser.complaints, []);
await browser.close();
