//! One attacking process: system calls with random arguments around sockets, frames, tasks and
//! cgroups, until its time is over.
//!
//! In a network namespace of its own, so that nothing leaves it. Failures of single calls are the
//! normal case; only what it needs to begin has to work. Children are reaped, sockets are few, and
//! a blocking call is ended by an alarm that fails the test.

use agentd_bpf::layout::route::{CONTENT_MAX, HEAD_LEN, MAGIC, PORT};
use std::fs;
use std::io::{self, Read};
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr;
use std::time::{Duration, Instant};

/// Sockets that one attacker has open.
const SOCKETS: usize = 48;

/// xorshift64*: the same choices from the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_ne_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A network namespace with a loopback of its own, up. (The interface is asked for over AF_UNIX, which no program judges.)
pub fn own_network() -> io::Result<()> {
    // SAFETY: plain system calls; the request is a zeroed struct with a name that ends inside it.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNET) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut request: libc::ifreq = zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// 0 if it could attack until its time was over.
///
/// `index` is whose address of the direct path is its own; a stranger has none.
pub fn attack(
    seed: u64,
    time: Duration,
    places: &[PathBuf],
    (index, addresses): (usize, &[u64]),
) -> i32 {
    // SAFETY: a default action that ends this process.
    unsafe { libc::alarm(time.as_secs() as u32 + 60) };
    if own_network().is_err() {
        return 2;
    }
    let mut attacker = Attacker {
        random: Random::new(seed),
        sockets: Vec::new(),
        places,
        own: addresses.get(index).copied().unwrap_or(0),
        addresses,
        door: None,
        direct: None,
    };
    let began = Instant::now();
    while began.elapsed() < time {
        for _ in 0..64 {
            attacker.step();
        }
    }
    0
}

/// A connection on its way to the direct path's port; it never blocks, as its packets may be dropped.
fn direct() -> Option<TcpStream> {
    // SAFETY: plain system calls; the address is integers only, and its own size is passed.
    unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let fd = libc::socket(libc::AF_INET, kind, 0);
        if fd < 0 {
            return None;
        }
        let stream = TcpStream::from_raw_fd(fd);
        let mut to: libc::sockaddr_in = zeroed();
        to.sin_family = libc::AF_INET as u16;
        to.sin_port = PORT.to_be();
        to.sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
        let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        libc::connect(fd, (&raw const to).cast(), len);
        Some(stream)
    }
}

struct Attacker<'a> {
    random: Random,
    sockets: Vec<OwnedFd>,
    places: &'a [PathBuf],
    /// Addresses of the direct path: what it takes for its own, and everybody's.
    own: u64,
    addresses: &'a [u64],
    /// Where agentd would listen for direct connections, and this attacker's own one.
    door: Option<TcpListener>,
    direct: Option<TcpStream>,
}

