//! Processes, signals, clocks, priorities and ids: what concerns the agent's own processes and nobody else's.
//!
//! Other processes are out of sight (pid namespace) and out of reach (Landlock's signal scope and ptrace domain); the
//! argument checks here keep namespaces from being made and the kernel's rarely used corners shut.

use super::super::rule::{
    Action, EINVAL, EPERM, Rule, allow, allow_if, checked, clear, is, refuse_if,
};

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: a user namespace brings back every capability
/// and with it the kernel code that most exploits start from.
const CLONE_NEW: u32 = 0x7e02_0000;
/// Shares its bit with the exit signal in clone(), so only unshare() can ask for it.
const CLONE_NEWTIME: u32 = 0x80;

/// The sandbox's init, which has the agent's uid: it reports how the agent ended, and ends the sandbox when its lifelines
/// are gone. Whoever could take its descriptors, its file size or its time would delay that.
const INIT: &[u32] = &[1];
const PRIO_PROCESS: u32 = 0;
const PRIO_PGRP: u32 = 1;
/// Every process of the uid: the init too.
const PRIO_USER: u32 = 2;
const IOPRIO_PROCESS: u32 = 1;
const IOPRIO_PGRP: u32 = 2;
const IOPRIO_USER: u32 = 3;

/// What a process may ask of itself. None of it gives a right.
#[rustfmt::skip]
pub(super) const PRCTL_OPTIONS: &[u32] = &[
    1,           // PR_SET_PDEATHSIG: die with the parent
    2,           // PR_GET_PDEATHSIG
    3,           // PR_GET_DUMPABLE
    4,           // PR_SET_DUMPABLE: keep others from reading me
    7,           // PR_GET_KEEPCAPS
    8,           // PR_SET_KEEPCAPS: there are no capabilities to keep
    15,          // PR_SET_NAME: names of threads
    16,          // PR_GET_NAME
    21,          // PR_GET_SECCOMP
    23,          // PR_CAPBSET_READ: libcap asks at start
    24,          // PR_CAPBSET_DROP
    27,          // PR_GET_SECUREBITS
    29,          // PR_SET_TIMERSLACK: of oneself
    30,          // PR_GET_TIMERSLACK
    36,          // PR_SET_CHILD_SUBREAPER: supervisors wait for grandchildren
    37,          // PR_GET_CHILD_SUBREAPER
    38,          // PR_SET_NO_NEW_PRIVS
    39,          // PR_GET_NO_NEW_PRIVS
    40,          // PR_GET_TID_ADDRESS
    41,          // PR_SET_THP_DISABLE: huge pages for oneself, yes or no
    42,          // PR_GET_THP_DISABLE
    47,          // PR_CAP_AMBIENT: asked by setpriv and bubblewrap
    52,          // PR_GET_SPECULATION_CTRL
    65,          // PR_SET_MDWE: no memory that is written and executed
    66,          // PR_GET_MDWE
    0x5356_4d41, // PR_SET_VMA: names of mappings
    0x4155_5856, // PR_GET_AUXV
];

/// Registers and features of oneself.
#[rustfmt::skip]
const ARCH_PRCTL_OPTIONS: &[u32] = &[
    0x1001, // ARCH_SET_GS
    0x1002, // ARCH_SET_FS
    0x1003, // ARCH_GET_FS
    0x1004, // ARCH_GET_GS
    0x1011, // ARCH_GET_CPUID: is cpuid trapped
    0x1021, // ARCH_GET_XCOMP_SUPP
    0x1022, // ARCH_GET_XCOMP_PERM
    0x1023, // ARCH_REQ_XCOMP_PERM: numerical libraries ask for AMX
    0x5001, // ARCH_SHSTK_ENABLE: a shadow stack of oneself
    0x5002, // ARCH_SHSTK_DISABLE
    0x5003, // ARCH_SHSTK_LOCK
    0x5005, // ARCH_SHSTK_STATUS
];

