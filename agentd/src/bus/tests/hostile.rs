//! Sockets that speak nonsense, a byte at a time, or never read; memory that is not sealed.

use std::io::Write as _;
use std::os::fd::AsFd as _;

use agentd_bus::frame::{Frame, PeerId, flags, kind};
use agentd_bus::message::{Control, Shape};
use agentd_bus::router::Limits;

use super::super::fixture::Raw;
use super::*;

fn header(kind: u16, payload_len: u32) -> Vec<u8> {
    let mut frame = Frame::new(kind, PeerId::BUS, 1, []);
    frame.header.payload_len = payload_len.into();
    let mut bytes = Vec::new();
    frame.encode_into(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bytes_end_their_own_connection_with_a_reason() {
    let (bus, [path]) = Fixture::of(["a"]);
    let (victim, _) = bus.attach("victim");
    blocking(move || {
        let mut garbage = Raw::connect(&path);
        garbage.stream.write_all(&[0x55; 200]).unwrap();
        assert!(garbage.last_words().contains("not a bus frame"));

        let mut huge = Raw::greeted(&path);
        huge.stream
            .write_all(&header(kind::EVENT, (1 << 20) + 1))
            .unwrap();
        assert!(
            huge.last_words()
                .contains("over this connection's limit of 1048576")
        );

        let mut early = Raw::connect(&path);
        early.say(&Frame::new(kind::EVENT, PeerId::BUS, 1, []));
        assert!(early.last_words().contains("first frame must be hello"));

        let mut half = Raw::greeted(&path);
        half.stream.write_all(&header(kind::EVENT, 100)).unwrap();
        half.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(half.last_words().contains("ended inside a frame, 64 bytes"));

        let mut crc = Raw::greeted(&path);
        let mut frame = Frame::new(kind::EVENT, PeerId::BUS, 1, *b"payload");
        frame.seal_crc();
        frame.header.correlation = 2.into();
        crc.say(&frame);
        assert!(crc.last_words().contains("CRC-32C"));

        let mut forged = Raw::greeted(&path);
        let mut frame = Frame::new(kind::EVENT, PeerId::BUS, 1, *b"payload");
        frame.header.source = PeerId([7; 16]);
        forged.say(&frame);
        assert!(forged.last_words().contains("claims to come from"));

        let mut flag = Raw::greeted(&path);
        let mut frame = Frame::new(
            kind::COMMAND,
            PeerId::BUS,
            1,
            Control::Agents.encode().unwrap(),
        );
        frame.header.flags = flags::FD.into();
        flag.say(&frame);
        assert!(flag.last_words().contains("file descriptors"));

        let fd = std::fs::File::open("/dev/null").unwrap();
        let stray = Raw::greeted(&path);
        let mut bytes = Vec::new();
        Frame::new(kind::HEARTBEAT, PeerId::BUS, 0, []).encode_into(&mut bytes);
        agentd_kernel::fdpass::send(stray.stream.as_fd(), &bytes, &[fd.as_fd()]).unwrap();
        assert!(stray.last_words().contains("file descriptors"));
    })
    .await;
    assert_eq!(in_time(victim.agents()).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_byte_at_a_time_is_a_slow_peer_not_a_broken_one() {
    let (_bus, [path]) = Fixture::of(["a"]);
    blocking(move || {
        let mut slow = Raw::greeted(&path);
        let mut bytes = Vec::new();
        Frame::new(
            kind::COMMAND,
            PeerId::BUS,
            9,
            Control::Agents.encode().unwrap(),
        )
        .encode_into(&mut bytes);
        for byte in bytes {
            slow.stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(slow.read().unwrap().correlation(), 9);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_that_is_never_read_holds_up_only_the_flooder() {
    /// Read at the end: so many were asked for at least.
    const ANSWERS: u64 = 1000;
    let limits = Limits {
        out_frames: 64,
        ..Limits::default()
    };
    let bus = Fixture::with_limits(limits);
    let (_a, flood_path) = bus.attach("flood");
    let (b, _) = bus.attach("b");
    let (c, _) = bus.attach("c");
    let flooding = blocking(move || {
        let mut flood = Raw::greeted(&flood_path);
        flood.stream.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        Frame::new(
            kind::COMMAND,
            PeerId::BUS,
            9,
            Control::Agents.encode().unwrap(),
        )
        .encode_into(&mut bytes);
        // Until the kernel's buffers in both directions and the queue are full: then nothing is taken.
        let (mut taken, enough) = (0u64, ANSWERS * bytes.len() as u64);
        let mut refused_since = None;
        loop {
            match flood.stream.write(&bytes) {
                Ok(n) => {
                    taken += n as u64;
                    bytes.rotate_left(n);
                    refused_since = None;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let since = *refused_since.get_or_insert_with(std::time::Instant::now);
                    // A server that a busy machine has not run yet takes nothing either.
                    if since.elapsed() > Duration::from_millis(300) && taken > enough {
                        break;
                    }
                    std::thread::yield_now();
                }
                Err(error) => panic!("the flooder is held up, not cut off: {error}"),
            }
        }
        (flood, taken)
    })
    .await;
    assert!(
        flooding.1 < 16 << 20,
        "{} bytes were taken without an answer being read",
        flooding.1
    );
    // The others go on.
    for _ in 0..100 {
        in_time(b.send("c", "", "x")).await.unwrap();
    }
    assert_eq!(
        in_time(c.inbox(200, Duration::ZERO))
            .await
            .unwrap()
            .messages
            .len(),
        100
    );
    // And the flooder too, once it reads.
    blocking(move || {
        let (mut flood, _) = flooding;
        flood.stream.set_nonblocking(false).unwrap();
        for _ in 0..ANSWERS {
            assert_eq!(flood.read().unwrap().correlation(), 9);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsealed_memory_never_reaches_the_other_side() {
    let (bus, [a_path]) = Fixture::of(["a"]);
    let (b, b_path) = bus.attach("b");
    let b_id = PeerId(*b.identity().id.0.as_bytes());
    blocking(move || {
        let receiver = Client::connect_to(&b_path).unwrap();
        let offers = receiver.accept_lanes().unwrap();
        let payload = Control::LaneOffer {
            to: b_id,
            shape: Shape::default(),
        }
        .encode()
        .unwrap();
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 5, payload);
        for (file, reason) in [
            (
                std::fs::File::open("/dev/null").unwrap(),
                "no sealable memory",
            ),
            (tempfile::tempfile().unwrap(), "no sealable memory"),
        ] {
            let raw = Raw::greeted(&a_path);
            raw.say_with(frame.clone(), file.as_fd());
            let why = raw.last_words();
            assert!(why.contains(reason), "{why}");
        }
        assert!(offers.next(Duration::ZERO).unwrap().is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_agent_are_bounded() {
    let bus = Fixture::with_limits(Limits {
        max_connections: 2,
        ..Limits::default()
    });
    let (_a, path) = bus.attach("a");
    blocking(move || {
        let held = (Raw::greeted(&path), Raw::greeted(&path));
        let refused = Raw::connect(&path);
        assert!(
            refused
                .last_words()
                .contains("has 2 connections, the most allowed")
        );
        drop(held);
    })
    .await;
}
