/* Which jobs have connections to other machines: what the hooks on a job's cgroup, which know connections, tell the programs
 * that look at streams. Numbers of the kernel's and of the monitor's are in maps of their own, so that neither overwrites the
 * other's: a job is idle when the monitor has found no connection after the last one that was counted. */
#ifndef PORTCULLIS_ACTIVITY_H
#define PORTCULLIS_ACTIVITY_H

/* How many connections a job has made; only for jobs whose streams are to be looked at. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, __u64);
    __type(value, __u64);
} connections_made SEC(".maps");

/* At which of these numbers the monitor saw that there was none. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, __u64);
    __type(value, __u64);
} connections_idle SEC(".maps");

/* The same for all jobs together: what was made, and where the monitor saw that there was none. */
#define ALL_MADE 0
#define ALL_IDLE 1
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, __u64);
} all_connections SEC(".maps");

/* A job has another way for data than before: its shells are looked at again. The job's own number comes first, so that who
 * reads them in the other order never takes a busy job for idle. */
static __always_inline void count_connection(__u64 job)
{
    __u64 *made = bpf_map_lookup_elem(&connections_made, &job);
    if (!made)
        return;
    __sync_fetch_and_add(made, 1);
    __u32 key = ALL_MADE;
    __u64 *all = bpf_map_lookup_elem(&all_connections, &key);
    if (all)
        __sync_fetch_and_add(all, 1);
}

static __always_inline bool is_any_connected(void)
{
    __u32 made_key = ALL_MADE, idle_key = ALL_IDLE;
    __u64 *made = bpf_map_lookup_elem(&all_connections, &made_key);
    __u64 *idle = bpf_map_lookup_elem(&all_connections, &idle_key);
    return made && idle && *made != *idle;
}

/* How many connections a job has made; 0 when it has none now, or its streams are not looked at. */
static __always_inline __u64 connections_of(__u64 job)
{
    __u64 *made = bpf_map_lookup_elem(&connections_made, &job);
    __u64 *idle = bpf_map_lookup_elem(&connections_idle, &job);
    return made && !(idle && *idle == *made) ? *made : 0;
}

#endif
