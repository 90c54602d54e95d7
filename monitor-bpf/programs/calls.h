/* Which system calls matter, by their number in each ABI that the kernel serves: a 64-bit kernel runs 32-bit programs too,
 * and their calls come with other numbers. */
#ifndef PORTCULLIS_CALLS_H
#define PORTCULLIS_CALLS_H

#include "kernel.h"

/* Where a call is looked at, as a bit of what it is. */
#define AT_ENTRY 0x80
#define AT_EXIT 0x40

enum call {
    CALL_OTHER = 0,
    CALL_SENDFILE,          /* reads from the descriptor in its second argument */
    CALL_OPEN = AT_EXIT,    /* gives a descriptor of a file */
    CALL_PIDFD_OPEN,        /* gives a descriptor of a process */
    CALL_READ,              /* reads from the descriptor in its first argument */
    CALL_RECEIVE,           /* like CALL_READ, of sockets only */
    CALL_CONNECT,           /* socket in the first argument */
    CALL_DUPLICATE,         /* gives a descriptor of an open file, and returns it */
    CALL_PTRACE = AT_ENTRY, /* process in the second argument */
    CALL_VM_READ,           /* process in the first argument */
    CALL_VM_WRITE,          /* process in the first argument */
    CALL_GETFD,             /* pidfd in the first argument */
    CALL_PERF,              /* process in the second argument */
    CALL_WRITE,             /* writes to the descriptor in its first argument */
};

/* io_uring_enter has the same number in every ABI. */
#define IO_URING_ENTER 426

/* Which call a number is, in the 64-bit ABI and in the 32-bit one (`enum call`). A table and not a switch: every system call of
 * the machine comes this way, mostly with caches that others have filled, and one line of it is read faster than a program's
 * branches. */
struct abi_calls {
    u8 native, compat;
};
#define NATIVE(number, call) [number].native = call
#define COMPAT(number, call) [number].compat = call
/* One more than the largest number, which is one of x32. */
#define CALL_NUMBERS 547

#define PTRACE_TRACEME 0

/* Where a call that reads or writes has its bytes. */
enum bytes_at {
    BYTES_NOWHERE = 0,
    BYTES_DIRECT,  /* in the second argument */
    BYTES_VECTOR,  /* in what the array of `struct iovec` in the second argument names */
    BYTES_MESSAGE, /* in what the `struct msghdr` in the second argument names */
};

/* Registers and threads are read as what the verifier knows them to be, without calls of helpers: every system call of the
 * machine comes this way. */
#if defined(__TARGET_ARCH_x86)

/* TS_COMPAT: the call came by the 32-bit entry. */
#define IS_COMPAT 2
/* __X32_SYSCALL_BIT: the third ABI, 64-bit registers with 32-bit pointers. */
#define X32_BIT 0x40000000

static __always_inline bool is_compat(struct task_struct *task)
{
    return task->thread_info.status & IS_COMPAT;
}

static __always_inline u32 call_number(struct pt_regs *registers)
{
    return registers->orig_ax;
}

static __always_inline u64 argument(struct pt_regs *registers, bool compat, u32 which)
{
    u64 first = registers->di, second = registers->si, third = registers->dx;
    if (compat) {
        first = (u32)registers->bx;
        second = (u32)registers->cx;
        third = (u32)third;
    }
    return which == 0 ? first : which == 1 ? second : third;
}

