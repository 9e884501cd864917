/* LD_PRELOAD: fsync and fdatasync of SQLite's write-ahead log fail with EIO while the file $FAULT_FILE exists; if it is
   empty, only once: then it is removed. If it begins with "k", the process is killed instead, as by `kill -9`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void kill_if_wanted(const char *path)
{
    char first = 0;
    int fault = open(path, O_RDONLY);
    if (fault < 0 || read(fault, &first, 1) != 1 || first != 'k')
        return;
    unlink(path);
    kill(getpid(), SIGKILL);
    pause();
}

static int fails(int descriptor)
{
    char link[64], path[4096];
    struct stat fault;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 4 || memcmp(path + length - 4, "-wal", 4) != 0 || stat(getenv("FAULT_FILE"), &fault) != 0)
        return 0;
    kill_if_wanted(getenv("FAULT_FILE"));
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
