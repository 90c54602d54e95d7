/* What is seen where processes enter and leave the kernel: who wants the memory of a guarded process, which port the kernel
 * chose for a UDP socket that a job connected, and what shells read (`streams.h`).
 *
 * A reader that is to be ended gets SIGKILL before its call is carried out: with a fatal signal pending the kernel copies
 * nothing out of another process' memory. Every way to a /proc/PID/mem ends at one file with one set of operations, so the
 * file behind the descriptor is looked at and no path: symlinks, other mounts of procfs and other namespaces make no
 * difference. */
#include "shared.h"
#include "calls.h"

char LICENSE[] SEC("license") = "GPL";

#define SIGNAL_KILL 9
#define SIGNAL_CONTINUE 18
/* A kernel thread (PF_KTHREAD); io_uring's workers are threads of their process and have it not. */
#define KERNEL_THREAD 0x00200000
#define PROC_MAGIC 0x9fa0
#define PIDFS_MAGIC 0x50494446
#define PROTOCOL_UDP 17
/* A thread of io_uring (PF_IO_WORKER). */
#define URING_THREAD 0x00000010
/* How many pid namespaces a guarded process can be in, one in the other. */
#define MAX_LEVELS 8
struct guard {
    u64 job;       /* whose Worker it is; 0 for what belongs to no job */
    u8 is_lethal;  /* readers are ended */
    u8 is_private; /* other guarded processes are readers like all */
    u8 pad[6];
    u64 memory;    /* its address space, as far as it is known */
};

/* The guarded processes. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u32);
    __type(value, struct guard);
} guarded SEC(".maps");

/* The address spaces of guarded processes. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u64);
    __type(value, u32);
} guarded_memories SEC(".maps");

struct thread_name {
    u32 namespace; /* the inode of the pid namespace that counts so */
    u32 number;
};

/* Every thread of a guarded process by each number that it has in some pid namespace: calls name processes by the caller's
 * own numbers, and the number of any thread does. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 65536);
    __type(key, struct thread_name);
    __type(value, u32);
} guarded_threads SEC(".maps");

#include "streams.h"

/* Processes that may read: the monitor, and what its configuration names. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u32);
    __type(value, u32);
} trusted SEC(".maps");

/* What the guard looks for. The addresses of the operations are learned when `learner` opens such files. */
struct settings {
    u32 learner;
    u16 is_guarding;
    u16 is_holding; /* processes are stopped; the monitor takes it back when there are none */
    u64 memory_operations;
    u64 pidfd_operations;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct settings);
} settings SEC(".maps");

/* Readers that were ended, and whose memory they wanted. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 1024);
    __type(key, u32);
    __type(value, u32);
} ended SEC(".maps");


/* Whether the current process may have the memory of `target`; otherwise it is told, and ended where the guard says so. */
static __noinline int judge(u32 target, u32 way, u32 call)
{
    struct task_struct *task = bpf_get_current_task_btf();
    u32 reader = bpf_get_current_pid_tgid() >> 32, key = 1;
    struct guard *guard = bpf_map_lookup_elem(&guarded, &target);
    if (!guard || reader == target || (task->flags & KERNEL_THREAD))
        return 0;
    if (bpf_map_lookup_elem(&trusted, &reader))
        return 0;
    /* A Listener looks after its Worker. */
    if (!guard->is_private && bpf_map_lookup_elem(&guarded, &reader))
        return 0;
    struct membership *member = membership(task);
    bool is_lethal = guard->is_lethal;
    if (is_lethal) {
        bpf_send_signal(SIGNAL_KILL);
        bpf_map_update_elem(&ended, &reader, &target, BPF_ANY);
    }
    struct scratch *scratch = bpf_map_lookup_elem(&scratches, &key);
    if (!scratch)
        return 0;
    describe(&scratch->event, EVENT_ACCESS, task, member ? member->job : guard->job);
    struct access access = {.target = target, .way = way, .call = call, .is_ended = is_lethal};
    __builtin_memcpy(scratch->bytes, &access, sizeof(access));
    u64 length = append_image(scratch, sizeof(access), task);
    BOUND(length, sizeof(scratch->bytes));
    send(scratch, sizeof(scratch->event) + length, true);
    return 0;
}

