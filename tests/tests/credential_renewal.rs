//! A host's credential is renewed by its monitor; killed at the worst moments, the host never has none.

use anyhow::{Context, Result};
use portcullis_tests::patience::wait_for;
use portcullis_tests::world::{MonitorOptions, Process};
use portcullis_tests::{Job, JobOutcome, World, wait_until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

const TOKEN: &str = "an-admin-token-of-this-test-alone-0123456789";

/// What is between the monitor and the store: it can lose the store's answers, one request a connection.
#[derive(Debug, Default)]
struct Wire {
    /// Requests for a new credential reach the store; its answers don't reach the host.
    loses_renewals: AtomicBool,
    /// No other request reaches the store.
    loses_all_others: AtomicBool,
    lost_renewals: AtomicUsize,
    ends: AtomicBool,
}

struct Proxy {
    wire: Arc<Wire>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(world: &World, store: SocketAddr) -> Result<Self> {
        let listener = world.runner_network().run(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = listener.local_addr()?;
        let tls = certificate(&world.root().join("etc/portcullis/authority.pem"))?;
        let wire = Arc::new(Wire::default());
        let shared = Arc::clone(&wire);
        // A thread that stays in the runner host's network: what it connects to is there.
        let namespace = fs::File::open(world.runner_network().path())?;
        let thread = std::thread::spawn(move || {
            let entered = nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET);
            assert_eq!(entered, Ok(()));
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.ends.load(Ordering::SeqCst) {
                    return;
                }
                // What breaks here breaks for the monitor, which is what it must bear.
                let _ = shared.pass(stream, &tls, store);
            }
        });
        Ok(Self { wire, address, thread: Some(thread) })
    }

    fn end(mut self, world: &World) -> Result<()> {
        self.wire.ends.store(true, Ordering::SeqCst);
        world.runner_network().run(|| TcpStream::connect(self.address))??;
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow::anyhow!("the wire broke"))
    }
}

impl Wire {
    fn pass(&self, stream: TcpStream, tls: &Arc<ServerConfig>, store: SocketAddr) -> Result<()> {
        let mut host = StreamOwned::new(ServerConnection::new(Arc::clone(tls))?, stream);
        let request = read_request(&mut host)?;
        let is_renewal = request.starts_with(b"POST /api/v1/host/credential ");
        if !is_renewal && self.loses_all_others.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut upstream = TcpStream::connect(store)?;
        let line = request.iter().position(|byte| *byte == b'\n').context("no line")? + 1;
        upstream.write_all(&request[..line])?;
        upstream.write_all(b"Connection: close\r\n")?;
        upstream.write_all(&request[line..])?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        if is_renewal && self.loses_renewals.load(Ordering::SeqCst) {
            anyhow::ensure!(answer.starts_with(b"HTTP/1.1 201"), "the store made none");
            self.lost_renewals.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        host.write_all(&answer)?;
        host.conn.send_close_notify();
        host.flush()?;
        Ok(())
    }
}

/// A certificate for this machine; its authority is written to a file.
fn certificate(authority_file: &Path) -> Result<Arc<ServerConfig>> {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
    fs::create_dir_all(authority_file.parent().context("no directory")?)?;
    fs::write(authority_file, authority.pem())?;
    let key = KeyPair::generate()?;
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    Ok(Arc::new(config))
}

fn read_request(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(Ok(0), str::parse)?;
            if bytes.len() >= head + length {
                return Ok(bytes);
            }
        }
        let read = stream.read(&mut buffer)?;
        anyhow::ensure!(read > 0, "the request ends early");
        bytes.extend_from_slice(&buffer[..read]);
    }
}

