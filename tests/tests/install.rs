//! `scripts/install`: what it puts where, that it can be repeated and undone, and that the units fit the monitor.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::PostureLevel;
use portcullis_common::report::Report;
use portcullis_common::wire::SOCKET_PATH;
use portcullis_tests::{Canary, Job, JobOutcome, World, binaries, wait_for, wait_until};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A user that nobody is; the runner's directory belongs to it.
const RUNNER_USER: u32 = 12_099;

/// Where a runner lies in an image.
const RUNNER: &str = "/home/runner/actions-runner";

const STARTED: &str = "ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/portcullis/hooks/pre-job.sh\n";
const COMPLETED: &str = "ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/opt/portcullis/hooks/post-job.sh\n";

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// An image with a runner in it.
#[derive(Debug)]
struct Image {
    directory: TempDir,
}

impl Image {
    fn new(environment: Option<&str>) -> Result<Self> {
        let image = Self { directory: tempfile::tempdir()? };
        let runner = image.at(RUNNER);
        fs::create_dir_all(&runner)?;
        fs::write(runner.join("run.sh"), "")?;
        if let Some(text) = environment {
            fs::write(image.environment(), text)?;
            chown(image.environment(), Some(RUNNER_USER), Some(RUNNER_USER))?;
        }
        chown(&runner, Some(RUNNER_USER), Some(RUNNER_USER))?;
        Ok(image)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    fn environment(&self) -> PathBuf {
        self.at(RUNNER).join(".env")
    }

    fn install(&self, arguments: &[&str]) -> Result<Output> {
        let binaries = binaries::find("monitor")?;
        let binaries = binaries.parent().context("the monitor lies in no directory")?;
        Command::new(source("scripts/install"))
            .arg("--root")
            .arg(self.directory.path())
            .arg("--bin-dir")
            .arg(binaries)
            .args(arguments)
            .output()
            .context("scripts/install can't be started")
    }

    fn install_with_runner(&self) -> Result<Output> {
        succeeded(self.install(&["--runner", RUNNER])?)
    }

    /// Everything below it: mode, owner, size, time of the last change of any kind, and where links lead.
    fn everything(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.directory.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                let metadata = fs::symlink_metadata(&path)?;
                let target = metadata.is_symlink().then(|| fs::read_link(&path)).transpose()?;
                let state = (
                    (metadata.mode(), metadata.uid(), metadata.gid(), metadata.size()),
                    (metadata.ctime(), metadata.ctime_nsec()),
                    target,
                );
                if metadata.is_dir() {
                    open.push(path.clone());
                }
                found.insert(path, format!("{state:?}"));
            }
        }
        Ok(found)
    }
}

fn succeeded(output: Output) -> Result<Output> {
    ensure!(output.status.success(), "{}", text(&output));
    Ok(output)
}

fn text(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams.map(|stream| String::from_utf8_lossy(stream).into_owned()).concat()
}

#[test]
fn everything_is_in_its_place_and_only_root_can_change_it() -> Result<()> {
    let image = Image::new(Some("LANG=C.UTF-8\n"))?;
    // A careful umask must not make hooks that the runner's user can't run.
    let binaries = binaries::find("monitor")?;
    let output = Command::new("sh")
        .args(["-c", "umask 077; exec \"$@\"", "sh"])
        .arg(source("scripts/install"))
        .arg("--root")
        .arg(image.directory.path())
        .arg("--bin-dir")
        .arg(binaries.parent().context("no directory")?)
        .args(["--runner", RUNNER])
        .output()?;
    succeeded(output)?;
    for (path, mode) in [
        ("/opt/portcullis", 0o755),
        ("/opt/portcullis/bin", 0o755),
        ("/opt/portcullis/bin/monitor", 0o755),
        ("/opt/portcullis/bin/pre-job", 0o755),
        ("/opt/portcullis/bin/post-job", 0o755),
        ("/opt/portcullis/hooks/pre-job.sh", 0o755),
        ("/opt/portcullis/hooks/post-job.sh", 0o755),
        ("/etc/portcullis", 0o755),
        ("/etc/portcullis/policies", 0o755),
        ("/etc/portcullis/monitor.toml", 0o644),
        ("/etc/systemd/system/portcullis-monitor.service", 0o644),
        ("/etc/systemd/system/portcullis-monitor.socket", 0o644),
        ("/var/lib/portcullis", 0o700),
    ] {
        let metadata = fs::metadata(image.at(path)).with_context(|| path.to_owned())?;
        assert_eq!(metadata.mode() & 0o7777, mode, "{path}");
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{path}");
    }
    let enabled = image.at("/etc/systemd/system/sockets.target.wants/portcullis-monitor.socket");
    assert!(fs::metadata(&enabled)?.is_file(), "the link leads to the unit");

    let environment = fs::read_to_string(image.environment())?;
    assert_eq!(environment, format!("{STARTED}{COMPLETED}LANG=C.UTF-8\n"));
    assert_eq!(fs::metadata(image.environment())?.uid(), RUNNER_USER);
    Ok(())
}

