//! Where a process has an instruction that makes a system call: in the kernel's own page that every process has (vDSO),
//! else in one of its libraries.

use super::registers::find_instruction;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much of one mapping is searched, in bytes: the C library's code is below it.
const SEARCHED: usize = 4 << 20;

/// The address of such an instruction in the process whose memory is open as `memory`.
pub(super) fn system_call_instruction(pid: u32, memory: &File) -> io::Result<u64> {
    let process = Process::new(pid.cast_signed()).map_err(io::Error::other)?;
    let maps = process.maps().map_err(io::Error::other)?;
    let is_code = |map: &&MemoryMap| {
        map.perms.contains(MMPermissions::READ | MMPermissions::EXECUTE)
            && map.pathname != MMapPath::Vsyscall
    };
    let mut code: Vec<&MemoryMap> = maps.iter().filter(is_code).collect();
    code.sort_by_key(|map| map.pathname != MMapPath::Vdso);
    code.into_iter()
        .find_map(|map| find_in(map, memory))
        .ok_or_else(|| io::Error::other("it has no instruction that makes a system call"))
}

fn find_in(map: &MemoryMap, memory: &File) -> Option<u64> {
    let (begin, end) = map.address;
    let length = usize::try_from(end.checked_sub(begin)?).ok()?.min(SEARCHED);
    let mut code = vec![0; length];
    memory.read_exact_at(&mut code, begin).ok()?;
    Some(begin + find_instruction(&code)? as u64)
}
