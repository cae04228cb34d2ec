//! The direct path: frames between agents in network namespaces of their own, and everything that
//! must not become one.
//!
//! Each agent's connection is made by a process in its cgroup and its namespace, and then used from
//! here by a copy of the descriptor.

use crate::bed::{Agent, Bed, Child, fd_of};
use agentd_bpf::layout::route::{
    ANSWERS, CONTENT_MAX, CREDIT, Flow, HEAD_LEN, MAGIC, PORT, SLOTS, Traffic, refused,
};
use agentd_bpf::{Group, Right, Routes, Rows, Table};
use rustix::net::RecvFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A test that waits for longer hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Both ends of an agent's direct connection.
pub struct Direct {
    pub address: u64,
    pub agent: Agent,
    /// The agent's.
    stream: TcpStream,
    /// What agentd would have accepted.
    accepted: TcpStream,
    control: UnixStream,
    child: Child,
}

struct Path {
    bed: Bed,
    routes: Routes,
    flows: Rows<Flow>,
    traffic: Rows<Traffic>,
}

impl Path {
    fn new() -> Option<Self> {
        let bed = Bed::with(Group::Route)?;
        let fd = |table| fd_of(&bed.loaded, table);
        let routes = Routes::map(
            fd(Table::RouteGrants),
            fd(Table::RouteFlows),
            fd(Table::RouteTraffic),
        );
        Some(Self {
            routes: routes.expect("map"),
            flows: Rows::map(fd(Table::RouteFlows), "ROUTE_FLOWS", SLOTS).expect("map"),
            traffic: Rows::map(
                fd_of(&bed.loaded, Table::RouteTraffic),
                "ROUTE_TRAFFIC",
                SLOTS,
            )
            .expect("map"),
            bed,
        })
    }

    fn agent(&self) -> Direct {
        let agent = self.bed.agent();
        let address = self.routes.begin(agent.slot, agent.id).expect("takes part");
        Direct::connect(agent, address)
    }

    /// Two that may send to each other.
    fn pair(&self) -> (Direct, Direct) {
        let (a, b) = (self.agent(), self.agent());
        self.allow(&a, &b);
        self.allow(&b, &a);
        (a, b)
    }

    fn allow(&self, from: &Direct, to: &Direct) {
        let done = self.routes.allow(from.address, to.address, Right::Yes);
        done.expect("both are there");
    }

    fn waiting(&self, of: &Direct) -> u64 {
        let flow = self.flows.get(of.agent.slot as usize).expect("row");
        flow.queued - flow.taken
    }

    fn refused(&self, of: &Direct) -> [u64; refused::KINDS] {
        self.traffic
            .get(of.agent.slot as usize)
            .expect("row")
            .refused
    }
}

impl Direct {
    pub fn connect(agent: Agent, address: u64) -> Self {
        let (mut control, mut theirs) = UnixStream::pair().expect("socketpair");
        let child = agent.start(|| match endpoint() {
            Ok((_listener, ends, _second)) => {
                let numbers = ends.each_ref().map(|end| end.as_raw_fd() as u8);
                let told = theirs.write_all(&numbers);
                // Until the test lets go: its sockets are copies of these.
                let let_go = theirs.read(&mut [0; 1]);
                i32::from(told.is_err() || let_go.is_err())
            }
            Err(error) => error.raw_os_error().unwrap_or(254),
        });
        control.set_read_timeout(Some(WATCHDOG)).expect("time-out");
        let mut numbers = [0; 2];
        control
            .read_exact(&mut numbers)
            .expect("the agent's process connects");
        let pidfd = pidfd_open(child.pid(), PidfdFlags::empty()).expect("pidfd");
        let [stream, accepted] = numbers.map(|number| {
            let fd = pidfd_getfd(&pidfd, i32::from(number), PidfdGetfdFlags::empty());
            let stream = TcpStream::from(fd.expect("its descriptor"));
            stream.set_read_timeout(Some(WATCHDOG)).expect("time-out");
            stream
        });
        Self {
            address,
            agent,
            stream,
            accepted,
            control,
            child,
        }
    }

    pub fn send(&self, to: u64, content: &[u8]) -> std::io::Result<()> {
        self.write(&frame(self.address, to, content))
    }

