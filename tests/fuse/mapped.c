// Programs that share the pages of a file, on one mount or on several.
//
//   mapped add FILE N          adds 1 N times to counters in three pages, each time to the next
//   mapped watch FILE SECONDS  looks at the counters through a read-only mapping and by read(2): none ever goes down
//
// One instruction adds. A page that can be stored into is on one node only, so no addition may be lost, whoever else adds.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGES = 3, PAGE = 4096 };

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int fd, volatile uint64_t *at[], double seconds)
{
    uint64_t last[PAGES] = {0}, looks = 0;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double end = now.tv_sec + now.tv_nsec / 1e9 + seconds;
    do {
        for (int i = 0; i < PAGES; i++) {
            uint64_t mapped = *at[i], read;
            if (pread(fd, &read, sizeof read, i * PAGE) != sizeof read)
                fail("read");
            uint64_t again = *at[i];
            if (mapped < last[i] || read < mapped || again < read) {
                fprintf(stderr, "page %d: mapped %lu, read %lu, mapped %lu after %lu\n", i, mapped, read, again, last[i]);
                exit(1);
            }
            last[i] = again;
        }
        looks++;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec + now.tv_nsec / 1e9 < end);
    printf("watched %lu times\n", looks);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int add = !strcmp(argv[1], "add");
    int fd = open(argv[2], add ? O_RDWR : O_RDONLY);
    if (fd < 0)
        fail("open");
    char *map = mmap(NULL, PAGES * PAGE, add ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        fail("mmap");
    volatile uint64_t *at[PAGES];
    for (int i = 0; i < PAGES; i++)
        at[i] = (volatile uint64_t *)(map + i * PAGE);
    if (!add) {
        watch(fd, at, atof(argv[3]));
        return 0;
    }
    for (long i = 0, n = atol(argv[3]); i < n; i++) {
        __atomic_fetch_add(at[i % PAGES], 1, __ATOMIC_SEQ_CST);
        // Slow enough that the others come in between.
        if (i % 16 == 15)
            usleep(1000);
    }
    if (munmap(map, PAGES * PAGE) || close(fd))
        fail("close");
    return 0;
}