/* The guarded process that has a thread of this number in the current pid namespace; 0 for none. */
static __always_inline u32 guarded_by_number(u32 number)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct pid *own = BPF_CORE_READ(task, thread_pid);
    u32 level = BPF_CORE_READ(own, level);
    struct upid *numbers = (void *)own + bpf_core_field_offset(struct pid, numbers);
    struct upid *here = (void *)numbers + level * bpf_core_type_size(struct upid);
    struct thread_name name = {.namespace = BPF_CORE_READ(here, ns, ns.inum), .number = number};
    u32 *process = bpf_map_lookup_elem(&guarded_threads, &name);
    return process ? *process : 0;
}

/* The process of a `struct pid` of any kind of file; 0 when it is gone. */
static __always_inline u32 process_of(struct pid *pid)
{
    struct hlist_node *node = pid ? BPF_CORE_READ(pid, tasks[0].first) : NULL;
    if (!node)
        return 0;
    struct task_struct *task = (void *)node - bpf_core_field_offset(struct task_struct, pid_links);
    return BPF_CORE_READ(task, tgid);
}

/* The process that a pidfd refers to; 0 when it is none. */
static __always_inline u32 process_of_pidfd(struct settings *known, struct file *file)
{
    if (!known->pidfd_operations || (u64)BPF_CORE_READ(file, f_op) != known->pidfd_operations)
        return 0;
    /* Since 6.9 pidfds have inodes of their own. */
    struct inode *inode = BPF_CORE_READ(file, f_inode);
    if (BPF_CORE_READ(inode, i_sb, s_magic) == PIDFS_MAGIC)
        return process_of(BPF_CORE_READ(inode, i_private));
    return process_of(BPF_CORE_READ(file, private_data));
}

/* Looks at a file that the current process has opened or reads from. */
static __always_inline void judge_file(struct settings *known, struct file *file, u32 call)
{
    if ((u64)BPF_CORE_READ(file, f_op) != known->memory_operations)
        return;
    struct inode *inode = BPF_CORE_READ(file, f_inode);
    struct proc_inode *of_process = (void *)inode - bpf_core_field_offset(struct proc_inode, vfs_inode);
    u32 target = process_of(BPF_CORE_READ(of_process, pid));
    if (target)
        judge(target, ACCESS_MEMORY_FILE, call);
}

/* The monitor opens the memory of a process that it guards, to show which address space it is. */
static __noinline int learn_memory(struct settings *known, struct file *file)
{
    u32 reader = bpf_get_current_pid_tgid() >> 32;
    if ((u64)BPF_CORE_READ(file, f_op) != known->memory_operations || !bpf_map_lookup_elem(&trusted, &reader))
        return 0;
    struct inode *inode = BPF_CORE_READ(file, f_inode);
    struct proc_inode *of_process = (void *)inode - bpf_core_field_offset(struct proc_inode, vfs_inode);
    u32 target = process_of(BPF_CORE_READ(of_process, pid));
    struct guard *guard = bpf_map_lookup_elem(&guarded, &target);
    u64 memory = (u64)BPF_CORE_READ(file, private_data);
    if (!guard || !memory)
        return 0;
    guard->memory = memory;
    bpf_map_update_elem(&guarded_memories, &memory, &target, BPF_ANY);
    return 0;
}

/* The monitor opens its own files to show which operations they have. */
static __noinline int learn(struct settings *known, struct file *file, enum call call)
{
    struct inode *inode = BPF_CORE_READ(file, f_inode);
    char name[8] = {};
    if (call == CALL_PIDFD_OPEN)
        known->pidfd_operations = (u64)BPF_CORE_READ(file, f_op);
    if (BPF_CORE_READ(inode, i_sb, s_magic) != PROC_MAGIC)
        return 0;
    bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
    if (name[0] == 'm' && name[1] == 'e' && name[2] == 'm' && !name[3])
        known->memory_operations = (u64)BPF_CORE_READ(file, f_op);
    return 0;
}

