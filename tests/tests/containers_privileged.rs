//! Privileged containers: K1, K2, K3, C6, by the engine's authorization plugin and by what the kernel shows.
//!
//! This machine may lack a capability (`CAP_SYS_RESOURCE`), so that a runtime refuses `--privileged` and `--cap-add=ALL`
//! after the engine has accepted them. What the engine is asked for is then tested by the request, and what the kernel
//! shows by the nearest set of capabilities: `SYS_ADMIN`.

mod life;

use anyhow::{Result, ensure};
use life::{Gate, Puppet, detections};
use portcullis_common::event::{DetectionEvent, DetectionType};
use portcullis_common::policy::LockdownDetection;
use portcullis_tests::world::{Docker, DockerOptions, IMAGE};
use portcullis_tests::{JobOutcome, World, wait_for};

/// Kills a job that starts a privileged container.
const LOCKDOWN: &str = "
name: strict
egress-policy: block
allowed-endpoints: ['ok.test:80']
lockdown-mode: {enabled: true, detections: [Privileged-Container]}
attach: [{repository: octo/hello}]
";

/// Records it only.
const AUDIT: &str = "
name: lenient
egress-policy: block
allowed-endpoints: ['ok.test:80']
attach: [{repository: octo/hello}]
";

/// What makes a container privileged, with a word of the evidence.
const PRIVILEGED: &[(&str, &str)] = &[
    ("--cap-add=SYS_ADMIN", "SYS_ADMIN"),
    ("--pid=host", "host's pid namespace"),
    ("--ipc=host", "host's ipc namespace"),
    ("--network=host", "host's network namespace"),
    ("-v /:/host", "the host's / mounted writable"),
    ("-v /etc:/x:ro", "the host's /etc mounted read-only"),
    ("-v SOCKET:/s", "docker.sock"),
    ("--device /dev/loop0", "/dev/loop0"),
];

/// What ordinary containers have.
const ORDINARY: &[&str] = &[
    "",
    "-v \"$PWD:/src\" -w /src",
    "-v cache:/cache",
    "-v /etc/localtime:/etc/localtime:ro",
    "-v /tmp:/t",
    "--tmpfs /x --cap-drop ALL --security-opt no-new-privileges --read-only",
    "--cap-add=NET_ADMIN --cap-add=SYS_PTRACE",
    "--user 1000",
    "--network none",
    "--device /dev/null:/dev/x",
];

fn is_privileged_container(event: &DetectionEvent) -> bool {
    event.detection == DetectionType::Lockdown(LockdownDetection::PrivilegedContainer)
}

fn found(gate: &Gate) -> Result<Vec<DetectionEvent>> {
    let events = gate.last_events()?;
    Ok(detections(&events).filter(|event| is_privileged_container(event)).cloned().collect())
}

/// Waits for evidence that holds `word`.
fn wait_for_evidence(gate: &Gate, word: &str) -> Result<DetectionEvent> {
    let look = || found(gate).ok()?.into_iter().find(|event| event.evidence.contains(word));
    wait_for(&format!("a detection with {word:?}"), look).map_err(|error| {
        let all: Vec<String> =
            found(gate).unwrap_or_default().into_iter().map(|event| event.evidence).collect();
        error.context(format!("{all:#?}\n{}", gate.monitor.log()))
    })
}

fn up(policy: &str, plugin: bool) -> Result<(Gate, Docker)> {
    let world = World::builder().engine().build()?;
    if plugin {
        world.write_configuration("[docker]\nauthorization-plugin = true\n")?;
    }
    let gate = Gate::up(world, &[("policy", policy)])?;
    let plugins = if plugin { vec!["portcullis".to_owned()] } else { Vec::new() };
    let options = DockerOptions { authorization_plugins: plugins, ..DockerOptions::default() };
    let docker = gate.world.docker(&options)?;
    Ok((gate, docker))
}

