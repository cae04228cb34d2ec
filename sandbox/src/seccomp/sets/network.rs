//! Sockets. Where they lead is decided by the network namespace: to the sandbox's own loopback.
//!
//! Which kinds there are is decided here, since rules elsewhere (Landlock's ports, the proxy) know TCP only, and since every
//! family is a parser in the kernel.

use super::super::rule::{
    Action, EACCES, EAFNOSUPPORT, ENOPROTOOPT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT, Rule, Test,
    allow, allow_if, bits, checked, clear, is, refuse_if,
};

const UNIX: u32 = 1;
const INET: u32 = 2;
const INET6: u32 = 10;
const NETLINK: u32 = 16;
/// SOCK_TYPE_MASK: the rest is SOCK_NONBLOCK and SOCK_CLOEXEC.
const TYPE: u32 = 0xf;
const STREAM: u32 = 1;
const DGRAM: u32 = 2;
const RAW: u32 = 3;
const SEQPACKET: u32 = 5;

const fn kind(values: &'static [u32]) -> Test {
    bits(1, TYPE, values)
}

/// MSG_FASTOPEN: connects without connect(), which is where rules look. MSG_ZEROCOPY: pins memory, for nobody's good here.
const MSG_REFUSED: u32 = 0x2000_0000 | 0x0400_0000;

const SOL_IP: u32 = 0;
const SOL_SOCKET: u32 = 1;
const SOL_TCP: u32 = 6;
const SOL_IPV6: u32 = 41;
/// SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF, SO_LOCK_FILTER: programs for the
/// kernel. SO_BUSY_POLL, SO_PREFER_BUSY_POLL, SO_BUSY_POLL_BUDGET: spinning in the kernel. SO_TXTIME.
const SOCKET_PROGRAMS: &[u32] = &[26, 50, 51, 52, 44, 46, 69, 70, 61];
/// SO_ZEROCOPY.
const ZEROCOPY: &[u32] = &[60];
/// TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_KEY, TCP_FASTOPEN_NO_COOKIE: as MSG_FASTOPEN. TCP_ULP: another protocol
/// (TLS, MPTCP) laid over the socket in the kernel. TCP_REPAIR and its kin, TCP_MD5SIG, TCP_AO_*: forging a connection's
/// state, keys.
const TCP_REFUSED: &[u32] = &[
    23, 30, 33, 34, 31, 19, 20, 21, 22, 29, 14, 32, 38, 39, 40, 41, 42, 43,
];
/// IPT_SO_SET_* and IP6T_SO_SET_*, ARPT_SO_SET_*: tables of the packet filter.
const NETFILTER: &[u32] = &[64, 65, 66, 67, 96, 97];

#[rustfmt::skip]
pub(super) const NETWORK: &[Rule] = &[
    checked("socket", "unix; TCP and UDP and nothing else over IP; netlink only to list interfaces (NETLINK_ROUTE)",
        &[
            allow_if(&[is(0, &[UNIX]), kind(&[STREAM, DGRAM, SEQPACKET])]),
            // no MPTCP (262), which Landlock's port rules miss, no SCTP, DCCP, UDP-Lite, no ICMP, nothing raw
            allow_if(&[is(0, &[INET, INET6]), kind(&[STREAM]), is(2, &[0, 6])]),
            allow_if(&[is(0, &[INET, INET6]), kind(&[DGRAM]), is(2, &[0, 17])]),
            allow_if(&[is(0, &[NETLINK]), kind(&[DGRAM, RAW]), is(2, &[0])]),
            refuse_if(&[is(0, &[UNIX, INET, INET6, NETLINK])], EPROTONOSUPPORT),
        ], EAFNOSUPPORT),
    checked("socketpair", "unix sockets, in pairs",
        &[allow_if(&[is(0, &[UNIX]), kind(&[STREAM, DGRAM, SEQPACKET])])], EAFNOSUPPORT),
    allow("connect", "reach a service of the sandbox"),
    allow("accept", "be a service in the sandbox"),
    allow("accept4", "be a service in the sandbox"),
    allow("bind", "be a service in the sandbox"),
    allow("listen", "be a service in the sandbox"),
    allow("getsockname", "which end am I"),
    allow("getpeername", "which end is it"),
    allow("getsockopt", "options, read"),
    checked("setsockopt", "options; no programs for the kernel, no TCP Fast Open, no other protocols over TCP",
        &[
            refuse_if(&[is(1, &[SOL_SOCKET]), is(2, SOCKET_PROGRAMS)], EPERM),
            refuse_if(&[is(1, &[SOL_SOCKET]), is(2, ZEROCOPY)], EOPNOTSUPP),
            refuse_if(&[is(1, &[SOL_TCP]), is(2, TCP_REFUSED)], ENOPROTOOPT),
            refuse_if(&[is(1, &[SOL_IP, SOL_IPV6]), is(2, NETFILTER)], ENOPROTOOPT),
        ], Action::Allow),
    allow("shutdown", "say that one is done"),
    checked("sendto", "send, over what is connected", &[allow_if(&[clear(3, MSG_REFUSED)])], EOPNOTSUPP),
    checked("sendmsg", "send, and pass descriptors", &[allow_if(&[clear(2, MSG_REFUSED)])], EOPNOTSUPP),
    checked("sendmmsg", "send many", &[allow_if(&[clear(3, MSG_REFUSED)])], EOPNOTSUPP),
    allow("recvfrom", "receive"),
    allow("recvmsg", "receive, and take descriptors"),
    allow("recvmmsg", "receive many"),
];

/// `net.mode = "host"`: TCP and UDP over the host's interfaces, and nothing that tells of them.
#[rustfmt::skip]
pub(super) const NO_NETLINK: &[Rule] = &[
    checked("socket", "unix; TCP and UDP and nothing else over IP",
        &[
            allow_if(&[is(0, &[UNIX]), kind(&[STREAM, DGRAM, SEQPACKET])]),
            allow_if(&[is(0, &[INET, INET6]), kind(&[STREAM]), is(2, &[0, 6])]),
            allow_if(&[is(0, &[INET, INET6]), kind(&[DGRAM]), is(2, &[0, 17])]),
            refuse_if(&[is(0, &[UNIX, INET, INET6])], EPROTONOSUPPORT),
        ], EAFNOSUPPORT),
];

/// `net.ports = []`: nothing of the agent's own can be reached by anybody, over TCP or a unix socket.
pub(super) const NO_LISTENING: &[Rule] = &[checked(
    "listen",
    "there are no services of one's own",
    &[],
    EACCES,
)];
