//! Routed shared memory over real sockets and real threads: every kind of frame, long ones, waiting threads, ends.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agentd_bus::client::{Answer, Client, Received, Routing};
use agentd_bus::message::{Event, Outcome, Status};
use agentd_bus::router::Limits;
use agentd_sandbox::IpcRules;

use super::fixture::{Fixture, WATCHDOG, blocking, identity, open_rules};
use super::{BusServer, Unrecorded};

fn routed(path: &Path) -> Client {
    let client = Client::connect_with(path, Routing::Whole).unwrap();
    assert!(client.is_routed());
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_topics_and_messages_go_by_shared_memory_in_order() {
    const MESSAGES: u32 = 2_000;
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
    let server = bus.server.clone();
    blocking(move || {
        let (a, b) = (routed(&a), routed(&b));
        // What was answered over the rings came over the rings.
        assert_eq!(
            (a.agents().unwrap().len(), b.agents().unwrap().len()),
            (1, 1)
        );
        let peers = server.peers();
        assert!(peers.iter().all(|peer| peer.routed == 1), "{peers:?}");
        let serving = {
            let b = b.clone();
            std::thread::spawn(move || {
                let requests = b.serve(8).unwrap();
                let mut served = 0;
                while served < MESSAGES {
                    let request = requests.next(WATCHDOG).unwrap().expect("a request");
                    let echo = request.params.clone();
                    request.respond(Ok(&echo)).unwrap();
                    served += 1;
                }
            })
        };
        // Several threads wait on one pair of rings: one reads for all.
        let topics = b.subscribe("ticks.#").unwrap();
        let asking: Vec<_> = (0..4u32)
            .map(|thread| {
                let a = a.clone();
                std::thread::spawn(move || {
                    for n in 0..MESSAGES / 4 {
                        let text = format!("{thread} {n}");
                        let reply = a.request("b", "echo", text.as_bytes(), WATCHDOG).unwrap();
                        assert_eq!(reply.result, text.as_bytes());
                    }
                })
            })
            .collect();
        for n in 0..500u32 {
            assert_eq!(a.publish("ticks.a", "tick", &n.to_le_bytes()).unwrap(), 1);
        }
        for n in 0..500u32 {
            let Received::Item(frame) = topics.next(WATCHDOG) else {
                panic!("tick {n} is missing");
            };
            let event = Event::parse(&frame.payload).unwrap();
            assert_eq!((event.topic, event.data), ("ticks.a", &n.to_le_bytes()[..]));
            assert_eq!(frame.header.source, a.id());
        }
        for thread in asking {
            thread.join().unwrap();
        }
        serving.join().unwrap();
        a.send("b", "note", b"to the inbox").unwrap();
        let inbox = b.inbox(10, WATCHDOG).unwrap();
        assert_eq!(inbox.messages.len(), 1);
        assert_eq!(
            a.request("nobody", "x", b"", WATCHDOG)
                .unwrap_err()
                .status(),
            Some(Status::NO_SUCH_AGENT)
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_longer_than_the_rings_go_in_pieces_both_ways() {
    let (_bus, [a, b]) = Fixture::of(["a", "b"]);
    blocking(move || {
        let (a, b) = (routed(&a), routed(&b));
        let serving = std::thread::spawn(move || {
            let requests = b.serve(1).unwrap();
            for _ in 0..3 {
                let request = requests.next(WATCHDOG).unwrap().expect("a request");
                let turned: Vec<u8> = request.params.iter().rev().copied().collect();
                request.respond(Ok(&turned)).unwrap();
            }
        });
        for len in [60_000usize, 300_000, (1 << 20) - 256] {
            let sent: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let reply = a.request("b", "turn", &sent, WATCHDOG).unwrap();
            assert!(reply.result.iter().rev().eq(&sent), "{len} bytes");
        }
        serving.join().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_answers_that_wait_unread_holds_up_only_its_sender() {
    let (_bus, [a, b]) = Fixture::of(["a", "b"]);
    blocking(move || {
        let (a, b) = (routed(&a), routed(&b));
        // Nobody reads what is published meanwhile: the bus drops the oldest and says how many.
        let slow = b.subscribe("flood").unwrap();
        for n in 0..5_000u32 {
            a.publish("flood", "x", &[(n % 251) as u8; 200]).unwrap();
        }
        let (mut got, mut lost) = (0, 0);
        while got + lost < 5_000 {
            match slow.next(WATCHDOG) {
                Received::Item(_) => got += 1,
                Received::Lost(count) => lost += count,
                other => panic!("{other:?} after {got} and {lost}"),
            }
        }
        assert!(lost > 0 && got > 100, "{got} and {lost}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_ends_with_the_agent_the_right_to_it_and_the_daemon() {
    let bus = Fixture::new();
    let (port, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let server = bus.server.clone();
    let id = port.identity().id;
    blocking(move || {
        let (mine, other) = (routed(&a), routed(&b));
        mine.send("b", "note", b"before").unwrap();
        let without = IpcRules {
            shared_memory: false,
            ..open_rules()
        };
        let runtime = tokio::runtime::Handle::current();
        let closed = runtime.block_on(server.set_rules(id, without)).unwrap();
        assert_eq!(closed.lanes, 1);
        // Made anew over the socket alone, which the policy still allows.
        let mut outcome = mine.send("b", "note", b"after");
        if outcome.is_err() {
            outcome = mine.send("b", "note", b"after");
        }
        outcome.unwrap();
        assert!(!mine.is_routed());
        assert_eq!(other.inbox(10, WATCHDOG).unwrap().messages.len(), 2);
        // Its answer never comes: the asker hears of the end at once.
        let serving = other.serve(1).unwrap();
        let asking = std::thread::spawn(move || mine.request("b", "x", b"", WATCHDOG));
        let taken = serving.next(WATCHDOG).unwrap().expect("a request");
        drop((other, serving));
        drop(taken);
        assert!(asking.join().unwrap().is_err());
    })
    .await;
    port.detach();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_clients_publish_by_shared_memory_once_it_pays_unless_they_are_told_not_to() {
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
    let server = bus.server.clone();
    blocking(move || {
        let routes = |name: &str| {
            let peers = server.peers();
            peers.iter().find(|peer| peer.name == name).unwrap().routed
        };
        let listener = Client::connect_to(&b).unwrap();
        let ticks = listener.subscribe("ticks").unwrap();
        let socket = Client::connect_with(&a, Routing::Socket).unwrap();
        let auto = Client::connect_to(&a).unwrap();
        for n in 0..20u32 {
            socket.publish("ticks", "t", &n.to_le_bytes()).unwrap();
        }
        assert_eq!(routes("a"), 0);
        for n in 20..60u32 {
            auto.publish("ticks", "t", &n.to_le_bytes()).unwrap();
        }
        assert_eq!(routes("a"), 1);
        for n in 0..60u32 {
            let Received::Item(frame) = ticks.next(WATCHDOG) else {
                panic!("tick {n} is missing");
            };
            assert_eq!(Event::parse(&frame.payload).unwrap().data, n.to_le_bytes());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_served_by_shards_of_their_own_and_are_all_seen() {
    let server = BusServer::start_sharded(Arc::new(Unrecorded), Limits::default(), 3);
    let dir = tempfile::tempdir().unwrap();
    let mut ports = Vec::new();
    let mut paths = Vec::new();
    for uid in 1000..1006u32 {
        for name in ["asks", "serves"] {
            let path = dir.path().join(format!("{uid}.{name}"));
            let listener = UnixListener::bind(&path).unwrap();
            let port = server.attach(identity(name, uid), open_rules(), listener);
            ports.push(port.unwrap());
            paths.push(path);
        }
    }
    let seen = server.clone();
    blocking(move || {
        let clients: Vec<Client> = paths.iter().map(|path| routed(path)).collect();
        let names: Vec<(u32, String)> = seen.peers().into_iter().map(|p| (p.uid, p.name)).collect();
        assert_eq!(names.len(), 12);
        assert!(names.is_sorted());
        for pair in clients.chunks(2) {
            let (asks, serves) = (pair[0].clone(), pair[1].clone());
            assert_eq!(asks.agents().unwrap().len(), 1, "other users are not there");
            let serving = std::thread::spawn(move || {
                let request = serves.serve(1).unwrap().next(WATCHDOG).unwrap();
                request.expect("a request").respond(Ok(b"here")).unwrap();
            });
            let reply = asks.request("serves", "where", b"", WATCHDOG);
            assert_eq!(reply.unwrap().result, b"here");
            serving.join().unwrap();
        }
    })
    .await;
    for port in ports {
        port.detach();
    }
    assert!(server.peers().is_empty());
    assert_eq!(server.open(), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_go_by_shared_memory_by_themselves() {
    const MESSAGES: u64 = 20_000;
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
    let server = bus.server.clone();
    blocking(move || {
        let (a, b) = (
            Client::connect_to(&a).unwrap(),
            Client::connect_to(&b).unwrap(),
        );
        let mut work = b.queue("numbers").unwrap().consume(512).unwrap();
        let producing = std::thread::spawn(move || {
            let mut producer = a.queue("numbers").unwrap().producer().unwrap();
            for n in 0..MESSAGES {
                producer.push(&n.to_le_bytes()).unwrap();
            }
            producer.flush().unwrap();
            (producer.confirmed(), a)
        });
        let mut next = 0_u64;
        while next < MESSAGES {
            let taken = work.for_each(WATCHDOG, |delivery| {
                assert_eq!(delivery.data, next.to_le_bytes());
                next += 1;
                Outcome::Ack
            });
            assert!(taken.unwrap() > 0, "nothing came after {next}");
        }
        let (confirmed, _a) = producing.join().unwrap();
        assert_eq!(confirmed, MESSAGES);
        assert!(server.peers().iter().all(|peer| peer.routed == 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_over_shared_memory_is_told_everything_once() {
    const MESSAGES: u32 = 3_000;
    let (_bus, [a, b]) = Fixture::of(["a", "b"]);
    blocking(move || {
        let (a, b) = (routed(&a), routed(&b));
        let topics = b.subscribe("ticks.#").unwrap();
        let serving = std::thread::spawn(move || {
            let requests = b.serve(16).unwrap();
            let mut served = 0;
            while served < MESSAGES / 10 {
                let request = requests.next(WATCHDOG).unwrap().expect("a request");
                let echo = request.params.clone();
                request.respond(Ok(&echo)).unwrap();
                served += 1;
            }
            served
        });
        let reading = std::thread::spawn(move || {
            let (mut seen, mut lost) = (0, 0);
            while seen + lost < u64::from(MESSAGES) {
                match topics.for_each(WATCHDOG, |frame| {
                    Event::parse(&frame.payload).unwrap();
                }) {
                    Received::Item(count) => seen += count as u64,
                    Received::Lost(count) => lost += count,
                    other => panic!("{other:?}"),
                }
            }
            seen
        });
        let mut pipeline = a.pipeline(128).unwrap();
        let mut replies = 0;
        for n in 0..MESSAGES {
            pipeline
                .publish("ticks.a", "tick", &n.to_le_bytes())
                .unwrap();
            if n % 10 == 0 {
                pipeline
                    .request("b", "echo", &n.to_le_bytes(), WATCHDOG)
                    .unwrap();
            }
            // The bus holds 64 for one agent and refuses the next: no more than that are ever under way.
            let patience = |replies: u32| match n / 10 + 1 - replies {
                64.. => WATCHDOG,
                _ => Duration::ZERO,
            };
            while let Some(done) = pipeline.next(patience(replies)).unwrap() {
                assert!(matches!(done.outcome, Ok(Answer::Reply(_))), "{done:?}");
                replies += 1;
            }
        }
        pipeline.flush(WATCHDOG).unwrap();
        while let Some(done) = pipeline.next(Duration::ZERO).unwrap() {
            assert!(matches!(done.outcome, Ok(Answer::Reply(_))), "{done:?}");
            replies += 1;
        }
        assert_eq!(pipeline.taken(), u64::from(MESSAGES));
        assert_eq!(replies, serving.join().unwrap());
        assert!(reading.join().unwrap() > 0);
    })
    .await;
}
