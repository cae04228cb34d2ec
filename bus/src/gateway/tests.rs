//! A shard whole: a transport below, a desk above, and peers that misbehave.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::frame::{Decoder, Frame, PeerId, kind};
use crate::message::Response;
use crate::router::CloseReason;

use super::loopback::{Fabric, FabricPeer, Loopback};

/// Echoes requests, counts the rest, and keeps what it was told.
#[derive(Debug, Default)]
struct Notes {
    opened: Vec<Identity>,
    frames: usize,
    endings: Vec<Ending>,
    /// Answer each batch with "wait".
    slow: bool,
    /// Owe every peer an answer when it has finished.
    owing: bool,
    finished: Vec<ConnKey>,
    written: usize,
    /// Connections that wait, and in which order frames came.
    order: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
struct Clerk(Arc<Mutex<Notes>>);

impl Desk for Clerk {
    fn opened(&mut self, _: ConnKey, who: &Identity) -> Result<(), Turned> {
        self.0.lock().unwrap().opened.push(who.clone());
        Ok(())
    }
    fn frames(&mut self, _: ConnKey, frames: &mut Vec<Frame>, out: &mut Vec<Frame>) -> Taken {
        let mut notes = self.0.lock().unwrap();
        for frame in frames.drain(..) {
            notes.frames += 1;
            notes.order.push(frame.correlation());
            if frame.kind() == kind::REQUEST {
                out.push(Frame::new(
                    kind::RESPONSE,
                    PeerId::BUS,
                    frame.correlation(),
                    frame.payload,
                ));
            }
        }
        if notes.slow { Taken::Wait } else { Taken::More }
    }
    fn written(&mut self, _: ConnKey) {
        self.0.lock().unwrap().written += 1;
    }
    fn finished(&mut self, conn: ConnKey) -> Owed {
        let mut notes = self.0.lock().unwrap();
        notes.finished.push(conn);
        match notes.owing {
            true => Owed::Answers,
            false => Owed::Nothing,
        }
    }
    fn closed(&mut self, _: ConnKey, ending: &Ending) {
        self.0.lock().unwrap().endings.push(ending.clone());
    }
    fn listening(&mut self, _: ListenerId, _: Listening) {}
    fn id_of(&self, _: ConnKey, _: u32) -> Option<PeerId> {
        None
    }
    fn short_of(&self, _: ConnKey, _: PeerId) -> Option<u32> {
        None
    }
}

struct Bed {
    shard: Shard<Loopback, Clerk>,
    clerk: Clerk,
    fabric: Fabric,
}

impl Bed {
    fn new(limits: ShardLimits, options: ListenerOptions) -> Self {
        let fabric = Fabric::default();
        let clerk = Clerk::default();
        let transport = Loopback::new(TransportLimits::default(), &fabric).unwrap();
        let mut shard = Shard::new(transport, clerk.clone(), limits);
        shard.speak(options);
        Self {
            shard,
            clerk,
            fabric,
        }
    }

    fn until(&mut self, mut done: impl FnMut(&Notes) -> bool) {
        let watchdog = Instant::now() + Duration::from_secs(60);
        while !done(&self.clerk.0.lock().unwrap()) {
            assert!(Instant::now() < watchdog, "hangs");
            self.shard.step(Some(Duration::from_millis(5))).unwrap();
        }
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            self.shard.step(Some(Duration::from_millis(1))).unwrap();
        }
    }

    /// What has come back as frames, up to the end if it has come.
    fn frames(&mut self, peer: &mut FabricPeer) -> Vec<Frame> {
        let mut decoder = Decoder::new(1 << 20);
        for _ in 0..50 {
            self.shard.step(Some(Duration::from_millis(1))).unwrap();
            match peer.receive() {
                Some(bytes) => decoder.feed(&bytes),
                None => break,
            }
        }
        std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
    }
}

fn send(peer: &mut FabricPeer, frame: &Frame) {
    let mut bytes = Vec::new();
    frame.encode_into(&mut bytes);
    assert_eq!(peer.send(&bytes), bytes.len());
}

fn request(correlation: u32) -> Frame {
    Frame::new(kind::REQUEST, PeerId::BUS, correlation, *b"question")
}

fn plain() -> Bed {
    Bed::new(ShardLimits::default(), ListenerOptions::default())
}

#[test]
fn a_request_is_answered() {
    let mut bed = plain();
    let mut peer = bed.fabric.dial();
    send(&mut peer, &request(9));
    let answers = bed.frames(&mut peer);
    assert_eq!(
        (answers[0].kind(), answers[0].correlation()),
        (kind::RESPONSE, 9)
    );
}

