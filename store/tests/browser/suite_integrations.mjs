// Integrations, from the click to what a receiver gets and what the database has: the receiver is this program.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { counted, until, violations } from "./harness.mjs";

/** A receiver that answers what it is told to. */
class Receiver {
  static async start() {
    const receiver = Object.assign(new Receiver(), { requests: [], status: 200 });
    receiver.server = createServer((request, response) => {
      const parts = [];
      request.on("data", (chunk) => parts.push(chunk));
      request.on("end", () => {
        receiver.requests.push({ path: request.url, method: request.method, headers: request.headers, body: Buffer.concat(parts).toString() });
        response.writeHead(receiver.status, { etag: '"1"' }).end(receiver.status === 200 ? "{}" : "no");
      });
    });
    await new Promise((resolve) => receiver.server.listen(0, "127.0.0.1", resolve));
    return receiver;
  }

  url(path) {
    return `http://127.0.0.1:${this.server.address().port}${path}`;
  }

  close() {
    this.server.closeAllConnections();
    this.server.close();
  }
}

const KEY = `whsec_${Buffer.from("0123456789012345678901234567890x").toString("base64")}`;

async function create(browser, kind, fields) {
  await browser.open(`/integrations/new?kind=${kind}`);
  for (const [name, value] of Object.entries(fields)) await browser.page.fill(`#${name}`, value);
  await browser.page.click("button:has-text('Create')");
  await browser.page.waitForURL(/\/integrations\/[0-9a-f]{32}/);
  return browser.page.url().match(/[0-9a-f]{32}/)[0];
}

async function test(browser, told) {
  await browser.page.click("button:has-text('Send a test')");
  await browser.page.waitForSelector(`main >> text=${told}`);
}

const DELIVERED = "The test was delivered.";

/** Each kind: made, tested, changed, failed, tried again, deleted. `detect` makes a detection that is to be told. */
export async function run(browser, admin, detect) {
  const { page } = browser;
  const receiver = await Receiver.start();
  const deliveries = async (id) => (await admin.get(`/integrations/${id}/deliveries`)).items;
  const hook = await create(browser, "webhook", { name: "security team", url: receiver.url("/secret-path"), secret: KEY, headers: "X-Team: security" });
  assert.ok(!(await page.content()).includes("secret-path"), "addresses are secrets");
  await test(browser, DELIVERED);
  const [first] = receiver.requests;
  assert.deepEqual([first.method, first.path, first.headers["x-team"]], ["POST", "/secret-path", "security"]);
  assert.ok(first.headers["webhook-id"] && first.headers["webhook-signature"], "Standard Webhooks");
  assert.deepEqual((await deliveries(hook)).map((one) => [one.state, one.last_status]), [["delivered", 200]]);
  assert.match(await page.textContent("#deliveries"), /Delivered/);
  assert.deepEqual(await violations(page), []);

  // The receiver fails: the page says so, and in red.
  receiver.status = 500;
  await test(browser, "The test was not delivered");
  await counted(page.locator(".alert >> text=The test was not delivered"), 1);
  await detect();
  const dead = await until("a delivery that is given up", async () => (await deliveries(hook)).find((one) => one.state === "dead" && one.type === "detection.created")).catch(async (error) => {
    throw new Error(`${error.message}: ${JSON.stringify(await deliveries(hook))}`);
  });
  await browser.open(`/integrations/${hook}`);
  const row = page.locator("#deliveries tr", { has: page.locator(`input[name='delivery'][value='${dead.id}']`) });
  assert.match(await row.textContent(), /Given up[\s\S]*500/);
  assert.deepEqual(await violations(page), []);
  receiver.status = 200;
  const before = receiver.requests.length;
  await row.locator("button:has-text('Try again')").click();
  await page.waitForSelector(".notice >> text=tried again");
  await until("the second try", async () => (await deliveries(hook)).find((one) => one.id === dead.id && one.state === "delivered"));
  const told = receiver.requests.slice(before).map((request) => JSON.parse(request.body)).filter((message) => message.type === "detection.created");
  assert.deepEqual(told.map((message) => message.data.evidence), ["told to integrations"]);

  // Changed: secrets stay, what is chosen is kept.
  await browser.open(`/integrations/${hook}`);
  await page.fill("#name", "security team, quiet");
  await page.check("input[name='lockdown_only']");
  await page.check("input[name='blocked_calls']");
  await page.fill("#types", "Reverse-Shell");
  await page.fill("#scopes", "repository octo/hello");
  await page.selectOption("#format", "ocsf");
  await page.uncheck("input[name='enabled']");
  await page.click("button:has-text('Save')");
  await page.waitForSelector(".notice");
  const changed = await admin.get(`/integrations/${hook}`);
  assert.deepEqual([changed.name, changed.enabled, changed.target.format], ["security team, quiet", false, "ocsf"]);
  assert.deepEqual(changed.selection, { ...changed.selection, detections: true, lockdown_only: true, blocked_calls: true, would_block_calls: false, detection_types: ["Reverse-Shell"], scopes: [{ repository: "octo/hello" }] });
  await test(browser, DELIVERED);

  const slack = await create(browser, "slack", { name: "channel", url: receiver.url("/services/T/B/x") });
  await test(browser, DELIVERED);
  assert.ok(JSON.parse(receiver.requests.at(-1).body).text, "what Slack shows");
  const collector = await create(browser, "otlp", { name: "logs", url: receiver.url("/v1/logs") });
  await test(browser, DELIVERED);
  assert.equal(receiver.requests.at(-1).path, "/v1/logs");
  const bucket = await create(browser, "s3", { name: "archive", bucket: "evidence", region: "us-east-1", endpoint: receiver.url(""), prefix: "pc/", access_key_id: "id", secret_access_key: "key" });
  await test(browser, DELIVERED);
  assert.deepEqual([receiver.requests.at(-1).method, receiver.requests.at(-1).path.startsWith("/evidence/pc/")], ["PUT", true], receiver.requests.at(-1).path);
  await browser.open("/integrations");
  await counted(page.locator("tbody tr"), 4);
  assert.deepEqual(await violations(page), []);
  for (const id of [hook, slack, collector, bucket]) {
    await browser.open(`/integrations/${id}`);
    await page.click("button.danger");
    await page.waitForURL("**/integrations");
  }
  assert.deepEqual((await admin.get("/integrations")).items, []);
  receiver.close();
}
