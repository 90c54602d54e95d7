//! Calls that reach into another process, as the kernel's audit subsystem tells them: `ptrace` that attaches, and
//! `process_vm_readv` and `process_vm_writev`. For kernels where no BPF can be loaded.
//!
//! Records are read by multicast, so that an audit daemon of the machine goes on as before, and rules carry a key of ours.
//! Only threads that were made while audit was on are told of: a daemon that is older is not.
//! Who has audit switched on pays for it at each system call (some 0.1 µs, with our rules more), and the kernel gives every
//! process that is made a context for it from then on; so a rule that gives it to none is left behind where it was off before.
//! A monitor that is killed leaves its rules: who uses them, and whether audit was off before, is kept in the kernel with them
//! ([`users`]), so that the next monitor takes them back.

mod users;

use super::netlink::{Connection, HEADER_LENGTH, Pace, Reader, messages};
use crate::caller::ProcFs;
use crate::sys::namespace::in_network_namespace;
use netlink_packet_core::{NLM_F_ACK, NetlinkDeserializable, NetlinkHeader};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::getpid;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use users::User;

/// `NETLINK_AUDIT`.
const NETLINK_AUDIT: isize = 9;

/// `AUDIT_NLGRP_READLOG`, as a bit.
const READ_LOG: u32 = 1;

/// Messages of linux/audit.h.
const AUDIT_GET: u16 = 1000;
const AUDIT_SET: u16 = 1001;
const AUDIT_ADD_RULE: u16 = 1011;
const AUDIT_DEL_RULE: u16 = 1012;
const AUDIT_LIST_RULES: u16 = 1013;
const AUDIT_SYSCALL: u16 = 1300;
const AUDIT_OBJ_PID: u16 = 1318;

/// `AUDIT_FILTER_USER`, `AUDIT_FILTER_TASK`, `AUDIT_FILTER_EXIT`; `AUDIT_NEVER`, `AUDIT_ALWAYS`.
const FILTER_USER: u32 = 0;
const FILTER_TASK: u32 = 1;
const FILTER_EXIT: u32 = 4;
const NEVER: u32 = 0;
const ALWAYS: u32 = 2;

/// `AUDIT_PID`, `AUDIT_ARCH`, `AUDIT_ARG0`, `AUDIT_FILTERKEY`; `AUDIT_EQUAL`.
const FIELD_PID: u32 = 0;
const FIELD_ARCH: u32 = 11;
const FIELD_FIRST_ARGUMENT: u32 = 200;
const FIELD_KEY: u32 = 210;
const EQUAL: u32 = 0x4000_0000;

/// `AUDIT_MAX_FIELDS`, `AUDIT_BITMASK_SIZE`.
const MAX_FIELDS: usize = 64;
const MASK_WORDS: usize = 64;

/// What our rules and their records are marked with.
const KEY: &str = "portcullis";

/// `PTRACE_ATTACH`, `PTRACE_SEIZE`.
const ATTACHING: [u32; 2] = [16, 0x4206];

/// Records for which there must be room: a burst of a debugger.
const RECEIVE_BUFFER: usize = 1 << 20;

/// How long the record of a call of our own may take.
const FIRST_RECORD_PATIENCE: Duration = Duration::from_secs(2);

/// The calls of one ABI.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Abi {
    /// `AUDIT_ARCH_*`.
    architecture: u32,
    ptrace: u32,
    vm_read: u32,
    vm_write: u32,
}

/// Both ABIs of the machine: a 64-bit kernel serves 32-bit programs, too.
#[cfg(target_arch = "x86_64")]
const ABIS: [Abi; 2] = [
    Abi { architecture: 0xC000_003E, ptrace: 101, vm_read: 310, vm_write: 311 },
    Abi { architecture: 0x4000_0003, ptrace: 26, vm_read: 347, vm_write: 348 },
];
#[cfg(target_arch = "aarch64")]
const ABIS: [Abi; 2] = [
    Abi { architecture: 0xC000_00B7, ptrace: 117, vm_read: 270, vm_write: 271 },
    Abi { architecture: 0x4000_0028, ptrace: 26, vm_read: 376, vm_write: 377 },
];

