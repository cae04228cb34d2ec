//! What the program loses, in the order the kernel wants it, with a proof for each step.
//!
//! The proofs cannot be made elsewhere, copied or forgotten: [`super::agent`] executes the program only for someone who
//! hands over all four. `NoNewPrivs` and `CapsDropped` are the init's, which keeps nothing either; its child inherits
//! both. Landlock and seccomp are the child's alone.

use agentd_kernel::sys::security::{self, landlock, landlock::Logging};
use agentd_kernel::sys::{Errno, Fd, FdRef, SockFilter, fs, notify, process};

use super::{During, Outcome};
use crate::floor::{Refusals, base_filter, runtime_filter};
use crate::plan::{ExecFlags, Mode, Plan, Record};
use crate::status::{Failure, NO_RECORD, Step};

/// No exec gives this process or its children more than they have.
pub(super) struct NoNewPrivs(());

/// Every capability set is empty, the bounding set too, and nothing fills them again.
pub(super) struct CapsDropped(());

/// The plan's ruleset is enforced, as far as the kernel's ABI goes.
pub(super) struct LandlockEnforced {
    /// The kernel's ABI.
    pub abi: u32,
    /// Whether there is a ruleset at all.
    pub active: bool,
    /// Whether it handles TCP ports.
    pub net: bool,
}

/// The base filter and, over it, the plan's are loaded.
pub(super) struct SeccompLoaded {
    /// Where the plan's filter holds calls for their refusal to be told, if it does.
    pub listener: Option<Fd>,
}

/// Whether memory files made from here on can't be executed: `vm.memfd_noexec` as this pid namespace has it, from the
/// host's `/proc`. Only the parent could set it; this says what came of it.
pub(super) fn memfd_noexec() -> bool {
    const NEVER_EXECUTED: u8 = b'2';
    let mut value = [0; 4];
    let mut read = || {
        let file = fs::openat2(
            FdRef::CWD,
            c"/proc/sys/vm/memfd_noexec",
            fs::O_RDONLY,
            0,
            fs::RESOLVE_NO_SYMLINKS,
        )?;
        fs::read(file.borrow(), &mut value)
    };
    read().is_ok_and(|len| len > 0) && value[0] == NEVER_EXECUTED
}

/// Refuses the right to execute to every mapping that does not have it from the start, for good. Whether this kernel can
/// (Linux 6.3).
pub(super) fn deny_write_execute() -> Outcome<bool> {
    match security::set_memory_deny_write_execute() {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(Failure::new(Step::Mdwe, errno.raw(), NO_RECORD)),
    }
}

impl NoNewPrivs {
    pub(super) fn set() -> Outcome<NoNewPrivs> {
        security::set_no_new_privs().during(Step::NoNewPrivs, NO_RECORD)?;
        Ok(NoNewPrivs(()))
    }
}

impl CapsDropped {
    pub(super) fn drop_all(_: &NoNewPrivs) -> Outcome<CapsDropped> {
        let drop_all = || {
            security::drop_bounding_set()?;
            security::lock_securebits()?;
            security::drop_capabilities()?;
            if security::has_no_capabilities()? {
                Ok(CapsDropped(()))
            } else {
                Err(Errno::PERM)
            }
        };
        drop_all().during(Step::Caps, NO_RECORD)
    }
}

impl CapsDropped {
    /// Nothing to drop: runsc has started this process without any, on a kernel on which nothing gives it some.
    pub(super) fn found(_: &NoNewPrivs) -> Outcome<CapsDropped> {
        let found = || match security::has_no_capabilities()? {
            true => Ok(CapsDropped(())),
            false => Err(Errno::PERM),
        };
        found().during(Step::Caps, NO_RECORD)
    }
}

impl LandlockEnforced {
    /// gVisor's kernel has no Landlock. Its processes are in the domain that its parent entered.
    pub(super) fn outside() -> LandlockEnforced {
        LandlockEnforced {
            abi: 0,
            active: false,
            net: false,
        }
    }

