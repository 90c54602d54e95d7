/* What the programs that watch the whole machine share: maps, membership in jobs, and the description of a process. */
#ifndef PORTCULLIS_SHARED_H
#define PORTCULLIS_SHARED_H

#include "kernel.h"
#include "events.h"
#include "activity.h"

/* What part of the ring may wait before the monitor is woken for every event. */
#define RING_HIGH_WATER_PART 4
/* How deep a cgroup may be. The kernel allows any depth; what is deeper is no job's. */
#define MAX_CGROUP_DEPTH 32
#define MAX_PATH_COMPONENTS 40
#define MAX_COMPONENT 256
#define MAX_PATH_BYTES 2048
#define MAX_ARGUMENT_BYTES 4096

/* Bytes that wait for the monitor: when it can't keep up, events are counted in `lost`. The loader says how many there are
 * (`ring_bytes` in src/ring.rs). */
struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Events for which the ring had no room. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, u64);
} lost SEC(".maps");

/* The jobs that run: a job's cgroup (its inode number) to the monitor's token for the job. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u64);
    __type(value, u64);
} jobs SEC(".maps");

/* What makes a thread a job's for good: handed down at fork, whatever cgroup it moves to. */
struct membership {
    u64 job;
    u32 has_escaped;
    u32 program;         /* enum program_class: what it executes */
    u32 is_step;         /* a Worker made it, and it has executed nothing yet */
    u32 user;            /* the effective user of what it executed last, and one; 0 when that is not known */
    u64 judged_made;     /* with how many connections of the job its streams were judged, */
    u64 judged_input;    /* and which streams it had then */
    u64 judged_output;
};

/* What a thread executes, as far as it matters for its streams. */
enum program_class {
    PROGRAM_UNKNOWN = 0,
    PROGRAM_HARMLESS,
    PROGRAM_SHELL, /* it may execute commands that it reads: an interpreter, or whatever the job brought along */
};

/* The pipes that a Worker reads the output of steps from: what ends there leads to nobody else. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 4096);
    __type(key, u64);
    __type(value, u32);
} logs SEC(".maps");

#define PIPE_MAGIC 0x50495045

struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct membership);
} members SEC(".maps");

/* Where an event of no fixed length is put together. The rest behind the limits is for the verifier, which takes each piece
 * to be as long as it can be. */
#define IMAGE_OFFSET_LIMIT 64
struct scratch {
    struct event event;
    u8 bytes[IMAGE_OFFSET_LIMIT + 3 * MAX_PATH_BYTES + MAX_ARGUMENT_BYTES];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2);
    __type(key, u32);
    __type(value, struct scratch);
} scratches SEC(".maps");

static __always_inline void count_lost(void)
{
    u32 zero = 0;
    u64 *count = bpf_map_lookup_elem(&lost, &zero);
    if (count)
        *count += 1;
}

/* Whether the monitor is woken: for what it has to answer always, for the rest when much is waiting. */
static __always_inline u64 wake(bool now)
{
    if (now)
        return BPF_RB_FORCE_WAKEUP;
    u64 waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
    return waiting > bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / RING_HIGH_WATER_PART ? BPF_RB_FORCE_WAKEUP
                                                                                                    : BPF_RB_NO_WAKEUP;
}

static __always_inline void send(void *event, u64 size, bool now)
{
    if (bpf_ringbuf_output(&events, event, size, wake(now)))
        count_lost();
}

/* The token of the job that a cgroup belongs to, itself or below; 0 for none. */
static __noinline u64 job_of_cgroup(struct cgroup *cgroup)
{
    for (int depth = 0; depth < MAX_CGROUP_DEPTH && cgroup; depth++) {
        u64 id = BPF_CORE_READ(cgroup, kn, id);
        u64 *job = bpf_map_lookup_elem(&jobs, &id);
        if (job)
            return *job;
        struct cgroup_subsys_state *parent = BPF_CORE_READ(cgroup, self.parent);
        cgroup = parent ? BPF_CORE_READ(parent, cgroup) : NULL;
    }
    return 0;
}

static __always_inline struct cgroup *cgroup_of(struct task_struct *task)
{
    return BPF_CORE_READ(task, cgroups, dfl_cgrp);
}

static __always_inline struct membership *make_member(struct task_struct *task, u64 job)
{
    struct membership *made = bpf_task_storage_get(&members, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (made && made->job != job) {
        struct membership fresh = {.job = job};
        *made = fresh;
    }
    return made;
}

/* The membership of a thread. One that runs in a job's cgroup becomes a member when it is first looked at: the threads of
 * the Worker were there before the job had a cgroup. */
static __always_inline struct membership *membership(struct task_struct *task)
{
    struct membership *known = bpf_task_storage_get(&members, task, 0, 0);
    if (known)
        return known;
    u64 job = job_of_cgroup(cgroup_of(task));
    return job ? make_member(task, job) : NULL;
}

static __always_inline void describe(struct event *event, u32 kind, struct task_struct *task, u64 job)
{
    struct task_struct *parent = task->real_parent;
    event->kind = kind;
    event->process = task->tgid;
    event->time = bpf_ktime_get_boot_ns();
    event->start = task->group_leader->start_boottime;
    event->parent = parent->tgid;
    event->parent_start = parent->group_leader->start_boottime;
    event->user = task->cred->uid.val;
    event->job = job;
}

/* A path while it is put together. */
struct path_bytes {
    u8 bytes[MAX_PATH_BYTES + MAX_COMPONENT];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct path_bytes);
} paths SEC(".maps");