struct port_event {
    struct event event;
    struct port port;
};

/* Tells which port a member's connected UDP socket has: the hook for the call itself runs before one is chosen. */
static __noinline int tell_port(struct file *file)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct inode *inode = BPF_CORE_READ(file, f_inode);
    if (BPF_CORE_READ(inode, i_sb, s_magic) != SOCKET_MAGIC)
        return 0;
    struct socket *socket = BPF_CORE_READ(file, private_data);
    struct sock *sock = BPF_CORE_READ(socket, sk);
    if (BPF_CORE_READ(sock, sk_protocol) != PROTOCOL_UDP)
        return 0;
    struct membership *member = membership(task);
    if (!member)
        return 0;
    struct port_event told = {};
    u16 family = BPF_CORE_READ(sock, __sk_common.skc_family);
    if (family == IPV4) {
        u32 address = BPF_CORE_READ(sock, __sk_common.skc_daddr);
        told.port.address[10] = told.port.address[11] = 0xff;
        __builtin_memcpy(&told.port.address[12], &address, sizeof(address));
    } else if (family == IPV6) {
        BPF_CORE_READ_INTO(&told.port.address, sock, __sk_common.skc_v6_daddr);
    } else {
        return 0;
    }
    told.port.destination_port = bpf_ntohs(BPF_CORE_READ(sock, __sk_common.skc_dport));
    told.port.source_port = BPF_CORE_READ(sock, __sk_common.skc_num);
    told.port.protocol = PROTOCOL_UDP;
    describe(&told.event, EVENT_PORT, task, member->job);
    send(&told, sizeof(told), false);
    return 0;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(enters, struct pt_regs *registers, long number)
{
    u32 key = 0, target;
    struct settings *known = bpf_map_lookup_elem(&settings, &key);
    if (!known)
        return 0;
    /* Somebody else let a stopped process go on. */
    if (known->is_holding) {
        u32 process = bpf_get_current_pid_tgid() >> 32;
        if (bpf_map_lookup_elem(&held, &process))
            bpf_send_signal(SIGNAL_STOP);
    }
    if (!may_be_judged(number, AT_ENTRY))
        return 0;
    bool compat = is_compat(bpf_get_current_task_btf());
    enum call call = call_of(number, compat);
    if (call == CALL_WRITE && is_any_connected())
        note_relayed(registers);
    if (call < CALL_PTRACE || call > CALL_PERF || !known->is_guarding)
        return 0;
    u64 first = argument(registers, compat, 0), second = argument(registers, compat, 1);
    struct file *file;
    switch (call) {
    case CALL_PTRACE:
        target = first == PTRACE_TRACEME ? 0 : guarded_by_number(second);
        if (target)
            judge(target, ACCESS_PTRACE, number);
        return 0;
    case CALL_VM_READ:
    case CALL_VM_WRITE:
        target = guarded_by_number(first);
        if (target)
            judge(target, call == CALL_VM_READ ? ACCESS_VM_READ : ACCESS_VM_WRITE, number);
        return 0;
    case CALL_PERF:
        target = guarded_by_number(second);
        if (target)
            judge(target, ACCESS_PERF, number);
        return 0;
    case CALL_GETFD:
        file = file_of(first);
        target = file ? process_of_pidfd(known, file) : 0;
        if (target)
            judge(target, ACCESS_DESCRIPTOR, number);
        return 0;
    default:
        return 0;
    }
}

