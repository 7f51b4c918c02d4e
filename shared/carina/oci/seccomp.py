"""The default seccomp profile: the system calls that programs in containers need; every other one fails with EPERM.

It follows the profiles that Docker and containerd have by default: no keyrings, no clocks, no modules, no namespaces
of one's own, no io_uring. Capabilities that a container has open what they are for.
No socket of the families AF_ALG and AF_VSOCK can be made: the first reaches the kernel's ciphers, the second the host
of a virtual machine. A family is compared by its lower 32 bits, as the kernel reads it, and `socketcall`, which hides
it in memory, is not allowed.
"""

import platform
from collections.abc import Collection
from typing import Any, Final

from carina.errors import InvalidArgument

_EPERM: Final = 1
_ENOSYS: Final = 38
_WORD: Final = 0xFFFF_FFFF
_FAMILIES: Final = 46
"""Address families that Linux has."""
_AF_ALG: Final = 38
_AF_VSOCK: Final = 40
_NEW_NAMESPACES: Final = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, _WORD)
_ARCHITECTURES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
_OF_ARCHITECTURE: Final = {
    "x86_64": ("arch_prctl", "modify_ldt"),
    "aarch64": ("arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2"),
}

_FILES: Final = """
    access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
    fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64
    fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr
    _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open
    openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
    removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat
    stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink
    unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
"""
_MEMORY: Final = """
    brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect
    mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages
"""
_PROCESSES: Final = """
    alarm capget capset execve execveat exit exit_group fork getcpu getegid getegid32 geteuid geteuid32 getgid getgid32
    getgroups getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid
    getresuid32 getrlimit get_robust_list getrusage getsid get_thread_area gettid getuid getuid32 ioprio_get ioprio_set
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pause pidfd_open pidfd_send_signal prctl
    prlimit64 ptrace restart_syscall riscv_hwprobe rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr
    sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid
    set_thread_area set_tid_address setuid setuid32 sigaltstack signalfd signalfd4 sigprocmask sigreturn tgkill tkill
    ugetrlimit uretprobe vfork wait4 waitid waitpid
"""
_REST: Final = """
    accept accept4 bind clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 connect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
    epoll_wait epoll_wait_old eventfd eventfd2 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
    getpeername
    getrandom getsockname getsockopt gettimeofday io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64
    io_setup io_submit ipc listen mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd nanosleep _newselect poll ppoll ppoll_time64 pselect6
    pselect6_time64 recv recvfrom recvmmsg recvmmsg_time64 recvmsg select semctl semget semop semtimedop
    semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown socketpair sysinfo time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times uname
"""
ALLOWED: Final = frozenset(f"{_FILES} {_MEMORY} {_PROCESSES} {_REST}".split())
_BY_CAPABILITY: Final = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie mount "
    "mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns statmount "
    "syslog umount umount2 unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}


def default_profile(capabilities: Collection[str], machine: str = "") -> dict[str, Any]:
    """The profile for processes whose bounding set is `capabilities`, as `linux.seccomp` of a specification.

    Raises:
        InvalidArgument: there is none for this kind of machine.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise InvalidArgument(f"there is no default seccomp profile for machines of type {machine}")
    names = set(ALLOWED) | set(_OF_ARCHITECTURE[machine])
    for capability in capabilities:
        names |= set(_BY_CAPABILITY.get(capability, "").split())
    rules = [_allow(*sorted(names))]
    families = set(range(_FAMILIES)) - {_AF_ALG, _AF_VSOCK}
    rules += [_allow("socket", mask=_WORD, equals=family) for family in sorted(families)]
    rules += [_allow("personality", mask=_WORD, equals=value) for value in _PERSONALITIES]
    if "clone" not in names:
        rules.append(_allow("clone", mask=_NEW_NAMESPACES, equals=0))
        # Its flags are in memory, where no filter looks; told that there is no such call, programs use the other.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": list(_ARCHITECTURES[machine]),
        "syscalls": rules,
    }


def _allow(*names: str, mask: int = 0, equals: int = 0) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if mask:
        # `value` is the mask here, and `valueTwo` what remains.
        rule["args"] = [{"index": 0, "value": mask, "valueTwo": equals, "op": "SCMP_CMP_MASKED_EQ"}]
    return rule
