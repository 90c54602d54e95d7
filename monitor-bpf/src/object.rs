//! Loading of one compiled object.

use libbpf_rs::{Link, MapHandle, Object, ObjectBuilder, OpenObject, PrintLevel, set_print};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::sync::{Mutex, Once, PoisonError};

/// Why a sensor can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// The object was not taken.
    #[error("the kernel does not take the BPF object {object}{}", said(.log))]
    Load {
        /// The object's name.
        object: &'static str,
        /// The last that libbpf said.
        log: String,
        /// The error.
        source: libbpf_rs::Error,
    },
    /// A program could not be attached.
    #[error("the BPF program {program} can't be attached")]
    Attach {
        /// The program's name.
        program: String,
        /// The error.
        source: libbpf_rs::Error,
    },
    /// A map could not be used.
    #[error("the BPF map {map} can't be used")]
    Map {
        /// The map's name.
        map: &'static str,
        /// The error.
        source: libbpf_rs::Error,
    },
    /// The object lacks a map or program that this code names: they were compiled apart.
    #[error("the BPF object has no {0}; it belongs to another version of this program")]
    Foreign(&'static str),
    /// The events can't be read.
    #[error("the events of BPF programs can't be read")]
    Events(#[source] std::io::Error),
    /// The process numbers of the programs are not ours.
    #[error(
        "the monitor runs in a pid namespace of its own, where processes have other numbers than BPF programs see; run it in the host's"
    )]
    PidNamespace,
    /// The programs run and don't see what they must.
    #[error("the memory guard does not see {0} being opened")]
    Blind(&'static str),
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(" ({log})") }
}

/// How many lines of libbpf are kept for an error.
const KEPT_LINES: usize = 6;

/// How long a kept line may be.
const KEPT_LENGTH: usize = 200;

/// The last warnings of libbpf: it tells the reason of a failure nowhere else.
static WARNINGS: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Objects are loaded one after the other, so that warnings belong to the one that failed.
static LOADING: Mutex<()> = Mutex::new(());

#[expect(clippy::needless_pass_by_value, reason = "the type of libbpf-rs' callback")]
fn keep_warning(_level: PrintLevel, text: String) {
    let mut warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        warnings.push_back(line.trim().chars().take(KEPT_LENGTH).collect());
        if warnings.len() > KEPT_LINES {
            warnings.pop_front();
        }
    }
}

/// Loads an object after `prepare` has changed what it wants to.
pub(crate) fn load(
    name: &'static str,
    bytes: &[u8],
    prepare: impl FnOnce(&mut OpenObject) -> Result<(), SensorError>,
) -> Result<Object, SensorError> {
    static PRINT: Once = Once::new();
    PRINT.call_once(|| {
        set_print(Some((PrintLevel::Warn, keep_warning)));
    });
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    WARNINGS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let failed = |source| {
        let warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
        let log = warnings.iter().cloned().collect::<Vec<_>>().join("; ");
        SensorError::Load { object: name, log, source }
    };
    let mut open = ObjectBuilder::default().open_memory(bytes).map_err(failed)?;
    prepare(&mut open)?;
    open.load().map_err(failed)
}

/// Gives a map of an object that is not loaded yet another size.
pub(crate) fn resize(
    open: &mut OpenObject,
    name: &'static str,
    entries: u32,
) -> Result<(), SensorError> {
    let mut map =
        open.maps_mut().find(|map| map.name() == name).ok_or(SensorError::Foreign(name))?;
    map.set_max_entries(entries).map_err(|source| SensorError::Map { map: name, source })
}

/// A handle to one of the object's maps.
pub(crate) fn map(object: &Object, name: &'static str) -> Result<MapHandle, SensorError> {
    let found = object.maps().find(|map| map_name(map) == OsStr::new(name));
    let map = found.ok_or(SensorError::Foreign(name))?;
    MapHandle::try_from(&map).map_err(|source| SensorError::Map { map: name, source })
}

fn map_name<'map>(map: &'map libbpf_rs::Map<'_>) -> &'map OsStr {
    use libbpf_rs::MapCore;
    map.name()
}

/// Attaches one program, or says that this kernel has no place for it (the program was not loaded).
pub(crate) fn attach(object: &Object, name: &'static str) -> Result<Link, SensorError> {
    let program = object
        .progs_mut()
        .find(|program| program.name() == OsStr::new(name))
        .ok_or(SensorError::Foreign(name))?;
    program.attach().map_err(|source| SensorError::Attach { program: name.to_owned(), source })
}