#[test]
fn a_dry_run_says_everything_and_does_nothing() -> Result<()> {
    let image = Image::new(Some("LANG=C.UTF-8\n"))?;
    let before = image.everything()?;
    let output = succeeded(image.install(&["--runner", RUNNER, "--dry-run"])?)?;
    assert_eq!(image.everything()?, before);
    let said = text(&output);
    for expected in ["bin/monitor", "hooks/pre-job.sh", "monitor.toml", "sockets.target.wants"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(said.contains(STARTED) && !said.contains("installed "), "{said}");

    image.install_with_runner()?;
    let before = image.everything()?;
    let output = succeeded(image.install(&["--runner", RUNNER, "--uninstall", "--dry-run"])?)?;
    assert_eq!(image.everything()?, before);
    assert!(text(&output).contains("would take the hooks out"), "{}", text(&output));
    Ok(())
}

#[test]
fn a_second_run_changes_nothing_and_repairs_what_was_changed() -> Result<()> {
    let image = Image::new(None)?;
    image.install_with_runner()?;
    let before = image.everything()?;
    let output = image.install_with_runner()?;
    assert_eq!(text(&output), "");
    assert_eq!(image.everything()?, before);

    let hook = image.at("/opt/portcullis/hooks/pre-job.sh");
    fs::write(&hook, "#!/bin/sh\n")?;
    let monitor = image.at("/opt/portcullis/bin/monitor");
    chown(&monitor, Some(RUNNER_USER), None)?;
    image.install_with_runner()?;
    assert_eq!(fs::read(&hook)?, fs::read(source("deploy/hooks/pre-job.sh"))?);
    assert_eq!(fs::metadata(&monitor)?.uid(), 0);
    Ok(())
}

#[test]
fn uninstalling_gives_the_runner_its_file_back_and_keeps_what_is_the_operators() -> Result<()> {
    for before in [
        None,
        Some(""),
        Some("LANG=C.UTF-8\nPATH=/usr/bin\n"),
        Some("LANG=C.UTF-8\nNO_NEWLINE=1"),
        Some("A=1\r\nB=2\r\n"),
        Some("\n\nSECRET=a.b$c\\d'e\"f`g`\n\n"),
        Some("# ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/portcullis/hooks/pre-job.sh\n"),
    ] {
        let image = Image::new(before)?;
        if before.is_some() {
            fs::set_permissions(image.environment(), fs::Permissions::from_mode(0o600))?;
        }
        image.install_with_runner()?;
        let text = fs::read_to_string(image.environment())?;
        assert!(text.contains(STARTED) && text.contains(COMPLETED), "{text}");
        fs::write(image.at("/etc/portcullis/monitor.toml"), "cluster = \"mine\"\n")?;
        fs::write(image.at("/etc/portcullis/policies/mine.yaml"), "name: mine\n")?;
        // What is installed again is not what the operator wrote.
        image.install_with_runner()?;

        succeeded(image.install(&["--runner", RUNNER, "--uninstall"])?)?;
        match before {
            Some(before) => {
                assert_eq!(fs::read_to_string(image.environment())?, before);
                let metadata = fs::metadata(image.environment())?;
                assert_eq!((metadata.uid(), metadata.mode() & 0o777), (RUNNER_USER, 0o600));
            }
            None => assert!(!image.environment().exists()),
        }
        for gone in [
            "/opt/portcullis",
            "/etc/systemd/system/portcullis-monitor.service",
            "/etc/systemd/system/portcullis-monitor.socket",
        ] {
            assert!(!image.at(gone).exists(), "{gone}");
        }
        let wants = image.at("/etc/systemd/system/sockets.target.wants");
        assert_eq!(fs::read_dir(wants)?.count(), 0);
        let kept = fs::read_to_string(image.at("/etc/portcullis/monitor.toml"))?;
        assert_eq!(kept, "cluster = \"mine\"\n");
        assert!(image.at("/etc/portcullis/policies/mine.yaml").exists());
        assert!(image.at("/var/lib/portcullis").exists());
        // Nothing left to do.
        succeeded(image.install(&["--runner", RUNNER, "--uninstall"])?)?;
    }
    Ok(())
}

#[test]
fn the_hook_of_somebody_else_is_refused_before_anything_is_changed() -> Result<()> {
    for foreign in [
        "ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/other/start.sh\n",
        "LANG=C\nACTIONS_RUNNER_HOOK_JOB_COMPLETED=/opt/other/end.sh",
    ] {
        let image = Image::new(Some(foreign))?;
        let before = image.everything()?;
        let output = image.install(&["--runner", RUNNER])?;
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output);
        assert!(said.contains("/opt/other/") && said.contains("hint: "), "{said}");
        assert_eq!(image.everything()?, before);
    }
    Ok(())
}

