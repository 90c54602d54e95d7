//! The command line for what is learned from runs, on both streams and with its exit status, as checked-in texts.

use crate::command_line::{Operator, STANDARD_ERROR};
use crate::on_both;
use crate::runs::{begin, call, host, lines, new_job, report, upload};
use crate::support::{Server, World, send};
use reqwest::Method;
use serde_json::{Value, json};
use std::fs;

on_both!(baselines_and_policies_of_them, dry_runs_lints_and_trees, the_store_is_found_by_a_file);

const JOB: &str = "0197aaaaaaaa7000800000000000000a";

/// A job that calls three names, with a tree of processes.
pub async fn fill(server: &Server) {
    let host = host(server, "prod").await;
    begin(server, &host, new_job(JOB, 7, "build")).await.expect(200);
    let mut events: Vec<Value> =
        [("a.test", "allowed"), ("b.test", "would-block"), ("c.test", "blocked")]
            .iter()
            .zip(1..)
            .map(|((name, verdict), seq)| call(JOB, seq, verdict, name))
            .collect();
    let worker =
        json!([{ "pid": 2, "exe": "/bin/bash" }, { "pid": 1, "exe": "/runner/bin/Runner.Worker" }]);
    events.push(json!({
        "job_id": JOB, "seq": 4, "time": "2026-01-01T00:00:05.000000Z", "type": "process", "count": 3,
        "process": { "pid": 7, "start_time": 9, "exe": "/usr/bin/curl", "argv": ["curl", "https://a.test/\u{1b}[31m"], "ancestors": worker, "step": "build" },
    }));
    events.push(json!({
        "job_id": JOB, "seq": 5, "time": "2026-01-01T00:00:06.000000Z", "type": "file", "path": "/src/a.c",
        "process": { "pid": 2, "exe": "/bin/bash" },
    }));
    upload(server, &host, JOB, lines(&events)).await.expect(200);
    let put = server.as_caller(&host, Method::PUT, &format!("/jobs/{JOB}/report"));
    assert_eq!(send(put.json(&report(JOB))).await.status, 204);
}

/// Each command with what it prints, to compare as one text.
pub async fn transcript(operator: &Operator<'_>, commands: &[&str]) -> String {
    let mut text = String::new();
    for command in commands {
        let arguments: Vec<&str> = command.split(' ').collect();
        let printed = operator.run(&arguments).await;
        text.extend(["$ portcullis ", command, "\n", &printed, "\n\n"]);
    }
    text
}

async fn baselines_and_policies_of_them(world: World) {
    let server = world.start().await;
    fill(&server).await;
    let operator = Operator { server: &server, world: &world };
    fs::write(world.path("more.txt"), "# mirrors\nmirror.test\n*.wide.test:443\n").unwrap();
    fs::write(world.path("bad.txt"), "mirror.test\nhttps://b.test/x\n*.com\n").unwrap();
    fs::write(world.path("list.yaml"), "endpoints: [mirror.test, d.test]\n").unwrap();
    let text = transcript(
        &operator,
        &[
            "baseline list",
            "baseline list --source repository --state stable",
            "baseline show --repository octo/hello --workflow ci.yml --job build",
            "baseline show --organization octo --output json",
            "baseline export --cluster prod",
            "baseline export",
            "baseline export --cluster prod --repository octo/hello",
            "baseline create-policy learned --repository octo/hello --dry-run",
            "baseline create-policy learned --repository octo/hello --mode block",
            "baseline create-policy learned --repository octo/hello",
            "baseline create-policy other --cluster nowhere",
            "policy import-endpoints learned more.txt --dry-run",
            "policy import-endpoints learned more.txt",
            "policy import-endpoints learned list.yaml --comment why",
            "policy import-endpoints learned bad.txt",
            "policy import-endpoints learned none.txt",
            "policy import-endpoints learned --repository octo/hello",
            "policy import-endpoints none --repository octo/hello",
            "policy import-endpoints learned",
            "policy export-endpoints learned",
            "policy history learned",
        ],
    )
    .await;
    insta::assert_snapshot!("baselines", text);
    server.stop().await;
}

