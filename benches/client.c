/* The measured client of the benchmarks: what a job does, without an interpreter's own time in the figures.
 *
 *   client connect ADDRESS PORT COUNT        new TCP connections; prints nanoseconds, one a line
 *   client send ADDRESS PORT MEBIBYTES       one TCP stream; prints its duration in nanoseconds
 *   client dns SERVER COUNT NAME             the same name COUNT times; prints nanoseconds, one a line
 *   client names SERVER COUNT ZONE           n0.ZONE, n1.ZONE, ...; the same
 *   client datagrams ADDRESS PORT COUNT      COUNT datagrams by one socket; prints nanoseconds for each hundred, one a line
 *   client scatter ADDRESS COUNT             one datagram each to COUNT different ports and addresses above ADDRESS
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static struct sockaddr_in peer(const char *address, int port)
{
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &peer.sin_addr) != 1)
        fail("inet_pton");
    return peer;
}

static void connections(struct sockaddr_in to, int count)
{
    /* A reset at close leaves no TIME-WAIT, which would use up the local ports. */
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    for (int i = 0; i < count; i++) {
        int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(socket_fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        long long start = now();
        if (connect(socket_fd, (struct sockaddr *)&to, sizeof to))
            fail("connect");
        printf("%lld\n", now() - start);
        close(socket_fd);
    }
}

static void stream(struct sockaddr_in to, long mebibytes)
{
    static char block[1 << 18];
    int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(socket_fd, (struct sockaddr *)&to, sizeof to))
        fail("connect");
    long long start = now();
    for (long long left = (long long)mebibytes << 20; left > 0;) {
        ssize_t sent = send(socket_fd, block, left < (long long)sizeof block ? (size_t)left : sizeof block, 0);
        if (sent < 0)
            fail("send");
        left -= sent;
    }
    shutdown(socket_fd, SHUT_WR);
    /* The peer closes when it has everything. */
    char end;
    while (recv(socket_fd, &end, 1, 0) > 0)
        ;
    printf("%lld\n", now() - start);
    close(socket_fd);
}

static size_t query(unsigned char *out, unsigned id, const char *name)
{
    static const unsigned char head[] = {0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0};
    memcpy(out, head, sizeof head);
    out[0] = id >> 8;
    out[1] = id;
    size_t at = sizeof head;
    while (*name) {
        size_t length = strcspn(name, ".");
        out[at++] = length;
        memcpy(out + at, name, length);
        at += length;
        name += length + (name[length] == '.');
    }
    memcpy(out + at, "\0\0\1\0\1", 5);
    return at + 5;
}

static void ask(struct sockaddr_in server, int count, const char *name, int different)
{
    int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {.tv_sec = 5};
    setsockopt(socket_fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(socket_fd, (struct sockaddr *)&server, sizeof server))
        fail("connect");
    for (int i = 0; i < count; i++) {
        unsigned char message[512], answer[4096];
        char full[256];
        snprintf(full, sizeof full, different ? "n%d.%s" : "%.0d%s", different ? i : 0, name);
        size_t length = query(message, i, full);
        long long start = now();
        if (send(socket_fd, message, length, 0) < 0)
            fail("send");
        ssize_t got = recv(socket_fd, answer, sizeof answer, 0);
        if (got < 12 || (answer[3] & 15) != 0 || answer[7] == 0) {
            fprintf(stderr, "%s: no address (%zd bytes, code %d)\n", full, got, got > 3 ? answer[3] & 15 : -1);
            exit(1);
        }
        printf("%lld\n", now() - start);
        /* Below the resolver's budget of 500 queries a second, of which 2000 may come at once. */
        if (different && i >= 1500)
            usleep(2500);
    }
    close(socket_fd);
}

static void datagrams(struct sockaddr_in to, int count)
{
    int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    for (int i = 0; i < count; i += 100) {
        long long start = now();
        for (int j = 0; j < 100; j++)
            if (sendto(socket_fd, "x", 1, 0, (struct sockaddr *)&to, sizeof to) < 0)
                fail("sendto");
        printf("%lld\n", now() - start);
    }
    close(socket_fd);
}

static void scatter(struct sockaddr_in to, int count)
{
    int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    unsigned first = ntohl(to.sin_addr.s_addr);
    for (int i = 0; i < count; i++) {
        to.sin_addr.s_addr = htonl(first + i / 50000);
        to.sin_port = htons(1000 + i % 50000);
        /* Blocked: the error is what is expected. */
        (void)!sendto(socket_fd, "x", 1, 0, (struct sockaddr *)&to, sizeof to);
        if (i % 200 == 199)
            usleep(20000); /* what a busy job does in a minute, not in a burst */
    }
    close(socket_fd);
}

int main(int argc, char **argv)
{
    if (argc == 5 && !strcmp(argv[1], "connect"))
        connections(peer(argv[2], atoi(argv[3])), atoi(argv[4]));
    else if (argc == 5 && !strcmp(argv[1], "send"))
        stream(peer(argv[2], atoi(argv[3])), atol(argv[4]));
    else if (argc == 5 && !strcmp(argv[1], "dns"))
        ask(peer(argv[2], 53), atoi(argv[3]), argv[4], 0);
    else if (argc == 5 && !strcmp(argv[1], "names"))
        ask(peer(argv[2], 53), atoi(argv[3]), argv[4], 1);
    else if (argc == 5 && !strcmp(argv[1], "datagrams"))
        datagrams(peer(argv[2], atoi(argv[3])), atoi(argv[4]));
    else if (argc == 4 && !strcmp(argv[1], "scatter"))
        scatter(peer(argv[2], 9), atoi(argv[3]));
    else {
        fputs("usage: see the first lines of client.c\n", stderr);
        return 64;
    }
    return 0;
}
