//! The floor: what holds whatever plan arrives. The broker checks a plan against it before it makes anything, the
//! launcher again before it applies anything, so a hostile agentd gets no further than a hostile agent.
//!
//! Two parts: [`check`], a pure function over a parsed plan, and [`base_filter`], the seccomp program that the launcher
//! loads *under* the plan's own. A plan can add to both, never take away. `docs/floor.md` lists it in prose.

use core::ffi::CStr;
use core::fmt;

use crate::plan::{MAX_GRANTS, Mode, MountFlags, Network, Plan, Record};

mod filter;
mod sources;

pub use filter::{Refusals, base_filter, runtime_filter};
pub use sources::ROOT_SOURCES;

/// The longest an agent may outlive one of its lifelines.
pub const MAX_LIFELINE_GRACE_MS: u32 = 600_000;

/// What the checker knows that the plan does not.
#[derive(Debug, Clone, Copy)]
pub struct FloorContext {
    /// How the checker itself runs.
    pub mode: Mode,
    /// How many grants came with the plan.
    pub grants: u32,
    /// The most that a plan may have: [`Network::Host`] only where the operator has said so.
    pub network: Network,
}

/// What a plan asked for that no plan gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FloorViolation {
    /// The plan was made for the other mode.
    Mode {
        /// What the plan says.
        plan: Mode,
        /// What is.
        actual: Mode,
    },
    /// Uid or gid 0 or -1 inside.
    Ids {
        /// Asked for.
        uid: u32,
        /// Asked for.
        gid: u32,
    },
    /// Host files by name that could be written.
    WritableBind {
        /// The record.
        record: u16,
    },
    /// Root mode: a host path that is not on the list.
    Source {
        /// The record.
        record: u16,
    },
    /// A grant that did not come with the plan.
    GrantIndex {
        /// The record.
        record: u16,
        /// Asked for.
        index: u32,
    },
    /// One grant mounted twice.
    GrantReused {
        /// The record.
        record: u16,
        /// Asked for.
        index: u32,
    },
    /// A grant that the plan does not mount: the caller would believe it is there.
    GrantUnused {
        /// Left over.
        index: u32,
    },
    /// The host's network, which nobody has allowed.
    HostNetwork,
    /// A TCP listener in the host's network, where everybody could connect to it.
    HostListener {
        /// The record.
        record: u16,
    },
    /// gVisor in the host's network namespace: its `runsc` is let mount and make namespaces, but nowhere near the host.
    GvisorOnHostNetwork,
    /// A grace beyond [`MAX_LIFELINE_GRACE_MS`].
    LifelineGrace {
        /// Asked for.
        ms: u32,
    },
}

impl fmt::Display for FloorViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FloorViolation::Mode { plan, actual } => {
                write!(f, "plan is for {plan:?} mode, this is {actual:?} mode")
            }
            FloorViolation::Ids { uid, gid } => {
                write!(
                    f,
                    "plan asks for uid {uid} and gid {gid} inside; neither may be 0 or {}",
                    u32::MAX
                )
            }
            FloorViolation::WritableBind { record } => {
                write!(
                    f,
                    "plan record {record}: a host path is bound read-only; only a grant can be writable"
                )
            }
            FloorViolation::Source { record } => {
                write!(
                    f,
                    "plan record {record}: source is not on the list of host paths that may be bound"
                )
            }
            FloorViolation::GrantIndex { record, index } => {
                write!(
                    f,
                    "plan record {record}: grant {index} did not come with the plan"
                )
            }
            FloorViolation::GrantReused { record, index } => {
                write!(f, "plan record {record}: grant {index} is already mounted")
            }
            FloorViolation::GrantUnused { index } => write!(
                f,
                "grant {index} came with the plan, which does not mount it"
            ),
            FloorViolation::HostNetwork => f.write_str(
                "plan asks for the host's network, which this broker was not told to give (agentd-broker --host-network)",
            ),
            FloorViolation::HostListener { record } => write!(
                f,
                "plan record {record}: no TCP listener is made in the host's network"
            ),
            FloorViolation::GvisorOnHostNetwork => {
                f.write_str("plan asks for gVisor and the host's network at once; it may have one")
            }
            FloorViolation::LifelineGrace { ms } => {
                write!(
                    f,
                    "lifeline grace of {ms} ms is longer than {MAX_LIFELINE_GRACE_MS} ms"
                )
            }
        }
    }
}

impl core::error::Error for FloorViolation {}

