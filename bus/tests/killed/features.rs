//! The same deaths with everything on that a ring can do: batches, credits, bells, references and whoever follows them, and
//! the word of a consumer that has stopped for good.

use std::ops::RangeInclusive;

use agentd_bus::lane::ring::SettleError;
use agentd_bus::lane::{Credit, Inline};
use agentd_bus::shm::bell::{Bell, Ringer};
use agentd_bus::wait::{Event, Park, Waiter};

use super::*;

const BATCH: usize = 4;

/// Takes everything until the lane ends; says how much that was.
fn take_all(consumer: &mut Consumer<Mapping, Mapping>) -> usize {
    let (mut received, mut buffer) = (0, Vec::new());
    loop {
        match consumer.recv(&mut buffer, PATIENCE) {
            Ok(got) => {
                assert_eq!((got, &buffer), (tag(received), &payload(received)));
                received += 1;
            }
            Err(error) => {
                assert_eq!(error, RecvError::Closed(Status::PEER_GONE));
                return received;
            }
        }
    }
}

pub fn a_producer_of_batches_killed_at_any_store_cuts_them_between_messages() {
    at_every_store(|stores| {
        let LaneMemory {
            data,
            data_fd,
            cursor,
            cursor_fd,
        } = lane_memory();
        let mut consumer = consumer(&data_fd, cursor);
        let child = Child::fork(|ack| {
            crash::die_after(stores);
            let mut producer = producer(data, &cursor_fd);
            for first in (0..3 * BATCH).step_by(BATCH) {
                let payloads: Vec<Vec<u8>> = (first..first + BATCH).map(payload).collect();
                let batch: Vec<(Tag, &[u8])> = (first..)
                    .map(tag)
                    .zip(payloads.iter().map(Vec::as_slice))
                    .collect();
                assert_eq!(producer.send_batch(&batch, PATIENCE), Ok(BATCH));
                ack();
            }
        });
        let closer = consumer.closer().clone();
        let received = child.with_closer(&closer, || take_all(&mut consumer));
        let ended = child.reap();
        let said = ended.acks * BATCH;
        assert!(
            (said..=said + BATCH).contains(&received),
            "store {stores}: {received}"
        );
        ended
    });
}

pub fn a_consumer_that_gives_credit_killed_at_any_store_holds_its_producer_to_it_and_no_longer() {
    const CREDIT: u64 = 8;
    let options = ReceiverOptions {
        credit: Credit::Manual,
        ..ReceiverOptions::default()
    };
    at_every_store(|stores| {
        let (data, data_fd) =
            memfd::create("killed-data", lane::data_words(SLOTS, Inline::Small)).unwrap();
        let (cursor, cursor_fd) = memfd::create("killed-cursor", lane::cursor_words()).unwrap();
        lane::ring::format_data(&data, SLOTS, &SenderOptions::default()).unwrap();
        lane::ring::format_cursor(&cursor, &options).unwrap();
        let mut child = Child::fork(|ack| {
            crash::die_after(stores);
            let data = memfd::open(data_fd.as_fd()).unwrap();
            let mut consumer = Consumer::new(data, cursor, Closer::default(), options).unwrap();
            ack();
            for round in 0..3 {
                assert_eq!(consumer.grant(CREDIT), CREDIT);
                for n in 0..CREDIT {
                    let n = round * CREDIT + n;
                    let got = consumer.recv_with(PATIENCE, |tag, _| tag.correlation);
                    assert_eq!(got, Ok(n as u32));
                    ack();
                }
            }
        });
        child.acks.read_exact(&mut [0]).ok();
        let mut producer = producer(data, &cursor_fd);
        let closer = producer.closer().clone();
        let mut sent = 0;
        let end = child.with_closer(&closer, || {
            loop {
                match producer.send(tag(sent), b"one slot", PATIENCE) {
                    Ok(()) => sent += 1,
                    Err(error) => break error,
                }
            }
        });
        assert_eq!(end, SendError::Closed(Status::PEER_GONE));
        let ended = child.reap();
        // The first byte said that it was there. What it reads it had allowed: whole rounds, begun or not.
        let read = ended.acks;
        assert!(
            sent >= read && sent <= 3 * CREDIT as usize,
            "store {stores}: {sent}, {read} read"
        );
        ended
    });
}

pub fn a_producer_that_rings_killed_at_any_store_leaves_nobody_asleep() {
    at_every_store(|stores| {
        let LaneMemory {
            data,
            data_fd,
            cursor,
            cursor_fd,
        } = lane_memory();
        let mut consumer = consumer(&data_fd, cursor);
        let bell = Bell::new().unwrap();
        let copy = bell.share().unwrap();
        consumer.set_bell(bell);
        let child = Child::fork(|ack| {
            crash::die_after(stores);
            let mut producer = producer(data, &cursor_fd);
            producer.set_ringer(Ringer::from_fd(copy.try_clone().unwrap()).unwrap());
            for n in 0..12 {
                producer.send(tag(n), &payload(n), PATIENCE).unwrap();
                ack();
            }
        });
        let closer = consumer.closer().clone();
        let received = child.with_closer(&closer, || {
            let mut waiter = Waiter::new(agentd_bus::channel::Waiting::Blocking);
            waiter.prefer(Some(Park::Bell));
            let token = waiter
                .add(consumer, agentd_bus::channel::Class::Normal)
                .map_err(|(error, _)| error)
                .unwrap();
            let (mut received, mut buffer) = (0, Vec::new());
            loop {
                let event = waiter.next(Some(PATIENCE)).unwrap();
                assert_eq!(
                    event,
                    Some(Event::Ready(token)),
                    "store {stores}: nobody rang"
                );
                match waiter.get_mut(token).unwrap().try_recv(&mut buffer) {
                    Ok(Some(got)) => {
                        assert_eq!((got, &buffer), (tag(received), &payload(received)));
                        received += 1;
                    }
                    Ok(None) => {}
                    Err(error) => {
                        assert_eq!(error, RecvError::Closed(Status::PEER_GONE));
                        return received;
                    }
                }
            }
        });
        let ended = child.reap();
        let said = ended.acks;
        assert!(
            (said..=said + 1).contains(&received),
            "store {stores}: {received}"
        );
        ended
    });
}

