/* load: virtual clients that submit a job, poll it until it ends, and submit the next.
 *
 *     load PORT MODEL CONNECTIONS SECONDS POLL_US SEED ROWS_FILE
 *
 * One thread, one epoll, one keep-alive connection a client. A client has one request in flight, so every answer
 * belongs to a known job; wrk, whose script is told no connection, cannot say which submit a 202 answers.
 * The next poll is sent no sooner than POLL_US after the answer before it (timers to the microsecond).
 *
 * Each job makes one line in ROWS_FILE, tab-separated, instants in nanoseconds of CLOCK_MONOTONIC:
 *     counter  submitted_at  ended_at  polls  status  detail
 * detail: the list under "y" of a completed job, the task id of one still in flight at the end.
 * The counts of HTTP statuses and of broken connections go to standard output as one JSON object.
 *
 * Not promised: HTTP beyond what both sides speak (Content-Length, keep-alive).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { VALUES = 64, STEPS = 20001, BODY_BYTES = 1024, ANSWER_BYTES = 65536, ID_BYTES = 256, EVENTS = 256 };

typedef enum { SUBMITTING, WAITING, POLLING } State;

typedef struct Client {
    int fd;
    State state;
    uint64_t counter, submitted_at, due_at;
    unsigned polls;
    size_t have;
    struct Client *next; /* in the queue of waiting clients: one interval for all, so first in is first due */
    char id[ID_BYTES];
    char answer[ANSWER_BYTES + 1];
} Client;

static int epoll_fd, port;
static const char *model;
static uint64_t seed, poll_ns, next_counter, broken;
static unsigned long statuses[600];
static Client *waiting_first, *waiting_last;
static FILE *rows;

