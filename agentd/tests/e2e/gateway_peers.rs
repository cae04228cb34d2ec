//! Peers from outside, through the socket gateway of a real daemon: over TLS with client certificates, over AF_UNIX, and
//! the ways in which they are turned away and ended, each by its name.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use agentd_bus::frame::{Decoder, Frame, PeerId, kind};
use agentd_bus::message::{Control, Request, Response, Status};
use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::bus_verbs::{Talker, peer};
use crate::harness::{Daemon, Mode, WATCHDOG, dir_of, modes, output, text, wait_until};

/// Who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

type Credentials = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signed");
        let issuer = Issuer::new(params, key);
        Self {
            issuer,
            certificate,
        }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.issuer).expect("signed"), key)
    }

    fn client(&self, name: &str) -> Credentials {
        let (certificate, key) = self.sign(name);
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        (certificate.der().clone(), key)
    }
}

fn pem(what: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n")
}

/// A daemon with a gateway on an address and a path of its own.
struct Bed {
    daemon: Daemon,
    authority: Authority,
    ip: Ipv4Addr,
    files: tempfile::TempDir,
}

impl Bed {
    fn new(mode: Mode, transport: &str) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        // Where nobody else listens, so that the port can be found by the address.
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        let ip = Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed), high, low);
        let authority = Authority::new();
        let owner = mode.owner();
        let files = dir_of(owner);
        let path = |name: &str| files.path().join(name);
        let (certificate, key) = authority.sign("gate.test");
        for (name, text) in [
            ("server.pem", pem("CERTIFICATE", certificate.der())),
            ("server.key", pem("PRIVATE KEY", &key.serialize_der())),
            (
                "clients.pem",
                pem("CERTIFICATE", authority.certificate.der()),
            ),
        ] {
            std::fs::write(path(name), text).expect("write a PEM file");
        }
        let mut config = format!(
            "[bus.gateway]\ntransport = {transport:?}\nstall_s = 1\n\
             [[bus.gateway.listen]]\nunix = {:?}\n\
             [[bus.gateway.listen]]\ntcp = \"{ip}:0\"\n\
             tls = {{ certificate = {:?}, key = {:?}, client_ca = {:?} }}\n",
            path("gateway.sock"),
            path("server.pem"),
            path("server.key"),
            path("clients.pem"),
        );
        let me = rustix::process::geteuid().as_raw();
        for (name, known_by) in [
            ("far", "certificate = \"far.test\"".to_owned()),
            ("near", format!("socket_user = {me}")),
        ] {
            write!(
                config,
                "[[bus.gateway.peer]]\nname = {name:?}\nuser = {owner}\n{known_by}\nrequest = [\"#\"]\n"
            )
            .expect("into memory");
        }
        Self {
            daemon: Daemon::with_config(mode, &config),
            authority,
            ip,
            files,
        }
    }

    fn socket(&self) -> PathBuf {
        self.files.path().join("gateway.sock")
    }

    /// Where the TLS listener is, as the kernel says: the configuration leaves the port to it.
    fn address(&self) -> SocketAddr {
        let ip = u32::from_ne_bytes(self.ip.octets());
        let mut listening = None;
        // Read in pieces while others come and go, the table may leave a line out.
        wait_until("the kernel shows the listener", || {
            let table = std::fs::read_to_string("/proc/net/tcp").expect("readable");
            listening = table.lines().find_map(|line| {
                let mut words = line.split_whitespace().skip(1);
                let (local, _, state) = (words.next()?, words.next()?, words.next()?);
                let port = local.strip_prefix(&format!("{ip:08X}:"))?;
                (state == "0A").then(|| u16::from_str_radix(port, 16).expect("a port"))
            });
            listening.is_some()
        });
        (self.ip, listening.expect("just seen")).into()
    }

    fn near(&self) -> Wire<UnixStream> {
        let stream = UnixStream::connect(self.socket()).expect("connect");
        stream.set_read_timeout(Some(WATCHDOG)).expect("a watchdog");
        Wire::new(stream)
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).expect("connect");
        stream.set_read_timeout(Some(WATCHDOG)).expect("a watchdog");
        stream
    }

    /// A TLS client; in TLS 1.3 it is done before the server has seen its certificate.
    fn far(
        &self,
        credentials: Option<Credentials>,
    ) -> Wire<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        let ours = self.authority.certificate.der().clone();
        roots.add(ours).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let config = match credentials {
            Some((certificate, key)) => config
                .with_client_auth_cert(vec![certificate], key)
                .expect("a certificate and its key"),
            None => config.with_no_client_auth(),
        };
        let name = ServerName::try_from("gate.test").expect("a name");
        let mut session = ClientConnection::new(Arc::new(config), name).expect("a session");
        let mut stream = self.tcp();
        while session.is_handshaking() {
            session.complete_io(&mut stream).expect("a handshake");
        }
        Wire::new(StreamOwned::new(session, stream))
    }

    fn logged(&self, what: &str) {
        wait_until(&format!("agentd's log says {what:?}"), || {
            self.daemon.log().contains(what)
        });
    }
}

