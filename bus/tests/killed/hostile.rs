//! Processes that write anything to all they can write, beside honest ones.

use super::*;

/// Writes anything anywhere into `memory` until it is killed.
fn write_anything(memory: &Mapping, seed: u64, ack: &mut dyn FnMut()) {
    let words = memory.words();
    let mut state = seed | 1;
    let mut next = || {
        // xorshift64*: quick, and the same each time.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    ack();
    loop {
        let choice = next();
        // Mostly words that mean something, mostly values near what is there.
        let at = if choice & 1 == 0 {
            (choice >> 8) as usize % words.len()
        } else {
            (choice >> 8) as usize % 64 % words.len()
        };
        let value = match choice >> 1 & 3 {
            0 => next(),
            1 => words[at]
                .load(Ordering::Relaxed)
                .wrapping_add(next() % 5)
                .wrapping_sub(2),
            2 => next() % 128,
            _ => 0,
        };
        words[at].store(value, Ordering::Relaxed);
    }
}

/// A lane of honest sides beside the hostile one: what it carries must come through untouched.
struct Bystander {
    producer: Producer<Mapping, Mapping>,
    consumer: Consumer<Mapping, Mapping>,
    sent: usize,
}

impl Bystander {
    fn new() -> Self {
        let LaneMemory {
            data,
            data_fd,
            cursor,
            cursor_fd,
        } = lane_memory();
        Self {
            consumer: consumer(&data_fd, cursor),
            producer: producer(data, &cursor_fd),
            sent: 0,
        }
    }

    fn works(&mut self) {
        let mut buffer = Vec::new();
        self.producer
            .try_send(tag(self.sent), &payload(self.sent))
            .unwrap();
        assert_eq!(
            self.consumer.try_recv(&mut buffer),
            Ok(Some(tag(self.sent)))
        );
        assert_eq!(buffer, payload(self.sent));
        self.sent += 1;
    }
}

/// Waits until the child has begun.
fn begun(child: &mut Child) {
    child.acks.read_exact(&mut [0]).unwrap();
}

const ROUNDS: usize = 20_000;

pub fn a_hostile_lane_producer_harms_only_its_lane() {
    for seed in 1..6 {
        let LaneMemory {
            data,
            data_fd,
            cursor,
            cursor_fd,
        } = lane_memory();
        let mut bystander = Bystander::new();
        let mut consumer = consumer(&data_fd, cursor);
        let view = View::new(
            memfd::open(data_fd.as_fd()).unwrap(),
            Some(memfd::open(cursor_fd.as_fd()).unwrap()),
        )
        .unwrap();
        let mut child = Child::fork(|ack| write_anything(&data, seed, ack));
        begun(&mut child);
        let mut buffer = Vec::new();
        for round in 0..ROUNDS {
            if consumer
                .try_recv(&mut buffer)
                .is_ok_and(|got| got.is_some())
            {
                assert!(buffer.len() <= message_limit(SLOTS, Inline::Small));
            }
            if round % 64 == 0 {
                assert!(view.unread().messages <= SLOTS as u64);
                assert!(view.snapshot().depth <= SLOTS as u64);
                bystander.works();
            }
        }
        // A sleeping receiver is woken by the end, whatever the memory says.
        child.kill();
        let closer = consumer.closer().clone();
        child.with_closer(&closer, || {
            while consumer.recv(&mut buffer, PATIENCE).is_ok() {}
        });
        assert!(child.reap().killed);
        bystander.works();
    }
}

pub fn a_hostile_lane_consumer_harms_only_its_lane() {
    for seed in 1..6 {
        let LaneMemory {
            data,
            data_fd: _data_fd,
            cursor,
            cursor_fd,
        } = lane_memory();
        let mut bystander = Bystander::new();
        let mut producer = producer(data, &cursor_fd);
        let mut child = Child::fork(|ack| write_anything(&cursor, seed, ack));
        begun(&mut child);
        for n in 0..ROUNDS {
            let before = producer.next_slot();
            if producer.try_send(tag(n), &payload(n)).is_err() {
                assert_eq!(producer.next_slot(), before);
            }
            if n % 64 == 0 {
                bystander.works();
            }
        }
        child.kill();
        let closer = producer.closer().clone();
        child.with_closer(&closer, || {
            while producer.send(tag(0), &payload(0), PATIENCE).is_ok() {}
        });
        assert!(child.reap().killed);
        bystander.works();
    }
}

pub fn a_hostile_log_reader_harms_nobody() {
    for seed in 1..6 {
        let LogMemory { data, data_fd } = log_memory();
        let (honest_page, honest_fd) = page(Delivery::Reliable);
        let mut honest = reader(&data_fd, honest_page, Delivery::Reliable);
        let options = WriterOptions {
            hold: Hold {
                lag: None,
                time: Duration::from_millis(5),
            },
            ..WriterOptions::default()
        };
        let mut writer = Writer::new(data, Closer::default(), options).unwrap();
        let (own, page_fd) = page(Delivery::Reliable);
        for (id, fd) in [(1, &page_fd), (2, &honest_fd)] {
            let cursor = memfd::open(fd.as_fd()).unwrap();
            writer
                .attach_reader(ReaderId(id), cursor, Delivery::Reliable)
                .unwrap();
        }
        let mut child = Child::fork(|ack| write_anything(&own, seed, ack));
        begun(&mut child);
        let mut buffer = Vec::new();
        for n in 0..2_000 {
            writer.send(tag(n), &payload(n), PATIENCE).unwrap();
            let got = honest.recv(&mut buffer, PATIENCE).unwrap();
            assert_eq!((got.tag, &buffer, got.lost), (tag(n), &payload(n), 0));
            assert_eq!(
                writer.readers().last().map(|reader| reader.id),
                Some(ReaderId(2))
            );
        }
        child.kill();
        assert!(child.reap().killed);
    }
}

pub fn a_hostile_log_writer_harms_only_its_log() {
    for seed in 1..6 {
        for delivery in [Delivery::Lossy, Delivery::Reliable] {
            let LogMemory { data, data_fd } = log_memory();
            let (own, _page_fd) = page(delivery);
            let mut bystander = Bystander::new();
            let mut reader = reader(&data_fd, own, delivery);
            let mut child = Child::fork(|ack| write_anything(&data, seed, ack));
            begun(&mut child);
            let mut buffer = Vec::new();
            for round in 0..ROUNDS / 10 {
                if reader.try_recv(&mut buffer).is_ok_and(|got| got.is_some()) {
                    assert!(buffer.len() <= log::message_limit(SLOTS));
                }
                if round % 64 == 0 {
                    bystander.works();
                }
            }
            child.kill();
            let closer = reader.closer().clone();
            child.with_closer(
                &closer,
                || {
                    while reader.recv(&mut buffer, PATIENCE).is_ok() {}
                },
            );
            assert!(child.reap().killed);
            bystander.works();
        }
    }
}

pub fn a_hostile_arena_owner_yields_errors_or_whole_lengths() {
    for seed in 1..6 {
        let (segment, segment_fd) =
            memfd::create_segment(64 * 1024, PageKind::Small, None).unwrap();
        let mut arena = Arena::new(SLOTS);
        let mut reader = arena::Reader::new(1 << 20);
        reader
            .add(0, memfd::open_segment(segment_fd.as_fd()).unwrap())
            .unwrap();
        let mut bystander = Bystander::new();
        arena.add(segment).unwrap();
        let stored: Vec<_> = (0..8).map(|n| arena.store(&[n; 2_000]).unwrap()).collect();
        let references: Vec<Reference> = stored.iter().map(|stored| stored.reference()).collect();
        // The owner's own mapping, which its copy of this process writes to.
        let mut child = Child::fork(|ack| {
            stored.into_iter().for_each(|stored| arena.release(stored));
            write_anything(&arena.remove(0).unwrap(), seed, ack);
        });
        begun(&mut child);
        let mut buffer = Vec::new();
        for (round, reference) in references.iter().cycle().take(ROUNDS).enumerate() {
            match reader.read(reference, &mut buffer) {
                Ok(()) => assert_eq!(buffer.len() as u64, reference.length),
                Err(_) => assert!(buffer.is_empty()),
            }
            if round % 64 == 0 {
                bystander.works();
            }
        }
        child.kill();
        assert!(child.reap().killed);
    }
}
