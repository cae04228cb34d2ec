//! From rules to a filter program: architecture, x32, then a binary search over the system call number.

use super::refused;
use super::rule::{Action, Case, ENOSYS, EPERM, Rule, Test};
use super::sets::{Refusals, Surface};
use super::table::SYSCALLS;
use agentd_kernel::sys::SockFilter;
use std::collections::BTreeMap;

/// An instruction as the kernel and the wire plan take it.
pub fn to_bytes(i: &SockFilter) -> [u8; 8] {
    let (code, k) = (i.code.to_ne_bytes(), i.k.to_ne_bytes());
    [code[0], code[1], i.jt, i.jf, k[0], k[1], k[2], k[3]]
}

const LD_ABS: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JGT: u16 = 0x25;
const RET: u16 = 0x06;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here on are x32 calls.
const X32_BIT: u32 = 0x4000_0000;
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;

/// The low half of an argument in `struct seccomp_data`.
fn data_arg(arg: u8) -> u32 {
    16 + 8 * u32::from(arg)
}

fn op(code: u16, k: u32, jt: u8, jf: u8) -> SockFilter {
    SockFilter { code, jt, jf, k }
}

/// What applies to the numbers from `first` up to the next leaf.
struct Leaf {
    first: u32,
    what: Answer,
}

/// What becomes of a number.
#[derive(Clone, PartialEq)]
enum Answer {
    Action(Action),
    /// By its arguments: these cases, then this.
    Cases(&'static [Case], Action),
}

/// The filter program that allows this surface and nothing else.
///
/// # Panics
/// Never for the entries of this crate: the tests compile each answer of a policy with every set, which bounds the jumps
/// and the length.
pub fn compile(surface: &Surface) -> Vec<SockFilter> {
    let leaves = leaves(&surface.rules(), surface.refusals);
    let mut assembler = Assembler::default();
    let search = assembler.search(&leaves);
    let kill = assembler.answer(Action::Kill);
    assembler.branch(JGE, X32_BIT, kill, search);
    assembler.push(LD_ABS, DATA_NR);
    let by_number = assembler.here();
    let kill = assembler.answer(Action::Kill);
    assembler.branch(JEQ, AUDIT_ARCH_X86_64, by_number, kill);
    assembler.push(LD_ABS, DATA_ARCH);
    assembler.finish()
}

/// What a number that no rule names gets.
fn default_action(nr: u32) -> Action {
    match SYSCALLS.binary_search_by_key(&nr, |(n, _)| *n) {
        Ok(at) => refused::answer(SYSCALLS[at].1),
        Err(_) => ENOSYS,
    }
}

/// The same for a call that somebody may be told of.
fn told(action: Action, name: Option<&str>, refusals: Refusals) -> Action {
    match (refusals, name) {
        (Refusals::Told, Some(name)) if action == EPERM && refused::is_told(name) => Action::Tell,
        _ => action,
    }
}

/// What becomes of a call whose arguments no case names.
fn otherwise(rule: &Rule, refusals: Refusals) -> Action {
    match refusals {
        Refusals::Told
            if rule.otherwise == EPERM && refused::TOLD_BY_ARGUMENTS.contains(&rule.name) =>
        {
            Action::Tell
        }
        Refusals::Told | Refusals::Silent => rule.otherwise,
    }
}

fn leaves(rules: &BTreeMap<&'static str, Rule>, refusals: Refusals) -> Vec<Leaf> {
    let last = SYSCALLS.last().map_or(0, |(nr, _)| *nr);
    let mut leaves: Vec<Leaf> = Vec::new();
    for nr in 0..=last + 1 {
        let name = SYSCALLS
            .binary_search_by_key(&nr, |(n, _)| *n)
            .map(|at| SYSCALLS[at].1)
            .ok();
        let what = match name.and_then(|n| rules.get(n)) {
            Some(rule) if rule.cases.is_empty() => Answer::Action(rule.otherwise),
            Some(rule) => Answer::Cases(rule.cases, otherwise(rule, refusals)),
            None => Answer::Action(told(default_action(nr), name, refusals)),
        };
        if leaves.last().is_none_or(|l| l.what != what) {
            leaves.push(Leaf { first: nr, what });
        }
    }
    leaves
}

/// A place in the program, counted from its end.
type Label = usize;

/// Writes a program from its end to its beginning. Jumps lead forwards only, so everything that one can lead to is there
/// already, and what is there within reach is used again: the kernel checks and translates each instruction of each launch.
#[derive(Default)]
struct Assembler {
    /// The last instruction first.
    code: Vec<SockFilter>,
    answers: Vec<(Answer, Label)>,
}

impl Assembler {
    /// How far a conditional jump leads, with room for the instructions of one test in between.
    const REACH: usize = 160;