#[test]
fn what_is_no_frame_is_told_why_and_closed() {
    let mut bed = plain();
    let mut peer = bed.fabric.dial();
    peer.send(b"GET / HTTP/1.1\r\n\r\n");
    let notice = bed.frames(&mut peer).remove(0);
    assert_eq!(notice.kind(), kind::ERROR);
    let text = Response::parse(&notice.payload).unwrap().error.to_owned();
    assert!(text.contains("magic"), "{text}");
    assert_eq!(bed.clerk.0.lock().unwrap().endings, [Ending::InteropOff]);
    assert_eq!(peer.receive(), None);
}

#[test]
fn who_never_greets_and_who_stalls_in_a_frame_is_closed_by_name() {
    // Each in a bed where only its own limit is short: on a busy machine any of them may be over by the time of the next step.
    let short = Duration::from_millis(300);
    let first_ending = |limits: ShardLimits, act: &dyn Fn(&mut Bed) -> Option<FabricPeer>| {
        let mut bed = Bed::new(limits, ListenerOptions::default());
        let peer = act(&mut bed);
        bed.until(|notes| !notes.endings.is_empty());
        drop(peer);
        bed.clerk.0.lock().unwrap().endings.remove(0)
    };
    let greeting = ShardLimits {
        greeting: short,
        ..ShardLimits::default()
    };
    let silent = first_ending(greeting, &|bed| Some(bed.fabric.dial()));
    assert_eq!(
        silent,
        Ending::Bus(CloseReason::GreetingTimeout { seconds: 0 })
    );
    let frame = ShardLimits {
        frame: short,
        ..ShardLimits::default()
    };
    let stalled = first_ending(frame, &|bed| {
        let mut peer = bed.fabric.dial();
        send(&mut peer, &request(1));
        peer.send(&[0xFE, 0xCA, 0x42]);
        Some(peer)
    });
    assert_eq!(
        stalled,
        Ending::Bus(CloseReason::StalledFrame { seconds: 0 })
    );
    let cut = first_ending(ShardLimits::default(), &|bed| {
        let mut peer = bed.fabric.dial();
        send(&mut peer, &request(2));
        peer.send(&[0xFE, 0xCA, 0x42, 0xAF, 1]);
        bed.settle();
        None
    });
    assert_eq!(cut, Ending::Bus(CloseReason::CutOff { bytes: 5 }));
}

#[test]
fn unfinished_frames_are_bounded_over_all_connections() {
    let limits = ShardLimits {
        memory: 100_000,
        ..ShardLimits::default()
    };
    let mut bed = Bed::new(limits, ListenerOptions::default());
    let mut peers: Vec<_> = (0..4).map(|_| bed.fabric.dial()).collect();
    let mut unfinished = Vec::new();
    Frame::new(kind::EVENT, PeerId::BUS, 1, vec![0; 60_000]).encode_into(&mut unfinished);
    unfinished.truncate(40_000);
    for peer in &mut peers {
        assert_eq!(peer.send(&unfinished), unfinished.len());
    }
    bed.until(|notes| !notes.endings.is_empty());
    bed.settle();
    let endings = bed.clerk.0.lock().unwrap().endings.clone();
    assert_eq!(endings, vec![Ending::Memory { limit: 100_000 }; 2]);
}

#[test]
fn a_slow_desk_gets_one_batch_at_a_time_and_loses_nothing_even_of_those_who_left() {
    let mut bed = plain();
    bed.clerk.0.lock().unwrap().slow = true;
    let mut peer = bed.fabric.dial();
    for correlation in 1..=100 {
        send(
            &mut peer,
            &Frame::new(kind::EVENT, PeerId::BUS, correlation, []),
        );
        bed.shard.step(Some(Duration::ZERO)).unwrap();
    }
    drop(peer);
    bed.settle();
    let key = ConnKey {
        slot: 0,
        generation: 0,
    };
    let door = bed.shard.door();
    let mut batches = 0;
    loop {
        let (before, ended) = {
            let notes = bed.clerk.0.lock().unwrap();
            (notes.frames, !notes.endings.is_empty())
        };
        if ended {
            break;
        }
        assert!(batches < 110, "never ends");
        batches += 1;
        door.post(key, Post::ReadOn);
        bed.settle();
        let now = bed.clerk.0.lock().unwrap().frames;
        assert!(
            now - before <= ShardLimits::default().slice,
            "more than one batch"
        );
    }
    let notes = bed.clerk.0.lock().unwrap();
    assert_eq!(notes.order, (1..=100).collect::<Vec<u32>>());
    assert_eq!(notes.endings, [Ending::Transport(Ended::Eof)]);
}