#[test]
fn a_link_that_the_runners_user_left_leads_nowhere() -> Result<()> {
    let image = Image::new(None)?;
    let victim = image.at("/victim");
    fs::write(&victim, "root's own\n")?;
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600))?;
    symlink(&victim, image.environment())?;
    for arguments in [&["--runner", RUNNER][..], &["--runner", RUNNER, "--uninstall"]] {
        image.install(arguments)?;
        assert_eq!(fs::read_to_string(&victim)?, "root's own\n", "{arguments:?}");
    }
    let output = image.install(&["--runner", RUNNER])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains(".env can't be written"), "{}", text(&output));
    Ok(())
}

#[test]
fn wrong_arguments_change_nothing() -> Result<()> {
    let image = Image::new(None)?;
    let before = image.everything()?;
    for arguments in [&["--root", ""][..], &["--root"], &["--runner"], &["--fast"], &["x"]] {
        let output = Command::new(source("scripts/install")).args(arguments).output()?;
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", text(&output));
    }
    for (arguments, expected) in [
        (&["--runner", "/home"][..], "is no runner's directory"),
        (&["--bin-dir", "/nonexistent"], "has not all of"),
        (&["--root", "/nonexistent"], "is no directory"),
    ] {
        let output = image.install(arguments)?;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
    assert_eq!(image.everything()?, before);
    let help = succeeded(Command::new(source("scripts/install")).arg("--help").output()?)?;
    assert!(text(&help).contains("--uninstall"));
    Ok(())
}

/// On a host without systemd, in a mount namespace whose `/etc`, `/opt`, `/var/lib` and `/run` are its own.
#[test]
fn on_a_host_the_hooks_run_and_the_host_is_checked() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let binaries = binaries::find("monitor")?;
    let binaries = binaries.parent().context("no directory")?;
    let script = r#"set -e
mount -t tmpfs none "$1"
for place in /etc /opt /var/lib; do
    mkdir -p "$1/upper$place" "$1/work$place"
    mount -t overlay none -o "lowerdir=$place,upperdir=$1/upper$place,workdir=$1/work$place" "$place"
done
mount -t tmpfs none /run
mkdir -p "$1/runner" && touch "$1/runner/run.sh"
"$2" --bin-dir "$3" --runner "$1/runner"
cat "$1/runner/.env"
set +e
env -i PATH=/usr/bin:/bin bash -e /opt/portcullis/hooks/pre-job.sh
echo "pre-job: $?"
env -i PATH=/usr/bin:/bin bash -e /opt/portcullis/hooks/post-job.sh
echo "post-job: $?"
"$2" --uninstall --runner "$1/runner"
echo "uninstall: $?; $(ls -A /opt/portcullis "$1/runner" 2>&1)"
"#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(scratch.path())
        .arg(source("scripts/install"))
        .arg(binaries)
        .output()?;
    let said = text(&output);
    ensure!(output.status.success(), "{said}");
    for expected in [
        "no systemd runs here",
        "==> this host",
        "a policy in block mode would be enforced",
        STARTED,
        // No runner, and no monitor to ask.
        "pre-job: 64",
        "post-job: 2",
        "uninstall: 0",
    ] {
        assert!(said.contains(expected), "{expected} is missing: {said}");
    }
    assert!(!source("target").join(".env").exists());
    Ok(())
}

