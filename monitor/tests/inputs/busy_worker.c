// A process with threads in every state that a runtime's threads are in, which notices when one of them is disturbed:
// a system call that returns what no system call returns, a signal that is lost or comes twice, registers that change.
// Runs until its standard input ends, then prints "ok" or what it saw, and ends with 0 or 1.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static atomic_int done;
static atomic_int failures;
static char failure[256];

static void fail(const char *what, long value) {
    if (atomic_fetch_add(&failures, 1) == 0)
        snprintf(failure, sizeof failure, "%s: %ld (%s)", what, value, strerror(errno));
}

// nanosleep sleeps its whole time, or says EINTR: nobody sends this thread signals with a handler.
static void *sleeper(void *unused) {
    while (!done) {
        struct timespec begin, end, pause = {0, 5000000};
        clock_gettime(CLOCK_MONOTONIC, &begin);
        if (syscall(SYS_nanosleep, &pause, 0) != 0) fail("nanosleep", errno);
        clock_gettime(CLOCK_MONOTONIC, &end);
        long ns = (end.tv_sec - begin.tv_sec) * 1000000000L + end.tv_nsec - begin.tv_nsec;
        if (ns < 5000000) fail("nanosleep came back early", ns);
    }
    return unused;
}

static void *poller(void *unused) {
    while (!done) {
        int ready = poll(0, 0, 3);
        if (ready != 0) fail("poll", ready);
        struct timespec pause = {0, 2000000};
        sigset_t all;
        sigfillset(&all);
        ready = ppoll(0, 0, &pause, &all);
        if (ready != 0) fail("ppoll", ready);
    }
    return unused;
}

static int pipes[2];

static void *reader(void *unused) {
    unsigned char expected = 0, got;
    for (;;) {
        ssize_t length = read(pipes[0], &got, 1);
        if (length == 0) return unused;
        if (length != 1) fail("read", length);
        else if (got != expected++) fail("read another byte", got);
    }
}

static void *writer(void *unused) {
    unsigned char next = 0;
    while (!done) {
        if (write(pipes[1], &next, 1) != 1) fail("write", errno);
        next++;
        usleep(700);
    }
    close(pipes[1]);
    return unused;
}

static uint64_t shifted(uint64_t value) { return value >> 7; }

// By a pointer: some processors remember until the next instruction that a call came that way.
static uint64_t (*volatile shift)(uint64_t) = shifted;

// Registers of a thread that makes no system calls.
static void *computer(void *unused) {
    while (!done) {
        uint64_t a = 1, b = 2, c = 3, d = 4;
        double x = 1.0, y = 3.0;
        for (int i = 0; i < 200000; i++) {
            a = a * 6364136223846793005ULL + b; b ^= shift(a); c += b * 3; d = (d << 1 | d >> 63) ^ c;
            x += y / 7.0; y = y * 0.999 + 1.0;
        }
        static _Thread_local uint64_t first; static _Thread_local double first_x;
        uint64_t sum = a ^ b ^ c ^ d;
        if (first == 0) { first = sum; first_x = x + y; }
        if (first != sum || first_x != x + y) fail("registers changed", (long)sum);
    }
    return unused;
}

#if defined(__aarch64__)
// Registers of the scalable vector extension, of which system calls keep the first 128 bits only.
__attribute__((target("+sve"))) static void *vector_computer(void *unused) {
    while (!done && getauxval(AT_HWCAP) & HWCAP_SVE) {
        uint64_t rounds = 1000000, changed, active, all;
        __asm__ volatile("ptrue p7.b\n"
                         "index z31.b, #0, #1\n"
                         "1: subs %0, %0, #1\n"
                         "b.ne 1b\n"
                         "ptrue p6.b\n"
                         "index z30.b, #0, #1\n"
                         "cmpne p5.b, p6/z, z30.b, z31.b\n"
                         "cntp %1, p6, p5.b\n"
                         "cntp %2, p6, p7.b\n"
                         "cntb %3\n"
                         : "+r"(rounds), "=r"(changed), "=r"(active), "=r"(all)
                         :
                         : "z30", "z31", "p5", "p6", "p7", "cc");
        if (changed != 0) fail("vectors changed", (long)changed);
        if (active != all) fail("predicates changed", (long)active);
    }
    return unused;
}
#else
static void *vector_computer(void *unused) { return unused; }
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static long turn;

static void *turner(void *mine) {
    while (!done) {
        pthread_mutex_lock(&lock);
        while (!done && turn % 2 != (long)mine) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_sec += 1;
            int waited = pthread_cond_timedwait(&condition, &lock, &until);
            if (waited != 0 && waited != ETIMEDOUT) fail("wait", waited);
        }
        turn++;
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&lock);
    }
    return mine;
}

// Signals with a value, in order, none lost: real-time signals are queued.
static atomic_long next_signal;

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)number; (void)context;
    long expected = atomic_fetch_add(&next_signal, 1);
    if (info->si_value.sival_int != (int)expected) fail("signal", info->si_value.sival_int);
    if (info->si_code != SI_QUEUE || info->si_pid != getpid()) fail("signal from", info->si_pid);
}

static pthread_t receiver_thread;

static void *receiver(void *unused) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    pthread_sigmask(SIG_UNBLOCK, &set, 0);
    while (!done) {
        struct timespec pause = {0, 1000000};
        if (nanosleep(&pause, 0) != 0 && errno != EINTR) fail("nanosleep with signals", errno);
    }
    pthread_sigmask(SIG_BLOCK, &set, 0);
    return unused;
}

static void *sender(void *unused) {
    long sent = 0;
    while (!done) {
        union sigval value = {.sival_int = (int)sent};
        int result = pthread_sigqueue(receiver_thread, SIGRTMIN + 3, value);
        if (result == 0) sent++;
        else if (result != EAGAIN) fail("sigqueue", result);
        usleep(300);
    }
    return unused;
}

static void *nothing(void *unused) { return unused; }

static void *maker(void *unused) {
    while (!done) {
        pthread_t thread;
        if (pthread_create(&thread, 0, nothing, 0) != 0) { fail("pthread_create", errno); return unused; }
        pthread_join(thread, 0);
        usleep(200);
    }
    return unused;
}

static void *parent(void *unused) {
    while (!done) {
        pid_t child = vfork();
        if (child == 0) { execl("/bin/true", "true", (char *)0); _exit(127); }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail("child", status);
    }
    return unused;
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN + 3, &action, 0);
    if (pipe(pipes)) return 2;
    void *(*starts[])(void *) = {sleeper, poller, reader, writer, computer, vector_computer, turner, turner, sender, maker, parent};
    pthread_t threads[sizeof starts / sizeof *starts];
    pthread_create(&receiver_thread, 0, receiver, 0);
    long turners = 0;
    for (unsigned i = 0; i < sizeof starts / sizeof *starts; i++)
        pthread_create(&threads[i], 0, starts[i], starts[i] == turner ? (void *)(turners++) : 0);
    puts("ready");
    fflush(stdout);
    char byte;
    ssize_t length;
    while ((length = read(0, &byte, 1)) != 0)
        if (length < 0) { fail("read of standard input", errno); break; }
    done = 1;
    for (unsigned i = 0; i < sizeof starts / sizeof *starts; i++) pthread_join(threads[i], 0);
    pthread_join(receiver_thread, 0);
    if (failures) printf("%d failures, first %s\n", failures, failure);
    else if (next_signal < 10) printf("only %ld signals\n", (long)next_signal);
    else puts("ok");
    return failures != 0;
}
