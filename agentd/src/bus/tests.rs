//! The server with real sockets: the project's own client, and hostile ones.

mod hostile;

use std::time::Duration;

use agentd_bus::access::Right;
use agentd_bus::client::{Client, ClientError, LaneOptions, Received};
use agentd_bus::lane::ring::{RecvError, SendError};
use agentd_bus::message::{Event, Status};
use agentd_bus::protect::{Demand, Key, KeyId, Protection, Scheme, Scope};
use agentd_sandbox::IpcRules;
use agentd_sandbox::rules::ipc::NamePattern;

use super::fixture::{
    Fixture, MortalBus, WATCHDOG, blocking, identity, in_time, open_rules, opening, tag, take,
};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_answers_what_a_socket_client_asks() {
    let bus = Fixture::new();
    let (driver, _) = bus.attach("fixer");
    let (_asker, path) = bus.attach("finder");
    let mut requests = driver.serve_requests(4).unwrap();
    let answered = tokio::spawn(async move {
        let request = requests.next().await.unwrap();
        assert_eq!(
            (request.from.as_str(), request.method.as_str()),
            ("finder", "fix")
        );
        let answer = [b"fixed ", request.payload.as_slice()].concat();
        request.respond(Ok(answer)).await.unwrap();
        let request = requests.next().await.unwrap();
        let long = "why ".repeat(200);
        request.respond(Err(long)).await.unwrap();
        let request = requests.next().await.unwrap();
        drop(request);
        requests
    });
    let (reply, failed, dropped) = blocking(move || {
        let client = Client::connect_to(&path).unwrap();
        assert_eq!(client.name(), "finder");
        let ask = || client.request("fixer", "fix", b"add()", WATCHDOG);
        (ask(), ask().unwrap_err(), ask().unwrap_err())
    })
    .await;
    assert_eq!(reply.unwrap().result, b"fixed add()");
    assert_eq!(failed.status(), Some(Status::FAILED));
    assert!(
        failed.to_string().ends_with(&"why ".repeat(200)),
        "a long error arrives whole: {failed}"
    );
    assert_eq!(dropped.status(), Some(Status::FAILED));
    drop(in_time(answered).await.unwrap());
    let record = bus.record().await;
    let kinds: Vec<_> = record.iter().map(|meta| meta.kind).collect();
    assert_eq!(kinds, ["request", "response"].repeat(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_own_readers_pass_protected_messages_on_as_what_they_are() {
    let bus = Fixture::new();
    let (driver, _) = bus.attach("driven");
    let (_sender, path) = bus.attach("sender");
    let sent = blocking(move || {
        let key = Key::from_secret(
            Scheme::Aes256Gcm,
            KeyId(1),
            b"0123456789abcdef0123456789abcdef",
        );
        let protection = Protection::new(Demand::Sealed);
        protection.send_with(Scope::Everyone, key.unwrap()).unwrap();
        let client = Client::connect_to(&path)
            .unwrap()
            .with_protection(protection);
        client.send("driven", "note", b"for nobody here").unwrap();
        client
    })
    .await;
    let inbox = in_time(driver.inbox(1, WATCHDOG)).await.unwrap();
    assert_eq!(inbox.messages[0].protection, Some("sealed"));
    let _requests = driver.serve_requests(1).unwrap();
    let error = blocking(move || sent.request("driven", "fix", b"", WATCHDOG).unwrap_err()).await;
    assert!(error.to_string().contains("hold no keys"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_talk_through_inboxes_topics_and_late_answers() {
    let bus = Fixture::new();
    let (a, _) = bus.attach("a");
    let (b, _) = bus.attach("b");
    assert_eq!(a.agents().await.unwrap()[0].name, "b");
    a.send("b", "note", "hello").await.unwrap();
    b.subscribe("build.*").await.unwrap();
    assert_eq!(a.publish("build.done", "ok", "green").await.unwrap(), 1);
    let inbox = b.inbox(10, Duration::ZERO).await.unwrap();
    let seen: Vec<_> = inbox
        .messages
        .iter()
        .map(|m| (m.kind.clone(), m.payload.clone()))
        .collect();
    assert_eq!(
        seen,
        [
            (
                MessageKind::Direct {
                    event_type: "note".into()
                },
                b"hello".to_vec()
            ),
            (
                MessageKind::Topic {
                    topic: "build.done".into(),
                    event_type: "ok".into()
                },
                b"green".to_vec()
            ),
        ]
    );
    // Nobody serves requests for b: it reads the request and answers when it likes.
    let waiting = {
        let a = a.clone();
        tokio::spawn(async move { a.request("b", "review", "diff", WATCHDOG).await })
    };
    let inbox = in_time(b.inbox(10, WATCHDOG)).await.unwrap();
    let MessageKind::Request { request_id, .. } = inbox.messages[0].kind else {
        panic!("{inbox:?}")
    };
    b.respond(request_id, Ok(b"looks good".to_vec()))
        .await
        .unwrap();
    assert_eq!(
        in_time(waiting).await.unwrap().unwrap().payload,
        b"looks good"
    );
    let again = b.respond(request_id, Ok(Vec::new())).await.unwrap_err();
    assert_eq!(again.status, Status::NO_SUCH_REQUEST);
    let unknown = a.send("nobody", "", "x").await.unwrap_err();
    assert_eq!(unknown.status, Status::NO_SUCH_AGENT);
    let huge = a.send("b", "", vec![0; 2 << 20]).await.unwrap_err();
    assert_eq!(huge.status, Status::TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_agent_reaches_whoever_waits_for_it() {
    let bus = Fixture::new();
    let (a, a_path) = bus.attach("a");
    let (b, b_path) = bus.attach("b");
    let idle = blocking(move || Client::connect_to(&b_path).unwrap()).await;
    let waiting = {
        let a = a.clone();
        tokio::spawn(async move { a.request("b", "work", "", WATCHDOG).await })
    };
    // The request is there once it can be seen in the queue of b.
    in_time(async {
        while a.agents().await.unwrap()[0].queued == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    b.detach();
    b.detach();
    let gone = in_time(waiting).await.unwrap().unwrap_err();
    assert_eq!(gone.status, Status::PEER_GONE);
    let error = blocking(move || {
        // The connection of a detached agent ends by itself.
        let topic = idle.subscribe("x");
        match topic {
            Err(error) => error,
            Ok(subscription) => match subscription.next(WATCHDOG) {
                Received::Closed => idle.agents().unwrap_err(),
                other => panic!("{other:?}"),
            },
        }
    })
    .await;
    assert!(
        matches!(error, ClientError::Closed { .. } | ClientError::Lost { .. }),
        "{error}"
    );
    assert_eq!(b.agents().await.unwrap_err().status, Status::PEER_GONE);
    assert!(a.agents().await.unwrap().is_empty());
    // Its name is free again, and the other agent's socket never noticed.
    std::fs::remove_file(bus.path("b")).unwrap();
    bus.attach("b");
    blocking(move || Client::connect_to(&a_path).unwrap().agents().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_request_future_withdraws_the_request() {
    let bus = Fixture::new();
    let (a, _) = bus.attach("a");
    let (b, _) = bus.attach("b");
    let mut requests = b.serve_requests(1).unwrap();
    let asking = {
        let a = a.clone();
        tokio::spawn(async move { a.request("b", "work", "", WATCHDOG).await })
    };
    let request = in_time(requests.next()).await.unwrap();
    asking.abort();
    in_time(request.cancelled()).await;
    assert_eq!(
        request.respond(Ok(Vec::new())).await.unwrap_err().status,
        Status::NO_SUCH_REQUEST
    );
    // The window is free again.
    let asking = {
        let a = a.clone();
        tokio::spawn(async move { a.request("b", "work", "", WATCHDOG).await })
    };
    in_time(requests.next())
        .await
        .unwrap()
        .respond(Ok(b"ok".to_vec()))
        .await
        .unwrap();
    assert_eq!(in_time(asking).await.unwrap().unwrap().payload, b"ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_kept_without_any_traffic() {
    let bus = Fixture::new();
    let (a, _) = bus.attach("a");
    let (_b, _) = bus.attach("b");
    let late = in_time(a.request("b", "work", "", Duration::from_millis(20)))
        .await
        .unwrap_err();
    assert_eq!(late.status, Status::DEADLINE);
    assert!(
        in_time(a.inbox(1, Duration::from_millis(20)))
            .await
            .unwrap()
            .messages
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_serve_publish_and_subscribe() {
    let (_bus, [a_path, b_path]) = Fixture::of(["a", "b"]);
    blocking(move || {
        let server = Client::connect_to(&b_path).unwrap();
        let requests = server.serve(2).unwrap();
        let serving = std::thread::spawn(move || {
            requests.answer_all(|incoming| match incoming.method.as_str() {
                "echo" => Ok(incoming.params.clone()),
                other => Err(format!("no method {other}")),
            })
        });
        let client = Client::connect_to(&a_path).unwrap();
        let threads: Vec<_> = (0..4u8)
            .map(|n| {
                let client = client.clone();
                std::thread::spawn(move || {
                    for i in 0..50u8 {
                        let reply = client.request("b", "echo", &[n, i], WATCHDOG).unwrap();
                        assert_eq!(reply.result, [n, i]);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let failed = client.request("b", "sing", b"", WATCHDOG).unwrap_err();
        assert_eq!(failed.to_string(), "failed: no method sing");

        let topic = server.subscribe("news.#").unwrap();
        assert_eq!(client.publish("news.today", "t", b"x").unwrap(), 1);
        let Received::Item(frame) = topic.next(WATCHDOG) else {
            panic!("no message")
        };
        assert_eq!(Event::parse(&frame.payload).unwrap().topic, "news.today");
        drop(topic);
        // In order on one connection: when this is answered, the subscription has been dropped.
        server.agents().unwrap();
        assert_eq!(client.publish("news.today", "t", b"x").unwrap(), 0);

        client.send("b", "note", b"one").unwrap();
        assert_eq!(client.broadcast("note", b"two").unwrap(), 1);
        let batch = server.inbox(10, WATCHDOG).unwrap();
        let names: Vec<_> = batch
            .messages
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["a", "a"]);
        drop((client, server));
        drop(serving);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_and_uids_hold_over_the_socket() {
    let bus = Fixture::new();
    let only_c = IpcRules {
        send: vec![NamePattern::parse("c").unwrap()],
        ..IpcRules::default()
    };
    let (_a, a_path) = bus.attach_as("a", 1000, only_c);
    let (_b, _) = bus.attach("b");
    let (_c, _) = bus.attach("c");
    let (_other, other_path) = bus.attach_as("x", 2000, open_rules());
    blocking(move || {
        let a = Client::connect_to(&a_path).unwrap();
        a.send("c", "", b"fine").unwrap();
        assert_eq!(
            a.send("b", "", b"no").unwrap_err().status(),
            Some(Status::DENIED)
        );
        assert_eq!(
            a.request("c", "m", b"", WATCHDOG).unwrap_err().status(),
            Some(Status::DENIED)
        );
        assert_eq!(
            a.publish("t", "", b"").unwrap_err().status(),
            Some(Status::DENIED)
        );
        assert_eq!(a.subscribe("t").unwrap_err().status(), Some(Status::DENIED));
        let x = Client::connect_to(&other_path).unwrap();
        assert!(x.agents().unwrap().is_empty());
        assert_eq!(
            x.send("b", "", b"").unwrap_err().status(),
            Some(Status::NO_SUCH_AGENT)
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_are_opened_through_the_bus_and_end_with_either_side() {
    let bus = Fixture::new();
    let (a, a_path) = bus.attach("a");
    let (_b, b_path) = bus.attach("b");
    blocking(move || {
        let (sender, receiver) = (
            Client::connect_to(&a_path).unwrap(),
            Client::connect_to(&b_path).unwrap(),
        );
        let refused = sender
            .open_lane("b", LaneOptions::with_slots(64))
            .unwrap_err();
        assert!(refused.to_string().contains("takes no lanes"), "{refused}");
        let offers = receiver.accept_lanes().unwrap();
        let open = |slots| opening(&sender, "b", LaneOptions::with_slots(slots));
        let opening = open(1024);
        let offer = offers.next(WATCHDOG).unwrap().unwrap();
        assert_eq!(offer.from, sender.id());
        let mut incoming = offer.accept().unwrap();
        let mut outgoing = opening.join().unwrap().unwrap();
        let mut buffer = Vec::new();
        for n in 0..5000u32 {
            outgoing.send(tag(n), &n.to_le_bytes(), WATCHDOG).unwrap();
            if n % 100 == 99 {
                for m in n - 99..=n {
                    assert_eq!(incoming.recv(&mut buffer, WATCHDOG).unwrap(), tag(m));
                    assert_eq!(buffer, m.to_le_bytes());
                }
            }
        }
        // The producer closes: what it sent is received first.
        outgoing.send(tag(1), b"last", WATCHDOG).unwrap();
        drop(outgoing);
        assert_eq!(incoming.recv(&mut buffer, WATCHDOG).unwrap(), tag(1));
        assert_eq!(
            incoming.recv(&mut buffer, WATCHDOG),
            Err(RecvError::Closed(Status::OK))
        );
        drop(incoming);

        // An offer that is not taken, and one whose taker goes.
        let opening = open(64);
        offers
            .next(WATCHDOG)
            .unwrap()
            .unwrap()
            .refuse("busy")
            .unwrap();
        assert!(
            opening
                .join()
                .unwrap()
                .unwrap_err()
                .to_string()
                .contains("busy")
        );
        let opening = open(64);
        let incoming = take(&offers);
        let mut outgoing = opening.join().unwrap().unwrap();
        drop(incoming);
        let end = loop {
            if let Err(end) = outgoing.send(tag(2), b"x", WATCHDOG) {
                break end;
            }
        };
        assert_eq!(end, SendError::Closed(Status::OK));

        // An agent that ends takes its lanes with it.
        let opening = open(64);
        let mut incoming = take(&offers);
        opening
            .join()
            .unwrap()
            .unwrap()
            .send(tag(3), b"x", WATCHDOG)
            .unwrap();
        a.detach();
        assert_eq!(incoming.recv(&mut buffer, WATCHDOG).unwrap(), tag(3));
        assert!(matches!(
            incoming.recv(&mut buffer, WATCHDOG),
            Err(RecvError::Closed(_))
        ));
    })
    .await;
    let record = bus.record().await;
    let lanes = record.iter().filter(|meta| meta.kind == "lane");
    assert_eq!(
        lanes.count(),
        9,
        "a refused offer, then four offers with their answers"
    );
}

#[test]
fn clients_find_the_successor_of_their_bus() {
    let mut bus = MortalBus::of(&["a", "b"]);
    let (asker, fixer) = (bus.client("a"), bus.client("b"));
    let requests = fixer.serve(1).unwrap();
    let topic = fixer.subscribe("news").unwrap();
    let offers = fixer.accept_lanes().unwrap();
    let lane = opening(&asker, "b", LaneOptions::with_slots(64));
    let mut incoming = take(&offers);
    let mut outgoing = lane.join().unwrap().unwrap();
    outgoing.send(tag(7), b"kept", WATCHDOG).unwrap();
    // A request is in the agent's hands when its bus ends.
    let asking = {
        let asker = asker.clone();
        std::thread::spawn(move || asker.request("b", "fix", b"1", WATCHDOG))
    };
    let in_hand = requests.next(WATCHDOG).unwrap().unwrap();
    bus.die();

    let lost = asking.join().unwrap().unwrap_err();
    assert!(lost.is_retryable(), "{lost}");
    assert!(in_hand.respond(Ok(b"nobody waits")).is_err());
    let mut buffer = Vec::new();
    assert_eq!(incoming.recv(&mut buffer, WATCHDOG), Ok(tag(7)));
    assert_eq!(buffer, b"kept", "what was in the lane is received");
    assert_eq!(
        incoming.recv(&mut buffer, WATCHDOG),
        Err(RecvError::Closed(Status::REPLACED))
    );

    // Whoever calls now waits in the socket's backlog until somebody serves it again.
    let serving = std::thread::spawn(move || {
        let request = requests.next(WATCHDOG).unwrap().unwrap();
        let params = request.params.clone();
        request.respond(Ok(b"fixed")).unwrap();
        params
    });
    let looking = {
        let asker = asker.clone();
        std::thread::spawn(move || asker.agents())
    };
    bus.succeed();
    let mut peers = looking.join().unwrap().unwrap();
    // Asked this early, the bus may not have the other agent yet, or not what it serves.
    while !peers.iter().any(|peer| peer.serving) {
        peers = asker.agents().unwrap();
    }
    let reply = asker.request("b", "fix", b"2", WATCHDOG).unwrap();
    assert_eq!(reply.result, b"fixed");
    assert_eq!(serving.join().unwrap(), b"2");
    assert_eq!(topic.next(WATCHDOG), Received::Replaced);
    assert_eq!(asker.publish("news", "t", b"x").unwrap(), 1);
    assert!(matches!(topic.next(WATCHDOG), Received::Item(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_under_an_earlier_daemon_is_denied_from_the_first_message_on() {
    let (bus, [_]) = Fixture::of(["b"]);
    let (listener, path) = bus.listen("a");
    let taken = |pattern: &str| TakenBack {
        right: Right::Send,
        pattern: pattern.to_owned(),
        by: "uid 0".to_owned(),
    };
    let (sink, mut refusals) = refusals();
    let a = identity("a", 1000);
    let agent = a.id;
    let port = bus
        .server
        .attach_less(a, open_rules(), &[taken("b")], Some(sink), listener)
        .unwrap();
    assert_eq!(bus.server.revoked(agent), [(Right::Send, "b".to_owned())]);
    let server = bus.server.clone();
    blocking(move || {
        let client = Client::connect_to(&path).unwrap();
        let denied = client.send("b", "note", b"x").unwrap_err();
        assert_eq!(denied.status(), Some(Status::DENIED), "{denied}");
        let denied = client.open_lane("b", LaneOptions::default()).unwrap_err();
        assert!(denied.to_string().contains("denied"), "{denied}");
        server.restore(agent).unwrap();
        client.send("b", "note", b"x").unwrap();
    })
    .await;
    // The message and the lane, each with whose hand it was; nothing of what was allowed again.
    for _ in 0..2 {
        let told = refusals.next().await.unwrap();
        assert_eq!((told.right, &*told.what), (Right::Send, "b"));
        assert_eq!(told.taken, Some(taken("b")));
    }
    port.detach();
    drop(port);
    assert_eq!(refusals.next().await, None);
    // A rule that can't be read gives nothing, instead of everything.
    let (listener, _) = bus.listen("c");
    let unreadable = [taken("a..b")];
    let refused = bus.server.attach_less(
        identity("c", 1000),
        open_rules(),
        &unreadable,
        None,
        listener,
    );
    assert!(matches!(refused, Err(AttachError::Revoked { name, .. }) if name == "c"));
}
