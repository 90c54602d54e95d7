//! What commands answer to programs, to people who wait, and to those who ask about any job.

use crate::command_line::Operator;
use crate::learned_commands::{fill, transcript};
use crate::notifications::configuration;
use crate::on_both;
use crate::runs::JOB;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{World, context, send};
use crate::{dashboard, suppressions};
use clap::{Command, CommandFactory as _};
use portcullis_store::command::Options;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

on_both!(every_command_answers_programs, commands_that_take_away, any_job_is_explained);

/// Commands as a program runs them, and which of all there are have been run.
struct Program<'a> {
    operator: Operator<'a>,
    run: BTreeSet<String>,
}

impl Program<'_> {
    async fn output(&mut self, command: &str) -> (Option<i32>, String, String) {
        let arguments: Vec<&str> = command.split(' ').chain(["--output", "json"]).collect();
        self.run.insert(leaf(&arguments));
        let output = self.operator.output(&arguments).await;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// What a command that succeeds answers: one JSON document, and nothing else on either stream.
    async fn ask(&mut self, command: &str) -> Value {
        let (status, told, errors) = self.output(command).await;
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{command}: {told}");
        serde_json::from_str(&told).unwrap_or_else(|error| panic!("{command}: {error}: {told}"))
    }

    /// A command that prints a document of another kind does not pretend to print JSON.
    async fn refuse(&mut self, command: &str) {
        let (status, told, errors) = self.output(command).await;
        assert_eq!((status, told.as_str()), (Some(64), ""), "{command}: {errors}");
        assert!(errors.contains("leave --output out"), "{command}: {errors}");
    }
}

/// The name of the command that these arguments run.
fn leaf(arguments: &[&str]) -> String {
    let mut command = Options::command();
    let mut name = Vec::new();
    for argument in arguments {
        let Some(next) = command.find_subcommand(argument).cloned() else { break };
        name.push((*argument).to_owned());
        command = next;
    }
    name.join(" ")
}

/// All commands that have `--output`.
fn leaves(command: &Command, name: &str, found: &mut BTreeSet<String>) {
    let subcommands: Vec<&Command> =
        command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help").collect();
    if subcommands.is_empty()
        && command.get_arguments().any(|argument| argument.get_id() == "output")
    {
        found.insert(name.trim().to_owned());
    }
    for subcommand in subcommands {
        leaves(subcommand, &format!("{name} {}", subcommand.get_name()), found);
    }
}

