use super::users::listed;
use super::*;
use crate::caller::testing::eventually;

/// A call as the kernel tells it; the file system's names are those of a real record.
fn record(call: u32, arguments: &str, success: &str, key: &str) -> String {
    let architecture = ABIS[0].architecture;
    format!(
        "audit(1763801234.123:77): arch={architecture:x} syscall={call} success={success} exit=0 {arguments} items=0 ppid=1 pid=812 auid=4294967295 uid=0 gid=0 tty=(none) ses=4294967295 comm=\"gdb pid=1\" exe=\"/usr/bin/gdb\" subj=unconfined key={key}"
    )
}

#[test]
fn a_call_that_copies_memory_is_one_record() {
    let mut records = Records::default();
    let text = record(ABIS[0].vm_read, "a0=1f4 a1=7ffe a2=1 a3=7ffd", "yes", "\"portcullis\"");
    let reach = Reach { by: 812, into: 500, way: Way::VmRead };
    assert_eq!(records.add(AUDIT_SYSCALL, &text), Some(reach));
    let text = record(ABIS[0].vm_write, "a0=1f4 a1=0", "yes", "\"portcullis\"");
    assert_eq!(records.add(AUDIT_SYSCALL, &text).map(|reach| reach.way), Some(Way::VmWrite));
    for (success, key) in [("no", "\"portcullis\""), ("yes", "\"other\""), ("yes", "(null)")] {
        let text = record(ABIS[0].vm_read, "a0=1f4", success, key);
        assert_eq!(records.add(AUDIT_SYSCALL, &text), None, "{text}");
    }
}

#[test]
fn ptrace_is_told_with_its_target_by_a_second_record() {
    let mut records = Records::default();
    let text = record(ABIS[0].ptrace, "a0=4206 a1=2 a2=0 a3=0", "yes", "\"portcullis\"");
    assert_eq!(records.add(AUDIT_SYSCALL, &text), None);
    let target = |serial: u32| {
        format!("audit(1763801234.123:{serial}): opid=500 oauid=-1 ouid=0 oses=-1 ocomm=\"x\"")
    };
    assert_eq!(records.add(AUDIT_OBJ_PID, &target(76)), None);
    let reach = Reach { by: 812, into: 500, way: Way::Ptrace };
    assert_eq!(records.add(AUDIT_OBJ_PID, &target(77)), Some(reach));
    assert_eq!(records.add(AUDIT_OBJ_PID, &target(77)), None);
}

#[test]
fn rules_have_the_kernel_s_layout() {
    for rule in rules().into_iter().chain([resting()]) {
        // struct audit_rule_data: 3 + 64 + 3 × 64 + 1 words, and the key.
        assert_eq!(rule.len(), (3 + 64 + 3 * 64 + 1) * 4 + KEY.len());
        assert!(rule.ends_with(KEY.as_bytes()));
    }
    let copies = &rules()[2];
    let word = |at: usize| u32::from_ne_bytes(*copies[at * 4..].first_chunk().unwrap());
    assert_eq!((word(0), word(1), word(2)), (4, 2, 2));
    let bit = |call: u32| word(3 + (call / 32) as usize) >> (call % 32) & 1;
    assert_eq!((bit(ABIS[0].vm_read), bit(ABIS[0].vm_write), bit(ABIS[0].ptrace)), (1, 1, 0));
}

/// The rules are the machine's, so this is one test: a tracer and a copier of memory are told, with whom they reached for, and
/// afterwards audit is off again where it was.
#[test]
fn calls_are_told_and_rules_taken_back() {
    if !is_first_network_namespace() {
        return;
    }
    let mut control = control().unwrap();
    let was_off = was_off_before_tests(&mut control);
    let (sender, receiver) = std::sync::mpsc::channel();
    let reader = AuditReader::start(move |reach| {
        let _ = sender.send(reach);
    })
    .unwrap();
    let mut target = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let script = format!(
        "import ctypes\nc=ctypes.CDLL(None)\nb=ctypes.create_string_buffer(8)\nclass V(ctypes.Structure): _fields_=[('b',ctypes.c_void_p),('n',ctypes.c_size_t)]\na=int(next(l for l in open('/proc/{0}/maps') if 'stack' in l).split('-')[0],16)\nassert c.process_vm_readv({0},ctypes.byref(V(ctypes.addressof(b),8)),1,ctypes.byref(V(a,8)),1,0)==8\nassert c.ptrace(0x4206,{0},None,None)==0",
        target.id()
    );
    let output = std::process::Command::new("python3").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for way in [Way::VmRead, Way::Ptrace] {
        let told = std::iter::from_fn(|| receiver.recv_timeout(Duration::from_secs(10)).ok());
        let found = told.flatten().find(|reach| reach.into == target.id() && reach.way == way);
        assert!(found.is_some(), "{way:?}");
    }
    target.kill().unwrap();
    target.wait().unwrap();
    drop(reader);
    assert!(!uses_rules());
    if was_off {
        wait_until_off(&mut control);
    }
}

/// Whether this process uses the rules.
pub(crate) fn uses_rules() -> bool {
    let own = std::process::id();
    listed(&mut control().unwrap()).unwrap().iter().any(|user| user.key.pid == own)
}

/// Whether audit has to be off when no test uses it any more.
pub(super) fn was_off_before_tests(control: &mut Connection) -> bool {
    let is_off = status(control).unwrap().enabled == 0;
    is_off || listed(control).unwrap().iter().any(|user| user.was_off)
}

/// Waits until audit is off, as far as no other test uses it: the rules are the machine's.
pub(super) fn wait_until_off(control: &mut Connection) {
    eventually("audit is off", || {
        let is_off = status(control).unwrap().enabled == 0;
        (is_off || listed(control).unwrap().iter().any(|user| user.is_alive())).then_some(())
    });
}

/// Whether records can be told here: in the network namespace of process 1; where nobody may know which that is, by its
/// number, for those that the kernel makes while it starts have the lowest ones.
pub(crate) fn is_first_network_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |process: &str| {
        std::fs::metadata(format!("/proc/{process}/ns/net")).map(|namespace| namespace.ino())
    };
    let own = number("self").unwrap();
    number("1").map_or(own <= 0xF000_0000 + 64, |first| own == first)
}
