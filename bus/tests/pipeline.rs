//! The client's pipeline over a socket, with a bus of threads at the other end: many messages under way, each told once.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use agentd_bus::client::{Answer, Client, ClientError, Done, Pipeline, PipelineError, Received};
use agentd_bus::message::{Event, Status};

use support::{Bus, WATCHDOG};

fn told(pipeline: &mut Pipeline) -> Vec<Done> {
    pipeline.flush(WATCHDOG).unwrap();
    std::iter::from_fn(|| pipeline.next(Duration::ZERO).unwrap()).collect()
}

#[test]
fn what_is_published_and_sent_in_a_window_arrives_in_order() {
    const COUNT: u32 = 5_000;
    let bus = Bus::new();
    let sender = Client::connect_to(&bus.agent(1, "sender")).unwrap();
    let reader = Client::connect_to(&bus.agent(2, "reader")).unwrap();
    let news = reader.subscribe("news.*").unwrap();
    let reading = std::thread::spawn(move || {
        let (mut seen, mut lost) = (Vec::new(), 0);
        while seen.last() != Some(&(COUNT - 1)) {
            let received = news.for_each(WATCHDOG, |frame| {
                let event = Event::parse(&frame.payload).unwrap();
                seen.push(u32::from_le_bytes(event.data.try_into().unwrap()));
            });
            match received {
                Received::Item(_) => {}
                Received::Lost(count) => lost += count,
                other => panic!("{other:?}"),
            }
        }
        (seen, lost)
    });
    let mut pipeline = sender.pipeline(64).unwrap();
    for n in 0..COUNT {
        pipeline
            .publish("news.today", "n", &n.to_le_bytes())
            .unwrap();
        assert!(pipeline.under_way() <= 64);
    }
    assert!(told(&mut pipeline).is_empty(), "nothing was refused");
    assert_eq!(pipeline.taken(), u64::from(COUNT));
    assert!(pipeline.receivers() <= pipeline.taken());
    let (seen, lost) = reading.join().unwrap();
    assert!(seen.is_sorted(), "in order");
    assert_eq!(seen.len() as u64 + lost, u64::from(COUNT));
}

#[test]
fn a_refusal_is_told_by_its_ticket_and_the_others_are_taken() {
    let bus = Bus::new();
    let sender = Client::connect_to(&bus.agent(1, "sender")).unwrap();
    let reader = Client::connect_to(&bus.agent(2, "reader")).unwrap();
    let mut pipeline = sender.pipeline(8).unwrap();
    let mut wrong = Vec::new();
    for n in 0..6u8 {
        if n % 3 == 1 {
            wrong.push(pipeline.publish("a..b", "", &[n]).unwrap());
        } else {
            pipeline.send("reader", "note", &[n]).unwrap();
        }
    }
    let done = told(&mut pipeline);
    let tickets: Vec<_> = done.iter().map(|done| done.ticket).collect();
    assert_eq!(tickets, wrong);
    for Done { outcome, .. } in done {
        let error = outcome.unwrap_err();
        assert_eq!(error.status(), Some(Status::MALFORMED), "{error}");
    }
    assert_eq!((pipeline.taken(), pipeline.receivers()), (4, 4));
    let inbox = reader.inbox(10, Duration::ZERO).unwrap();
    let values: Vec<u8> = inbox
        .messages
        .iter()
        .map(|(_, frame)| Event::parse(&frame.payload).unwrap().data[0])
        .collect();
    assert_eq!(values, [0, 2, 3, 5]);
    let missing = pipeline.send("nobody", "", b"").unwrap_err();
    assert!(matches!(
        missing,
        PipelineError::Client(error) if error.status() == Some(Status::NO_SUCH_AGENT)
    ));
}

