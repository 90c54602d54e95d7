//! B1: what ordinary jobs do that looks like an attack to whoever looks at it wrongly. None of it is a detection that kills
//! a job.

mod life;

use anyhow::{Context, Result, ensure};
use life::{AUDIT, Gate, detections};
use portcullis_common::event::DetectionType;
use portcullis_tests::world::Process;
use portcullis_tests::{JobOutcome, World, wait_until};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// A machine that the job works with.
const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
const SSH_PORT: u16 = 2222;
const CHATTY_PORT: u16 = 4444;

/// Runs each script as a step of one job, which must succeed without a detection that could have killed it.
fn assert_unharmed(gate: &Gate, twins: &[(&str, &str)]) -> Result<()> {
    let mut failures = Vec::new();
    for (name, script) in twins {
        let prelude = format!("cd \"$RUNNER_TEMP\"; export P={PEER}\n");
        let result = gate.run(&gate.job(&format!("{prelude}{script}")))?;
        let events = gate.last_events()?;
        let found: Vec<_> = detections(&events)
            .filter(|found| matches!(found.detection, DetectionType::Lockdown(_)))
            .collect();
        if !found.is_empty() {
            failures.push(format!("{name}: {found:#?}"));
        } else if result.outcome != JobOutcome::Success {
            failures.push(format!("{name} did not work: {}", result.log()));
        }
    }
    ensure!(failures.is_empty(), "{}\n{}", failures.join("\n"), gate.monitor.log());
    Ok(())
}

/// A server that answers each line, keeps connections open, and sends something unasked now and then.
fn serve_chatty(gate: &Gate) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, CHATTY_PORT));
    let listener = gate.world.internet().run(|| TcpListener::bind(address))??;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(Duration::from_millis(150)));
                let mut buffer = [0; 4096];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) => return,
                        Ok(_) => {}
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