/// Two frames of a peer that is lost while the desk has the first and waits with the second.
fn lost_while_the_desk_waits(limits: ShardLimits) -> (Bed, ConnKey) {
    let mut bed = Bed::new(limits, ListenerOptions::default());
    bed.clerk.0.lock().unwrap().slow = true;
    let mut peer = bed.fabric.dial();
    for correlation in [1, 2] {
        send(
            &mut peer,
            &Frame::new(kind::EVENT, PeerId::BUS, correlation, []),
        );
        bed.settle();
    }
    drop(peer);
    let key = ConnKey {
        slot: 0,
        generation: 0,
    };
    // That it is gone is learned by sending to it.
    let answer = Frame::new(kind::RESPONSE, PeerId::BUS, 1, []);
    bed.shard.door().post(key, Post::Write(vec![answer]));
    bed.settle();
    assert_eq!(bed.shard.transport().connections(), 0);
    (bed, key)
}

#[test]
fn what_is_posted_to_a_lost_peer_counts_as_written_and_the_rest_of_what_it_said_is_handed_over() {
    let (mut bed, key) = lost_while_the_desk_waits(ShardLimits::default());
    let written = bed.clerk.0.lock().unwrap().written;
    let door = bed.shard.door();
    for posted in 1..4 {
        let answer = Frame::new(kind::RESPONSE, PeerId::BUS, 1, [1; 5000]);
        door.post(key, Post::Write(vec![answer]));
        bed.until(|notes| notes.written == written + posted);
    }
    assert_eq!(bed.clerk.0.lock().unwrap().endings, []);
    for _ in [1, 2] {
        door.post(key, Post::ReadOn);
        bed.settle();
    }
    let notes = bed.clerk.0.lock().unwrap();
    assert_eq!(notes.order, [1, 2]);
    assert_eq!(notes.endings, [Ending::Transport(Ended::Eof)]);
}

#[test]
fn what_a_lost_peer_said_is_kept_for_a_desk_only_for_so_long() {
    let (mut bed, key) = lost_while_the_desk_waits(ShardLimits {
        frame: Duration::from_millis(300),
        ..ShardLimits::default()
    });
    bed.until(|notes| !notes.endings.is_empty());
    // Too late, and for nobody.
    bed.shard.door().post(key, Post::ReadOn);
    bed.settle();
    let notes = bed.clerk.0.lock().unwrap();
    assert_eq!(notes.order, [1]);
    assert_eq!(notes.endings, [Ending::Transport(Ended::Eof)]);
}

#[test]
fn a_peer_that_finishes_gets_what_it_is_owed_and_then_a_clean_end() {
    let mut bed = plain();
    bed.clerk.0.lock().unwrap().owing = true;
    let mut peer = bed.fabric.dial();
    send(&mut peer, &Frame::new(kind::EVENT, PeerId::BUS, 5, []));
    peer.finish();
    bed.until(|notes| !notes.finished.is_empty());
    bed.settle();
    let notes = std::mem::take(&mut *bed.clerk.0.lock().unwrap());
    assert_eq!((notes.order, notes.endings), (vec![5], vec![]));
    let (conn, door) = (notes.finished[0], bed.shard.door());
    let answer = Frame::new(kind::RESPONSE, PeerId::BUS, 5, [1; 5000]);
    door.post(conn, Post::Write(vec![answer.clone()]));
    door.post(conn, Post::Finish);
    assert_eq!(bed.frames(&mut peer), [answer]);
    assert_eq!(peer.receive(), None);
    assert_eq!(
        bed.clerk.0.lock().unwrap().endings,
        [Ending::Transport(Ended::Eof)]
    );
}

#[test]
fn a_peer_that_finishes_inside_a_frame_is_cut_off() {
    let mut bed = plain();
    bed.clerk.0.lock().unwrap().owing = true;
    let mut peer = bed.fabric.dial();
    send(&mut peer, &request(1));
    peer.send(&[0xFE, 0xCA]);
    peer.finish();
    // What was whole is answered.
    assert_eq!(bed.frames(&mut peer)[0].correlation(), 1);
    assert_eq!(
        bed.clerk.0.lock().unwrap().endings,
        [Ending::Bus(CloseReason::CutOff { bytes: 2 })]
    );
}

