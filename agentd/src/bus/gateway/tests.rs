//! The gateway around a real bus: who gets in, what goes through, and how it is told why not.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use agentd_bus::frame::{Decoder, Frame, PeerId, kind};
use agentd_bus::gateway::interop::{HEADER_LEN, HeaderV3, sha256};
use agentd_bus::message::{Control, Event, Request, Response, Status};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::super::{BusServer, Unrecorded};
use super::*;

const WATCHDOG: Option<Duration> = Some(Duration::from_secs(30));

/// A gateway of this configuration on a bus of its own.
struct Bed {
    _gateway: Gateway,
    addresses: Vec<SocketAddr>,
    bus: BusServer,
}

fn bed(text: &str) -> Bed {
    let config: GatewayConfig = toml::from_str(text).unwrap();
    config.check().unwrap();
    let prepared = prepare(&config).unwrap();
    let addresses = prepared.addresses();
    let bus = BusServer::start(Arc::new(Unrecorded));
    let _gateway = prepared.start(&bus).unwrap();
    Bed {
        _gateway,
        addresses,
        bus,
    }
}

fn read_frame(stream: &mut (impl std::io::Read + ?Sized), decoder: &mut Decoder) -> Option<Frame> {
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return Some(frame);
        }
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            // The work of a ring that this thread made is a signal to it, and a socket with a time-out doesn't restart.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return None,
            Ok(count) => decoder.feed(&bytes[..count]),
        }
    }
}

fn hello() -> Frame {
    let hello = Control::Hello {
        version: 1,
        options: 0,
    };
    Frame::new(kind::COMMAND, PeerId::BUS, 1, hello.encode().unwrap())
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode_into(&mut bytes);
    bytes
}

fn status(frame: &Frame) -> Status {
    Response::parse(&frame.payload).unwrap().status
}

