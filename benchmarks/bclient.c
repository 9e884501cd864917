// bclient: an HTTP/1.1 client that costs next to nothing: bodies go out by sendfile(2) from memory, and what comes in is
// dropped in the kernel. Each connection is a thread and is kept alive.
//
//   bclient put|get PORT PATH SIZE CONNECTIONS COUNT [SECONDS [KEYS]]
//
// In PATH, %d stands for the number of the connection and %n for that of the request, counted modulo KEYS. Each
// connection makes COUNT requests, or, when SECONDS are given, as many as it can until they are over; 0 is no limit.
// Prints one line of JSON: secs, ok, bad, bytes, and the 50th and 99th percentile of a request's time in ms. SIZE is
// that of a body to put, and of one to be got, unless it is 0. The exit status is 1 when a request went wrong.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <time.h>
#include <unistd.h>

#define PATTERN (64u << 20)
#define BUFFER (256u << 10)
#define DROP (4u << 20)
#define SMALL (1u << 20)
#define MAX_CONNECTIONS 256

static int port, is_put, pattern;
static long count, keys;
static uint64_t size;
static const void *pattern_bytes;
static const char *path_template;
static double deadline;

typedef struct {
    pthread_t thread;
    int number, fd;
    char *buffer, *next; // what has come in and is not yet looked at: from next, `left` bytes
    size_t left;
    uint64_t ok, bad, bytes;
    double *times;
    size_t made, room;
} connection;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int dial(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return connect(fd, (void *)&to, sizeof to) ? -1 : fd;
}

static void expand(char *out, size_t room, int number, long request) {
    size_t used = 0;
    for (const char *p = path_template; *p && used + 24 < room; p++) {
        if (p[0] == '%' && (p[1] == 'd' || p[1] == 'n'))
            used += sprintf(out + used, "%ld", *++p == 'd' ? (long)number : keys ? request % keys : request);
        else
            out[used++] = *p;
    }
    out[used] = 0;
}

static int send_all(int fd, const char *head, size_t used, int flags) {
    return send(fd, head, used, MSG_NOSIGNAL | flags) == (ssize_t)used ? 0 : -1;
}

// A small body goes with its head in one call, as any client would do it.
static int send_both(int fd, char *head, size_t used) {
    struct iovec both[] = {{head, used}, {(void *)pattern_bytes, size}};
    struct msghdr message = {.msg_iov = both, .msg_iovlen = 2};
    return sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)(used + size) ? 0 : -1;
}

