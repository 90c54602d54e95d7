/* What processes of jobs come, execute, go, and leave their job's cgroup. */
#include "shared.h"
#include "containers.h"

char LICENSE[] SEC("license") = "GPL";

/* The environment of what a Worker starts tells the step; one that is longer is read by procfs. */
#define MAX_ENVIRONMENT_BYTES 32768

/* The processes whose children begin a step: the Workers. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u32);
    __type(value, u64);
} workers SEC(".maps");

/* Processes of jobs that are outside of their job's cgroup now. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 65536);
    __type(key, u32);
    __type(value, u64);
} escaped SEC(".maps");

/* Whether the monitor waits to be woken for every program that is executed. In a burst it does not: then it comes by itself,
 * some hundred times a second. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, u32);
} reader_waits SEC(".maps");

static __always_inline bool is_awaited(void)
{
    u32 zero = 0, *waits = bpf_map_lookup_elem(&reader_waits, &zero);
    return waits && *waits;
}

struct environment_event {
    struct event event;
    u32 length;
    u32 pad;
    u8 bytes[MAX_ENVIRONMENT_BYTES];
};

struct escape_event {
    struct event event;
    struct escape escape;
};

static __always_inline void tell_escape(struct task_struct *task, struct membership *member, struct cgroup *now, u32 by,
                                        bool is_birth)
{
    struct escape_event told = {};
    describe(&told.event, EVENT_ESCAPE, task, member->job);
    told.escape.cgroup = BPF_CORE_READ(now, kn, id);
    told.escape.by = by;
    told.escape.is_birth = is_birth;
    member->has_escaped = 1;
    u32 process = told.event.process;
    bpf_map_update_elem(&escaped, &process, &member->job, BPF_ANY);
    send(&told, sizeof(told), true);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_forks, struct task_struct *parent, struct task_struct *child)
{
    struct membership *of_parent = membership(parent);
    if (!of_parent)
        return 0;
    struct membership *member = make_member(child, of_parent->job);
    if (!member)
        return 0;
    member->has_escaped = of_parent->has_escaped;
    member->program = of_parent->program;
    member->user = of_parent->user;
    if (child->pid != child->tgid)
        return 0;
    /* By who really made it: `CLONE_PARENT` gives what a step starts the Worker as its parent. */
    u32 maker = parent->tgid;
    member->is_step = bpf_map_lookup_elem(&workers, &maker) ? 1 : 0;
    struct event told = {};
    describe(&told, EVENT_FORK, child, member->job);
    if (member->has_escaped) {
        u32 process = child->tgid;
        bpf_map_update_elem(&escaped, &process, &member->job, BPF_ANY);
    }
    /* `CLONE_PARENT` gives the child another parent than who made it. */
    told.parent = parent->tgid;
    told.parent_start = BPF_CORE_READ(parent, group_leader, start_boottime);
    send(&told, sizeof(told), false);
    /* clone3(CLONE_INTO_CGROUP) moves nobody, so that no event of a move tells of it. */
    struct cgroup *now = cgroup_of(child);
    if (!member->has_escaped && now != cgroup_of(parent) && job_of_cgroup(now) != member->job)
        tell_escape(child, member, now, parent->tgid, true);
    return 0;
}

/* Remembers the pipe that a step writes one of its outputs to. */
static __always_inline void note_log(struct task_struct *task, u32 descriptor)
{
    struct file **table = BPF_CORE_READ(task, files, fdt, fd), *file = NULL;
    bpf_probe_read_kernel(&file, sizeof(file), table + descriptor);
    if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) != PIPE_MAGIC)
        return;
    u64 pipe = BPF_CORE_READ(file, f_inode, i_ino);
    u32 value = 1;
    bpf_map_update_elem(&logs, &pipe, &value, BPF_ANY);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_executes, struct task_struct *task)
{
    struct membership *member = membership(task);
    u32 key = 0;
    struct scratch *scratch = bpf_map_lookup_elem(&scratches, &key);
    if (!member || !scratch)
        return 0;
    member->program = PROGRAM_UNKNOWN;
    member->judged_made = 0;
    if (member->is_step) {
        member->is_step = 0;
        note_log(task, 1);
        note_log(task, 2);
    }
    describe(&scratch->event, EVENT_EXEC, task, member->job);
    u64 length = append_image(scratch, 0, task);
    BOUND(length, sizeof(scratch->bytes));
    /* What has no file and what has another user's rights is looked at while it runs. */
    u32 user = task->cred->euid.val + 1;
    bool is_unusual = member->user != user || !task->mm->exe_file->f_inode->i_nlink;
    member->user = user;
    send(scratch, sizeof(scratch->event) + length, is_unusual || is_awaited());

    u32 parent = scratch->event.parent;
    if (!bpf_map_lookup_elem(&workers, &parent))
        return 0;
    struct environment_event *told = bpf_ringbuf_reserve(&events, sizeof(*told), 0);
    if (!told) {
        count_lost();
        return 0;
    }
    told->event = scratch->event;
    told->event.kind = EVENT_ENVIRONMENT;
    struct mm_struct *mm = BPF_CORE_READ(task, mm);
    u64 begin = BPF_CORE_READ(mm, env_start), bytes = BPF_CORE_READ(mm, env_end) - begin;
    if (bytes > MAX_ENVIRONMENT_BYTES || bpf_probe_read_user(told->bytes, bytes, (void *)begin))
        bytes = 0;
    told->length = bytes;
    bpf_ringbuf_submit(told, BPF_RB_FORCE_WAKEUP);
    return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exits, struct task_struct *task)
{
    struct membership *member = bpf_task_storage_get(&members, task, 0, 0);
    if (!member || BPF_CORE_READ(task, signal, live.counter) > 0)
        return 0;
    u32 process = task->tgid;
    bpf_map_delete_elem(&escaped, &process);
    struct event told = {};
    describe(&told, EVENT_EXIT, task, member->job);
    send(&told, sizeof(told), false);
    return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(process_moves, struct cgroup *destination, const char *path, struct task_struct *task)
{
    struct membership *member = bpf_task_storage_get(&members, task, 0, 0);
    struct cgroup *now = cgroup_of(task);
    u64 job = job_of_cgroup(now);
    if (job && !member) {
        make_member(task, job);
        return 0;
    }
    if (member && member->job == job) {
        u32 process = task->tgid;
        bpf_map_delete_elem(&escaped, &process);
        member->has_escaped = 0;
        return 0;
    }
    /* Moves in hierarchies of cgroup v1 come here too, and change nothing of where `now` is. */
    if (member && !member->has_escaped)
        tell_escape(task, member, now, bpf_get_current_pid_tgid() >> 32, false);
    return 0;
}

/* On cgroups whose packets are not judged: what left a job for one of them makes no socket there. A socket belongs for good
 * to the cgroup that it was made in, so moving the process back would come too late for it. */
SEC("cgroup/sock_create")
int makes_socket_outside(struct bpf_sock *socket)
{
    u32 process = bpf_get_current_pid_tgid() >> 32;
    return bpf_map_lookup_elem(&escaped, &process) ? 0 : 1;
}