/// A unit's settings, by section and key, in their order.
fn settings(unit: &str) -> Result<Vec<(String, String, String)>> {
    let text = fs::read_to_string(source("deploy/systemd").join(unit))?;
    let mut section = String::new();
    let mut settings = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else {
            let (key, value) = line.split_once('=').with_context(|| format!("{unit}: {line}"))?;
            settings.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    Ok(settings)
}

fn setting(unit: &str, section: &str, key: &str) -> Result<String> {
    settings(unit)?
        .into_iter()
        .find(|(its_section, its_key, _)| its_section == section && its_key == key)
        .map(|(_, _, value)| value)
        .with_context(|| format!("{unit} has no {key} in [{section}]"))
}

#[test]
fn the_units_say_what_the_installation_and_the_monitor_need() -> Result<()> {
    const SERVICE: &str = "portcullis-monitor.service";
    const SOCKET: &str = "portcullis-monitor.socket";
    for (unit, section, key, expected) in [
        (SERVICE, "Service", "ExecStart", "/opt/portcullis/bin/monitor serve"),
        // The monitor sends READY=1.
        (SERVICE, "Service", "Type", "notify"),
        (SERVICE, "Service", "Restart", "always"),
        // Ignored in any other section.
        (SERVICE, "Unit", "StartLimitIntervalSec", "0"),
        // Without it a restart removes the listening socket and the state of running jobs.
        (SERVICE, "Service", "RuntimeDirectoryPreserve", "yes"),
        (SERVICE, "Service", "RuntimeDirectory", "portcullis"),
        (SERVICE, "Service", "StateDirectoryMode", "0700"),
        (SERVICE, "Service", "NoNewPrivileges", "yes"),
        (SERVICE, "Service", "ProtectControlGroups", "no"),
        (SERVICE, "Service", "RestrictNamespaces", "net"),
        (SOCKET, "Socket", "ListenStream", SOCKET_PATH),
        (SOCKET, "Socket", "SocketMode", "0666"),
        (SOCKET, "Socket", "TriggerLimitIntervalSec", "0"),
        (SOCKET, "Install", "WantedBy", "sockets.target"),
    ] {
        assert_eq!(setting(unit, section, key)?, expected, "{unit} [{section}] {key}");
    }
    Ok(())
}

#[test]
fn systemd_takes_every_line_of_the_units() -> Result<()> {
    let units = tempfile::tempdir()?;
    for unit in ["portcullis-monitor.service", "portcullis-monitor.socket"] {
        let text = fs::read_to_string(source("deploy/systemd").join(unit))?;
        // It looks whether the program is there.
        fs::write(
            units.path().join(unit),
            text.replace("/opt/portcullis/bin/monitor", "/bin/true"),
        )?;
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(units.path().join("portcullis-monitor.service"))
        .arg(units.path().join("portcullis-monitor.socket"))
        .output()
        .context("systemd-analyze can't be started: install the Debian package systemd")?;
    let said = text(&output);
    // Newer than some of the systemd versions that are supported, which say so and go on: a matter of 254.
    let is_newer = |line: &&str| line.contains("Unknown key 'FileDescriptorStorePreserve'");
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("portcullis-monitor") && !is_newer(line))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

/// The main job with a monitor that has no more rights than the unit gives it.
#[test]
fn the_units_capabilities_are_enough() -> Result<()> {
    let listed = setting("portcullis-monitor.service", "Service", "CapabilityBoundingSet")?;
    let capabilities: Vec<String> = listed
        .split(' ')
        .map(|name| format!("+{}", name.trim_start_matches("CAP_").to_ascii_lowercase()))
        .collect();
    let set = format!("-all,{}", capabilities.join(","));

    let world = World::builder().main_job().build()?;
    world.write_policy(
        "hello",
        "name: hello-build\negress-policy: block\nallowed-endpoints: [git.test, pypi.test, files.pypi.test, \
         api.ok.test]\nattach: [{repository: octo/hello}]\n",
    )?;
    world.install_hooks()?;
    let monitor = world.install_program("monitor")?;
    let mut process = world
        .command("setpriv")
        .args(["--no-new-privs", "--bounding-set", &set, "--inh-caps", &set])
        .arg(&monitor)
        .arg("--root")
        .arg(world.root())
        .arg("serve")
        .spawn(Stdio::null(), Stdio::null(), Stdio::inherit())?;
    wait_until("the monitor listens", || UnixStream::connect(world.socket()).is_ok())?;
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let bounding = capability_bits(&status, "CapBnd:")?;
    assert_eq!(bounding.count_ones() as usize, capabilities.len(), "{status}");
    assert_eq!(capability_bits(&status, "CapEff:")?, bounding, "{status}");

    let canary = Canary::generate()?;
    let job =
        Job::from_file(&source("tests/jobs/main.yml"))?.secret("DEPLOY_TOKEN", canary.as_str());
    let result = world.runner(0).run(&job)?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    let report: Report = wait_for("the report of the job", || {
        let id = world.job_ids().ok()?.pop()?;
        let path = world.root().join("var/lib/portcullis/spool").join(id).join("report.json");
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    })?;
    assert_eq!(report.posture.level, PostureLevel::Enforced, "{:?}", report.posture);
    let curl = report.destinations.iter().find(|row| row.process.ends_with("curl"));
    assert!(curl.is_some(), "processes of another user are recognised: {report:?}");
    world.attacker().assert_untouched(&canary)?;
    assert!(process.is_running());
    Ok(())
}

fn capability_bits(status: &str, key: &str) -> Result<u64> {
    let line = status.lines().find(|line| line.starts_with(key)).context("no such line")?;
    Ok(u64::from_str_radix(line.trim_start_matches(key).trim(), 16)?)
}