async fn every_command_answers_programs(world: World) {
    let receiver = Receiver::start().await;
    let server = world.start_with(configuration(&world)).await;
    fill(&server).await;
    let write = |name: &str, text: &str| fs::write(world.path(name), text).unwrap();
    write("build.yaml", "name: build\negress-policy: block\nallowed-endpoints: [a.test]\n");
    write("all.yaml", "name: imported\negress-policy: audit\nattach: [{cluster: prod}]\n");
    write("more.txt", "mirror.test\n");
    let url = receiver.url("/t0k3n");
    write("hook.yaml", &format!("name: ops\ntarget: {{kind: webhook, url: \"{url}\"}}\n"));
    let operator = Operator { server: &server, world: &world };
    let mut program = Program { operator, run: BTreeSet::new() };

    assert_eq!(program.ask("policy apply build.yaml").await["version"], 1);
    assert_eq!(program.ask("policy list").await[0]["name"], "build");
    let policy = program.ask("policy get build").await;
    assert_eq!(policy["document"]["allowed_endpoints"], json!(["a.test"]));
    let first = program.ask("policy get build --version 1").await;
    assert_eq!(first["document"]["egress_policy"], "block");
    assert_eq!(program.ask("policy import-endpoints build more.txt").await["version"], 2);
    assert_eq!(program.ask("policy rename build built").await["name"], "built");
    assert_eq!(
        program.ask("policy restore built 1").await["document"]["allowed_endpoints"],
        json!(["a.test"])
    );
    assert!(program.ask("policy history built").await.as_array().is_some_and(|all| all.len() >= 3));
    assert!(program.ask("policy diff built").await["unified"].is_string());
    assert!(program.ask("policy lint built").await.is_array());
    assert_eq!(program.ask("policy dry-run built --run 7").await["policy"], "built");
    program.refuse("policy export-endpoints built").await;
    let attached = program.ask("attach built --repository octo/hello").await;
    assert_eq!(attached, json!([{ "repository": "octo/hello" }]));
    let explained = program.ask("explain --repository octo/hello --workflow ci.yml").await;
    assert_eq!(explained["policy"]["name"], "built");
    let detached = program.ask("detach built --repository octo/hello").await;
    assert_eq!(
        (&detached["action"], &detached["target"]),
        (&json!("detached"), &json!({ "repository": "octo/hello" }))
    );
    program.refuse("export").await;
    assert_eq!(program.ask("import all.yaml").await["policies"][0]["action"], "created");
    assert_eq!(
        program.ask("policy delete built").await,
        json!({ "policy": "built", "action": "deleted" })
    );

    assert_eq!(program.ask("runs").await[0]["run_id"], 7);
    assert_eq!(program.ask(&format!("events {JOB}")).await[0]["seq"], 1);
    assert_eq!(program.ask("baseline list").await[0]["runs"], 1);
    assert!(program.ask("baseline show --cluster prod").await.is_array());
    program.refuse("baseline export --cluster prod").await;
    let learned = program.ask("baseline create-policy learned --cluster prod").await;
    assert_eq!(learned["version"], 1);

    let made = program.ask("integration create hook.yaml --generate-secret").await;
    assert_eq!(made["name"], "ops");
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"), "{made}");
    assert_eq!(program.ask("integration list").await[0]["name"], "ops");
    assert_eq!(program.ask("integration update hook.yaml").await["id"], made["id"]);
    assert_eq!(program.ask("integration test ops").await["state"], "delivered");
    receiver.answer([Answer::Status(503)]);
    let (status, told, errors) = program.output("integration test ops").await;
    let failed: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status, &failed["last_status"]), (Some(1), &json!(503)), "{errors}");
    assert!(errors.starts_with("error: integration ops does not work"), "{errors}");
    let dead = program.ask("integration deliveries ops --state dead").await;
    let delivery = dead[0]["id"].as_str().unwrap();
    let retried = program.ask(&format!("integration retry {delivery}")).await;
    assert_eq!(retried, json!({ "delivery": delivery, "action": "retried" }));
    assert_eq!(program.ask("integration delete ops").await["action"], "deleted");

    let host = crate::runs::host(&server, "prod").await;
    let job = "0197aaaaaaaa7000800000000000000b";
    crate::runs::begin(&server, &host, crate::runs::new_job(job, 8, "build")).await.expect(200);
    let event = suppressions::detection(job, 1, "Sudo-Use", "/usr/bin/sudo");
    crate::runs::upload(&server, &host, job, crate::runs::lines(&[event])).await.expect(200);
    assert_eq!(program.ask("detections list").await[0]["type"], "Sudo-Use");
    let rule = program.ask("detections suppress --type Sudo-Use --reason tests").await;
    assert_eq!(rule["suppressed"], 1);
    let rule = rule["id"].as_str().unwrap();
    assert_eq!(program.ask("detections rules").await[0]["id"], rule);
    let removed = program.ask(&format!("detections unsuppress {rule}")).await;
    assert_eq!(removed, json!({ "rule": rule, "action": "removed" }));
    let resolved = program.ask(&format!("detections resolve {job}-1")).await;
    assert_eq!(
        (&resolved["id"], &resolved["state"]),
        (&json!(format!("{job}-1")), &json!("resolved"))
    );
    assert_eq!(program.ask(&format!("detections reopen {job}-1")).await["state"], "new");

    let token = program.ask("token create ci --role viewer").await;
    assert!(token["secret"].as_str().unwrap().starts_with("pct_"), "{token}");
    assert!(program.ask("token list").await.as_array().is_some_and(|all| all.len() == 2));
    let token = token["id"].as_str().unwrap();
    let revoked = program.ask(&format!("token revoke {token}")).await;
    assert_eq!(revoked, json!({ "token": token, "action": "revoked" }));
    let enrolment = program.ask("enrol create --cluster dev").await;
    write("enrolment", enrolment["secret"].as_str().unwrap());
    let enrolled = program
        .ask("enrol host --enrolment-file enrolment --name runner-2 --credential-file credential")
        .await;
    assert_eq!((&enrolled["host_name"], &enrolled["cluster"]), (&json!("runner-2"), &json!("dev")));
    assert!(!enrolled.to_string().contains("pch_"), "the credential is in its file alone");
    let id = enrolled["host_id"].as_str().unwrap();
    let hosts = program.ask("enrol list").await;
    assert!(hosts.as_array().unwrap().iter().any(|host| host["id"] == id), "{hosts}");
    let revoked = program.ask(&format!("enrol revoke {id}")).await;
    assert_eq!(revoked, json!({ "host_id": id, "action": "revoked" }));
    assert_eq!(program.ask("audit-log").await[0]["action"], "host.revoke");
    assert_eq!(program.ask("doctor").await[0]["ok"], true);

    let mut root = Options::command();
    root.build();
    let mut all = BTreeSet::new();
    leaves(&root, "", &mut all);
    assert!(all.len() > 35, "{all:?}");
    let missed: Vec<&String> = all.difference(&program.run).collect();
    assert!(missed.is_empty(), "no program has run {missed:?}");
    server.stop().await;
}

