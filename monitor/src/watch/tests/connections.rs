//! Whose connections a look at a job's sockets counts.

use super::{eventually, inode, scratch_network_namespace, within};
use crate::caller::{ProcFs, ProcessKey};
use crate::watch::flow::{TCP, UDP};
use crate::watch::shells::ShellSensor;
use crate::watch::sockets::SocketDiagnostics;
use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

/// A program that holds a connected socket until its input ends.
struct Connected(Child);

impl Connected {
    fn start(namespace: &File) -> Self {
        let script = "exec 3<>/dev/udp/192.0.2.7/9; echo ready; read line";
        let start = || {
            let mut command = Command::new("bash");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().unwrap()
        };
        let mut child = within(namespace, start);
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Self(child)
    }

    fn key(&self) -> ProcessKey {
        ProcFs.key(self.0.id()).unwrap()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn both_families_are_told_and_listening_sockets_are_not() {
    let namespace = scratch_network_namespace();
    let diagnostics = SocketDiagnostics::open(namespace.as_fd()).unwrap();
    within(&namespace, || {
        let mut wanted = Vec::new();
        let (mut sockets, mut servers, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            wanted.extend([(TCP, inode(&client)), (TCP, inode(&server))]);
            sockets.extend([client, server]);
            servers.push(listener);
            let datagrams = UdpSocket::bind(address).unwrap();
            datagrams.connect(datagrams.local_addr().unwrap()).unwrap();
            wanted.push((UDP, inode(&datagrams)));
            open.push(datagrams);
        }
        let told = diagnostics.connected().unwrap();
        let mut told: Vec<_> = told.iter().map(|socket| (socket.protocol, socket.inode)).collect();
        told.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(told, wanted);
    });
}

#[test]
fn sockets_of_the_runner_and_the_monitor_are_none_of_the_jobs() {
    let namespace = scratch_network_namespace();
    let diagnostics = SocketDiagnostics::open(namespace.as_fd()).unwrap();
    let mine = within(&namespace, || {
        let arguments = ["address", "add", "192.0.2.1/24", "dev", "lo"];
        assert!(Command::new("ip").args(arguments).status().unwrap().success());
        // The monitor is this process.
        let mine = UdpSocket::bind("192.0.2.1:0").unwrap();
        mine.connect("192.0.2.7:9").unwrap();
        mine
    });
    let (worker, listener) = (Connected::start(&namespace), Connected::start(&namespace));
    let mut sensor = ShellSensor::new(worker.key(), Some(listener.key()), None);
    assert!(!sensor.connections(&diagnostics).unwrap().any_remote);

    let job = Connected::start(&namespace);
    assert!(sensor.connections(&diagnostics).unwrap().any_remote);
    drop(job);
    eventually("the job's socket is closed", || {
        (!sensor.connections(&diagnostics).unwrap().any_remote).then_some(())
    });
    drop(mine);

    // Without knowing the Listener its socket counts.
    let mut sensor = ShellSensor::new(worker.key(), None, None);
    assert!(sensor.connections(&diagnostics).unwrap().any_remote);
}