/// Frames both ways.
struct Wire<S> {
    stream: S,
    decoder: Decoder,
    correlation: u32,
}

impl<S: Read + Write> Wire<S> {
    fn new(stream: S) -> Self {
        let decoder = Decoder::new(1 << 20);
        Self {
            stream,
            decoder,
            correlation: 0,
        }
    }

    fn say(&mut self, kind: u16, to: PeerId, payload: Vec<u8>) {
        self.try_say(kind, to, payload).expect("written");
    }

    fn try_say(&mut self, kind: u16, to: PeerId, payload: Vec<u8>) -> std::io::Result<()> {
        self.correlation += 1;
        let mut bytes = Vec::new();
        Frame::new(kind, to, self.correlation, payload).encode_into(&mut bytes);
        self.stream.write_all(&bytes)
    }

    /// The next frame, or how the connection ended.
    fn hear(&mut self) -> Result<Frame, Option<std::io::Error>> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("frames") {
                return Ok(frame);
            }
            let mut bytes = vec![0; 64 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(None),
                Ok(count) => self.decoder.feed(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Some(error)),
            }
        }
    }

    fn answer(&mut self) -> Vec<u8> {
        let frame = self.hear().expect("an answer");
        let response = Response::parse(&frame.payload).expect("a response");
        assert_eq!(response.status, Status::OK, "{}", response.error);
        assert_eq!(frame.correlation(), self.correlation);
        response.result.to_vec()
    }

    fn control(&mut self, control: Control<'_>) -> Vec<u8> {
        let payload = control.encode().expect("within the limits");
        self.say(kind::COMMAND, PeerId::BUS, payload);
        self.answer()
    }

    fn greet(&mut self) {
        let (version, options) = (1, 0);
        self.control(Control::Hello { version, options });
    }

    /// Greets, and finds out who `name` is.
    fn find(&mut self, name: &str) -> PeerId {
        self.greet();
        let id = self.control(Control::Lookup { name });
        PeerId(id.try_into().expect("16 bytes"))
    }

    fn ask(&mut self, to: PeerId, params: &[u8]) {
        self.try_ask(to, params).expect("written");
    }

    fn try_ask(&mut self, to: PeerId, params: &[u8]) -> std::io::Result<()> {
        let request = Request {
            method: "twice",
            params,
            timeout_ms: 0,
        };
        let payload = request.encode().expect("within the limits");
        self.try_say(kind::REQUEST, to, payload)
    }

    /// Why the daemon ends the connection, and that it does.
    fn notice(&mut self) -> String {
        let frame = self.hear().expect("a notice");
        assert_eq!(frame.kind(), kind::ERROR);
        let notice = Response::parse(&frame.payload).expect("a response");
        let text = notice.error.to_owned();
        assert!(self.hear().is_err(), "closed after {text:?}");
        text
    }
}

/// The transports that a daemon can be told to use here: epoll by name, and whatever is best.
const TRANSPORTS: [&str; 2] = ["auto", "epoll"];