/// Both transports, where the host has both.
fn transports() -> Vec<&'static str> {
    let limits = TransportLimits::default();
    match select(agentd_bus::gateway::select::Wanted::IoUring, limits) {
        Ok(_) => vec!["epoll", "io_uring"],
        Err(_) => vec!["epoll"],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_known_by_its_uid_is_a_peer_with_the_rights_of_the_configuration() {
    let me = rustix::process::geteuid().as_raw();
    for transport in transports() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.sock");
        let bed = bed(&format!(
            "transport = {transport:?}\n[[listen]]\nunix = {path:?}\n[[peer]]\nname = \"outside\"\nuser = 4711\nsocket_user = {me}\npublish = [\"news.#\"]\n"
        ));
        let mut following = bed.bus.follow(4711, "news.#").unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(WATCHDOG).unwrap();
        let mut decoder = Decoder::new(1 << 20);
        stream.write_all(&bytes_of(&hello())).unwrap();
        let welcome = read_frame(&mut stream, &mut decoder).unwrap();
        assert_eq!(status(&welcome), Status::OK);
        for (topic, allowed) in [("news.today", true), ("secret", false)] {
            let event = Event {
                priority: 1,
                event_type: "note",
                topic,
                data: b"words",
            };
            let mut frame = Frame::new(kind::EVENT, PeerId::BUS, 2, event.encode().unwrap());
            frame.header.flags = (1 | agentd_bus::frame::flags::ACK).into();
            // In two parts: a frame may come in any.
            let bytes = bytes_of(&frame);
            stream.write_all(&bytes[..20]).unwrap();
            stream.write_all(&bytes[20..]).unwrap();
            let answer = read_frame(&mut stream, &mut decoder).unwrap();
            assert_eq!(status(&answer) == Status::OK, allowed, "{topic}");
        }
        match following.next().await {
            Some(super::super::Followed::Message(message)) => {
                assert_eq!(
                    (message.from.as_str(), &message.data[..]),
                    ("outside", &b"words"[..])
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(bed.bus.peers().iter().any(|peer| peer.name == "outside"));
        drop(stream);
        // Its end is known from the kernel, and takes it off the bus.
        while bed.bus.peers().iter().any(|peer| peer.name == "outside") {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_is_told_so_and_closed() {
    let bed = bed("[[listen]]\ntcp = \"127.0.0.1:0\"\n");
    let mut stream = TcpStream::connect(bed.addresses[0]).unwrap();
    stream.set_read_timeout(WATCHDOG).unwrap();
    let mut decoder = Decoder::new(1 << 20);
    let notice = read_frame(&mut stream, &mut decoder).unwrap();
    assert_eq!(notice.kind(), kind::ERROR);
    let text = Response::parse(&notice.payload).unwrap().error;
    assert!(text.contains("no [[bus.gateway.peer]]"), "{text}");
    assert!(read_frame(&mut stream, &mut decoder).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v3_peer_speaks_to_the_same_bus() {
    for (interop, spoken) in [(true, true), (false, false)] {
        let bed = bed(&format!(
            "[[listen]]\ntcp = \"127.0.0.1:0\"\ninterop = {interop}\n[[peer]]\nname = \"old\"\nuser = 4712\nanyone_on_loopback = true\n"
        ));
        let mut stream = TcpStream::connect(bed.addresses[0]).unwrap();
        stream.set_read_timeout(WATCHDOG).unwrap();
        let payload = hello().payload;
        let mut header = HeaderV3 {
            timestamp: 1_790_000_000_000_000_000.into(),
            message_id: 7.into(),
            source: 0.into(),
            target: 0.into(),
            kind: kind::COMMAND.into(),
            priority: 1.into(),
            payload_size: (payload.len() as u32).into(),
            sha256: [0; 32],
            padding: 0.into(),
        };
        header.sha256 = sha256(&header, &payload);
        stream.write_all(header.as_bytes()).unwrap();
        stream.write_all(&payload).unwrap();
        let mut answer = [0; HEADER_LEN];
        stream.read_exact(&mut answer).unwrap();
        if !spoken {
            // The notice is in the listener's own dialect.
            let (notice, _) = agentd_bus::frame::Header::read_from_prefix(&answer).unwrap();
            assert_eq!(notice.kind.get(), kind::ERROR);
            continue;
        }
        let (answer, _) = HeaderV3::read_from_prefix(&answer).unwrap();
        assert_eq!(
            (answer.kind.get(), answer.message_id.get()),
            (kind::RESPONSE, 7)
        );
        let mut payload = vec![0; answer.payload_size.get() as usize];
        stream.read_exact(&mut payload).unwrap();
        assert_eq!(answer.sha256, sha256(&answer, &payload));
        assert_eq!(Response::parse(&payload).unwrap().status, Status::OK);
    }
}

/// A peer over TCP that takes requests, and who it is on the bus.
fn server_of(bed: &Bed) -> (TcpStream, Decoder, PeerId) {
    let mut server = TcpStream::connect(bed.addresses[0]).unwrap();
    server.set_read_timeout(WATCHDOG).unwrap();
    let mut requests = Decoder::new(1 << 20);
    let serve = Control::Serve { window: 4 }.encode().unwrap();
    for (correlation, payload) in [(1, hello().payload.to_vec()), (2, serve)] {
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, correlation, payload);
        server.write_all(&bytes_of(&frame)).unwrap();
        let answer = read_frame(&mut server, &mut requests).unwrap();
        assert_eq!(status(&answer), Status::OK);
    }
    let peers = bed.bus.peers();
    let id = peers.iter().find(|peer| peer.name == "server").unwrap().id;
    (server, requests, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_more_still_gets_its_answers() {
    let me = rustix::process::geteuid().as_raw();
    for transport in transports() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.sock");
        let bed = bed(&format!(
            "transport = {transport:?}\n[[listen]]\nunix = {path:?}\n[[listen]]\ntcp = \"127.0.0.1:0\"\n\
             [[peer]]\nname = \"asker\"\nuser = 4713\nsocket_user = {me}\nrequest = [\"server\"]\n\
             [[peer]]\nname = \"server\"\nuser = 4713\nanyone_on_loopback = true\n"
        ));
        let (mut server, mut requests, id) = server_of(&bed);
        let way = bed.bus.way(id).unwrap();
        assert!(way.starts_with("socket gateway: TCP, "), "{way}");
        // Everything it has to say at once, and then the end of its side.
        let mut asker = UnixStream::connect(&path).unwrap();
        asker.set_read_timeout(WATCHDOG).unwrap();
        let mut all = bytes_of(&hello());
        for correlation in [2, 3] {
            let request = Request {
                method: "ask",
                timeout_ms: 30_000,
                params: b"late",
            };
            let request = Frame::new(kind::REQUEST, id, correlation, request.encode().unwrap());
            all.extend(bytes_of(&request));
        }
        asker.write_all(&all).unwrap();
        asker.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = Decoder::new(1 << 20);
        let welcome = read_frame(&mut asker, &mut answers).unwrap();
        assert_eq!(status(&welcome), Status::OK);
        for correlation in [2, 3] {
            // The answer is made long after the end has been seen: its connection is held for it.
            let request = read_frame(&mut server, &mut requests).unwrap();
            let response = Response {
                status: Status::OK,
                error: "",
                result: b"here",
            };
            let response = Frame::new(
                kind::RESPONSE,
                request.header.source,
                request.correlation(),
                response.encode().unwrap(),
            );
            server.write_all(&bytes_of(&response)).unwrap();
            let answer = read_frame(&mut asker, &mut answers).unwrap();
            assert_eq!(
                (answer.correlation(), status(&answer)),
                (correlation, Status::OK)
            );
        }
        // Owed nothing more, it is closed without a word of complaint.
        assert!(read_frame(&mut asker, &mut answers).is_none());
        while bed.bus.peers().iter().any(|peer| peer.name == "asker") {
            tokio::task::yield_now().await;
        }
    }
}

/// What the peer that is asked does with each request.
#[derive(Clone, Copy, Debug)]
enum Answers {
    /// Nothing: the bus answers for it when too many are open.
    None,
    Of(usize),
}

/// Answers every request until its connection ends.
fn serve(mut stream: TcpStream, mut requests: Decoder, answers: Answers) {
    while let Some(request) = read_frame(&mut stream, &mut requests) {
        let (Answers::Of(len), kind::REQUEST) = (answers, request.kind()) else {
            continue;
        };
        let response = Response {
            status: Status::OK,
            error: "",
            result: &vec![7; len],
        };
        let mut response = Frame::new(
            kind::RESPONSE,
            request.header.source,
            request.correlation(),
            response.encode().unwrap(),
        );
        response.header.source = PeerId::BUS;
        if stream.write_all(&bytes_of(&response)).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_asks_without_end_and_never_reads_is_given_up_and_leaves_the_bus() {
    let me = rustix::process::geteuid().as_raw();
    let answers = [Answers::None, Answers::Of(8), Answers::Of(60_000)];
    for (transport, answers) in transports()
        .into_iter()
        .flat_map(|transport| answers.map(|answers| (transport, answers)))
    {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.sock");
        let bed = bed(&format!(
            "transport = {transport:?}\nstall_s = 1\n[[listen]]\nunix = {path:?}\n[[listen]]\ntcp = \"127.0.0.1:0\"\n\
             [[peer]]\nname = \"deaf\"\nuser = 4714\nsocket_user = {me}\nrequest = [\"server\"]\n\
             [[peer]]\nname = \"server\"\nuser = 4714\nanyone_on_loopback = true\n"
        ));
        let (server, requests, id) = server_of(&bed);
        let ends = server.try_clone().unwrap();
        let serving = std::thread::spawn(move || serve(server, requests, answers));

        let mut deaf = UnixStream::connect(&path).unwrap();
        deaf.set_write_timeout(WATCHDOG).unwrap();
        deaf.write_all(&bytes_of(&hello())).unwrap();
        // Until the gateway has had enough. What it doesn't read waits in the socket, so this ends only with the connection.
        let refused = (2..).find_map(|correlation| {
            let request = Request {
                method: "ask",
                timeout_ms: 0,
                params: &[7; 1000],
            };
            let request = Frame::new(kind::REQUEST, id, correlation, request.encode().unwrap());
            deaf.write_all(&bytes_of(&request)).err()
        });
        let refused = refused.unwrap().kind();
        let gone = [
            std::io::ErrorKind::BrokenPipe,
            std::io::ErrorKind::ConnectionReset,
        ];
        assert!(
            gone.contains(&refused),
            "{transport} {answers:?}: {refused}"
        );
        let watchdog = std::time::Instant::now() + Duration::from_secs(30);
        while bed.bus.peers().iter().any(|peer| peer.name == "deaf") {
            assert!(
                std::time::Instant::now() < watchdog,
                "{transport} {answers:?}: still on the bus"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // On a busy machine the gateway may have given up this peer, too.
        drop(ends.shutdown(std::net::Shutdown::Both));
        serving.join().unwrap();
    }
}
