//! Programs that are executed in containers (`programs/containers.h`).
//!
//! What is held (`is_held` of [`crate::event::Contained`]) is stopped by SIGSTOP; whoever is told lets it go on with SIGCONT.

use crate::event::ContainerKey;
use crate::object::{SensorError, map};
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object};

/// The host as jobs see it. Namespaces are told by their inodes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ContainerHost {
    /// The inode of its root directory.
    pub root: u64,
    /// The device of its root directory: major and minor number.
    pub root_device: (u32, u32),
    /// Its pid namespace.
    pub pid: u32,
    /// Its network namespace.
    pub network: u32,
    /// Its IPC namespace.
    pub ipc: u32,
    /// Its UTS namespace.
    pub uts: u32,
    /// Its cgroup namespace.
    pub cgroup: u32,
}

/// `MINORBITS` of the kernel: how many bits of a device are its minor number.
const MINOR_BITS: u32 = 20;

/// What is told of containers.
#[derive(Debug)]
pub struct ContainerWatch {
    host: MapHandle,
    mounts: MapHandle,
    told: MapHandle,
}

impl ContainerWatch {
    pub(crate) fn new(object: &Object) -> Result<Self, SensorError> {
        Ok(Self {
            host: map(object, "container_host")?,
            mounts: map(object, "host_mounts")?,
            told: map(object, "told_containers")?,
        })
    }

    /// From now on programs are told of that are executed with another root directory than that of `host`, in other mount
    /// namespaces than `mounts`. Those that jobs' own processes have made are held, and with `is_holding_all` those of
    /// engines in the network namespace of `host`.
    ///
    /// # Errors
    /// [`SensorError::Map`].
    pub fn begin(
        &self,
        host: &ContainerHost,
        mounts: &[u32],
        is_holding_all: bool,
    ) -> Result<(), SensorError> {
        let failed = |name| move |source| SensorError::Map { map: name, source };
        for number in mounts {
            self.mounts
                .update(&number.to_ne_bytes(), &1_u32.to_ne_bytes(), MapFlags::ANY)
                .map_err(failed("host_mounts"))?;
        }
        let is_gone = |key: &Vec<u8>| !mounts.iter().any(|number| number.to_ne_bytes() == **key);
        for gone in self.mounts.keys().filter(is_gone).collect::<Vec<_>>() {
            // What is not there need not be removed.
            let _ = self.mounts.delete(&gone);
        }
        let (major, minor) = host.root_device;
        let mut settings = host.root.to_ne_bytes().to_vec();
        let words = [
            major << MINOR_BITS | minor,
            host.pid,
            host.network,
            host.ipc,
            host.uts,
            host.cgroup,
            1,
            u32::from(is_holding_all),
        ];
        settings.extend(words.map(u32::to_ne_bytes).concat());
        self.set(&settings).map_err(failed("container_host"))
    }

    /// Nothing is told, and nothing held any more.
    pub fn end(&self) {
        let nothing = vec![0; usize::try_from(self.host.value_size()).unwrap_or_default()];
        // The map is there as long as this.
        let _ = self.set(&nothing);
    }

    /// The next program that is executed in this way is told of again.
    pub fn forget(&self, container: &ContainerKey) {
        // What is not there need not be removed.
        let _ = self.told.delete(container.bytes());
    }

    fn set(&self, settings: &[u8]) -> libbpf_rs::Result<()> {
        self.host.update(&0_u32.to_ne_bytes(), settings, MapFlags::ANY)
    }
}