#[test]
fn peers_from_outside_talk_to_an_agent_over_tls_and_over_a_socket() {
    for (mode, transport) in modes().into_iter().zip(TRANSPORTS.into_iter().cycle()) {
        let mut bed = Bed::new(mode, transport);
        // And again under the next agentd: who somebody is does not depend on which one it is.
        for run in ["first", "second"] {
            let owner = bed.daemon.owner();
            let talker = Talker::start(&bed.daemon, owner, run, 0, 2);
            let mut far = bed.far(Some(bed.authority.client("far.test")));
            let agent = far.find(&talker.name);
            far.ask(agent, b"abc");
            assert_eq!(far.answer(), b"abcabc");
            let mut near = bed.near();
            assert_eq!(near.find(&talker.name), agent);
            near.ask(agent, b"xy");
            assert_eq!(near.answer(), b"xyxy");

            let (code, doctor, err) = text(&output(&mut bed.daemon.agentctl(["doctor"])));
            assert_eq!(code, 0, "{err}");
            let line = doctor
                .lines()
                .find_map(|line| line.split_once("socket gateway of the bus over "));
            let (name, why) = line
                .and_then(|(_, said)| said.split_once(": "))
                .expect("said");
            assert!(["io_uring", "epoll"].contains(&name), "{name}");
            if transport == "epoll" {
                assert_eq!((name, why), ("epoll", "the configuration asks for it"));
            }
            for (peer_name, socket) in [("far", "TCP with TLS"), ("near", "AF_UNIX")] {
                let seen = peer(&bed.daemon, owner, peer_name).expect("it is on the bus");
                assert_eq!(seen["tier"], "socket");
                assert_eq!(
                    seen["tier_why"],
                    format!("socket gateway: {socket}, {name}")
                );
            }

            // Each ends its own side with a question still open.
            far.ask(agent, b"last");
            far.stream.conn.send_close_notify();
            far.stream.flush().expect("sent");
            assert_eq!(far.answer(), b"lastlast");
            assert!(matches!(far.hear(), Err(None)), "a session that is closed");
            near.ask(agent, b"words");
            near.stream.shutdown(Shutdown::Write).expect("half closed");
            assert_eq!(near.answer(), b"wordswords");
            assert!(matches!(near.hear(), Err(None)), "a clean end");
            wait_until("they have left the bus", || {
                ["far", "near"]
                    .iter()
                    .all(|name| peer(&bed.daemon, owner, name).is_none())
            });

            let mut held = bed.near();
            held.greet();
            drop(talker);
            if run == "first" {
                bed.daemon.restart();
                // Perhaps a word of farewell, then the end.
                while held.hear().is_ok() {}
            }
        }
    }
}

#[test]
fn whoever_is_turned_away_or_ended_is_told_by_what_name() {
    for (mode, transport) in modes()
        .into_iter()
        .zip(TRANSPORTS.into_iter().rev().cycle())
    {
        let bed = Bed::new(mode, transport);
        let stranger = Authority::new();
        for (credentials, alert) in [
            (Some(stranger.client("far.test")), "DecryptError"),
            (None, "CertificateRequired"),
        ] {
            let Err(Some(error)) = bed.far(credentials).hear() else {
                panic!("not refused: {alert}");
            };
            assert!(error.to_string().contains(alert), "{error}");
        }
        bed.logged("gateway connection turned away: TLS: ");

        let mut nobody = bed.far(Some(bed.authority.client("nobody.test")));
        let why = nobody.notice();
        assert!(
            why.contains("valid for no name of [bus.gateway] peers"),
            "{why}"
        );

        let mut plain = bed.tcp();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
        let mut answer = Vec::new();
        plain.read_to_end(&mut answer).expect("closed in order");
        // An alert (21) of TLS, and nothing that a plain peer could take for a frame.
        assert_eq!(answer.first(), Some(&21), "{answer:?}");

        let mut large = bed.near();
        large.greet();
        let mut header = Vec::new();
        Frame::new(kind::EVENT, PeerId::BUS, 0, Vec::new()).encode_into(&mut header);
        header[8..12].copy_from_slice(&(64u32 << 20).to_le_bytes());
        large.stream.write_all(&header).expect("written");
        let why = large.notice();
        assert!(why.contains("67108864"), "{why}");
        bed.logged(&format!("gateway connection closed: {why}"));

        // It asks for as long as anybody listens and reads no answer: it is listened to no longer, and then given up.
        let talker = Talker::start(&bed.daemon, bed.daemon.owner(), "loud", 0, 2);
        let mut deaf = bed.near();
        deaf.stream
            .set_write_timeout(Some(WATCHDOG))
            .expect("a watchdog");
        let agent = deaf.find(&talker.name);
        let refused = loop {
            if let Err(error) = deaf.try_ask(agent, &[b'x'; 60_000]) {
                break error;
            }
        };
        let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(gone.contains(&refused.kind()), "{refused}");
        bed.logged("gateway connection closed: the peer took no bytes for 1 s while some waited");
        wait_until("it is off the bus", || {
            peer(&bed.daemon, bed.daemon.owner(), "near").is_none()
        });
    }
}