    /// In one call, or not at all.
    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let sent = (&self.stream).write(bytes)?;
        assert_eq!(sent, bytes.len(), "a frame goes whole");
        Ok(())
    }

    pub fn receive(&self) -> (u64, Vec<u8>) {
        let mut head = [0; HEAD_LEN];
        (&self.stream)
            .read_exact(&mut head)
            .expect("a frame's head");
        let len = u32::from_ne_bytes(head[4..8].try_into().expect("4")) as usize;
        let mut content = vec![0; len];
        (&self.stream)
            .read_exact(&mut content)
            .expect("its content");
        (
            u64::from_ne_bytes(head[8..16].try_into().expect("8")),
            content,
        )
    }

    /// Sends, and gets the frame back with this reason.
    fn is_returned(&self, to: u64, why: usize) {
        self.send(to, b"returned").expect("it goes out");
        self.takes_back(to, why);
    }

    /// An answer with the content that [`Self::takes_back`] expects.
    fn answer(&self, to: u64) -> std::io::Result<()> {
        let mut frame = frame(self.address, to, b"returned");
        frame[32..36].copy_from_slice(&(ANSWERS | 1).to_ne_bytes());
        self.write(&frame)
    }

    fn takes_back(&self, to: u64, why: usize) {
        let mut frame = [0; HEAD_LEN + 8];
        (&self.stream)
            .read_exact(&mut frame)
            .expect("it comes back");
        let word = |at: usize| u64::from_ne_bytes(frame[at..at + 8].try_into().expect("8"));
        assert_eq!((word(8), word(16)), (self.address, to), "as it was sent");
        assert_eq!(&frame[HEAD_LEN..], b"returned");
        let status = u32::from_ne_bytes(frame[36..40].try_into().expect("4"));
        assert_eq!(status, why as u32 + 1);
    }

    /// Nothing waits here, and nothing came to agentd's side.
    fn has_nothing(&self) -> bool {
        [&self.stream, &self.accepted].into_iter().all(|stream| {
            let got = rustix::net::recv(
                stream,
                &mut [0u8; 1][..],
                RecvFlags::DONTWAIT | RecvFlags::PEEK,
            );
            got.err() == Some(rustix::io::Errno::AGAIN)
        })
    }

    /// Ends the process and the connection: when this returns, the kernel has closed the agent's
    /// socket. (Disconnecting would not do: the socket stays in the table until its last descriptor
    /// is closed, and nobody but this and the process has one.)
    pub fn close(mut self) -> Agent {
        self.control.write_all(&[1]).expect("its process waits");
        assert_eq!(self.child.code(), 0);
        self.agent
    }
}

fn frame(from: u64, to: u64, content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_LEN + content.len());
    frame.extend(MAGIC.to_ne_bytes());
    frame.extend((content.len() as u32).to_ne_bytes());
    frame.extend(from.to_ne_bytes());
    frame.extend(to.to_ne_bytes());
    frame.resize(HEAD_LEN, 0);
    frame.extend(content);
    frame
}

/// A connection over the loopback of a new network namespace, and a second one beside it.
fn endpoint() -> std::io::Result<(TcpListener, [TcpStream; 2], TcpStream)> {
    // SAFETY: this is the only thread of a forked process; no descriptor of it is of another namespace's network.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let any = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: integers and an array of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the call reads one ifreq, which is on this stack.
    if unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    let connect = || {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
        stream.set_nodelay(true)?;
        let (accepted, _) = listener.accept()?;
        std::io::Result::Ok([stream, accepted])
    };
    let first = connect()?;
    let [second, _] = connect()?;
    Ok((listener, first, second))
}

