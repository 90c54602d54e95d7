//! `scripts/install --store`: what it puts where, that it can be repeated and undone, that the unit is understood, and that the
//! server needs no more rights than the unit gives.

use anyhow::{Context, Result, ensure};
use portcullis_tests::{binaries, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

const UNIT: &str = "etc/systemd/system/portcullis-store.service";
const PROGRAM: &str = "opt/portcullis/bin/portcullis";

/// A user that nobody is.
const NOBODY: u32 = 12_098;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The directory of the built programs.
fn built() -> Result<PathBuf> {
    let program = binaries::find("portcullis")?;
    Ok(program.parent().context("the program lies in no directory")?.to_owned())
}

fn install(root: &Path, arguments: &[&str]) -> Result<Output> {
    Command::new(source("scripts/install"))
        .arg("--root")
        .arg(root)
        .arg("--bin-dir")
        .arg(built()?)
        .args(arguments)
        .output()
        .context("scripts/install can't be started")
}

fn succeeded(output: Result<Output>) -> Result<String> {
    let output = output?;
    let said = text(&output);
    ensure!(output.status.success(), "{said}");
    Ok(said)
}

fn text(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams.map(|stream| String::from_utf8_lossy(stream).into_owned()).concat()
}

/// Every file below a directory, with what can be seen of it.
fn everything(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                open.push(path.clone());
            }
            let state = (metadata.mode(), metadata.uid(), metadata.size(), metadata.ctime_nsec());
            found.insert(path, format!("{state:?}"));
        }
    }
    Ok(found)
}

#[test]
fn the_server_is_installed_again_and_removed() -> Result<()> {
    let image = tempfile::tempdir()?;
    let root = image.path();
    let said = succeeded(install(root, &["--store", "--dry-run"]))?;
    assert!(said.contains(PROGRAM) && said.contains(UNIT), "{said}");
    assert_eq!(fs::read_dir(root)?.count(), 0, "a dry run does nothing");

    succeeded(install(root, &["--store"]))?;
    for (path, mode) in [
        (PROGRAM, 0o755),
        (UNIT, 0o644),
        ("etc/portcullis/store.toml", 0o644),
        ("etc/portcullis", 0o755),
    ] {
        let metadata = fs::metadata(root.join(path)).with_context(|| path.to_owned())?;
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (mode, 0), "{path}");
    }
    let enabled = root.join("etc/systemd/system/multi-user.target.wants/portcullis-store.service");
    assert!(fs::metadata(&enabled)?.is_file(), "the link leads to the unit");
    assert!(!root.join("opt/portcullis/bin/monitor").exists(), "nothing of a runner host");
    let before = everything(root)?;
    assert_eq!(succeeded(install(root, &["--store"]))?, "");
    assert_eq!(everything(root)?, before, "again changes nothing");

    // The operator's file is never replaced; what was changed of ours is repaired.
    fs::write(root.join("etc/portcullis/store.toml"), "listen = \"127.0.0.1:1\"\n")?;
    fs::write(root.join(UNIT), "[Service]\n")?;
    succeeded(install(root, &["--store"]))?;
    assert_eq!(
        fs::read(root.join(UNIT))?,
        fs::read(source("deploy/systemd/portcullis-store.service"))?
    );

    // One machine can be both; each goes without the other.
    succeeded(install(root, &[]))?;
    succeeded(install(root, &["--uninstall"]))?;
    assert!(root.join(PROGRAM).exists() && root.join(UNIT).exists());
    assert!(!root.join("opt/portcullis/bin/monitor").exists());
    assert!(!root.join("opt/portcullis/hooks").exists());
    succeeded(install(root, &[]))?;
    let said = succeeded(install(root, &["--store", "--uninstall", "--dry-run"]))?;
    assert!(said.contains("would run: rm") && root.join(PROGRAM).exists(), "{said}");
    for _ in 0..2 {
        succeeded(install(root, &["--store", "--uninstall"]))?;
        assert!(!root.join(PROGRAM).exists() && !root.join(UNIT).exists());
        assert!(fs::symlink_metadata(&enabled).is_err());
        assert!(root.join("opt/portcullis/bin/monitor").exists());
    }
    let kept = fs::read_to_string(root.join("etc/portcullis/store.toml"))?;
    assert_eq!(kept, "listen = \"127.0.0.1:1\"\n");
    succeeded(install(root, &["--uninstall"]))?;
    assert!(!root.join("opt/portcullis").exists());

    for wrong in [&["--store", "--runner", "/home/runner"][..], &["--store", "--docker-plugin"]] {
        assert_eq!(install(root, wrong)?.status.code(), Some(64), "{wrong:?}");
    }
    Ok(())
}