#[test]
fn tools_with_connections_and_children() -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("audit", AUDIT)])?;
    serve_chatty(&gate)?;
    assert_unharmed(
        &gate,
        &[
            ("a health check", "nc -z -w 3 $P 4444"),
            (
                "a health check of the shell's own",
                "bash -c 'exec 3<>/dev/tcp/$P/4444; echo GET >&3; read -t 5 line <&3; [ -n \"$line\" ]'",
            ),
            (
                "a client of the shell's own that reads lines",
                "timeout 3 bash -c 'exec 3<>/dev/tcp/$P/4444; echo GET >&3; cat <&3 | while read -r line; do echo \"$line\"; done' || true",
            ),
            (
                "pipelines that inherit a connection",
                "bash -c 'exec 9<>/dev/tcp/$P/4444; for n in 1 2 3 4 5; do (sleep 0.3; echo x) | while read -r line; do sleep 0.3; echo \"$line\"; done | sort; done'",
            ),
            (
                "a script from the network",
                "echo 'echo hello; sleep 1' >s; curl -sSk --max-time 5 https://ok.test/ -o /dev/null; cat s | bash",
            ),
            (
                "a pipeline of one host",
                "curl -sS http://ok.test/ | python3 -c 'import sys,time; d=sys.stdin.read(); time.sleep(1); print(len(d))' | curl -sS --max-time 10 -o /dev/null -T - http://ok.test/ || true",
            ),
            (
                "a test server on loopback with a shell as its child",
                "mkdir -p w/cgi-bin; printf '#!/bin/sh\\necho Content-Type: text/plain\\necho\\nsleep 1\\necho from-a-shell\\n' >w/cgi-bin/t; chmod +x w/cgi-bin/t; (cd w && exec python3 -m http.server --cgi --bind 127.0.0.1 8099) & for i in $(seq 100); do curl -sf http://127.0.0.1:8099/cgi-bin/t && break; sleep 0.1; done | grep from-a-shell; kill %1",
            ),
            (
                "a shell behind socat on loopback",
                "socat TCP-LISTEN:7070,bind=127.0.0.1,reuseaddr EXEC:sh,pty,stderr & sleep 0.3; (echo 'echo to-the-shell'; sleep 1; echo exit) | socat - TCP:127.0.0.1:7070,retry=20,interval=0.1 | grep to-the-shell",
            ),
            (
                "a parent that keeps a connection and tells a shell what to do",
                "python3 - <<'END'\nimport os,socket,subprocess,time\ns=socket.create_connection((os.environ['P'],4444))\ns.setblocking(False)\nh=subprocess.Popen(['/bin/sh'],stdin=subprocess.PIPE,stdout=subprocess.PIPE,bufsize=0)\nfor n in range(20):\n  h.stdin.write(b'echo %d\\n' % n)\n  assert h.stdout.readline()\n  time.sleep(0.15)\nh.stdin.close()\nassert h.wait()==0\nEND",
            ),
            (
                "node runs install scripts while it downloads",
                "cat >i.js <<'END'\nconst {spawn}=require('child_process'),net=require('net');\nconst s=net.connect(4444,process.env.P); s.on('data',()=>{}); const t=setInterval(()=>s.write('GET\\n'),50);\nlet n=0; (function next(){ if(n++===6){clearInterval(t); s.destroy(); return}\nconst c=spawn('sh',['-c','echo begin; sleep 0.3; node -e \"console.log(1)\"; echo end']); c.stdout.on('data',()=>{}); c.stdin.end(); c.on('exit',next)})();\nEND\nnode i.js",
            ),
            (
                "parents that stop with their children, as su and sudo do",
                "cat >su.py <<'END'\nimport os,signal,sys\npid=os.fork()\nif pid==0: os.execvp(sys.argv[1],sys.argv[1:])\nwhile True:\n  status=os.waitpid(pid,os.WUNTRACED)[1]\n  if not os.WIFSTOPPED(status): sys.exit(os.waitstatus_to_exitcode(status))\n  os.kill(os.getpid(),signal.SIGSTOP); os.kill(pid,signal.SIGCONT)\nEND\nbash -c 'exec 9<>/dev/tcp/$P/4444; for n in 1 2 3 4 5; do [ \"$(echo \"line $n\" | python3 su.py sh -c \"read l; echo \\$l\" | cat)\" = \"line $n\" ] || exit 1; done'",
            ),
            (
                "many pipelines while a connection is open",
                "bash -c 'exec 9<>/dev/tcp/$P/4444; for n in $(seq 200); do [ \"$(echo $n | sh -c \"read l; echo \\$l\" | cat)\" = $n ] || exit 1; done'",
            ),
            (
                "a download piped to a shell whose output is read",
                "bash -c 'exec 8<>/dev/tcp/$P/4444; echo GET >&8; [ \"$(head -c 10 <&8 | python3 -c \"import sys; print(len(sys.stdin.read()))\" | cat)\" = 10 ]'",
            ),
            (
                "a program that hands a download to a shell",
                "python3 - <<'END'\nimport os,socket,subprocess\ns=socket.create_connection((os.environ['P'],4444))\ns.sendall(b'GET\\n'); body=s.recv(4096); assert body\nh=subprocess.run(['sh'],input=b'echo '+body.split()[-1]+b'\\n',capture_output=True)\nassert h.stdout.split()==[b'ok'], h\nEND",
            ),
            (
                "a program that hands a download to a shell, as long as what came",
                "python3 - <<'END'\nimport os,socket,subprocess\ns=socket.create_connection((os.environ['P'],4444))\nfor n in range(3):\n  s.sendall(b'GET\\n'); body=s.recv(4096); assert body\n  h=subprocess.run(['sh'],input=b'echo ok #'.ljust(len(body)-1,b'x')+b'\\n',capture_output=True)\n  assert h.stdout==b'ok\\n', h\nEND",
            ),
            (
                "a worker that is told something as long as what came, among other things",
                "python3 - <<'END'\nimport os,socket,subprocess,time\ns=socket.create_connection((os.environ['P'],4444))\ns.sendall(b'GET\\n'); body=s.recv(4096); assert body\nh=subprocess.Popen(['/bin/sh'],stdin=subprocess.PIPE,stdout=subprocess.PIPE,bufsize=0)\nfor n in range(5):\n  for text in (b'echo ok', b'echo ok #'.ljust(len(body)-1,b'x')):\n    h.stdin.write(text+b'\\n'); assert h.stdout.readline()==b'ok\\n'\n    time.sleep(0.05)\nh.stdin.close()\nassert h.wait()==0\nEND",
            ),
            (
                "a dialogue of the shell's own with a server that speaks first",
                "bash -c 'exec 3<>/dev/tcp/$P/4444; for n in 1 2 3; do read -t 5 -r line <&3; { echo EHLO; cat /etc/hostname; } >&3; done; [ -n \"$line\" ]'",
            ),
            (
                "expect drives a local shell",
                "expect -c 'spawn sh; expect \"\\\\$\"; send \"echo $((6*7))\\r\"; expect \"42\"; send \"exit\\r\"; expect eof'",
            ),
            (
                "a coprocess that talks to a server",
                "bash -c 'coproc nc $P 4444; echo GET >&${COPROC[1]}; read -t 5 -u ${COPROC[0]} line; [ -n \"$line\" ]; kill $COPROC_PID'",
            ),
        ],
    )
}