/* Writes the components of a path to `paths`, last to first, over mount points up to the root of its mount namespace; the
 * number of bytes. A function that is not static is verified once, for any arguments: addresses come as plain numbers. */
__noinline u32 write_path(u64 dentry_address, u64 vfsmount_address)
{
    struct dentry *dentry = (void *)dentry_address;
    struct mount *mount = (void *)vfsmount_address - bpf_core_field_offset(struct mount, mnt);
    u32 zero = 0, length = 0;
    struct path_bytes *path = bpf_map_lookup_elem(&paths, &zero);
    if (!path)
        return 0;
    for (int component = 0; component < MAX_PATH_COMPONENTS; component++) {
        /* Every round begins with the same knowledge of the length, so that the verifier looks at one and not at all. */
        length &= MAX_PATH_BYTES - 1;
        if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
            struct mount *outer = BPF_CORE_READ(mount, mnt_parent);
            if (outer == mount)
                break;
            dentry = BPF_CORE_READ(mount, mnt_mountpoint);
            mount = outer;
            continue;
        }
        struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
        /* A file that was never in a directory (memfd) is its own parent, and has a name all the same. */
        if (parent == dentry && component > 0)
            break;
        long written = bpf_probe_read_kernel_str(&path->bytes[length], MAX_COMPONENT, BPF_CORE_READ(dentry, d_name.name));
        if (written <= 0 || written > MAX_COMPONENT || length + written >= MAX_PATH_BYTES)
            break;
        length += written;
        dentry = parent;
    }
    return length & (MAX_PATH_BYTES - 1);
}

/* Shows the verifier that a number is not over a limit, which clang would prove and leave out. */
#define BOUND(number, limit)         \
    do {                             \
        barrier_var(number);         \
        if ((number) > (limit))      \
            return 0;                \
    } while (0)

/* Appends a path; the number of bytes after it. */
static __always_inline u64 append_path(struct scratch *scratch, u64 at, struct path *path)
{
    u32 zero = 0;
    struct path_bytes *bytes = bpf_map_lookup_elem(&paths, &zero);
    u64 length = write_path((u64)BPF_CORE_READ(path, dentry), (u64)BPF_CORE_READ(path, mnt));
    if (!bytes)
        return at;
    BOUND(length, MAX_PATH_BYTES - 1);
    BOUND(at, IMAGE_OFFSET_LIMIT + 2 * MAX_PATH_BYTES);
    if (bpf_probe_read_kernel(&scratch->bytes[at], length, bytes->bytes))
        return at;
    return at + length;
}

/* Puts what `task` executes behind the `offset` first bytes; the number of bytes after it, 0 for a bug. Its memory must be
 * the current one for the arguments to be readable. */
static __always_inline u64 append_image(struct scratch *scratch, u64 offset, struct task_struct *task)
{
    struct mm_struct *mm = BPF_CORE_READ(task, mm);
    struct file *executable = BPF_CORE_READ(mm, exe_file);
    struct fs_struct *fs = BPF_CORE_READ(task, fs);
    struct image image = {
        .links = BPF_CORE_READ(executable, f_inode, i_nlink),
        .effective_user = BPF_CORE_READ(task, cred, euid.val),
    };
    u64 begin = offset + sizeof(image), end = begin;

    if (executable)
        end = append_path(scratch, begin, __builtin_preserve_access_index(&executable->f_path));
    image.executable_length = end - begin;
    begin = end;
    if (fs)
        end = append_path(scratch, begin, __builtin_preserve_access_index(&fs->pwd));
    image.directory_length = end - begin;
    BOUND(end, IMAGE_OFFSET_LIMIT + 2 * MAX_PATH_BYTES);
    u64 arguments = BPF_CORE_READ(mm, arg_start);
    u64 length = BPF_CORE_READ(mm, arg_end) - arguments;
    if (length > MAX_ARGUMENT_BYTES) {
        image.is_cut = 1;
        length = MAX_ARGUMENT_BYTES;
    }
    BOUND(length, MAX_ARGUMENT_BYTES);
    if (!bpf_probe_read_user(&scratch->bytes[end], length, (void *)arguments)) {
        image.arguments_length = length;
        end += length;
    }
    __builtin_memcpy(&scratch->bytes[offset], &image, sizeof(image));
    return end;
}

#endif
