//! From rules to a filter program: architecture, x32, then a binary search over the system call number.

use super::rule::{Action, ENOSYS, EPERM, Rule, Test};
use super::sets::{ABSENT, SyscallSet};
use super::table::SYSCALLS;
use agentd_kernel::sys::SockFilter;

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

/// The filter program that allows these sets and nothing else.
///
/// # Panics
/// Never for the sets of this crate: a test compiles every combination that a policy can name singly and all
/// together, which bounds the jumps and the length.
pub fn compile(sets: &[SyscallSet]) -> Vec<SockFilter> {
    let rules: Vec<Rule> = SyscallSet::ALL
        .iter()
        .filter(|s| sets.contains(s))
        .flat_map(|s| s.rules())
        .copied()
        .collect();
    let leaves = leaves(&rules);
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
        Ok(at) if ABSENT.contains(&SYSCALLS[at].1) => ENOSYS,
        Ok(_) => EPERM,
        Err(_) => ENOSYS,
    }
}

fn leaves(rules: &[Rule]) -> Vec<Leaf> {
    let last = SYSCALLS.last().map_or(0, |(nr, _)| *nr);
    let mut leaves: Vec<Leaf> = Vec::new();
    for nr in 0..=last + 1 {
        let name = SYSCALLS
            .binary_search_by_key(&nr, |(n, _)| *n)
            .map(|at| SYSCALLS[at].1)
            .ok();
        let code = match name.and_then(|n| rules.iter().find(|r| r.name == n)) {
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

    fn meaning(sets: &[SyscallSet], arch: u32, nr: u32, args: [u64; 6]) -> Action {
        if arch != AUDIT_ARCH_X86_64 || nr >= X32_BIT {
            return Action::Kill;
        }
        let name = SYSCALLS
            .iter()
            .find(|(n, _)| *n == nr)
            .map(|(_, name)| *name);
        let rule = name.and_then(|n| sets.iter().flat_map(|s| s.rules()).find(|r| r.name == n));
        rule.map_or(default_action(nr), |r| r.decide(args))
    }

    /// Argument values at and around everything that a rule compares with.
    fn interesting() -> impl Strategy<Value = u64> {
        let mut values: Vec<u64> = vec![0, 1, u64::MAX, 0xffff_ffff, 1 << 32];
        for rule in SyscallSet::ALL.iter().flat_map(|s| s.rules()) {
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

    fn some_sets() -> impl Strategy<Value = Vec<SyscallSet>> {
        prop::sample::subsequence(SyscallSet::ALL.to_vec(), 0..=SyscallSet::ALL.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn the_program_means_what_the_rules_say(
            sets in some_sets(),
            nr in prop_oneof![12 => 0u32..480, 1 => any::<u32>()],
            args in prop::array::uniform6(interesting()),
        ) {
            let program = compile(&sets);
            let (code, _) = run(&program, AUDIT_ARCH_X86_64, nr, args).expect("the program ends in a return");
            prop_assert_eq!(code, meaning(&sets, AUDIT_ARCH_X86_64, nr, args).code());
        }

        #[test]
        fn calls_with_arguments_mean_what_the_rules_say(
            at in 0usize..64,
            args in prop::array::uniform6(interesting()),
        ) {
            let checked: Vec<Rule> =
                SyscallSet::ALL.iter().flat_map(|s| s.rules()).filter(|r| !r.cases.is_empty()).copied().collect();
            let nr = number(checked[at % checked.len()].name).expect("known");
            let program = compile(SyscallSet::ALL);
            let (code, _) = run(&program, AUDIT_ARCH_X86_64, nr, args).expect("the program ends in a return");
            prop_assert_eq!(code, meaning(SyscallSet::ALL, AUDIT_ARCH_X86_64, nr, args).code());
        }
    }

    /// The same sets as seccompiler's rules: what is allowed, and no word on what else becomes of a call.
    fn by_seccompiler(sets: &[SyscallSet]) -> Vec<SockFilter> {
        use seccompiler::{
            BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
            SeccompFilter, SeccompRule, TargetArch,
        };
        let condition = |test: &Test, op: fn(u64) -> SeccompCmpOp, value: u32| {
            SeccompCondition::new(test.arg, Dword, op(u64::from(test.mask)), u64::from(value))
                .expect("a condition")
        };
        let mut rules = std::collections::BTreeMap::new();
        for rule in sets.iter().flat_map(|s| s.rules()) {
            let mut alternatives = Vec::new();
            for case in rule.cases.iter().filter(|c| c.then == Action::Allow) {
                // One rule for each choice of values.
                let mut choices: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
                for test in case.tests {
                    choices = choices
                        .iter()
                        .flat_map(|c| {
                            test.values.iter().map(|v| {
                                let mut c = c.clone();
                                c.push(condition(test, SeccompCmpOp::MaskedEq, *v));
                                c
                            })
                        })
                        .collect();
                }
                alternatives.extend(choices);
            }
            if rule.otherwise == Action::Allow && !rule.cases.is_empty() {
                // Refusals of single values, and everything else allowed.
                let refused = rule
                    .cases
                    .iter()
                    .flat_map(|c| c.tests)
                    .flat_map(|t| t.values.iter().map(move |v| (t, *v)));
                alternatives.push(
                    refused
                        .map(|(t, v)| condition(t, |_| SeccompCmpOp::Ne, v))
                        .collect(),
                );
            }
            let rules_of_it: Vec<_> = alternatives
                .into_iter()
                .map(|c| SeccompRule::new(c).expect("a rule"))
                .collect();
            rules.insert(i64::from(number(rule.name).expect("known")), rules_of_it);
        }
        let refuse = SeccompAction::Errno(1);
        let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::x86_64)
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
        let ours = compile(SyscallSet::ALL);
        let theirs = by_seccompiler(SyscallSet::ALL);
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

    #[test]
    fn every_number_gets_its_default_without_sets() {
        let program = compile(&[]);
        for nr in 0..1000 {
            let (code, _) = run(&program, AUDIT_ARCH_X86_64, nr, [0; 6]).unwrap();
            assert_eq!(code, default_action(nr).code(), "{nr}");
        }
    }

    #[test]
    fn another_architecture_and_x32_are_killed() {
        let program = compile(SyscallSet::ALL);
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
        let program = compile(SyscallSet::ALL);
        assert!(program.len() < 1024, "{} instructions", program.len());
        let plain = SYSCALLS
            .iter()
            .map(|(nr, _)| run(&program, AUDIT_ARCH_X86_64, *nr, [0; 6]).unwrap().1);
        assert!(plain.max() <= Some(60), "the longest path is too long");
        let read = run(&program, AUDIT_ARCH_X86_64, 0, [0; 6]).unwrap().1;
        assert!(read <= 16, "read takes {read} instructions");
    }
}
