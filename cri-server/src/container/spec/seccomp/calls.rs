//! Which system calls `RuntimeDefault` allows, and to whom: the facts of containerd's default profile, by subject.
//! The list is compared with containerd's own for every system call of the kernel (`tests.rs`, `make seccomp-reference`).
//!
//! Names are of all ABIs of a kernel, 32 bits included; an OCI runtime passes over those that its library does not know.

/// For everybody.
pub(super) const ALLOWED: [&str; 13] = [
    // Files: opening, reading, writing.
    "_llseek close close_range copy_file_range creat dup dup2 dup3 fadvise64 fadvise64_64 fallocate fcntl fcntl64 fdatasync \
     flock fsync ftruncate ftruncate64 ioctl lseek memfd_create memfd_secret open openat openat2 pread64 preadv preadv2 \
     pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee truncate \
     truncate64 vmsplice write writev",
    // Files: names, owners, modes, times, attributes.
    "access chdir chmod chown chown32 faccessat faccessat2 fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat \
     fgetxattr flistxattr fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat getcwd getdents \
     getdents64 getxattr getxattrat lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr \
     lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat readlink readlinkat removexattr \
     removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat stat64 statfs statfs64 statx symlink symlinkat \
     umask unlink unlinkat utime utimensat utimensat_time64 utimes",
    // Mounts, to be looked at.
    "listmount statmount",
    // Memory.
    "brk cachestat madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync \
     munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages",
    // Processes, with what is as safe since Linux 4.8 as the capability that it takes otherwise.
    "execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority \
     getrlimit getrusage getsid gettid ioprio_get ioprio_set kill pause pidfd_open pidfd_send_signal prctl prlimit64 \
     process_vm_readv process_vm_writev ptrace rseq sched_get_priority_max sched_get_priority_min sched_getaffinity \
     sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
     sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list set_thread_area set_tid_address setpgid \
     setpriority setrlimit setsid sysinfo tgkill times tkill ugetrlimit uname uretprobe vfork wait4 waitid waitpid",
    // Futexes.
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake",
    // Signals.
    "restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
     rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn",
    // Time.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
     clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete \
     timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
     timerfd_gettime64 timerfd_settime timerfd_settime64",
    // Users, groups, capabilities, and what restricts further.
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid \
     getresuid32 getuid getuid32 landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr \
     lsm_list_modules lsm_set_self_attr seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
     setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32",
    // Sockets; `socket` itself depends on the family.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
     send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // Waiting for several things, and being told of them.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
     eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll ppoll_time64 pselect6 \
     pselect6_time64 select",
    // Pipes, queues, semaphores, shared memory.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink \
     msgctl msgget msgrcv msgsnd pipe pipe2 semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget",
    // Asynchronous files (not io_uring), random numbers.
    "getrandom io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
];

/// For everybody on this machine's architecture.
#[cfg(target_arch = "x86_64")]
pub(super) const OF_ARCHITECTURE: &str = "arch_prctl modify_ldt";
/// For everybody on this machine's architecture.
#[cfg(target_arch = "aarch64")]
pub(super) const OF_ARCHITECTURE: &str =
    "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2";

/// For those who have the capability.
pub(super) const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];
