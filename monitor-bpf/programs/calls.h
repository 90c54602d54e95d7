/* Which system calls matter, by their number in each ABI that the kernel serves: a 64-bit kernel runs 32-bit programs too,
 * and their calls come with other numbers. */
#ifndef PORTCULLIS_CALLS_H
#define PORTCULLIS_CALLS_H

#include "kernel.h"

enum call {
    CALL_OTHER = 0,
    CALL_OPEN,       /* gives a descriptor of a file */
    CALL_READ,       /* reads from the descriptor in its first argument */
    CALL_SENDFILE,   /* reads from the descriptor in its second argument */
    CALL_PTRACE,     /* process in the second argument */
    CALL_VM_READ,    /* process in the first argument */
    CALL_VM_WRITE,   /* process in the first argument */
    CALL_GETFD,      /* pidfd in the first argument */
    CALL_PERF,       /* process in the second argument */
    CALL_CONNECT,    /* socket in the first argument */
    CALL_RECEIVE,    /* like CALL_READ, of sockets only */
    CALL_WRITE,      /* writes to the descriptor in its first argument */
    CALL_DUPLICATE,  /* gives a descriptor of an open file, and returns it */
};

/* pidfd_open has the same number in every ABI. */
#define PIDFD_OPEN 434
/* So has io_uring_enter. */
#define IO_URING_ENTER 426

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

static __always_inline enum call native_call(u32 number)
{
    switch (number & ~X32_BIT) {
    case 2: case 257: case 437: return CALL_OPEN;               /* open, openat, openat2 */
    case 0: case 17: case 19: case 295: case 327:               /* read, pread64, readv, preadv, preadv2 */
    case 275: case 326: return CALL_READ;                       /* splice, copy_file_range */
    case 515: case 534: case 546: return CALL_READ;             /* x32: readv, preadv, preadv2 */
    case 40: return CALL_SENDFILE;
    case 101: case 521: return CALL_PTRACE;
    case 310: case 539: return CALL_VM_READ;
    case 311: case 540: return CALL_VM_WRITE;
    case 438: return CALL_GETFD;
    case 298: return CALL_PERF;
    case 42: return CALL_CONNECT;
    case 45: case 47: case 299: return CALL_RECEIVE;            /* recvfrom, recvmsg, recvmmsg */
    case 517: case 519: case 537: return CALL_RECEIVE;          /* x32: recvfrom, recvmsg, recvmmsg */
    case 1: case 20: case 44: case 46: return CALL_WRITE;       /* write, writev, sendto, sendmsg */
    case 32: case 33: case 72: case 292: return CALL_DUPLICATE; /* dup, dup2, fcntl, dup3 */
    }
    return CALL_OTHER;
}

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

static __always_inline enum call compat_call(u32 number)
{
    switch (number) {
    case 5: case 295: case 437: return CALL_OPEN;
    case 3: case 145: case 180: case 333: case 378: case 313: case 377: return CALL_READ;
    case 187: case 239: return CALL_SENDFILE;
    case 26: return CALL_PTRACE;
    case 347: return CALL_VM_READ;
    case 348: return CALL_VM_WRITE;
    case 438: return CALL_GETFD;
    case 336: return CALL_PERF;
    case 362: return CALL_CONNECT;
    case 102: case 371: case 372: case 337: case 417: return CALL_RECEIVE; /* socketcall is any of them */
    case 4: case 146: case 369: case 370: return CALL_WRITE;
    case 41: case 63: case 55: case 221: case 330: return CALL_DUPLICATE;
    }
    return CALL_OTHER;
}

#else

/* _TIF_32BIT */
#define IS_COMPAT (1ul << 22)

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

static __always_inline enum call native_call(u32 number)
{
    switch (number) {
    case 56: case 437: return CALL_OPEN;
    case 63: case 65: case 67: case 69: case 286: case 76: case 285: return CALL_READ;
    case 71: return CALL_SENDFILE;
    case 117: return CALL_PTRACE;
    case 270: return CALL_VM_READ;
    case 271: return CALL_VM_WRITE;
    case 438: return CALL_GETFD;
    case 241: return CALL_PERF;
    case 203: return CALL_CONNECT;
    case 207: case 212: case 243: return CALL_RECEIVE;
    case 64: case 66: case 206: case 211: return CALL_WRITE;
    case 23: case 24: case 25: return CALL_DUPLICATE; /* dup, dup3, fcntl */
    }
    return CALL_OTHER;
}

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

static __always_inline enum call compat_call(u32 number)
{
    switch (number) {
    case 5: case 322: case 437: return CALL_OPEN;
    case 3: case 145: case 180: case 361: case 392: case 340: case 391: return CALL_READ;
    case 187: case 239: return CALL_SENDFILE;
    case 26: return CALL_PTRACE;
    case 376: return CALL_VM_READ;
    case 377: return CALL_VM_WRITE;
    case 438: return CALL_GETFD;
    case 364: return CALL_PERF;
    case 283: return CALL_CONNECT;
    case 291: case 292: case 297: case 365: case 417: return CALL_RECEIVE; /* recv, recvfrom, recvmsg, recvmmsg */
    case 4: case 146: case 289: case 290: case 296: return CALL_WRITE;     /* write, writev, send, sendto, sendmsg */
    case 41: case 63: case 55: case 221: case 358: return CALL_DUPLICATE;
    }
    return CALL_OTHER;
}

#endif

#endif
