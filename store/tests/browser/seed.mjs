// Fills a store through its public API with what runner hosts report: an ordinary job, one that was kept from something, one
// that was killed, one that goes on, and one whose every text is hostile.
import { createHash } from "node:crypto";

export const HOSTILE = [
  "<script>window.hacked=1</script>",
  "\"><img src=x onerror=window.hacked=1>",
  "'-alert(1)-'",
  "{{7*7}}${7*7}<%= 7 %>",
  "\u202egnp.exe\u2066 \u200bzero",
  "=HYPERLINK(\"http://evil.test\",\"x\")",
  "../../etc/passwd%00%0d%0aSet-Cookie: a=b",
  "</textarea></title></style><svg onload=window.hacked=1>",
].join(" ");

export class Api {
  constructor(server, token) {
    Object.assign(this, { server, token });
  }

  async call(method, path, body, headers = {}) {
    const isText = typeof body === "string";
    const answer = await fetch(`${this.server}/api/v1${path}`, {
      method,
      headers: { authorization: `Bearer ${this.token}`, ...(body === undefined || isText ? {} : { "content-type": "application/json" }), ...headers },
      body: body === undefined || isText ? body : JSON.stringify(body),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
    return text === "" ? null : answer.headers.get("content-type")?.includes("json") ? JSON.parse(text) : text;
  }

  get(path) {
    return this.call("GET", path);
  }
}

export const jobId = (name) => createHash("sha256").update(name).digest("hex").slice(0, 32);

export function context(run, { repository = "octo/hello", workflow = "CI", job = "build", actor = "mona", ref = "refs/heads/main", ...rest } = {}) {
  return {
    repository, repository_owner: repository.split("/")[0], workflow_ref: `${repository}/.github/workflows/ci.yml@refs/heads/main`, workflow, job,
    run_id: run, run_attempt: 1, git_ref: ref, sha: "5f1d0c9b8a7e6f5d4c3b2a190817263544332211", event_name: "push", actor, server_url: "https://github.com", runner_name: "runner-1", ...rest,
  };
}

const worker = { pid: 900, exe: "/home/runner/bin/Runner.Worker" };

function process(exe, argv, step, pid) {
  return { pid, start_time: pid * 10, exe, argv, uid: 1001, cwd: "/home/runner/work/hello/hello", ancestors: [{ pid: 950, exe: "/usr/bin/bash" }, worker], step };
}

/** Events of a job, numbered from 1. */
export class Recorder {
  constructor(id, policy, start) {
    Object.assign(this, { id, policy, start, events: [] });
  }

  add(type, seconds, fields) {
    const time = new Date(this.start + seconds * 1000).toISOString().replace("Z", "000Z");
    this.events.push({ job_id: this.id, seq: this.events.length + 1, time, type, ...fields });
    return this;
  }

  call(seconds, verdict, name, port, who, rule, address = "192.0.2.10", packets = 1) {
    return this.add("network", seconds, { verdict, direction: "outbound", protocol: "tcp", address, port, ...(name ? { name } : {}), packets, process: who, rule, policy: this.policy });
  }

  lines(from = 0) {
    return this.events.slice(from).map((event) => `${JSON.stringify(event)}\n`).join("");
  }
}

export function posture(level, features, warnings = []) {
  return { level, scope: "host", features, warnings };
}

export const FEATURES = [
  { name: "nftables", state: "active", reason: "one table for the job, verified" },
  { name: "cgroup-v2", state: "active", reason: "found at /sys/fs/cgroup" },
  { name: "table-owner", state: "active", reason: "owned, and persistent" },
  { name: "sensor-process", state: "active", reason: "BPF" },
];

export class Host {
  constructor(admin, credential) {
    this.api = new Api(admin.server, credential);
  }

  static async enrol(admin, cluster, name) {
    const { secret } = await admin.call("POST", "/enrolments", { cluster });
    const enrolled = await new Api(admin.server, secret).call("POST", "/enrol", { host_name: name });
    return new Host(admin, enrolled.credential);
  }

  start(id, context, policy, { mode = "block", target = "octo/hello", identity = "verified", start }) {
    return this.api.call("POST", "/jobs", { id, context, policy, target, identity, mode, started_at: new Date(start).toISOString() });
  }

  upload(recorder, from = 0) {
    return this.api.call("POST", `/jobs/${recorder.id}/events`, recorder.lines(from), { "content-type": "application/x-ndjson" });
  }

  report(recorder, context, { mode = "block", identity = "verified", target = "octo/hello", level = "enforced", features = FEATURES, warnings = [] }) {
    const count = (verdict) => recorder.events.filter((event) => event.type === "network" && event.verdict === verdict).reduce((sum, event) => sum + event.packets, 0);
    return this.api.call("PUT", `/jobs/${recorder.id}/report`, {
      job_id: recorder.id, policy: recorder.policy, target, identity, mode, posture: posture(level, features, warnings),
      allowed: count("allowed"), blocked: count("blocked"), would_block: count("would-block"), destinations: [], detections: [], fail_job: false,
    });
  }
}

/** A build as one knows it: clone, install, compile, test; with a dependency that tries something. */
function build(id, policy, start, { evil = true } = {}) {
  const git = process("/usr/bin/git", ["git", "fetch", "--depth=1", "origin"], "__actions_checkout", 1001);
  const pip = process("/usr/bin/python3.12", ["python3", "-m", "pip", "install", "-r", "requirements.txt"], "install", 1010);
  const setup = process("/usr/bin/python3.12", ["python3", "setup.py", "egg_info"], "install", 1017);
  const recorder = new Recorder(id, policy, start);
  recorder.add("job", 0, { stage: "started", reason: "policy bound" });
  recorder.add("process", 0.4, { process: git, count: 1 });
  recorder.call(1, "allowed", "github.com", 443, git, "github.com:443", "192.0.2.20", 14);
  recorder.add("process", 3, { process: pip, count: 1 });
  for (let at = 0; at < 12; at += 1) {
    recorder.call(4 + at * 0.7, "allowed", at % 3 ? "files.pythonhosted.org" : "pypi.org", 443, pip, at % 3 ? "files.pythonhosted.org:443" : "pypi.org:443", `192.0.2.${30 + at}`, 6);
  }
  recorder.add("process", 9, { process: setup, count: 1 });
  if (evil) {
    recorder.call(9.5, "blocked", "collect.evil.test", 443, setup, "no endpoint allows it", "203.0.113.66", 3);
    recorder.call(9.9, "blocked", null, 8443, setup, "no endpoint allows it", "203.0.113.66");
    recorder.call(12, "blocked", "telemetry.example.com", 443, pip, "no endpoint allows it", "198.51.100.9", 2);
  }
  recorder.add("file", 14, { path: "/home/runner/work/hello/hello/src/main.c", process: setup });
  recorder.add("job", 20, { stage: "ended", reason: "the worker has exited" });
  return recorder;
}

/** Everything that the pages are looked at with. */
export async function seed(admin) {
  const now = Date.now();
  const host = await Host.enrol(admin, "prod-linux", "runner-host-1");
  const weak = await Host.enrol(admin, "prod-linux", "runner-host-2");
  await admin.call("PUT", "/policies/hello-build?comment=first", "name: hello-build\ndescription: Builds of hello\negress-policy: block\nallowed-endpoints: [github.com:443, pypi.org:443]\nlockdown-mode: {enabled: true, detections: [Reverse-Shell]}\n");
  await admin.call("PUT", "/policies/hello-build?comment=files+of+packages", "name: hello-build\ndescription: Builds of hello\negress-policy: block\nallowed-endpoints: [github.com:443, pypi.org:443, files.pythonhosted.org:443, pypi.org:443]\nlockdown-mode: {enabled: true, detections: [Reverse-Shell]}\n");
  await admin.call("POST", "/policies/hello-build/attachments", { repository: "octo/hello" });
  await admin.call("PUT", "/policies/org-base", "name: org-base\ndescription: What everybody needs\negress-policy: audit\nallowed-endpoints: [github.com:443]\n");
  await admin.call("POST", "/policies/org-base/attachments", { organization: "octo" });
  await admin.call("PUT", "/policies/not-used", "name: not-used\negress-policy: audit\nallowed-endpoints: []\n");
  const policy = { name: "hello-build", version: "2", scope: "repository" };
  for (let run = 1; run <= 6; run += 1) {
    const start = now - (7 - run) * 3_000_000;
    const id = jobId(`job ${run}`);
    await host.start(id, context(4100 + run), policy, { start });
    const recorder = build(id, policy, start, { evil: run >= 5 });
    await host.upload(recorder);
    await host.report(recorder, context(4100 + run), {});
  }
  const killed = jobId("killed");
  const start = now - 900_000;
  await weak.start(killed, context(4200, { job: "deploy", workflow: "Release" }), policy, { start });
  const shell = process("/usr/bin/bash", ["bash", "-i"], "deploy", 2020);
  const recorder = new Recorder(killed, policy, start);
  recorder.add("job", 0, { stage: "started", reason: "policy bound" });
  recorder.call(2, "allowed", "github.com", 443, process("/usr/bin/git", ["git", "clone"], "checkout", 2001), "github.com:443", "192.0.2.20", 9);
  recorder.add("detection", 5, { detection: "Reverse-Shell", evidence: "standard input and output of /usr/bin/bash (2020) lead to 203.0.113.66:4444 through a pipe of /usr/bin/nc (2019)", is_lockdown: true, process: shell });
  recorder.add("posture", 5, { reason: "the sensor lost 12 events", posture: posture("degraded", FEATURES) });
  await weak.upload(recorder);
  await weak.report(recorder, context(4200, { job: "deploy", workflow: "Release" }), {
    level: "degraded", features: [...FEATURES.slice(0, 2), { name: "table-owner", state: "missing", reason: "this kernel is older than 6.9, and no systemd keeps the socket" }],
    warnings: ["enforcement can be tampered with by root; tampering is recorded"],
  });
  // Every value that a job can influence is hostile, and some are longer than any page wants them.
  const hostile = jobId("hostile");
  const huge = `${HOSTILE} `.repeat(60);
  const about = {
    repository: "octo/evil", workflow: HOSTILE, job: "build", actor: HOSTILE, ref: "refs/heads/<script>window.hacked=1</script>", runner_name: HOSTILE,
    workflow_ref: "octo/evil/.github/workflows/\"><img src=x onerror=window.hacked=1>.yml@refs/heads/main", server_url: "https://evil.test",
  };
  const bad = new Recorder(hostile, { ...policy, name: "<b>hello</b>", version: HOSTILE.slice(0, 60) }, now - 600_000);
  await host.start(hostile, context(4300, about), bad.policy, { start: now - 600_000, target: HOSTILE, identity: "asserted" });
  const evil = { ...process(`/tmp/${HOSTILE}`, [HOSTILE, huge], HOSTILE, 3001), cwd: HOSTILE };
  evil.ancestors = [{ pid: 3000, exe: HOSTILE }, { pid: 2999, exe: huge }, worker];
  bad.call(1, "blocked", "x.test", 443, evil, HOSTILE).call(2, "would-block", "xn--e1afmkfd.test", 443, evil, huge);
  bad.call(2.5, "blocked", "<img/src=x/onerror=window.hacked=1>.test", 443, evil, HOSTILE);
  Object.assign(bad.events.at(-1), { protocol: "<b>tcp</b>", container: HOSTILE, cname_chain: [HOSTILE] });
  bad.add("dns", 2.7, { verdict: "blocked", name: HOSTILE, query_type: HOSTILE, addresses: [], rule: HOSTILE, response_code: HOSTILE, count: 1, process: evil, policy: bad.policy });
  bad.add("process", 2.8, { process: evil, count: 1 }).add("file", 3, { path: HOSTILE, process: evil }).add("file", 3.1, { path: huge, process: evil });
  bad.add("detection", 4, { detection: "Reverse-Shell", evidence: HOSTILE, is_lockdown: false, process: evil });
  bad.add("detection", 4.1, { detection: "Sudo-Use", evidence: huge, is_lockdown: true, process: evil });
  bad.add("posture", 4.2, { reason: HOSTILE, posture: posture("degraded", [{ name: HOSTILE, state: "degraded", reason: huge }], [HOSTILE, huge]) });
  bad.add("job", 5, { stage: "ended", reason: HOSTILE });
  await host.upload(bad);
  await host.report(bad, context(4300, about), { level: "degraded", target: HOSTILE, identity: "asserted", features: [{ name: HOSTILE, state: "degraded", reason: huge }], warnings: [HOSTILE, huge] });
  // A host that says it of itself, and people who write it down.
  const name = HOSTILE.replace(/[\u200b-\u2069]/g, "").slice(0, 90).trim();
  const odd = await Host.enrol(admin, "prod-linux", name);
  await odd.api.call("POST", "/host/heartbeat", { version: name, kernel: name });
  await admin.call("PUT", `/policies/odd-words?comment=${encodeURIComponent(HOSTILE)}`, `name: odd-words\ndescription: ${JSON.stringify(name)}\negress-policy: audit\n`);
  await admin.call("POST", "/policies/odd-words/attachments", { workflow: "octo/evil/.github/workflows/<b>.yml" }).catch(() => null);
  const running = jobId("running");
  await host.start(running, context(4400, { job: "live" }), policy, { start: now - 20_000 });
  const live = new Recorder(running, policy, now - 20_000);
  live.call(1, "allowed", "github.com", 443, process("/usr/bin/git", ["git", "fetch"], "checkout", 4001), "github.com:443");
  await host.upload(live);
  // More calls than a page has.
  const many = jobId("many");
  const long = new Recorder(many, policy, now - 400_000);
  await host.start(many, context(4350, { job: "many" }), policy, { start: now - 400_000 });
  const caller = process("/usr/bin/make", ["make", "-j2"], "build", 5001);
  for (let at = 0; at < 230; at += 1) long.call(at / 4, at % 10 === 3 ? "blocked" : "allowed", at % 10 === 3 ? "collect.evil.test" : "github.com", 443, caller, at % 10 === 3 ? "no endpoint allows it" : "github.com:443", `192.0.2.${at % 200}`);
  await host.upload(long);
  await host.report(long, context(4350, { job: "many" }), {});
  const detect = async () => {
    const before = live.events.length;
    live.add("detection", 60, { detection: "Sudo-Use", evidence: "told to integrations", is_lockdown: false, process: caller });
    await host.upload(live, before);
  };
  /** The page of an integration whose every text is hostile. */
  const integration = async () => {
    const name = HOSTILE.replace(/[\u200b-\u2069]/g, "").slice(0, 90).trim();
    const made = await admin.call("POST", "/integrations", { name, target: { kind: "slack", url: "https://slack.portcullis.test/x" }, enabled: false });
    return [`/integrations/${made.id}`];
  };
  return { host, live, killed, hostile, running, many, manyCalls: 230, built: jobId("job 6"), context: context(4106), detect, integration };
}
