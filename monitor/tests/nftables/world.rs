//! Two network namespaces tied by a veth pair, cgroups, and processes in them.

use portcullis_monitor::egress::target::CgroupId;
use portcullis_monitor::sys::namespace::in_network_namespace;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take to become true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) fn unique() -> String {
    format!("{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until `condition` gives a value.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        thread::yield_now();
    }
}

/// A network namespace of the test's own.
#[derive(Debug)]
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    pub(crate) fn new() -> Self {
        let namespace = thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let namespace = Self(namespace.join().unwrap());
        // Without duplicate address detection, whose second of silence nobody here needs.
        namespace.run(
            "ip link set lo up; \
             sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0",
        );
        namespace
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_network_namespace(self.fd(), work).unwrap()
    }

    pub(crate) fn try_run(&self, line: &str) -> Output {
        self.enter(|| Command::new("sh").args(["-ec", line]).output().unwrap())
    }

    /// Runs a shell line, which must succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{line}`: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The job's host and the world outside.
#[derive(Debug)]
pub(crate) struct World {
    pub host: Namespace,
    pub outside: Namespace,
}

pub(crate) const HOST4: &str = "10.77.0.1";
pub(crate) const HOST6: &str = "2001:db8:77::1";
/// An allowed server.
pub(crate) const OK4: &str = "198.51.100.10";
pub(crate) const OK6: &str = "2001:db8:a::10";
/// The attacker.
pub(crate) const EVIL4: &str = "203.0.113.66";
pub(crate) const EVIL6: &str = "2001:db8::66";

impl World {
    pub(crate) fn new() -> Self {
        let (host, outside) = (Namespace::new(), Namespace::new());
        // The peer is made inside the other namespace through a name that `ip` can find for as long as it runs.
        let holder = Holder::new(&outside);
        host.run(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}; ip link set eth0 up; \
             ip addr add {HOST4}/24 dev eth0; ip -6 addr add {HOST6}/64 dev eth0 nodad",
            holder.pid()
        ));
        outside.run(&format!(
            "ip link set eth0 up; ip addr add 10.77.0.2/24 dev eth0; \
             ip -6 addr add 2001:db8:77::2/64 dev eth0 nodad; \
             for a in {OK4} {EVIL4}; do ip addr add $a/32 dev lo; done; \
             for a in {OK6} {EVIL6}; do ip -6 addr add $a/128 dev lo nodad; done; \
             ip route add 172.30.0.0/16 via {HOST4}"
        ));
        host.run(
            "ip route add default via 10.77.0.2; ip -6 route add default via 2001:db8:77::2; \
             sysctl -qw net.ipv4.ip_forward=1",
        );
        drop(holder);
        Self { host, outside }
    }

    /// The Ethernet address of an interface of the host.
    pub(crate) fn mac(&self, interface: &str) -> [u8; 6] {
        read_mac(&self.host, interface)
    }

    pub(crate) fn index(&self, interface: &str) -> u32 {
        let text = self.host.run(&format!("ip -o link show {interface}"));
        text.split(':').next().unwrap().trim().parse().unwrap()
    }
}

pub(crate) fn read_mac(namespace: &Namespace, interface: &str) -> [u8; 6] {
    let text = namespace.run(&format!("ip -o link show {interface}"));
    let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let bytes: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A process that keeps a namespace reachable by pid.
#[derive(Debug)]
pub(crate) struct Holder(Child);

impl Holder {
    pub(crate) fn new(namespace: &Namespace) -> Self {
        let child = namespace.enter(|| Command::new("cat").stdin(Stdio::piped()).spawn().unwrap());
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where cgroup v2 is mounted.
fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2");
    PathBuf::from(line.split(' ').nth(4).unwrap())
}

/// A cgroup of the test's own, directly below the root.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn new() -> Self {
        let path = cgroup_root().join(format!("portcullis-test-{}", unique()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn id(&self) -> CgroupId {
        CgroupId { id: fs::metadata(&self.0).unwrap().ino(), level: 1 }
    }

    fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has been killed leaves its cgroup a moment later.
        let start = Instant::now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < PATIENCE {
            thread::yield_now();
        }
    }
}

/// A process in a namespace, a cgroup and a user of the test's choice, which does as it is told: see `agent`.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Agent {
    pub(crate) fn new(namespace: &Namespace, cgroup: Option<&Cgroup>, uid: u32) -> Self {
        let mut child = namespace.enter(|| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "agent::agent", "--nocapture"])
                .uid(uid)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        if let Some(cgroup) = cgroup {
            cgroup.add(child.id());
        }
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, orders, answers }
    }

    /// Gives an order and returns the answer.
    pub(crate) fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the agent died at {order}");
            if let Some((_, answer)) = line.split_once("AGENT ") {
                return answer.trim_end().to_owned();
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that arrives at an interface, or at an NFLOG group.
#[derive(Debug)]
pub(crate) struct Capture {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Capture {
    pub(crate) fn new(namespace: &Namespace, interface: &str) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path: &Path = file.path();
        let mut child = namespace.enter(|| {
            Command::new("tcpdump")
                .args(["-n", "-U", "--immediate-mode", "-Z", "root", "-i", interface, "-w"])
                .arg(path)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.any(|line| line.unwrap().contains("listening on"));
        assert!(ready, "tcpdump on {interface}");
        // Its last words must not meet a closed pipe.
        thread::spawn(move || lines.for_each(drop));
        Self { child, file }
    }

    pub(crate) fn count(&self, needle: &str) -> usize {
        let bytes = fs::read(self.file.path()).unwrap();
        bytes.windows(needle.len()).filter(|window| *window == needle.as_bytes()).count()
    }

    pub(crate) fn wait_for(&self, needle: &str) {
        eventually(needle, || (self.count(needle) > 0).then_some(()));
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// Serves TCP and UDP on a port of every address outside: what comes in goes back.
    pub(crate) fn serve(&self, port: u16) {
        self.outside.enter(|| {
            let listener = std::net::TcpListener::bind(("::", port)).unwrap();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut &stream, &mut &stream);
                    });
                }
            });
            // Answers come from the address that was asked only when the socket is bound to it.
            for address in [OK4, EVIL4, OK6, EVIL6] {
                let address = address.parse::<std::net::IpAddr>().unwrap();
                let socket = std::net::UdpSocket::bind((address, port)).unwrap();
                thread::spawn(move || {
                    let mut bytes = vec![0; 65536];
                    while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                        let _ = socket.send_to(&bytes[..length], from);
                    }
                });
            }
        });
    }
}

/// `address:port`, with brackets where they belong.
pub(crate) fn at(address: &str, port: u16) -> String {
    std::net::SocketAddr::new(address.parse().unwrap(), port).to_string()
}
