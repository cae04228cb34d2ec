//! A rig for each transport: sockets of this host for two of them, memory for the third.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

/// Any stream of the standard library, not blocking.
struct Socket<S>(S, fn(&S, Shutdown) -> std::io::Result<()>);

impl<S: Read + Write> Peer for Socket<S> {
    fn send(&mut self, bytes: &[u8]) -> usize {
        // A peer that was closed on finds out by reading.
        self.0.write(bytes).unwrap_or_default()
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 64 << 10];
        match self.0.read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => {
                bytes.truncate(count);
                Some(bytes)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Vec::new()),
            Err(_) => None,
        }
    }

    fn finish(&mut self) {
        // One that was closed on has nothing left to end.
        self.1(&self.0, Shutdown::Write).unwrap_or_default();
    }
}

/// A listening AF_UNIX socket in a directory that goes away.
#[derive(Default)]
struct UnixEnd {
    directory: Option<tempfile::TempDir>,
}

impl UnixEnd {
    fn listen(&mut self) -> UnixListener {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        self.directory = Some(directory);
        listener
    }

    fn dial(&self) -> Box<dyn Peer> {
        let path = self.directory.as_ref().unwrap().path().join("s");
        let stream = UnixStream::connect(path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Box::new(Socket(stream, UnixStream::shutdown))
    }

    fn is_own(origin: Origin) -> bool {
        matches!(origin, Origin::Unix { uid, pid, .. }
            if uid == rustix::process::geteuid().as_raw() && pid as u32 == std::process::id())
    }
}

#[derive(Default)]
struct TcpEnd {
    address: Option<std::net::SocketAddr>,
}

impl TcpEnd {
    fn listen(&mut self) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        self.address = Some(listener.local_addr().unwrap());
        listener
    }

    fn dial(&self) -> Box<dyn Peer> {
        let stream = TcpStream::connect(self.address.unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        Box::new(Socket(stream, TcpStream::shutdown))
    }

    fn is_loopback(origin: Origin) -> bool {
        matches!(origin, Origin::Tcp(address) if address.ip().is_loopback())
    }
}

/// A rig of sockets: which transport, over which of the two ends.
macro_rules! rig {
    ($name:ident, $end:ident, $make:expr, $own:expr) => {
        #[derive(Default)]
        pub(super) struct $name($end);

        impl Rig for $name {
            fn transport(&mut self, limits: TransportLimits) -> Box<dyn Transport> {
                let mut transport = $make(limits).unwrap();
                transport.listen(self.0.listen().into()).unwrap();
                Box::new(transport)
            }
            fn dial(&mut self) -> Box<dyn Peer> {
                self.0.dial()
            }
            fn origin_is(&self, origin: Origin) -> bool {
                $own(origin)
            }
        }
    };
}

rig!(EpollUnix, UnixEnd, epoll::Epoll::new, UnixEnd::is_own);
rig!(EpollTcp, TcpEnd, epoll::Epoll::new, TcpEnd::is_loopback);
rig!(UringUnix, UnixEnd, uring::Uring::new, UnixEnd::is_own);
rig!(UringTcp, TcpEnd, uring::Uring::new, TcpEnd::is_loopback);

#[derive(Default)]
pub(super) struct LoopbackRig(loopback::Fabric);

impl Peer for loopback::FabricPeer {
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.send(bytes)
    }
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.receive()
    }
    fn finish(&mut self) {
        self.finish();
    }
}

impl Rig for LoopbackRig {
    fn transport(&mut self, limits: TransportLimits) -> Box<dyn Transport> {
        self.0 = loopback::Fabric::default();
        Box::new(loopback::Loopback::new(limits, &self.0).unwrap())
    }
    fn dial(&mut self) -> Box<dyn Peer> {
        Box::new(self.0.dial())
    }
    fn origin_is(&self, origin: Origin) -> bool {
        origin == Origin::Memory
    }
}
