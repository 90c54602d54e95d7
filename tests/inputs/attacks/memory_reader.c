/* Wants the memory of another process, by every way that root has.
 *
 *   memory_reader TECHNIQUE PID ATTEMPTS MARKER
 *
 * Each attempt is a process of its own, which copies the target's stack (where its environment lies) into memory that it
 * shares with this one: a reader that is killed after it got something has got it all the same. The last line says in how
 * many attempts the marker, or for `getfd` and `perf` a descriptor, was obtained.
 * "memory_reader list" names the techniques. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (256 << 10)

struct shared {
    volatile int ready, obtained, descriptor, impossible;
    char bytes[SIZE];
};

static struct shared *shared;
static pid_t target;
static unsigned long begin, end;
static char memory[64], directory[] = "/tmp/memory-reader-XXXXXX", plain_name[64], mount_point[64];

static void find_stack(void)
{
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/maps", target);
    FILE *maps = fopen(path, "r");
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "[stack]"))
            sscanf(line, "%lx-%lx", &begin, &end);
    if (!end)
        exit(3);
    if (end - begin > SIZE)
        begin = end - SIZE;
}

static void copy_from(int descriptor)
{
    if (descriptor >= 0)
        pread(descriptor, shared->bytes, end - begin, begin);
}

static void plain(void) { copy_from(open(memory, O_RDONLY)); }

static void plain_openat2(void)
{
    uint64_t how[3] = {O_RDONLY, 0, 0};
    copy_from(syscall(437, AT_FDCWD, memory, how, sizeof how));
}

static void relative(void)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/task", target);
    if (!chdir(path))
        copy_from(open("../../self/../" "self/root/proc/self/cwd/../mem", O_RDONLY));
}

static void by_symlink(void)
{
    if (!symlink(memory, plain_name))
        copy_from(open(plain_name, O_RDONLY));
}

static void by_thread(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/mem", target, target);
    copy_from(open(path, O_RDONLY));
}

static void by_vector(void)
{
    struct iovec vector = {shared->bytes, end - begin};
    syscall(SYS_preadv2, open(memory, O_RDONLY), &vector, 1, begin, 0, 0);
}

#if defined(__x86_64__)
static long call32(long number, long first, long second, long third, long fourth, long fifth)
{
    long result;
    register long r8 __asm__("r8") = 0;
    __asm__ volatile("int $0x80"
                     : "=a"(result), "+r"(r8)
                     : "a"(number), "b"(first), "c"(second), "d"(third), "S"(fourth), "D"(fifth)
                     : "memory", "r9", "r10", "r11");
    return result;
}

static void *low(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
}

static void open32(void)
{
    char *path = low();
    strcpy(path, memory);
    copy_from(call32(5, (long)path, O_RDONLY, 0, 0, 0));
}

static void ptrace32(void)
{
    if (call32(26, 16, target, 0, 0, 0) == 0) {
        waitpid(target, NULL, __WALL);
        for (unsigned long at = end - 65536; at < end; at += 8)
            *(long *)(shared->bytes + (at - begin)) = ptrace(PTRACE_PEEKDATA, target, at, 0);
    }
}
#endif

/* A process that shares this one's table of descriptors reads what the other opens. */
static int accomplice(void *unused)
{
    shared->ready = 1;
    for (;;)
        for (int descriptor = 3; descriptor < 8; descriptor++)
            if (pread(descriptor, shared->bytes, end - begin, begin) > 0)
                return 0;
}

static void by_accomplice(void)
{
    char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pid_t helper = clone(accomplice, stack + 65536, CLONE_FILES | SIGCHLD, NULL);
    shared->descriptor = helper;
    while (!shared->ready)
        ;
    open(memory, O_RDONLY);
    usleep(20000);
    kill(helper, SIGKILL);
}

static void other_mount(void)
{
    char path[128];
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return;
    if (!mount("proc", mount_point, "proc", 0, NULL)) {
        snprintf(path, sizeof path, "%s/%d/mem", mount_point, target);
        copy_from(open(path, O_RDONLY));
    }
}

