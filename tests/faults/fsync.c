/* LD_PRELOAD: fsync and fdatasync of SQLite's write-ahead log fail with EIO while the file $FAULT_FILE exists; if it is
   empty, only once: then it is removed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int fails(int descriptor)
{
    char link[64], path[4096];
    struct stat fault;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 4 || memcmp(path + length - 4, "-wal", 4) != 0 || stat(getenv("FAULT_FILE"), &fault) != 0)
        return 0;
    if (fault.st_size == 0)
        unlink(getenv("FAULT_FILE"));
    errno = EIO;
    return 1;
}

int fsync(int descriptor)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return fails(descriptor) ? -1 : real(descriptor);
}

int fdatasync(int descriptor)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    return fails(descriptor) ? -1 : real(descriptor);
}