/// PER_LINUX, PER_LINUX32 and the query; not READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE and the like.
pub(super) const PERSONALITIES: &[u32] = &[0, 8, u32::MAX];

#[rustfmt::skip]
pub(super) const PROCESS: &[Rule] = &[
    allow("execve", "run a program"),
    allow("execveat", "run a program that is open; a memory file or one on a noexec mount is refused by the kernel"),
    allow("exit", "end a thread"),
    allow("exit_group", "end a process"),
    allow("fork", "start a process"),
    allow("vfork", "start a process that shares memory until it execs"),
    checked("clone", "start a process or a thread, in the same namespaces", &[allow_if(&[clear(0, CLONE_NEW)])], EPERM),
    checked("unshare", "take back what threads share (files, file system view); no namespaces",
        &[allow_if(&[clear(0, CLONE_NEW | CLONE_NEWTIME)])], EPERM),
    allow("wait4", "wait for a child"),
    allow("waitid", "wait for a child"),
    allow("getpid", "who am I"),
    allow("getppid", "who started me"),
    allow("gettid", "which thread am I"),
    allow("getpgid", "job control"),
    allow("getpgrp", "job control"),
    allow("getsid", "job control"),
    allow("setpgid", "job control"),
    allow("setsid", "leave the terminal; a session ends with its sandbox all the same"),
    allow("set_tid_address", "threads are joined by it"),
    allow("futex", "locks between threads"),
    allow("futex_waitv", "locks between threads, several at once"),
    allow("futex_wake", "locks between threads"),
    allow("futex_wait", "locks between threads"),
    allow("futex_requeue", "condition variables"),
    allow("set_robust_list", "locks that survive a dead holder"),
    allow("get_robust_list", "the same, read; another process needs the right to trace it"),
    allow("rseq", "restartable sequences: per-CPU data without atomics"),
    allow("membarrier", "asymmetric fences of allocators and runtimes"),
    allow("restart_syscall", "the kernel's own, after a stop"),
    allow("pidfd_open", "a handle on a child that no other process can take over"),
    allow("pidfd_send_signal", "a signal by such a handle; its descriptors can't be taken (pidfd_getfd)"),
    allow("getrlimit", "limits of oneself"),
    allow("setrlimit", "limits of oneself, downwards"),
    checked("prlimit64", "limits of one's own processes, downwards; not of the init, which reports for them",
        &[refuse_if(&[is(0, INIT)], EPERM)], Action::Allow),
    allow("getrusage", "what was used"),
    allow("times", "what was used"),
    allow("sysinfo", "memory and load, for sizing pools"),
    allow("uname", "which kernel; the host name is the sandbox's"),
    allow("getcpu", "which CPU am I on"),
    allow("getrandom", "random bytes"),
    checked("prctl", "what a process asks of itself: a list of options", &[allow_if(&[is(0, PRCTL_OPTIONS)])], EPERM),
    checked("arch_prctl", "thread-local storage; a list of options", &[allow_if(&[is(0, ARCH_PRCTL_OPTIONS)])], EINVAL),
    checked("personality", "uname -m of 32 bits; nothing that makes memory executable or its layout known",
        &[allow_if(&[is(0, PERSONALITIES)])], EPERM),
];

#[rustfmt::skip]
pub(super) const SIGNALS: &[Rule] = &[
    allow("kill", "signal one's own processes"),
    allow("tkill", "signal a thread"),
    allow("tgkill", "signal a thread of a process"),
    allow("rt_sigaction", "handle a signal"),
    allow("rt_sigprocmask", "block signals"),
    allow("rt_sigreturn", "return from a handler"),
    allow("rt_sigpending", "what is blocked and waits"),
    allow("rt_sigtimedwait", "wait for a signal"),
    allow("rt_sigqueueinfo", "signal with a value"),
    allow("rt_tgsigqueueinfo", "signal a thread with a value"),
    allow("rt_sigsuspend", "wait for a signal"),
    allow("sigaltstack", "a stack for handlers of stack overflow"),
    allow("signalfd", "signals as a descriptor"),
    allow("signalfd4", "signals as a descriptor"),
    allow("pause", "wait for a signal"),
];