fn is_refused(result: std::io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn a_frame_lands_in_the_peers_queue_and_never_at_agentd() {
    let Some(path) = Path::new() else { return };
    let (a, b) = path.pair();
    let long = vec![0xa5; CONTENT_MAX as usize];
    for content in [&b""[..], b"request", &long] {
        a.send(b.address, content).expect("allowed");
        assert_eq!(b.receive(), (a.address, content.to_vec()));
        b.send(a.address, content).expect("allowed");
        assert_eq!(a.receive(), (b.address, content.to_vec()));
    }
    assert!(a.has_nothing() && b.has_nothing());
    assert_eq!((path.waiting(&a), path.waiting(&b)), (0, 0));
    let traffic = path.traffic.get(b.agent.slot as usize).expect("row");
    assert_eq!((traffic.received, traffic.sent), (3, 3));
    // Of content, without heads.
    let bytes = 7 + u64::from(CONTENT_MAX);
    assert_eq!((traffic.received_bytes, traffic.sent_bytes), (bytes, bytes));
    assert_ne!(traffic.cookie, 0);
}

#[test]
fn a_frame_to_whom_its_sender_may_not_send_comes_back_and_nothing_else_happens() {
    let Some(path) = Path::new() else { return };
    let (a, b) = path.pair();
    let stranger = path.agent();
    a.is_returned(stranger.address, refused::RIGHT);
    stranger.is_returned(a.address, refused::RIGHT);
    a.is_returned(a.address, refused::RIGHT);
    a.is_returned(b.address ^ 1 << 40, refused::RIGHT);
    a.is_returned(0, refused::RIGHT);
    for of in [&a, &b, &stranger] {
        assert!(of.has_nothing());
    }
    assert_eq!(path.refused(&a), [0, 0, 4, 0, 0]);
    assert_eq!(path.waiting(&a), 0);
    a.send(b.address, b"and still").expect("allowed");
    assert_eq!(b.receive(), (a.address, b"and still".to_vec()));
    let sent = path.traffic.get(a.agent.slot as usize).expect("row");
    assert_eq!(
        (sent.sent, sent.sent_bytes),
        (1, 9),
        "what came back is not sent"
    );
}

#[test]
fn what_is_not_one_whole_frame_of_its_sender_ends_its_sending_before_a_byte_has_left() {
    let Some(path) = Path::new() else { return };
    let b = path.agent();
    let wrong: [fn(u64, u64) -> Vec<u8>; 6] = [
        |from, to| frame(from, to, b"")[..HEAD_LEN - 1].to_vec(),
        |from, to| frame(from, to, b"short")[..HEAD_LEN + 4].to_vec(),
        |from, to| frame(from, to, &[0; CONTENT_MAX as usize + 1]),
        |from, to| [frame(from, to, b"two"), frame(from, to, b"at once")].concat(),
        |_, to| frame(to, to, b"as the receiver"),
        |_, to| frame(0, to, b"as nobody"),
    ];
    for (n, wrong) in wrong.into_iter().enumerate() {
        let a = path.agent();
        path.allow(&a, &b);
        assert!(
            is_refused(a.write(&wrong(a.address, b.address))),
            "case {n}"
        );
        let counted = path.refused(&a);
        assert_eq!(
            counted[refused::SHAPE] + counted[refused::SOURCE],
            1,
            "case {n}"
        );
        assert!(is_refused(a.send(b.address, b"from then on")), "case {n}");
        assert!(a.has_nothing() && b.has_nothing(), "case {n}");
    }
}

#[test]
fn a_right_that_is_taken_back_ends_with_the_next_frame() {
    let Some(path) = Path::new() else { return };
    let (a, b) = path.pair();
    a.send(b.address, b"one").expect("allowed");
    let back = path.routes.allow(a.address, b.address, Right::No);
    back.expect("both are there");
    a.is_returned(b.address, refused::RIGHT);
    b.send(a.address, b"its own right stays").expect("allowed");
    assert_eq!(b.receive().1, b"one");
    assert_eq!(a.receive().1, b"its own right stays");
    assert!(b.has_nothing());
}

#[test]
fn whoever_may_be_asked_may_answer_and_no_more() {
    let Some(path) = Path::new() else { return };
    let (a, b) = (path.agent(), path.agent());
    path.allow(&a, &b);
    b.answer(a.address).expect("allowed");
    assert_eq!(a.receive(), (b.address, b"returned".to_vec()));
    b.is_returned(a.address, refused::RIGHT);
    a.answer(b.address).expect("it goes out");
    a.takes_back(b.address, refused::RIGHT);
    let back = path.routes.allow(a.address, b.address, Right::No);
    back.expect("both are there");
    b.answer(a.address).expect("it goes out");
    b.takes_back(a.address, refused::RIGHT);
    assert!(a.has_nothing() && b.has_nothing());
}

#[test]
fn a_peer_that_does_not_read_holds_no_more_than_its_credit_and_reading_gives_it_back() {
    let Some(path) = Path::new() else { return };
    let (a, b) = path.pair();
    // Frames that fill the credit without a rest.
    let content = vec![1; 4096 - HEAD_LEN];
    let (size, fit) = (4096, u64::from(CREDIT) / 4096);
    assert_eq!(fit * size, u64::from(CREDIT));
    for _ in 0..fit {
        a.send(b.address, &content).expect("within its credit");
    }
    for _ in 0..100 {
        a.is_returned(b.address, refused::CREDIT);
        b.stream.peek(&mut [0; 64]).expect("something is there");
    }
    assert_eq!(path.waiting(&b), fit * size, "looking takes nothing");
    assert_eq!(path.refused(&a)[refused::CREDIT], 100);
    b.send(a.address, b"its own inbox is another")
        .expect("allowed");
    assert_eq!(a.receive().1, b"its own inbox is another");
    assert_eq!(b.receive().1, content);
    a.send(b.address, &content).expect("room for one");
    a.is_returned(b.address, refused::CREDIT);
    for _ in 0..fit {
        assert_eq!(b.receive().1, content);
    }
    assert!(b.has_nothing());
    assert_eq!(path.waiting(&b), 0);
}

#[test]
fn a_sender_that_does_not_take_back_what_is_refused_is_cut_off_at_its_own_credit() {
    let Some(path) = Path::new() else { return };
    let (a, b) = (path.agent(), path.agent());
    let content = vec![1; CONTENT_MAX as usize];
    let fit = u64::from(CREDIT) / (u64::from(CONTENT_MAX) + HEAD_LEN as u64);
    for _ in 0..fit {
        a.send(b.address, &content).expect("it comes back");
    }
    assert!(is_refused(a.send(b.address, &content)));
    assert!(path.waiting(&a) <= u64::from(CREDIT));
    assert!(b.has_nothing());
}

#[test]
fn frames_to_a_closed_connection_and_to_the_next_owner_of_a_slot_come_back() {
    let Some(path) = Path::new() else { return };
    let (a, b) = path.pair();
    let former = b.address;
    a.send(former, b"never read").expect("allowed");
    let agent = b.close();
    a.is_returned(former, refused::ABSENT);

    // The same agent connects anew: what was queued to its last connection is forgotten with it.
    let b = Direct::connect(agent, former);
    assert_eq!(path.waiting(&b), 0);
    a.send(former, b"again").expect("allowed");
    assert_eq!(b.receive().1, b"again");

    // Another agent in its slot.
    path.routes.end(b.agent.slot);
    a.is_returned(former, refused::RIGHT);
    assert!(is_refused(b.send(a.address, b"from the dead")));
    path.routes
        .begin(b.agent.slot, b.agent.id + 1)
        .expect("takes part");
    a.is_returned(former, refused::RIGHT);
    assert!(b.has_nothing());
}

#[test]
fn programs_that_are_replaced_go_on_with_the_connections_that_are_there() {
    let Some(path) = Path::new() else { return };
    let (a, b) = path.pair();
    a.send(b.address, b"before").expect("allowed");
    let object = crate::bed::object();
    let again = path
        .bed
        .load_again(&object, &[&a.agent, &b.agent])
        .expect("load");
    assert!(again.groups.has(Group::Route));
    assert_eq!(path.routes.begin(a.agent.slot, a.agent.id), Some(a.address));
    a.send(b.address, b"after").expect("allowed");
    assert_eq!(b.receive().1, b"before");
    assert_eq!(b.receive().1, b"after");
    assert_eq!(path.waiting(&b), 0, "its credit comes back as before");
    let c = path.agent();
    path.allow(&c, &b);
    c.send(b.address, b"new").expect("allowed");
    assert_eq!(b.receive(), (c.address, b"new".to_vec()));
}

#[test]
fn no_request_or_reply_is_lost_while_the_programs_are_replaced_under_them() {
    let Some(path) = Path::new() else { return };
    let (a, b) = path.pair();
    let object = crate::bed::object();
    let replaced = std::sync::atomic::AtomicBool::new(false);
    let stop = || replaced.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            // Until the requester says that it was the last.
            loop {
                let (from, content) = b.receive();
                b.send(from, &content).expect("allowed");
                if content.is_empty() {
                    break;
                }
            }
        });
        let asking = scope.spawn(|| {
            let mut asked = 0u64;
            while !stop() || asked < 1000 {
                let content = asked.to_ne_bytes();
                a.send(b.address, &content).expect("allowed");
                assert_eq!(
                    a.receive(),
                    (b.address, content.to_vec()),
                    "request {asked}"
                );
                asked += 1;
            }
            a.send(b.address, b"").expect("allowed");
            assert_eq!(a.receive().1, b"");
        });
        for _ in 0..5 {
            let again = path.bed.load_again(&object, &[&a.agent, &b.agent]);
            assert!(again.expect("load").groups.has(Group::Route));
        }
        replaced.store(true, std::sync::atomic::Ordering::Relaxed);
        asking.join().expect("every reply came");
        answering.join().expect("every request came");
    });
    assert_eq!(path.refused(&a), [0; refused::KINDS]);
    assert_eq!((path.waiting(&a), path.waiting(&b)), (0, 0));
}