static const struct abi_calls calls[CALL_NUMBERS] = {
    NATIVE(434, CALL_PIDFD_OPEN), COMPAT(434, CALL_PIDFD_OPEN),
    NATIVE(2, CALL_OPEN), NATIVE(257, CALL_OPEN), NATIVE(437, CALL_OPEN), /* open, openat, openat2 */
    /* read, pread64, readv, preadv, preadv2 */
    NATIVE(0, CALL_READ), NATIVE(17, CALL_READ), NATIVE(19, CALL_READ), NATIVE(295, CALL_READ), NATIVE(327, CALL_READ),
    NATIVE(275, CALL_READ), NATIVE(326, CALL_READ), /* splice, copy_file_range */
    NATIVE(515, CALL_READ), NATIVE(534, CALL_READ), NATIVE(546, CALL_READ), /* x32: readv, preadv, preadv2 */
    NATIVE(40, CALL_SENDFILE),
    NATIVE(101, CALL_PTRACE), NATIVE(521, CALL_PTRACE),
    NATIVE(310, CALL_VM_READ), NATIVE(539, CALL_VM_READ),
    NATIVE(311, CALL_VM_WRITE), NATIVE(540, CALL_VM_WRITE),
    NATIVE(438, CALL_GETFD),
    NATIVE(298, CALL_PERF),
    NATIVE(42, CALL_CONNECT),
    NATIVE(45, CALL_RECEIVE), NATIVE(47, CALL_RECEIVE), NATIVE(299, CALL_RECEIVE), /* recvfrom, recvmsg, recvmmsg */
    NATIVE(517, CALL_RECEIVE), NATIVE(519, CALL_RECEIVE), NATIVE(537, CALL_RECEIVE), /* x32: recvfrom, recvmsg, recvmmsg */
    /* write, writev, sendto, sendmsg */
    NATIVE(1, CALL_WRITE), NATIVE(20, CALL_WRITE), NATIVE(44, CALL_WRITE), NATIVE(46, CALL_WRITE),
    /* dup, dup2, fcntl, dup3 */
    NATIVE(32, CALL_DUPLICATE), NATIVE(33, CALL_DUPLICATE), NATIVE(72, CALL_DUPLICATE), NATIVE(292, CALL_DUPLICATE),
    COMPAT(5, CALL_OPEN), COMPAT(295, CALL_OPEN), COMPAT(437, CALL_OPEN),
    COMPAT(3, CALL_READ), COMPAT(145, CALL_READ), COMPAT(180, CALL_READ), COMPAT(333, CALL_READ), COMPAT(378, CALL_READ),
    COMPAT(313, CALL_READ), COMPAT(377, CALL_READ),
    COMPAT(187, CALL_SENDFILE), COMPAT(239, CALL_SENDFILE),
    COMPAT(26, CALL_PTRACE),
    COMPAT(347, CALL_VM_READ),
    COMPAT(348, CALL_VM_WRITE),
    COMPAT(438, CALL_GETFD),
    COMPAT(336, CALL_PERF),
    COMPAT(362, CALL_CONNECT),
    /* socketcall is any of them */
    COMPAT(102, CALL_RECEIVE), COMPAT(371, CALL_RECEIVE), COMPAT(372, CALL_RECEIVE), COMPAT(337, CALL_RECEIVE),
    COMPAT(417, CALL_RECEIVE),
    COMPAT(4, CALL_WRITE), COMPAT(146, CALL_WRITE), COMPAT(369, CALL_WRITE), COMPAT(370, CALL_WRITE),
    COMPAT(41, CALL_DUPLICATE), COMPAT(63, CALL_DUPLICATE), COMPAT(55, CALL_DUPLICATE), COMPAT(221, CALL_DUPLICATE),
    COMPAT(330, CALL_DUPLICATE),
};

static __always_inline enum bytes_at bytes_at(u32 number, bool compat)
{
    if (compat)
        return number == 3 || number == 4 || number == 369 || number == 371 ? BYTES_DIRECT : BYTES_NOWHERE;
    switch (number) {
    case 0: case 1: case 44: case 45: return BYTES_DIRECT;
    case 19: case 20: return BYTES_VECTOR;
    case 46: case 47: return BYTES_MESSAGE;
    }
    return BYTES_NOWHERE;
}

#else

/* _TIF_32BIT */
#define IS_COMPAT (1ul << 22)
/* There is no third ABI. */
#define X32_BIT 0

static __always_inline bool is_compat(struct task_struct *task)
{
    return task->thread_info.flags & IS_COMPAT;
}

static __always_inline u32 call_number(struct pt_regs *registers)
{
    return registers->syscallno;
}

static __always_inline u64 argument(struct pt_regs *registers, bool compat, u32 which)
{
    u64 first = registers->orig_x0, second = registers->regs[1], third = registers->regs[2];
    u64 value = which == 0 ? first : which == 1 ? second : third;
    return compat ? (u32)value : value;
}