pub fn a_consumer_of_references_killed_at_any_store_costs_the_arena_nothing() {
    const MESSAGES: usize = 40;
    let big = |n: usize| -> Vec<u8> { (0..900 + n * 50).map(|at| (n * 7 + at) as u8).collect() };
    at_every_store(|stores| {
        let LaneMemory {
            data,
            data_fd,
            cursor,
            cursor_fd,
        } = lane_memory();
        // Room for a few: the owner uses blocks again as they are read.
        let (segment, segment_fd) =
            memfd::create_segment(16 * 1024, PageKind::Small, None).unwrap();
        let mut child = Child::fork(|ack| {
            crash::die_after(stores);
            let mut consumer = consumer(&data_fd, cursor);
            let mut reader = arena::Reader::new(1 << 20);
            reader
                .add(0, memfd::open_segment(segment_fd.as_fd()).unwrap())
                .unwrap();
            ack();
            let mut buffer = Vec::new();
            for n in 0..MESSAGES {
                let reference = consumer.next(PATIENCE, |message| {
                    Reference::parse(message.payload).unwrap()
                });
                // A block that was used again under its reader would be stale, or another's bytes.
                reader.read(&reference.unwrap(), &mut buffer).unwrap();
                assert_eq!(buffer, big(n));
                consumer.release();
                consumer.publish();
                ack();
            }
        });
        child.acks.read_exact(&mut [0]).ok();
        let mut producer = producer(data, &cursor_fd);
        let mut arena = Arena::new(SLOTS);
        assert_eq!(arena.add(segment).unwrap(), 0);
        let closer = producer.closer().clone();
        let mut sent = 0;
        let end = child.with_closer(&closer, || {
            loop {
                let consumed = match producer.consumed() {
                    Ok(consumed) => consumed,
                    Err(error) => break error,
                };
                arena.reclaim(consumed);
                let stored = match arena.store(&big(sent % MESSAGES)) {
                    Ok(stored) => stored,
                    Err(_) => match producer.wait_consumed(consumed, PATIENCE) {
                        Ok(_) => continue,
                        Err(error) => break error,
                    },
                };
                let (slot, reference) = (producer.next_slot(), stored.reference());
                match producer.try_send_reference(
                    tag(sent),
                    &reference.to_bytes(),
                    reference.length,
                ) {
                    Ok(()) => {
                        arena.hold(slot, stored);
                        sent += 1;
                    }
                    Err(SendError::Full) => arena.release(stored),
                    Err(error) => {
                        arena.release(stored);
                        break error;
                    }
                }
            }
        });
        assert_eq!(end, SendError::Closed(Status::PEER_GONE));
        let ended = child.reap();
        assert!(sent >= ended.acks, "store {stores}");
        arena.reclaim_all();
        assert_eq!(
            arena.taken(),
            0,
            "store {stores}: blocks of the dead come back"
        );
        ended
    });
}

/// As when agentd is killed: both sides live, and hear of the end one after the other.
pub fn a_consumer_killed_at_any_store_of_its_end_never_makes_its_producer_believe_too_much() {
    const SENT: usize = 12;
    const READ: usize = 5;
    at_every_store(|stores| {
        let LaneMemory {
            data,
            data_fd,
            cursor,
            cursor_fd,
        } = lane_memory();
        let mut child = Child::fork(|ack| {
            crash::die_after(stores);
            let mut consumer = consumer(&data_fd, cursor);
            ack();
            for n in 0..READ {
                let got = consumer.recv_with(PATIENCE, |tag, _| tag);
                assert_eq!(got, Ok(tag(n)));
                ack();
            }
            drop(consumer);
        });
        if child.acks.read_exact(&mut [0]).is_err() {
            // There never was a receiver: no lane.
            return child.reap();
        }
        let mut producer = producer(data, &cursor_fd);
        for n in 0..SENT {
            producer.send(tag(n), &payload(n), PATIENCE).unwrap();
        }
        let closer = producer.closer().clone();
        let ended = {
            let mut fds = [PollFd::new(&child.pidfd, PollFlags::IN)];
            while poll(&mut fds, None).is_err() {}
            closer.close(Status::REPLACED);
            child.reap()
        };
        let read = ended.acks;
        let mut back = Vec::new();
        let settled = producer.settle(Duration::ZERO, |message| {
            back.push((message.tag, message.payload.to_vec()));
        });
        match settled {
            Ok(count) => {
                // Every acknowledged message was received, and the rest comes back whole: none twice, none missing.
                let rest: Vec<_> = (read..SENT).map(|n| (tag(n), payload(n))).collect();
                assert_eq!((count as usize, back), (rest.len(), rest), "store {stores}");
            }
            Err(SettleError::Unknown { messages }) => {
                assert!(ended.killed, "who lives says where it stopped");
                // One more may have been read, and its position shown, than could be acknowledged.
                let might: RangeInclusive<usize> = SENT - read - 1..=SENT;
                assert!(
                    might.contains(&(messages as usize)),
                    "store {stores}: {messages}, {read} read"
                );
            }
            Err(error) => panic!("store {stores}: {error}"),
        }
        ended
    });
}