/// `GET` as a host with this secret: the status.
fn ask(world: &World, store: SocketAddr, secret: &str) -> Result<u16> {
    let answer = world.runner_network().run(|| -> Result<String> {
        let mut stream = TcpStream::connect(store)?;
        write!(
            stream,
            "GET /api/v1/host HTTP/1.1\r\nHost: store\r\nAuthorization: Bearer {secret}\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    Ok(answer.split(' ').nth(1).context("no status")?.parse()?)
}

fn start_store(world: &World, program: &Path) -> Result<(Process, SocketAddr)> {
    let directory = world.root().join("store");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("token"), TOKEN)?;
    let address_file = directory.join("address");
    let process = world
        .command(program)
        .args(["serve", "--listen", "127.0.0.1:0", "--database"])
        .arg(format!("sqlite:{}", directory.join("store.db").display()))
        .arg("--admin-token-file")
        .arg(directory.join("token"))
        .arg("--address-file")
        .arg(&address_file)
        .spawn(Stdio::null(), Stdio::null(), fs::File::create(directory.join("log"))?)?;
    let address = wait_for("the store to listen", || fs::read_to_string(&address_file).ok())?;
    Ok((process, address.parse()?))
}

fn read(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[test]
fn a_monitor_that_is_killed_while_it_renews_never_locks_its_host_out() -> Result<()> {
    let world = World::builder().build()?;
    let program = world.install_program("portcullis")?;
    let (_store, store) = start_store(&world, &program)?;
    let proxy = Proxy::start(&world, store)?;
    let server = format!("http://{store}");
    let token_file = world.root().join("store/token");
    let command = |arguments: &[&str]| {
        let command = world.command(&program).args(arguments).args(["--server", server.as_str()]);
        command.arg("--token-file").arg(&token_file).text()
    };
    let enrolment = world.root().join("store/enrolment");
    fs::write(&enrolment, command(&["enrol", "create", "--cluster", "prod"])?)?;
    let etc = world.root().join("etc/portcullis");
    fs::create_dir_all(&etc)?;
    let enrolled = etc.join("credential");
    let (from, to) = (enrolment.display().to_string(), enrolled.display().to_string());
    command(&["enrol", "host", "--enrolment-file", &from, "--credential-file", &to])?;
    world.write_configuration(&format!(
        "cluster = \"prod\"\n[store]\nurl = \"https://{}\"\nca-file = \"/etc/portcullis/authority.pem\"\n",
        proxy.address
    ))?;
    world.install_hooks()?;

    // As a store of an earlier version gave it: it is renewed as soon as the monitor starts.
    let mut credential = read(&enrolled)?;
    let first = credential["credential"].as_str().context("no secret")?.to_owned();
    for key in ["issued_at", "expires_at"] {
        assert!(credential.as_object_mut().is_some_and(|keys| keys.remove(key).is_some()), "{key}");
    }
    fs::write(&enrolled, credential.to_string())?;
    fs::set_permissions(&enrolled, Permissions::from_mode(0o600))?;
    let renewed = world.root().join("var/lib/portcullis/credential");

    // Killed when the store has made a new one, and the host has not got it.
    proxy.wire.loses_renewals.store(true, Ordering::SeqCst);
    let mut monitor = world.monitor(MonitorOptions::default())?;
    wait_until("the store makes a credential that is lost", || {
        proxy.wire.lost_renewals.load(Ordering::SeqCst) > 0
    })?;
    monitor.kill()?;
    assert!(!renewed.exists(), "nothing was kept");
    assert_eq!(ask(&world, store, &first)?, 200);

    // Killed when the new one is kept, and was not used.
    proxy.wire.loses_renewals.store(false, Ordering::SeqCst);
    proxy.wire.loses_all_others.store(true, Ordering::SeqCst);
    monitor.restart()?;
    wait_until("the new credential is kept", || renewed.exists())?;
    monitor.kill()?;
    let second = read(&renewed)?["credential"].as_str().context("no secret")?.to_owned();
    assert_ne!(first, second);
    assert_eq!(fs::metadata(&renewed)?.permissions().mode() & 0o777, 0o600);
    assert_eq!(ask(&world, store, &first)?, 200, "what was not used ends nothing");

    // The next one goes on with it, and is not due again.
    proxy.wire.loses_all_others.store(false, Ordering::SeqCst);
    monitor.restart()?;
    let result = world.runner(0).run(&Job::script("echo hello"))?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}\n{}", result.log(), monitor.log());
    monitor.wait_until_idle()?;
    let log = command(&["audit-log", "--output", "json"])?;
    let log: Value = serde_json::from_str(&log)?;
    let entries = log.as_array().or_else(|| log["items"].as_array()).context("no entries")?;
    let rotations = entries.iter().filter(|entry| entry["action"] == "host.rotate").count();
    assert!(rotations >= 2, "{log}");
    wait_until("the job to be uploaded with the new credential", || {
        command(&["runs", "--output", "json"]).is_ok_and(|runs| runs.contains("octo/hello"))
    })?;
    assert_eq!(read(&renewed)?["credential"], second.as_str());
    assert_eq!(ask(&world, store, &second)?, 200);
    assert_eq!(ask(&world, store, "pch_another")?, 401);
    monitor.stop()?;
    proxy.end(&world)
}