/// Commands that change or end something, on both streams and with their exit status.
async fn commands_that_take_away(world: World) {
    let server = world.start().await;
    let operator = Operator { server: &server, world: &world };
    let write = |text: &str| {
        let yaml = format!("name: build\negress-policy: block\nallowed-endpoints: [{text}]\n");
        fs::write(world.path("build.yaml"), yaml).unwrap();
    };
    write("a.test");
    operator.run(&["policy", "apply", "build.yaml"]).await;
    write("b.test");
    operator.run(&["policy", "apply", "build.yaml"]).await;
    let host = server.enrol("prod").await["host_id"].as_str().unwrap().to_owned();
    let body = json!({ "name": "ci", "role": "viewer" });
    let token = server.post("/tokens", body).await.expect(201);
    let token = token["id"].as_str().unwrap().to_owned();
    fs::write(world.path("wrong"), "pct_wrong").unwrap();
    let text = transcript(
        &operator,
        &[
            "attach build --cluster prod",
            "attach build --cluster prod --organization octo",
            "detach build --organization octo",
            "detach build --cluster prod",
            "detach build --cluster prod",
            "policy rename build built",
            "policy rename build built",
            "policy rename built Not-A-Name",
            "policy restore built 1",
            "policy restore built 9",
            "policy get built",
            "policy delete built",
            "policy delete built",
            "enrol list",
            &format!("enrol revoke {host}"),
            &format!("enrol revoke {host}"),
            &format!("token revoke {token}"),
            &format!("token revoke {token}"),
            "export --output json",
            "doctor",
            "doctor --token-file wrong",
            "doctor --server http://127.0.0.1:1",
            "doctor --dir nowhere",
        ],
    )
    .await;
    let text = text.replace(&host, "HOST").replace(&token, "TOKEN");
    insta::assert_snapshot!("taking_away", text);
    server.stop().await;
}

/// Any job: one that the store has, one whose context is at hand, in a file or pasted into the page.
async fn any_job_is_explained(world: World) {
    let server = world.start().await;
    fill(&server).await;
    let operator = Operator { server: &server, world: &world };
    for (name, target) in [
        ("of-cluster", json!({ "cluster": "prod" })),
        ("of-other", json!({ "repository": "octo/other" })),
    ] {
        let yaml = format!("name: {name}\negress-policy: block\n");
        server.put_policy(name, &yaml).await.expect(201);
        server.post(&format!("/policies/{name}/attachments"), target).await.expect(200);
    }
    // The job's own cluster counts, unless another one is said.
    let of_job = operator.run(&["explain", "--job", JOB]).await;
    assert!(
        of_job.contains("→  cluster       prod") && of_job.contains("of-cluster version 1"),
        "{of_job}"
    );
    let elsewhere = operator.run(&["explain", "--job", JOB, "--cluster", "dev"]).await;
    assert!(!elsewhere.contains("of-cluster"), "{elsewhere}");
    let mut other = context();
    "octo/other".clone_into(&mut other.repository);
    "octo/other/.github/workflows/ci.yml@refs/heads/main".clone_into(&mut other.workflow_ref);
    fs::write(world.path("other.json"), serde_json::to_string(&other).unwrap()).unwrap();
    let of_file = operator.run(&["explain", "--context", "other.json"]).await;
    assert!(
        of_file.contains("→  repository    octo/other") && of_file.contains("of-other version 1"),
        "{of_file}"
    );
    fs::create_dir(world.path("files")).unwrap();
    let yaml = "name: a\negress-policy: block\nattach: [{organization: octo}]\n";
    fs::write(world.path("files/a.yaml"), yaml).unwrap();
    let by_files = operator.run(&["explain", "--context", "other.json", "--dir", "files"]).await;
    assert!(by_files.contains("→  organization  octo"), "{by_files}");

    fs::write(world.path("bad.json"), "{\"repository\": \"octo/other\"}").unwrap();
    for (arguments, told, status) in [
        (&["--job", "none"][..], "there is no", 1),
        (&["--context", "bad.json"], "bad.json is no context of a job", 1),
        (&["--context", "none.json"], "none.json can't be read", 1),
        (&["--job", JOB, "--dir", "files"], "a directory of files has no jobs", 1),
        (&["--job", JOB, "--context", "other.json"], "cannot be used with", 64),
        (&["--repository", "octo/hello"], "--workflow", 64),
        (&[], "--repository", 64),
    ] {
        let output = operator.output(&[&["explain"], arguments].concat()).await;
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
        assert!(errors.contains(told) && output.stdout.is_empty(), "{arguments:?}: {errors}");
    }

    let cookie = dashboard::sign_in(&server, &server.token).await;
    let page = async |context: &str, cluster: &str| {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("context", context), ("cluster", cluster)])
            .finish();
        let response = dashboard::get(&server, &format!("/explain?{query}"), Some(&cookie)).await;
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let (status, html) = page(&serde_json::to_string(&other).unwrap(), "").await;
    assert!(status == 200 && html.contains("of-other") && !html.contains("of-cluster"), "{html}");
    let (status, html) = page(&serde_json::to_string(&context()).unwrap(), "prod").await;
    assert!(status == 200 && html.contains("of-cluster") && !html.contains("of-other"), "{html}");
    let (_, html) = page("{", "").await;
    assert!(html.replace("&#39;", "'").contains("can't be understood"), "{html}");
    // Who asks without a session learns nothing.
    let nobody = dashboard::get(&server, "/explain?context=%7B%7D", None).await;
    assert_eq!(nobody.status().as_u16(), 303);
    send(server.anonymous(Method::POST, "/api/v1/resolve").json(&json!({ "context": other })))
        .await
        .problem(401);
    server.stop().await;
}