#[test]
fn a_flood_waits_in_its_own_backlog_while_others_are_served() {
    let mut bed = plain();
    let mut flood = bed.fabric.dial();
    let mut light = bed.fabric.dial();
    bed.settle();
    let mut burst = Vec::new();
    for correlation in 1..=1000 {
        Frame::new(kind::EVENT, PeerId::BUS, correlation, []).encode_into(&mut burst);
    }
    assert!(flood.send(&burst) > 60_000);
    send(&mut light, &request(5000));
    // The flood goes first into the fabric; the light sender is served before even a tenth of it.
    bed.until(|notes| notes.order.contains(&5000));
    let notes = bed.clerk.0.lock().unwrap();
    let before = notes.order.iter().take_while(|one| **one != 5000).count();
    assert!(
        before <= 3 * ShardLimits::default().slice,
        "{before} frames went first"
    );
}

mod over_tls {
    use super::*;
    use crate::gateway::tls::TlsConfig;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use std::io::{Read as _, Write as _};

    struct Authority(Issuer<'static, KeyPair>, CertificateDer<'static>);

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Authority(Issuer::new(params, key), certificate.der().clone())
    }

    impl Authority {
        fn sign(&self, names: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let params = CertificateParams::new(names).unwrap();
            let certificate = params.signed_by(&key, &self.0).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            (certificate.der().clone(), key)
        }
    }

    /// A TLS client over the fabric; `None` where the session broke.
    fn handshake(
        bed: &mut Bed,
        ours: &Authority,
        theirs: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> (ClientConnection, FabricPeer, bool) {
        let mut roots = RootCertStore::empty();
        roots.add(ours.1.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let config = match theirs {
            Some((certificate, key)) => config
                .with_client_auth_cert(vec![certificate], key)
                .unwrap(),
            None => config.with_no_client_auth(),
        };
        let mut client =
            ClientConnection::new(Arc::new(config), ServerName::try_from("gate.test").unwrap())
                .unwrap();
        let mut peer = bed.fabric.dial();
        let open = exchange(bed, &mut client, &mut peer);
        (client, peer, open)
    }

    /// Carries records both ways until nothing moves; whether the session stands.
    fn exchange(bed: &mut Bed, client: &mut ClientConnection, peer: &mut FabricPeer) -> bool {
        for _ in 0..40 {
            let mut records = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut records).unwrap();
            }
            assert_eq!(peer.send(&records), records.len());
            bed.shard.step(Some(Duration::from_millis(1))).unwrap();
            match peer.receive() {
                Some(bytes) => {
                    let mut bytes = &bytes[..];
                    while !bytes.is_empty() {
                        client.read_tls(&mut bytes).unwrap();
                        if client.process_new_packets().is_err() {
                            return false;
                        }
                    }
                }
                None => return false,
            }
        }
        !client.is_handshaking()
    }

    fn bed(ours: &Authority, clients: &Authority) -> Bed {
        let (certificate, key) = ours.sign(&["gate.test"]);
        let names = ["one.test".to_owned(), "two.test".to_owned()];
        let tls = TlsConfig::new(vec![certificate], key, vec![clients.1.clone()], &names).unwrap();
        let options = ListenerOptions {
            tls: Some(tls),
            ..ListenerOptions::default()
        };
        Bed::new(ShardLimits::default(), options)
    }

    #[test]
    fn a_client_is_known_by_the_name_in_its_certificate() {
        let ours = authority();
        let mut bed = bed(&ours, &ours);
        let (mut client, mut peer, open) =
            handshake(&mut bed, &ours, Some(ours.sign(&["two.test"])));
        assert!(open);
        assert_eq!(
            bed.clerk.0.lock().unwrap().opened[0].client.as_deref(),
            Some("two.test")
        );
        assert_eq!(
            client.protocol_version(),
            Some(rustls::ProtocolVersion::TLSv1_3)
        );
        let mut bytes = Vec::new();
        Frame::new(kind::REQUEST, PeerId::BUS, 77, vec![3; 50_000]).encode_into(&mut bytes);
        let (mut rest, mut plain) = (&bytes[..], Vec::new());
        for _ in 0..100 {
            rest = &rest[client
                .writer()
                .write(&rest[..rest.len().min(8000)])
                .unwrap()..];
            let mut records = Vec::new();
            client.write_tls(&mut records).unwrap();
            assert_eq!(peer.send(&records), records.len());
            bed.shard.step(Some(Duration::from_millis(1))).unwrap();
            let back = peer.receive().expect("open");
            let mut back = &back[..];
            while !back.is_empty() {
                client.read_tls(&mut back).unwrap();
                let ready = client
                    .process_new_packets()
                    .unwrap()
                    .plaintext_bytes_to_read();
                let at = plain.len();
                plain.resize(at + ready, 0);
                client.reader().read_exact(&mut plain[at..]).unwrap();
            }
            if plain.len() == bytes.len() {
                break;
            }
        }
        let mut decoder = Decoder::new(1 << 20);
        decoder.feed(&plain);
        let answer = decoder.next_frame().unwrap().expect("whole");
        assert_eq!((answer.correlation(), answer.payload.len()), (77, 50_000));
    }

    #[test]
    fn a_session_that_is_closed_in_one_direction_is_answered_in_the_other() {
        let ours = authority();
        let mut bed = bed(&ours, &ours);
        bed.clerk.0.lock().unwrap().owing = true;
        let (mut client, mut peer, open) =
            handshake(&mut bed, &ours, Some(ours.sign(&["one.test"])));
        assert!(open);
        let mut question = Vec::new();
        Frame::new(kind::EVENT, PeerId::BUS, 8, []).encode_into(&mut question);
        client.writer().write_all(&question).unwrap();
        client.send_close_notify();
        exchange(&mut bed, &mut client, &mut peer);
        let notes = std::mem::take(&mut *bed.clerk.0.lock().unwrap());
        assert_eq!((notes.order, notes.endings), (vec![8], vec![]));
        let (conn, door) = (notes.finished[0], bed.shard.door());
        let answer = Frame::new(kind::RESPONSE, PeerId::BUS, 8, *b"late");
        door.post(conn, Post::Write(vec![answer.clone()]));
        door.post(conn, Post::Finish);
        exchange(&mut bed, &mut client, &mut peer);
        let mut plain = Vec::new();
        // Ends without an error only after the server's own close_notify.
        client.reader().read_to_end(&mut plain).unwrap();
        let mut decoder = Decoder::new(1 << 20);
        decoder.feed(&plain);
        assert_eq!(decoder.next_frame().unwrap(), Some(answer));
        assert_eq!(
            bed.clerk.0.lock().unwrap().endings,
            [Ending::Transport(Ended::Eof)]
        );
    }

    #[test]
    fn a_session_that_is_cut_is_owed_nothing() {
        let ours = authority();
        let mut bed = bed(&ours, &ours);
        bed.clerk.0.lock().unwrap().owing = true;
        let (_client, mut peer, open) = handshake(&mut bed, &ours, Some(ours.sign(&["one.test"])));
        assert!(open);
        // The stream ends, the session does not.
        peer.finish();
        bed.until(|notes| !notes.endings.is_empty());
        let notes = bed.clerk.0.lock().unwrap();
        assert_eq!(notes.endings, [Ending::Transport(Ended::Eof)]);
        assert!(notes.finished.is_empty());
    }

    #[test]
    fn without_a_certificate_of_the_authority_nobody_gets_in() {
        let (ours, others) = (authority(), authority());
        let mut bed = bed(&ours, &ours);
        for theirs in [None, Some(others.sign(&["one.test"]))] {
            // In TLS 1.3 the client is done before the server has seen its certificate.
            let (mut client, mut peer, _) = handshake(&mut bed, &ours, theirs);
            exchange(&mut bed, &mut client, &mut peer);
            assert_eq!(peer.receive(), None);
        }
        assert!(bed.clerk.0.lock().unwrap().opened.is_empty());
    }

    #[test]
    fn a_certificate_for_no_name_or_for_several_is_turned_away() {
        let ours = authority();
        let mut bed = bed(&ours, &ours);
        for names in [&["three.test"][..], &["one.test", "two.test"]] {
            let (mut client, mut peer, _) = handshake(&mut bed, &ours, Some(ours.sign(names)));
            bed.settle();
            assert_eq!(peer.receive(), None);
            // It is told why, inside the session.
            let mut plain = Vec::new();
            client.reader().read_to_end(&mut plain).unwrap();
            let mut decoder = Decoder::new(1 << 20);
            decoder.feed(&plain);
            let notice = decoder.next_frame().unwrap().expect("a notice");
            let text = Response::parse(&notice.payload).unwrap().error.to_owned();
            assert!(
                text.contains("the client certificate is valid for"),
                "{text}"
            );
        }
        assert!(bed.clerk.0.lock().unwrap().opened.is_empty());
    }

    #[test]
    fn bytes_that_are_no_tls_end_the_connection() {
        let ours = authority();
        let mut bed = bed(&ours, &ours);
        let mut peer = bed.fabric.dial();
        send(&mut peer, &request(1));
        bed.settle();
        while let Some(bytes) = peer.receive() {
            // An alert, no frame.
            assert!(bytes.is_empty() || bytes[0] == 21);
            bed.settle();
        }
        assert!(bed.clerk.0.lock().unwrap().opened.is_empty());
    }
}
