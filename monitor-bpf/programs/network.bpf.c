/* Whose the calls of a job are: hooks on the job's cgroup, which run in the calling process whatever network namespace it is
 * in. Only contexts that are part of the kernel's stable interface are read, so this needs no BTF of the kernel. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "activity.h"

char LICENSE[] SEC("license") = "GPL";

/* IPPROTO_TCP */
#define TCP 6
/* IPPROTO_UDP */
#define UDP 17
/* The port of name servers; only what goes there is redirected. */
#define DNS 53
/* AF_INET */
#define IPV4 2
/* SOCK_RAW */
#define RAW 3
/* The result of a hook that lets the call pass. */
#define PASS 1

/* Reads a field of a connection where it stands: the verifier refuses a computed address of one, which clang makes when it
 * joins two reads. */
#define FIELD(connection, field)                                          \
    ({                                                                    \
        __u32 value;                                                      \
        asm volatile("%0 = *(u32 *)(%1 + %2)"                             \
                     : "=r"(value)                                        \
                     : "r"(connection), "i"(__builtin_offsetof(struct bpf_sock_ops, field))); \
        value;                                                            \
    })

/* One flow, as `src/network.rs` asks for it. IPv4 addresses as ::ffff:a.b.c.d; ports in the host's byte order. */
struct flow {
    __u32 destination[4];
    __u16 destination_port;
    __u16 source_port;
    __u8 protocol;
    __u8 pad[3];
};

struct client {
    __u16 source_port;
    __u8 protocol;
    __u8 pad;
};

/* Who made a call. */
struct owner {
    __u32 process;
    __u32 user;
    __u64 time; /* nanoseconds since boot */
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 8192);
    __type(key, struct flow);
    __type(value, struct owner);
} flows SEC(".maps");

/* The last one that asked a name server from a client port: of a redirected query only that is known. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 4096);
    __type(key, struct client);
    __type(value, struct owner);
} clients SEC(".maps");

/* The last one that made a raw socket of a protocol: its packets have no ports. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 1024);
    __type(key, __u32);
    __type(value, struct owner);
} raw_sockets SEC(".maps");

/* Whose hooks these are: the monitor's token for the job. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} own_job SEC(".maps");

static __always_inline void count_own(struct flow *flow)
{
    __u32 key = 0;
    __u64 *job = bpf_map_lookup_elem(&own_job, &key);
    bool is_v4 = !flow->destination[0] && !flow->destination[1] && flow->destination[2] == bpf_htonl(0xffff);
    bool is_loopback = is_v4 ? (bpf_ntohl(flow->destination[3]) >> 24) == 127
                             : !flow->destination[0] && !flow->destination[1] && !flow->destination[2] &&
                                   flow->destination[3] == bpf_htonl(1);
    if (job && !is_loopback)
        count_connection(*job);
}

/* Who is connecting, by task: the hook on the begin of a connection runs in the same call of the same task, and can't ask who
 * that is. Cheaper than memory of a socket, which has to be made for each. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 4096);
    __type(key, __u64);
    __type(value, struct owner);
} connecting SEC(".maps");

static __always_inline void note_connecting(struct owner *owner)
{
    __u64 task = bpf_get_current_task();
    struct owner *known = bpf_map_lookup_elem(&connecting, &task);
    if (known)
        *known = *owner;
    else
        bpf_map_update_elem(&connecting, &task, owner, BPF_ANY);
}

/* The last datagram of a socket: whose it was, where it went, and when that was noted. */
struct last_call {
    struct owner owner;
    struct flow flow;
    __u64 tick;
};

struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct last_call);
} last_calls SEC(".maps");

static __always_inline struct owner caller(void)
{
    struct owner owner = {
        .process = bpf_get_current_pid_tgid() >> 32,
        .user = (__u32)bpf_get_current_uid_gid(),
        .time = bpf_ktime_get_boot_ns(),
    };
    return owner;
}

static __always_inline void note_first(struct flow *flow, struct owner *owner)
{
    bpf_map_update_elem(&flows, flow, owner, BPF_ANY);
    if (flow->destination_port == DNS) {
        struct client client = {.source_port = flow->source_port, .protocol = flow->protocol};
        bpf_map_update_elem(&clients, &client, owner, BPF_ANY);
    }
}

static __always_inline void note(struct flow *flow, struct owner *owner)
{
    /* A datagram after the other on one socket: written once a process. */
    struct owner *known = bpf_map_lookup_elem(&flows, flow);
    if (known && known->process == owner->process)
        known->time = owner->time;
    else
        note_first(flow, owner);
}

static __always_inline void map_address(struct flow *flow, __u32 address)
{
    flow->destination[2] = bpf_htonl(0xffff);
    flow->destination[3] = address;
}


