//! The registers of a system call, for each architecture: what is set before it, and where its result is.

use crate::sys::ptrace::Registers;

/// A `prctl(2)` to be made in another process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Prctl {
    pub(super) option: libc::c_int,
    pub(super) value: u64,
}

/// Nobody but root and the process itself can read its memory, attach to it, or make it dump core.
pub(super) const NOT_DUMPABLE: Prctl = Prctl { option: libc::PR_SET_DUMPABLE, value: 0 };

/// The thread and all that it starts gain nothing by setuid programs, setgid programs and file capabilities.
pub(super) const NO_NEW_PRIVILEGES: Prctl = Prctl { option: libc::PR_SET_NO_NEW_PRIVS, value: 1 };

/// The bytes of the instruction that makes a system call, and how it is aligned.
#[cfg(target_arch = "x86_64")]
pub(super) const INSTRUCTION: &[u8] = &[0x0f, 0x05]; // syscall
#[cfg(target_arch = "x86_64")]
pub(super) const ALIGNMENT: usize = 1;
#[cfg(target_arch = "aarch64")]
pub(super) const INSTRUCTION: &[u8] = &0xd400_0001_u32.to_le_bytes(); // svc #0
#[cfg(target_arch = "aarch64")]
pub(super) const ALIGNMENT: usize = 4;

/// `registers` with the program about to execute the instruction at `instruction`, which makes the call.
#[cfg(target_arch = "x86_64")]
pub(super) fn with_call(registers: &Registers, instruction: u64, call: Prctl) -> Registers {
    Registers {
        rip: instruction,
        rax: libc::SYS_prctl.unsigned_abs(),
        // "No system call": else the kernel would take these registers for those of the call that was interrupted, and
        // set the program back to restart it.
        orig_rax: u64::MAX,
        rdi: u64::from(call.option.unsigned_abs()),
        rsi: call.value,
        // prctl refuses PR_SET_NO_NEW_PRIVS unless the rest is zero.
        rdx: 0,
        r10: 0,
        r8: 0,
        ..*registers
    }
}

/// Where the thread makes a system call next, if that decides what signals do to the call.
///
/// The registers say which call was interrupted, and the kernel looks at them when it delivers a signal.
#[cfg(target_arch = "x86_64")]
pub(super) fn next_call(_: &Registers) -> Option<u64> {
    None
}

/// What the call returned: 0, or a negative error number.
#[cfg(target_arch = "x86_64")]
pub(super) fn result(registers: &Registers) -> i64 {
    registers.rax.cast_signed()
}

/// Whether the thread was interrupted in its own code and not in a system call.
#[cfg(target_arch = "x86_64")]
pub(super) fn is_outside_of_calls(registers: &Registers) -> bool {
    registers.orig_rax.cast_signed() < 0
}

/// `PSR_BTYPE_MASK` (asm/ptrace.h): whether and how the program has just branched.
#[cfg(target_arch = "aarch64")]
const BRANCH_TYPE: u64 = 0b11 << 10;

/// `registers` with the program about to execute the instruction at `instruction`, which makes the call.
///
/// When a call was interrupted, the kernel shows the registers set back to its instruction already (arch/arm64/kernel/signal.c,
/// `do_signal`), so that setting these registers again restarts it. A call that would have been continued with the time that
/// was left (`nanosleep`, `poll`) starts with its whole time again.
#[cfg(target_arch = "aarch64")]
pub(super) fn with_call(registers: &Registers, instruction: u64, call: Prctl) -> Registers {
    let mut changed = *registers;
    changed.pc = instruction;
    // The program may have been on its way to the target of an indirect branch, where any other instruction than the one
    // that marks targets is a fault.
    changed.pstate &= !BRANCH_TYPE;
    changed.regs[8] = libc::SYS_prctl.unsigned_abs();
    changed.regs[0] = u64::from(call.option.unsigned_abs());
    changed.regs[1] = call.value;
    changed.regs[2..5].fill(0);
    changed
}

/// Where the thread makes a system call next, if that decides what signals do to the call.
///
/// Registers that were set back no longer say that a call was interrupted: a signal that is delivered with them runs its
/// handler before the call, and what should have ended the call comes too early for it. Within the call it does not.
#[cfg(target_arch = "aarch64")]
pub(super) fn next_call(registers: &Registers) -> Option<u64> {
    Some(registers.pc)
}

/// What the call returned: 0, or a negative error number.
#[cfg(target_arch = "aarch64")]
pub(super) fn result(registers: &Registers) -> i64 {
    registers.regs[0].cast_signed()
}

/// Whether the thread was interrupted in its own code and not in a system call. The registers do not tell.
#[cfg(target_arch = "aarch64")]
pub(super) fn is_outside_of_calls(_: &Registers) -> bool {
    true
}

/// The first instruction in `code` that makes a system call, as an offset.
pub(super) fn find_instruction(code: &[u8]) -> Option<usize> {
    let mut places = code.windows(INSTRUCTION.len()).enumerate().step_by(ALIGNMENT);
    places.find(|(_, bytes)| *bytes == INSTRUCTION).map(|(offset, _)| offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_found_where_they_can_be_executed() {
        let mut code = vec![0x90; 64];
        assert_eq!(find_instruction(&code), None);
        code[40..40 + INSTRUCTION.len()].copy_from_slice(INSTRUCTION);
        assert_eq!(find_instruction(&code), Some(40));
        if ALIGNMENT > 1 {
            code[33..33 + INSTRUCTION.len()].copy_from_slice(INSTRUCTION);
            assert_ne!(find_instruction(&code), Some(33));
        }
    }
}
