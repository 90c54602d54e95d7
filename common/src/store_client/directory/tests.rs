use super::DirectoryStore;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const POLICY: &str = "name: a\negress-policy: block\nallowed-endpoints: [x.test]\n";

fn store() -> (TempDir, DirectoryStore) {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("a.yaml"), POLICY).unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    (directory, store)
}

fn names(store: &DirectoryStore) -> Vec<String> {
    store.current().unwrap().library().names().map(str::to_owned).collect()
}

fn refused(store: &DirectoryStore) -> String {
    let text = store.current().expect_err("must be refused").to_string();
    text.replace(&store.path().display().to_string(), "DIR")
}

/// Waits until the change times of all files are so old that a further change must show in them.
fn settle(directory: &Path) {
    let deadline = SystemTime::now() + Duration::from_secs(10);
    let newest = || {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap())
            .map(|file| file.ctime_nsec() + file.ctime() * 1_000_000_000)
            .max()
    };
    let now = || {
        i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos())
            .unwrap()
    };
    while newest().is_some_and(|newest| now() - newest < 60_000_000) {
        assert!(SystemTime::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn reads_policy_files_and_nothing_else() {
    let (directory, store) = store();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("b.yml"), "name: b\n---\nname: c\nextends: [a]\n").unwrap();
    fs::write(path(".hidden.yaml"), "broken: [").unwrap();
    fs::write(path("README.md"), "not: a policy").unwrap();
    fs::write(path("d.yaml~"), "broken: [").unwrap();
    fs::create_dir(path("sub")).unwrap();
    fs::write(path("sub/e.yaml"), "broken: [").unwrap();
    assert_eq!(names(&store), ["a", "b", "c"]);
}

#[test]
fn an_unchanged_directory_is_not_read_again() {
    let (directory, store) = store();
    settle(directory.path());
    let first = store.current().unwrap();
    assert!(Arc::ptr_eq(&first, &store.current().unwrap()));
}

#[test]
fn every_change_is_seen_at_once() {
    let (directory, store) = store();
    let path = |name: &str| directory.path().join(name);
    assert_eq!(names(&store), ["a"]);
    // The same size, at once: only the content differs.
    fs::write(path("a.yaml"), POLICY.replace("name: a", "name: z")).unwrap();
    assert_eq!(names(&store), ["z"]);
    fs::write(path("new"), "name: b\n").unwrap();
    fs::rename(path("new"), path("b.yaml")).unwrap();
    assert_eq!(names(&store), ["b", "z"]);
    fs::remove_file(path("a.yaml")).unwrap();
    assert_eq!(names(&store), ["b"]);
    settle(directory.path());
    assert_eq!(names(&store), ["b"]);
    // An older modification time does not hide a change.
    fs::write(path("b.yaml"), "name: c\n").unwrap();
    File::options()
        .write(true)
        .open(path("b.yaml"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    assert_eq!(names(&store), ["c"]);
}

#[test]
fn one_mistake_makes_the_whole_directory_unusable_until_it_is_mended() {
    let (directory, store) = store();
    let path = |name: &str| directory.path().join(name);
    assert!(store.current().is_ok());
    fs::write(
        path("b.yaml"),
        "name: b\nextends: [c]\nattach: [{cluster: x}]\negress-policy: deny\n",
    )
    .unwrap();
    fs::write(path("c.yaml"), "name: c\negress: block\n").unwrap();
    insta::assert_snapshot!(refused(&store), @"
    error: DIR/b.yaml:4:16: `egress-policy`: `deny` is no value of this key

    hint: it can be `audit` or `block`

    error: DIR/c.yaml:2:1: `egress`: there is no such key

    hint: did you mean `egress-policy`? It can be `name`, `description`, `egress-policy`, `allowed-endpoints`, `denied-endpoints`, `extends`, `fail-on-block`, `disable-sudo`, `disable-sudo-and-containers`, `disable-file-monitoring`, `disable-telemetry`, `on-failure`, `lockdown-mode` or `attach`
    ");
    assert_eq!(refused(&store), refused(&store));
    fs::remove_file(path("b.yaml")).unwrap();
    fs::remove_file(path("c.yaml")).unwrap();
    assert_eq!(names(&store), ["a"]);
}

#[test]
fn two_files_may_not_attach_to_one_target() {
    let (directory, store) = store();
    let attach = "egress-policy: audit\nattach: [{repository: octo/hello}]\n";
    fs::write(directory.path().join("b.yaml"), format!("name: b\n{attach}")).unwrap();
    fs::write(directory.path().join("c.yaml"), format!("name: c\n{attach}")).unwrap();
    let text = refused(&store);
    assert!(text.contains("DIR/c.yaml:3:10: `attach`: the repository octo/hello has a policy already: `b`, attached in DIR/b.yaml:3:10"), "{text}");
}

#[test]
fn what_is_no_regular_file_is_refused_and_holds_nobody_up() {
    let (directory, store) = store();
    let status = Command::new("mkfifo").arg(directory.path().join("pipe.yaml")).status().unwrap();
    assert!(status.success());
    fs::create_dir(directory.path().join("sub.yaml")).unwrap();
    symlink("/dev/zero", directory.path().join("zero.yaml")).unwrap();
    symlink("nowhere", directory.path().join("dangling.yaml")).unwrap();
    insta::assert_snapshot!(refused(&store), @"
    error: DIR/dangling.yaml: the file can't be read: No such file or directory (os error 2)

    hint: check that it exists and who may read it

    error: DIR/pipe.yaml: this is not a regular file

    hint: remove it, or give it a name that does not end in .yaml or .yml

    error: DIR/sub.yaml: this is not a regular file

    hint: remove it, or give it a name that does not end in .yaml or .yml

    error: DIR/zero.yaml: the link leads out of the policy directory, to /dev/zero

    hint: put the file itself into the directory
    ");
}

#[test]
fn links_are_followed_within_the_directory_only() {
    let (directory, store) = store();
    let path = |name: &str| directory.path().join(name);
    // As Kubernetes mounts a ConfigMap.
    fs::create_dir(path("..2026_01")).unwrap();
    fs::write(path("..2026_01/b.yaml"), "name: b\n").unwrap();
    symlink("..2026_01", path("..data")).unwrap();
    symlink("..data/b.yaml", path("b.yaml")).unwrap();
    assert_eq!(names(&store), ["a", "b"]);
    fs::create_dir(path("..2026_02")).unwrap();
    fs::write(path("..2026_02/b.yaml"), "name: c\n").unwrap();
    symlink("..2026_02", path("..new")).unwrap();
    fs::rename(path("..new"), path("..data")).unwrap();
    assert_eq!(names(&store), ["a", "c"]);
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("d.yaml"), "name: d\n").unwrap();
    symlink(outside.path().join("d.yaml"), path("d.yaml")).unwrap();
    assert!(refused(&store).contains("d.yaml: the link leads out of the policy directory"));
}

#[test]
fn a_large_file_is_refused_unread() {
    let (directory, store) = store();
    File::create(directory.path().join("big.yaml")).unwrap().set_len(1 << 40).unwrap();
    assert!(
        refused(&store)
            .contains("the file has 1099511627776 bytes; a policy file has at most 1048576")
    );
}

#[test]
fn a_directory_that_is_not_there_is_told() {
    let (directory, store) = store();
    drop(directory);
    assert!(refused(&store).contains("the directory can't be read"));
    assert!(DirectoryStore::open("/nonexistent").is_err());
}

#[test]
fn says_who_else_could_change_the_policies() {
    let (directory, store) = store();
    let uid = fs::metadata(directory.path()).unwrap().uid();
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let file = directory.path().join("a.yaml");
    mode(directory.path(), 0o755);
    mode(&file, 0o644);
    assert_eq!(store.insecure_permissions(&[0, uid]).unwrap(), []);
    mode(&file, 0o664);
    mode(directory.path(), 0o777);
    let found: Vec<String> =
        store.insecure_permissions(&[0, uid]).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 2);
    assert!(found[0].ends_with("can be written by others than its owner (mode 0777)"), "{found:?}");
    assert!(store.insecure_permissions(&[u32::MAX]).unwrap().iter().all(|path| path.is_foreign));
}
