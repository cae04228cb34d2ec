//! Sockets: the loopback interface, listeners, and packets with descriptors.

use core::ffi::CStr;

use super::call::{call, call_retry};
use super::{Errno, Fd, FdRef, nr};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const SOCK_STREAM: usize = 1;
const SOCK_DGRAM: usize = 2;
const SOCK_SEQPACKET: usize = 5;
const SOCK_NONBLOCK: usize = 0o4000;
const SOCK_CLOEXEC: usize = 0o2_000_000;
const BACKLOG: usize = 128;

/// The most descriptors [`send_packet`] takes.
pub const MAX_PACKET_FDS: usize = 32;

fn socket(family: u16, kind: usize) -> Result<Fd, Errno> {
    // SAFETY: no memory is involved.
    unsafe { call(nr::SOCKET, [family.into(), kind | SOCK_CLOEXEC, 0]) }.map(Fd::returned)
}

fn bind_and_listen(socket: &Fd, address: &[u8]) -> Result<(), Errno> {
    let fd = socket.borrow().arg();
    // SAFETY: the kernel reads `address.len()` bytes from `address`.
    unsafe {
        call(
            nr::BIND,
            [fd, address.as_ptr().expose_provenance(), address.len()],
        )
    }?;
    // SAFETY: no memory is involved.
    unsafe { call(nr::LISTEN, [fd, BACKLOG]) }.map(drop)
}

/// A non-blocking socket that listens on 127.0.0.1.
pub fn listen_loopback(port: u16) -> Result<Fd, Errno> {
    let socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK)?;
    let mut address = [0u8; 16];
    address[0..2].copy_from_slice(&AF_INET.to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    bind_and_listen(&socket, &address)?;
    Ok(socket)
}

/// A non-blocking stream socket that listens at `name` in the working directory.
pub fn listen_unix(name: &CStr) -> Result<Fd, Errno> {
    listen_at(name, SOCK_STREAM)
}

/// The same for packets.
pub fn listen_packets(name: &CStr) -> Result<Fd, Errno> {
    listen_at(name, SOCK_SEQPACKET)
}

fn listen_at(name: &CStr, kind: usize) -> Result<Fd, Errno> {
    let socket = socket(AF_UNIX, kind | SOCK_NONBLOCK)?;
    let name = name.to_bytes_with_nul();
    let mut address = [0u8; 110];
    address[0..2].copy_from_slice(&AF_UNIX.to_ne_bytes());
    address
        .get_mut(2..2 + name.len())
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(name);
    bind_and_listen(&socket, &address[..2 + name.len()])?;
    Ok(socket)
}

/// A socket for packets, connected to the one that listens at `path`.
pub fn connect_packets(path: &CStr) -> Result<Fd, Errno> {
    let socket = socket(AF_UNIX, SOCK_SEQPACKET)?;
    let path = path.to_bytes_with_nul();
    let mut address = [0u8; 110];
    address[0..2].copy_from_slice(&AF_UNIX.to_ne_bytes());
    address
        .get_mut(2..2 + path.len())
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(path);
    let args = [
        socket.borrow().arg(),
        address.as_ptr().expose_provenance(),
        2 + path.len(),
    ];
    // SAFETY: the kernel reads as many bytes of `address` as the length says, which are there.
    unsafe { call(nr::CONNECT, args) }?;
    Ok(socket)
}

