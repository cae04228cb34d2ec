//! Giving rights up: `no_new_privs`, capabilities, Landlock, seccomp, keyrings.

use super::call::call;
use super::{Errno, Fd, FdRef, nr};

/// One classic BPF instruction, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SockFilter {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const _: () = assert!(size_of::<SockFilter>() == 8);

/// Sets `no_new_privs`, for good.
pub fn set_no_new_privs() -> Result<(), Errno> {
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    // SAFETY: no memory is involved.
    unsafe { call(nr::PRCTL, [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0]) }.map(drop)
}

/// Refuses, for good, every mapping that is writable and executable and every change that makes one executable.
/// `EINVAL` before Linux 6.3.
pub fn set_memory_deny_write_execute() -> Result<(), Errno> {
    const PR_SET_MDWE: usize = 65;
    const PR_MDWE_REFUSE_EXEC_GAIN: usize = 1;
    // SAFETY: no memory is involved.
    unsafe { call(nr::PRCTL, [PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0]) }.map(drop)
}

/// Joins a new, empty, anonymous session keyring.
pub fn join_new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    // SAFETY: without a name no memory is involved.
    unsafe { call(nr::KEYCTL, [KEYCTL_JOIN_SESSION_KEYRING, 0]) }.map(drop)
}

/// Empties the bounding set; needs `CAP_SETPCAP`.
pub fn drop_bounding_set() -> Result<(), Errno> {
    const PR_CAPBSET_DROP: usize = 24;
    for capability in 0..64 {
        // SAFETY: no memory is involved.
        match unsafe { call(nr::PRCTL, [PR_CAPBSET_DROP, capability, 0, 0, 0]) } {
            Ok(_) => {}
            Err(Errno::INVAL) if capability > 0 => return Ok(()), // past the last one this kernel has
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Takes away, for good, what being uid 0 or changing uids would do to capabilities; needs `CAP_SETPCAP`.
pub fn lock_securebits() -> Result<(), Errno> {
    const PR_SET_SECUREBITS: usize = 28;
    /// NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE set and locked, KEEP_CAPS clear and locked.
    const BITS: usize = 0b1110_1111;
    // SAFETY: no memory is involved.
    unsafe { call(nr::PRCTL, [PR_SET_SECUREBITS, BITS, 0, 0, 0]) }.map(drop)
}

/// `struct __user_cap_header_struct`, version 3, for the caller.
const CAP_HEADER: [u32; 2] = [0x2008_0522, 0];

/// Empties the effective, permitted, inheritable and with them the ambient set.
pub fn drop_capabilities() -> Result<(), Errno> {
    let header = CAP_HEADER;
    let none = [0u32; 6];
    // SAFETY: the kernel reads the header and two `struct __user_cap_data_struct` of three words each.
    unsafe {
        call(
            nr::CAPSET,
            [
                header.as_ptr().expose_provenance(),
                none.as_ptr().expose_provenance(),
            ],
        )
    }
    .map(drop)
}

/// Whether the effective, permitted and inheritable sets are empty.
pub fn has_no_capabilities() -> Result<bool, Errno> {
    let header = CAP_HEADER;
    let mut sets = [u32::MAX; 6];
    // SAFETY: the kernel reads the header and writes two `struct __user_cap_data_struct` of three words each.
    unsafe {
        call(
            nr::CAPGET,
            [
                header.as_ptr().expose_provenance(),
                sets.as_mut_ptr().expose_provenance(),
            ],
        )
    }?;
    Ok(sets == [0; 6])
}

pub(super) const SECCOMP_SET_MODE_FILTER: usize = 1;

/// `struct sock_fprog`: length u16, padding, pointer.
pub(super) fn sock_fprog(program: &[SockFilter]) -> Result<[usize; 2], Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    Ok([len.into(), program.as_ptr().expose_provenance()])
}

/// Loads a filter; needs `no_new_privs`.
pub fn load_seccomp_filter(program: &[SockFilter]) -> Result<(), Errno> {
    let description = sock_fprog(program)?;
    // SAFETY: `description` is a `struct sock_fprog` of `program` and outlives the call.
    unsafe {
        call(
            nr::SECCOMP,
            [
                SECCOMP_SET_MODE_FILTER,
                0,
                description.as_ptr().expose_provenance(),
            ],
        )
    }
    .map(drop)
}

/// Landlock: a ruleset, its rules, and what each ABI knows (`Documentation/userspace-api/landlock.rst`).
pub mod landlock {
    use super::{Errno, Fd, FdRef, call, nr};

    /// The rights that also make sense for something that is not a directory: execute, write, read, truncate, ioctl.
    pub const FILE_RIGHTS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;

    /// The filesystem rights that ABI `abi` knows.
    pub const fn known_fs(abi: u32) -> u64 {
        match abi {
            0 => 0,
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => (1 << 16) - 1,
        }
    }

    /// The network rights that ABI `abi` knows.
    pub const fn known_net(abi: u32) -> u64 {
        if abi >= 4 { 3 } else { 0 }
    }

    /// The scopes that ABI `abi` knows.
    pub const fn known_scopes(abi: u32) -> u64 {
        if abi >= 6 { 3 } else { 0 }
    }

    /// The ABI of the running kernel; 0 when it has no Landlock or has it switched off.
    pub fn abi() -> u32 {
        const LANDLOCK_CREATE_RULESET_VERSION: usize = 1;
        // SAFETY: with this flag no memory is involved.
        unsafe {
            call(
                nr::LANDLOCK_CREATE_RULESET,
                [0, 0, LANDLOCK_CREATE_RULESET_VERSION],
            )
        }
        .unwrap_or(0) as u32
    }

    /// A ruleset that handles these rights. A kernel that is too old for one of them refuses.
    pub fn create(fs: u64, net: u64, scoped: u64) -> Result<Fd, Errno> {
        let attr = [fs, net, scoped];
        // Old kernels refuse a longer struct only when what they do not know is not zero.
        let args = [attr.as_ptr().expose_provenance(), size_of_val(&attr), 0];
        // SAFETY: the kernel reads a `struct landlock_ruleset_attr` of the length given.
        unsafe { call(nr::LANDLOCK_CREATE_RULESET, args) }.map(Fd::returned)
    }

    /// Allows `access` at and beneath what `fd` has open.
    pub fn allow_path(ruleset: FdRef<'_>, fd: FdRef<'_>, access: u64) -> Result<(), Errno> {
        const LANDLOCK_RULE_PATH_BENEATH: usize = 1;
        // struct landlock_path_beneath_attr is packed: u64, then int
        let mut attr = [0u8; 12];
        attr[0..8].copy_from_slice(&access.to_ne_bytes());
        attr[8..12].copy_from_slice(&fd.raw().to_ne_bytes());
        let args = [
            ruleset.arg(),
            LANDLOCK_RULE_PATH_BENEATH,
            attr.as_ptr().expose_provenance(),
            0,
        ];
        // SAFETY: the kernel reads a `struct landlock_path_beneath_attr` of 12 bytes from `attr`.
        unsafe { call(nr::LANDLOCK_ADD_RULE, args) }.map(drop)
    }

    /// Allows `access` for a TCP port.
    pub fn allow_port(ruleset: FdRef<'_>, port: u16, access: u64) -> Result<(), Errno> {
        const LANDLOCK_RULE_NET_PORT: usize = 2;
        let attr = [access, port.into()];
        // SAFETY: the kernel reads a `struct landlock_net_port_attr` of two words from `attr`.
        unsafe {
            call(
                nr::LANDLOCK_ADD_RULE,
                [
                    ruleset.arg(),
                    LANDLOCK_RULE_NET_PORT,
                    attr.as_ptr().expose_provenance(),
                    0,
                ],
            )
        }
        .map(drop)
    }

    /// Whether the kernel's audit hears what the ruleset refuses to programs that are executed later.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Logging {
        /// It hears of the caller alone, up to its next exec.
        Caller,
        /// It hears of programs that are executed later, too. From ABI 7 on; before, nothing is heard.
        Programs,
    }

    /// The first ABI of which the kernel's audit hears.
    pub const LOGGING_ABI: u32 = 7;

    /// Enforces the ruleset on the caller, for good; needs `no_new_privs`.
    pub fn restrict_self(ruleset: FdRef<'_>, logging: Logging) -> Result<(), Errno> {
        const LOG_NEW_EXEC_ON: usize = 2;
        let flags = match logging {
            Logging::Caller => 0,
            Logging::Programs => LOG_NEW_EXEC_ON,
        };
        // SAFETY: no memory is involved.
        unsafe { call(nr::LANDLOCK_RESTRICT_SELF, [ruleset.arg(), flags]) }.map(drop)
    }
}
