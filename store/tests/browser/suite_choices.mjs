// Choices and their outcomes: menus and counters of policies, every source of an import, completion of every kind of target, why
// a policy does not apply, filters and columns of calls, baselines of every kind, states of detections.
import assert from "node:assert/strict";
import { counted, until, violations } from "./harness.mjs";

const rows = (page) => page.locator("#rows tr[id^=event]");

/** A policy's row: edit and delete; and the counters filter by what they count. */
export async function policies(browser, admin) {
  const { page } = browser;
  await admin.call("PUT", "/policies/from-a-row", "name: from-a-row\negress-policy: block\n");
  const menu = async (entry) => {
    await browser.open("/policies");
    await page.click("button[aria-label='Actions for from-a-row']");
    await page.click(`#menu-from-a-row >> text="${entry}"`);
  };
  await menu("Edit");
  await page.waitForURL("**/policies/from-a-row");
  await page.waitForSelector(".editor .cm-content >> text=from-a-row");
  const names = (all) => all.map((one) => one.name).sort();
  const { items } = await admin.get("/policies");
  for (const [counter, mode] of [["Block", "block"], ["Audit", "audit"]]) {
    await browser.open("/policies");
    const counted = page.locator(`a.counter:has(span:text-is('${counter}'))`);
    const expected = names(items.filter((policy) => policy.egress_policy === mode));
    assert.equal(Number(await counted.locator("b").textContent()), expected.length, counter);
    await counted.click();
    await page.waitForURL(`**/policies?show=${mode}`);
    assert.deepEqual((await page.$$eval("#rows td:first-child > a", (all) => all.map((link) => link.textContent))).sort(), expected);
    assert.equal(await page.getAttribute("a.counter[aria-current='true']", "href"), `/policies?show=${mode}`);
  }
  await menu("Delete");
  await page.waitForURL("**/policies/from-a-row/delete");
  await page.click("button.danger");
  await page.waitForSelector(".notice >> text=The policy was deleted");
  await assert.rejects(admin.get("/policies/from-a-row"), /404/);
}

/** Endpoints of an organization, a cluster and a job; what can't be added is said, with why. */
export async function imports(browser, admin) {
  const { page } = browser;
  const workflow = "octo/hello/.github/workflows/ci.yml";
  for (const [source, fill, expected] of [
    ["organization", { organization: "octo" }, "github.com:443"],
    ["cluster", { cluster: "prod-linux" }, "github.com:443"],
    ["job", { repository: "octo/hello", workflow, job: "build" }, "files.pythonhosted.org:443"],
  ]) {
    const name = `imports-${source}`;
    await admin.call("PUT", `/policies/${name}`, `name: ${name}\negress-policy: block\ndenied-endpoints: [pypi.org:443]\n`);
    await browser.open(`/policies/${name}/import`);
    await page.selectOption("#source", source);
    for (const [field, value] of Object.entries(fill)) await page.fill(`#${field}`, value);
    await page.click("button:has-text('Preview')");
    await page.waitForSelector(`.diff .added >> text=${expected}`);
    assert.match(await page.textContent("main"), /Left out[\s\S]*pypi\.org:443[\s\S]*denies it/, source);
    assert.deepEqual(await violations(page), [], `a preview with what is left out, of a ${source}`);
    assert.equal((await admin.get(`/policies/${name}`)).version, 1, "a preview writes nothing");
    const offered = await page.$$eval(".diff .added", (all) => all.map((line) => line.textContent.replace(/^\+ /, "")));
    await page.click("button:has-text('Add ')");
    await page.waitForSelector(".notice >> text=The endpoints were imported");
    const allowed = (await admin.get(`/policies/${name}`)).document.allowed_endpoints;
    assert.deepEqual(allowed.map(String).sort(), offered.sort(), source);
    await admin.call("DELETE", `/policies/${name}`);
  }
}

/** Names that runners have reported are offered for every kind of target. */
export async function completion(browser) {
  const { page } = browser;
  await browser.open("/policies");
  await page.click("button[aria-label='Actions for not-used']");
  await page.click("#menu-not-used >> text=Attach");
  await page.waitForSelector("dialog[open]");
  for (const [kind, target] of [["workflow", "octo/hello/.github/workflows/ci.yml"], ["organization", "octo"], ["cluster", "prod-linux"], ["repository", "octo/hello"]]) {
    await page.selectOption("#kind", kind);
    await until(`${target} to be offered`, async () => (await page.locator(`#targets option[value='${target}']`).count()) === 1);
  }
  await page.click("dialog >> text=Cancel");
  // Explain and the sources of an import offer them as well.
  await browser.open("/explain");
  for (const [list, value] of [["repositories", "octo/hello"], ["workflows", "octo/hello/.github/workflows/ci.yml"], ["clusters", "prod-linux"]]) {
    await page.waitForSelector(`#${list} option[value='${value}']`, { state: "attached" });
    assert.equal(await page.locator(`input[list='${list}']`).count(), 1, list);
  }
}