static const struct abi_calls calls[CALL_NUMBERS] = {
    NATIVE(434, CALL_PIDFD_OPEN), COMPAT(434, CALL_PIDFD_OPEN),
    NATIVE(56, CALL_OPEN), NATIVE(437, CALL_OPEN),
    NATIVE(63, CALL_READ), NATIVE(65, CALL_READ), NATIVE(67, CALL_READ), NATIVE(69, CALL_READ), NATIVE(286, CALL_READ),
    NATIVE(76, CALL_READ), NATIVE(285, CALL_READ),
    NATIVE(71, CALL_SENDFILE),
    NATIVE(117, CALL_PTRACE),
    NATIVE(270, CALL_VM_READ),
    NATIVE(271, CALL_VM_WRITE),
    NATIVE(438, CALL_GETFD),
    NATIVE(241, CALL_PERF),
    NATIVE(203, CALL_CONNECT),
    NATIVE(207, CALL_RECEIVE), NATIVE(212, CALL_RECEIVE), NATIVE(243, CALL_RECEIVE),
    NATIVE(64, CALL_WRITE), NATIVE(66, CALL_WRITE), NATIVE(206, CALL_WRITE), NATIVE(211, CALL_WRITE),
    NATIVE(23, CALL_DUPLICATE), NATIVE(24, CALL_DUPLICATE), NATIVE(25, CALL_DUPLICATE), /* dup, dup3, fcntl */
    COMPAT(5, CALL_OPEN), COMPAT(322, CALL_OPEN), COMPAT(437, CALL_OPEN),
    COMPAT(3, CALL_READ), COMPAT(145, CALL_READ), COMPAT(180, CALL_READ), COMPAT(361, CALL_READ), COMPAT(392, CALL_READ),
    COMPAT(340, CALL_READ), COMPAT(391, CALL_READ),
    COMPAT(187, CALL_SENDFILE), COMPAT(239, CALL_SENDFILE),
    COMPAT(26, CALL_PTRACE),
    COMPAT(376, CALL_VM_READ),
    COMPAT(377, CALL_VM_WRITE),
    COMPAT(438, CALL_GETFD),
    COMPAT(364, CALL_PERF),
    COMPAT(283, CALL_CONNECT),
    /* recv, recvfrom, recvmsg, recvmmsg */
    COMPAT(291, CALL_RECEIVE), COMPAT(292, CALL_RECEIVE), COMPAT(297, CALL_RECEIVE), COMPAT(365, CALL_RECEIVE),
    COMPAT(417, CALL_RECEIVE),
    /* write, writev, send, sendto, sendmsg */
    COMPAT(4, CALL_WRITE), COMPAT(146, CALL_WRITE), COMPAT(289, CALL_WRITE), COMPAT(290, CALL_WRITE),
    COMPAT(296, CALL_WRITE),
    COMPAT(41, CALL_DUPLICATE), COMPAT(63, CALL_DUPLICATE), COMPAT(55, CALL_DUPLICATE), COMPAT(221, CALL_DUPLICATE),
    COMPAT(358, CALL_DUPLICATE),
};

static __always_inline enum bytes_at bytes_at(u32 number, bool compat)
{
    if (compat)
        return number == 3 || number == 4 || (number >= 289 && number <= 292) ? BYTES_DIRECT : BYTES_NOWHERE;
    switch (number) {
    case 63: case 64: case 206: case 207: return BYTES_DIRECT;
    case 65: case 66: return BYTES_VECTOR;
    case 211: case 212: return BYTES_MESSAGE;
    }
    return BYTES_NOWHERE;
}

#endif

static __always_inline struct abi_calls calls_of(u32 number)
{
    struct abi_calls none = {};
    number &= ~X32_BIT;
    /* One variable, which the verifier sees compared. */
    barrier_var(number);
    return number < CALL_NUMBERS ? calls[number] : none;
}

static __always_inline enum call call_of(u32 number, bool compat)
{
    struct abi_calls known = calls_of(number);
    return compat ? known.compat : known.native;
}

/* Whether a number is a call that is looked at there (`AT_ENTRY`, `AT_EXIT`) in any ABI: which one it is takes longer. */
static __always_inline bool may_be_judged(u32 number, u8 where)
{
    struct abi_calls known = calls_of(number);
    return (known.native | known.compat) & where;
}

#endif
