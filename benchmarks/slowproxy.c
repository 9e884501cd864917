// slowproxy: a TCP proxy that makes a connection over loopback as slow as one to an S3 far away.
//
//   slowproxy PORT TO_PORT MB_PER_SECOND FIRST_BYTE_MS
//
// Each connection moves at most that many bytes a second in each direction, and every answer waits that long before
// its first byte. The buffers of its sockets are small, so that who sends feels the pace at once. No byte is looked
// at: an answer is what comes back after something was sent. Each connection has two threads, one per direction.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define STEP (64 << 10)
#define SOCKET_BUFFER (256 << 10)
// How far a direction that slept too long may catch up, in seconds.
#define SLACK 0.005

static double bytes_per_second, first_byte;
static int to_port;

typedef struct {
    int client, server;
    int asked; // something was sent since the last answer began
    int open;  // directions that still move
} pair;

typedef struct {
    pair *of;
    int is_answer;
} direction;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void sleep_until(double when) {
    struct timespec t = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (time_t)when) * 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int send_all(int fd, const char *from, size_t n) {
    while (n) {
        ssize_t sent = send(fd, from, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return -1;
        from += sent, n -= sent;
    }
    return 0;
}

static void finish(pair *p, int to) {
    shutdown(to, SHUT_WR);
    if (__sync_sub_and_fetch(&p->open, 1) == 0) {
        close(p->client);
        close(p->server);
        free(p);
    }
}

static void *move(void *argument) {
    direction d = *(direction *)argument;
    free(argument);
    pair *p = d.of;
    int from = d.is_answer ? p->server : p->client, to = d.is_answer ? p->client : p->server;
    char *buffer = malloc(STEP);
    double due = now();
    for (ssize_t n; (n = recv(from, buffer, STEP, 0)) > 0;) {
        if (!d.is_answer)
            __sync_lock_test_and_set(&p->asked, 1);
        else if (__sync_lock_test_and_set(&p->asked, 0))
            sleep_until(now() + first_byte);
        double earliest = now() - SLACK;
        due = (due > earliest ? due : earliest) + n / bytes_per_second;
        if (send_all(to, buffer, n))
            break;
        sleep_until(due);
    }
    shutdown(from, SHUT_RD);
    free(buffer);
    finish(p, to);
    return NULL;
}

static int make_socket(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1, buffer = SOCKET_BUFFER;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer); // before listen or connect; see tcp(7)
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    return fd;
}

static struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static void start(pair *p, int is_answer) {
    pthread_t thread;
    direction *d = malloc(sizeof *d);
    *d = (direction){p, is_answer};
    if (pthread_create(&thread, NULL, move, d)) {
        perror("pthread_create");
        exit(1);
    }
    pthread_detach(thread);
}

static void connect_through(int client) {
    struct sockaddr_in to = loopback(to_port);
    int server = make_socket(), one = 1;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(server, (void *)&to, sizeof to)) {
        close(client);
        close(server);
        return;
    }
    pair *p = malloc(sizeof *p);
    *p = (pair){client, server, 0, 2};
    start(p, 0);
    start(p, 1);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: see the head of slowproxy.c\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in at = loopback(atoi(argv[1]));
    to_port = atoi(argv[2]);
    bytes_per_second = atof(argv[3]) * 1e6;
    first_byte = atof(argv[4]) / 1e3;
    int listening = make_socket();
    if (bind(listening, (void *)&at, sizeof at) || listen(listening, 1024)) {
        perror("listen");
        return 1;
    }
    for (;;) {
        int client = accept(listening, NULL, NULL);
        if (client >= 0)
            connect_through(client);
    }
}