    /// Enforces the plan's ruleset, if it has one. Paths are looked up from the working root.
    pub(super) fn enforce(plan: &Plan<'_>, _: &NoNewPrivs) -> Outcome<LandlockEnforced> {
        let abi = landlock::abi();
        let found = (0u16..)
            .zip(plan.records())
            .find_map(|(at, record)| match record {
                Record::Landlock {
                    handled_fs,
                    handled_net,
                    scoped,
                    min_abi,
                } => Some((at, handled_fs, handled_net, scoped, min_abi)),
                _ => None,
            });
        let Some((at, handled_fs, handled_net, scoped, min_abi)) = found else {
            return Ok(LandlockEnforced {
                abi,
                active: false,
                net: false,
            });
        };
        if abi < u32::from(min_abi) {
            return Err(Failure::new(Step::Landlock, Errno::OPNOTSUPP.raw(), at));
        }
        let fs = handled_fs & landlock::known_fs(abi);
        let net = handled_net & landlock::known_net(abi);
        let scoped = scoped & landlock::known_scopes(abi);
        if fs | net | scoped == 0 {
            return Ok(LandlockEnforced {
                abi,
                active: false,
                net: false,
            });
        }
        let ruleset = landlock::create(fs, net, scoped).during(Step::Landlock, at)?;
        for (at, record) in (0u16..).zip(plan.records()) {
            match record {
                Record::LandlockPath {
                    path,
                    access,
                    optional,
                } if access & fs != 0 => {
                    match open_rule_path(path) {
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if optional => Ok(()),
                        Err(errno) => Err(errno),
                        Ok(found) => allow(ruleset.borrow(), found.borrow(), access & fs),
                    }
                    .during(Step::LandlockPath, at)?;
                }
                Record::LandlockPort { port, access } if access & net != 0 => {
                    landlock::allow_port(ruleset.borrow(), port, access & net)
                        .during(Step::LandlockPort, at)?;
                }
                _ => {}
            }
        }
        let logging = match plan.mode() {
            Mode::Root if abi >= landlock::LOGGING_ABI => Logging::Programs,
            Mode::Root | Mode::User => Logging::Caller,
        };
        landlock::restrict_self(ruleset.borrow(), logging).during(Step::Landlock, at)?;
        if logging == Logging::Programs {
            introduce();
        }
        Ok(LandlockEnforced {
            abi,
            active: true,
            net: net != 0,
        })
    }
}

/// Makes the new domain known to who reads the kernel's audit (ADR 40): a signal 0 to the sandbox's init, which is outside of the
/// domain, is refused, and the record has the domain's number and the init's on the host. Where no audit is on nothing is heard.
fn introduce() {
    const INIT: i32 = 1;
    // Refused is what it is to be; signal 0 would do nothing.
    process::kill(INIT, 0).unwrap_or(());
}

/// What a rule is about.
fn open_rule_path(path: &core::ffi::CStr) -> Result<Fd, Errno> {
    let resolve = fs::RESOLVE_NO_SYMLINKS | fs::RESOLVE_NO_MAGICLINKS;
    fs::openat2(FdRef::CWD, path, fs::O_PATH, 0, resolve)
}

/// Allows what makes sense for what was found: the kernel refuses rights of directories for anything else.
fn allow(ruleset: FdRef<'_>, found: FdRef<'_>, access: u64) -> Result<(), Errno> {
    match landlock::allow_path(ruleset, found, access) {
        Err(Errno::INVAL) if access & !landlock::FILE_RIGHTS != 0 => {
            match access & landlock::FILE_RIGHTS {
                0 => Ok(()),
                access => landlock::allow_path(ruleset, found, access),
            }
        }
        done => done,
    }
}

impl SeccompLoaded {
    /// Loads the base filter and then the plan's. Hardly any system call can be counted on afterwards.
    pub(super) fn load(
        plan: &Plan<'_>,
        _: &NoNewPrivs,
        _: &CapsDropped,
        _: &LandlockEnforced,
    ) -> Outcome<SeccompLoaded> {
        let refusals = if plan.exec().contains(ExecFlags::TELL) {
            Refusals::Told
        } else {
            Refusals::Silent
        };
        security::load_seccomp_filter(base_filter(plan.exec(), refusals))
            .during(Step::BaseFilter, NO_RECORD)?;
        let own = (0u16..)
            .zip(plan.records())
            .find_map(|(at, record)| match record {
                Record::Seccomp(program) => Some((at, program)),
                _ => None,
            });
        if let Some((at, bytes)) = own {
            // SAFETY: any eight bytes are an instruction, in this order on the only architecture there is.
            let (before, program, after) = unsafe { bytes.align_to::<SockFilter>() };
            if !before.is_empty() || !after.is_empty() {
                return Err(Failure::new(Step::PlanFilter, Errno::INVAL.raw(), at));
            }
            if plan.exec().contains(ExecFlags::TELL) {
                let listener = Self::load_telling(plan.exec(), program);
                return Ok(SeccompLoaded {
                    listener: listener.during(Step::PlanFilter, at)?,
                });
            }
            security::load_seccomp_filter(program).during(Step::PlanFilter, at)?;
        }
        Ok(SeccompLoaded { listener: None })
    }

    /// The plan's filter, over a base filter that leaves the answer to it. `None` where somebody above this process has the one
    /// listener that the kernel allows: then nothing is told, and everything is refused all the same, by a base filter that says
    /// so itself or by the kernel.
    fn load_telling(exec: ExecFlags, program: &[SockFilter]) -> Result<Option<Fd>, Errno> {
        match notify::load_filter_with_listener(program) {
            Ok(listener) => Ok(Some(listener)),
            Err(Errno::BUSY | Errno::INVAL) => {
                security::load_seccomp_filter(base_filter(exec, Refusals::Silent))?;
                security::load_seccomp_filter(program)?;
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// What `runsc` runs under, whatever the plan says.
    pub(super) fn load_for_runtime(
        _: &NoNewPrivs,
        _: &CapsDropped,
        _: &LandlockEnforced,
    ) -> Outcome<SeccompLoaded> {
        security::load_seccomp_filter(runtime_filter()).during(Step::BaseFilter, NO_RECORD)?;
        Ok(SeccompLoaded { listener: None })
    }
}
