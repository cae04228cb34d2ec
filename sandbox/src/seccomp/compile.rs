//! From rules to a filter program: architecture, x32, then a binary search over the system call number.

use super::refused;
use super::rule::{Action, ENOSYS, Rule, Test};
use super::sets::Surface;
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

fn ret(action: Action) -> SockFilter {
    op(RET, action.code(), 0, 0)
}

/// What applies to the numbers from `first` up to the next leaf.
struct Leaf {
    first: u32,
    code: Vec<SockFilter>,
}

/// The filter program that allows this surface and nothing else.
///
/// # Panics
/// Never for the entries of this crate: the tests compile each answer of a policy with every set, which bounds the jumps
/// and the length.
pub fn compile(surface: &Surface) -> Vec<SockFilter> {
    let leaves = leaves(&surface.rules());
    let mut program = vec![
        op(LD_ABS, DATA_ARCH, 0, 0),
        op(JEQ, AUDIT_ARCH_X86_64, 1, 0),
        ret(Action::Kill),
        op(LD_ABS, DATA_NR, 0, 0),
        op(JGE, X32_BIT, 0, 1),
        ret(Action::Kill),
    ];
    program.extend(search(&leaves));
    program
}

/// What a number that no rule names gets.
fn default_action(nr: u32) -> Action {
    match SYSCALLS.binary_search_by_key(&nr, |(n, _)| *n) {
        Ok(at) => refused::answer(SYSCALLS[at].1),
        Err(_) => ENOSYS,
    }
}

fn leaves(rules: &BTreeMap<&'static str, Rule>) -> Vec<Leaf> {
    let last = SYSCALLS.last().map_or(0, |(nr, _)| *nr);
    let mut leaves: Vec<Leaf> = Vec::new();
    for nr in 0..=last + 1 {
        let name = SYSCALLS
            .binary_search_by_key(&nr, |(n, _)| *n)
            .map(|at| SYSCALLS[at].1)
            .ok();
        let code = match name.and_then(|n| rules.get(n)) {
            Some(rule) => rule_code(rule),
            None => vec![ret(default_action(nr))],
        };
        if leaves.last().is_none_or(|l| l.code != code) {
            leaves.push(Leaf { first: nr, code });
        }
    }
    leaves
}

/// Finds the leaf of the number in the accumulator, and runs it.
fn search(leaves: &[Leaf]) -> Vec<SockFilter> {
    let [one] = leaves else {
        let (left, right) = leaves.split_at(leaves.len() / 2);
        let (first, left, right) = (right[0].first, search(left), search(right));
        let mut code = match u8::try_from(left.len()) {
            Ok(skip) => vec![op(JGE, first, skip, 0)],
            // Conditional jumps reach 255 instructions, unconditional ones any distance.
            Err(_) => {
                let skip = u32::try_from(left.len()).expect("a program is shorter than 2^32");
                vec![op(JGE, first, 0, 1), op(JA, skip, 0, 0)]
            }
        };
        code.extend(left);
        code.extend(right);
        return code;
    };
    one.code.clone()
}

fn rule_code(rule: &Rule) -> Vec<SockFilter> {
    let mut code = Vec::new();
    for case in rule.cases {
        let mut block = vec![ret(case.then)];
        for test in case.tests.iter().rev() {
            let mut next = test_code(test, block.len());
            next.extend(block);
            block = next;
        }
        code.extend(block);
    }
    code.push(ret(rule.otherwise));
    code
}

/// Falls through when the test holds; skips `rest` instructions when it does not.
fn test_code(test: &Test, rest: usize) -> Vec<SockFilter> {
    let mut code = vec![op(LD_ABS, data_arg(test.arg), 0, 0)];
    if test.mask != u32::MAX {
        code.push(op(AND, test.mask, 0, 0));
    }
    let last = test.values.len() - 1;
    for (i, value) in test.values.iter().enumerate() {
        let matched = u8::try_from(last - i).expect("a test has at most 256 values");
        let failed = if i == last {
            u8::try_from(rest).expect("a case is shorter than a jump")
        } else {
            0
        };
        code.push(op(JEQ, *value, matched, failed));
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::sets::{Ioctls, Listening, MemoryFiles, SyscallSet, WriteExec};
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
                // Only seccompiler's programs compare so.
                0x25 => pc += usize::from(if acc > i.k { i.jt } else { i.jf }),
                JGE => pc += usize::from(if acc >= i.k { i.jt } else { i.jf }),
                RET => return Some((i.k, steps)),
                _ => return None,
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
        rule.map_or(default_action(nr), |r| r.decide(args))
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
        )
            .prop_map(
                |(sets, memory_files, write_exec, ioctls, listening)| Surface {
                    sets,
                    memory_files,
                    write_exec,
                    ioctls,
                    listening,
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
