//! B1, the long ones: what real projects do in a job, with everything that Lockdown Mode knows in force. None of it is a
//! detection, not even one that is only recorded, but for those that a line names.

mod life;

use anyhow::{Result, ensure};
use life::{AUDIT, Gate, detections};
use portcullis_tests::world::Process;
use portcullis_tests::{JobOutcome, World, wait_until, zlib};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A machine of the internet that the job works with.
const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
const REGISTRY_PORT: u16 = 8080;

fn gate() -> Result<Gate> {
    Gate::up(World::builder().build()?, &[("audit", AUDIT)])
}

/// Runs the script as a job, which must succeed without a detection.
fn assert_unnoticed(gate: &Gate, script: &str) -> Result<String> {
    let script = format!("set -euo pipefail; cd \"$RUNNER_TEMP\"\n{script}");
    let result = gate.run(&gate.job(&script))?;
    let events = gate.last_events()?;
    let found: Vec<_> = detections(&events).collect();
    let told = || format!("{found:#?}\n{}\n{}", result.log(), gate.monitor.log());
    ensure!(result.outcome == JobOutcome::Success, "{}", told());
    ensure!(found.is_empty(), "{}", told());
    Ok(result.log())
}

/// A directory that jobs can read.
fn readable_directory(gate: &Gate) -> Result<PathBuf> {
    let directory = tempfile::Builder::new().prefix("files-").tempdir_in(gate.world.directory())?;
    let directory = directory.keep();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

#[test]
fn a_c_project_is_compiled_and_tested() -> Result<()> {
    let gate = gate()?;
    let copy = readable_directory(&gate)?;
    let copied = Command::new("cp").arg("-rT").arg(zlib::sources()?).arg(&copy).status()?;
    ensure!(copied.success());
    let log = assert_unnoticed(
        &gate,
        &format!(
            "cp -r {} zlib; cd zlib; chmod +x configure; ./configure; make -j2; make check",
            copy.display()
        ),
    )?;
    ensure!(log.contains("zlib test OK") && log.contains("zlib shared test OK"), "{log}");
    Ok(())
}

/// A server of files in the internet.
fn serve(gate: &Gate, directory: &Path) -> Result<Process> {
    let server = gate
        .world
        .internet_command("python3")
        .args(["-m", "http.server", "--protocol", "HTTP/1.1"])
        .args(["--bind", &PEER.to_string(), "--directory", &directory.display().to_string()])
        .args([&REGISTRY_PORT.to_string()])
        .spawn(Stdio::null(), Stdio::null(), Stdio::null())?;
    let address = SocketAddr::from((PEER, REGISTRY_PORT));
    wait_until("the server listens", || {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        gate.world.runner_network().run(connect).unwrap_or(false)
    })?;
    Ok(server)
}

/// A registry with a package that depends on another and has install scripts of every kind.
fn fill_registry(directory: &Path) -> Result<()> {
    let packages = [
        ("left", "{}", r#"{"right":"1.0.0"}"#),
        (
            "right",
            r#"{"preinstall":"echo begin; sleep 0.3","install":"node install.js","postinstall":"node wait.js | sh -c 'read line; echo got $line'"}"#,
            "{}",
        ),
    ];
    for (name, scripts, dependencies) in packages {
        let tree = directory.join(format!("tree-{name}/package"));
        fs::create_dir_all(&tree)?;
        let manifest = format!(
            r#"{{"name":"{name}","version":"1.0.0","main":"index.js","scripts":{scripts},"dependencies":{dependencies}}}"#
        );
        fs::write(tree.join("package.json"), &manifest)?;
        fs::write(tree.join("index.js"), "module.exports = 42;\n")?;
        fs::write(tree.join("wait.js"), "setTimeout(() => console.log('later'), 500);\n")?;
        // A script by its standard input, as some installers do.
        let install =
            "require('child_process').execSync('sh', {input: 'sleep 0.3\\necho hello >made\\n'})\n";
        fs::write(tree.join("install.js"), install)?;
        let tarball = directory.join(format!("{name}.tgz"));
        let packed = Command::new("tar")
            .arg("-czf")
            .arg(&tarball)
            .arg("-C")
            .arg(directory.join(format!("tree-{name}")))
            .arg("package")
            .status()?;
        ensure!(packed.success());
        let mut version: serde_json::Value = serde_json::from_str(&manifest)?;
        let address = format!("http://{PEER}:{REGISTRY_PORT}/{name}.tgz");
        version["dist"] = serde_json::json!({ "tarball": address });
        let document = serde_json::json!({
            "name": name,
            "dist-tags": { "latest": "1.0.0" },
            "versions": { "1.0.0": version },
        });
        let document = document.to_string();
        fs::write(directory.join(name), document)?;
    }
    Ok(())
}

#[test]
fn npm_installs_packages_with_scripts() -> Result<()> {
    let gate = gate()?;
    let files = readable_directory(&gate)?;
    fill_registry(&files)?;
    let _server = serve(&gate, &files)?;
    assert_unnoticed(
        &gate,
        &format!(
            "export HOME=$PWD; echo '{{\"name\":\"app\",\"version\":\"1.0.0\"}}' >package.json\n\
             for how in '' --foreground-scripts; do rm -rf node_modules package-lock.json; npm install $how --no-audit --no-fund --registry http://{PEER}:{REGISTRY_PORT} left; done\n\
             grep hello node_modules/right/made; node -e 'if (require(\"left\") !== 42) process.exit(1)'"
        ),
    )?;
    Ok(())
}

/// Tests with a server of their own that answers by programs, and a connection to another machine beside it.
const TESTS: &str = r#"
import http.server, os, socket, subprocess, sys, threading, time, urllib.request
import pytest

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        shell = subprocess.run(["sh"], input=b"read a; echo from-a-shell $a\nhello\n", capture_output=True)
        self.send_response(200); self.send_header("Content-Length", str(len(shell.stdout))); self.end_headers()
        self.wfile.write(shell.stdout)
    def log_message(self, *_): pass

@pytest.fixture(scope="session")
def remote():
    connection = socket.create_connection((os.environ["P"], 8080))
    yield connection
    connection.close()

@pytest.fixture(scope="session")
def server(remote):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()

@pytest.mark.parametrize("number", range(20))
def test_answers(server, remote, number):
    remote.sendall(b"GET /left HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200" in remote.recv(65536)
    assert b"from-a-shell" in urllib.request.urlopen(server).read()

def test_a_worker_that_is_told_what_to_do(remote):
    worker = subprocess.Popen([sys.executable, "-u", "-c", "import sys\nfor line in sys.stdin: print(eval(line))"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for number in range(20):
        worker.stdin.write(b"%d * 2\n" % number); worker.stdin.flush()
        assert int(worker.stdout.readline()) == number * 2
        time.sleep(0.03)
    worker.stdin.close()
    assert worker.wait() == 0
"#;

#[test]
fn pytest_runs_with_a_web_server() -> Result<()> {
    let gate = gate()?;
    let files = readable_directory(&gate)?;
    fill_registry(&files)?;
    let _server = serve(&gate, &files)?;
    fs::write(files.join("test_web.py"), TESTS)?;
    let log = assert_unnoticed(
        &gate,
        &format!(
            "export P={PEER}; cp {}/test_web.py .; python3 -m pytest -q -p no:cacheprovider test_web.py",
            files.display()
        ),
    )?;
    ensure!(log.contains("21 passed"), "{log}");
    Ok(())
}