/// A store that takes its time.
async fn slow_store() -> String {
    let answer = async |uri: axum::http::Uri| {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let items: Vec<Value> = Vec::new();
        axum::Json(match uri.path() {
            "/api/v1/policies:dry-run" => json!({
                "policy": "p", "mode": "block", "runs_of": "everything", "jobs": 0, "runs": 0, "allowed": 0, "blocked": 0, "would_block": 0,
                "not_allowed": items, "newly_allowed": items, "unused": items, "left_out": 0,
            }),
            "/api/v1/policies:import" => json!({ "policies": items, "dry_run": false }),
            _ if uri.query().is_some_and(|query| query.contains("cursor=")) => {
                json!({ "items": items })
            }
            _ => json!({ "items": items, "next_cursor": "more" }),
        })
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    format!("http://{address}")
}

/// Who waits at a terminal sees that something goes on; a file or a pipe has nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn long_work_shows_how_far_it_is_on_a_terminal() {
    let url = slow_store().await;
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("all.yaml"), "name: a\negress-policy: audit\n").unwrap();
    let program = env!("CARGO_BIN_EXE_portcullis");
    let run = |on_terminal: bool, command: &'static str| {
        let (line, url) = (format!("{program} {command}"), url.clone());
        let directory = directory.path().to_owned();
        tokio::task::spawn_blocking(move || {
            let mut shell = std::process::Command::new(if on_terminal { "script" } else { "sh" });
            if on_terminal {
                shell.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
            } else {
                shell.args(["-c", &line]);
            }
            let output = shell
                .env("PORTCULLIS_SERVER", &url)
                .env("PORTCULLIS_TOKEN", "pct_any")
                .current_dir(directory)
                .stdin(std::process::Stdio::null())
                .output()
                .unwrap();
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(output.status.success(), "{command}: {text}");
            text
        })
    };
    // All at once: the store is slow, not the machine.
    let commands = [
        ("policy list", "\r0 policies"),
        ("runs --limit 5", "\r0 of 5 runs (0 %)"),
        ("detections --limit 5", "\r0 of 5 detections (0 %)"),
        ("policy dry-run p", "\rjudging recorded runs, "),
        ("import all.yaml", "\rimporting, "),
    ];
    let started = commands
        .map(|(command, progress)| (command, progress, run(true, command), run(false, command)));
    for (command, progress, seen, piped) in started {
        let (seen, piped) = (seen.await.unwrap(), piped.await.unwrap());
        assert!(seen.contains(progress), "{command}: {seen:?}");
        assert!(seen.contains("\r\u{1b}[K"), "the line is taken away: {seen:?}");
        assert!(!piped.contains('\r') && !piped.contains('\u{1b}'), "{command}: {piped:?}");
    }
}