#[test]
fn systemd_takes_every_line_of_the_unit_and_finds_little_to_complain_of() -> Result<()> {
    let units = tempfile::tempdir()?;
    let unit = units.path().join("portcullis-store.service");
    let text_of_unit = fs::read_to_string(source("deploy/systemd/portcullis-store.service"))?;
    fs::write(&unit, text_of_unit.replace("/opt/portcullis/bin/portcullis", "/bin/true"))?;
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
        .context("systemd-analyze can't be started: install the Debian package systemd")?;
    let said = text(&output);
    let complaints: Vec<&str> =
        said.lines().filter(|line| line.contains("portcullis-store")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    // 0 is a service that can do nothing, 10 one without any sandbox; the threshold is in tenths.
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=15", "--no-pager"])
        .arg(&unit)
        .output()?;
    ensure!(output.status.success(), "{}", text(&output));
    // What the command line knows is what the unit asks for.
    let help = Command::new(binaries::find("portcullis")?).args(["serve", "--help"]).output()?;
    assert!(text(&help).contains("--first-token-file"), "{}", text(&help));
    Ok(())
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server as the unit starts it: another user, no capabilities, no new ones.
fn start(directory: &TempDir, more: &[&str]) -> Result<(Running, String)> {
    let address = directory.path().join("address");
    let _ = fs::remove_file(&address);
    let program = directory.path().join("portcullis");
    if !program.exists() {
        fs::copy(binaries::find("portcullis")?, &program)?;
    }
    let user = NOBODY.to_string();
    let child = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"])
        .args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"])
        .arg(&program)
        .args(["serve", "--listen", "127.0.0.1:0", "--database"])
        .arg(format!("sqlite:{}", directory.path().join("store.db").display()))
        .arg("--address-file")
        .arg(&address)
        .args(more)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(fs::File::create(directory.path().join("output"))?)
        .stderr(Stdio::null())
        .spawn()?;
    let running = Running(child);
    let address = wait_for("the server to listen", || fs::read_to_string(&address).ok())?;
    Ok((running, address))
}

#[test]
fn the_server_needs_no_rights_and_leaves_its_first_token_in_a_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    chown(directory.path(), Some(NOBODY), Some(NOBODY))?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))?;
    let token_file = directory.path().join("first-admin-token");
    let option = token_file.display().to_string();
    let (server, address) = start(&directory, &["--first-token-file", &option])?;
    let status = fs::read_to_string(format!("/proc/{}/status", server.0.id()))?;
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert_eq!(fs::metadata(&token_file)?.mode() & 0o777, 0o600);
    let database = fs::metadata(directory.path().join("store.db"))?;
    assert_eq!(database.mode() & 0o777, 0o600);
    let shown = fs::read_to_string(directory.path().join("output"))?;
    assert_eq!(shown, "", "what is printed is collected by the journal");
    let listed = Command::new(directory.path().join("portcullis"))
        .args(["token", "list", "--server", &format!("http://{address}"), "--token-file", &option])
        .output();
    let said = succeeded(listed.context("portcullis can't be started"))?;
    assert!(said.contains("first-admin"), "{said}");
    drop(server);
    // The next start makes no token, and no file when the old one was taken away.
    fs::remove_file(&token_file)?;
    let (server, _) = start(&directory, &["--first-token-file", &option])?;
    assert!(!token_file.exists());
    drop(server);
    Ok(())
}
