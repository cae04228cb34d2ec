//! Live control of the network: every way an agent has to IP, with its network and without.
//!
//! An agent here is a child of the test, so its sockets are the host's loopback. Nothing waits for time: a refusal is an errno, a
//! packet that may not leave is counted before the call that sent it returns, and one that arrives before it is received.

use crate::bed::{Agent, Bed};
use agentd_bpf::Group;
use agentd_bpf::layout::{op, revoked};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::sockopt::socket_error;
use rustix::net::{
    AddressFamily, Ipv4Addr, Ipv6Addr, RecvFlags, SendFlags, SocketAddrV4, SocketAddrV6,
    SocketType, accept, bind, connect, getpeername, getsockname, ipproto, listen, recv, send,
    sendto, socket,
};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// What a call came to, as an exit code.
fn code<T>(tried: Result<T, Errno>) -> i32 {
    tried.map_or_else(|errno| errno.raw_os_error(), |_| 0)
}

fn v4(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn v6(port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0)
}

fn stream(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket(family, SocketType::STREAM, None)
}

fn datagrams(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket(family, SocketType::DGRAM, None)
}

/// A call by its name, what it comes to, and what it is called in the ring.
type Way = (&'static str, fn() -> i32, u32);

/// Every call that the network's revocation refuses.
const WAYS: [Way; 8] = [
    (
        "connect4",
        || code(stream(AddressFamily::INET).and_then(|s| connect(&s, &v4(1)))),
        op::CONNECT,
    ),
    (
        "connect6",
        || code(stream(AddressFamily::INET6).and_then(|s| connect(&s, &v6(1)))),
        op::CONNECT,
    ),
    (
        "bind4",
        || code(stream(AddressFamily::INET).and_then(|s| bind(&s, &v4(0)))),
        op::BIND,
    ),
    (
        "bind6",
        || code(stream(AddressFamily::INET6).and_then(|s| bind(&s, &v6(0)))),
        op::BIND,
    ),
    ("udp", || code(datagrams(AddressFamily::INET)), op::SOCKET),
    ("udp6", || code(datagrams(AddressFamily::INET6)), op::SOCKET),
    (
        "raw",
        || {
            code(socket(
                AddressFamily::INET,
                SocketType::RAW,
                Some(ipproto::ICMP),
            ))
        },
        op::SOCKET,
    ),
    (
        "mapped",
        || {
            let mapped = SocketAddrV6::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 1, 0, 0);
            code(stream(AddressFamily::INET6).and_then(|s| connect(&s, &mapped)))
        },
        op::CONNECT,
    ),
];

