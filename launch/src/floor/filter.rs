//! The base seccomp filter: compiled in, loaded under whatever filter a plan brings. A deny list, since the plan's own
//! filter is the allow list; it refuses what would undo the sandbox, reach past it, or leave set-id files on the host.
//!
//! Wrong architecture first, the x32 ABI second, then a binary search over the system call number, built at compile time:
//! the kernel checks, translates and, for each system call number, runs every filter when it is loaded, so a linear list of
//! this length would cost a tenth of a launch. Arguments are compared on 32 bits where the kernel reads 32 bits of them.

use agentd_kernel::sys::{SockFilter, nr};

use crate::plan::ExecFlags;

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;
const EAFNOSUPPORT: u16 = 97;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
/// Held for whoever has the listener of the newest filter that says so; where that filter has none,
/// the kernel refuses with ENOSYS.
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;

const LD_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;

/// `struct seccomp_data`
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const fn data_arg(index: u32) -> u32 {
    16 + 8 * index
}

const SET_ID_BITS: u32 = 0o6000;
/// `O_CREAT` and the bit of `O_TMPFILE` that no other flag has: only with one of them is there a mode.
const CREATES: u32 = 0o100 | 0o20_000_000;
/// All of `CLONE_NEW*` that fit beside an exit signal.
const CLONE_NEW: u32 = 0x7e02_0000;
/// `CLONE_NEWTIME` shares its bit with the exit signal in `clone`, so it counts for `unshare` only.
const CLONE_NEWTIME: u32 = 0x80;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// unix, inet, inet6, netlink: the families that the network namespace confines.
const FAMILIES: [u32; 4] = [1, 2, 10, 16];

/// What debuggers need and nobody else: `ptrace`; `process_vm_readv`, `process_vm_writev` and `kcmp`, which follow each
/// other. The pid namespace, the Landlock domain and an init that can't be traced keep them inside.
const DEBUG_CALLS: [Entry; 2] = [
    refuse(nr::PTRACE, nr::PTRACE),
    refuse(nr::PROCESS_VM_READV, nr::KCMP),
];

/// What becomes of a call that is refused with EPERM by its number, or because it asks for namespaces.
///
/// A program reaches [`Refusals::Told`]'s answer in one way only: over a filter of the plan that holds the same call, whose
/// listener the sandbox's init has and hands to nobody. The init knows no answer but an error. A plan whose filter would let such
/// a call through gains nothing: then this filter is the newest that holds it, and it has no listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusals {
    /// EPERM, from here.
    Silent,
    /// EPERM, from the sandbox's init, which tells of it.
    Told,
}

#[derive(Clone, Copy)]
enum Rule {
    /// Refuse.
    Errno(u16),
    /// Refuse with EPERM when any of these bits of an argument is set.
    Bits { arg: u32, bits: u32 },
    /// Refuse a mode with set-id bits, if the flags say that there is a mode.
    OpenMode { flags: u32, mode: u32 },
    /// Refuse these two values of an argument.
    Values { arg: u32, values: [u32; 2] },
    /// Refuse all but these values of an argument.
    Only { arg: u32, values: [u32; 4] },
}

#[derive(Clone, Copy)]
struct Entry {
    first: u32,
    last: u32,
    rule: Rule,
}

const fn refuse(first: u32, last: u32) -> Entry {
    Entry {
        first,
        last,
        rule: Rule::Errno(EPERM),
    }
}

const fn absent(number: u32) -> Entry {
    Entry {
        first: number,
        last: number,
        rule: Rule::Errno(ENOSYS),
    }
}

const fn when(number: u32, rule: Rule) -> Entry {
    Entry {
        first: number,
        last: number,
        rule,
    }
}

