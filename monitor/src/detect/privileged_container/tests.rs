//! Which containers have the host's privileges, and which ordinary ones have not.

use super::json::Json;
use super::request::EngineCall;
use super::*;

fn own() -> JobOwn {
    JobOwn { uid: 1001, directories: vec!["/home/runner".into(), "/opt/runner".into()] }
}

/// What docker's default gives (`0xa80425fb`).
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

fn ordinary() -> ContainerFacts {
    ContainerFacts {
        in_host_user_namespace: true,
        capabilities: DEFAULT_CAPABILITIES,
        is_filtered: true,
        ..ContainerFacts::default()
    }
}

fn path(path: &str, kind: PathKind, owner: u32, mode: u32, read_only: bool) -> HostPath {
    HostPath { path: path.into(), read_only, kind, owner: Some(owner), mode }
}

fn found(facts: &ContainerFacts) -> Vec<String> {
    privileges_of_process(facts, &own()).iter().map(ToString::to_string).collect()
}

#[test]
fn an_ordinary_container_has_nothing() {
    assert_eq!(found(&ordinary()), Vec::<String>::new());
    // As a debugger's container: no filter, and the right to trace what is in it.
    let debugger = ContainerFacts {
        is_filtered: false,
        capabilities: DEFAULT_CAPABILITIES | 1 << 19,
        ..ordinary()
    };
    assert_eq!(found(&debugger), Vec::<String>::new());
    // As a tunnel's container, in a network of its own.
    let tunnel = ContainerFacts { capabilities: DEFAULT_CAPABILITIES | 1 << 12, ..ordinary() };
    assert_eq!(found(&tunnel), Vec::<String>::new());
}