impl Attacker<'_> {
    fn step(&mut self) {
        match self.random.below(256) {
            0..60 => self.open(),
            60..85 => self.name(libc::bind),
            85..120 => self.name(libc::connect),
            120..130 => self.listen_and_accept(),
            130..165 => self.send(),
            165..185 => self.frame(),
            185..195 => self.receive(),
            195..208 => self.option(),
            208..218 => self.end(),
            218..228 => self.converse(),
            228..236 => self.family(),
            236..242 => self.wander(),
            242..254 => self.route(),
            _ => self.rest(),
        }
    }

    /// Frames onto the direct path: whole and torn, its own and forged, to whom it may send and to whom not.
    fn route(&mut self) {
        if self.addresses.is_empty() {
            return;
        }
        if self.door.is_none() {
            // Refused while it has no network.
            self.door = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).ok();
            if let Some(door) = &self.door {
                door.set_nonblocking(true).ok();
            }
        }
        if self.direct.is_none() || self.random.below(64) == 0 {
            self.direct = direct();
            let accepted = self.door.as_ref().and_then(|door| door.accept().ok());
            if let Some((accepted, _)) = accepted {
                accepted.set_nonblocking(true).ok();
                self.keep(accepted.into_raw_fd());
            }
        }
        let mut frame = [0u8; HEAD_LEN + CONTENT_MAX as usize + 64];
        let behaves = self.random.below(2) == 0;
        for _ in 0..8 {
            let len = self.random.of(&[0, 1, 40, 1000, CONTENT_MAX]);
            self.random.fill(&mut frame[..64]);
            let to = self.random.of(self.addresses);
            // Most are as they should be: after one that is not, the connection carries nothing any more.
            let wrong = if behaves { 63 } else { self.random.below(64) };
            let random = self.random.next();
            let len = if wrong == 7 { CONTENT_MAX + 1 } else { len };
            let magic = if wrong == 0 { random as u32 } else { MAGIC };
            let said = if wrong == 1 { random as u32 } else { len };
            let from = match wrong {
                2 => random,
                3 => to,
                _ => self.own,
            };
            let to = if wrong == 4 {
                to ^ 1 << (random % 64)
            } else {
                to
            };
            frame[..4].copy_from_slice(&magic.to_ne_bytes());
            frame[4..8].copy_from_slice(&said.to_ne_bytes());
            frame[8..16].copy_from_slice(&from.to_ne_bytes());
            frame[16..24].copy_from_slice(&to.to_ne_bytes());
            let whole = HEAD_LEN + len as usize;
            let sent = match wrong {
                5 => random as usize % whole,
                6 => whole + random as usize % 63,
                _ => whole,
            };
            let Some(direct) = &self.direct else { return };
            let flags = match wrong {
                8 => libc::MSG_MORE,
                9 => libc::MSG_OOB,
                _ => 0,
            };
            let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: as many bytes as said are there.
            let went =
                unsafe { libc::send(direct.as_raw_fd(), frame.as_ptr().cast(), sent, flags) };
            if went >= 0 {
                continue;
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EAGAIN) => break,
                // Somebody else's connection, if this process has wandered.
                Some(libc::EACCES) => self.own = self.random.of(self.addresses),
                // It was never one, or has ended.
                _ => {}
            }
            self.direct = None;
            return;
        }
        // Some read what came, some never do.
        if self.random.below(3) == 0
            && let Some(direct) = &self.direct
        {
            let mut came = [0u8; 1 << 15];
            while matches!((&*direct).read(&mut came), Ok(len) if len > 0) {}
        }
    }

    fn any(&mut self) -> Option<libc::c_int> {
        let count = self.sockets.len() as u64;
        (count > 0).then(|| self.sockets[self.random.below(count) as usize].as_raw_fd())
    }

    fn keep(&mut self, fd: libc::c_int) {
        if fd < 0 {
            return;
        }
        // SAFETY: made a moment ago, and owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if self.sockets.len() == SOCKETS {
            let at = self.random.below(SOCKETS as u64) as usize;
            self.sockets[at] = socket;
        } else {
            self.sockets.push(socket);
        }
    }

    fn open(&mut self) {
        let family = self.random.of(&[
            libc::AF_INET,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_INET6,
            libc::AF_UNIX,
            libc::AF_PACKET,
            libc::AF_NETLINK,
        ]);
        let kind = self.random.of(&[
            libc::SOCK_STREAM,
            libc::SOCK_STREAM,
            libc::SOCK_DGRAM,
            libc::SOCK_RAW,
            libc::SOCK_SEQPACKET,
        ]);
        let protocol = match self.random.below(3) {
            0 => 0,
            1 => self.random.of(&[
                libc::IPPROTO_TCP,
                libc::IPPROTO_UDP,
                libc::IPPROTO_ICMP,
                libc::IPPROTO_ICMPV6,
                libc::IPPROTO_SCTP,
                libc::IPPROTO_MPTCP,
                libc::IPPROTO_UDPLITE,
                libc::IPPROTO_RAW,
            ]),
            _ => self.random.below(256) as libc::c_int,
        };
        let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: makes a descriptor or an error.
        let fd = unsafe { libc::socket(family, kind, protocol) };
        self.keep(fd);
    }

    /// An address that may be one of this namespace, or bytes that are none.
    fn address(&mut self) -> (libc::sockaddr_storage, libc::socklen_t) {
        // SAFETY: integers only.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        let port = self
            .random
            .of(&[1u16, 80, 3128, 8080, 40_000, 40_001, 0])
            .to_be();
        // SAFETY: sockaddr_storage is as large and as aligned as any of these, which are integers only.
        let len = unsafe {
            match self.random.below(6) {
                0 | 1 => {
                    let address = &mut *(&raw mut storage).cast::<libc::sockaddr_in>();
                    address.sin_family = libc::AF_INET as u16;
                    address.sin_port = port;
                    let ip = self
                        .random
                        .of(&[0x7f00_0001u32, 0, 0x7fff_fffe, 0xe000_0001]);
                    address.sin_addr.s_addr = ip.to_be();
                    size_of::<libc::sockaddr_in>()
                }
                2 | 3 => {
                    let address = &mut *(&raw mut storage).cast::<libc::sockaddr_in6>();
                    address.sin6_family = libc::AF_INET6 as u16;
                    address.sin6_port = port;
                    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1];
                    let local = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
                    address.sin6_addr.s6_addr = self.random.of(&[mapped, local, [0; 16]]);
                    size_of::<libc::sockaddr_in6>()
                }
                4 => {
                    storage.ss_family = libc::AF_UNSPEC as u16;
                    16
                }
                _ => {
                    let mut bytes = [0u8; 64];
                    self.random.fill(&mut bytes);
                    ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut storage).cast(), 64);
                    self.random.below(129) as usize
                }
            }
        };
        (storage, len as libc::socklen_t)
    }

    fn name(
        &mut self,
        call: unsafe extern "C" fn(
            libc::c_int,
            *const libc::sockaddr,
            libc::socklen_t,
        ) -> libc::c_int,
    ) {
        let Some(fd) = self.any() else { return };
        let (address, len) = self.address();
        // SAFETY: `len` bytes of `address` are there: it is at most the size of a sockaddr_storage.
        unsafe { call(fd, (&raw const address).cast(), len) };
    }

    fn listen_and_accept(&mut self) {
        let Some(fd) = self.any() else { return };
        // SAFETY: no pointer is passed but null ones, which are allowed.
        let accepted = unsafe {
            libc::listen(fd, self.random.below(4) as libc::c_int);
            libc::accept4(fd, ptr::null_mut(), ptr::null_mut(), libc::SOCK_NONBLOCK)
        };
        self.keep(accepted);
    }

    fn send(&mut self) {
        let Some(fd) = self.any() else { return };
        let mut bytes = [0u8; 9000];
        let len = self.random.of(&[0usize, 1, 16, 64, 1500, 9000]);
        self.random.fill(&mut bytes[..len.min(64)]);
        let flags = self.random.of(&[
            0,
            libc::MSG_OOB,
            libc::MSG_MORE,
            libc::MSG_FASTOPEN,
            libc::MSG_EOR,
            libc::MSG_DONTROUTE,
        ]);
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let (address, address_len) = self.address();
        let named = self.random.below(2) == 0;
        let to = if named {
            (&raw const address).cast()
        } else {
            ptr::null()
        };
        let address_len = if named { address_len } else { 0 };
        // SAFETY: as many bytes as said of both.
        unsafe { libc::sendto(fd, bytes.as_ptr().cast(), len, flags, to, address_len) };
    }

    /// A frame of any bytes behind an Ethernet header onto the loopback: headers that look right with lengths that don't.
    fn frame(&mut self) {
        // SAFETY: plain system calls; the address is a zeroed struct of its own size.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = libc::socket(libc::AF_PACKET, kind, 0);
            if fd < 0 {
                return;
            }
            let socket = OwnedFd::from_raw_fd(fd);
            let mut to: libc::sockaddr_ll = zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = 1;
            for _ in 0..8 {
                let mut bytes = [0u8; 256];
                self.random.fill(&mut bytes);
                let len = 14 + self.random.below(242) as usize;
                self.shape(&mut bytes);
                libc::sendto(
                    socket.as_raw_fd(),
                    bytes.as_ptr().cast(),
                    len,
                    libc::MSG_DONTWAIT,
                    (&raw const to).cast(),
                    size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                );
            }
        }
    }

    /// Makes random bytes pass for a packet as far as they go.
    fn shape(&mut self, bytes: &mut [u8; 256]) {
        bytes[..12].fill(0);
        let (v4, v6) = ([0x08, 0x00], [0x86, 0xdd]);
        let ether_type = self
            .random
            .of(&[v4, v4, v6, v6, [0x08, 0x06], [0x81, 0x00]]);
        bytes[12..14].copy_from_slice(&ether_type);
        let protocol = self.random.of(&[6u8, 17, 1, 58, 0, 43, 44, 60, 132, 255]);
        let packet = &mut bytes[14..];
        let ports_at = if ether_type == v4 {
            packet[0] = self.random.of(&[0x45, 0x45, 0x4f, 0x46, 0x40]);
            packet[9] = protocol;
            packet[12..20].copy_from_slice(&[127, 0, 0, 1, 127, 0, 0, 1]);
            let words = u16::from(packet[0] & 15) * 2;
            checksum(packet, words as usize);
            20
        } else {
            packet[0] = 0x60;
            packet[6] = protocol;
            packet[8..40].fill(0);
            (packet[23], packet[39]) = (1, 1);
            40
        };
        let port = self.random.of(&[1u16, 80, 8080, 40_000]).to_be_bytes();
        packet[ports_at + 2..ports_at + 4].copy_from_slice(&port);
    }

    fn receive(&mut self) {
        let Some(fd) = self.any() else { return };
        let mut bytes = [0u8; 2048];
        let flags = self
            .random
            .of(&[0, libc::MSG_PEEK, libc::MSG_OOB, libc::MSG_TRUNC]);
        // SAFETY: into a buffer of that length.
        unsafe {
            libc::recv(
                fd,
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                flags | libc::MSG_DONTWAIT,
            )
        };
    }

    fn option(&mut self) {
        let Some(fd) = self.any() else { return };
        let level = self.random.of(&[
            libc::SOL_SOCKET,
            libc::IPPROTO_TCP,
            libc::IPPROTO_IP,
            libc::IPPROTO_IPV6,
        ]);
        let option = self.random.below(80) as libc::c_int;
        if level == libc::SOL_SOCKET && option == libc::SO_LINGER {
            // Closing would block; the other way to use it is in `converse`.
            return;
        }
        let mut value = [0u8; 16];
        if self.random.below(2) == 0 {
            self.random.fill(&mut value);
        } else {
            value[0] = 1;
        }
        let len = self.random.of(&[4u32, 4, 8, 16]);
        // SAFETY: reads at most sixteen bytes, which are there. A filter's pointer in them is checked by the kernel.
        unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), len) };
    }

    fn end(&mut self) {
        let count = self.sockets.len() as u64;
        if count == 0 {
            return;
        }
        let at = self.random.below(count) as usize;
        if self.random.below(2) == 0 {
            self.sockets.swap_remove(at);
        } else {
            let how = self.random.below(4) as libc::c_int;
            // SAFETY: passes no pointer.
            unsafe { libc::shutdown(self.sockets[at].as_raw_fd(), how) };
        }
    }

    /// A connection that really stands, used a little, and broken off.
    fn converse(&mut self) {
        use std::io::Write as _;
        let Ok(listener) = std::net::TcpListener::bind("127.0.0.1:0") else {
            return;
        };
        let Ok(address) = listener.local_addr() else {
            return;
        };
        let Ok(()) = listener.set_nonblocking(true) else {
            return;
        };
        let limit = Duration::from_millis(5);
        let Ok(mut client) = std::net::TcpStream::connect_timeout(&address, limit) else {
            return;
        };
        let accepted = listener.accept();
        let sent = client
            .set_nonblocking(true)
            .and_then(|()| client.write(&[7; 300]));
        if sent.is_ok() && self.random.below(2) == 0 {
            let reset = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // SAFETY: the struct that this option takes.
            unsafe {
                libc::setsockopt(
                    client.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const reset).cast(),
                    size_of::<libc::linger>() as libc::socklen_t,
                )
            };
        }
        let Ok((server, _)) = accepted else { return };
        // It may be connected again, to somebody who never answers.
        if server.set_nonblocking(true).is_ok() && self.random.below(2) == 0 {
            self.keep(server.into_raw_fd());
        }
    }

    /// A child that ends at once, sleeps, stops itself, or opens sockets of its own first.
    fn family(&mut self) {
        let deed = self.random.below(4);
        // SAFETY: the child makes system calls only and ends by _exit; this process has one thread.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                match deed {
                    0 => {}
                    1 => {
                        libc::usleep(200);
                    }
                    2 => {
                        libc::raise(libc::SIGSTOP);
                    }
                    _ => {
                        libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
                        libc::sched_yield();
                    }
                }
                libc::_exit(0);
            }
            if pid > 0 {
                let mut status = 0;
                libc::waitpid(pid, &raw mut status, libc::WUNTRACED);
                if libc::WIFSTOPPED(status) {
                    libc::kill(pid, libc::SIGCONT);
                    libc::waitpid(pid, &raw mut status, 0);
                }
            }
        }
    }

    /// Into another agent's cgroup, or one that nobody knows, with open sockets and all.
    fn wander(&mut self) {
        let place = &self.places[self.random.below(self.places.len() as u64) as usize];
        // The bed may be on its way out.
        fs::write(place, "0").ok();
    }

    fn rest(&mut self) {
        // SAFETY: pass no pointer but to a set of this size.
        unsafe {
            match self.random.below(3) {
                0 => {
                    libc::sched_yield();
                }
                1 => {
                    libc::usleep(self.random.below(300) as u32);
                }
                _ => {
                    let mut set: libc::cpu_set_t = zeroed();
                    let mask = self.random.next();
                    for cpu in 0..64 {
                        if mask >> cpu & 1 != 0 {
                            libc::CPU_SET(cpu, &mut set);
                        }
                    }
                    libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
                }
            }
        }
    }
}

/// Sets the header checksum of an IPv4 packet whose header has so many 16-bit words.
fn checksum(packet: &mut [u8], words: usize) {
    packet[10..12].fill(0);
    let mut sum: u32 = packet
        .chunks(2)
        .take(words)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