/// Sorted by number; checked when compiled.
const TABLE: &[Entry] = &[
    when(nr::OPEN, Rule::OpenMode { flags: 1, mode: 2 }),
    when(
        nr::IOCTL,
        Rule::Values {
            arg: 1,
            values: [TIOCSTI, TIOCLINUX],
        },
    ),
    when(
        nr::SOCKET,
        Rule::Only {
            arg: 0,
            values: FAMILIES,
        },
    ),
    when(
        nr::CLONE,
        Rule::Bits {
            arg: 0,
            bits: CLONE_NEW,
        },
    ),
    when(
        nr::CREAT,
        Rule::Bits {
            arg: 1,
            bits: SET_ID_BITS,
        },
    ),
    when(
        nr::CHMOD,
        Rule::Bits {
            arg: 1,
            bits: SET_ID_BITS,
        },
    ),
    when(
        nr::FCHMOD,
        Rule::Bits {
            arg: 1,
            bits: SET_ID_BITS,
        },
    ),
    DEBUG_CALLS[0],
    refuse(nr::SYSLOG, nr::SYSLOG),
    when(
        nr::MKNOD,
        Rule::Bits {
            arg: 1,
            bits: SET_ID_BITS,
        },
    ),
    refuse(nr::USELIB, nr::USELIB),
    refuse(nr::VHANGUP, nr::SYSCTL), // vhangup modify_ldt pivot_root _sysctl
    refuse(nr::CHROOT, nr::CHROOT),
    refuse(nr::ACCT, nr::DELETE_MODULE), // acct settimeofday mount umount2 swapon swapoff reboot set*name iopl ioperm *_module
    refuse(nr::QUOTACTL, nr::NFSSERVCTL),
    refuse(nr::LOOKUP_DCOOKIE, nr::LOOKUP_DCOOKIE),
    refuse(nr::CLOCK_SETTIME, nr::CLOCK_SETTIME),
    refuse(nr::KEXEC_LOAD, nr::KEXEC_LOAD),
    refuse(nr::ADD_KEY, nr::KEYCTL), // add_key request_key keyctl
    when(nr::OPENAT, Rule::OpenMode { flags: 2, mode: 3 }),
    when(
        nr::MKNODAT,
        Rule::Bits {
            arg: 2,
            bits: SET_ID_BITS,
        },
    ),
    when(
        nr::FCHMODAT,
        Rule::Bits {
            arg: 2,
            bits: SET_ID_BITS,
        },
    ),
    when(
        nr::UNSHARE,
        Rule::Bits {
            arg: 0,
            bits: CLONE_NEW | CLONE_NEWTIME,
        },
    ),
    refuse(nr::PERF_EVENT_OPEN, nr::PERF_EVENT_OPEN),
    refuse(nr::FANOTIFY_INIT, nr::FANOTIFY_INIT),
    refuse(nr::OPEN_BY_HANDLE_AT, nr::OPEN_BY_HANDLE_AT),
    refuse(nr::SETNS, nr::SETNS),
    DEBUG_CALLS[1],
    refuse(nr::FINIT_MODULE, nr::FINIT_MODULE),
    refuse(nr::KEXEC_FILE_LOAD, nr::BPF),
    refuse(nr::USERFAULTFD, nr::USERFAULTFD),
    refuse(nr::IO_URING_SETUP, nr::FSPICK), // io_uring_* open_tree move_mount fsopen fsconfig fsmount fspick
    absent(nr::CLONE3),
    absent(nr::OPENAT2),
    refuse(nr::PIDFD_GETFD, nr::PIDFD_GETFD),
    refuse(nr::MOUNT_SETATTR, nr::QUOTACTL_FD),
    absent(nr::FCHMODAT2),
    refuse(nr::OPEN_TREE_ATTR, nr::OPEN_TREE_ATTR),
];

/// What `runsc` may do beyond [`TABLE`] while it builds its own jail, and what its sentry may do to the processes that hold
/// the agent's memory. It holds a user namespace of its own for it, below the sandbox's, so it is root over nothing that is
/// not the sandbox's already. No code of the agent's runs under this filter alone: its system calls end in the sentry.
///
/// Let through: namespaces (`clone`, `unshare`), `mount`, `umount2`, `pivot_root`, `chroot`, `ptrace`. The rest is refused as
/// it is to everybody, set-id bits above all: what the sentry's file server makes lies in the caller's folders.
const RUNTIME_TABLE: &[Entry] = &{
    let mut table = [refuse(0, 0); TABLE.len() - 2];
    let (mut from, mut to) = (0, 0);
    while from < TABLE.len() {
        let entry = TABLE[from];
        from += 1;
        match entry.first {
            nr::CLONE | nr::UNSHARE | nr::PTRACE | nr::CHROOT => {}
            nr::VHANGUP => {
                table[to] = refuse(nr::VHANGUP, nr::PIVOT_ROOT - 1);
                table[to + 1] = refuse(nr::SYSCTL, entry.last);
                to += 2;
            }
            nr::ACCT => {
                table[to] = refuse(nr::ACCT, nr::MOUNT - 1);
                table[to + 1] = refuse(nr::UMOUNT2 + 1, entry.last);
                to += 2;
            }
            _ => {
                table[to] = entry;
                to += 1;
            }
        }
    }
    assert!(to == table.len(), "four entries go and two are split");
    table
};