#[test]
fn every_way_is_refused_and_told_and_comes_back() {
    let Some(mut bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    for (name, way, op) in WAYS {
        let free = agent.run(way);
        assert!([0, libc::ECONNREFUSED].contains(&free), "{name}: {free}");
        bed.restrict(&agent, revoked::NET);
        assert_eq!(agent.run(way), libc::EPERM, "{name}");
        let told = bed.denials();
        assert!(
            told.iter().any(|denial| denial.op == op
                && denial.slot == agent.slot
                && denial.because == revoked::NET
                && denial.pid != 0
                && denial.comm[0] != 0),
            "{name}: {told:?}"
        );
        bed.restrict(&agent, 0);
        assert_eq!(agent.run(way), free, "{name}");
        assert!(
            bed.denials().is_empty(),
            "{name}: nothing is told of what is allowed"
        );
    }
}

#[test]
fn a_denied_connect_says_where_to() {
    let Some(mut bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    bed.restrict(&agent, revoked::NET);
    agent.run(|| code(stream(AddressFamily::INET).and_then(|s| connect(&s, &v4(4711)))));
    agent.run(|| code(stream(AddressFamily::INET6).and_then(|s| connect(&s, &v6(4712)))));
    let details: Vec<_> = bed.denials().iter().map(|denial| denial.detail).collect();
    let tcp = 6 << 16;
    assert_eq!(
        details,
        [
            [2 << 32 | tcp | 4711, 0, 0x7f00_0001],
            [10 << 32 | tcp | 4712, 0, 1]
        ]
    );
}

/// Runs `first` in an agent, then `then` in the same process after `between` in this one.
fn in_two_steps<T>(
    agent: &Agent,
    first: impl FnOnce() -> T,
    between: impl FnOnce(),
    then: impl FnOnce(T) -> i32,
) -> i32 {
    let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
    let child = agent.start(|| {
        let made = first();
        if theirs
            .write_all(&[1])
            .and_then(|()| theirs.read_exact(&mut [0]))
            .is_err()
        {
            return 254;
        }
        then(made)
    });
    ours.read_exact(&mut [0]).expect("the first step");
    between();
    ours.write_all(&[1]).expect("go on");
    child.code()
}

#[test]
fn datagrams_of_an_open_socket_are_refused_with_and_without_an_address() {
    let Some(mut bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    let open = || {
        let to = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let port = to.local_addr().expect("address").port();
        let (loose, tied) = (
            datagrams(AddressFamily::INET),
            datagrams(AddressFamily::INET),
        );
        let (loose, tied) = (loose.expect("socket"), tied.expect("socket"));
        connect(&tied, &v4(port)).expect("connect");
        (to, port, loose, tied)
    };
    let refused = in_two_steps(
        &agent,
        open,
        || bed.restrict(&agent, revoked::NET),
        |(_to, port, loose, tied)| {
            let with = sendto(&loose, b"x", SendFlags::empty(), &v4(port));
            let without = send(&tied, b"x", SendFlags::empty());
            i32::from(with == Err(Errno::PERM) && without == Err(Errno::PERM))
        },
    );
    assert_eq!(refused, 1);
    let ops: Vec<u32> = bed.denials().iter().map(|denial| denial.op).collect();
    assert_eq!(ops, [op::SENDMSG, op::PACKET_OUT]);
}

#[test]
fn an_open_connection_carries_nothing_more_and_learns_of_its_end() {
    let Some(mut bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    let open = || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (near, listener.accept().expect("accept").0)
    };
    let code = in_two_steps(
        &agent,
        open,
        || bed.restrict(&agent, revoked::NET),
        |(mut near, far)| {
            // Into its own buffer: the packet goes no further.
            let written = near.write(b"secret").is_ok();
            let arrived = recv(&far, &mut [0u8; 8], RecvFlags::DONTWAIT);
            // A reset carries nothing.
            rustix::net::sockopt::set_socket_linger(&far, Some(std::time::Duration::ZERO))
                .expect("linger");
            drop(far);
            let reset = near.read(&mut [0]).map_err(|e| e.kind())
                == Err(std::io::ErrorKind::ConnectionReset);
            i32::from(written)
                | i32::from(matches!(arrived, Err(Errno::AGAIN))) << 1
                | i32::from(reset) << 2
        },
    );
    assert_eq!(code, 7, "written, not arrived, reset");
    let told = bed.denials();
    assert!(
        told.iter()
            .any(|denial| denial.op == op::PACKET_OUT && denial.pid == 0),
        "{told:?}"
    );
}

/// Connects to a listener with a full queue: the socket waits for room, then for its next SYN, a second later.
#[test]
fn a_connect_under_way_ends_and_what_it_opened_carries_nothing() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    let open = || {
        let listener = stream(AddressFamily::INET).expect("socket");
        bind(&listener, &v4(0)).expect("bind");
        listen(&listener, 0).expect("listen");
        let to = getsockname(&listener).expect("address");
        let near = || {
            let near = stream(AddressFamily::INET).expect("socket");
            ioctl_fionbio(&near, true).expect("without waiting");
            assert_eq!(connect(&near, &to), Err(Errno::INPROGRESS));
            near
        };
        let mut open = vec![near()];
        while is_open(open.last().expect("one"), 0) {
            open.push(near());
        }
        (listener, open)
    };
    let code = in_two_steps(
        &agent,
        open,
        || bed.restrict(&agent, revoked::NET),
        |(listener, mut open)| {
            let waiting = open.pop().expect("one");
            drop(open);
            // What was queued, to make room; then the one that waited.
            let mut far = accept(&listener).expect("accept");
            if !is_open(&waiting, 60) {
                return 0;
            }
            let address = Some(getsockname(&waiting).expect("address"));
            while getpeername(&far).expect("peer") != address {
                far = accept(&listener).expect("accept");
            }
            let written = send(&waiting, b"secret", SendFlags::empty());
            let arrived = recv(&far, &mut [0u8; 8], RecvFlags::DONTWAIT);
            1 | i32::from(written == Ok(6)) << 1
                | i32::from(matches!(arrived, Err(Errno::AGAIN))) << 2
        },
    );
    assert_eq!(code, 7, "opened, written, not arrived");
    assert!(bed.counters(&agent).denied >= 1);
}

/// Whether a connect without waiting has come through within so many seconds.
fn is_open(socket: &OwnedFd, seconds: i64) -> bool {
    let timeout = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    let ready = poll(&mut polled, Some(&timeout)).expect("poll") == 1;
    ready && socket_error(socket).expect("SO_ERROR").is_ok()
}

#[test]
fn kept_ports_stay_reachable_on_loopback() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    let listen = || TcpListener::bind("127.0.0.1:0").expect("bind");
    // A port of agentd's own, made inside as the launcher makes it.
    let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
    let child = agent.start(|| {
        let (kept, lost) = (listen(), listen());
        let port = |listener: &TcpListener| listener.local_addr().expect("address").port();
        let said = [port(&kept).to_ne_bytes(), port(&lost).to_ne_bytes()].concat();
        if theirs
            .write_all(&said)
            .and_then(|()| theirs.read_exact(&mut [0]))
            .is_err()
        {
            return 254;
        }
        let lost = stream(AddressFamily::INET).and_then(|s| connect(&s, &v4(port(&lost))));
        let mut near = TcpStream::connect(v4(port(&kept))).expect("kept");
        let mut far = kept.accept().expect("accept").0;
        let mut got = [0; 2];
        near.write_all(b"hi")
            .and_then(|()| far.read_exact(&mut got))
            .expect("there");
        far.write_all(&got)
            .and_then(|()| near.read_exact(&mut got))
            .expect("and back");
        i32::from(lost == Err(Errno::PERM) && got == *b"hi")
    });
    let mut said = [0; 4];
    ours.read_exact(&mut said).expect("ports");
    let kept = u16::from_ne_bytes([said[0], said[1]]);
    bed.policies
        .restrict(agent.slot, revoked::NET, [0, 0, 0, 0, 0, 0, 0, kept]);
    ours.write_all(&[1]).expect("go on");
    assert_eq!(child.code(), 1);
}

#[test]
fn packets_and_bytes_are_counted_where_they_leave_and_where_they_arrive() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let (agent, other) = (bed.agent(), bed.agent());
    let sent = agent.run(|| {
        let to = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let from = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        to.set_read_timeout(Some(std::time::Duration::from_secs(60)))
            .expect("time-out");
        let sent = from.send_to(&[0; 100], to.local_addr().expect("address"));
        // A busy processor may deliver it after the call.
        let received = to.recv(&mut [0; 128]);
        i32::from(sent.is_ok() && received.is_ok())
    });
    assert_eq!(sent, 1);
    let counted = bed.counters(&agent);
    // 100 bytes behind headers of IP and UDP.
    assert_eq!((counted.packets_out, counted.bytes_out), (1, 128));
    assert_eq!((counted.packets_in, counted.bytes_in), (1, 128));
    assert_eq!(bed.counters(&other).packets_out, 0);
}

#[test]
fn a_flood_of_refusals_is_lost_in_the_telling_and_never_in_the_refusing() {
    let Some(mut bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    bed.restrict(&agent, revoked::NET);
    // More than the ring holds.
    const TRIES: u64 = 20_000;
    let refused = agent.run(|| {
        let sock = stream(AddressFamily::INET).expect("socket");
        let all = (0..TRIES).all(|_| connect(&sock, &v4(1)) == Err(Errno::PERM));
        i32::from(all)
    });
    assert_eq!(refused, 1);
    let counted = bed.counters(&agent);
    assert_eq!(counted.denied, TRIES);
    let told = bed.denials().len() as u64;
    assert!(
        counted.lost > 0 && told + counted.lost == TRIES,
        "{told} {counted:?}"
    );
}
