//! The command line: what it prints, on both streams, and its exit status.

use crate::support::{Backend, Server, World, run};
use std::process::{Command, Output};

pub struct Operator<'a> {
    pub server: &'a Server,
    pub world: &'a World,
}

impl Operator<'_> {
    /// Runs a command; what differs from run to run is blotted out.
    pub async fn run(&self, arguments: &[&str]) -> String {
        let url = format!("http://{}", self.server.running.address);
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command
            .args(arguments)
            .env_clear()
            .env("PORTCULLIS_SERVER", &url)
            .env("PORTCULLIS_TOKEN", &self.server.token)
            .current_dir(self.world.directory.path());
        let output: Output =
            tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let shown = format!(
            "{}{}exit {}",
            text(&output.stdout),
            text(&output.stderr),
            output.status.code().unwrap()
        );
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

#[test]
fn policies_by_command_line() {
    run(Backend::Sqlite, async |world: World| {
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
            bad.starts_with("error: bad.yaml:2:1: `egress-polcy`")
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
            explained.contains("→  repository    octo/hello")
                && explained.contains("build version 2"),
            "{explained}"
        );
        assert_eq!(
            operator.run(&["policy", "delete", "build"]).await,
            "error: policy `build` is in use: attached to the repository octo/hello\n\nhint: detach it, and take it out of the others' `extends`, first\nexit 1"
        );
        assert_eq!(
            operator.run(&["policy", "get", "none"]).await,
            "error: there is no policy named `none`\n\nhint: `portcullis policy list` shows all names\nexit 1"
        );
        let exported = operator.run(&["export"]).await;
        assert!(exported.contains("- repository: octo/hello"), "{exported}");
        std::fs::create_dir(world.path("files")).unwrap();
        std::fs::write(world.path("files/all.yaml"), exported.strip_suffix("exit 0").unwrap())
            .unwrap();
        let import = operator.run(&["import", "files/all.yaml", "--dry-run"]).await;
        assert!(import.contains("build  unchanged  2"), "{import}");
        let doctor = operator.run(&["doctor"]).await;
        assert!(doctor.ends_with("exit 0") && doctor.contains("the token may read"), "{doctor}");
        server.stop().await;
    });
}

/// What clap checks only when a subcommand is used: names that stand twice, options that contradict each other.
#[test]
fn every_subcommand_is_well_formed() {
    use clap::CommandFactory as _;
    portcullis_store::command::Options::command().debug_assert();
}

#[test]
fn files_by_command_line_and_what_goes_wrong() {
    run(Backend::Sqlite, async |world: World| {
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
    });
}

#[test]
fn a_store_that_is_away_is_told_apart() {
    run(Backend::Sqlite, async |world: World| {
        let server = world.start().await;
        let gone = ["policy", "list", "--server", "http://127.0.0.1:1"];
        let told = Operator { server: &server, world: &world }.run(&gone).await;
        assert!(
            told.starts_with("error: the store http://127.0.0.1:1/ can't be reached")
                && told.ends_with("exit 2"),
            "{told}"
        );
        server.stop().await;
    });
}