/// Which of the base filters.
#[derive(Clone, Copy)]
struct Variant {
    /// [`DEBUG_CALLS`] are let through.
    debug: bool,
    refusals: Refusals,
}

const CAPACITY: usize = 256;

struct Program {
    code: [SockFilter; CAPACITY],
    len: usize,
}

impl Program {
    const fn push(mut self, code: u16, k: u32, jt: u8, jf: u8) -> Program {
        self.code[self.len] = SockFilter { code, jt, jf, k };
        self.len += 1;
        self
    }

    const fn ret(self, k: u32) -> Program {
        self.push(RET, k, 0, 0)
    }

    /// The arguments of a call that has been found.
    const fn rule(self, rule: Rule, refuse: u8) -> Program {
        match rule {
            Rule::Errno(errno) => self.ret(RET_ERRNO | errno as u32),
            Rule::Bits { arg, bits } => self
                .push(LD_ABS, data_arg(arg), 0, 0)
                .push(JSET, bits, refuse, TO_ALLOW),
            Rule::OpenMode { flags, mode } => self
                .push(LD_ABS, data_arg(flags), 0, 0)
                .push(JSET, CREATES, 0, TO_ALLOW)
                .push(LD_ABS, data_arg(mode), 0, 0)
                .push(JSET, SET_ID_BITS, TO_REFUSE, TO_ALLOW),
            Rule::Values { arg, values } => self
                .push(LD_ABS, data_arg(arg), 0, 0)
                .push(JEQ, values[0], TO_REFUSE, 0)
                .push(JEQ, values[1], TO_REFUSE, TO_ALLOW),
            Rule::Only { arg, values } => self
                .push(LD_ABS, data_arg(arg), 0, 0)
                .push(JEQ, values[0], TO_ALLOW, 0)
                .push(JEQ, values[1], TO_ALLOW, 0)
                .push(JEQ, values[2], TO_ALLOW, 0)
                .push(JEQ, values[3], TO_ALLOW, 0)
                .ret(RET_ERRNO | EAFNOSUPPORT as u32),
        }
    }

    /// One entry, with the number in the accumulator.
    const fn entry(self, entry: &Entry, variant: Variant) -> Program {
        let Entry { first, last, rule } = *entry;
        if variant.debug && is_debug_call(first) {
            return self.push(JEQ, first, TO_ALLOW, TO_ALLOW);
        }
        let refuse = match (variant.refusals, rule) {
            (Refusals::Told, Rule::Errno(EPERM)) => TO_TELL,
            (Refusals::Told, Rule::Bits { bits, .. }) if bits & CLONE_NEW == CLONE_NEW => TO_TELL,
            _ => TO_REFUSE,
        };
        match (rule, first == last) {
            (Rule::Errno(EPERM), true) => self.push(JEQ, first, refuse, TO_ALLOW),
            (Rule::Errno(EPERM), false) => self
                .push(JGE, first, 0, TO_ALLOW)
                .push(JGT, last, TO_ALLOW, refuse),
            (rule, _) => {
                assert!(first == last, "a range is refused as a whole");
                self.push(JEQ, first, 0, TO_ALLOW).rule(rule, refuse)
            }
        }
    }

    /// The search through `table[from..to]`, with the number in the accumulator.
    const fn search(self, table: &[Entry], from: usize, to: usize, variant: Variant) -> Program {
        if to - from == 1 {
            return self.entry(&table[from], variant);
        }
        let start = self.len;
        let middle = usize::midpoint(from, to);
        let mut program = self
            .push(JGE, table[middle].first, 0, 0)
            .search(table, from, middle, variant);
        program.code[start].jt = distance(start, program.len);
        let program = program.search(table, middle, to, variant);
        if to - from <= SHARING && to - from > SHARING / 2 {
            program.share(start, variant)
        } else {
            program
        }
    }