SEC("tp_btf/sys_exit")
int BPF_PROG(leaves, struct pt_regs *registers, long result)
{
    u32 number = call_number(registers), key = 0;
    if (!may_be_judged(number, AT_EXIT))
        return 0;
    bool compat = is_compat(bpf_get_current_task_btf());
    enum call call = call_of(number, compat);
    if (call == CALL_CONNECT && result == 0) {
        struct file *file = file_of(argument(registers, compat, 0));
        if (file)
            tell_port(file);
        return 0;
    }
    struct settings *known = bpf_map_lookup_elem(&settings, &key);
    if (call == CALL_DUPLICATE) {
        if ((result == 1 || result == 2) && is_any_connected() && note_redirected() && known)
            known->is_holding = 1;
        return 0;
    }
    if ((call == CALL_READ || call == CALL_RECEIVE) && result > 0 && is_any_connected()) {
        if (note_read(registers, result) && known)
            known->is_holding = 1;
        return 0;
    }
    if ((call != CALL_OPEN && call != CALL_PIDFD_OPEN) || result < 0)
        return 0;
    struct file *file = known ? file_of(result) : NULL;
    if (!file)
        return 0;
    if (known->learner && known->learner == bpf_get_current_pid_tgid() >> 32)
        learn(known, file, call);
    if (known->is_guarding && call == CALL_OPEN && (u64)BPF_CORE_READ(file, f_op) == known->memory_operations) {
        learn_memory(known, file);
        judge_file(known, file, number);
    }
    return 0;
}

/* New threads of guarded processes. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(thread_begins, struct task_struct *parent, struct task_struct *child)
{
    u32 process = child->tgid;
    if (child->pid == child->tgid || !bpf_map_lookup_elem(&guarded, &process))
        return 0;
    struct pid *pid = BPF_CORE_READ(child, thread_pid);
    u32 level = BPF_CORE_READ(pid, level);
    for (u32 at = 0; at < MAX_LEVELS && at <= level; at++) {
        struct upid *numbers = (void *)pid + bpf_core_field_offset(struct pid, numbers);
        struct upid *here = (void *)numbers + at * bpf_core_type_size(struct upid);
        struct thread_name name = {.namespace = BPF_CORE_READ(here, ns, ns.inum), .number = BPF_CORE_READ(here, nr)};
        bpf_map_update_elem(&guarded_threads, &name, &process, BPF_ANY);
    }
    return 0;
}

static __always_inline void forget_memory(struct guard *guard)
{
    u64 memory = guard->memory;
    if (memory)
        bpf_map_delete_elem(&guarded_memories, &memory);
    guard->memory = 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(thread_ends, struct task_struct *task)
{
    u32 process = task->tgid, key = 0;
    struct settings *known = bpf_map_lookup_elem(&settings, &key);
    if (known && known->is_holding && BPF_CORE_READ(task, signal, live.counter) == 0)
        bpf_map_delete_elem(&held, &process);
    struct guard *guard = bpf_map_lookup_elem(&guarded, &process);
    if (!guard)
        return 0;
    struct pid *pid = BPF_CORE_READ(task, thread_pid);
    u32 level = BPF_CORE_READ(pid, level);
    for (u32 at = 0; at < MAX_LEVELS && at <= level; at++) {
        struct upid *numbers = (void *)pid + bpf_core_field_offset(struct pid, numbers);
        struct upid *here = (void *)numbers + at * bpf_core_type_size(struct upid);
        struct thread_name name = {.namespace = BPF_CORE_READ(here, ns, ns.inum), .number = BPF_CORE_READ(here, nr)};
        bpf_map_delete_elem(&guarded_threads, &name);
    }
    /* The first thread can end before the others; its number is the process' own and stays until they have ended. */
    if (BPF_CORE_READ(task, signal, live.counter) == 0) {
        forget_memory(guard);
        bpf_map_delete_elem(&guarded, &process);
    }
    return 0;
}