    fn here(&self) -> Label {
        self.code.len()
    }

    fn push(&mut self, code: u16, k: u32) {
        self.code.push(op(code, k, 0, 0));
    }

    /// A jump of any distance, where a conditional one would not lead to `label`.
    fn near(&mut self, label: Label) -> Label {
        if self.here() - label > Self::REACH {
            let skip = u32::try_from(self.here() - label).expect("a program is shorter than 2^32");
            self.push(JA, skip);
            return self.here();
        }
        label
    }

    /// Goes to `then` if the comparison holds, else to `otherwise`; both are near.
    fn branch(&mut self, code: u16, k: u32, then: Label, otherwise: Label) {
        let skip = |label| u8::try_from(self.here() - label).expect("a near label");
        let (then, otherwise) = (skip(then), skip(otherwise));
        self.code.push(op(code, k, then, otherwise));
    }

    fn written(&self, answer: &Answer) -> Option<Label> {
        let (_, label) = self.answers.iter().rfind(|(a, _)| a == answer)?;
        (self.here() - label <= Self::REACH).then_some(*label)
    }

    fn answer(&mut self, action: Action) -> Label {
        let answer = Answer::Action(action);
        self.written(&answer).unwrap_or_else(|| {
            self.push(RET, action.code());
            self.answers.push((answer, self.here()));
            self.here()
        })
    }

    fn cases(&mut self, cases: &'static [Case], otherwise: Action) -> Label {
        let answer = Answer::Cases(cases, otherwise);
        if let Some(label) = self.written(&answer) {
            return label;
        }
        let mut next = self.answer(otherwise);
        for case in cases.iter().rev() {
            let mut then = self.answer(case.then);
            for test in case.tests.iter().rev() {
                next = self.near(next);
                then = self.test(test, then, next);
            }
            next = then;
        }
        self.answers.push((answer, next));
        next
    }

    /// To `then` when the test holds, else to `otherwise`.
    fn test(&mut self, test: &Test, then: Label, otherwise: Label) -> Label {
        let mut next = otherwise;
        for (first, last) in runs(test.values).into_iter().rev() {
            if first == last {
                self.branch(JEQ, first, then, next);
            } else {
                self.branch(JGT, last, next, then);
                let inside = self.here();
                // Below the first value of a run there is none of a later run either.
                self.branch(JGE, first, inside, otherwise);
            }
            next = self.here();
        }
        if test.mask != u32::MAX {
            self.push(AND, test.mask);
        }
        self.push(LD_ABS, data_arg(test.arg));
        self.here()
    }

    /// Finds the leaf of the number in the accumulator, and does as it says.
    fn search(&mut self, leaves: &[Leaf]) -> Label {
        if let [Leaf { what, .. }] = leaves {
            return match what {
                Answer::Action(action) => self.answer(*action),
                Answer::Cases(cases, otherwise) => self.cases(cases, *otherwise),
            };
        }
        let (left, right) = leaves.split_at(leaves.len() / 2);
        let above = self.search(right);
        let below = self.search(left);
        let above = self.near(above);
        let below = self.near(below);
        self.branch(JGE, right[0].first, above, below);
        self.here()
    }