#[test]
fn each_privilege_is_found_by_itself() {
    let cases: Vec<(ContainerFacts, &str)> = vec![
        (ContainerFacts { capabilities: u64::MAX, ..ordinary() }, "SYS_ADMIN"),
        (ContainerFacts { capabilities: 1 << 21, ..ordinary() }, "SYS_ADMIN"),
        (ContainerFacts { capabilities: 1 << 16, ..ordinary() }, "SYS_MODULE"),
        (ContainerFacts { capabilities: 1 << 2, ..ordinary() }, "DAC_READ_SEARCH"),
        (ContainerFacts { in_host_pid_namespace: true, ..ordinary() }, "pid namespace"),
        (ContainerFacts { in_host_network_namespace: true, ..ordinary() }, "network namespace"),
        (ContainerFacts { in_host_ipc_namespace: true, ..ordinary() }, "ipc namespace"),
        (ContainerFacts { devices: vec!["/dev/sda (8:0)".to_owned()], ..ordinary() }, "/dev/sda"),
        (
            ContainerFacts {
                service_cgroup: Some("/system.slice/ssh.service".to_owned()),
                ..ordinary()
            },
            "ssh.service",
        ),
        (
            ContainerFacts {
                host_paths: vec![path("/", PathKind::Directory, 0, 0o755, false)],
                ..ordinary()
            },
            "the host's / mounted writable",
        ),
        (
            ContainerFacts {
                host_paths: vec![path("/run/docker.sock", PathKind::Socket, 0, 0o660, false)],
                ..ordinary()
            },
            "/run/docker.sock",
        ),
    ];
    for (facts, expected) in cases {
        let found = found(&facts).join(", ");
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

#[test]
fn a_user_namespace_of_its_own_holds_no_privileges() {
    let rootless = ContainerFacts {
        in_host_user_namespace: false,
        in_host_pid_namespace: true,
        capabilities: u64::MAX,
        host_paths: vec![path("/", PathKind::Directory, 0, 0o755, false)],
        ..ordinary()
    };
    assert_eq!(found(&rootless), Vec::<String>::new());
    let with_socket = ContainerFacts {
        host_paths: vec![path("/run/docker.sock", PathKind::Socket, 0, 0o660, false)],
        ..rootless
    };
    assert_eq!(found(&with_socket).len(), 1);
}

#[test]
fn a_mount_of_what_the_job_has_is_no_privilege() {
    let check = |mount: HostPath, is_privilege: bool| {
        let facts = ContainerFacts { host_paths: vec![mount.clone()], ..ordinary() };
        assert_eq!(!found(&facts).is_empty(), is_privilege, "{mount:?}");
    };
    let (directory, file) = (PathKind::Directory, PathKind::File);
    // The workspace, also where a container of root's has written to it; something else of the job's user.
    check(path("/opt/runner/_work/hello/hello", directory, 1001, 0o755, false), false);
    check(path("/opt/runner/_work/hello/hello/out", directory, 0, 0o755, false), false);
    check(path("/data/cache", directory, 1001, 0o700, false), false);
    check(path("/tmp", directory, 0, 0o1777, false), false);
    check(path("/etc/localtime", file, 0, 0o644, true), false);
    check(path("/etc/passwd", file, 0, 0o644, true), false);
    check(path("/usr/share/zoneinfo", directory, 0, 0o755, true), false);
    check(path("/sys/fs/cgroup", directory, 0, 0o755, true), false);
    check(path("/run/user/1001/agent", PathKind::Socket, 1001, 0o600, false), false);
    check(path("/etc/passwd", file, 0, 0o644, false), true);
    check(path("/etc/shadow", file, 0, 0o640, true), true);
    check(path("/etc", directory, 0, 0o755, true), true);
    check(path("/usr", directory, 0, 0o755, false), true);
    check(path("/sys/fs/cgroup", directory, 0, 0o755, false), true);
    check(path("/tmp/systemd-private-x", directory, 0, 0o700, false), true);
    check(path("/home", directory, 0, 0o755, false), true);
    check(path("/home/runner2", directory, 1002, 0o700, false), true);
    check(path("/dev", directory, 0, 0o755, false), true);
    check(path("/run", directory, 0, 0o755, true), true);
    // Nothing is known of it.
    check(HostPath { path: "/x".into(), ..HostPath::default() }, true);
}

#[test]
fn the_runners_own_containers_have_the_socket() {
    let host_paths = vec![path("/run/docker.sock", PathKind::Socket, 0, 0o660, false)];
    let facts = ContainerFacts { host_paths, is_made_by_runner: true, ..ordinary() };
    assert_eq!(found(&facts), Vec::<String>::new());
    let privileged = ContainerFacts { capabilities: u64::MAX, ..facts };
    assert!(!found(&privileged).is_empty());
    assert!(has_runner_label([("a1b2c3", "")]));
    assert!(!has_runner_label([("a1b2c3", "x"), ("com.docker.compose.project", "a")]));
}

fn asked(method: &str, uri: &str, body: &str) -> String {
    let call = EngineCall::new(method, uri, body.as_bytes());
    let paths: Vec<HostPath> = call
        .named_paths()
        .into_iter()
        .map(|named| HostPath {
            kind: if named.path.ends_with("docker.sock") {
                PathKind::Socket
            } else {
                PathKind::Directory
            },
            owner: Some(if named.path.starts_with("/data/mine") { 1001 } else { 0 }),
            mode: 0o755,
            path: named.path,
            read_only: named.read_only,
        })
        .collect();
    let found = call.privileges(&paths, &own());
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn created(body: &str) -> String {
    asked("POST", "/v1.41/containers/create?name=x", body)
}

#[test]
fn requests_for_the_hosts_privileges_are_seen() {
    for (host, expected) in [
        (r#"{"Privileged":true}"#, "privileged flag"),
        (r#"{"CapAdd":["ALL"]}"#, "capability ALL"),
        (r#"{"CapAdd":["cap_sys_admin"]}"#, "SYS_ADMIN"),
        (r#"{"CapAdd":["NET_ADMIN"],"NetworkMode":"host"}"#, "NET_ADMIN"),
        (r#"{"PidMode":"host"}"#, "pid namespace"),
        (r#"{"IpcMode":"host"}"#, "ipc namespace"),
        (r#"{"NetworkMode":"host"}"#, "network namespace"),
        (r#"{"UsernsMode":"host"}"#, "user namespace"),
        (r#"{"CgroupnsMode":"host"}"#, "cgroup namespace"),
        (r#"{"Binds":["/:/host"]}"#, "the host's / mounted writable"),
        (r#"{"Binds":["/etc:/x:ro"]}"#, "the host's /etc mounted read-only"),
        (r#"{"Binds":["/var/run/docker.sock:/var/run/docker.sock"]}"#, "engine's socket"),
        (r#"{"Mounts":[{"Type":"bind","Source":"/","Target":"/x"}]}"#, "the host's /"),
        (
            r#"{"Mounts":[{"Type":"volume","VolumeOptions":{"DriverConfig":{"Options":{"type":"none","o":"bind","device":"/"}}}}]}"#,
            "the host's /",
        ),
        (r#"{"Devices":[{"PathOnHost":"/dev/sda","PathInContainer":"/dev/x"}]}"#, "/dev/sda"),
        (r#"{"Devices":[{"PathOnHost":"/dev/net/../sda"}]}"#, "sda"),
        (r#"{"DeviceCgroupRules":["b 8:* rmw"]}"#, "b 8:"),
        (r#"{"SecurityOpt":["seccomp=unconfined"]}"#, "seccomp=unconfined"),
        (r#"{"SecurityOpt":["apparmor:unconfined"]}"#, "apparmor:unconfined"),
        (r#"{"MaskedPaths":[],"ReadonlyPaths":[]}"#, "no MaskedPaths"),
        (r#"{"CgroupParent":"/system.slice/ssh.service"}"#, "ssh.service"),
    ] {
        let found = created(&format!(r#"{{"Image":"a","HostConfig":{host}}}"#));
        assert!(found.contains(expected), "{host}: {found}");
    }
}

#[test]
fn a_request_is_read_as_the_engine_reads_it() {
    // Other case, other letters that fold to the same, the same field twice.
    for body in [
        r#"{"hostconfig":{"PRIVILEGED":true}}"#,
        r#"{"HoſtConfig":{"privileged":true}}"#,
        r#"{"HostConfig":{"Privileged":true},"HostConfig":{"Memory":1}}"#,
        r#"{"HostConfig":{"Privileged":false,"privileged":true}}"#,
        r#"{"HostConfig":{"Privileged":true}} trailing"#,
    ] {
        assert!(created(body).contains("privileged flag"), "{body}");
    }
    let flag = r#"{"HostConfig":{"Privileged":true}}"#;
    for uri in [
        "/containers/create",
        "//v1.41//containers/create",
        "/v1.41/containers/%63reate?name=a",
        "http://docker/v1.24/containers/create",
        "/v1.41/./containers/create",
    ] {
        assert!(asked("post", uri, flag).contains("privileged flag"), "{uri}");
    }
    // An engine that does not hand the body on.
    assert!(created("").contains("did not show"));
    assert!(created("\u{1}").contains("did not show"));
    assert!(asked("POST", "/containers/a/start", r#"{"Privileged":true}"#).contains("flag"));
    assert!(
        asked("POST", "/v1.41/containers/a/exec", r#"{"Cmd":["sh"],"Privileged":true}"#)
            .contains("flag")
    );
    assert!(asked("POST", "/plugins/pull?remote=x", "[]").contains("plugin"));
    assert!(asked("POST", "/plugins/x/enable", "").contains("plugin"));
    assert!(asked("POST", "/swarm/init", "{}").contains("swarm"));
    assert!(asked("POST", "/services/create", "{}").contains("swarm"));
    assert!(asked("POST", "/build?networkmode=host", "").contains("network"));
    assert!(
        asked(
            "POST",
            "/volumes/create",
            r#"{"DriverOpts":{"type":"none","o":"bind","device":"/"}}"#
        )
        .contains("the host's /")
    );
    assert!(
        asked("POST", "/containers/a/update", r#"{"Devices":[{"PathOnHost":"/dev/sda"}]}"#)
            .contains("sda")
    );
}

#[test]
fn ordinary_requests_are_nothing() {
    for (method, uri, body) in [
        (
            "POST",
            "/v1.41/containers/create",
            r#"{"Image":"a","HostConfig":{"NetworkMode":"default","Binds":["/opt/runner/_work/a:/src","cache:/c"],"CapAdd":["NET_ADMIN","SYS_PTRACE"],"Privileged":false,"SecurityOpt":["no-new-privileges"],"PidMode":"","CgroupnsMode":"private","CgroupParent":"","MaskedPaths":null,"Devices":[{"PathOnHost":"/dev/kvm"},{"PathOnHost":"/dev/net/tun"}]}}"#,
        ),
        (
            "POST",
            "/v1.41/containers/create",
            r#"{"Image":"a","HostConfig":{"Binds":["/data/mine:/x"],"Mounts":[{"Type":"tmpfs","Target":"/t"}]}}"#,
        ),
        (
            "POST",
            "/v1.41/containers/create",
            r#"{"Image":"a","Labels":{"a1b2c3":""},"HostConfig":{"Binds":["/var/run/docker.sock:/var/run/docker.sock"]}}"#,
        ),
        ("POST", "/v1.41/containers/a/start", ""),
        ("POST", "/v1.41/containers/a/exec", r#"{"Cmd":["sh"]}"#),
        ("POST", "/v1.41/containers/a/update", r#"{"Memory":1}"#),
        ("POST", "/v1.41/build?t=x", "\u{1f}\u{8b}archive"),
        ("POST", "/v1.41/images/create?fromImage=a", ""),
        ("POST", "/v1.41/networks/create", r#"{"Name":"x"}"#),
        (
            "POST",
            "/v1.41/volumes/create",
            r#"{"Name":"x","DriverOpts":{"type":"nfs","device":":/share"}}"#,
        ),
        ("GET", "/v1.41/containers/a/json", ""),
        ("GET", "/v1.41/plugins", ""),
        ("DELETE", "/v1.41/containers/a", ""),
    ] {
        assert_eq!(asked(method, uri, body), "", "{method} {uri} {body}");
    }
}

#[test]
fn json_keeps_everything() {
    let json: Json = serde_json::from_str(r#"{"a":[1,"x",{"B":null}],"A":"y","a":true}"#).unwrap();
    assert_eq!(json.all("a").len(), 3);
    assert_eq!(json.texts(&["a"]), ["x", "y"]);
    assert!(json.is_true(&["A"]));
    assert_eq!(json.objects(&["a"]).len(), 1);
    // As deep as a parser may go, and deeper: an error, no overflow.
    assert!(serde_json::from_str::<Json>(&"[".repeat(100_000)).is_err());
}

proptest::proptest! {
    /// Whatever comes, nothing panics, and a privileged flag is found wherever it stands.
    #[test]
    fn any_bytes_can_be_judged(method in ".{0,8}", uri in ".{0,60}", body in proptest::collection::vec(0_u8.., 0..200)) {
        let call = EngineCall::new(&method, &uri, &body);
        let _ = (call.name(), call.privileges(&[], &own()), call.named_paths());
    }
}