/* Another program has another address space, and the old one's place is given to whoever comes. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(program_changes, struct task_struct *task)
{
    u32 process = task->tgid;
    struct guard *guard = bpf_map_lookup_elem(&guarded, &process);
    if (guard)
        forget_memory(guard);
    return 0;
}

/* Whether a reader that was ended has stopped the monitor. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, u32);
} monitor_stopped SEC(".maps");

/* The monitor can't wake itself: its own SIGSTOP is answered when it is delivered. */
SEC("tp_btf/signal_deliver")
int BPF_PROG(delivers, int signal, void *information, void *action)
{
    u32 key = 0, process = bpf_get_current_pid_tgid() >> 32;
    u32 *is_stopped = bpf_map_lookup_elem(&monitor_stopped, &key);
    if (!is_stopped || !*is_stopped || signal != SIGNAL_STOP)
        return 0;
    struct guard *guard = bpf_map_lookup_elem(&guarded, &process);
    if (!guard || !guard->is_private)
        return 0;
    *is_stopped = 0;
    bpf_send_signal(SIGNAL_CONTINUE);
    return 0;
}

#define SIGNAL_CHILD 17

struct signal_event {
    struct event event;
    struct sent_signal signal;
};

/* PTRACE_ATTACH stops its target even when the tracer is being killed, and nobody would wake it. And no process of a job has a
 * reason to signal the monitor. */
SEC("tp_btf/signal_generate")
int BPF_PROG(signals, int signal, void *information, struct task_struct *target)
{
    u32 process = BPF_CORE_READ(target, tgid);
    struct guard *guard = bpf_map_lookup_elem(&guarded, &process);
    if (!guard)
        return 0;
    struct task_struct *task = bpf_get_current_task_btf();
    u32 sender = task->tgid;
    if (guard->is_private) {
        u32 key = 0, is_stopped = 1;
        if (signal == SIGNAL_STOP && bpf_map_lookup_elem(&ended, &sender))
            bpf_map_update_elem(&monitor_stopped, &key, &is_stopped, BPF_ANY);
        struct membership *member = bpf_task_storage_get(&members, task, 0, 0);
        /* The kernel tells a tracer of each stop by SIGCHLD, as the monitor is at binding; whoever sends it harms nobody. */
        if (!member || sender == process || signal == SIGNAL_CHILD)
            return 0;
        struct signal_event told = {.signal = {.number = signal}};
        describe(&told.event, EVENT_SIGNAL, task, member->job);
        send(&told, sizeof(told), true);
        return 0;
    }
    if (signal != SIGNAL_STOP || !bpf_map_lookup_elem(&ended, &sender))
        return 0;
    struct event told = {};
    describe(&told, EVENT_STOPPED, task, 0);
    told.parent = process;
    send(&told, sizeof(told), true);
    return 0;
}

/* Somebody is about to touch an address space, in whatever way: the last moment at which a read can be stopped, and the only
 * one at which nothing can change any more (a descriptor that another thread fills in between, io_uring's own threads). */
SEC("tp_btf/mmap_lock_start_locking")
int BPF_PROG(touches, struct mm_struct *memory)
{
    struct task_struct *task = bpf_get_current_task_btf();
    if (task->mm == memory)
        return 0;
    u64 address = (u64)memory;
    u32 *target = bpf_map_lookup_elem(&guarded_memories, &address), key = 0;
    struct settings *known = bpf_map_lookup_elem(&settings, &key);
    if (!target || !known)
        return 0;
    if (task->flags & URING_THREAD) {
        judge(*target, ACCESS_IO_URING, 0);
        return 0;
    }
    struct pt_regs *registers = (void *)bpf_task_pt_regs(task);
    bool compat = is_compat(task);
    u32 number = call_number(registers);
    struct file *file;
    /* Command lines are read this way, too, so it must be known for what. */
    switch (call_of(number, compat)) {
    case CALL_READ:
        file = file_of(argument(registers, compat, 0));
        break;
    case CALL_SENDFILE:
        file = file_of(argument(registers, compat, 1));
        break;
    case CALL_PTRACE:
        judge(*target, ACCESS_PTRACE, number);
        return 0;
    case CALL_VM_READ:
        judge(*target, ACCESS_VM_READ, number);
        return 0;
    case CALL_VM_WRITE:
        judge(*target, ACCESS_VM_WRITE, number);
        return 0;
    default:
        if (number == IO_URING_ENTER)
            judge(*target, ACCESS_IO_URING, number);
        return 0;
    }
    if (file)
        judge_file(known, file, number);
    return 0;
}