#[test]
fn debuggers_and_tracers() -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("audit", AUDIT)])?;
    let program = "#include <stdlib.h>\n#include <stdio.h>\nint main(int c,char**v){char*p=malloc(100);p[0]=c;printf(\"%d\\n\",p[0]);p=0;return 0;}\n";
    let write = format!("cat >t.c <<'END'\n{program}END\n");
    assert_unharmed(
        &gate,
        &[
            (
                "gdb on one's own child",
                &format!(
                    "{write}gcc -g -o t t.c; gdb -batch -ex 'break main' -ex run -ex 'info locals' -ex 'x/4x $sp' -ex cont ./t | tee out; grep -q 'Breakpoint 1' out"
                ),
            ),
            (
                "gdb attached",
                "sleep 30 & gdb -batch -p $! -ex 'info registers' -ex detach 2>&1 | tee out; grep -q rip out || grep -q pc out; kill %1",
            ),
            ("gcore", "sleep 30 & gcore -o core $! >/dev/null 2>&1; ls core.*; kill %1"),
            (
                "LeakSanitizer",
                &format!(
                    "{write}gcc -fsanitize=leak -g -o t t.c; ./t 2>out && exit 1; grep -q 'LeakSanitizer: detected memory leaks' out"
                ),
            ),
            (
                "strace of a build",
                &format!(
                    "{write}printf 't: t.c\\n\\tgcc -o t t.c\\n' >Makefile; strace -f -o trace make -B; grep -q 'execve.*cc1' trace"
                ),
            ),
            (
                "looking at processes",
                "ps auxe >/dev/null; ls -l /proc/[0-9]*/exe >/dev/null 2>&1 || true; cat /proc/[0-9]*/cmdline >/dev/null 2>&1 || true",
            ),
        ],
    )
}

/// An SSH server on another machine, for a user of the job.
struct SshServer {
    _server: Process,
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(())
}

impl SshServer {
    fn start(gate: &Gate, home: &Path, user: u32) -> Result<Self> {
        let path = |name: &str| home.join(name).display().to_string();
        for key in ["host-key", "id"] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &path(key)])?;
        }
        fs::copy(home.join("id.pub"), home.join("authorized"))?;
        chown(home.join("id"), Some(user), Some(user))?;
        fs::create_dir_all("/run/sshd")?;
        fs::write(
            home.join("sshd_config"),
            format!(
                "Port {SSH_PORT}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n",
                path("host-key"),
                path("authorized")
            ),
        )?;
        run("git", &["init", "-q", "--bare", &path("repository.git")])?;
        let tree = home.join("tree");
        fs::create_dir(&tree)?;
        let in_tree = |arguments: &[&str]| {
            let tree = tree.display().to_string();
            let mut all = vec!["-C", tree.as_str(), "-c", "user.name=t", "-c", "user.email=t@t"];
            all.extend(arguments);
            run("git", &all)
        };
        in_tree(&["init", "-q"])?;
        fs::write(tree.join("big"), vec![b'x'; 1_000_000])?;
        in_tree(&["add", "."])?;
        in_tree(&["commit", "-q", "-m", "one"])?;
        in_tree(&["push", "-q", &path("repository.git"), "HEAD:main"])?;
        let server = gate
            .world
            .internet_command("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &path("sshd_config")])
            .spawn(Stdio::null(), Stdio::null(), Stdio::null())?;
        Ok(Self { _server: server })
    }
}

#[test]
fn ssh_and_git_over_ssh() -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("audit", AUDIT)])?;
    let home = tempfile::Builder::new().prefix("ssh-").tempdir_in(gate.world.directory())?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
    let _server = SshServer::start(&gate, home.path(), gate.world.runner(0).uid())?;
    let address = SocketAddr::from((PEER, SSH_PORT));
    wait_until("the SSH server listens", || {
        gate.world
            .runner_network()
            .run(|| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
            .unwrap_or(false)
    })?;
    let home = home.path().display();
    let ssh = format!(
        "ssh -i {home}/id -p {SSH_PORT} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR root@{PEER}"
    );
    let git = format!("export GIT_SSH_COMMAND='{}'", ssh.replace(&format!(" root@{PEER}"), ""));
    let repository = format!("ssh://root@{PEER}:{SSH_PORT}{home}/repository.git");
    assert_unharmed(
        &gate,
        &[
            ("ssh host command", &format!("{ssh} 'sleep 1; echo there' | grep there")),
            ("a script for the other side", &format!("echo 'echo there; sleep 1' | {ssh} sh | grep there")),
            ("a shell of its own behind ssh", &format!("{ssh} 'sleep 1; cat /etc/hostname' | while read line; do echo \"$line\"; sleep 1; done")),
            ("git clone", &format!("{git}; git clone -q -b main {repository} c && test -s c/big")),
            ("git push", &format!("{git}; git clone -q -b main {repository} c && cd c && date >d && git add d && git -c user.name=t -c user.email=t@t commit -qm two && git push -q origin HEAD:two")),
            ("a tunnel and a request", &format!("{ssh} -f -N -L 127.0.0.1:9090:{PEER}:{SSH_PORT} & sleep 1; timeout 3 nc 127.0.0.1 9090 </dev/null | head -c 4 | grep SSH; pkill -u $(id -u) -f 127.0.0.1:9090 || true")),
        ],
    )
    .context("with an SSH server on another machine")
}
