//! The router's queues in a world that goes wrong: clients that die and try again, peers that read slowly or late, frames that
//! arrive in any order between connections, a store that fails, and a daemon that is killed and comes back from what was stored.
//!
//! One scheduler decides everything from one seed. A failure prints it; `AGENTD_SIM_SEED=N cargo test -p agentd-bus --test
//! simulation` runs that history again, step by step the same. `AGENTD_SIM_RUNS` says how many seeds are tried.
//!
//! What must hold, whatever happens: what a producer was told is in a queue is worked on at least once (a queue in memory: unless
//! the daemon was killed); what a consumer was told is acknowledged is never delivered again; no message is delivered more often
//! than its queue allows; no bound is ever exceeded; and once the world is well again, everything drains. Of events that are sent
//! in a window, without waiting for each, the sender hears of every one exactly once, in a run or alone; what was taken into an
//! inbox is read from it exactly once, in its sender's order, unless the daemon or the reader died meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use agentd_bus::access::SameUser;
use agentd_bus::frame::{Frame, PeerId, flags, kind};
use agentd_bus::listing::InboxBatch;
use agentd_bus::message::{
    BatchBuilder, Control, Event, Full, Numbers, Outcome, QueueSpec, Response, Status, TopicSpec,
};
use agentd_bus::router::{
    Batch, ConnId, ConnKind, Descriptor, Effects, Limits, Now, PeerSpec, Persist, PersistError,
    Restored, Router, Settled, StreamId, StreamSpec,
};

#[derive(Clone, Debug)]
enum NoMemory {}