/* In a pid namespace of its own the reader is the first process, which most signals don't reach. */
static void other_pids(void)
{
    if (unshare(CLONE_NEWPID))
        return;
    pid_t child = fork();
    if (!child) {
        plain();
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static void vm_read(void)
{
    struct iovec to = {shared->bytes, end - begin}, from = {(void *)begin, end - begin};
    process_vm_readv(target, &to, 1, &from, 1, 0);
}

static void attach(void)
{
    if (ptrace(PTRACE_ATTACH, target, 0, 0))
        return;
    waitpid(target, NULL, __WALL);
    for (unsigned long at = end - 65536; at < end; at += 8)
        *(long *)(shared->bytes + (at - begin)) = ptrace(PTRACE_PEEKDATA, target, at, 0);
}

static void seize(void)
{
    if (ptrace(PTRACE_SEIZE, target, 0, 0))
        return;
    ptrace(PTRACE_INTERRUPT, target, 0, 0);
    waitpid(target, NULL, __WALL);
    for (unsigned long at = end - 65536; at < end; at += 8)
        *(long *)(shared->bytes + (at - begin)) = ptrace(PTRACE_PEEKDATA, target, at, 0);
}

static void getfd(void)
{
    int pidfd = syscall(434, target, 0);
    for (int descriptor = 0; descriptor < 8; descriptor++)
        if (syscall(438, pidfd, descriptor, 0) >= 0)
            shared->obtained = 1;
}

static void perf(void)
{
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof attributes,
        .config = PERF_COUNT_SW_CPU_CLOCK,
        .sample_period = 1000,
        .sample_type = PERF_SAMPLE_STACK_USER,
        .sample_stack_user = 4096,
    };
    int descriptor = syscall(SYS_perf_event_open, &attributes, target, -1, -1, 0);
    if (descriptor >= 0 && mmap(NULL, 4096 * 9, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0) != MAP_FAILED)
        shared->obtained = 1;
}

struct ring {
    int descriptor;
    struct io_uring_sqe *entries;
    unsigned *tail, *mask, *array, *completed, *completed_mask;
    struct io_uring_cqe *completions;
};

static void *map_ring(struct ring *ring, off_t part, size_t size)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->descriptor, part);
}

static int open_ring(struct ring *ring)
{
    struct io_uring_params parameters = {0};
    ring->descriptor = syscall(SYS_io_uring_setup, 8, &parameters);
    if (ring->descriptor < 0)
        return -1;
    /* As much as there is, for older kernels map no more. */
    char *queue = map_ring(ring, IORING_OFF_SQ_RING, parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned));
    char *done = map_ring(ring, IORING_OFF_CQ_RING, parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe));
    ring->entries = map_ring(ring, IORING_OFF_SQES, parameters.sq_entries * sizeof(struct io_uring_sqe));
    if (queue == MAP_FAILED || done == MAP_FAILED || ring->entries == MAP_FAILED)
        return -1;
    ring->tail = (unsigned *)(queue + parameters.sq_off.tail);
    ring->mask = (unsigned *)(queue + parameters.sq_off.ring_mask);
    ring->array = (unsigned *)(queue + parameters.sq_off.array);
    ring->completed = (unsigned *)(done + parameters.cq_off.head);
    ring->completed_mask = (unsigned *)(done + parameters.cq_off.ring_mask);
    ring->completions = (struct io_uring_cqe *)(done + parameters.cq_off.cqes);
    return 0;
}

static struct io_uring_sqe *entry(struct ring *ring)
{
    unsigned index = *ring->tail & *ring->mask;
    ring->array[index] = index;
    memset(&ring->entries[index], 0, sizeof ring->entries[index]);
    __atomic_fetch_add(ring->tail, 1, __ATOMIC_RELEASE);
    return &ring->entries[index];
}

/* Submits, and waits until all is done; the result of the first. */
static int enter(struct ring *ring, unsigned count)
{
    syscall(SYS_io_uring_enter, ring->descriptor, count, count, IORING_ENTER_GETEVENTS, NULL, 0);
    int result = ring->completions[*ring->completed & *ring->completed_mask].res;
    __atomic_fetch_add(ring->completed, count, __ATOMIC_RELEASE);
    return result;
}

static void uring_steps(const char *path, unsigned flags)
{
    struct ring ring;
    if (open_ring(&ring))
        return;
    struct io_uring_sqe *request = entry(&ring);
    request->opcode = IORING_OP_OPENAT;
    request->fd = AT_FDCWD;
    request->addr = (uint64_t)path;
    request->open_flags = O_RDONLY;
    request->flags = flags;
    int descriptor = enter(&ring, 1);
    request = entry(&ring);
    request->opcode = IORING_OP_READ;
    request->fd = descriptor;
    request->addr = (uint64_t)shared->bytes;
    request->len = end - begin;
    request->off = begin;
    request->flags = flags;
    enter(&ring, 1);
}

