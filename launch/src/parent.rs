//! What the parent owes the launcher: the contract between whoever calls `clone3` (the broker;
//! tests) and the program.
//!
//! 1. `clone3` with `CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC` and as many of
//!    `CLONE_NEWUTS | CLONE_NEWCGROUP` as the host gives, so that the child is pid 1.
//!    (`CLONE_NEWTIME` of `clone3` puts the child itself into the new namespace.) The network
//!    namespace is the launcher's own to make, beside the view, when it is told of
//!    [`LAYER_NET_NS`](crate::layers::LAYER_NET_NS).
//! 2. Hold the child at a barrier; write `setgroups` (`deny`), `uid_map` and `gid_map`: one id
//!    each, the plan's [`Record::Ids`](crate::plan::Record::Ids) inside. Release it. In root mode,
//!    and for a plan with [`ExecFlags::MEMFD_NOEXEC`](crate::plan::ExecFlags), the child writes `2`
//!    to `/proc/sys/vm/memfd_noexec` before it changes its ids: the kernel lets only the host's uid 0.
//! 3. On cgroup v1 the child writes `0` to the `tasks` files that its parent opened. It becomes
//!    that uid and gid (`setresgid`, `setresuid`) and puts [`NEEDED_CAPABILITIES`] of the new user
//!    namespace into its inheritable and ambient sets, so that they survive the exec. Supplementary
//!    groups are inherited from the parent and cannot be dropped once `setgroups` says `deny`: a
//!    parent that can drops its own when it starts.
//! 4. Descriptors, none of them close-on-exec: 0 to 2 `/dev/null`, [`PLAN_FD`] the sealed plan,
//!    [`STATUS_FD`] one end of a `SOCK_SEQPACKET` pair, [`AGENTD_LIFELINE_FD`] and
//!    [`BROKER_LIFELINE_FD`] read ends of pipes whose write ends only agentd and only the broker
//!    hold, [`STATUS_FILE_FD`] a file open for writing, [`NOTE_FD`] a locked file, or `/dev/null`
//!    where nothing is to be removed, and from [`FIRST_GRANT_FD`] on one descriptor for each grant:
//!    in root mode a detached mount, in user mode the granted file or directory itself. Everything
//!    above closed or close-on-exec.
//! 5. `execveat` of [`LAUNCHER_ELF`](crate::LAUNCHER_ELF) from a sealed memfd with the
//!    [`Arguments`] and an *empty* environment: what is in it would be in `/proc/1/environ`.
//!
//! The launcher answers on the status socket ([`crate::status`]), writes its last report to the
//! status file before it sends it (so that the outcome outlives every reader), and, once the
//! program has ended, exits with the program's code (128 + signal when one ended it), or with
//! [`LAUNCH_FAILED`], or with [`LIFELINES_LOST`].

use core::ffi::CStr;

use crate::plan::Mode;

/// The sealed memfd (`F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE`) with the plan.
pub const PLAN_FD: i32 = 3;
/// The status socket.
pub const STATUS_FD: i32 = 4;
/// Hangs up when agentd is gone.
pub const AGENTD_LIFELINE_FD: i32 = 5;
/// Hangs up when the broker is gone.
pub const BROKER_LIFELINE_FD: i32 = 6;
/// Takes the launcher's last report, [`Status::Exited`](crate::status::Status::Exited) or
/// [`Status::Failed`](crate::status::Status::Failed), at offset 0. It stays empty when the init is killed or ends because
/// its lifelines have gone.
pub const STATUS_FILE_FD: i32 = 7;
/// Held open and never used: the parent's note of what to remove once the sandbox has ended. Its lock ends with the last
/// process that holds it, which is how anybody can tell that the sandbox has.
pub const NOTE_FD: i32 = 8;
/// The first grant; the others follow in order.
pub const FIRST_GRANT_FD: i32 = 9;

/// The launcher's exit code when it could not execute the program.
pub const LAUNCH_FAILED: i32 = 125;
/// The launcher's exit code when it ended because its lifelines had gone.
pub const LIFELINES_LOST: i32 = 113;

/// The only argument of the launcher that gVisor's runsc starts: it becomes the program.
pub const INSIDE: &CStr = c"inside";

/// Capability numbers, all in the new user namespace: `CAP_DAC_OVERRIDE` (for the working directory of an overlay, which the
/// kernel makes with mode 0), `CAP_SETPCAP`, `CAP_NET_ADMIN`, `CAP_SYS_ADMIN`.
pub const NEEDED_CAPABILITIES: [u32; 4] = [1, 8, 12, 21];

/// What the parent tells the launcher on its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arguments {
    /// Who launches.
    pub mode: Mode,
    /// How many grants there are.
    pub grants: u32,
    /// Which of [`LAYERS_FROM_PARENT`](crate::layers::LAYERS_FROM_PARENT) the parent has made.
    pub layers: u64,
}

impl Arguments {
    /// The argument vector, program name included.
    #[cfg(feature = "std")]
    pub fn to_argv(&self) -> [std::ffi::CString; 4] {
        let mode = match self.mode {
            Mode::Root => c"root",
            Mode::User => c"user",
        };
        let number = |number: u64| match std::ffi::CString::new(number.to_string()) {
            Ok(text) => text,
            Err(_) => unreachable!("digits hold no NUL"),
        };
        [
            c"agentd-launch".to_owned(),
            mode.to_owned(),
            number(self.grants.into()),
            number(self.layers),
        ]
    }

    /// Reads what [`Arguments::to_argv`] wrote; `None` for anything else.
    pub fn from_argv<'a>(mut argv: impl Iterator<Item = &'a CStr>) -> Option<Arguments> {
        let (_, mode, grants, layers) = (argv.next()?, argv.next()?, argv.next()?, argv.next()?);
        let mode = match mode.to_bytes() {
            b"root" => Mode::Root,
            b"user" => Mode::User,
            _ => return None,
        };
        let grants = grants.to_str().ok()?.parse().ok()?;
        let layers = layers.to_str().ok()?.parse().ok()?;
        argv.next().is_none().then_some(Arguments {
            mode,
            grants,
            layers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_command_line() {
        let arguments = Arguments {
            mode: Mode::User,
            grants: 3,
            layers: 0x1_00ff,
        };
        let argv = arguments.to_argv();
        assert_eq!(
            Arguments::from_argv(argv.iter().map(|arg| arg.as_c_str())),
            Some(arguments)
        );
        assert_eq!(Arguments::from_argv([c"agentd-launch"].into_iter()), None);
        assert_eq!(
            Arguments::from_argv([c"x", c"admin", c"0", c"0"].into_iter()),
            None
        );
        assert_eq!(
            Arguments::from_argv([c"x", c"root", c"0", c"0", c"0"].into_iter()),
            None
        );
    }
}
