// What a job does to exhaust its guard. Usage: flood flows ADDRESS NUMBER | bytes ADDRESS GIBIBYTES | spawn NUMBER
#include <arpa/inet.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static struct sockaddr_in to(const char *address, unsigned port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &name.sin_addr) != 1) exit(64);
    return name;
}

int main(int argc, char **argv) {
    if (argc < 3) return 64;
    unsigned long done = 0, refused = 0;
    if (strcmp(argv[1], "spawn") == 0) {
        unsigned long number = strtoul(argv[2], NULL, 10);
        char *const program[] = {"/bin/true", NULL};
        for (; done < number; done++) {
            pid_t child;
            if (posix_spawn(&child, program[0], NULL, NULL, program, environ) != 0) { refused++; continue; }
            waitpid(child, NULL, 0);
        }
    } else {
        if (argc < 4) return 64;
        unsigned long number = strtoul(argv[3], NULL, 10);
        static char data[60000];
        const char *secret = getenv("S");
        for (size_t at = 0; secret && at + strlen(secret) < sizeof data; at += 1000) memcpy(data + at, secret, strlen(secret));
        int is_bytes = strcmp(argv[1], "bytes") == 0;
        size_t size = is_bytes ? sizeof data : 100;
        unsigned long datagrams = is_bytes ? number * (1ul << 30) / size + 1 : number;
        int sender = -1;
        for (; done < datagrams; done++) {
            // A socket for each 50 000 ports, so that no two are of one flow.
            if (done % 50000 == 0) {
                if (sender >= 0) close(sender);
                sender = socket(AF_INET, SOCK_DGRAM, 0);
            }
            struct sockaddr_in name = to(argv[2], is_bytes ? 9 : 10000 + done % 50000);
            if (sendto(sender, data, size, 0, (struct sockaddr *)&name, sizeof name) < 0) refused++;
        }
    }
    printf("%s %lu, refused %lu\n", argv[1], done, refused);
    return 0;
}
