/*
 * What scripts/bench-io.sh runs in the guest and, for TCP, at the other end on the host.
 *
 *   bench-io read  FILE BYTES          reads FILE from its beginning, 1 MiB at a time, past the page cache
 *   bench-io write FILE BYTES          writes it
 *   bench-io random FILE BYTES COUNT   reads COUNT blocks of 4 KiB anywhere in it, always 16 of them under way
 *   bench-io send    ADDRESS PORT BYTES   connects and sends
 *   bench-io receive ADDRESS PORT BYTES   connects and receives
 *   bench-io sink    PORT              accepts, and receives until the end; prints the seconds from the first byte to the last
 *   bench-io source  PORT BYTES        accepts, and sends; prints the seconds until the other end has it all
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (1 << 20)
#define BLOCK 4096
#define DEPTH 16

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static char *memory(size_t size)
{
	void *memory;
	if (posix_memalign(&memory, 4096, size))
		fail("memory");
	memset(memory, 0x5a, size);
	return memory;
}

static void sequential(const char *path, long long bytes, int writes)
{
	int file = open(path, (writes ? O_WRONLY : O_RDONLY) | O_DIRECT);
	char *buffer = memory(CHUNK);
	if (file < 0)
		fail(path);
	for (long long at = 0; at < bytes; at += CHUNK) {
		ssize_t length = writes ? pwrite(file, buffer, CHUNK, at) : pread(file, buffer, CHUNK, at);
		if (length != CHUNK)
			fail(writes ? "write" : "read");
	}
	close(file);
}

static uint64_t seed = 88172645463325252ull;

static uint64_t anything(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static void prepare(struct iocb *request, int file, long long bytes, char *buffer, int slot)
{
	memset(request, 0, sizeof *request);
	request->aio_data = slot;
	request->aio_lio_opcode = IOCB_CMD_PREAD;
	request->aio_fildes = file;
	request->aio_buf = (uintptr_t)(buffer + slot * BLOCK);
	request->aio_nbytes = BLOCK;
	request->aio_offset = anything() % (bytes / BLOCK) * BLOCK;
}

static void random_reads(const char *path, long long bytes, long count)
{
	int file = open(path, O_RDONLY | O_DIRECT);
	char *buffer = memory(DEPTH * BLOCK);
	aio_context_t context = 0;
	struct iocb requests[DEPTH], *pending[DEPTH];
	struct io_event events[DEPTH];
	long submitted = 0, done = 0;
	if (file < 0)
		fail(path);
	if (syscall(SYS_io_setup, DEPTH, &context) < 0)
		fail("io_setup");
	for (int slot = 0; slot < DEPTH; slot++, submitted++) {
		prepare(&requests[slot], file, bytes, buffer, slot);
		pending[slot] = &requests[slot];
	}
	if (syscall(SYS_io_submit, context, DEPTH, pending) != DEPTH)
		fail("io_submit");
	while (done < count) {
		long ended = syscall(SYS_io_getevents, context, 1, DEPTH, events, NULL);
		int again = 0;
		if (ended < 1)
			fail("io_getevents");
		for (long i = 0; i < ended; i++) {
			if (events[i].res != BLOCK)
				fail("a read");
			if (submitted < count) {
				prepare(&requests[events[i].data], file, bytes, buffer, events[i].data);
				pending[again++] = &requests[events[i].data];
				submitted++;
			}
		}
		done += ended;
		if (again && syscall(SYS_io_submit, context, again, pending) != again)
			fail("io_submit");
	}
}

static int connect_to(const char *address, const char *port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	int stream = socket(AF_INET, SOCK_STREAM, 0);
	inet_pton(AF_INET, address, &to.sin_addr);
	for (int i = 0; connect(stream, (struct sockaddr *)&to, sizeof to); i++) {
		if (i == 50)
			fail("connect");
		usleep(100000);
	}
	return stream;
}

static int accept_one(const char *port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1, stream;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1))
		fail("listen");
	stream = accept(listener, NULL, NULL);
	if (stream < 0)
		fail("accept");
	return stream;
}

static void send_all(int stream, long long bytes)
{
	char *buffer = memory(1 << 17);
	while (bytes > 0) {
		ssize_t length = write(stream, buffer, bytes < 1 << 17 ? bytes : 1 << 17);
		if (length < 1)
			fail("write");
		bytes -= length;
	}
	shutdown(stream, SHUT_WR);
	/* The other end closes when it has it all. */
	while (read(stream, buffer, 1) > 0)
		;
}

static long long receive_all(int stream, double *first)
{
	char *buffer = memory(1 << 17);
	long long bytes = 0;
	ssize_t length;
	while ((length = read(stream, buffer, 1 << 17)) > 0) {
		if (!bytes && first)
			*first = now();
		bytes += length;
	}
	close(stream);
	return bytes;
}

int main(int count, char **words)
{
	const char *what = count > 1 ? words[1] : "";
	double start = 0;
	if (count == 4 && (!strcmp(what, "read") || !strcmp(what, "write"))) {
		sequential(words[2], atoll(words[3]), what[0] == 'w');
	} else if (count == 5 && !strcmp(what, "random")) {
		random_reads(words[2], atoll(words[3]), atol(words[4]));
	} else if (count == 5 && !strcmp(what, "send")) {
		send_all(connect_to(words[2], words[3]), atoll(words[4]));
	} else if (count == 5 && !strcmp(what, "receive")) {
		if (receive_all(connect_to(words[2], words[3]), NULL) != atoll(words[4]))
			fail("too little was received");
	} else if (count == 3 && !strcmp(what, "sink")) {
		long long bytes = receive_all(accept_one(words[2]), &start);
		printf("%lld %.6f\n", bytes, now() - start);
	} else if (count == 4 && !strcmp(what, "source")) {
		int stream = accept_one(words[2]);
		start = now();
		send_all(stream, atoll(words[3]));
		printf("%s %.6f\n", words[3], now() - start);
	} else {
		fprintf(stderr, "bench-io: see its source for what it does\n");
		return 2;
	}
	return 0;
}