    /// The answers that everything from `start` on leads to, once for all of it: the kernel checks and translates each
    /// instruction at each launch.
    const fn share(self, start: usize, variant: Variant) -> Program {
        let allow = self.len;
        let mut program = self.ret(RET_ALLOW).ret(RET_ERRNO | EPERM as u32);
        if let Refusals::Told = variant.refusals {
            program = program.ret(RET_USER_NOTIF);
        }
        let mut at = start;
        while at < allow {
            let SockFilter { jt, jf, .. } = program.code[at];
            program.code[at].jt = resolve(jt, at, allow);
            program.code[at].jf = resolve(jf, at, allow);
            at += 1;
        }
        program
    }
}

/// Jumps that are not yet decided: to the answers that a part of the table shares.
const TO_ALLOW: u8 = 253;
const TO_REFUSE: u8 = 254;
const TO_TELL: u8 = 255;
/// The most entries that share their answers.
const SHARING: usize = 16;

const fn distance(from: usize, to: usize) -> u8 {
    let skipped = to - from - 1;
    assert!(skipped < TO_ALLOW as usize, "longer than a jump");
    skipped as u8
}

/// The answers stand in the order of their jumps, from `allow` on.
const fn resolve(jump: u8, at: usize, allow: usize) -> u8 {
    match jump {
        TO_ALLOW => distance(at, allow),
        TO_REFUSE => distance(at, allow + 1),
        TO_TELL => distance(at, allow + 2),
        decided => decided,
    }
}

const fn is_debug_call(number: u32) -> bool {
    let mut at = 0;
    while at < DEBUG_CALLS.len() {
        if number == DEBUG_CALLS[at].first {
            return true;
        }
        at += 1;
    }
    false
}

const fn program(table: &[Entry], debug: bool, refusals: Refusals) -> Program {
    let mut at = 1;
    while at < table.len() {
        assert!(
            table[at - 1].last < table[at].first,
            "the table is not sorted"
        );
        at += 1;
    }
    const EMPTY: SockFilter = SockFilter {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    };
    Program {
        code: [EMPTY; CAPACITY],
        len: 0,
    }
    .push(LD_ABS, DATA_ARCH, 0, 0)
    .push(JEQ, AUDIT_ARCH_X86_64, 1, 0)
    .ret(RET_KILL_PROCESS)
    .push(LD_ABS, DATA_NR, 0, 0)
    .push(JSET, X32_BIT, 0, 1)
    .ret(RET_ERRNO | ENOSYS as u32)
    .search(table, 0, table.len(), Variant { debug, refusals })
}

const fn trim<const LEN: usize>(program: &Program) -> [SockFilter; LEN] {
    let mut code = [program.code[0]; LEN];
    let mut at = 0;
    while at < LEN {
        code[at] = program.code[at];
        assert!(
            code[at].jt < TO_ALLOW && code[at].jf < TO_ALLOW,
            "a jump that nobody decided: the sizes of the table's parts and SHARING do not fit"
        );
        at += 1;
    }
    code
}

const PROGRAM: Program = program(TABLE, false, Refusals::Silent);
const PROGRAM_DEBUG: Program = program(TABLE, true, Refusals::Silent);
const PROGRAM_TOLD: Program = program(TABLE, false, Refusals::Told);
const PROGRAM_DEBUG_TOLD: Program = program(TABLE, true, Refusals::Told);
const PROGRAM_RUNTIME: Program = program(RUNTIME_TABLE, false, Refusals::Silent);
static BASE: [SockFilter; PROGRAM.len] = trim(&PROGRAM);
static BASE_DEBUG: [SockFilter; PROGRAM_DEBUG.len] = trim(&PROGRAM_DEBUG);
static BASE_TOLD: [SockFilter; PROGRAM_TOLD.len] = trim(&PROGRAM_TOLD);
static BASE_DEBUG_TOLD: [SockFilter; PROGRAM_DEBUG_TOLD.len] = trim(&PROGRAM_DEBUG_TOLD);
static RUNTIME: [SockFilter; PROGRAM_RUNTIME.len] = trim(&PROGRAM_RUNTIME);

/// The built-in filter for `runsc`, which in turn holds the program.
pub fn runtime_filter() -> &'static [SockFilter] {
    &RUNTIME
}

