/* The server of pods: `serve PORT` answers TCP and UDP. The line `who` is answered with the port and the address of the
 * client; anything else comes back as it is. Without a port it waits for SIGTERM. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int bound(int kind, int port) {
    int fd = socket(AF_INET, kind, 0), on = 1;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (void *)&addr, sizeof addr) != 0) {
        perror("bind");
        exit(1);
    }
    return fd;
}

static int answer(char *text, int size, int port, struct sockaddr_in *client) {
    if (size == 4 && memcmp(text, "who\n", 4) == 0)
        return sprintf(text, "%d %s\n", port, inet_ntoa(client->sin_addr));
    return size;
}

static void datagrams(int fd, int port) {
    char text[4096];
    for (;;) {
        struct sockaddr_in client;
        socklen_t length = sizeof client;
        int size = recvfrom(fd, text, sizeof text, 0, (void *)&client, &length);
        if (size >= 0)
            sendto(fd, text, answer(text, size, port, &client), 0, (void *)&client, length);
    }
}

int main(int count, char **words) {
    signal(SIGTERM, _exit);
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (count < 2)
        for (;;)
            pause();
    int port = atoi(words[1]), tcp = bound(SOCK_STREAM, port), udp = bound(SOCK_DGRAM, port);
    listen(tcp, 1024);
    if (fork() == 0)
        datagrams(udp, port);
    for (;;) {
        struct sockaddr_in client;
        socklen_t length = sizeof client;
        char text[4096];
        int fd = accept(tcp, (void *)&client, &length), size;
        if (fd >= 0 && fork() == 0) {
            close(tcp);
            while ((size = read(fd, text, sizeof text)) > 0)
                if (write(fd, text, answer(text, size, port, &client)) < 0)
                    break;
            _exit(0);
        }
        close(fd);
    }
}
