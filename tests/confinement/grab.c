// What a tenant may try who brings a program of its own: each line says what came of one attempt, "ok" or the
// error's name. Nothing here does lasting harm where it works, which it does in the control: a container with
// root's privileges.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void tell(const char *what, long result) {
    printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "ok");
    fflush(stdout);
}

// In a process of its own, since some change the one that does them.
#define TRY(what, attempt)                  \
    do {                                    \
        pid_t child = fork();               \
        if (child == 0) {                   \
            tell(what, (long)(attempt));    \
            _exit(0);                       \
        }                                   \
        waitpid(child, NULL, 0);            \
    } while (0)

static int write_to(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    if (file < 0) return -1;
    int result = (int)write(file, text, strlen(text));
    close(file);
    return result;
}

// The argument is a process of the machine, outside.
int main(int count, char **arguments) {
    if (count != 2) return 2;
    TRY("packet-socket", socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)));
    TRY("raw-socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    TRY("mount-tmpfs", mount("none", "/tmp", "tmpfs", 0, NULL));
    TRY("remount-root-writable", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
    TRY("unmount", umount2("/tmp", MNT_DETACH));
    TRY("ptrace-others", ptrace(PTRACE_SEIZE, atoi(arguments[1]), NULL, NULL));
    TRY("user-namespace", unshare(CLONE_NEWUSER));
    TRY("network-namespace", unshare(CLONE_NEWNET));
    TRY("device", mknod("/tmp/device", S_IFBLK | 0600, makedev(254, 0)));
    TRY("setuid-0", setuid(0));
    TRY("setgroups", syscall(SYS_setgroups, 1, (gid_t[]){0}));
    TRY("chroot", chroot("/tmp"));
    TRY("hostname", sethostname("mine", 4));
    // The value that it has in a container.
    TRY("sysctl", write_to("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"));
    TRY("core-pattern", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    TRY("bpf", syscall(SYS_bpf, 0 /* BPF_MAP_CREATE */, (unsigned[18]){2, 4, 4, 1}, 72));
    TRY("keyring", syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3, 1));
    TRY("nice", setpriority(0, 0, -5));
    return 0;
}
