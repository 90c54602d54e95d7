//! The command line: what it prints, on both streams, and its exit status.

use crate::on_both;
use crate::runs::{begin, host, lines, new_job, upload};
use crate::support::receiver::{Answer, Receiver};
use crate::support::{Server, World};
use crate::suppressions::detection;
use std::process::{Command, Output};

on_both!(
    policies_by_command_line,
    files_by_command_line_and_what_goes_wrong,
    a_store_that_is_away_is_told_apart,
    integrations_and_detections_by_command_line
);

/// Stands before what a command wrote to standard error.
pub const STANDARD_ERROR: &str = "--- standard error\n";

pub struct Operator<'a> {
    pub server: &'a Server,
    pub world: &'a World,
}

impl Operator<'_> {
    /// Runs a command: what it printed on either stream, and its exit status.
    pub async fn output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command
            .args(arguments)
            .env_clear()
            .env("PORTCULLIS_SERVER", self.url())
            .env("PORTCULLIS_TOKEN", &self.server.token)
            .current_dir(self.world.directory.path());
        tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
    }

    fn url(&self) -> String {
        format!("http://{}", self.server.running.address)
    }

    /// Runs a command, as one text that tells the streams apart; what differs from run to run is blotted out.
    pub async fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let errors = text(&output.stderr);
        let label = if errors.is_empty() { "" } else { STANDARD_ERROR };
        let status = output.status.code().unwrap();
        let shown = format!("{}{label}{errors}exit {status}", text(&output.stdout));
        let url = self.url();
        let mut blotted = String::new();
        for part in shown.replace(&url, "URL").split_inclusive(char::is_whitespace) {
            let is_time = part.starts_with("20") && part.contains('T') && part.contains('Z');
            if is_time {
                blotted.push_str("TIME");
                blotted.extend(part.chars().last().filter(|letter| letter.is_whitespace()));
            } else {
                blotted.push_str(part);
            }
        }
        blotted
    }
}

async fn policies_by_command_line(world: World) {
    let server = world.start().await;
    let operator = Operator { server: &server, world: &world };
    std::fs::write(
        world.path("build.yaml"),
        "name: build\negress-policy: block\nallowed-endpoints: [a.test]\n",
    )
    .unwrap();
    std::fs::write(world.path("bad.yaml"), "name: bad\negress-polcy: block\n").unwrap();
    assert_eq!(
        operator.run(&["policy", "apply", "build.yaml"]).await,
        "policy build created, version 1\nexit 0"
    );
    assert_eq!(
        operator.run(&["policy", "apply", "build.yaml"]).await,
        "policy build updated, version 2\nexit 0"
    );
    let bad = operator.run(&["policy", "apply", "bad.yaml"]).await;
    assert!(
        bad.starts_with("--- standard error\nerror: bad.yaml:2:1: `egress-polcy`")
            && bad.contains("hint: did you mean `egress-policy`?")
            && bad.ends_with("exit 1"),
        "{bad}"
    );
    assert_eq!(
        operator.run(&["attach", "build", "--repository", "octo/hello"]).await,
        "policy build applies to the repository octo/hello\nexit 0"
    );
    let list = operator.run(&["policy", "list"]).await;
    assert!(
        list.starts_with("NAME   VERSION  MODE   ATTACHED TO            UPDATED")
            && list.contains("build  2        block  repository octo/hello"),
        "{list}"
    );
    let explained =
        operator.run(&["explain", "--repository", "octo/hello", "--workflow", "ci.yml"]).await;
    assert!(
        explained.contains("→  repository    octo/hello") && explained.contains("build version 2"),
        "{explained}"
    );
    assert_eq!(
        operator.run(&["policy", "delete", "build"]).await,
        "--- standard error\nerror: policy `build` is in use: attached to the repository octo/hello\n\nhint: detach it, and take it out of the others' `extends`, first\nexit 1"
    );
    assert_eq!(
        operator.run(&["policy", "get", "none"]).await,
        "--- standard error\nerror: there is no policy named `none`\n\nhint: `portcullis policy list` shows all names\nexit 1"
    );
    let exported = operator.run(&["export"]).await;
    assert!(exported.contains("- repository: octo/hello"), "{exported}");
    std::fs::create_dir(world.path("files")).unwrap();
    std::fs::write(world.path("files/all.yaml"), exported.strip_suffix("exit 0").unwrap()).unwrap();
    let import = operator.run(&["import", "files/all.yaml", "--dry-run"]).await;
    assert!(import.contains("build  unchanged  2"), "{import}");
    let doctor = operator.run(&["doctor"]).await;
    assert!(doctor.ends_with("exit 0") && doctor.contains("the token may read"), "{doctor}");
    server.stop().await;
}