static void die(const char *why) {
    fprintf(stderr, "load: %s (%s)\n", why, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The input of a job: 64 numbers in [-1, 1] with four decimals. The first two spell the counter, so that no two
 * jobs of a seed are alike; the rest come from Park and Miller's generator. benchmarks/inputs.py writes the same. */
static size_t write_body(char *out, uint64_t counter) {
    char *at = out + sprintf(out, "{\"input\":[");
    uint64_t state = (seed * 7919 + counter * 104729 + 1) % 2147483647;
    if (state == 0) state = 1;
    for (int i = 0; i < VALUES; i++) {
        uint64_t step;
        if (i == 0) step = counter % STEPS;
        else if (i == 1) step = counter / STEPS % STEPS;
        else step = (state = state * 16807 % 2147483647) % STEPS;
        int value = (int)step - STEPS / 2;
        unsigned size = (unsigned)abs(value);
        if (i) *at++ = ',';
        if (value < 0) *at++ = '-';
        *at++ = (char)('0' + size / 10000);
        *at++ = '.';
        for (unsigned unit = 1000; unit; unit /= 10) *at++ = (char)('0' + size / unit % 10);
    }
    *at++ = ']';
    *at++ = '}';
    return (size_t)(at - out);
}

static void row(const Client *c, uint64_t ended_at, const char *status, const char *detail, size_t length) {
    fprintf(rows, "%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%u\t%s\t%.*s\n", c->counter, c->submitted_at, ended_at,
            c->polls, status, (int)length, detail);
}

static void open_connection(Client *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int yes = 1;
    c->have = 0;
    if ((c->fd = socket(AF_INET, SOCK_STREAM, 0)) < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) die("cannot connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
}

static void send_all(Client *c, const char *data, size_t length) {
    while (length) {
        ssize_t sent = send(c->fd, data, length, MSG_NOSIGNAL);
        if (sent >= 0) {
            data += sent;
            length -= (size_t)sent;
        } else if (errno == EAGAIN) {
            struct pollfd room = {.fd = c->fd, .events = POLLOUT};
            poll(&room, 1, 1000);
        } else {
            return; /* the read that follows finds the connection broken */
        }
    }
}

static void send_submit(Client *c) {
    char body[BODY_BYTES], request[2 * BODY_BYTES];
    c->counter = next_counter++;
    c->polls = 0;
    c->state = SUBMITTING;
    size_t length = write_body(body, c->counter);
    int head = snprintf(request, sizeof request,
                        "POST /predict/%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n\r\n", model, port, length);
    memcpy(request + head, body, length);
    c->submitted_at = now_ns();
    send_all(c, request, (size_t)head + length);
}

static void send_poll(Client *c) {
    char request[BODY_BYTES];
    int length = snprintf(request, sizeof request, "GET /result/%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", c->id, port);
    c->polls++;
    c->state = POLLING;
    send_all(c, request, (size_t)length);
}

static void wait_to_poll(Client *c) {
    c->state = WAITING;
    c->due_at = now_ns() + poll_ns;
    c->next = NULL;
    if (waiting_last) waiting_last->next = c;
    else waiting_first = c;
    waiting_last = c;
}

/* The text of a JSON member: what stands after "name":, blanks skipped; NULL where there is none. */
static char *member(char *body, const char *name) {
    char quoted[32];
    snprintf(quoted, sizeof quoted, "\"%s\":", name);
    char *at = strstr(body, quoted);
    return at ? at + strlen(quoted) + strspn(at + strlen(quoted), " ") : NULL;
}

static void copy_string(char *out, size_t room, const char *text) {
    size_t length = text && *text == '"' ? strcspn(text + 1, "\"") : 0;
    if (length >= room) length = room - 1;
    if (length) memcpy(out, text + 1, length);
    out[length] = 0;
}

static void on_end(Client *c, char *body) {
    char status[32];
    copy_string(status, sizeof status, member(body, "status"));
    char *y = strcmp(status, "completed") ? NULL : member(body, "y");
    row(c, now_ns(), *status ? status : "unreadable", y ? y : "", y && *y == '[' ? strcspn(y, "]") + 1 : 0);
    send_submit(c);
}

static void on_answer(Client *c, int status, char *body) {
    if (status > 0 && status < 600) statuses[status]++;
    if (status == 200) {
        on_end(c, body);
    } else if (c->state == SUBMITTING && status == 202) {
        copy_string(c->id, sizeof c->id, member(body, "task_id"));
        if (!*c->id) die("a 202 without task_id");
        wait_to_poll(c);
    } else if (c->state == SUBMITTING) {
        row(c, now_ns(), "refused", "", 0);
        *c->id = 0; /* submits again after one interval */
        wait_to_poll(c);
    } else if (status == 202 || status >= 500) {
        wait_to_poll(c);
    } else {
        row(c, now_ns(), "gone", "", 0);
        send_submit(c);
    }
}

static void on_broken(Client *c) {
    close(c->fd);
    open_connection(c);
    if (c->state == WAITING) return; /* closed while idle: nothing was under way */
    broken++;
    if (c->state == SUBMITTING) {
        row(c, now_ns(), "unanswered", "", 0);
        *c->id = 0;
    }
    wait_to_poll(c);
}

static void on_readable(Client *c) {
    ssize_t got = recv(c->fd, c->answer + c->have, ANSWER_BYTES - c->have, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        on_broken(c);
        return;
    }
    c->have += (size_t)got;
    c->answer[c->have] = 0;
    char *blank = strstr(c->answer, "\r\n\r\n");
    if (!blank) return;
    char *length = strcasestr(c->answer, "\r\ncontent-length:");
    if (!length || length > blank) die("an answer without Content-Length");
    size_t total = (size_t)(blank + 4 - c->answer) + strtoul(length + 17, NULL, 10);
    if (total > ANSWER_BYTES) die("an answer too long");
    if (c->have < total) return;
    c->have = 0;
    on_answer(c, atoi(c->answer + 9), blank + 4);
}

static void run_until(uint64_t end_at) {
    for (uint64_t now = now_ns(); now < end_at; now = now_ns()) {
        uint64_t wake_at = waiting_first && waiting_first->due_at < end_at ? waiting_first->due_at : end_at;
        if (wake_at > now) {
            struct timespec wait = {.tv_sec = (time_t)((wake_at - now) / 1000000000u),
                                    .tv_nsec = (long)((wake_at - now) % 1000000000u)};
            struct pollfd any = {.fd = epoll_fd, .events = POLLIN};
            ppoll(&any, 1, &wait, NULL);
        }
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll_fd, events, EVENTS, 0);
        for (int i = 0; i < ready; i++) on_readable(events[i].data.ptr);
        for (now = now_ns(); waiting_first && waiting_first->due_at <= now;) {
            Client *c = waiting_first;
            if (!(waiting_first = c->next)) waiting_last = NULL;
            if (*c->id) send_poll(c);
            else send_submit(c);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 8) {
        fprintf(stderr, "load PORT MODEL CONNECTIONS SECONDS POLL_US SEED ROWS_FILE\n");
        return 2;
    }
    port = atoi(argv[1]);
    model = argv[2];
    size_t clients = strtoul(argv[3], NULL, 10);
    uint64_t run_ns = (uint64_t)(atof(argv[4]) * 1e9);
    poll_ns = strtoull(argv[5], NULL, 10) * 1000;
    seed = strtoull(argv[6], NULL, 10);
    if (!(rows = fopen(argv[7], "w"))) die("cannot write the rows");
    epoll_fd = epoll_create1(0);
    Client *all = calloc(clients, sizeof *all);
    if (epoll_fd < 0 || !all) die("cannot start");

    uint64_t end_at = now_ns() + run_ns;
    for (size_t i = 0; i < clients; i++) open_connection(&all[i]);
    for (size_t i = 0; i < clients; i++) send_submit(&all[i]);
    run_until(end_at);

    for (size_t i = 0; i < clients; i++) {
        Client *c = &all[i];
        if (c->state == SUBMITTING) row(c, 0, "unanswered", "", 0);
        else if (*c->id) row(c, 0, "in-flight", c->id, strlen(c->id));
    }
    if (fclose(rows)) die("cannot write the rows");
    printf("{\"broken\":%" PRIu64 ",\"statuses\":{", broken);
    const char *comma = "";
    for (int i = 0; i < 600; i++) {
        if (statuses[i]) {
            printf("%s\"%d\":%lu", comma, i, statuses[i]);
            comma = ",";
        }
    }
    printf("}}\n");
    return 0;
}