#[test]
fn requests_and_reads_of_the_inbox_are_under_way_together() {
    let bus = Bus::new();
    let asker = Client::connect_to(&bus.agent(1, "asker")).unwrap();
    let server = Client::connect_to(&bus.agent(2, "server")).unwrap();
    let requests = server.serve(4).unwrap();
    std::thread::spawn(move || {
        requests.answer_all(|request| match request.method.as_str() {
            "double" => Ok(vec![request.params[0] * 2]),
            other => Err(format!("no method {other}")),
        })
    });
    let mut pipeline = asker.pipeline(32).unwrap();
    let mut asked = BTreeMap::new();
    for n in 0..20u8 {
        let method = if n == 7 { "halve" } else { "double" };
        let ticket = pipeline.request("server", method, &[n], WATCHDOG).unwrap();
        asked.insert(ticket, n);
    }
    let reading = pipeline.read_inbox(5, WATCHDOG).unwrap();
    server.send("asker", "note", b"hello").unwrap();
    for Done { ticket, outcome } in told(&mut pipeline) {
        match (asked.remove(&ticket), outcome) {
            (Some(7), Err(error)) => assert!(error.to_string().contains("no method halve")),
            (Some(n), Ok(Answer::Reply(reply))) => assert_eq!(reply.result, [n * 2]),
            (None, Ok(Answer::Inbox(inbox))) => {
                assert_eq!((ticket, inbox.messages.len()), (reading, 1));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(asked.is_empty(), "{asked:?}");
}

#[test]
fn a_window_that_is_full_of_refusals_says_so_and_a_wrong_one_is_refused() {
    let bus = Bus::new();
    let sender = Client::connect_to(&bus.agent(1, "sender")).unwrap();
    assert!(matches!(
        sender.pipeline(0),
        Err(PipelineError::Window { window: 0 })
    ));
    let mut pipeline = sender.pipeline(2).unwrap();
    for _ in 0..2 {
        pipeline.publish("a..b", "", b"").unwrap();
    }
    let full = pipeline.publish("a.b", "", b"").unwrap_err();
    assert!(matches!(full, PipelineError::Untold { count: 2 }), "{full}");
    assert!(pipeline.next(WATCHDOG).unwrap().is_some());
    pipeline.publish("a.b", "", b"").unwrap();
    assert_eq!(told(&mut pipeline).len(), 1);
}

#[test]
fn more_pipelines_than_a_connection_has_are_refused_until_one_goes() {
    let bus = Bus::new();
    let sender = Client::connect_to(&bus.agent(1, "sender")).unwrap();
    let mut pipelines: Vec<_> = (0..64).map(|_| sender.pipeline(1).unwrap()).collect();
    assert!(matches!(sender.pipeline(1), Err(PipelineError::TooMany)));
    for pipeline in &mut pipelines {
        pipeline.publish("a", "", b"").unwrap();
    }
    for pipeline in &mut pipelines {
        assert!(told(pipeline).is_empty());
        assert_eq!(pipeline.taken(), 1, "each hears of its own");
    }
    pipelines.pop();
    sender.pipeline(1).unwrap();
}

#[test]
fn a_lost_connection_is_told_for_everything_under_way_and_the_next_goes_over_a_new_one() {
    let bus = Bus::new();
    let sender = Client::connect_to(&bus.agent(1, "sender")).unwrap();
    let mut pipeline = sender.pipeline(8).unwrap();
    // Nothing that the bus says arrives, then something that is no frame: the connection ends.
    bus.tamper(|_| Vec::new());
    let tickets: Vec<_> = (0..3)
        .map(|_| pipeline.publish("a.b", "", b"").unwrap())
        .collect();
    bus.tamper(|mut frame| {
        frame.header.magic = 0.into();
        vec![frame]
    });
    let last = pipeline.publish("a.b", "", b"").unwrap();
    let done = told(&mut pipeline);
    let lost: Vec<_> = done.iter().map(|done| done.ticket).collect();
    assert_eq!(lost, tickets.into_iter().chain([last]).collect::<Vec<_>>());
    for Done { outcome, .. } in done {
        assert!(matches!(outcome, Err(ClientError::Lost { .. })));
    }
    bus.be_honest();
    pipeline.publish("a.b", "", b"").unwrap();
    assert!(told(&mut pipeline).is_empty());
    assert_eq!(pipeline.taken(), 1);
}
