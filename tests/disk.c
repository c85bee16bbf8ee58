/* A disk that is slow to flush, and one that keeps nothing but what was flushed.

Loaded before the C library (LD_PRELOAD). While there is a file DISK_SLOW, each fsync takes as many microseconds as it
says. With DISK_IMAGE, a directory gets a copy of each file as it was at its last fsync, and a file that was removed
goes from it at the next fsync of its directory: what a power loss would leave, at the worst.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void be_slow(void) {
    const char *path = getenv("DISK_SLOW");
    FILE *file = path ? fopen(path, "r") : NULL;
    long microseconds = 0;
    if (!file) return;
    if (fscanf(file, "%ld", &microseconds) == 1) {
        struct timespec wait = {microseconds / 1000000, (microseconds % 1000000) * 1000};
        nanosleep(&wait, NULL);
    }
    fclose(file);
}

static void copy(int fd, const char *image, const char *name) {
    char made[PATH_MAX], kept[PATH_MAX], buffer[65536];
    ssize_t length;
    off_t at = 0;
    snprintf(made, sizeof made, "%s/.%s", image, name);
    snprintf(kept, sizeof kept, "%s/%s", image, name);
    int to = open(made, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (to < 0) abort();
    while ((length = pread(fd, buffer, sizeof buffer, at)) > 0) {
        if (write(to, buffer, length) != length) abort();
        at += length;
    }
    close(to);
    if (rename(made, kept)) abort(); /* whoever is killed here has the copy before */
}

static void forget_removed(const char *directory, const char *image) {
    DIR *kept = opendir(image);
    struct dirent *entry;
    char path[PATH_MAX];
    struct stat found;
    while (kept && (entry = readdir(kept))) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (stat(path, &found) == 0) continue;
        snprintf(path, sizeof path, "%s/%s", image, entry->d_name);
        unlink(path);
    }
    if (kept) closedir(kept);
}

static void keep(int fd) {
    const char *image = getenv("DISK_IMAGE"), *name;
    char link[64], path[PATH_MAX];
    struct stat found;
    if (!image || fstat(fd, &found)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    if (S_ISDIR(found.st_mode)) forget_removed(path, image);
    else if ((name = strrchr(path, '/')) && strncmp(name, "/lro.db", 7) == 0) copy(fd, image, name + 1);
}

static int flush(int fd, const char *how) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, how);
    be_slow();
    int result = real(fd);
    if (result == 0) keep(fd);
    return result;
}

int fsync(int fd) { return flush(fd, "fsync"); }
int fdatasync(int fd) { return flush(fd, "fdatasync"); }
