//! Whose the calls of a job are (`programs/network.bpf.c`): hooks on its cgroup.

use crate::bytes::Reader;
use crate::guard::share_connections;
use crate::lifecycle::Lifecycle;
use crate::object::{SensorError, load, map};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, Object};
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The compiled programs.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/network.bpf.o"));

/// Who made a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owner {
    /// The process, by its number in the initial pid namespace.
    pub pid: u32,
    /// Its real user id.
    pub uid: u32,
    /// When, in nanoseconds since boot, suspended time included.
    pub time: u64,
}

/// The hooks of one job. Dropping them detaches them.
#[derive(Debug)]
pub struct NetworkHooks {
    _links: Vec<Link>,
    flows: MapHandle,
    clients: MapHandle,
    raw_sockets: MapHandle,
    _object: Object,
}

/// The hooks of one job in the kernel, not attached to anything yet. Loading them takes some milliseconds, attaching them
/// almost nothing.
#[derive(Debug)]
pub struct LoadedHooks(Object);

impl LoadedHooks {
    /// Loads the programs, with maps of their own.
    ///
    /// # Errors
    /// See [`SensorError`].
    pub fn load(lifecycle: &Lifecycle) -> Result<Self, SensorError> {
        load("network", OBJECT, |open| share_connections(open, lifecycle)).map(Self)
    }

    /// Attaches the hooks of the job with the token `job` to an open cgroup v2 directory; groups below it are included.
    ///
    /// # Errors
    /// See [`SensorError`].
    pub fn attach(self, job: u64, group: BorrowedFd<'_>) -> Result<NetworkHooks, SensorError> {
        let Self(object) = self;
        let own = map(&object, "own_job")?;
        own.update(&0_u32.to_ne_bytes(), &job.to_ne_bytes(), MapFlags::ANY)
            .map_err(|source| SensorError::Map { map: "own_job", source })?;
        let links = object
            .progs_mut()
            .map(|program| {
                program.attach_cgroup(group.as_raw_fd()).map_err(|source| SensorError::Attach {
                    program: OsStr::to_string_lossy(program.name()).into_owned(),
                    source,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(NetworkHooks {
            _links: links,
            flows: map(&object, "flows")?,
            clients: map(&object, "clients")?,
            raw_sockets: map(&object, "raw_sockets")?,
            _object: object,
        })
    }
}

impl NetworkHooks {
    /// Who made a call from this local port to this destination last.
    pub fn owner(&self, protocol: u8, source_port: u16, destination: SocketAddr) -> Option<Owner> {
        look_up(&self.flows, &flow_key(protocol, source_port, destination))
    }

    /// Who asked a name server (port 53) from this local port last.
    pub fn client(&self, protocol: u8, source_port: u16) -> Option<Owner> {
        look_up(&self.clients, &client_key(protocol, source_port))
    }

    /// Who made a raw socket of this protocol last; 255 for one that brings its own header.
    pub fn raw_socket(&self, protocol: u8) -> Option<Owner> {
        look_up(&self.raw_sockets, &u32::from(protocol).to_ne_bytes())
    }
}

fn flow_key(protocol: u8, source_port: u16, destination: SocketAddr) -> [u8; 24] {
    let address = match destination.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut key = [0; 24];
    key[..16].copy_from_slice(&address.octets());
    key[16..18].copy_from_slice(&destination.port().to_ne_bytes());
    key[18..20].copy_from_slice(&source_port.to_ne_bytes());
    key[20] = protocol;
    key
}

fn client_key(protocol: u8, source_port: u16) -> [u8; 4] {
    let [low, high] = source_port.to_ne_bytes();
    [low, high, protocol, 0]
}

fn look_up(map: &MapHandle, key: &[u8]) -> Option<Owner> {
    let value = map.lookup(key, MapFlags::ANY).ok().flatten()?;
    let mut reader = Reader(&value);
    Some(Owner { pid: reader.u32()?, uid: reader.u32()?, time: reader.u64()? })
}

#[cfg(test)]
mod tests {
    use super::{client_key, flow_key};

    #[test]
    fn addresses_are_written_as_the_hooks_write_them() {
        let key = flow_key(6, 40000, "192.0.2.7:443".parse().unwrap());
        assert_eq!(key[..10], [0; 10]);
        assert_eq!(key[10..16], [0xff, 0xff, 192, 0, 2, 7]);
        assert_eq!(key[16..18], 443_u16.to_ne_bytes());
        assert_eq!(key[18..20], 40000_u16.to_ne_bytes());
        assert_eq!(key[20..], [6, 0, 0, 0]);
        assert_eq!(key, flow_key(6, 40000, "[::ffff:192.0.2.7]:443".parse().unwrap()));
        assert_eq!(client_key(17, 53)[2..], [17, 0]);
    }
}
