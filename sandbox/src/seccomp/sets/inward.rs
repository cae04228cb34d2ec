//! What turns inwards: debugging one's own processes, and confining them further.

use super::super::rule::{EINVAL, EPERM, Rule, allow, allow_if, checked, clear, is};
use super::process::{PERSONALITIES, PRCTL_OPTIONS};

/// PR_SET_PTRACER: who may trace me, where Yama lets only parents; sanitizers name their own tracer.
const PR_SET_PTRACER: &[u32] = &[0x5961_6d61];
/// PR_SET_SECCOMP
const PR_SET_SECCOMP: &[u32] = &[22];
/// SECCOMP_FILTER_FLAG_NEW_LISTENER
const NEW_LISTENER: u32 = 8;
/// ADDR_NO_RANDOMIZE: gdb runs its program at the same addresses each time.
const ADDR_NO_RANDOMIZE: &[u32] = &[0x0004_0000];

/// The floor lets these through only for a plan that says so; the pid namespace, the Landlock domain and an init that
/// can't be traced keep them inside.
#[rustfmt::skip]
pub(super) const DEBUG: &[Rule] = &[
    allow("ptrace", "gdb, strace"),
    allow("process_vm_readv", "read the memory of a process that may be traced"),
    allow("process_vm_writev", "write it"),
    allow("kcmp", "whether two processes share a descriptor"),
    checked("prctl", "as in process, and who may trace me",
        &[allow_if(&[is(0, PRCTL_OPTIONS)]), allow_if(&[is(0, PR_SET_PTRACER)])], EPERM),
    checked("personality", "as in process, and the same addresses each time",
        &[allow_if(&[is(0, PERSONALITIES)]), allow_if(&[is(0, ADDR_NO_RANDOMIZE)])], EPERM),
];

#[rustfmt::skip]
pub(super) const CONFINEMENT: &[Rule] = &[
    checked("seccomp", "further filters; none that hands system calls to another process",
        &[allow_if(&[clear(1, NEW_LISTENER)])], EINVAL),
    checked("prctl", "as in process, and further filters",
        &[allow_if(&[is(0, PRCTL_OPTIONS)]), allow_if(&[is(0, PR_SET_SECCOMP)])], EPERM),
    allow("landlock_create_ruleset", "further rules for files and ports"),
    allow("landlock_add_rule", "further rules for files and ports"),
    allow("landlock_restrict_self", "further rules for files and ports"),
];

/// Both.
pub(super) const DEBUG_AND_CONFINEMENT: &[Rule] = &[checked(
    "prctl",
    "as in process, further filters, and who may trace me",
    &[
        allow_if(&[is(0, PRCTL_OPTIONS)]),
        allow_if(&[is(0, PR_SET_SECCOMP)]),
        allow_if(&[is(0, PR_SET_PTRACER)]),
    ],
    EPERM,
)];
