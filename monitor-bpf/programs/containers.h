/* Programs that are executed in containers, whatever engine or runtime made them.
 *
 * A container is what has a mount namespace of its own and another root directory than the host; its first program is executed
 * when all of it is made. A way of being in a container (`struct container`) is told once. What a job's own processes make, and on a
 * machine with one runner what engines in the job's network make, is stopped before its first instruction, so that the monitor
 * finds it there however short it lives. */
#ifndef PORTCULLIS_CONTAINERS_H
#define PORTCULLIS_CONTAINERS_H

#include "shared.h"

#define SIGNAL_STOP 19
/* PFA_NO_NEW_PRIVS */
#define NO_NEW_PRIVILEGES 1

/* The host, as the jobs see it. Namespaces by their numbers. */
struct container_settings {
    u64 root;
    u32 root_device;
    u32 pid, network, ipc, uts, cgroup;
    u32 is_watching;
    u32 is_holding_all;   /* also what engines make that live in the jobs' network */
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct container_settings);
} container_host SEC(".maps");

/* Mount namespaces that are no containers': the machine's, the monitor's, the Workers'. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4096);
    __type(key, u32);
    __type(value, u32);
} host_mounts SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 8192);
    __type(key, struct container);
    __type(value, u64);
} told_containers SEC(".maps");

struct contained_event {
    struct event event;
    struct contained contained;
};

/* The inode number of a mount namespace is given again when it is free; this number is not. */
static __always_inline u64 number_of_mounts(struct mnt_namespace *mounts)
{
    struct mnt_namespace___counted *counted = (void *)mounts;
    if (bpf_core_field_exists(counted->seq))
        return BPF_CORE_READ(counted, seq);
    struct ns_common___numbered *numbered = (void *)mounts + bpf_core_field_offset(struct mnt_namespace, ns);
    if (bpf_core_field_exists(numbered->ns_id))
        return BPF_CORE_READ(numbered, ns_id);
    return BPF_CORE_READ(mounts, ns.inum);
}

/* One bit for each namespace that is the host's. */
static __always_inline u32 shared_namespaces(struct nsproxy *namespaces, struct container_settings *host)
{
    u32 shared = 0;
    shared |= BPF_CORE_READ(namespaces, pid_ns_for_children, ns.inum) == host->pid ? 1 : 0;
    shared |= BPF_CORE_READ(namespaces, net_ns, ns.inum) == host->network ? 2 : 0;
    shared |= BPF_CORE_READ(namespaces, ipc_ns, ns.inum) == host->ipc ? 4 : 0;
    shared |= BPF_CORE_READ(namespaces, uts_ns, ns.inum) == host->uts ? 8 : 0;
    shared |= BPF_CORE_READ(namespaces, cgroup_ns, ns.inum) == host->cgroup ? 16 : 0;
    return shared;
}
#define ALL_SHARED 31
#define CONFINEMENT_SHIFT 8

/* How many processes of a container are followed up to who made it. */
#define MOST_ANCESTORS 16

/* Whether who made a container lives in this network: its process' first ancestor in another mount namespace. Engines in other
 * networks work for others. */
static __always_inline bool is_made_in(struct task_struct *task, struct mnt_namespace *mounts, u32 network)
{
    for (int height = 0; height < MOST_ANCESTORS; height++) {
        task = BPF_CORE_READ(task, real_parent);
        struct nsproxy *namespaces = BPF_CORE_READ(task, nsproxy);
        if (BPF_CORE_READ(namespaces, mnt_ns) != mounts)
            return BPF_CORE_READ(namespaces, net_ns, ns.inum) == network;
    }
    return false;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(container_executes, struct task_struct *task)
{
    u32 zero = 0;
    struct container_settings *host = bpf_map_lookup_elem(&container_host, &zero);
    if (!host || !host->is_watching)
        return 0;
    struct nsproxy *namespaces = BPF_CORE_READ(task, nsproxy);
    struct mnt_namespace *mounts = BPF_CORE_READ(namespaces, mnt_ns);
    u32 mount_number = BPF_CORE_READ(mounts, ns.inum);
    if (!mount_number || bpf_map_lookup_elem(&host_mounts, &mount_number))
        return 0;
    struct inode *root = BPF_CORE_READ(task, fs, root.dentry, d_inode);
    struct container container = {
        .root = BPF_CORE_READ(root, i_ino),
        .root_device = BPF_CORE_READ(root, i_sb, s_dev),
    };
    /* A program in a mount namespace with the host's root directory is in no container. */
    if (container.root == host->root && container.root_device == host->root_device)
        return 0;
    struct cgroup *cgroup = cgroup_of(task);
    const struct cred *cred = BPF_CORE_READ(task, cred);
    container.mount_namespace = number_of_mounts(mounts);
    container.cgroup = BPF_CORE_READ(cgroup, kn, id);
    BPF_CORE_READ_INTO(&container.permitted, cred, cap_permitted);
    BPF_CORE_READ_INTO(&container.inheritable, cred, cap_inheritable);
    BPF_CORE_READ_INTO(&container.bounding, cred, cap_bset);
    u32 shared = shared_namespaces(namespaces, host);
    container.shared = shared;
    if (BPF_CORE_READ(task, atomic_flags) & NO_NEW_PRIVILEGES)
        container.shared |= 1 << CONFINEMENT_SHIFT;
    if (bpf_core_field_exists(task->seccomp))
        container.shared |= (BPF_CORE_READ(task, seccomp.mode) & 3) << (CONFINEMENT_SHIFT + 1);
    if (bpf_map_lookup_elem(&told_containers, &container))
        return 0;
    /* Who can't be told about must not be stopped: nobody would let it go on. */
    struct contained_event *told = bpf_ringbuf_reserve(&events, sizeof(*told), 0);
    if (!told) {
        count_lost();
        return 0;
    }
    struct membership *member = membership(task);
    describe(&told->event, EVENT_CONTAINED, task, member ? member->job : 0);
    told->contained.container = container;
    told->contained.is_held = 0;
    told->contained.pad = 0;
    /* By the stack: Linux 5.15 takes no value of a map from the memory of a ring buffer. */
    u64 now = told->event.time;
    bpf_map_update_elem(&told_containers, &container, &now, BPF_ANY);
    bool may_hold = member || (host->is_holding_all && is_made_in(task, mounts, host->network));
    /* What root starts by chroot in its own job is what it was before: root. */
    bool is_container = shared != ALL_SHARED || !job_of_cgroup(cgroup);
    if (may_hold && is_container && !bpf_send_signal(SIGNAL_STOP))
        told->contained.is_held = 1;
    bpf_ringbuf_submit(told, BPF_RB_FORCE_WAKEUP);
    return 0;
}

#endif