/** Why each policy applies or does not: by workflow, repository, organization, cluster and the host's default. */
export async function explain(browser, admin) {
  const { page } = browser;
  await admin.call("PUT", "/policies/of-a-cluster", "name: of-a-cluster\negress-policy: audit\n");
  await admin.call("POST", "/policies/of-a-cluster/attachments", { cluster: "prod-linux" });
  const asked = async (fields) => {
    await browser.open("/explain");
    for (const [name, value] of Object.entries(fields)) await page.fill(`#${name}`, value);
    await page.click("form button.primary");
    await page.waitForSelector(".considered .chosen");
    const told = await page.$$eval(".considered li", (all) => all.map((one) => [one.querySelector(".scope").textContent.trim(), one.classList.contains("chosen"), one.textContent.replace(/\s+/g, " ")]));
    return new Map(told.map(([scope, isChosen, text]) => [scope, { isChosen, text }]));
  };
  const chosen = (told) => [...told].filter(([, one]) => one.isChosen).map(([scope]) => scope);
  const whole = "octo/hello/.github/workflows/ci.yml";
  let told = await asked({ repository: "octo/hello", workflow: whole, cluster: "prod-linux" });
  assert.deepEqual(chosen(told), ["repository"]);
  // Each of the others says why not.
  assert.match(told.get("workflow").text, new RegExp(`${whole}.*no policy is attached to this workflow`));
  assert.match(told.get("organization").text, /octo.*attached to this organization, but the repository's policy is more specific/);
  assert.match(told.get("cluster").text, /prod-linux.*attached to this cluster, but the repository's policy is more specific/);
  told = await asked({ repository: "octo/unheard-of", cluster: "prod-linux" });
  assert.deepEqual(chosen(told), ["organization"]);
  assert.match(told.get("repository").text, /octo\/unheard-of.*no policy is attached to this repository/);
  told = await asked({ repository: "else/where", cluster: "prod-linux" });
  assert.deepEqual(chosen(told), ["cluster"]);
  assert.match(told.get("cluster").text, /of-a-cluster/);
  told = await asked({ repository: "else/where", default: "block" });
  assert.deepEqual(chosen(told), ["default"]);
  assert.match(await page.textContent("main"), /This job gets default-block/);
  // A completed workflow is one of its repository, and its file's name alone is the same.
  assert.equal((await asked({ repository: "octo/hello", workflow: "ci.yml" })).get("workflow").text, (await asked({ repository: "octo/hello", workflow: whole })).get("workflow").text);
  await admin.call("DELETE", "/policies/of-a-cluster/attachments?cluster=prod-linux");
  await admin.call("DELETE", "/policies/of-a-cluster");
}

/** Calls by process and step; columns that are chosen stay chosen. */
export async function calls(browser, filled) {
  const { page } = browser;
  await browser.open(`/jobs/${filled.built}`);
  await counted(rows(page), 16);
  await page.fill("#process", "bin/git");
  await counted(rows(page), 1);
  assert.match(await page.textContent("#rows"), /github\.com:443/);
  assert.match(page.url(), /process=bin%2Fgit/);
  await page.fill("#process", "");
  await page.fill("#step", "install");
  await counted(rows(page), 15);
  await page.fill("#process", "python");
  await page.selectOption("#status", "blocked");
  await counted(rows(page), 3);
  await page.fill("#step", "instal");
  await page.waitForSelector("#rows >> text=Nothing matches");
  await browser.open(`/jobs/${filled.built}?step=install&status=blocked`);
  assert.deepEqual([await page.inputValue("#step"), await page.inputValue("#status"), await rows(page).count()], ["install", "blocked", 3], "an address has its filters");
  // Choices of columns.
  const isShown = async (columns) => Object.fromEntries(await Promise.all(columns.map(async (column) => [column, await page.locator(`th[data-column='${column}']`).isVisible()])));
  const all = ["step", "process", "port", "protocol", "rule"];
  await page.click("button[popovertarget='columns']");
  await page.check("#columns input[value='port']");
  await page.check("#columns input[value='protocol']");
  await page.uncheck("#columns input[value='step']");
  await page.uncheck("#columns input[value='rule']");
  const chosen = { step: false, process: true, port: true, protocol: true, rule: false };
  assert.deepEqual(await isShown(all), chosen);
  await browser.open(`/jobs/${filled.many}`);
  assert.deepEqual(await isShown(all), chosen, "on another page, loaded anew");
  assert.match(await page.textContent("#rows td[data-column='protocol']"), /tcp/);
  await page.click("#more a");
  await counted(rows(page), 200);
  assert.equal(await page.locator("#event-180 td[data-column='step']").isVisible(), false, "of rows that come later too");
  await page.evaluate(() => localStorage.clear());
}

/** Baselines of every kind have a page, with when each endpoint was seen first and last. */
export async function baselines(browser, admin) {
  const { page } = browser;
  const shown = (text) => page.evaluate((time) => new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" }).format(new Date(time)), text);
  for (const [source, name, query] of [
    ["job", "build", "source=job&repository=octo%2Fhello&workflow=octo%2Fhello%2F.github%2Fworkflows%2Fci.yml&job=build"],
    ["organization", "octo", "source=organization&organization=octo"],
    ["cluster", "prod-linux", "source=cluster&cluster=prod-linux"],
  ]) {
    await browser.open(`/baselines?source=${source}`);
    await page.click(`#rows td:first-child a[href='/baselines/of?${query}']`);
    await page.waitForURL((url) => url.search === `?${query}`);
    assert.match(await page.textContent("h1"), new RegExp(name), source);
    const { items } = await admin.get(`/baselines?${query}&limit=100`);
    assert.ok(items.length > 1, source);
    const told = await page.$$eval("tbody tr", (all) => all.map((row) => [row.querySelector("code").textContent, ...["First seen", "Last seen"].map((label) => row.querySelector(`[data-label='${label}'] time`))].map((one) => (typeof one === "string" ? one : one.dateTime))));
    const times = new Map(told.map(([endpoint, ...seen]) => [endpoint, seen.map((time) => Date.parse(time))]));
    for (const item of items.filter((item) => /^[\w.]+:\d+$/.test(item.endpoint))) {
      assert.deepEqual(times.get(item.endpoint), [Date.parse(item.first_seen), Date.parse(item.last_seen)], `${source}: ${item.endpoint}`);
    }
    const github = items.find((item) => item.endpoint === "github.com:443");
    assert.equal(await page.textContent("tr:has-text('github.com:443') [data-label='First seen']"), await shown(github.first_seen));
    const [learned] = (await admin.get(`/baselines/states?${query}`)).items;
    const facts = await page.$$eval("dl.facts time", (all) => all.map((time) => Date.parse(time.dateTime)));
    assert.deepEqual(facts, [Date.parse(learned.first_seen), Date.parse(learned.last_seen)], source);
    assert.deepEqual(await violations(page), [], source);
  }
}

/** The list marks who was killed, and has what is in each state. */
export async function states(browser, admin, lockdown) {
  const { page } = browser;
  const row = (id) => page.locator(`#rows tr[id='detection-${id}']`);
  await browser.open("/detections");
  const { items } = await admin.get("/detections");
  for (const detection of items) {
    assert.equal(await row(detection.id).locator(".badge.lockdown").count(), detection.is_lockdown ? 1 : 0, detection.id);
  }
  assert.ok(items.some((one) => one.is_lockdown) && items.some((one) => !one.is_lockdown));
  const other = items.find((one) => one.state === "new" && one.type !== lockdown.type);
  const set = (id, state) => admin.call("PUT", `/detections/${id}/state`, { state });
  await set(lockdown.id, "resolved");
  const rule = await admin.call("POST", "/suppressions", { type: other.type, reason: "known" });
  for (const [state, has, hasNot] of [["resolved", lockdown.id, other.id], ["suppressed", other.id, lockdown.id]]) {
    await browser.open("/detections");
    await page.selectOption("#state", state);
    await until(`${state} alone`, async () => page.url().includes(`state=${state}`) && (await row(hasNot).count()) === 0);
    await counted(row(has), 1);
    const expected = (await admin.get(`/detections?state=${state}`)).items.map((one) => `detection-${one.id}`);
    assert.deepEqual(await page.$$eval("#rows tr[id]:not(#more)", (all) => all.map((one) => one.id)), expected);
    const badges = await page.$$eval("#rows td[data-label='State']", (all) => all.map((cell) => cell.textContent.trim().toLowerCase()));
    assert.ok(badges.length > 0 && badges.every((badge) => badge === state), `${state}: ${badges}`);
  }
  await set(lockdown.id, "new");
  await admin.call("DELETE", `/suppressions/${rule.id}`);
}