/// What clap checks only when a subcommand is used: names that stand twice, options that contradict each other.
#[test]
fn every_subcommand_is_well_formed() {
    use clap::CommandFactory as _;
    portcullis_store::command::Options::command().debug_assert();
}

async fn files_by_command_line_and_what_goes_wrong(world: World) {
    let server = world.start().await;
    let operator = Operator { server: &server, world: &world };
    std::fs::create_dir(world.path("files")).unwrap();
    std::fs::write(
        world.path("files/a.yaml"),
        "name: a\negress-policy: block\nattach: [{cluster: prod}]\n",
    )
    .unwrap();
    // The variable names a server as well; what is said wins.
    let by_dir = |arguments: &[&'static str]| [arguments, &["--dir", "files"]].concat();
    let list = operator.run(&by_dir(&["policy", "list"])).await;
    assert!(list.contains("a     block  cluster prod"), "{list}");
    let explained = operator
        .run(&by_dir(&[
            "explain",
            "--repository",
            "o/r",
            "--workflow",
            "x.yml",
            "--cluster",
            "prod",
        ]))
        .await;
    assert!(explained.contains("→  cluster       prod"), "{explained}");
    assert!(
        operator
            .run(&by_dir(&["attach", "a", "--cluster", "x"]))
            .await
            .contains("this needs a server")
    );
    for arguments in [&["policy", "frobnicate"][..], &["attach", "a"], &["--nonsense"]] {
        assert!(operator.run(arguments).await.ends_with("exit 64"), "{arguments:?}");
    }
    server.stop().await;
}

async fn a_store_that_is_away_is_told_apart(world: World) {
    let server = world.start().await;
    let gone = ["policy", "list", "--server", "http://127.0.0.1:1"];
    let told = Operator { server: &server, world: &world }.run(&gone).await;
    assert!(
        told.starts_with(
            "--- standard error\nerror: the store http://127.0.0.1:1/ can't be reached"
        ) && told.ends_with("exit 2"),
        "{told}"
    );
    server.stop().await;
}

async fn integrations_and_detections_by_command_line(world: World) {
    let receiver = Receiver::start().await;
    let mut configuration = world.configuration();
    configuration.notifications.allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
    configuration.notifications.allow_http = true;
    let server = world.start_with(configuration).await;
    let operator = Operator { server: &server, world: &world };
    let url = receiver.url("/t0k3n");
    std::fs::write(
            world.path("hook.yaml"),
            format!("name: ops\ntarget: {{kind: webhook, url: \"{url}\"}}\nselection: {{blocked-calls: true}}\n"),
        )
        .unwrap();
    std::fs::write(world.path("bad.yaml"), "name: x\ntarget: {kind: slack, utl: s3cret}\n")
        .unwrap();
    let bad = operator.run(&["integration", "create", "bad.yaml"]).await;
    assert!(
        bad.starts_with("--- standard error\nerror: bad.yaml is no integration")
            && bad.ends_with("exit 1")
            && !bad.contains("s3cret"),
        "{bad}"
    );
    let none = operator.run(&["integration", "create", "hook.yaml"]).await;
    assert!(
        none.starts_with(
            "--- standard error\nerror: the key of signatures is missing\n\nhint: send `secret`"
        ) && none.ends_with("exit 1"),
        "{none}"
    );
    let made = operator.run(&["integration", "create", "hook.yaml", "--generate-secret"]).await;
    assert!(
        made.starts_with("integration ops created, id ") && made.contains("\nwhsec_"),
        "{made}"
    );
    assert_eq!(
        operator.run(&["integration", "update", "hook.yaml"]).await,
        "integration ops updated\nexit 0"
    );
    assert_eq!(
        operator.run(&["integration", "test", "ops"]).await,
        "integration ops works\nexit 0"
    );
    receiver.answer([Answer::Status(503)]);
    assert_eq!(
        operator.run(&["integration", "test", "ops"]).await,
        "--- standard error\nerror: integration ops does not work: the target answered 503 Service Unavailable\nexit 1"
    );
    let list = operator.run(&["integration", "list"]).await;
    assert!(list.contains("ops   webhook  http://127.0.0.1:") && !list.contains("t0k3n"), "{list}");
    let dead = operator.run(&["integration", "deliveries", "ops", "--state", "dead"]).await;
    assert!(dead.contains("test  dead   1         503"), "{dead}");
    let id = dead.lines().nth(1).unwrap().split_whitespace().last().unwrap().to_owned();
    assert_eq!(
        operator.run(&["integration", "retry", &id]).await,
        format!("delivery {id} is tried again\nexit 0")
    );
    assert_eq!(
        operator.run(&["integration", "delete", "ops"]).await,
        "integration ops deleted\nexit 0"
    );
    assert_eq!(
        operator.run(&["integration", "test", "ops"]).await,
        "--- standard error\nerror: there is no integration named \"ops\"\nexit 1"
    );

    let host = host(&server, "prod").await;
    let job = "0197aaaaaaaa7000800000000000000a";
    begin(&server, &host, new_job(job, 7, "build")).await.expect(200);
    let events = [
        detection(job, 1, "Sudo-Use", "/usr/bin/sudo"),
        detection(job, 2, "Raw-Frames", "/usr/bin/\u{1b}[31m"),
    ];
    upload(&server, &host, job, lines(&events)).await.expect(200);
    let list = operator.run(&["detections", "--state", "new"]).await;
    assert!(
        list.contains("Sudo-Use") && list.contains("Raw-Frames") && !list.contains('\u{1b}'),
        "{list}"
    );
    let rule = ["detections", "suppress", "--type", "Sudo-Use", "--in-repository", "octo/hello"];
    let preview = operator.run(&[&rule[..], &["--preview"]].concat()).await;
    assert!(preview.starts_with("the rule would suppress 1 detections\n"), "{preview}");
    assert!(operator.run(&rule).await.ends_with("exit 64"), "a reason is needed");
    let made = operator.run(&[&rule[..], &["--reason", "tests", "--days", "30"]].concat()).await;
    assert!(made.ends_with(" suppresses 1 detections\nexit 0"), "{made}");
    let id = made.split_whitespace().nth(1).unwrap();
    let rules = operator.run(&["detections", "rules"]).await;
    assert!(rules.contains("repository octo/hello") && rules.contains("tests"), "{rules}");
    let suppressed = operator.run(&["detections", "list", "--state", "suppressed"]).await;
    assert!(suppressed.contains("Sudo-Use") && !suppressed.contains("Raw-Frames"), "{suppressed}");
    assert_eq!(
        operator.run(&["detections", "unsuppress", id]).await,
        format!("rule {id} is removed\nexit 0")
    );
    let detection = format!("{job}-2");
    assert_eq!(
        operator.run(&["detections", "resolve", &detection, "--comment", "done"]).await,
        format!("detection {detection} is resolved\nexit 0")
    );
    assert_eq!(
        operator.run(&["detections", "reopen", &detection]).await,
        format!("detection {detection} is new\nexit 0")
    );
    server.stop().await;
}