/// The built-in filter for a plan that says `exec`: with [`ExecFlags::DEBUG`] it lets [`DEBUG_CALLS`] through.
pub fn base_filter(exec: ExecFlags, refusals: Refusals) -> &'static [SockFilter] {
    match (exec.contains(ExecFlags::DEBUG), refusals) {
        (false, Refusals::Silent) => &BASE,
        (true, Refusals::Silent) => &BASE_DEBUG,
        (false, Refusals::Told) => &BASE_TOLD,
        (true, Refusals::Told) => &BASE_DEBUG_TOLD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, on the few instructions it uses.
    fn run(exec: ExecFlags, arch: u32, number: u32, args: [u64; 6]) -> u32 {
        run_filter(base_filter(exec, Refusals::Silent), arch, number, args)
    }

    fn run_filter(filter: &[SockFilter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (slot, arg) in data[16..].chunks_exact_mut(8).zip(args) {
            slot.copy_from_slice(&arg.to_le_bytes());
        }
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let SockFilter { code, jt, jf, k } = filter[at];
            let taken = match code {
                LD_ABS => {
                    let word = &data[k as usize..k as usize + 4];
                    accumulator = u32::from_le_bytes(word.try_into().unwrap());
                    at += 1;
                    continue;
                }
                JEQ => accumulator == k,
                JGT => accumulator > k,
                JGE => accumulator >= k,
                JSET => accumulator & k != 0,
                RET => return k,
                code => panic!("instruction {code:#x}"),
            };
            at += 1 + usize::from(if taken { jt } else { jf });
        }
    }

    fn native(number: u32, args: [u64; 6]) -> u32 {
        run(ExecFlags::NONE, AUDIT_ARCH_X86_64, number, args)
    }

    const REFUSED: u32 = RET_ERRNO | EPERM as u32;

    #[test]
    fn the_search_agrees_with_the_table_for_every_number() {
        for number in 0..1024 {
            let entry = TABLE
                .iter()
                .find(|entry| (entry.first..=entry.last).contains(&number));
            // All arguments 0: nothing that depends on one is refused, but for the socket family.
            let expected = match entry.map(|entry| entry.rule) {
                Some(Rule::Errno(errno)) => RET_ERRNO | u32::from(errno),
                Some(Rule::Only { .. }) => RET_ERRNO | u32::from(EAFNOSUPPORT),
                _ => RET_ALLOW,
            };
            assert_eq!(native(number, [0; 6]), expected, "system call {number}");
        }
    }

    #[test]
    fn what_is_told_is_what_is_refused_by_number_and_namespaces() {
        let told = |exec, number, args| {
            run_filter(
                base_filter(exec, Refusals::Told),
                AUDIT_ARCH_X86_64,
                number,
                args,
            )
        };
        for exec in [ExecFlags::NONE, ExecFlags::DEBUG] {
            for number in 0..1024 {
                let expected = match run(exec, AUDIT_ARCH_X86_64, number, [0; 6]) {
                    REFUSED => RET_USER_NOTIF,
                    other => other,
                };
                assert_eq!(told(exec, number, [0; 6]), expected, "system call {number}");
            }
            let namespace = [0x1000_0000, 0, 0, 0, 0, 0];
            assert_eq!(told(exec, nr::CLONE, namespace), RET_USER_NOTIF);
            assert_eq!(told(exec, nr::UNSHARE, namespace), RET_USER_NOTIF);
            assert_eq!(told(exec, nr::FCHMOD, [0, 0o4755, 0, 0, 0, 0]), REFUSED);
            assert_eq!(
                told(exec, nr::IOCTL, [0, TIOCSTI.into(), 0, 0, 0, 0]),
                REFUSED
            );
        }
    }

    #[test]
    fn the_debug_flag_lets_four_calls_through_and_no_other() {
        for number in 0..1024 {
            let debugged = run(ExecFlags::DEBUG, AUDIT_ARCH_X86_64, number, [0; 6]);
            let expected = match number {
                nr::PTRACE | nr::PROCESS_VM_READV..=nr::KCMP => RET_ALLOW,
                _ => native(number, [0; 6]),
            };
            assert_eq!(debugged, expected, "system call {number}");
        }
    }

    #[test]
    fn the_runtime_is_let_do_six_things_and_no_other() {
        let runtime = |number, args| run_filter(runtime_filter(), AUDIT_ARCH_X86_64, number, args);
        for number in 0..1024 {
            let expected = match number {
                nr::MOUNT | nr::UMOUNT2 | nr::PIVOT_ROOT | nr::CHROOT | nr::PTRACE => RET_ALLOW,
                _ => native(number, [0; 6]),
            };
            assert_eq!(runtime(number, [0; 6]), expected, "system call {number}");
        }
        let user_namespace = 0x1000_0000;
        for number in [nr::CLONE, nr::UNSHARE] {
            assert_eq!(runtime(number, [user_namespace, 0, 0, 0, 0, 0]), RET_ALLOW);
        }
        assert_eq!(runtime(nr::FCHMOD, [0, 0o4755, 0, 0, 0, 0]), REFUSED);
        assert_eq!(
            run_filter(runtime_filter(), 0x4000_0003, 4, [0; 6]),
            RET_KILL_PROCESS
        );
    }

    #[test]
    fn other_architectures_die_and_x32_is_absent() {
        const AUDIT_ARCH_I386: u32 = 0x4000_0003;
        for exec in [ExecFlags::NONE, ExecFlags::DEBUG] {
            assert_eq!(run(exec, AUDIT_ARCH_I386, 4, [0; 6]), RET_KILL_PROCESS);
        }
        assert_eq!(
            native(nr::CHMOD | X32_BIT, [0; 6]),
            RET_ERRNO | u32::from(ENOSYS)
        );
    }

    #[test]
    fn set_id_bits_are_refused_wherever_a_mode_is_given() {
        let create = 0o100;
        let tmpfile = 0o20_200_000;
        for bits in [0o4755, 0o2755, 0o6000] {
            for number in [nr::CHMOD, nr::FCHMOD, nr::CREAT, nr::MKNOD] {
                assert_eq!(native(number, [0, bits, 0, 0, 0, 0]), REFUSED, "{number}");
            }
            for number in [nr::FCHMODAT, nr::MKNODAT] {
                assert_eq!(native(number, [0, 0, bits, 0, 0, 0]), REFUSED, "{number}");
            }
            for flags in [create, tmpfile] {
                assert_eq!(native(nr::OPEN, [0, flags, bits, 0, 0, 0]), REFUSED);
                assert_eq!(native(nr::OPENAT, [0, 0, flags, bits, 0, 0]), REFUSED);
            }
            // Without O_CREAT the mode is whatever the register held.
            assert_eq!(native(nr::OPENAT, [0, 0, 0o200_000, bits, 0, 0]), RET_ALLOW);
        }
        assert_eq!(native(nr::CHMOD, [0, 0o1777, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(native(nr::OPENAT, [0, 0, create, 0o644, 0, 0]), RET_ALLOW);
    }

    #[test]
    fn high_halves_of_arguments_change_nothing() {
        let high = 1 << 40;
        assert_eq!(
            native(nr::IOCTL, [0, high | u64::from(TIOCSTI), 0, 0, 0, 0]),
            REFUSED
        );
        assert_eq!(native(nr::FCHMOD, [0, high | 0o4755, 0, 0, 0, 0]), REFUSED);
        assert_eq!(native(nr::IOCTL, [0, 0x5413, 0, 0, 0, 0]), RET_ALLOW);
    }

    #[test]
    fn namespaces_are_refused_and_threads_are_not() {
        let thread = 0x003d_0f00;
        assert_eq!(native(nr::CLONE, [thread, 0, 0, 0, 0, 0]), RET_ALLOW);
        for bit in [
            0x2_0000,
            0x200_0000,
            0x400_0000,
            0x800_0000,
            0x1000_0000,
            0x2000_0000,
            0x4000_0000,
        ] {
            assert_eq!(native(nr::CLONE, [bit | 17, 0, 0, 0, 0, 0]), REFUSED);
            assert_eq!(native(nr::UNSHARE, [bit, 0, 0, 0, 0, 0]), REFUSED);
        }
        assert_eq!(native(nr::UNSHARE, [0x80, 0, 0, 0, 0, 0]), REFUSED);
        assert_eq!(native(nr::UNSHARE, [0x400, 0, 0, 0, 0, 0]), RET_ALLOW);
    }

    #[test]
    fn only_confined_socket_families_exist() {
        const AF_VSOCK: u64 = 40;
        for family in FAMILIES {
            assert_eq!(
                native(nr::SOCKET, [family.into(), 0, 0, 0, 0, 0]),
                RET_ALLOW
            );
        }
        assert_eq!(
            native(nr::SOCKET, [AF_VSOCK, 0, 0, 0, 0, 0]),
            RET_ERRNO | u32::from(EAFNOSUPPORT)
        );
    }
}