/// How one process reached into another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// It was attached by `ptrace`.
    Ptrace,
    /// `process_vm_readv`.
    VmRead,
    /// `process_vm_writev`.
    VmWrite,
}

/// A call that succeeded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reach {
    /// Who made it.
    pub(crate) by: u32,
    /// Into which process: of `ptrace` by the initial pid namespace, of the others the number that the caller named, which can
    /// be a thread's.
    pub(crate) into: u32,
    /// How.
    pub(crate) way: Way,
}

/// Our rules while somebody needs them; see [`AuditRules::shared`].
#[derive(Debug)]
pub(crate) struct AuditRules {
    control: Mutex<Connection>,
    /// This process.
    user: User,
}

/// The rules are the machine's: all jobs share them.
static SHARED: Mutex<Weak<AuditRules>> = Mutex::new(Weak::new());

/// Whether audit could be used, without changing anything.
pub(crate) fn probe() -> io::Result<()> {
    if status(&mut control()?)?.enabled == LOCKED {
        return Err(io::Error::other("audit is locked until the machine is restarted"));
    }
    Ok(())
}

/// `enabled` of `struct audit_status` when rules can't be changed any more.
const LOCKED: u32 = 2;

impl AuditRules {
    /// The rules, added when nobody has any.
    pub(crate) fn shared() -> io::Result<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rules) = shared.upgrade() {
            return Ok(rules);
        }
        let rules = Arc::new(Self::add()?);
        *shared = Arc::downgrade(&rules);
        Ok(rules)
    }

    fn add() -> io::Result<Self> {
        let mut control = control()?;
        // Before and after, for somebody may come or go in between.
        let before = users::listed(&mut control)?;
        let Status { enabled, .. } = status(&mut control)?;
        let after = users::listed(&mut control)?;
        if enabled == LOCKED {
            return Err(io::Error::other("audit is locked until the machine is restarted"));
        }
        let key = ProcFs.key(std::process::id()).ok_or(io::ErrorKind::NotFound)?;
        // Whoever uses our rules already, or was killed while it did, knows better.
        let was_off = enabled == 0 || before.iter().chain(&after).any(|user| user.was_off);
        let user = User { key, was_off };
        // First of all, so that nothing is without a name when this is killed now.
        change(&mut control, AUDIT_ADD_RULE, &user.rule())?;
        let mut rules = Self { control: Mutex::new(control), user };
        put_in_force(rules.control.get_mut().unwrap_or_else(PoisonError::into_inner))?;
        Ok(rules)
    }
}

impl Drop for AuditRules {
    fn drop(&mut self) {
        let control = self.control.get_mut().unwrap_or_else(PoisonError::into_inner);
        warn_of_leftovers(users::leave(control, self.user));
    }
}

/// Adds the rules, and switches audit on where it is off.
fn put_in_force(control: &mut Connection) -> io::Result<()> {
    // Of a monitor that rested.
    let _ = change(control, AUDIT_DEL_RULE, &resting());
    for rule in rules() {
        change(control, AUDIT_ADD_RULE, &rule)?;
    }
    if status(control)?.enabled == 0 { enable(control, true) } else { Ok(()) }
}

/// Takes back what monitors left behind that were killed.
pub(crate) fn take_back_leftovers() {
    // A kernel without audit, or a monitor that may not use it, has none.
    if let Ok(mut control) = control() {
        warn_of_leftovers(users::clear(&mut control));
    }
}

fn warn_of_leftovers(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "rules of the audit subsystem could not be taken back; `auditctl -D -k portcullis` does, and `auditctl -e 0` where nobody else uses it");
    }
}

/// Reads records until it is dropped.
#[derive(Debug)]
pub(crate) struct AuditReader {
    _reader: Reader,
    _rules: Arc<AuditRules>,
}

