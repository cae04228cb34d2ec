//! The Landlock ruleset of a plan: written for ABI 7, reduced to what the host knows.
//!
//! The network namespace is the boundary, with nothing in it but its own loopback: agents run servers and tests there on
//! ports of their choosing, and TCP rules miss UDP. So TCP rights are handled only where a policy lists ports
//! (`net.ports`). MPTCP and TCP Fast Open, which miss them too, are refused by seccomp.

/// The newest ABI this ruleset was written for. A newer kernel adds rights that nobody here has thought through.
pub(crate) const WRITTEN_FOR: u8 = 7;

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_BLOCK: u64 = 1 << 11;
const MAKE_SYM: u64 = 1 << 12;
/// ABI 2
const REFER: u64 = 1 << 13;
/// ABI 3
const TRUNCATE: u64 = 1 << 14;
/// ABI 5
const IOCTL_DEV: u64 = 1 << 15;

const HANDLED: u64 = EXECUTE
    | WRITE_FILE
    | READ_FILE
    | READ_DIR
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_CHAR
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_BLOCK
    | MAKE_SYM
    | REFER
    | TRUNCATE
    | IOCTL_DEV;

/// The ABI that knows TCP ports.
pub(crate) const TCP_ABI: u8 = 4;
const BIND_TCP: u64 = 1 << 0;
const CONNECT_TCP: u64 = 1 << 1;
/// Both.
pub(crate) const TCP: u64 = BIND_TCP | CONNECT_TCP;
/// What is allowed for a service of agentd's: to use it.
pub(crate) const USE_TCP: u64 = CONNECT_TCP;

/// The ABI that knows scopes.
pub(crate) const SCOPES_ABI: u8 = 6;
/// Abstract unix sockets, signals.
const SCOPES: u64 = 1 << 0 | 1 << 1;

/// Rights under a path of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// List folders, and nothing else.
    List,
    Read {
        exec: bool,
    },
    /// All but devices.
    Write {
        exec: bool,
    },
    /// `/dev`: use what is there.
    Devices,
}

impl Rights {
    /// The bits, of those that `abi` knows.
    pub(crate) fn bits(self, abi: u8) -> u64 {
        const READ: u64 = READ_FILE | READ_DIR;
        const WRITE: u64 = READ
            | WRITE_FILE
            | TRUNCATE
            | REMOVE_DIR
            | REMOVE_FILE
            | MAKE_DIR
            | MAKE_REG
            | MAKE_SOCK
            | MAKE_FIFO
            | MAKE_SYM
            | REFER;
        let exec = |on: bool| if on { EXECUTE } else { 0 };
        let bits = match self {
            Self::List => READ_DIR,
            Self::Read { exec: on } => READ | exec(on),
            Self::Write { exec: on } => WRITE | exec(on),
            Self::Devices => READ | WRITE_FILE | TRUNCATE | IOCTL_DEV,
        };
        bits & handled(abi)
    }
}

impl std::fmt::Display for Rights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::List => "list",
            Self::Read { exec: false } => "read",
            Self::Read { exec: true } => "read, execute",
            Self::Write { exec: false } => "read, write",
            Self::Write { exec: true } => "read, write, execute",
            Self::Devices => "read, write, device ioctl",
        })
    }
}

/// The rights that the ruleset handles, so refuses where no rule gives them.
pub(crate) fn handled(abi: u8) -> u64 {
    let known = match abi {
        0 => 0,
        1 => REFER - 1,
        2 => TRUNCATE - 1,
        3 | 4 => IOCTL_DEV - 1,
        _ => (IOCTL_DEV << 1) - 1,
    };
    HANDLED & known
}

pub(crate) fn scopes(abi: u8) -> u64 {
    if abi >= SCOPES_ABI { SCOPES } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_abi_handles_what_it_knows() {
        assert_eq!(handled(0), 0);
        assert_eq!(handled(1), 0x1fff);
        assert_eq!(handled(2), 0x3fff);
        assert_eq!(handled(3), 0x7fff);
        assert_eq!(handled(4), 0x7fff);
        assert_eq!(handled(5), 0xffff);
        assert_eq!(handled(7), 0xffff);
        assert_eq!((scopes(5), scopes(6)), (0, 3));
    }

    #[test]
    fn nobody_may_make_devices() {
        for rights in [Rights::Write { exec: true }, Rights::Devices] {
            assert_eq!(rights.bits(7) & (MAKE_CHAR | MAKE_BLOCK), 0);
        }
        assert_eq!(Rights::Write { exec: true }.bits(7) & IOCTL_DEV, 0);
    }
}