static int send_head(connection *c, long request) {
    char path[2048], head[4096];
    expand(path, sizeof path, c->number, request);
    int used = sprintf(head, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", is_put ? "PUT" : "GET", path, port);
    if (is_put)
        used += sprintf(head + used, "Content-Type: application/octet-stream\r\nContent-Length: %llu\r\n",
                        (unsigned long long)size);
    used += sprintf(head + used, "\r\n");
    if (is_put && size <= SMALL)
        return send_both(c->fd, head, used);
    return send_all(c->fd, head, used, is_put ? MSG_MORE : 0);
}

// An error ends the body early, not the request: the server may have answered already, and said why.
static void send_body(connection *c) {
    for (uint64_t sent = 0; sent < size;) {
        off_t offset = sent % PATTERN;
        size_t rest = size - sent, here = PATTERN - offset, step = rest < here ? rest : here;
        ssize_t n = sendfile(c->fd, pattern, &offset, step < (1u << 20) ? step : (1u << 20));
        if (n <= 0)
            return;
        sent += n;
    }
}

static int more(connection *c) {
    if (c->next != c->buffer)
        memmove(c->buffer, c->next, c->left);
    c->next = c->buffer;
    ssize_t n = recv(c->fd, c->buffer + c->left, BUFFER - 1 - c->left, 0);
    if (n <= 0)
        return -1;
    c->left += n;
    return 0;
}

static void skip(connection *c, size_t n) {
    c->next += n;
    c->left -= n;
}

static int drop(connection *c, uint64_t n) {
    size_t here = c->left < n ? c->left : n;
    skip(c, here);
    for (n -= here; n;) {
        ssize_t got = recv(c->fd, NULL, n < DROP ? n : DROP, MSG_TRUNC);
        if (got <= 0)
            return -1;
        n -= got;
    }
    return 0;
}

// Cuts off what comes before `end`, which is made a string.
static char *take_until(connection *c, const char *end) {
    char *found;
    while (!(found = memmem(c->next, c->left, end, strlen(end))))
        if (c->left == BUFFER - 1 || more(c))
            return NULL;
    char *taken = c->next;
    *found = 0;
    skip(c, found - taken + strlen(end));
    return taken;
}

static int drop_chunks(connection *c, uint64_t *length) {
    for (;;) {
        char *line = take_until(c, "\r\n");
        uint64_t chunk = line ? strtoull(line, NULL, 16) : 0;
        if (!line || drop(c, chunk + 2)) // with the CRLF after it, and there is one after the last
            return -1;
        if (!chunk)
            return 0;
        *length += chunk;
    }
}

static const char *header(const char *head, const char *name) {
    const char *found = strcasestr(head, name);
    return found ? found + strlen(name) : NULL;
}

// Returns the status, or -1 when there is no whole answer.
static int receive(connection *c, uint64_t *length, int *closes) {
    char *head;
    int status;
    do {
        if (!(head = take_until(c, "\r\n\r\n")))
            return -1;
        status = atoi(head + 9);
    } while (status == 100);
    const char *declared = header(head, "\r\ncontent-length:"), *close = header(head, "\r\nconnection: close");
    *closes = close != NULL;
    if (!declared)
        return header(head, "\r\ntransfer-encoding:") && drop_chunks(c, length) ? -1 : status;
    *length = strtoull(declared, NULL, 10);
    return drop(c, *length) ? -1 : status;
}

static void keep_time(connection *c, double seconds) {
    if (c->made == c->room)
        c->times = realloc(c->times, (c->room = c->room * 2 + 1024) * sizeof *c->times);
    c->times[c->made++] = seconds;
}

static int exchange(connection *c, long request) {
    uint64_t length = 0;
    int closes = 0;
    double start = now();
    if (send_head(c, request))
        return -1;
    if (is_put && size > SMALL)
        send_body(c);
    int status = receive(c, &length, &closes);
    keep_time(c, now() - start);
    if (status / 100 != 2 || (!is_put && size && length != size)) {
        fprintf(stderr, "status %d, %llu bytes\n", status, (unsigned long long)length);
        return -1;
    }
    c->ok++;
    c->bytes += is_put ? size : length;
    if (closes) {
        close(c->fd);
        c->fd = dial();
        c->left = 0;
    }
    return 0;
}

static void *work(void *of) {
    connection *c = of;
    c->next = c->buffer = malloc(BUFFER);
    c->fd = dial();
    for (long request = 0; (!count || request < count) && (!deadline || now() < deadline); request++)
        if (exchange(c, request)) {
            c->bad++;
            break;
        }
    close(c->fd);
    return NULL;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int report(connection *all, int connections, double seconds) {
    uint64_t ok = 0, bad = 0, bytes = 0;
    size_t made = 0;
    for (int i = 0; i < connections; i++)
        ok += all[i].ok, bad += all[i].bad, bytes += all[i].bytes, made += all[i].made;
    double *times = malloc((made + 1) * sizeof *times), *end = times;
    for (int i = 0; i < connections; i++)
        end = mempcpy(end, all[i].times, all[i].made * sizeof *times);
    qsort(times, made, sizeof *times, by_size);
    double p50 = made ? times[made / 2] * 1e3 : 0, p99 = made ? times[(made - 1) * 99 / 100] * 1e3 : 0;
    printf("{\"secs\":%.6f,\"ok\":%llu,\"bad\":%llu,\"bytes\":%llu,\"p50\":%.3f,\"p99\":%.3f}\n", seconds,
           (unsigned long long)ok, (unsigned long long)bad, (unsigned long long)bytes, p50, p99);
    return bad ? 1 : 0;
}

static void make_pattern(void) {
    pattern = memfd_create("pattern", 0);
    if (ftruncate(pattern, PATTERN))
        exit(2);
    uint64_t *words = mmap(NULL, PATTERN, PROT_READ | PROT_WRITE, MAP_SHARED, pattern, 0), x = 88172645463325252ull;
    for (size_t i = 0; i < PATTERN / 8; i++) { // xorshift64: what does not compress
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        words[i] = x;
    }
    pattern_bytes = words;
}

int main(int argc, char **argv) {
    static connection all[MAX_CONNECTIONS];
    int connections = argc > 6 ? atoi(argv[5]) : 0;
    if (connections < 1 || connections > MAX_CONNECTIONS) {
        fprintf(stderr, "usage: see the head of bclient.c\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    is_put = !strcmp(argv[1], "put");
    port = atoi(argv[2]);
    path_template = argv[3];
    size = strtoull(argv[4], NULL, 10);
    count = atol(argv[6]);
    keys = argc > 8 ? atol(argv[8]) : 0;
    make_pattern();
    double start = now(), limit = argc > 7 ? atof(argv[7]) : 0;
    deadline = limit ? start + limit : 0;
    for (int i = 0; i < connections; i++) {
        all[i].number = i;
        pthread_create(&all[i].thread, NULL, work, &all[i]);
    }
    for (int i = 0; i < connections; i++)
        pthread_join(all[i].thread, NULL);
    return report(all, connections, now() - start);
}