static void uring(void) { uring_steps(memory, 0); }
static void uring_worker(void) { uring_steps(memory, IOSQE_ASYNC); }

static void uring_symlink(void)
{
    if (!symlink(memory, plain_name))
        uring_steps(plain_name, 0);
}

/* Opened into the ring's own table and read from there in one go: no descriptor ever. */
static void uring_direct(void)
{
    struct ring ring;
    int none = -1;
    if (open_ring(&ring) || syscall(SYS_io_uring_register, ring.descriptor, IORING_REGISTER_FILES, &none, 1))
        return;
    struct io_uring_sqe *request = entry(&ring);
    request->opcode = IORING_OP_OPENAT;
    request->fd = AT_FDCWD;
    request->addr = (uint64_t)memory;
    request->open_flags = O_RDONLY;
    request->file_index = 1;
    request->flags = IOSQE_IO_LINK;
    request = entry(&ring);
    request->opcode = IORING_OP_READ;
    request->fd = 0;
    request->addr = (uint64_t)shared->bytes;
    request->len = end - begin;
    request->off = begin;
    request->flags = IOSQE_FIXED_FILE;
    enter(&ring, 2);
    /* Before 5.17 the table was looked into when the requests were handed over, and was empty then. */
    for (unsigned back = 1; back <= 2; back++)
        if (ring.completions[(*ring.completed - back) & *ring.completed_mask].res == -EBADF)
            shared->impossible = 1;
}

static const struct technique {
    const char *name;
    void (*run)(void);
} techniques[] = {
    {"open", plain},
    {"openat2", plain_openat2},
    {"relative", relative},
    {"symlink", by_symlink},
    {"thread", by_thread},
    {"vector", by_vector},
    {"accomplice", by_accomplice},
    {"other-mount", other_mount},
    {"other-pids", other_pids},
    {"vm-read", vm_read},
    {"attach", attach},
    {"seize", seize},
    {"getfd", getfd},
    {"perf", perf},
    {"uring", uring},
    {"uring-worker", uring_worker},
    {"uring-symlink", uring_symlink},
    {"uring-direct", uring_direct},
#if defined(__x86_64__)
    {"open32", open32},
    {"ptrace32", ptrace32},
#endif
};

#define COUNT (sizeof techniques / sizeof *techniques)

int main(int count, char **words)
{
    if (count == 2 && !strcmp(words[1], "list")) {
        for (size_t at = 0; at < COUNT; at++)
            puts(techniques[at].name);
        return 0;
    }
    if (count != 5)
        return 64;
    target = atoi(words[2]);
    snprintf(memory, sizeof memory, "/proc/%d/mem", target);
    find_stack();
    if (!mkdtemp(directory))
        return 3;
    snprintf(plain_name, sizeof plain_name, "%s/plain", directory);
    snprintf(mount_point, sizeof mount_point, "%s/proc", directory);
    mkdir(mount_point, 0700);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    size_t at = 0;
    while (at < COUNT && strcmp(techniques[at].name, words[1]))
        at++;
    if (at == COUNT)
        return 64;
    int attempts = atoi(words[3]), leaks = 0, killed = 0;
    for (int attempt = 0; attempt < attempts; attempt++) {
        memset(shared, 0, sizeof *shared);
        pid_t reader = fork();
        if (!reader) {
            techniques[at].run();
            _exit(0);
        }
        int status;
        waitpid(reader, &status, 0);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
            killed++;
        /* The accomplice outlives its partner. */
        if (shared->descriptor > 0) {
            usleep(2000);
            kill(shared->descriptor, SIGKILL);
        }
        if (shared->obtained || memmem(shared->bytes, SIZE, words[4], strlen(words[4])))
            leaks++;
        unlink(plain_name);
        usleep(200);
    }
    rmdir(mount_point);
    rmdir(directory);
    printf("%s: obtained %d of %d, killed %d%s\n", words[1], leaks, attempts, killed,
           shared->impossible ? ", impossible with this kernel" : "");
    return 0;
}
