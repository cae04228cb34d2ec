//! The layers of a sandbox, as bits: what a plan requires, what the launcher reports as active.
//!
//! A bit is set only by whoever made the layer: the parent for what `clone3`, the id map of a mount and the cgroup give,
//! the launcher for the rest. No privilege, no state, cannot fail.

use crate::plan::Network;

/// Own user namespace.
pub const LAYER_USER_NS: u64 = 1 << 0;
/// Own mount namespace.
pub const LAYER_MOUNT_NS: u64 = 1 << 1;
/// Own pid namespace.
pub const LAYER_PID_NS: u64 = 1 << 2;
/// Own network namespace.
pub const LAYER_NET_NS: u64 = 1 << 3;
/// Own System V and POSIX IPC namespace.
pub const LAYER_IPC_NS: u64 = 1 << 4;
/// Own host name.
pub const LAYER_UTS_NS: u64 = 1 << 5;
/// Own view of the cgroup tree.
pub const LAYER_CGROUP_NS: u64 = 1 << 6;
/// Own time namespace (offset 0).
pub const LAYER_TIME_NS: u64 = 1 << 7;
/// A root built from the plan; the host's root is detached.
pub const LAYER_MOUNT_VIEW: u64 = 1 << 8;
/// Granted directories are id-mapped mounts.
pub const LAYER_IDMAP: u64 = 1 << 9;
/// A Landlock ruleset is enforced.
pub const LAYER_LANDLOCK: u64 = 1 << 10;
/// The base filter, and the plan's where it has one, are loaded.
pub const LAYER_SECCOMP: u64 = 1 << 11;
/// `no_new_privs` is set.
pub const LAYER_NO_NEW_PRIVS: u64 = 1 << 12;
/// All capability sets are empty, the bounding set too.
pub const LAYER_CAPS_DROPPED: u64 = 1 << 13;
/// The plan's resource limits are set.
pub const LAYER_RLIMITS: u64 = 1 << 14;
/// The plan's cgroup limits are set.
pub const LAYER_CGROUP_LIMITS: u64 = 1 << 15;
/// A session keyring of its own.
pub const LAYER_KEYRING: u64 = 1 << 16;

/// Memory files made inside can't be executed (`vm.memfd_noexec` is 2 in the sandbox's pid namespace, or on the host).
pub const LAYER_MEMFD_NOEXEC: u64 = 1 << 17;
/// No mapping gains the right to be executed (`PR_SET_MDWE`).
pub const LAYER_MDWE: u64 = 1 << 18;
/// The Landlock ruleset says which TCP ports may be listened on and connected to.
pub const LAYER_LANDLOCK_NET: u64 = 1 << 19;

/// The program runs under gVisor: its system calls are answered by a kernel of its own in user space, which the layers
/// above confine in turn.
pub const LAYER_GVISOR: u64 = 1 << 20;

/// What the filters refuse by number is refused by the sandbox's init, which tells of it: see [`crate::refusal`].
pub const LAYER_SECCOMP_NOTIFY: u64 = 1 << 21;

/// Every layer that exists; a plan that requires another bit is malformed.
pub const LAYERS_ALL: u64 = (1 << NAMES.len()) - 1;

/// The layers that the parent of the launcher decides on and tells it of. It makes them, but for the network namespace, which the
/// launcher makes.
pub const LAYERS_FROM_PARENT: u64 = LAYER_USER_NS
    | LAYER_MOUNT_NS
    | LAYER_PID_NS
    | LAYER_NET_NS
    | LAYER_IPC_NS
    | LAYER_UTS_NS
    | LAYER_CGROUP_NS
    | LAYER_TIME_NS
    | LAYER_IDMAP
    | LAYER_CGROUP_LIMITS;

/// The layers no launch goes without, whatever its plan says: part of the floor. See [`floor_layers`].
pub const LAYERS_FLOOR: u64 = LAYER_USER_NS
    | LAYER_MOUNT_NS
    | LAYER_PID_NS
    | LAYER_NET_NS
    | LAYER_IPC_NS
    | LAYER_MOUNT_VIEW
    | LAYER_SECCOMP
    | LAYER_NO_NEW_PRIVS
    | LAYER_CAPS_DROPPED
    | LAYER_KEYRING;

/// [`LAYERS_FLOOR`] for a sandbox in this network: in the host's there is no network namespace to demand.
pub const fn floor_layers(network: Network) -> u64 {
    match network {
        Network::Own => LAYERS_FLOOR,
        Network::Host => LAYERS_FLOOR & !LAYER_NET_NS,
    }
}

const NAMES: [&str; 22] = [
    "user-ns",
    "mount-ns",
    "pid-ns",
    "net-ns",
    "ipc-ns",
    "uts-ns",
    "cgroup-ns",
    "time-ns",
    "mount-view",
    "idmap",
    "landlock",
    "seccomp",
    "no-new-privs",
    "caps-dropped",
    "rlimits",
    "cgroup-limits",
    "keyring",
    "memfd-noexec",
    "mdwe",
    "landlock-net",
    "gvisor",
    "seccomp-notify",
];

/// The names of the layers in `layers`, lowest bit first; unknown bits are left out.
pub fn layer_names(layers: u64) -> impl Iterator<Item = &'static str> {
    NAMES
        .iter()
        .enumerate()
        .filter(move |(bit, _)| layers & (1 << bit) != 0)
        .map(|(_, name)| *name)
}

/// The layer called `name`.
pub fn layer_by_name(name: &str) -> Option<u64> {
    NAMES.iter().position(|n| *n == name).map(|bit| 1 << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_agree() {
        assert_eq!(
            layer_names(LAYER_KEYRING | LAYER_USER_NS).collect::<Vec<_>>(),
            ["user-ns", "keyring"]
        );
        assert_eq!(layer_names(LAYER_MOUNT_VIEW).next(), Some("mount-view"));
        for name in layer_names(LAYERS_ALL) {
            assert_eq!(
                layer_names(layer_by_name(name).unwrap()).collect::<Vec<_>>(),
                [name]
            );
        }
        assert_eq!(layer_by_name("moat"), None);
    }
}
