/* What the programs tell the monitor. `src/event.rs` reads these bytes: change both. */
#ifndef PORTCULLIS_EVENTS_H
#define PORTCULLIS_EVENTS_H

enum event_kind {
    EVENT_FORK = 1,        /* a process of a job was made; `parent` made it */
    EVENT_EXEC = 2,        /* a process of a job executes another program; followed by a `struct image` */
    EVENT_EXIT = 3,        /* the last thread of a process of a job has ended */
    EVENT_ENVIRONMENT = 4, /* the environment that a Worker gave to a process; followed by its bytes */
    EVENT_ESCAPE = 5,      /* a process of a job is in a cgroup that is not the job's; followed by a `struct escape` */
    EVENT_ACCESS = 6,      /* somebody wanted a guarded process' memory; followed by a `struct access` and an image */
    EVENT_STOPPED = 7,     /* a reader that was ended has stopped the guarded process `parent` */
    EVENT_HELD = 9,        /* a process that may be a shell has read its input, and was stopped until the monitor lets it go on */
    EVENT_SIGNAL = 10,     /* a process of a job sent a signal to the monitor; followed by a `struct sent_signal` */
    EVENT_PORT = 8,        /* a process of a job connected a UDP socket; followed by a `struct port` */
    EVENT_CONTAINED = 11,  /* a program is executed in a container in a new way; followed by a `struct contained` */
};

/* The beginning of each event. Times are nanoseconds since boot, suspended time included (CLOCK_BOOTTIME); process ids are
 * those of the initial pid namespace. */
struct event {
    u32 kind;
    u32 process;
    u64 time;
    u64 start;        /* when the process was made */
    u64 parent_start;
    u32 parent;
    u32 user;         /* real user id */
    u64 job;          /* the token that the monitor gave the job; 0 for none */
};

/* A program: bytes of `lengths` follow one another. Paths are components from the last to the first, each with a NUL. */
struct image {
    u16 executable_length;
    u16 directory_length;
    u16 arguments_length;
    u16 is_cut;           /* the arguments are longer */
    u32 links;            /* hard links of the executable: none when it has no name */
    u32 effective_user;
};

struct escape {
    u64 cgroup;           /* where it is now */
    u32 by;               /* who moved it; the process that made it, when it was made there */
    u32 is_birth;         /* it was made there (CLONE_INTO_CGROUP) */
};

struct access {
    u32 target;           /* the guarded process */
    u32 way;              /* enum access_way */
    u32 call;             /* the number of the system call or of io_uring's operation, as the caller's ABI counts */
    u32 is_ended;         /* the reader was sent SIGKILL before it got anything */
};

enum access_way {
    ACCESS_MEMORY_FILE = 1, /* /proc/PID/mem was opened or read */
    ACCESS_PTRACE = 2,
    ACCESS_VM_READ = 3,     /* process_vm_readv */
    ACCESS_VM_WRITE = 4,    /* process_vm_writev */
    ACCESS_DESCRIPTOR = 5,  /* pidfd_getfd */
    ACCESS_PERF = 6,        /* perf_event_open: samples hold pieces of the stack */
    ACCESS_IO_URING = 7,    /* any file of procfs that leads to memory, by io_uring */
};

struct sent_signal {
    u32 number;
    u32 pad;
};

/* What a container is for one of its programs: programs for which all of this is the same are judged once. */
struct container {
    u64 mount_namespace;  /* a number that no other gets as long as the machine runs */
    u64 cgroup;
    u64 root;             /* the inode of its root directory */
    u64 permitted, inheritable, bounding;
    u32 root_device;
    u32 shared;           /* bits: which namespaces are the host's, and how it is confined */
};

struct contained {
    struct container container;
    u32 is_held;          /* it was stopped before its first instruction, until the monitor lets it go on */
    u32 pad;
};

struct port {
    u8 address[16];       /* the destination; IPv4 as ::ffff:a.b.c.d */
    u16 destination_port;
    u16 source_port;
    u8 protocol;
    u8 pad[3];
};

#endif