/// K2, recorded only: every way is found and nothing is killed. The twins: ordinary containers are not found.
fn find_privileged(is_hidden: bool, how: &str) -> Result<()> {
    let world = World::builder().engine().build()?;
    let gate = Gate::up(world, &[("policy", AUDIT)])?;
    let docker = gate.world.docker(&DockerOptions { is_hidden, ..DockerOptions::default() })?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    puppet.run(&format!("export DOCKER_HOST={}", docker.host_variable()))?;
    for options in ORDINARY {
        let ran = puppet.run(&format!("docker run --rm {options} {IMAGE} sleep 1"))?;
        ensure!(ran.succeeded(), "{options}: {ran:?}\n{}", docker.log());
    }
    let none: Vec<_> = found(&gate)?.into_iter().map(|event| event.evidence).collect();
    ensure!(none.is_empty(), "{none:#?}");
    for (number, (options, word)) in PRIVILEGED.iter().enumerate() {
        let socket = docker.host_variable().trim_start_matches("unix://");
        let options = options.replace("SOCKET", socket);
        let run = format!("docker run -d --rm --name box-{number} {options} {IMAGE} sleep 1000");
        let ran = puppet.run(&run)?;
        ensure!(ran.succeeded(), "{options}: {ran:?}\n{}", docker.log());
        let id = ran.output.trim().get(..12).unwrap_or_default().to_owned();
        let look = || {
            found(&gate).ok()?.into_iter().find(|event| {
                event.evidence.contains(&id)
                    && event.evidence.contains(how)
                    && event.evidence.contains(word)
            })
        };
        let event = wait_for(&format!("{options} {how}"), look).map_err(|error| {
            error.context(format!("{:#?}\n{}", found(&gate), gate.monitor.log()))
        })?;
        ensure!(!event.is_lockdown, "{event:?}");
        puppet.run(&format!("docker rm -f box-{number}"))?;
    }
    if !is_hidden {
        // K1: the runtime of this machine may refuse to start it; that it was asked for is known all the same.
        puppet.run(&format!("docker run --rm --privileged {IMAGE} true"))?;
        wait_for_evidence(&gate, "the privileged flag")?;
    }
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    Ok(())
}

/// What the engine tells of a container is judged before the container runs.
#[test]
fn privileged_containers_are_found_by_what_their_engine_tells() -> Result<()> {
    find_privileged(false, "was made")
}

/// Of an engine that nobody knows, the kernel shows what it has made.
#[test]
fn privileged_containers_are_found_by_what_the_kernel_shows() -> Result<()> {
    find_privileged(true, "runs")
}

/// K2 by lockdown: the job is killed, its containers too, and its page says why.
#[test]
fn a_privileged_container_ends_its_job() -> Result<()> {
    let (gate, docker) = up(LOCKDOWN, false)?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let plain = puppet.run(&format!(
        "docker run -d --restart always --name plain {IMAGE} sleep 1000; docker run --rm {IMAGE} true"
    ))?;
    ensure!(plain.succeeded(), "{plain:?}");
    puppet.begin(&format!("docker run --rm --cap-add=SYS_ADMIN --name evil {IMAGE} sleep 1000"))?;
    let result = puppet.job.wait()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Failure);
    let reason =
        result.annotations.iter().find(|line| line.message.contains("Privileged-Container"));
    assert!(reason.is_some(), "{:?}", result.annotations);
    let event = wait_for_evidence(&gate, "SYS_ADMIN")?;
    assert!(event.is_lockdown, "{event:?}");
    // Also the one that its engine starts again and again.
    wait_for_no_container(&docker)?;
    Ok(())
}

/// The engine learns a little later that its containers are dead.
fn wait_for_no_container(docker: &Docker) -> Result<()> {
    wait_for("no container to run", || {
        let running = docker.command().args(["ps", "-q"]).text().ok()?;
        running.trim().is_empty().then_some(())
    })
    .map_err(|error| error.context(docker.log()))
}