/// Refuses a plan that asks for what no plan gets.
pub fn check(plan: &Plan<'_>, context: &FloorContext) -> Result<(), FloorViolation> {
    if plan.mode() != context.mode {
        return Err(FloorViolation::Mode {
            plan: plan.mode(),
            actual: context.mode,
        });
    }
    let (uid, gid) = plan.ids();
    if [uid, gid].iter().any(|id| matches!(*id, 0 | u32::MAX)) {
        return Err(FloorViolation::Ids { uid, gid });
    }
    if plan.lifeline_grace_ms() > MAX_LIFELINE_GRACE_MS {
        return Err(FloorViolation::LifelineGrace {
            ms: plan.lifeline_grace_ms(),
        });
    }
    if plan.network() == Network::Host && context.network == Network::Own {
        return Err(FloorViolation::HostNetwork);
    }
    if plan.gvisor().is_some() && plan.network() == Network::Host {
        return Err(FloorViolation::GvisorOnHostNetwork);
    }
    let mut mounted = [false; MAX_GRANTS];
    for (record, content) in (0u16..).zip(plan.records()) {
        match content {
            Record::Bind { src, flags, .. } => check_bind(src, flags, context.mode, record)?,
            Record::TcpListener { .. } if plan.network() == Network::Host => {
                return Err(FloorViolation::HostListener { record });
            }
            Record::GrantMount { index, .. } | Record::Overlay { index, .. } => {
                match mounted.get_mut(index as usize) {
                    Some(_) if index >= context.grants => {
                        return Err(FloorViolation::GrantIndex { record, index });
                    }
                    None => return Err(FloorViolation::GrantIndex { record, index }),
                    Some(true) => return Err(FloorViolation::GrantReused { record, index }),
                    Some(free) => *free = true,
                }
            }
            _ => {}
        }
    }
    match (0..context.grants).find(|index| mounted.get(*index as usize) != Some(&true)) {
        Some(index) => Err(FloorViolation::GrantUnused { index }),
        None => Ok(()),
    }
}

