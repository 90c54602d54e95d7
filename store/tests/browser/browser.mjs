// A browser, and what every page is held to: no message on the console, no violation of the Content-Security-Policy, no
// request to anybody else.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { asked } from "./harness.mjs";

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

export class Browser {
  /** Starts a browser with a profile of its own; its window has a size, a theme and a place in the world. */
  static async start(server, { width = 1280, height = 860, theme = "light" } = {}) {
    const profile = mkdtempSync(join(tmpdir(), "portcullis-browser-"));
    const context = await chromium.launchPersistentContext(profile, {
      executablePath: process.env.PORTCULLIS_CHROMIUM ?? "/usr/bin/chromium",
      args: FLAGS,
      viewport: { width, height },
      colorScheme: theme,
      locale: "en-GB",
      timezoneId: "Europe/Berlin",
      ignoreHTTPSErrors: true,
    });
    const browser = new Browser();
    Object.assign(browser, { profile, context, server, complaints: [], allowed: [] });
    await context.addInitScript(() => {
      addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
    });
    browser.page = context.pages()[0] ?? (await context.newPage());
    browser.watch(browser.page);
    return browser;
  }

  watch(page) {
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) this.complain(`${message.type()}: ${message.text()}`);
    });
    page.on("pageerror", (error) => this.complain(`error: ${error.message}`));
    page.on("dialog", async (dialog) => {
      this.complain(`a dialog: ${dialog.message()}`);
      await dialog.dismiss();
    });
    page.on("response", (response) => {
      const address = new URL(response.url());
      if (address.origin === this.server && response.status() < 400) asked.add(`${response.request().method()} ${address.pathname}`);
    });
    page.on("request", (request) => {
      if (!request.url().startsWith(this.server)) this.complain(`a request to ${request.url()}`);
    });
  }

  complain(text) {
    if (this.allowed.some((pattern) => pattern.test(text))) return;
    this.complaints.push(`${this.page.url()}: ${text.slice(0, 500)}`);
  }

  /** What is expected to be complained about from now on: a refusal that a test asks for. */
  allow(...patterns) {
    this.allowed = patterns;
  }

  async open(path) {
    const answer = await this.page.goto(`${this.server}${path}`, { waitUntil: "load" });
    return answer.status();
  }

  async signIn(token, path = "/") {
    await this.open(`/sign-in?next=${encodeURIComponent(path)}`);
    await this.page.fill("#token", token);
    await Promise.all([this.page.waitForURL((url) => url.pathname === path.split("?")[0]), this.page.click("form button.primary")]);
  }

  async close() {
    await this.context.close();
    rmSync(this.profile, { recursive: true, force: true });
  }
}