/// K1, K2, C5 and C6 by the plugin: command, raw API, exec, volume; nothing of it is made, the job is killed.
#[test]
fn the_engine_refuses_what_the_policy_forbids() -> Result<()> {
    let (gate, docker) = up(LOCKDOWN, true)?;
    let raw = |path: &str, body: &str| {
        format!(
            "curl -sS --unix-socket /run/docker.sock -H 'Content-Type: application/json' -d '{body}' http://d/v1.41/{path}"
        )
    };
    let attempts = [
        format!("docker run -d --privileged {IMAGE} sleep 1000"),
        format!("docker run -d --cap-add=ALL {IMAGE} sleep 1000"),
        format!("docker create -v /:/host {IMAGE} sleep 1000"),
        raw("containers/create", r#"{"image":"box","hostconfig":{"privileged":true}}"#),
        raw(
            "containers/create",
            r#"{"Image":"box","HostConfig":{"Privileged":true},"HostConfig":{"Memory":0}}"#,
        ),
        raw(
            "volumes/create",
            r#"{"Name":"v","DriverOpts":{"type":"none","o":"bind","device":"/"}}"#,
        ),
        format!("docker run -d --name one {IMAGE} sleep 1000 && docker exec --privileged one id"),
        // C6: what would flush the rules.
        format!("docker run -d --network host --cap-add NET_ADMIN {IMAGE} sleep 1000"),
    ];
    for attempt in attempts {
        let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
        let twin = puppet.run(&format!("docker run --rm -v \"$PWD:/src\" {IMAGE} ls /src"))?;
        ensure!(twin.succeeded(), "{twin:?}\n{}", docker.log());
        puppet.begin(&attempt)?;
        let result = puppet.job.wait()?;
        gate.monitor.wait_until_idle()?;
        ensure!(result.outcome == JobOutcome::Failure, "{attempt}: {}", result.log());
        let event = wait_for_evidence(&gate, "was asked for and refused")?;
        ensure!(event.is_lockdown, "{event:?}");
        let process = event.process.as_ref();
        ensure!(
            process.is_some_and(|process| process
                .ancestors
                .iter()
                .any(|above| above.exe.ends_with("Runner.Worker"))),
            "{event:?}"
        );
        wait_for_no_container(&docker)?;
        let made = docker.command().args(["volume", "ls", "-q"]).text()?;
        ensure!(!made.contains('v'), "{attempt}: {made}");
    }
    Ok(())
}

/// The plugin refuses nothing when nothing asks it to: no job, or a job whose policy records only; and nobody but the job.
#[test]
fn the_engine_goes_on_for_everybody_else() -> Result<()> {
    let (gate, docker) = up(AUDIT, true)?;
    let privileged = ["run", "--rm", "--pid=host", IMAGE, "id"];
    docker.command().args(privileged).text()?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let ran = puppet.run(&format!("docker run --rm --pid=host {IMAGE} id"))?;
    ensure!(ran.succeeded(), "{ran:?}");
    let event = wait_for_evidence(&gate, "was asked for with")?;
    ensure!(!event.is_lockdown, "{event:?}");
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    docker.command().args(privileged).text()?;
    Ok(())
}

/// A privileged container that was there before the job, and that its engine starts again, is not the job's.
#[test]
fn a_container_of_others_is_not_the_jobs() -> Result<()> {
    let (gate, docker) = up(LOCKDOWN, false)?;
    docker
        .command()
        .args([
            "run",
            "-d",
            "--restart",
            "always",
            "--name",
            "old",
            "--pid=host",
            IMAGE,
            "sleep",
            "1000",
        ])
        .text()?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    // Its engine starts it again.
    let pid = docker.command().args(["inspect", "-f", "{{.State.Pid}}", "old"]).text()?;
    gate.world.command("kill").args(["-9", pid.trim()]).text()?;
    wait_for("the container to run again", || {
        let now = docker.command().args(["inspect", "-f", "{{.State.Pid}}", "old"]).text().ok()?;
        (now != pid && now.trim() != "0").then_some(())
    })?;
    for _ in 0..3 {
        let twin = puppet.run(&format!("docker run --rm {IMAGE} sleep 1"))?;
        ensure!(twin.succeeded(), "{twin:?}");
    }
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    assert!(found(&gate)?.is_empty(), "{:?}", found(&gate)?);
    let running = docker.command().args(["ps", "-q"]).text()?;
    assert!(!running.trim().is_empty(), "the container of others was killed with the job");
    Ok(())
}