impl Descriptor for NoMemory {
    fn bytes(&self) -> u64 {
        match *self {}
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

const MAX_DELIVER: u32 = 6;
const MAX_MESSAGES: u32 = 24;
const QUEUES: [&str; 2] = ["kept", "passing"];
const CLIENTS: usize = 6;

fn spec(queue: usize) -> QueueSpec {
    QueueSpec {
        durable: queue == 0,
        full: if queue == 0 {
            Full::Reject
        } else {
            Full::Block
        },
        max_messages: MAX_MESSAGES,
        max_bytes: 4096,
        visibility_ms: 400,
        max_deliver: MAX_DELIVER,
        dead_messages: 100_000,
        ..QueueSpec::default()
    }
}

/// What the store has of one stream, and what it was asked and has not done.
#[derive(Default)]
struct Stream {
    spec: Option<StreamSpec>,
    records: BTreeMap<u64, Restored>,
    next: u64,
    asked: VecDeque<Persist>,
}

impl Stream {
    fn append(&mut self, batch: &Batch) -> u64 {
        let first = self.next;
        for record in batch.encoded() {
            let restored = Restored::decode(self.next, batch.at_ns, None, &record).unwrap();
            self.records.insert(self.next, restored);
            self.next += 1;
        }
        first
    }

    fn carry_out(&mut self, asked: &Persist) -> u64 {
        match asked {
            Persist::Declare { spec, .. } => {
                self.spec = Some(*spec);
                0
            }
            Persist::Append { batch, .. } => self.append(batch),
            Persist::Settle { offsets, how, .. } => {
                for range in offsets {
                    for offset in range.first..range.first + range.count {
                        match how {
                            Settled::Gone => drop(self.records.remove(&offset)),
                            Settled::Dead(why) => {
                                if let Some(record) = self.records.get_mut(&offset) {
                                    record.dead = Some(*why);
                                }
                            }
                            Settled::Requeued => {
                                if let Some(record) = self.records.get_mut(&offset) {
                                    record.dead = None;
                                }
                            }
                        }
                    }
                }
                0
            }
            Persist::Drop { .. } | Persist::Read { .. } => 0,
        }
    }
}

fn ticket(asked: &Persist) -> u64 {
    match asked {
        Persist::Declare { ticket, .. }
        | Persist::Append { ticket, .. }
        | Persist::Settle { ticket, .. }
        | Persist::Read { ticket, .. } => *ticket,
        Persist::Drop { .. } => 0,
    }
}

/// What a client waits for under a correlation id.
enum Asked {
    Open(usize),
    Consume,
    Produced(usize, Vec<u64>),
    Acked(Vec<(usize, u64)>),
    /// A message to an inbox; `None`: to a topic.
    Event(Option<(u64, usize)>),
    Inbox,
    Nothing,
}

/// Correlation ids of events: they follow each other, whatever else is asked meanwhile.
const EVENTS: u32 = 1 << 31;
/// Events of one client that are under way.
const WINDOW: usize = 12;
/// Two topics, the first of them stored.
const TOPICS: [&str; 2] = ["kept.news", "news"];

#[derive(Default)]
struct Client {
    conn: Option<ConnId>,
    /// Frames on their way to the router.
    out: VecDeque<Frame>,
    asked: BTreeMap<u32, Asked>,
    next: u32,
    next_event: u32,
    /// Queue numbers on this connection.
    numbers: [Option<u32>; 2],
    consuming: [bool; 2],
    /// Tag, queue, id.
    held: Vec<(u64, usize, u64)>,
    /// Values that it was not told of, to be tried again.
    unsure: Vec<(usize, u64)>,
    slow: bool,
}

struct World {
    seed: u64,
    dice: Dice,
    router: Router<NoMemory>,
    fx: Effects<NoMemory>,
    now: Now,
    clients: Vec<Client>,
    streams: BTreeMap<StreamId, Stream>,
    next_value: u64,
    /// By queue: values that a producer was told are in, that were worked on, ids whose end a consumer was told of.
    confirmed: [BTreeSet<u64>; 2],
    worked: [BTreeSet<u64>; 2],
    acked: [BTreeSet<u64>; 2],
    /// Notes that their senders were told are in an inbox; that were read; the last one read, by receiver and sender.
    noted: BTreeMap<u64, usize>,
    /// By receiver: of notes below this number nobody knows, because a read of the inbox went with its connection.
    unknown: [u64; CLIENTS],
    read: BTreeSet<u64>,
    last: BTreeMap<(usize, PeerId), u64>,
    /// Events that were acknowledged in a run, and refusals.
    gathered: u64,
    refused: u64,
    /// Counts of what happened, so that a run that does nothing is seen.
    deliveries: u64,
    kills: u64,
    well: bool,
}

fn id(n: usize) -> PeerId {
    PeerId([n as u8 + 1; 16])
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let clients = (0..CLIENTS)
            .map(|_| Client {
                slow: dice.one_in(4),
                ..Client::default()
            })
            .collect();
        let mut world = Self {
            seed,
            dice,
            router: Router::new(limits()),
            fx: Effects::default(),
            now: Now {
                mono_ns: 1_000_000_000,
                wall_ns: 1_700_000_000_000_000_000,
            },
            clients,
            streams: BTreeMap::new(),
            next_value: 1,
            confirmed: Default::default(),
            worked: Default::default(),
            acked: Default::default(),
            noted: BTreeMap::new(),
            unknown: [0; CLIENTS],
            read: BTreeSet::new(),
            last: BTreeMap::new(),
            gathered: 0,
            refused: 0,
            deliveries: 0,
            kills: 0,
            well: false,
        };
        world.attach();
        world
    }

    fn attach(&mut self) {
        for n in 0..CLIENTS {
            let spec = PeerSpec {
                id: id(n),
                uid: 1000,
                name: format!("agent-{n}"),
                short: n as u32,
                access: Arc::new(SameUser),
            };
            self.router.attach(spec, self.now, &mut self.fx).unwrap();
        }
    }

    /// The daemon is killed: what the store had not done by then is done up to anywhere, and all connections are gone.
    fn kill(&mut self) {
        self.kills += 1;
        self.router = Router::new(limits());
        self.fx = Effects::default();
        for n in 0..CLIENTS {
            self.forget(n);
        }
        for (id, stream) in &mut self.streams {
            let done = self.dice.below(stream.asked.len() + 1);
            for asked in std::mem::take(&mut stream.asked).into_iter().take(done) {
                stream.carry_out(&asked);
            }
            if let Some(spec) = stream.spec {
                let records = stream.records.values().cloned().collect();
                self.router.restore(id.clone(), spec, records);
            }
        }
        // What was only in memory is gone, nobody was promised more, and its ids begin anew.
        self.confirmed[1].clear();
        self.acked[1].clear();
        self.noted.clear();
        self.unknown = [self.next_value; CLIENTS];
        self.attach();
    }

    /// A client's connection has gone, and what it was not told it does not know.
    fn forget(&mut self, n: usize) {
        let client = &mut self.clients[n];
        let mut unsure = std::mem::take(&mut client.unsure);
        for (_, asked) in std::mem::take(&mut client.asked) {
            match asked {
                Asked::Produced(queue, values) => {
                    unsure.extend(values.into_iter().map(|value| (queue, value)));
                }
                Asked::Inbox => self.unknown[n] = self.next_value,
                _ => {}
            }
        }
        *client = Client {
            unsure,
            slow: client.slow,
            next: client.next,
            next_event: client.next_event,
            ..Client::default()
        };
    }

    fn fail(&self, what: impl std::fmt::Display) -> ! {
        panic!(
            "AGENTD_SIM_SEED={}: {what} (time {} ms, {} deliveries, {} kills)",
            self.seed,
            self.now.mono_ns / 1_000_000,
            self.deliveries,
            self.kills
        )
    }

    fn say(&mut self, n: usize, control: Control<'_>, asked: Asked) {
        let client = &mut self.clients[n];
        client.next += 1;
        let correlation = client.next;
        let frame = Frame::new(
            kind::COMMAND,
            PeerId::BUS,
            correlation,
            control.encode().unwrap(),
        );
        client.asked.insert(correlation, asked);
        client.out.push_back(frame);
    }

    /// An event whose acknowledgement may come together with others.
    fn event(&mut self, n: usize) {
        let under_way = self.clients[n].asked.range(EVENTS..).count();
        if under_way >= WINDOW || self.well {
            return;
        }
        let value = self.next_value;
        self.next_value += 1;
        let data = value.to_le_bytes();
        let receiver = (n + 1) % CLIENTS;
        let (to, topic) = match self.dice.below(4) {
            0 => (PeerId::BUS, TOPICS[0]),
            1 => (PeerId::BUS, TOPICS[1]),
            _ => (id(receiver), ""),
        };
        let event = Event {
            priority: 1,
            event_type: "",
            topic,
            data: &data,
        };
        let client = &mut self.clients[n];
        let correlation = EVENTS | client.next_event;
        client.next_event += 1;
        let mut frame = Frame::new(kind::EVENT, to, correlation, event.encode().unwrap());
        frame.header.flags = (1 | flags::ACK | flags::GATHER).into();
        let asked = Asked::Event((!to.is_bus()).then_some((value, receiver)));
        client.asked.insert(correlation, asked);
        client.out.push_back(frame);
    }

    fn taken(&mut self, asked: Asked) {
        match asked {
            Asked::Event(Some((value, receiver))) => drop(self.noted.insert(value, receiver)),
            Asked::Event(None) => {}
            _ => self.fail("acknowledged as an event, and is none"),
        }
    }

    /// A run of events was taken.
    fn acknowledged(&mut self, n: usize, first: u32, count: u32) {
        for correlation in first..first + count {
            let Some(asked) = self.clients[n].asked.remove(&correlation) else {
                self.fail("an event that nobody sent, or a second acknowledgement");
            };
            self.gathered += 1;
            self.taken(asked);
        }
    }

    fn inbox(&mut self, n: usize, batch: &InboxBatch) {
        for (_, frame) in &batch.messages {
            let event = Event::parse(&frame.payload).unwrap();
            let value = u64::from_le_bytes(event.data.try_into().unwrap());
            if !self.read.insert(value) {
                self.fail(format_args!("note {value} was read twice"));
            }
            let last = self.last.insert((n, frame.header.source), value);
            if last.is_some_and(|last| last > value) {
                self.fail(format_args!("note {value} was overtaken"));
            }
        }
    }

    fn act(&mut self, n: usize) {
        if self.clients[n].conn.is_none() {
            if let Ok(conn) = self.router.connect(id(n), ConnKind::Port, self.now) {
                self.clients[n].conn = Some(conn);
                for (queue, name) in QUEUES.into_iter().enumerate() {
                    let control = Control::QueueDeclare {
                        spec: spec(queue),
                        name,
                    };
                    self.say(n, control, Asked::Open(queue));
                }
                let spec = TopicSpec {
                    durable: true,
                    ..TopicSpec::default()
                };
                let control = Control::TopicDeclare {
                    spec,
                    topic: TOPICS[0],
                };
                self.say(n, control, Asked::Nothing);
            }
            return;
        }
        match self.dice.below(3) {
            0 => (0..1 + self.dice.below(4)).for_each(|_| self.event(n)),
            1 if self.well || self.dice.one_in(3) => {
                let max = 1 + self.dice.below(8) as u32;
                self.say(n, Control::Inbox { max, wait_ms: 0 }, Asked::Inbox);
            }
            _ => {}
        }
        let queue = self.dice.below(2);
        let Some(number) = self.clients[n].numbers[queue] else {
            return;
        };
        let produces = n < CLIENTS / 2;
        match self.dice.below(if self.well { 4 } else { 6 }) {
            0 | 1 if produces && !self.well => self.produce(n, queue, number),
            0 | 1 if produces => {
                // What it was not told of: try again.
                if let Some((queue, value)) = self.clients[n].unsure.pop()
                    && let Some(number) = self.clients[n].numbers[queue]
                {
                    self.put(n, queue, number, vec![value]);
                }
            }
            0 | 1 if !self.clients[n].consuming[queue] => {
                let credit = 1 + self.dice.below(8) as u32;
                let control = Control::Consume {
                    queue: number,
                    credit,
                };
                self.say(n, control, Asked::Consume);
                self.clients[n].consuming[queue] = true;
            }
            0..=3 => self.settle(n),
            4 if self.dice.one_in(6) => {
                // Dies without a word; the frames on their way may have been sent or not.
                let conn = self.clients[n].conn.take().unwrap();
                self.router.disconnect(conn, self.now, &mut self.fx);
                self.forget(n);
            }
            _ => {}
        }
    }

    fn produce(&mut self, n: usize, queue: usize, number: u32) {
        let mut values: Vec<u64> = Vec::new();
        // A client that was not told tries again with the same value, which may be there already.
        while let Some(at) = self.clients[n].unsure.iter().position(|(q, _)| *q == queue)
            && values.len() < 3
        {
            values.push(self.clients[n].unsure.swap_remove(at).1);
        }
        for _ in 0..self.dice.below(5) {
            values.push(self.next_value);
            self.next_value += 1;
        }
        if !values.is_empty() {
            self.put(n, queue, number, values);
        }
    }

    fn put(&mut self, n: usize, queue: usize, number: u32, values: Vec<u64>) {
        let mut batch = BatchBuilder::new();
        for value in &values {
            let priority = (value % 4) as u8;
            assert!(batch.push(priority, &value.to_le_bytes()));
        }
        let control = Control::Produce {
            queue: number,
            messages: batch.messages(),
        };
        self.say(n, control, Asked::Produced(queue, values));
    }

    fn settle(&mut self, n: usize) {
        if self.clients[n].held.is_empty() {
            return;
        }
        let at = self.dice.below(self.clients[n].held.len());
        let (tag, queue, id) = self.clients[n].held.swap_remove(at);
        let Some(number) = self.clients[n].numbers[queue] else {
            return;
        };
        let outcome = match self.dice.below(if self.well { 1 } else { 8 }) {
            0..=4 => Outcome::Ack,
            5 => Outcome::Nack {
                delay_ms: self.dice.below(300) as u32,
            },
            6 => Outcome::Extend { visibility_ms: 900 },
            // Forgotten: its time will pass.
            _ => return,
        };
        let bytes = tag.to_le_bytes();
        let tags = Numbers::parse(&bytes).unwrap();
        let control = Control::Settle {
            queue: number,
            outcome,
            tags,
        };
        let asked = match outcome {
            Outcome::Ack => Asked::Acked(vec![(queue, id)]),
            _ => Asked::Nothing,
        };
        self.say(n, control, asked);
        if outcome == Outcome::Ack && self.dice.one_in(4) {
            // As a client that says it twice.
            self.say(n, control, Asked::Nothing);
        }
    }

    /// One frame of a client reaches the router.
    fn arrive(&mut self, n: usize) {
        let Some(conn) = self.clients[n].conn else {
            return;
        };
        if self.router.is_congested(conn) {
            return;
        }
        if let Some(frame) = self.clients[n].out.pop_front() {
            self.router.frame(conn, frame, None, self.now, &mut self.fx);
        }
    }

    /// A client reads what the router has for it.
    fn read(&mut self, n: usize) {
        let Some(conn) = self.clients[n].conn else {
            return;
        };
        self.router.clock(self.now);
        for _ in 0..1 + self.dice.below(3) {
            let Some(out) = self.router.pull(conn, &mut self.fx) else {
                return;
            };
            let frame = out.frame;
            if frame.kind() & kind::RESPONSE != 0 {
                self.answered(n, &frame);
            } else if let Ok(Control::Acknowledged { first, count, .. }) =
                Control::parse(&frame.payload)
            {
                self.acknowledged(n, first, count);
            } else if let Ok(Control::Delivered { queue, deliveries }) =
                Control::parse(&frame.payload)
            {
                let numbers = &self.clients[n].numbers;
                let Some(at) = numbers.iter().position(|held| *held == Some(queue)) else {
                    self.fail("deliveries of a queue that is not open");
                };
                for delivery in deliveries.iter() {
                    self.deliveries += 1;
                    if self.acked[at].contains(&delivery.id) {
                        self.fail(format_args!(
                            "message {} of {} was acknowledged and is delivered again",
                            delivery.id, QUEUES[at]
                        ));
                    }
                    if u32::from(delivery.deliveries) > MAX_DELIVER {
                        self.fail(format_args!("delivery {}", delivery.deliveries));
                    }
                    let value = u64::from_le_bytes(delivery.data.try_into().unwrap());
                    if value >= self.next_value || u64::from(delivery.priority) != value % 4 {
                        self.fail("a message that nobody sent");
                    }
                    self.worked[at].insert(value);
                    let held = (delivery.tag, at, delivery.id);
                    self.clients[n].held.push(held);
                }
            }
        }
    }

    fn answered(&mut self, n: usize, frame: &Frame) {
        let Some(asked) = self.clients[n].asked.remove(&frame.correlation()) else {
            self.fail("an answer that nobody asked for, or a second one");
        };
        let response = Response::parse(&frame.payload).unwrap();
        let ok = response.status == Status::OK;
        let number = |at: usize| {
            let bytes = response.result.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        match asked {
            Asked::Open(queue) => {
                self.clients[n].numbers[queue] = number(0).filter(|_| ok);
                if !ok {
                    // The store failed: declare it again.
                    let control = Control::QueueDeclare {
                        spec: spec(queue),
                        name: QUEUES[queue],
                    };
                    self.say(n, control, Asked::Open(queue));
                }
            }
            Asked::Produced(queue, values) => {
                let taken = number(0).unwrap_or(0) as usize;
                self.confirmed[queue].extend(&values[..taken]);
                let rest = values[taken..].iter().map(|value| (queue, *value));
                self.clients[n].unsure.extend(rest);
                if response.status == Status::NO_SUCH_QUEUE {
                    self.clients[n].numbers[queue] = None;
                }
            }
            Asked::Acked(messages) => {
                if ok && number(0) == Some(messages.len() as u32) {
                    for (queue, id) in messages {
                        self.acked[queue].insert(id);
                    }
                }
            }
            Asked::Event(_) if ok => self.taken(asked),
            Asked::Event(_) => self.refused += 1,
            Asked::Inbox => {
                let batch = InboxBatch::parse(response.result).unwrap();
                self.inbox(n, &batch);
            }
            Asked::Consume | Asked::Nothing => {}
        }
    }

    /// The store does what it was asked first, of some stream.
    fn store(&mut self) {
        for asked in self.fx.persist.drain(..) {
            let stream = self.streams.entry(asked.stream().clone()).or_default();
            stream.asked.push_back(asked);
        }
        let busy: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.asked.is_empty())
            .map(|(id, _)| id.clone())
            .collect();
        if busy.is_empty() {
            return;
        }
        let at = self.dice.below(busy.len());
        let stream = self.streams.get_mut(&busy[at]).unwrap();
        let asked = stream.asked.pop_front().unwrap();
        let ticket = ticket(&asked);
        let may_fail = matches!(asked, Persist::Append { .. });
        let outcome = if may_fail && !self.well && self.dice.one_in(10) {
            Err(PersistError::Failed("the disk".into()))
        } else {
            Ok(stream.carry_out(&asked))
        };
        if ticket != 0 {
            self.router
                .persisted(ticket, outcome, self.now, &mut self.fx);
        }
    }

    fn step(&mut self) {
        let n = self.dice.below(CLIENTS);
        let slow = self.clients[n].slow && !self.well;
        match self.dice.below(12) {
            0..=2 => self.act(n),
            3..=5 => self.arrive(n),
            6..=7 if !slow || self.dice.one_in(8) => self.read(n),
            8..=9 => self.store(),
            10 => {
                self.now.mono_ns += (self.dice.below(60) as u64) * 1_000_000;
                self.now.wall_ns += 1;
                self.router.tick(self.now, &mut self.fx);
            }
            _ if !self.well && self.seed.is_multiple_of(2) && self.dice.one_in(400) => self.kill(),
            _ => {}
        }
        self.fx.wake.clear();
        self.fx.resume.clear();
        self.fx.record.clear();
        for queue in self.router.queues(None) {
            let live = queue.waiting + queue.delayed + queue.in_hand;
            if live > MAX_MESSAGES || queue.bytes > 4096 {
                self.fail(format_args!("{live} messages of {} bytes", queue.bytes));
            }
        }
    }

    /// The world is well again: everything drains.
    fn heal(&mut self) {
        self.well = true;
        for _ in 0..200_000 {
            self.step();
            let drained = self
                .router
                .queues(None)
                .iter()
                .all(|queue| queue.waiting + queue.delayed + queue.in_hand == 0);
            let quiet = self
                .clients
                .iter()
                .all(|c| c.asked.is_empty() && c.unsure.is_empty() && c.out.is_empty());
            if !(drained && quiet && self.router.open_tickets() == 0) {
                continue;
            }
            let peers = self.router.peers(self.now);
            if peers.iter().all(|peer| peer.queued == 0) {
                return;
            }
        }
        self.fail(format_args!(
            "it does not drain: {:?}",
            self.router.queues(None)
        ));
    }

    /// Everything confirmed was worked on, or died after its last delivery.
    fn judge(&self) {
        for (queue, name) in QUEUES.into_iter().enumerate() {
            let lost: Vec<&u64> = self.confirmed[queue]
                .difference(&self.worked[queue])
                .collect();
            if !lost.is_empty() {
                self.fail(format_args!("{name} lost {lost:?}"));
            }
        }
        let unread: Vec<u64> = self
            .noted
            .iter()
            .filter(|(note, of)| !self.read.contains(note) && **note >= self.unknown[**of])
            .map(|(note, _)| *note)
            .collect();
        if !unread.is_empty() {
            self.fail(format_args!(
                "notes were taken and are in no inbox: {unread:?}"
            ));
        }
        if self.gathered == 0 || self.refused == 0 {
            self.fail(format_args!(
                "{} events in runs, {} refused",
                self.gathered, self.refused
            ));
        }
    }
}

fn limits() -> Limits {
    Limits {
        out_frames: 64,
        inbox_messages: 16,
        ..Limits::default()
    }
}

fn run(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    for _ in 0..3_000 {
        world.step();
    }
    world.heal();
    world.judge();
    (world.deliveries, world.kills)
}

#[test]
fn nothing_acknowledged_is_lost_or_delivered_again_whatever_goes_wrong() {
    if let Ok(seed) = std::env::var("AGENTD_SIM_SEED") {
        run(seed.parse().expect("AGENTD_SIM_SEED is a number"));
        return;
    }
    let runs = std::env::var("AGENTD_SIM_RUNS").map_or(30, |runs| runs.parse().expect("a number"));
    let (mut deliveries, mut kills) = (0, 0);
    for seed in 0..runs {
        let (delivered, killed) = run(seed);
        deliveries += delivered;
        kills += killed;
    }
    assert!(deliveries > 100 * runs, "the world was alive: {deliveries}");
    assert!(runs < 10 || kills > 0, "somebody was killed");
}

#[test]
fn a_seed_is_one_history() {
    assert_eq!(run(7), run(7));
}
