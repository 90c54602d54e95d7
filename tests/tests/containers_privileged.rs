//! Privileged containers of an engine: K1, K2, C6, by the engine's authorization plugin and by what the kernel shows.
//!
//! This machine may lack a capability (`CAP_SYS_RESOURCE`), so that a runtime refuses `--privileged` and `--cap-add=ALL`
//! after the engine has accepted them. What the engine is asked for is then tested by the request, and what the kernel
//! shows by the nearest set of capabilities: `SYS_ADMIN`.

mod life;
mod privileged;

use anyhow::{Result, ensure};
use life::{Gate, Puppet, detections};
use portcullis_tests::world::{Docker, DockerOptions, IMAGE};
use portcullis_tests::{JobOutcome, World, wait_for};
use privileged::{AUDIT, LOCKDOWN, found, wait_for_evidence};

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
        // A container that runs is told once, by whoever sees it first: what only the engine knows of is never started.
        let verb = if is_hidden { "run -d" } else { "create" };
        let run = format!("docker {verb} --name box-{number} {options} {IMAGE} sleep 1000");
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

/// 500 processes and 5 containers are dead 300 ms after the finding.
#[test]
fn many_processes_and_containers_die_at_once() -> Result<()> {
    let (gate, docker) = up(LOCKDOWN, false)?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let busy = puppet.run(&format!(
        "for i in $(seq 500); do sleep 1000 & done >/dev/null 2>&1; for i in 1 2 3 4 5; do docker run -d {IMAGE} sleep 1000; done"
    ))?;
    ensure!(busy.succeeded(), "{busy:?}\n{}", docker.log());
    puppet.begin(&format!("docker run --rm --pid=host {IMAGE} sleep 1000"))?;
    let result = puppet.job.wait()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Failure);
    let event = wait_for_evidence(&gate, "containers among it")?;
    let after = event
        .evidence
        .split_once("everything else after ")
        .and_then(|(_, rest)| rest.split_once(" ms"))
        .and_then(|(number, _)| number.parse::<f64>().ok());
    let after = after.ok_or_else(|| anyhow::anyhow!("{event:?}"))?;
    // Machines that run tests are busy with other tests; the figure is in docs/performance.md.
    assert!(after < 3_000.0, "{event:?}");
    ensure!(
        event.evidence.contains("5 containers") || event.evidence.contains("6 containers"),
        "{event:?}"
    );
    wait_for_no_container(&docker)
}

/// Several containers at once by docker-compose are nobody's concern, also under Lockdown Mode.
#[test]
fn composed_containers_are_ordinary() -> Result<()> {
    let (gate, docker) = up(LOCKDOWN, true)?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let ran = puppet.run(&format!(
        r#"mkdir -p app && cd app && cat >docker-compose.yml <<'END'
version: "3"
services:
  store: {{image: {IMAGE}, command: [nc, -ll, -p, "6379", -e, /bin/echo, stored], volumes: ["data:/data"]}}
  client: {{image: {IMAGE}, command: [sh, -c, "until nc -w 5 store 6379; do sleep 1; done"], depends_on: [store], volumes: [".:/src"]}}
volumes: {{data: {{}}}}
END
docker-compose up --abort-on-container-exit && docker-compose down -v"#
    ))?;
    ensure!(ran.succeeded() && ran.output.contains("stored"), "{ran:?}\n{}", docker.log());
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    let events = gate.last_events()?;
    let all: Vec<_> = detections(&events).collect();
    assert!(all.is_empty(), "{all:#?}");
    Ok(())
}

/// P5, the containers' part: `disable-sudo-and-containers` closes the engine's socket to the job and to nobody else, also
/// when the engine makes it anew, and over a crash of the monitor; afterwards everything is as it was.
#[test]
fn a_policy_closes_the_engine_to_the_job() -> Result<()> {
    const CLOSED: &str = "
name: closed
egress-policy: block
allowed-endpoints: ['ok.test:80']
disable-sudo-and-containers: true
attach: [{repository: octo/hello}]
";
    let (mut gate, docker) = up(CLOSED, false)?;
    let socket = docker.socket().to_owned();
    let attributes =
        |gate: &Gate| gate.world.command("getfacl").args(["-cpn", "/run/docker.sock"]).output();
    let before = std::fs::metadata(&socket)?.permissions();
    {
        let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
        for attempt in [
            "docker ps",
            "sg docker -c 'docker ps'",
            "sudo -n docker ps",
            "curl -sS --max-time 5 --unix-socket /run/docker.sock http://d/_ping",
            "curl -sS --max-time 5 --unix-socket /run/docker/containerd/containerd.sock http://d/_ping",
            "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 2375), 5)'",
        ] {
            let tried = puppet.run(attempt)?;
            ensure!(!tried.succeeded(), "{attempt}: {tried:?}");
        }
        docker.command().arg("ps").text()?;
        let result = puppet.finish()?;
        gate.monitor.wait_until_idle()?;
        assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    }
    ensure!(std::fs::metadata(&socket)?.permissions() == before, "{:?}", attributes(&gate));
    // A monitor that dies with its job leaves nothing closed.
    let puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let worker = puppet.job.worker_pid()?;
    drop(puppet);
    gate.monitor.kill()?;
    gate.world.command("kill").args(["-9", &worker.to_string()]).text()?;
    gate.monitor.restart()?;
    gate.monitor.wait_until_idle()?;
    gate.world.write_policy("policy", AUDIT)?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let twin = puppet.run("docker ps")?;
    ensure!(twin.succeeded(), "{twin:?}\n{}", gate.monitor.log());
    puppet.finish()?;
    Ok(())
}
