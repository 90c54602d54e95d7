// What people read from a page: times of their zone, ports in one piece, processes under their step.
import assert from "node:assert/strict";
import { until } from "./harness.mjs";

/** Times are those of the reader's zone, which a browser of the suite has in Berlin; UTC is on hover. */
export async function times(browser, filled) {
  const { page } = browser;
  await browser.open(`/jobs/${filled.built}`);
  const styles = {
    moment: { dateStyle: "medium", timeStyle: "short" },
    clock: { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 },
  };
  const shown = await page.locator("time[data-style]").evaluateAll((all) => all.map((one) => ({ style: one.dataset.style, at: one.dateTime, text: one.textContent, title: one.title })));
  for (const [style, format] of Object.entries(styles)) {
    const of = shown.filter((one) => one.style === style);
    assert.ok(of.length > 0, style);
    for (const { at, text, title } of of) {
      // Microseconds are more than this language reads.
      const time = new Date(at.replace(/(\.\d{3})\d+/, "$1"));
      assert.equal(text, new Intl.DateTimeFormat("en-GB", { ...format, timeZone: "Europe/Berlin" }).format(time));
      assert.notEqual(text, new Intl.DateTimeFormat("en-GB", { ...format, timeZone: "UTC" }).format(time));
      assert.equal(title, `${time.toISOString().slice(0, 19).replace("T", " ")} UTC`);
    }
  }
}

/** Charts, endpoints, processes and detections, as they are read. */
export async function reading(browser, admin, filled) {
  const { page } = browser;
  await browser.open(`/jobs/${filled.built}`);
  // The rule has its policy beside it.
  const blocked = page.locator("#rows tr", { hasText: "collect.evil.test:443" }).first();
  assert.match(await blocked.locator("td[data-label='Rule']").textContent(), /no endpoint allows it\s*hello-build, version 2/);
  // A port that is wrapped would read as another one.
  const ports = await page.locator("#rows td[data-label='Destination'] .nowrap").evaluateAll((all) => all.map((port) => [port.textContent, port.getClientRects().length]));
  assert.ok(ports.length >= 10);
  for (const [port, lines] of ports) assert.ok(/^:\d+$/.test(port) && lines === 1, `${port} in ${lines} lines`);
  // Nothing of a row stands out of its cell, and an ordinary reason is one line.
  const cells = await page.locator("#rows td").evaluateAll((all) => all.filter((cell) => cell.offsetParent && cell.scrollWidth > cell.clientWidth).map((cell) => cell.textContent));
  assert.deepEqual(cells, []);
  // The chart names what there is to see, and takes no room for what it says when it is pointed at.
  const legend = async () => (await page.locator(".u-legend .u-label").allTextContents()).filter((name) => ["Allowed", "Blocked", "Would be blocked"].includes(name));
  await until("the chart", async () => (await legend()).length > 0);
  assert.deepEqual(await legend(), ["Allowed", "Blocked"]);
  const [figure, chart] = await page.evaluate(() => ["figure", "figure .chart"].map((name) => document.querySelector(name).getBoundingClientRect().height));
  assert.ok(figure - chart < 2, `${figure} and ${chart}`);
  // What is gone to is at the top, where no bar lies upon it.
  await page.evaluate(() => document.querySelector(".tabs").scrollIntoView());
  assert.ok((await page.evaluate(() => document.querySelector(".tabs").getBoundingClientRect().top)) < 20);
  // A tree for each step, in their order.
  await browser.open(`/jobs/${filled.built}/processes`);
  assert.deepEqual(await page.locator(".trees h2").allTextContents(), ["In no step", "Step __actions_checkout", "Step install"]);
  const trees = (await page.locator(".trees .tree").allTextContents()).map((text) => text.replace(/\s+/g, " "));
  assert.match(trees[0], /Runner\.Worker pid 900 \/usr\/bin\/bash pid 950/);
  assert.match(trees[1], /\/usr\/bin\/git fetch --depth=1 origin pid 1001/, "the program's name is said once");
  assert.match(trees[2], /python3\.12 pid 1010 calls itself python3 -m pip[\s\S]*pypi\.org:443[\s\S]*python3 setup\.py[\s\S]*Blocked[\s\S]*collect\.evil\.test:443/);
  // Only a name was asked for, or there was a call.
  await browser.open(`/policies/hello-build/add-endpoint?endpoint=only.asked.test&job=${filled.built}`);
  assert.equal(await page.textContent("h1"), "Allow only.asked.test:443");
  assert.match(await page.textContent(".head"), /asked for the name, and was refused before it could call/);
  await browser.open(`/policies/hello-build/add-endpoint?endpoint=called.test:8443&job=${filled.built}`);
  assert.equal(await page.textContent("h1"), "Allow called.test:8443");
  assert.match(await page.textContent(".head"), /called it, or tried to/);
  // Who started whom, the first at the top.
  const lockdown = (await admin.get("/detections")).items.find((one) => one.is_lockdown && one.evidence.includes("203.0.113.66:4444"));
  await browser.open(`/detections/${lockdown.id}`);
  const chain = (await page.locator(".chain li").allTextContents()).map((text) => text.replace(/\s+/g, " ").trim());
  assert.deepEqual(chain, ["/home/runner/bin/Runner.Worker 900", "/usr/bin/bash 950", "/usr/bin/bash 2020"]);
  await browser.open(`/detections/${lockdown.id}/suppress`);
  assert.match(await page.locator(".field", { has: page.locator("#process") }).textContent(), /An asterisk stands for any characters/);
  assert.match(await page.textContent("main"), /through a pipe of \/usr\/bin\/nc \(2019\)/, "evidence as a whole");
  // One verdict over the jobs of several policies is not everybody's.
  await browser.open("/");
  const list = (await page.locator("#new-destinations li").allTextContents()).map((text) => text.replace(/\s+/g, " "));
  const refused = list.filter((text) => /Blocked|Would be blocked/.test(text));
  assert.ok(refused.length > 0 && refused.every((text) => text.includes("by at least one job’s policy")), list.join("\n"));
  // A job from which nothing was kept is seen to be green.
  const quiet = (await admin.get("/runs?limit=100")).items.find((run) => run.run_id === 4101);
  const { job_records: jobs } = await admin.get(`/runs/${quiet.id}`);
  await browser.open(`/jobs/${jobs[0].id}`);
  assert.equal(await page.locator("#job-head .badge.good >> text=Nothing blocked").count(), 1);
  assert.equal(await page.locator("#job-head .counter.good").count(), 1);
  await browser.open(`/jobs/${filled.built}`);
  assert.equal(await page.locator("#job-head >> text=Nothing blocked").count(), 0);
}
