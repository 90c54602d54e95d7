//! Somebody on another machine who waits for shells and gives each one commands.

use anyhow::{Result, ensure};
use portcullis_tests::World;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Where the peer listens, and how jobs call it.
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);
pub(crate) const PORTS: [u16; 2] = [4444, 5555];
pub(crate) const TLS_PORT: u16 = 4445;

/// What takes TLS off: port, port behind it, certificate, key.
const TLS_RELAY: &str = "
import socket, ssl, sys, threading
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(sys.argv[3], sys.argv[4])
def copy(one, other):
    try:
        while data := one.recv(4096):
            other.sendall(data)
    except OSError:
        pass
    other.close()
def serve(client):
    client = context.wrap_socket(client, server_side=True)
    inner = socket.create_connection(('127.0.0.1', int(sys.argv[2])))
    threading.Thread(target=copy, args=(client, inner), daemon=True).start()
    copy(inner, client)
listener = socket.create_server(('', int(sys.argv[1])))
while True:
    client = listener.accept()[0]
    threading.Thread(target=serve, args=(client,), daemon=True).start()
";

/// Somebody who waits for shells and gives each one a command after the other.
pub(crate) struct Peer {
    pub(crate) commands: Commands,
    tls: Child,
    /// Its key and certificate are there for as long as it is.
    _files: tempfile::TempDir,
}

/// What the peer sends, and what became of it: an executed command leaves a line in a file, and its answer arrives.
#[derive(Clone)]
pub(crate) struct Commands {
    pub(crate) marker: PathBuf,
    answers: Arc<AtomicU64>,
}

impl Commands {
    pub(crate) fn new(world: &World) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("marker-").tempdir_in(world.directory())?;
        let directory = directory.keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
        Ok(Self { marker: directory.join("executed"), answers: Arc::default() })
    }

    /// How many commands were executed so far; the evidence that shows more.
    pub(crate) fn executed(&self) -> u64 {
        let lines = fs::read_to_string(&self.marker).unwrap_or_default().lines().count() as u64;
        lines.max(self.answers.load(Ordering::SeqCst))
    }

    fn text(&self) -> String {
        format!("echo answer-$((40+2)); echo executed >>{}\n", self.marker.display())
    }

    fn count(&self, received: &[u8]) {
        let seen = String::from_utf8_lossy(received).matches("answer-42").count() as u64;
        self.answers.fetch_add(seen, Ordering::SeqCst);
    }

    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(&self.marker);
        self.answers.store(0, Ordering::SeqCst);
    }
}

impl Peer {
    pub(crate) fn listen(world: &World) -> Result<Self> {
        let commands = Commands::new(world)?;
        for port in PORTS {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let listener = world.internet().run(|| TcpListener::bind(address))??;
            let counted = commands.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let counted = counted.clone();
                    thread::spawn(move || command(&stream, &counted));
                }
            });
            let datagrams = world.internet().run(|| UdpSocket::bind(address))??;
            let counted = commands.clone();
            thread::spawn(move || command_by_datagrams(&datagrams, &counted));
        }
        let files = tempfile::tempdir()?;
        let path = |name: &str| files.path().join(name).display().to_string();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ])
            .args(["-subj", "/CN=peer", "-keyout", &path("key"), "-out", &path("certificate")])
            .stderr(Stdio::null())
            .status()?;
        ensure!(made.success(), "openssl can't make a certificate");
        let tls = Command::new("nsenter")
            .arg(format!("--net={}", world.internet().path().display()))
            .args(["python3", "-c", TLS_RELAY, &TLS_PORT.to_string(), &PORTS[0].to_string()])
            .args([path("certificate"), path("key")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { commands, tls, _files: files })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.tls.kill();
        let _ = self.tls.wait();
    }
}

/// Sends commands until the connection ends. The answer is no part of the command, for a terminal echoes that.
pub(crate) fn command(mut stream: &TcpStream, commands: &Commands) {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
    let mut buffer = [0; 4096];
    // A shell comes some time after its connection; whoever reads before is no shell.
    for _ in 0..600 {
        if stream.write_all(commands.text().as_bytes()).is_err() {
            return;
        }
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    commands.count(&buffer[..length]);
                }
                // Quiet for a while: the next command.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
        }
    }
}

/// The same to whoever has sent a datagram.
fn command_by_datagrams(socket: &UdpSocket, commands: &Commands) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        commands.count(&buffer[..length]);
        let _ = socket.send_to(commands.text().as_bytes(), from);
    }
}