impl AuditReader {
    /// Hands each call to `take`, or `None` when there were more than the kernel keeps.
    pub(crate) fn start(mut take: impl FnMut(Option<Reach>) + Send + 'static) -> io::Result<Self> {
        let records = on_machine(|| Connection::open_for_groups(NETLINK_AUDIT, READ_LOG))??;
        records.set_receive_buffer(RECEIVE_BUFFER)?;
        let rules = AuditRules::shared()?;
        let mut records_of_calls = Records::default();
        let own = std::process::id();
        let (seen, sees) = sync_channel(1);
        let reader = Reader::start("audit", records, Pace::AtOnce, move |datagram| {
            let Some(datagram) = datagram else { return take(None) };
            for message in messages(datagram) {
                let kind = message.get(4..6).and_then(<[u8]>::first_chunk::<2>);
                let text = message.get(HEADER_LENGTH..).unwrap_or_default();
                if let Some(reach) = kind.and_then(|kind| {
                    records_of_calls.add(u16::from_ne_bytes(*kind), &String::from_utf8_lossy(text))
                }) {
                    if reach == (Reach { by: own, into: own, way: Way::VmRead }) {
                        // Full means that it was seen before.
                        let _ = seen.try_send(());
                    } else {
                        take(Some(reach));
                    }
                }
            }
        })?;
        // Whether it works is seen by trying: a monitor in another network namespace is told nothing.
        // A thread has to do with audit when it was made while that was on.
        let tried =
            std::thread::Builder::new().name("audit-try".to_owned()).spawn(read_own_memory)?;
        tried.join().map_err(|_| io::Error::other("trying it panicked"))??;
        sees.recv_timeout(FIRST_RECORD_PATIENCE).map_err(|_| {
            io::Error::other("the kernel does not tell what audit records; is the monitor in the host's network namespace?")
        })?;
        Ok(Self { _reader: reader, _rules: rules })
    }
}

/// Records are told in the machine's first network namespace only. Where nobody may know which that is, it has to be this one:
/// [`AuditReader::start`] finds out.
fn on_machine<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    match File::open("/proc/1/ns/net") {
        Ok(namespace) => in_network_namespace(namespace.as_fd(), work),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(work()),
        Err(error) => Err(error),
    }
}

fn control() -> io::Result<Connection> {
    on_machine(|| Connection::open(NETLINK_AUDIT, None))?
}

/// A call that our rules are for.
fn read_own_memory() -> io::Result<()> {
    let from = [1_u8; 8];
    let mut to = [0_u8; 8];
    let remote = RemoteIoVec { base: from.as_ptr().addr(), len: from.len() };
    process_vm_readv(getpid(), &mut [IoSliceMut::new(&mut to)], &[remote])?;
    Ok(())
}

/// The bytes of an answer.
struct Bytes(Vec<u8>);

impl NetlinkDeserializable for Bytes {
    type Error = Infallible;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self(payload.to_vec()))
    }
}

/// What is read of `struct audit_status`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Status {
    /// 0 when it is off.
    enabled: u32,
    /// The audit daemon; 0 for none.
    daemon: u32,
}

fn status(control: &mut Connection) -> io::Result<Status> {
    let mut found = None;
    control.request::<Bytes>(AUDIT_GET, 0, &[], |Bytes(status)| {
        let word = |at: usize| status.get(at * 4..).and_then(<[u8]>::first_chunk);
        found = word(1).zip(word(3)).map(|(enabled, daemon)| Status {
            enabled: u32::from_ne_bytes(*enabled),
            daemon: u32::from_ne_bytes(*daemon),
        });
    })?;
    found.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn enable(control: &mut Connection, enabled: bool) -> io::Result<()> {
    // mask (AUDIT_STATUS_ENABLED), enabled, and eight fields that the mask leaves alone
    let mut status = vec![0; 40];
    status[..4].copy_from_slice(&1_u32.to_ne_bytes());
    status[4..8].copy_from_slice(&u32::from(enabled).to_ne_bytes());
    control.request::<Bytes>(AUDIT_SET, NLM_F_ACK, &status, |_| {})
}

/// Adds or deletes a rule. One that is there, or not, is as it should be.
fn change(control: &mut Connection, how: u16, rule: &[u8]) -> io::Result<()> {
    match control.request::<Bytes>(how, NLM_F_ACK, rule, |_| {}) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => Ok(()),
        changed => changed,
    }
}