#[rustfmt::skip]
pub(super) const TIME: &[Rule] = &[
    allow("time", "what time is it"),
    allow("gettimeofday", "what time is it"),
    allow("clock_gettime", "what time is it"),
    allow("clock_getres", "how exact a clock is"),
    allow("clock_nanosleep", "sleep"),
    allow("nanosleep", "sleep"),
    allow("alarm", "a signal later"),
    allow("getitimer", "interval timers"),
    allow("setitimer", "interval timers; profilers"),
    allow("timer_create", "a timer that signals a thread of one's own process"),
    allow("timer_settime", "start such a timer"),
    allow("timer_gettime", "ask such a timer"),
    allow("timer_getoverrun", "ask such a timer"),
    allow("timer_delete", "end such a timer"),
    allow("timerfd_create", "a timer as a descriptor"),
    allow("timerfd_settime", "start it"),
    allow("timerfd_gettime", "ask it"),
];

#[rustfmt::skip]
pub(super) const SCHEDULING: &[Rule] = &[
    allow("sched_yield", "let others run"),
    allow("sched_getaffinity", "how many CPUs are mine"),
    checked("sched_setaffinity", "pin a thread, within the cpuset", &[refuse_if(&[is(0, INIT)], EPERM)], Action::Allow),
    allow("sched_getparam", "priority, read"),
    checked("sched_setparam", "priority, downwards", &[refuse_if(&[is(0, INIT)], EPERM)], Action::Allow),
    allow("sched_getscheduler", "policy, read"),
    checked("sched_setscheduler", "batch and idle; RLIMIT_RTPRIO is 0", &[refuse_if(&[is(0, INIT)], EPERM)], Action::Allow),
    allow("sched_get_priority_max", "a constant"),
    allow("sched_get_priority_min", "a constant"),
    allow("sched_rr_get_interval", "the time slice"),
    allow("sched_getattr", "policy and priority, read"),
    checked("sched_setattr", "policy and priority, downwards", &[refuse_if(&[is(0, INIT)], EPERM)], Action::Allow),
    allow("getpriority", "nice value, read"),
    checked("setpriority", "nice value, of one's own processes, downwards",
        &[refuse_if(&[is(0, &[PRIO_PROCESS, PRIO_PGRP]), is(1, INIT)], EPERM), refuse_if(&[is(0, &[PRIO_USER])], EPERM)],
        Action::Allow),
    allow("ioprio_get", "priority of input and output, read"),
    checked("ioprio_set", "the same, downwards",
        &[refuse_if(&[is(0, &[IOPRIO_PROCESS, IOPRIO_PGRP]), is(1, INIT)], EPERM), refuse_if(&[is(0, &[IOPRIO_USER])], EPERM)],
        Action::Allow),
];

#[rustfmt::skip]
pub(super) const IDENTITY: &[Rule] = &[
    allow("getuid", "who am I"),
    allow("geteuid", "who am I"),
    allow("getgid", "who am I"),
    allow("getegid", "who am I"),
    allow("getresuid", "who am I"),
    allow("getresgid", "who am I"),
    allow("getgroups", "who am I"),
    allow("setuid", "to the only id there is: programs that drop rights go on"),
    allow("setgid", "to the only id there is"),
    allow("setreuid", "to the only id there is"),
    allow("setregid", "to the only id there is"),
    allow("setresuid", "to the only id there is"),
    allow("setresgid", "to the only id there is"),
    allow("setgroups", "refused by the kernel here, as programs expect without privileges"),
    allow("setfsuid", "to the only id there is"),
    allow("setfsgid", "to the only id there is"),
    allow("capget", "which capabilities: none"),
    allow("capset", "give up capabilities; there are none to gain"),
];