async fn dry_runs_lints_and_trees(world: World) {
    let server = world.start().await;
    fill(&server).await;
    let operator = Operator { server: &server, world: &world };
    let policy =
        "name: tried\negress-policy: block\nallowed-endpoints: [a.test, c.test, never.test]\n";
    fs::write(world.path("tried.yaml"), policy).unwrap();
    fs::write(world.path("changed.yaml"), policy.replace("c.test, ", "")).unwrap();
    fs::write(world.path("bad.yaml"), "name: bad\negress-polcy: block\n").unwrap();
    fs::create_dir(world.path("files")).unwrap();
    fs::write(world.path("files/tried.yaml"), policy).unwrap();
    let text = transcript(
        &operator,
        &[
            "policy dry-run --file tried.yaml --organization octo",
            "policy dry-run --file tried.yaml --run 7 --check",
            "policy dry-run --file bad.yaml --run 7",
            "policy apply tried.yaml",
            "policy dry-run tried",
            "policy dry-run tried --job-id none",
            "policy dry-run none --run 7",
            "policy dry-run",
            "policy diff tried --file changed.yaml",
            "policy diff none --file changed.yaml",
            "policy diff tried --file tried.yaml",
            "policy lint tried --unused-days 3650 --check",
            "policy apply changed.yaml",
            "policy diff tried --output yaml",
            "policy export-endpoints tried --dir files",
            "policy diff tried --file changed.yaml --dir files",
            "policy lint tried --dir files --check",
            "policy dry-run tried --run 7 --dir files",
            &format!("events {JOB}"),
            &format!("events {JOB} --type file"),
            &format!("events {JOB} --tree"),
            &format!("events {JOB} --tree --all"),
            "events none --tree",
            "runs --policy p --detections",
            "runs --policy p --output yaml",
        ],
    )
    .await;
    insta::assert_snapshot!("dry_runs", text);
    server.stop().await;
}

async fn the_store_is_found_by_a_file(world: World) {
    let server = world.start().await;
    let url = format!("http://{}", server.running.address);
    fs::create_dir_all(world.path("home/portcullis")).unwrap();
    fs::write(world.path("home/portcullis/token"), &server.token).unwrap();
    let file = format!("server = \"{url}\"\ntoken-file = \"token\"\n");
    fs::write(world.path("home/portcullis/config.toml"), file).unwrap();
    fs::create_dir(world.path("files")).unwrap();
    fs::write(world.path("files/a.yaml"), "name: a\negress-policy: audit\n").unwrap();
    fs::write(world.path("dir.toml"), "dir = \"files\"\n").unwrap();
    fs::write(world.path("bad.toml"), "sever = \"x\"\n").unwrap();
    let run = async |arguments: &[&str], home: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(arguments).env_clear().env("XDG_CONFIG_HOME", world.path(home));
        command.current_dir(world.directory.path());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let errors = text(&output.stderr);
        let label = if errors.is_empty() { "" } else { STANDARD_ERROR };
        let status = output.status.code().unwrap();
        format!("{}{label}{errors}exit {status}", text(&output.stdout))
    };
    assert_eq!(
        run(&["policy", "list"], "home").await,
        "NAME  VERSION  MODE  ATTACHED TO  UPDATED  BY\nexit 0"
    );
    let listed = run(&["policy", "list", "--client-config", "dir.toml"], "home").await;
    assert!(listed.contains("a     audit  -"), "{listed}");
    let bad = run(&["policy", "list", "--client-config", "bad.toml"], "home").await;
    assert!(
        bad.starts_with(
            "--- standard error\nerror: bad.toml is no configuration that can be used: "
        ) && bad.ends_with("exit 1"),
        "{bad}"
    );
    assert_eq!(
        run(&["policy", "list"], "nowhere").await,
        "--- standard error\nerror: where is the store?\n\nhint: say --server URL or --dir DIRECTORY, set PORTCULLIS_SERVER, or write `server = \"URL\"` into ~/.config/portcullis/config.toml\nexit 1"
    );
    assert_eq!(
        run(&["policy", "list", "--server", &url], "nowhere").await,
        "--- standard error\nerror: a token is needed\n\nhint: say --token-file FILE, or set PORTCULLIS_TOKEN\nexit 1"
    );
    server.stop().await;
}

#[test]
fn manual_pages_and_completions_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let page = run(&["man"]);
    assert!(
        page.contains(".SH NAME\nportcullis") && page.contains("Exit status: 0 done"),
        "{page}"
    );
    fs::create_dir(directory.path().join("man1")).unwrap();
    run(&["man", "--directory", "man1"]);
    for name in [
        "portcullis",
        "portcullis-policy",
        "portcullis-policy-import-endpoints",
        "portcullis-baseline-show",
    ] {
        let page = fs::read_to_string(directory.path().join(format!("man1/{name}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{name}");
    }
    for (shell, part) in [
        ("bash", "complete -F _portcullis"),
        ("zsh", "#compdef portcullis"),
        ("fish", "complete -c portcullis"),
    ] {
        let text = run(&["completions", shell]);
        assert!(text.contains(part) && text.contains("import-endpoints"), "{shell}");
    }
}