static __always_inline int connects(struct bpf_sock_addr *call, struct flow *flow)
{
    struct owner owner = caller();
    struct bpf_sock *socket = call->sk;
    if (!socket)
        return PASS;
    if (flow->protocol == UDP)
        count_own(flow);
    else
        note_connecting(&owner);
    /* A socket that has a port already, by `bind` or an earlier call; else the port comes after this hook. */
    if (socket->src_port) {
        flow->source_port = socket->src_port;
        note(flow, &owner);
    }
    return PASS;
}

SEC("cgroup/connect4")
int connects4(struct bpf_sock_addr *call)
{
    struct flow flow = {.destination_port = bpf_ntohs(call->user_port), .protocol = call->protocol};
    map_address(&flow, call->user_ip4);
    return connects(call, &flow);
}

SEC("cgroup/connect6")
int connects6(struct bpf_sock_addr *call)
{
    struct flow flow = {.destination_port = bpf_ntohs(call->user_port), .protocol = call->protocol};
    flow.destination[0] = call->user_ip6[0];
    flow.destination[1] = call->user_ip6[1];
    flow.destination[2] = call->user_ip6[2];
    flow.destination[3] = call->user_ip6[3];
    return connects(call, &flow);
}

static __always_inline bool is_same_flow(struct flow *one, struct flow *other)
{
    return one->destination[3] == other->destination[3] && one->destination[2] == other->destination[2] &&
           one->destination[1] == other->destination[1] && one->destination[0] == other->destination[0] &&
           one->destination_port == other->destination_port && one->source_port == other->source_port &&
           one->protocol == other->protocol;
}

static __always_inline int sends(struct bpf_sock_addr *call, struct flow *flow)
{
    struct bpf_sock *socket = call->sk;
    if (!socket)
        return PASS;
    flow->source_port = socket->src_port;
    /* Most datagrams follow another one of the same process to the same place, some hundred thousand a second: within a tick
     * of the kernel's clock nothing new is noted of them. */
    __u32 process = bpf_get_current_pid_tgid() >> 32;
    __u64 tick = bpf_jiffies64();
    struct last_call *last = bpf_sk_storage_get(&last_calls, socket, NULL, BPF_SK_STORAGE_GET_F_CREATE);
    if (last && last->tick == tick && last->owner.process == process && is_same_flow(&last->flow, flow))
        return PASS;
    struct owner owner = caller();
    note(flow, &owner);
    if (last) {
        last->owner = owner;
        last->flow = *flow;
        last->tick = tick;
    }
    return PASS;
}

SEC("cgroup/sendmsg4")
int sends4(struct bpf_sock_addr *call)
{
    struct flow flow = {.destination_port = bpf_ntohs(call->user_port), .protocol = call->protocol};
    map_address(&flow, call->user_ip4);
    return sends(call, &flow);
}

SEC("cgroup/sendmsg6")
int sends6(struct bpf_sock_addr *call)
{
    struct flow flow = {.destination_port = bpf_ntohs(call->user_port), .protocol = call->protocol};
    flow.destination[0] = call->user_ip6[0];
    flow.destination[1] = call->user_ip6[1];
    flow.destination[2] = call->user_ip6[2];
    flow.destination[3] = call->user_ip6[3];
    return sends(call, &flow);
}

SEC("cgroup/sock_create")
int makes_socket(struct bpf_sock *socket)
{
    if (socket->type != RAW)
        return PASS;
    struct owner owner = caller();
    __u32 protocol = socket->protocol;
    bpf_map_update_elem(&raw_sockets, &protocol, &owner, BPF_ANY);
    return PASS;
}

static __always_inline void remote_address(struct bpf_sock_ops *connection, struct flow *flow)
{
    if (connection->family == IPV4) {
        map_address(flow, FIELD(connection, remote_ip4));
    } else {
        flow->destination[0] = FIELD(connection, remote_ip6[0]);
        flow->destination[1] = FIELD(connection, remote_ip6[1]);
        flow->destination[2] = FIELD(connection, remote_ip6[2]);
        flow->destination[3] = FIELD(connection, remote_ip6[3]);
    }
}

/* A TCP connection begins: its port is chosen and its first packet is not sent yet; or it is established, from this side or
 * from the other, and nothing was read from it yet. */
SEC("sockops")
int begins(struct bpf_sock_ops *connection)
{
    if (connection->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || connection->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
        struct flow flow = {};
        remote_address(connection, &flow);
        count_own(&flow);
        return PASS;
    }
    if (connection->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
        return PASS;
    __u64 task = bpf_get_current_task();
    struct owner *owner = bpf_map_lookup_elem(&connecting, &task);
    if (!owner)
        return PASS;
    struct flow flow = {
        .destination_port = bpf_ntohl(connection->remote_port),
        .source_port = connection->local_port,
        .protocol = TCP,
    };
    remote_address(connection, &flow);
    struct owner copy = *owner;
    note_first(&flow, &copy);
    return PASS;
}
