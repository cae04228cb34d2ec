//! Servers of the host that nobody inside may reach: TCP, UDP and Unix sockets, by address, path and abstract name. Each
//! logs what it hears and answers with the secret.
//!
//! One thread each, ended by the process's end. One more keeps trying to connect to names that a session could take, as
//! a host program with a retry does.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Raise, RaiseError, give};
use crate::scene::Scene;

/// How long to listen to what a session has bound.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries to connect to what a session may have bound.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn hear(&self, server: &str, bytes: &[u8]) {
        let text = format!("{server} {}", String::from_utf8_lossy(bytes));
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text);
    }
}

#[derive(Debug)]
pub struct Servers {
    log: Log,
}

impl Servers {
    pub fn raise(uid: u32, secret: &str, scene: &mut Scene) -> Result<Self, RaiseError> {
        let log = Log::default();
        let servers = Self { log: log.clone() };
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).raise("a TCP server")?;
        scene.tcp = tcp.local_addr().raise("its port")?.port();
        serve("tcp", &log, secret, move || Ok(tcp.accept()?.0));
        if let Ok(tcp6) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
            scene.tcp6 = tcp6.local_addr().raise("its port")?.port();
            serve("tcp6", &log, secret, move || Ok(tcp6.accept()?.0));
        }
        scene.address = address();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).raise("a UDP server")?;
        scene.udp = udp.local_addr().raise("its port")?.port();
        let (heard, reply) = (log.clone(), secret.to_owned());
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((count, from)) = udp.recv_from(&mut buffer) {
                heard.hear("udp", &buffer[..count]);
                if udp.send_to(reply.as_bytes(), from).is_err() {
                    heard.hear("udp", b"(no reply)");
                }
            }
        });

        let unix = UnixListener::bind(&scene.unix).raise("a Unix socket")?;
        serve("unix", &log, secret, move || Ok(unix.accept()?.0));
        scene.abstract_stream = format!("{}-stream", scene.mark);
        let address = UnixAddr::from_abstract_name(&scene.abstract_stream).raise("a name")?;
        let unix = UnixListener::bind_addr(&address).raise("an abstract socket")?;
        serve("abstract", &log, secret, move || Ok(unix.accept()?.0));
        scene.abstract_dgram = format!("{}-dgram", scene.mark);
        let address = UnixAddr::from_abstract_name(&scene.abstract_dgram).raise("a name")?;
        for socket in [
            UnixDatagram::bind(&scene.unix_dgram).raise("a datagram socket")?,
            UnixDatagram::bind_addr(&address).raise("an abstract datagram socket")?,
        ] {
            let heard = log.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok(count) = socket.recv(&mut buffer) {
                    heard.hear("dgram", &buffer[..count]);
                }
            });
        }
        for path in [&scene.unix, &scene.unix_dgram] {
            give(path, uid).raise(path.display().to_string())?;
        }

        scene.abstract_wanted = format!("{}-wanted", scene.mark);
        // A port that was free a moment ago.
        scene.tcp_wanted = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .raise("a free port")?
            .port();
        want(&log, scene);
        Ok(servers)
    }

    /// Whether anybody said this case's name.
    pub fn heard(&self, id: &str) -> Option<String> {
        let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter()
            .find(|line| {
                line.split(|letter: char| !is_of_name(letter))
                    .any(|word| word == id)
            })
            .map(|line| format!("the host heard: {}", line.trim_end()))
    }
}

fn is_of_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// A stream that one is patient with for a while.
trait Stream: Read + Write + Send {
    fn patience(&self) -> std::io::Result<()>;
}

impl Stream for TcpStream {
    fn patience(&self) -> std::io::Result<()> {
        self.set_read_timeout(Some(PATIENCE))
    }
}

impl Stream for UnixStream {
    fn patience(&self) -> std::io::Result<()> {
        self.set_read_timeout(Some(PATIENCE))
    }
}

fn serve<S: Stream + 'static>(
    name: &'static str,
    log: &Log,
    secret: &str,
    mut accept: impl FnMut() -> std::io::Result<S> + Send + 'static,
) {
    let (log, secret) = (log.clone(), secret.to_owned());
    std::thread::spawn(move || {
        while let Ok(mut stream) = accept() {
            let (log, secret) = (log.clone(), secret.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                // As long as it takes: a connection may be handed to the session before it says anything.
                if let Ok(count @ 1..) = stream.read(&mut buffer) {
                    log.hear(name, &buffer[..count]);
                    if stream.write_all(secret.as_bytes()).is_err() {
                        log.hear(name, b"(no reply)");
                    }
                }
            });
        }
    });
}

fn want(log: &Log, scene: &Scene) {
    let (log, name, port) = (log.clone(), scene.abstract_wanted.clone(), scene.tcp_wanted);
    std::thread::spawn(move || {
        let listen = |mut stream: Box<dyn Stream>| {
            let mut buffer = [0; 256];
            let heard = stream.patience().and_then(|()| stream.read(&mut buffer));
            if let Ok(count @ 1..) = heard {
                log.hear("wanted", &buffer[..count]);
            }
        };
        loop {
            if let Ok(stream) =
                UnixAddr::from_abstract_name(&name).and_then(|at| UnixStream::connect_addr(&at))
            {
                listen(Box::new(stream));
            }
            let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if let Ok(stream) = TcpStream::connect_timeout(&local, RETRY) {
                listen(Box::new(stream));
            }
            std::thread::sleep(RETRY);
        }
    });
}

/// The address that the host would use for others; nothing is sent to find it.
fn address() -> Option<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then(|| ip.to_string())
}
