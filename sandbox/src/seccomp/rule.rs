//! What a filter says about one system call, and the plain meaning of it (the oracle of the compiler's tests).

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Errno(u16),
    /// EPERM, from the sandbox's init, which tells of it.
    Tell,
    /// SIGSYS for the whole process.
    Kill,
}

pub(crate) const EPERM: Action = Action::Errno(1);
pub(crate) const ENOMEM: Action = Action::Errno(12);
pub(crate) const EACCES: Action = Action::Errno(13);
pub(crate) const EINVAL: Action = Action::Errno(22);
pub(crate) const ENOTTY: Action = Action::Errno(25);
pub(crate) const ENOLCK: Action = Action::Errno(37);
pub(crate) const ENOSYS: Action = Action::Errno(38);
pub(crate) const ENOPROTOOPT: Action = Action::Errno(92);
pub(crate) const EPROTONOSUPPORT: Action = Action::Errno(93);
pub(crate) const EOPNOTSUPP: Action = Action::Errno(95);
pub(crate) const EAFNOSUPPORT: Action = Action::Errno(97);

impl Action {
    /// The value a filter returns (`SECCOMP_RET_*`).
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Errno(n) => 0x0005_0000 | u32::from(n),
            Self::Tell => 0x7fc0_0000,
            Self::Kill => 0x8000_0000,
        }
    }
}

/// Whether the low 32 bits of an argument, masked, are one of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Test {
    /// 0 to 5.
    pub arg: u8,
    pub mask: u32,
    /// Not empty.
    pub values: &'static [u32],
}

/// If every test holds, then this.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Case {
    pub tests: &'static [Test],
    pub then: Action,
}

/// One system call of a set. The first case that applies decides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub name: &'static str,
    /// What an agent needs it for, or why its arguments are looked at.
    pub why: &'static str,
    pub cases: &'static [Case],
    pub otherwise: Action,
}

/// Allowed, whatever its arguments.
pub(crate) const fn allow(name: &'static str, why: &'static str) -> Rule {
    Rule {
        name,
        why,
        cases: &[],
        otherwise: Action::Allow,
    }
}

/// Decided by its arguments.
pub(crate) const fn checked(
    name: &'static str,
    why: &'static str,
    cases: &'static [Case],
    otherwise: Action,
) -> Rule {
    Rule {
        name,
        why,
        cases,
        otherwise,
    }
}

/// The whole argument is one of these.
pub(crate) const fn is(arg: u8, values: &'static [u32]) -> Test {
    Test {
        arg,
        mask: u32::MAX,
        values,
    }
}

/// Of these bits exactly one of these patterns is set.
pub(crate) const fn bits(arg: u8, mask: u32, values: &'static [u32]) -> Test {
    Test { arg, mask, values }
}

/// None of these bits is set.
pub(crate) const fn clear(arg: u8, mask: u32) -> Test {
    bits(arg, mask, &[0])
}

pub(crate) const fn allow_if(tests: &'static [Test]) -> Case {
    Case {
        tests,
        then: Action::Allow,
    }
}

pub(crate) const fn refuse_if(tests: &'static [Test], then: Action) -> Case {
    Case { tests, then }
}

impl Rule {
    /// What the rule means, said plainly.
    #[cfg(test)]
    pub(crate) fn decide(&self, args: [u64; 6]) -> Action {
        let holds = |t: &Test| {
            t.values
                .contains(&(args[usize::from(t.arg)] as u32 & t.mask))
        };
        self.cases
            .iter()
            .find(|c| c.tests.iter().all(holds))
            .map_or(self.otherwise, |c| c.then)
    }
}
