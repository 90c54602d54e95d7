//! `quickstart` tells the truth: about a job that is contained, about one that is only watched, and about a machine on
//! which it can't run.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The keys of the last line, in their order.
const KEYS: [&str; 9] = [
    "result",
    "policy",
    "scope",
    "posture",
    "allowed",
    "blocked",
    "leaked",
    "pre_job_ms",
    "post_job_ms",
];

fn quickstart(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    command.args(arguments).output().context("quickstart can't be started")
}

fn script(arguments: &[&str]) -> Result<Output> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/quickstart");
    Command::new(path).args(arguments).output().context("scripts/quickstart can't be started")
}

/// The last line of the standard output, which must be the only JSON object of the known form.
fn last_line(output: &Output) -> Result<Value> {
    last_line_of(output, &[])
}

/// The same with further keys behind the others.
fn last_line_of(output: &Output, further: &[&str]) -> Result<Value> {
    let keys = [&KEYS[..], further].concat();
    let text = String::from_utf8(output.stdout.clone())?;
    let last = text.lines().next_back().context("there is no output")?;
    let value: Value = serde_json::from_str(last).with_context(|| format!("no JSON: {last}"))?;
    let written: Vec<usize> =
        keys.iter().filter_map(|key| last.find(&format!("\"{key}\":"))).collect();
    ensure!(written.len() == keys.len() && written.is_sorted(), "keys in another order: {last}");
    ensure!(value.as_object().is_some_and(|object| object.len() == keys.len()), "{last}");
    Ok(value)
}

#[test]
fn in_block_mode_nothing_leaks_and_the_job_succeeds() -> Result<()> {
    let output = quickstart(&[])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
    let line = last_line(&output)?;
    assert_eq!(line["result"], "success");
    assert_eq!(line["policy"], "hello-build");
    assert_eq!(line["scope"], "repository");
    assert!(["enforced", "degraded"].map(Value::from).contains(&line["posture"]), "{line}");
    assert_eq!(line["leaked"], 0);
    // The clone, the index, the files, the upload; and every way that the hostile package tries.
    assert!(line["allowed"].as_u64() >= Some(4), "{line}");
    assert!(line["blocked"].as_u64() >= Some(4), "{line}");
    for hook in ["pre_job_ms", "post_job_ms"] {
        assert!(line[hook].as_f64().is_some_and(|time| time > 0.0), "{line}");
    }
    for shown in [
        "== Set up runner",
        "Portcullis: policy hello-build",
        "| Blocked |",
        "*** zlib test OK ***",
    ] {
        assert!(text.contains(shown), "{shown} is not shown:\n{text}");
    }
    Ok(())
}

#[test]
fn with_a_server_the_identity_is_verified_and_nothing_is_lost() -> Result<()> {
    let output = quickstart(&["--server"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
    let line = last_line_of(
        &output,
        &[
            "identity",
            "stored_events",
            "detection",
            "told",
            "offline_policy",
            "offline_leaked",
            "caught_up_events",
        ],
    )?;
    assert_eq!((&line["result"], &line["policy"]), (&"success".into(), &"hello-build".into()));
    assert_eq!((&line["identity"], &line["scope"]), (&"verified".into(), &"repository".into()));
    assert_eq!((&line["leaked"], &line["offline_leaked"]), (&0.into(), &0.into()));
    assert_eq!(line["detection"], "Reverse-Shell");
    assert_eq!(line["told"], serde_json::json!(["webhook", "slack", "s3"]));
    assert_eq!(line["offline_policy"], "policy hello-build version 1 from repository octo/hello");
    for events in ["stored_events", "caught_up_events"] {
        assert!(line[events].as_u64() >= Some(8), "{line}");
    }
    for shown in [
        "$ portcullis policy apply",
        "policy hello-build applies to the repository octo/hello",
        "host runner-host is enrolled in cluster prod-linux",
        "$ portcullis runs 11",
        "Reverse-Shell in job build of octo/lab; the job was killed",
    ] {
        assert!(text.contains(shown), "{shown} is not shown:\n{text}");
    }
    Ok(())
}

#[test]
fn in_audit_mode_the_leak_is_measured_and_said() -> Result<()> {
    let output = quickstart(&["--mode", "audit", "--keep"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let kept = Kept::from_output(&text)?;
    assert_eq!(output.status.code(), Some(0), "{text}");
    let line = last_line(&output)?;
    assert_eq!(line["posture"], "audit");
    assert_eq!(line["blocked"], 0);
    assert!(line["leaked"].as_u64() > Some(0), "{line}");
    assert!(text.contains("the SECRET DID") && text.contains("Would be blocked"), "{text}");
    // What was left behind can be entered.
    let inside = Command::new("nsenter")
        .args(["--target", &kept.holder, "--net", "--mount", "cat", "/etc/resolv.conf"])
        .output()?;
    assert!(inside.status.success() && !inside.stdout.is_empty(), "{inside:?}");
    assert!(kept.directory.join("root/var/lib/portcullis/spool").is_dir());
    Ok(())
}

#[test]
fn where_it_cannot_run_it_fails_and_says_why() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let output = Command::new(env!("CARGO_BIN_EXE_quickstart"))
        .env(portcullis_tests::binaries::DIRECTORY_VARIABLE, empty.path())
        .output()?;
    assert_eq!(output.status.code(), Some(1));
    let line = last_line(&output)?;
    assert_eq!(line["result"], "failure");
    assert_eq!(line["leaked"], Value::Null, "what was not measured is not known");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("cargo build"), "{errors}");
    Ok(())
}

#[test]
fn wrong_arguments_are_told_before_anything_is_done() -> Result<()> {
    for arguments in
        [&["--mode", "deny"][..], &["--mode"], &["--fast"], &["extra"], &["--server", "--keep"]]
    {
        for output in [script(arguments)?, quickstart(arguments)?] {
            assert_eq!(output.status.code(), Some(64), "{arguments:?}");
            assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
        }
    }
    for output in [script(&["--help"])?, quickstart(&["--help"])?] {
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout)?.contains("--mode"));
    }
    Ok(())
}

#[test]
fn without_root_it_says_so() -> Result<()> {
    let source = fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))?;
    let scripts = tempfile::tempdir()?;
    // A place that everybody can read: the checkout may lie in root's home.
    for name in ["quickstart", "lib.sh", "test"] {
        fs::create_dir_all(scripts.path().join("scripts"))?;
        fs::copy(source.join("scripts").join(name), scripts.path().join("scripts").join(name))?;
    }
    make_readable(scripts.path())?;
    for name in ["quickstart", "test"] {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(scripts.path().join("scripts").join(name))
            .current_dir("/")
            .output()?;
        assert_eq!(output.status.code(), Some(1), "{name}");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("needs root") && errors.contains("sudo"), "{name}: {errors}");
    }
    Ok(())
}

fn make_readable(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A runner host that was left behind; removed with this value.
#[derive(Debug)]
struct Kept {
    holder: String,
    directory: PathBuf,
}

impl Kept {
    fn from_output(text: &str) -> Result<Self> {
        let after = |mark: &str| {
            let rest = text.split_once(mark).map(|(_, rest)| rest);
            rest.and_then(|rest| rest.split([' ', '\n', ';']).next()).map(str::to_owned)
        };
        Ok(Self {
            holder: after("nsenter --target ").context("it does not say how to enter")?,
            directory: after("\nfiles: ").context("it does not say where the files are")?.into(),
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The next world removes the rest; the directory is removed here, so that no test leaves anything behind.
        let _ = Command::new("kill").arg(&self.holder).status();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