/// The next connection that waits at a listener; `None` where none waits.
pub fn accept(listener: FdRef<'_>) -> Result<Option<Fd>, Errno> {
    // SAFETY: no memory is involved.
    match unsafe { call_retry(nr::ACCEPT4, [listener.arg(), 0, 0, SOCK_CLOEXEC]) } {
        Ok(fd) => Ok(Some(Fd::returned(fd))),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Brings `lo` up in the network namespace of the caller. Returns a socket there.
pub fn loopback_up() -> Result<Fd, Errno> {
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP: u16 = 1;
    let socket = socket(AF_INET, SOCK_DGRAM)?;
    // struct ifreq: name[16], then a union of 24 bytes that begins with the flags
    let mut request = [0u8; 40];
    request[0..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&IFF_UP.to_ne_bytes());
    // SAFETY: the kernel reads a `struct ifreq` of 40 bytes from `request`.
    unsafe {
        call(
            nr::IOCTL,
            [
                socket.borrow().arg(),
                SIOCSIFFLAGS,
                request.as_ptr().expose_provenance(),
            ],
        )
    }?;
    Ok(socket)
}

/// The network namespace of a socket; needs `CAP_NET_ADMIN` there.
pub fn namespace_of(socket: FdRef<'_>) -> Result<Fd, Errno> {
    const SIOCGSKNS: usize = 0x894C;
    // SAFETY: no memory is involved.
    unsafe { call(nr::IOCTL, [socket.arg(), SIOCGSKNS, 0]) }.map(Fd::returned)
}

/// Two sockets for packets, connected to each other.
pub fn packet_pair() -> Result<(Fd, Fd), Errno> {
    let mut ends = [0u32; 2];
    let args = [
        usize::from(AF_UNIX),
        SOCK_SEQPACKET | SOCK_CLOEXEC,
        0,
        ends.as_mut_ptr().expose_provenance(),
    ];
    // SAFETY: the kernel writes two ints to `ends`.
    unsafe { call(nr::SOCKETPAIR, args) }?;
    Ok((
        Fd::returned(ends[0] as usize),
        Fd::returned(ends[1] as usize),
    ))
}

/// Sends one packet and duplicates of `fds` without blocking or raising SIGPIPE.
pub fn send_packet(socket: FdRef<'_>, packet: &[u8], fds: &[FdRef<'_>]) -> Result<(), Errno> {
    const MSG_NOSIGNAL: usize = 0x4000;
    const MSG_DONTWAIT: usize = 0x40;
    const SOL_SOCKET: u32 = 1;
    const SCM_RIGHTS: u32 = 1;
    const HEADER: usize = 16;

    /// `struct cmsghdr` and its data; aligned as the kernel wants it.
    #[repr(C, align(8))]
    struct Control([u8; HEADER + 4 * MAX_PACKET_FDS]);

    let mut control = Control([0; HEADER + 4 * MAX_PACKET_FDS]);
    let len = HEADER + 4 * fds.len();
    let data = control.0.get_mut(HEADER..len).ok_or(Errno::INVAL)?;
    for (slot, fd) in data.chunks_exact_mut(4).zip(fds) {
        slot.copy_from_slice(&fd.raw().to_ne_bytes());
    }
    control.0[0..8].copy_from_slice(&len.to_ne_bytes());
    control.0[8..12].copy_from_slice(&SOL_SOCKET.to_ne_bytes());
    control.0[12..16].copy_from_slice(&SCM_RIGHTS.to_ne_bytes());

    let vector = [packet.as_ptr().expose_provenance(), packet.len()];
    let control_len = if fds.is_empty() {
        0
    } else {
        len.next_multiple_of(8)
    };
    // struct msghdr: name, name length, vectors, their count, control, its length, flags
    let message = [
        0,
        0,
        vector.as_ptr().expose_provenance(),
        1,
        control.0.as_ptr().expose_provenance(),
        control_len,
        0,
    ];
    let args = [
        socket.arg(),
        message.as_ptr().expose_provenance(),
        MSG_NOSIGNAL | MSG_DONTWAIT,
    ];
    // SAFETY: `message` is a `struct msghdr` whose vector and control data are the live locals above, with their lengths.
    unsafe { call_retry(nr::SENDMSG, args) }.map(drop)
}

/// One received packet.
#[derive(Debug)]
pub struct Packet {
    /// How many bytes of the buffer it fills.
    pub len: usize,
    /// The descriptor that came along, close-on-exec.
    pub fd: Option<Fd>,
}

/// Receives one packet without blocking; `None` when there is none. Of the descriptors sent along the first is received,
/// the kernel discards all others.
pub fn receive_packet(socket: FdRef<'_>, buffer: &mut [u8]) -> Result<Option<Packet>, Errno> {
    const MSG_DONTWAIT: usize = 0x40;
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    const SOL_SOCKET: u32 = 1;
    const SCM_RIGHTS: u32 = 1;

    /// `struct cmsghdr` (its length, level, type) and one descriptor; aligned as the kernel wants it.
    #[repr(C)]
    struct Control {
        len: usize,
        level: u32,
        kind: u32,
        fd: i32,
    }
    // Not the structure's padding: the kernel counts how many descriptors have room, and there is room for one.
    const CONTROL_LEN: usize = 20;

    let mut control = Control {
        len: 0,
        level: 0,
        kind: 0,
        fd: -1,
    };
    let vector = [buffer.as_mut_ptr().expose_provenance(), buffer.len()];
    let mut message = [
        0,
        0,
        vector.as_ptr().expose_provenance(),
        1,
        (&raw mut control).expose_provenance(),
        CONTROL_LEN,
        0usize,
    ];
    // SAFETY: `message` is a `struct msghdr` whose one vector is all of `buffer`, and whose control data is `control`.
    match unsafe {
        call_retry(
            nr::RECVMSG,
            [
                socket.arg(),
                message.as_mut_ptr().expose_provenance(),
                MSG_DONTWAIT | MSG_CMSG_CLOEXEC,
            ],
        )
    } {
        Ok(len) => {
            // SAFETY: reads a live local, which the kernel wrote behind the compiler's back.
            let control = unsafe { (&raw const control).read_volatile() };
            let arrived = message[5] >= CONTROL_LEN
                && control.len >= CONTROL_LEN
                && (control.level, control.kind) == (SOL_SOCKET, SCM_RIGHTS);
            let fd = arrived.then(|| Fd::returned(control.fd as usize));
            Ok(Some(Packet { len, fd }))
        }
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}