    fn finish(mut self) -> Vec<SockFilter> {
        self.code.reverse();
        self.code
    }
}

/// Runs of consecutive values: first and last.
fn runs(values: &[u32]) -> Vec<(u32, u32)> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for value in sorted {
        match runs.last_mut() {
            Some((_, last)) if *last == value || last.checked_add(1) == Some(value) => {
                *last = value;
            }
            _ => runs.push((value, value)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::sets::{Ioctls, Listening, MemoryFiles, Netlink, SyscallSet, WriteExec};
    use crate::seccomp::table::number;
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    /// Runs a program as the kernel would; `None` for what the kernel would not load.
    fn run(program: &[SockFilter], arch: u32, nr: u32, args: [u64; 6]) -> Option<(u32, usize)> {
        let mut data = Vec::with_capacity(64);
        data.extend(nr.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        for a in args {
            data.extend(a.to_le_bytes());
        }
        let (mut pc, mut acc, mut steps) = (0usize, 0u32, 0);
        loop {
            let i = program.get(pc)?;
            pc += 1;
            steps += 1;
            match i.code {
                LD_ABS => {
                    let at = usize::try_from(i.k).ok()?;
                    acc = u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?);
                }
                AND => acc &= i.k,
                JA => pc += usize::try_from(i.k).ok()?,
                JEQ => pc += usize::from(if acc == i.k { i.jt } else { i.jf }),
                JGT => pc += usize::from(if acc > i.k { i.jt } else { i.jf }),
                JGE => pc += usize::from(if acc >= i.k { i.jt } else { i.jf }),
                RET => return Some((i.k, steps)),
                _ => return None,
            }
        }
    }

    /// The same for the base filter's instructions too: what it returns.
    fn run_any(program: &[SockFilter], nr: u32, args: [u64; 6]) -> u32 {
        const JSET: u16 = 0x45;
        let mut at = 0;
        let mut acc = 0u32;
        let mut data = Vec::with_capacity(64);
        data.extend(nr.to_le_bytes());
        data.extend(AUDIT_ARCH_X86_64.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        for a in args {
            data.extend(a.to_le_bytes());
        }
        loop {
            let i = program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
            match i.code {
                LD_ABS => {
                    let from = i.k as usize;
                    acc = u32::from_le_bytes(data[from..from + 4].try_into().expect("a word"));
                }
                AND => acc &= i.k,
                JA => at += i.k as usize,
                JEQ => at += jump(acc == i.k),
                JGT => at += jump(acc > i.k),
                JGE => at += jump(acc >= i.k),
                JSET => at += jump(acc & i.k != 0),
                RET => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// Every set, with the widest answers.
    fn widest() -> Surface {
        Surface {
            sets: SyscallSet::ALL.to_vec(),
            memory_files: MemoryFiles::Kernel,
            write_exec: WriteExec::Allowed,
            ioctls: Ioctls::Devices,
            listening: Listening::Allowed,
            netlink: Netlink::Interfaces,
            refusals: Refusals::Told,
        }
    }

    /// Every set, with the narrowest answers.
    fn narrowest() -> Surface {
        Surface {
            sets: SyscallSet::ALL.to_vec(),
            memory_files: MemoryFiles::Sealed,
            write_exec: WriteExec::Refused,
            ioctls: Ioctls::Known,
            listening: Listening::Refused,
            netlink: Netlink::Refused,
            refusals: Refusals::Silent,
        }
    }

    fn meaning(surface: &Surface, arch: u32, nr: u32, args: [u64; 6]) -> Action {
        if arch != AUDIT_ARCH_X86_64 || nr >= X32_BIT {
            return Action::Kill;
        }
        let name = SYSCALLS
            .iter()
            .find(|(n, _)| *n == nr)
            .map(|(_, name)| *name);
        let rules = surface.rules();
        let rule = name.and_then(|n| rules.get(n));
        match rule {
            None => told(default_action(nr), name, surface.refusals),
            Some(rule) => match rule.decide(args) {
                action if action == rule.otherwise => otherwise(rule, surface.refusals),
                action => action,
            },
        }
    }

    /// Argument values at and around everything that a rule compares with.
    fn interesting() -> impl Strategy<Value = u64> {
        let mut values: Vec<u64> = vec![0, 1, u64::MAX, 0xffff_ffff, 1 << 32];
        let rules = widest()
            .rules()
            .into_values()
            .chain(narrowest().rules().into_values());
        for rule in rules {
            for test in rule.cases.iter().flat_map(|c| c.tests) {
                values.push(u64::from(test.mask));
                values.push(u64::from(!test.mask));
                for v in test.values {
                    values.extend(
                        [*v, v.wrapping_add(1), v.wrapping_sub(1), v ^ 0x8000_0000].map(u64::from),
                    );
                    values.push(u64::from(*v) | 0xdead_beef_0000_0000);
                }
            }
        }
        prop_oneof![4 => prop::sample::select(values), 1 => any::<u64>()]
    }

    fn some_surface() -> impl Strategy<Value = Surface> {
        (
            prop::sample::subsequence(SyscallSet::ALL.to_vec(), 0..=SyscallSet::ALL.len()),
            prop::sample::select(vec![
                MemoryFiles::Refused,
                MemoryFiles::Sealed,
                MemoryFiles::Kernel,
            ]),
            prop::sample::select(vec![WriteExec::Refused, WriteExec::Allowed]),
            prop::sample::select(vec![Ioctls::Known, Ioctls::Devices]),
            prop::sample::select(vec![Listening::Refused, Listening::Allowed]),
            prop::sample::select(vec![Netlink::Refused, Netlink::Interfaces]),
            prop::sample::select(vec![Refusals::Silent, Refusals::Told]),
        )
            .prop_map(
                |(sets, memory_files, write_exec, ioctls, listening, netlink, refusals)| Surface {
                    sets,
                    memory_files,
                    write_exec,
                    ioctls,
                    listening,
                    netlink,
                    refusals,
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn the_program_means_what_the_rules_say(
            surface in some_surface(),
            nr in prop_oneof![12 => 0u32..480, 1 => any::<u32>()],
            args in prop::array::uniform6(interesting()),
        ) {
            let program = compile(&surface);
            let (code, _) = run(&program, AUDIT_ARCH_X86_64, nr, args).expect("the program ends in a return");
            prop_assert_eq!(code, meaning(&surface, AUDIT_ARCH_X86_64, nr, args).code());
        }

        #[test]
        fn calls_with_arguments_mean_what_the_rules_say(
            surface in some_surface(),
            at in 0usize..64,
            args in prop::array::uniform6(interesting()),
        ) {
            let rules = surface.rules();
            let checked: Vec<&Rule> = rules.values().filter(|r| !r.cases.is_empty()).collect();
            prop_assume!(!checked.is_empty());
            let nr = number(checked[at % checked.len()].name).expect("known");
            let (code, _) = run(&compile(&surface), AUDIT_ARCH_X86_64, nr, args).expect("the program ends in a return");
            prop_assert_eq!(code, meaning(&surface, AUDIT_ARCH_X86_64, nr, args).code());
        }
    }

    /// One of each: all ways to take a member of each list.
    fn product<T: Clone>(lists: impl IntoIterator<Item = Vec<T>>) -> Vec<Vec<T>> {
        lists.into_iter().fold(vec![Vec::new()], |taken, list| {
            taken
                .iter()
                .flat_map(|t| {
                    list.iter().map(move |item| {
                        let mut t = t.clone();
                        t.push(item.clone());
                        t
                    })
                })
                .collect()
        })
    }

    /// The same as seccompiler's rules: what is allowed, and no word on what else becomes of a call. Its rules are a choice
    /// of conjunctions, so an entry that allows what no case refuses is turned inside out: of each case, some test fails.
    fn by_seccompiler(surface: &Surface) -> Vec<SockFilter> {
        use seccompiler::{
            BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
            SeccompFilter, SeccompRule, TargetArch,
        };
        let condition = |test: &Test, op: SeccompCmpOp, value: u32| {
            SeccompCondition::new(test.arg, Dword, op, u64::from(value)).expect("a condition")
        };
        let mut by_number = std::collections::BTreeMap::new();
        for rule in surface.rules().values() {
            let mut alternatives: Vec<Vec<SeccompCondition>> = Vec::new();
            for case in rule.cases.iter().filter(|c| c.then == Action::Allow) {
                alternatives.extend(product(case.tests.iter().map(|t| {
                    let equal = SeccompCmpOp::MaskedEq(u64::from(t.mask));
                    t.values
                        .iter()
                        .map(|v| condition(t, equal.clone(), *v))
                        .collect()
                })));
            }
            if rule.otherwise == Action::Allow && !rule.cases.is_empty() {
                assert!(
                    rule.cases.iter().all(|c| c.then != Action::Allow),
                    "{}",
                    rule.name
                );
                let failing = rule.cases.iter().map(|c| c.tests.iter().collect());
                for chosen in product(failing) {
                    alternatives.push(
                        chosen
                            .iter()
                            .flat_map(|t| {
                                assert_eq!(
                                    t.mask,
                                    u32::MAX,
                                    "{}: seccompiler has no masked inequality",
                                    rule.name
                                );
                                t.values.iter().map(|v| condition(t, SeccompCmpOp::Ne, *v))
                            })
                            .collect(),
                    );
                }
            }
            if rule.otherwise != Action::Allow && alternatives.is_empty() {
                continue;
            }
            let rules: Vec<_> = alternatives
                .into_iter()
                .map(|c| SeccompRule::new(c).expect("a rule"))
                .collect();
            by_number.insert(i64::from(number(rule.name).expect("known")), rules);
        }
        let refuse = SeccompAction::Errno(1);
        let filter =
            SeccompFilter::new(by_number, refuse, SeccompAction::Allow, TargetArch::x86_64)
                .expect("a filter");
        let program: BpfProgram = filter.try_into().expect("a program");
        program
            .into_iter()
            .map(|i| SockFilter {
                code: i.code,
                jt: i.jt,
                jf: i.jf,
                k: i.k,
            })
            .collect()
    }

    #[test]
    fn seccompiler_allows_the_same_calls() {
        for surface in [widest(), narrowest()] {
            let ours = compile(&surface);
            let theirs = by_seccompiler(&surface);
            let allows = |program: &[SockFilter], nr, args| {
                run(program, AUDIT_ARCH_X86_64, nr, args)
                    .expect("ends in a return")
                    .0
                    == Action::Allow.code()
            };
            let mut runner = proptest::test_runner::TestRunner::deterministic();
            let arguments = prop::array::uniform6(interesting());
            for nr in 0..480 {
                for _ in 0..40 {
                    let args = arguments.new_tree(&mut runner).expect("a value").current();
                    assert_eq!(
                        allows(&ours, nr, args),
                        allows(&theirs, nr, args),
                        "{nr} {args:x?}"
                    );
                }
            }
        }
    }

    #[test]
    fn whatever_the_base_filter_leaves_to_the_init_this_filter_leaves_to_it_or_refuses() {
        use agentd_launch::floor::{self, base_filter};
        use agentd_launch::plan::ExecFlags;
        // Else the kernel would refuse it with ENOSYS, in a base filter that has no listener.
        for (sets, exec) in [
            (SyscallSet::ALL.to_vec(), ExecFlags::DEBUG),
            (Vec::new(), ExecFlags::NONE),
        ] {
            let program = compile(&Surface { sets, ..widest() });
            let base: Vec<SockFilter> = base_filter(exec, floor::Refusals::Told).to_vec();
            let namespaces = [0x1000_0000, 0, 0, 0, 0, 0];
            for (nr, args) in (0..480).flat_map(|nr| [(nr, [0; 6]), (nr, namespaces)]) {
                let code = |program: &[SockFilter]| run_any(program, nr, args);
                if code(&base) != Action::Tell.code() {
                    continue;
                }
                let own = code(&program);
                assert_ne!(own, Action::Allow.code(), "{nr} {args:x?}");
            }
        }
    }

    #[test]
    fn every_number_gets_its_default_without_sets() {
        let program = compile(&Surface {
            sets: Vec::new(),
            ..narrowest()
        });
        for nr in 0..1000 {
            let (code, _) = run(&program, AUDIT_ARCH_X86_64, nr, [0; 6]).unwrap();
            assert_eq!(code, default_action(nr).code(), "{nr}");
        }
    }

    #[test]
    fn every_answer_of_a_policy_compiles_with_and_without_each_set() {
        let one_less = |without: usize| {
            let sets = SyscallSet::ALL.iter().copied().enumerate();
            sets.filter(move |(at, _)| *at != without)
                .map(|(_, set)| set)
                .collect::<Vec<_>>()
        };
        for without in 0..=SyscallSet::ALL.len() {
            for memory_files in [
                MemoryFiles::Refused,
                MemoryFiles::Sealed,
                MemoryFiles::Kernel,
            ] {
                for write_exec in [WriteExec::Refused, WriteExec::Allowed] {
                    for (ioctls, listening, netlink) in [
                        (Ioctls::Known, Listening::Refused, Netlink::Refused),
                        (Ioctls::Devices, Listening::Allowed, Netlink::Interfaces),
                    ] {
                        let sets = one_less(without);
                        let program = compile(&Surface {
                            sets,
                            memory_files,
                            write_exec,
                            ioctls,
                            listening,
                            netlink,
                            refusals: Refusals::Told,
                        });
                        assert!(program.len() < 512, "{} instructions", program.len());
                    }
                }
            }
        }
    }

    #[test]
    fn another_architecture_and_x32_are_killed() {
        let program = compile(&widest());
        // AUDIT_ARCH_I386, as int 0x80 shows itself, and AUDIT_ARCH_AARCH64
        for arch in [0x4000_0003, 0xc000_00b7, 0] {
            assert_eq!(
                run(&program, arch, 20, [0; 6]).unwrap().0,
                Action::Kill.code()
            );
        }
        for nr in [X32_BIT, X32_BIT | 1, X32_BIT | 520, u32::MAX] {
            assert_eq!(
                run(&program, AUDIT_ARCH_X86_64, nr, [0; 6]).unwrap().0,
                Action::Kill.code()
            );
        }
    }

    #[test]
    fn the_program_is_short_and_the_search_shallow() {
        for surface in [widest(), narrowest()] {
            let program = compile(&surface);
            assert!(program.len() < 1024, "{} instructions", program.len());
            for rule in surface.rules().values().filter(|r| r.cases.is_empty()) {
                let nr = number(rule.name).expect("known");
                let (code, steps) = run(&program, AUDIT_ARCH_X86_64, nr, [0; 6]).unwrap();
                assert_eq!(code, rule.otherwise.code(), "{}", rule.name);
                assert!(steps <= 20, "{} takes {steps} instructions", rule.name);
            }
        }
    }
}