fn check_bind(
    src: &CStr,
    flags: MountFlags,
    mode: Mode,
    record: u16,
) -> Result<(), FloorViolation> {
    if !flags.contains(MountFlags::RDONLY) {
        return Err(FloorViolation::WritableBind { record });
    }
    if mode == Mode::Root && !sources::allowed(src.to_bytes()) {
        return Err(FloorViolation::Source { record });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{GvisorFlags, PlanBuilder, Stdio};

    fn verdict(
        mode: Mode,
        grants: u32,
        build: impl FnOnce(&mut PlanBuilder) -> &mut PlanBuilder,
    ) -> Result<(), FloorViolation> {
        let mut plan = PlanBuilder::new(mode);
        plan.cwd("/").stdio(Stdio::Pipes).arg("true");
        build(&mut plan);
        if plan.finish().is_err() {
            plan.ids(1000, 1000);
        }
        let bytes = plan.finish().unwrap();
        let network = Network::Own;
        check(
            &Plan::parse(&bytes).unwrap(),
            &FloorContext {
                mode,
                grants,
                network,
            },
        )
    }

    #[test]
    fn an_ordinary_plan_passes() {
        fn ordinary(p: &mut PlanBuilder) -> &mut PlanBuilder {
            p.bind("/usr", "/usr", MountFlags::RDONLY).bind(
                "/etc/ssl",
                "/etc/ssl",
                MountFlags::RDONLY,
            );
            p.grant_mount(0, "/work", MountFlags::NONE)
        }
        assert_eq!(verdict(Mode::Root, 1, ordinary), Ok(()));
        assert_eq!(verdict(Mode::User, 1, ordinary), Ok(()));
    }

    #[test]
    fn a_plan_for_the_other_mode_is_refused() {
        let mut plan = PlanBuilder::new(Mode::User);
        let bytes = plan
            .ids(1, 1)
            .cwd("/")
            .stdio(Stdio::Pipes)
            .arg("true")
            .finish()
            .unwrap();
        let violation = check(
            &Plan::parse(&bytes).unwrap(),
            &FloorContext {
                mode: Mode::Root,
                grants: 0,
                network: Network::Own,
            },
        );
        assert_eq!(
            violation,
            Err(FloorViolation::Mode {
                plan: Mode::User,
                actual: Mode::Root
            })
        );
    }

    #[test]
    fn root_inside_is_refused() {
        for (uid, gid) in [(0, 1), (1, 0), (u32::MAX, 1), (1, u32::MAX)] {
            let violation = verdict(Mode::User, 0, |p| p.ids(uid, gid));
            assert_eq!(violation, Err(FloorViolation::Ids { uid, gid }));
        }
    }

    #[test]
    fn a_writable_bind_is_refused_in_both_modes() {
        for mode in [Mode::Root, Mode::User] {
            let violation = verdict(mode, 0, |p| p.bind("/usr", "/usr", MountFlags::NONE));
            assert_eq!(violation, Err(FloorViolation::WritableBind { record: 3 }));
        }
    }

    #[test]
    fn only_listed_sources_are_bound_in_root_mode() {
        for path in [
            "/",
            "/etc",
            "/etc/shadow",
            "/root",
            "/home/bob",
            "/usrlocal",
            "/etc/ssl-private",
            "/proc",
            "/etc/ssl/private",
        ] {
            assert_eq!(
                verdict(Mode::Root, 0, |p| p.bind(path, "/x", MountFlags::RDONLY)),
                Err(FloorViolation::Source { record: 3 }),
                "{path}"
            );
            assert_eq!(
                verdict(Mode::User, 0, |p| p.bind(path, "/x", MountFlags::RDONLY)),
                Ok(()),
                "{path}"
            );
        }
        for path in [
            "/usr",
            "/usr/share/zoneinfo",
            "/opt/node",
            "/etc/ld.so.cache",
        ] {
            assert_eq!(
                verdict(Mode::Root, 0, |p| p.bind(path, "/x", MountFlags::RDONLY)),
                Ok(()),
                "{path}"
            );
        }
    }

    #[test]
    fn each_grant_is_mounted_exactly_once() {
        fn twice(p: &mut PlanBuilder) -> &mut PlanBuilder {
            p.grant_mount(0, "/a", MountFlags::NONE)
                .grant_mount(0, "/b", MountFlags::NONE)
        }
        assert_eq!(
            verdict(Mode::User, 1, twice),
            Err(FloorViolation::GrantReused {
                record: 4,
                index: 0
            })
        );
        assert_eq!(
            verdict(Mode::User, 1, |p| p.grant_mount(1, "/a", MountFlags::NONE)),
            Err(FloorViolation::GrantIndex {
                record: 3,
                index: 1
            })
        );
        assert_eq!(
            verdict(Mode::User, 1, |p| p),
            Err(FloorViolation::GrantUnused { index: 0 })
        );
    }

    #[test]
    fn the_hosts_network_needs_leave_and_takes_no_listener() {
        for mode in [Mode::Root, Mode::User] {
            assert_eq!(
                verdict(mode, 0, PlanBuilder::host_network),
                Err(FloorViolation::HostNetwork)
            );
            for (listener, expected) in [
                (false, Ok(())),
                (true, Err(FloorViolation::HostListener { record: 5 })),
            ] {
                let mut plan = PlanBuilder::new(mode);
                plan.cwd("/")
                    .stdio(Stdio::Pipes)
                    .arg("true")
                    .ids(1000, 1000);
                plan.host_network();
                if listener {
                    plan.tcp_listener(8080, crate::plan::GATEWAY);
                }
                let bytes = plan.finish().unwrap();
                let context = FloorContext {
                    mode,
                    grants: 0,
                    network: Network::Host,
                };
                assert_eq!(check(&Plan::parse(&bytes).unwrap(), &context), expected);
            }
        }
    }

    #[test]
    fn gvisor_is_not_for_the_hosts_network() {
        let gvisor = |p: &mut PlanBuilder| p.gvisor(GvisorFlags::NONE).clone();
        let verdict = |plan: PlanBuilder| {
            let bytes = plan.finish().unwrap();
            let context = FloorContext {
                mode: Mode::User,
                network: Network::Host,
                grants: 0,
            };
            check(&Plan::parse(&bytes).unwrap(), &context)
        };
        let mut plan = PlanBuilder::new(Mode::User);
        plan.ids(1, 1).cwd("/").stdio(Stdio::Pipes).arg("true");
        assert_eq!(verdict(gvisor(&mut plan)), Ok(()));
        plan.host_network();
        assert_eq!(verdict(plan), Err(FloorViolation::GvisorOnHostNetwork));
    }

    #[test]
    fn an_endless_grace_is_refused() {
        let violation = verdict(Mode::User, 0, |p| p.lifeline_grace(u32::MAX));
        assert_eq!(
            violation,
            Err(FloorViolation::LifelineGrace { ms: u32::MAX })
        );
    }
}