/// The rules: for each ABI both ways to attach, and both calls that copy memory.
fn rules() -> Vec<Vec<u8>> {
    let of_abi = |abi: Abi| {
        let attach = ATTACHING.map(|request| {
            rule(
                FILTER_EXIT,
                ALWAYS,
                &[abi.ptrace],
                &[(FIELD_ARCH, abi.architecture), (FIELD_FIRST_ARGUMENT, request)],
                KEY,
            )
        });
        let copy = rule(
            FILTER_EXIT,
            ALWAYS,
            &[abi.vm_read, abi.vm_write],
            &[(FIELD_ARCH, abi.architecture)],
            KEY,
        );
        attach.into_iter().chain([copy])
    };
    ABIS.into_iter().flat_map(of_abi).collect()
}

/// The rule by which no process that is made has anything to do with audit.
fn resting() -> Vec<u8> {
    rule(FILTER_TASK, NEVER, &[], &[], KEY)
}

/// `struct audit_rule_data`.
fn rule(list: u32, action: u32, calls: &[u32], fields: &[(u32, u32)], key: &str) -> Vec<u8> {
    let mut mask = [0_u32; MASK_WORDS];
    for call in calls {
        if let Some(word) = mask.get_mut((call / 32) as usize) {
            *word |= 1 << (call % 32);
        }
    }
    let length = u32::try_from(key.len()).unwrap_or_default();
    let all: Vec<(u32, u32)> = fields.iter().copied().chain([(FIELD_KEY, length)]).collect();
    let mut words = vec![list, action, u32::try_from(all.len()).unwrap_or_default()];
    words.extend(mask);
    let column = |of: &dyn Fn(usize) -> u32| (0..MAX_FIELDS).map(of).collect::<Vec<u32>>();
    words.extend(column(&|at| all.get(at).map_or(0, |(field, _)| *field)));
    words.extend(column(&|at| all.get(at).map_or(0, |(_, value)| *value)));
    words.extend(column(&|at| if at < all.len() { EQUAL } else { 0 }));
    words.push(length);
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.extend(key.as_bytes());
    bytes
}

/// The records of calls: of `ptrace` the second record has the target.
#[derive(Debug, Default)]
struct Records {
    /// The serial number of a call by `ptrace` whose target is still to come, and who made it.
    attaching: Option<(String, u32)>,
}

impl Records {
    /// Takes in a record; the call when it is complete. Calls that failed are none.
    fn add(&mut self, kind: u16, text: &str) -> Option<Reach> {
        let serial = text.strip_prefix("audit(")?.split_once("):")?.0;
        match kind {
            AUDIT_SYSCALL => {
                if field(text, "success")? != "yes"
                    || field(text, "key")?.trim_matches(['"', '\0']) != KEY
                {
                    return None;
                }
                let architecture = u32::from_str_radix(field(text, "arch")?, 16).ok()?;
                let call: u32 = field(text, "syscall")?.parse().ok()?;
                let by = field(text, "pid")?.parse().ok()?;
                let abi = ABIS.into_iter().find(|abi| abi.architecture == architecture)?;
                if call == abi.ptrace {
                    self.attaching = Some((serial.to_owned(), by));
                    return None;
                }
                let way = if call == abi.vm_read { Way::VmRead } else { Way::VmWrite };
                let into = u64::from_str_radix(field(text, "a0")?, 16).ok()?;
                Some(Reach { by, into: u32::try_from(into).ok()?, way })
            }
            AUDIT_OBJ_PID => {
                let (_, by) = self.attaching.take_if(|(attaching, _)| attaching == serial)?;
                Some(Reach { by, into: field(text, "opid")?.parse().ok()?, way: Way::Ptrace })
            }
            _ => None,
        }
    }
}

/// A field of a record. Names that a process chooses come in quotes or as hexadecimal digits, so that none can look like one.
fn field<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.split([' ', '\n']).find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
pub(crate) mod tests;
