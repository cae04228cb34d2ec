//! The connections of a shard: their handshakes, frames, backlogs and deadlines, from the first byte to the reason of their end.
//!
//! Told by the transport what happens ([`Handler`]), says to it what to do ([`Commands`]); on the shard's thread.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::frame::{Frame, PeerId, kind};
use crate::gateway::desk::{Desk, Door, Identity, Owed, Post, Taken};
use crate::gateway::ending::Ending;
use crate::gateway::interop::{self, Dialect, ShortIds};
use crate::gateway::stream::{Interop, Stream};
use crate::gateway::tls::Tls;
use crate::gateway::transport::{Command, Commands, ConnKey, Ended, Event, Handler};
use crate::message::{ERROR_MAX, Response, Status};
use crate::router::CloseReason;

use super::{ListenerOptions, ShardCounters, ShardLimits};

/// Deadlines are kept to this: connections of one time share a page of the calendar.
const PAGE: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Handshake,
    Open,
    /// The reason is on its way out; nothing more is taken in.
    Ending,
}

/// How much of a peer's side of the conversation there is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    More,
    /// All of it has been received; not all has been handed over.
    Finished,
    /// The desk knows.
    Told,
}

#[derive(Debug)]
struct Session {
    phase: Phase,
    interop: Interop,
    greeted: bool,
    /// The desk waits: see [`Taken::Wait`].
    waiting: bool,
    paused: bool,
    in_backlog: bool,
    input: Input,
    /// The connection is lost; what it sent before is still handed over.
    gone: Option<Ended>,
    tls: Option<Box<Tls>>,
    stream: Stream,
    /// Of the stream, as counted in the total.
    held: usize,
    /// What has to have happened by then: handshake, greeting or the rest of a frame.
    due: Option<Instant>,
    /// On which page of the calendar this session stands next.
    noted: Option<u64>,
    /// Needed until it is opened.
    who: Option<Box<Identity>>,
}

#[derive(Debug)]
pub(super) struct Sessions<D> {
    pub(super) desk: D,
    pub(super) door: Door,
    limits: ShardLimits,
    pub(super) listeners: Vec<ListenerOptions>,
    table: Vec<Option<(u32, Box<Session>)>>,
    /// Whose slot may be in use again while the rest of what they sent is handed over.
    gone: BTreeMap<ConnKey, Box<Session>>,
    pub(super) backlogs: VecDeque<ConnKey>,
    /// Looked at when the time comes, corrected then: a deadline that moves costs nothing.
    calendar: BTreeMap<u64, Vec<ConnKey>>,
    epoch: Instant,
    held: usize,
    pub(super) now: Instant,
    batch: Vec<Frame>,
    answers: Vec<Frame>,
    plain: Vec<u8>,
    pub(super) counters: ShardCounters,
}

/// The desk's ids as one connection sees them.
struct Names<'a, D> {
    desk: &'a D,
    conn: ConnKey,
}

impl<D: Desk> ShortIds for Names<'_, D> {
    fn id_of(&self, short: u32) -> Option<PeerId> {
        self.desk.id_of(self.conn, short)
    }
    fn short_of(&self, id: PeerId) -> Option<u32> {
        self.desk.short_of(self.conn, id)
    }
}

impl<D: Desk> Sessions<D> {
    pub(super) fn new(desk: D, door: Door, limits: ShardLimits) -> Self {
        Self {
            desk,
            door,
            limits,
            listeners: Vec::new(),
            table: Vec::new(),
            gone: BTreeMap::new(),
            backlogs: VecDeque::new(),
            calendar: BTreeMap::new(),
            epoch: Instant::now(),
            held: 0,
            now: Instant::now(),
            batch: Vec::new(),
            answers: Vec::new(),
            plain: Vec::new(),
            counters: ShardCounters::default(),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = ConnKey> {
        let table = self.table.iter().enumerate();
        table.filter_map(|(slot, entry)| {
            let generation = entry.as_ref()?.0;
            let slot = slot as u32;
            Some(ConnKey { slot, generation })
        })
    }

    fn session(&mut self, key: ConnKey) -> Option<&mut Session> {
        find(&mut self.table, &mut self.gone, key)
    }

    fn accepted(&mut self, key: ConnKey, who: Identity, out: &mut Commands) {
        let options = &self.listeners[usize::from(who.listener.0)];
        let (interop, tls) = (options.interop, options.tls.as_ref().map(Tls::new));
        let slot = key.slot as usize;
        if self.table.len() <= slot {
            self.table.resize_with(slot + 1, || None);
        }
        let mut session = Box::new(Session {
            phase: Phase::Handshake,
            interop,
            greeted: false,
            waiting: false,
            paused: false,
            in_backlog: false,
            input: Input::More,
            gone: None,
            tls: None,
            stream: Stream::default(),
            held: 0,
            due: None,
            noted: None,
            who: Some(Box::new(who)),
        });
        let failed = match tls {
            Some(Ok(tls)) => {
                session.tls = Some(Box::new(tls));
                None
            }
            Some(Err(ending)) => Some(ending),
            None => None,
        };
        let plain = session.tls.is_none();
        self.table[slot] = Some((key.generation, session));
        self.set_due(key, Some(self.limits.greeting));
        match failed {
            Some(ending) => self.end(key, ending, out),
            None if plain => self.open(key, out),
            None => {}
        }
    }

    fn open(&mut self, key: ConnKey, out: &mut Commands) {
        let Some(session) = self.session(key) else {
            return;
        };
        let Some(who) = session.who.take() else {
            return;
        };
        session.phase = Phase::Open;
        if let Err(turned) = self.desk.opened(key, &who) {
            // The desk never had it.
            let ending = Ending::Turned(turned.0);
            self.desk.turned_away(&who, &ending);
            self.finish(key, ending, out);
        }
    }

    fn received(&mut self, key: ConnKey, bytes: &[u8], out: &mut Commands) {
        let Some(session) = self.session(key) else {
            return;
        };
        if session.phase == Phase::Ending {
            return;
        }
        let Some(tls) = session.tls.as_mut() else {
            return self.take_in(key, bytes, out);
        };
        let was_handshaking = session.phase == Phase::Handshake;
        let (mut records, mut plain) = (Vec::new(), Vec::new());
        let fed = tls.feed(bytes, &mut plain, &mut records);
        let client = match fed {
            Ok(()) if was_handshaking && !tls.is_handshaking() => Some(tls.client()),
            _ => None,
        };
        if !records.is_empty() {
            out.push(Command::Send {
                conn: key,
                bytes: records,
            });
        }
        if let Err(ending) = fed {
            return self.end(key, ending, out);
        }
        match client {
            Some(Ok(name)) => {
                if let Some(session) = self.session(key)
                    && let Some(who) = session.who.as_mut()
                {
                    who.client = Some(name);
                }
                self.set_due(key, Some(self.limits.greeting));
                self.open(key, out);
            }
            Some(Err(ending)) => return self.end(key, ending, out),
            None => {}
        }
        if !plain.is_empty() {
            self.take_in(key, &plain, out);
        }
        let said_goodbye = |session: &mut Session| {
            let tls = session.tls.as_ref();
            tls.is_some_and(|tls| tls.is_finished())
        };
        if self.session(key).is_some_and(said_goodbye) {
            self.finished(key, out);
        }
    }

    /// The peer says nothing more.
    fn finished(&mut self, key: ConnKey, out: &mut Commands) {
        let Some(session) = self.session(key) else {
            return;
        };
        if session.input == Input::More {
            session.input = Input::Finished;
            match session.phase {
                Phase::Handshake => self.end(key, Ended::Eof.into(), out),
                Phase::Open => self.settle(key, false, false, out),
                Phase::Ending => {}
            }
        }
    }

    /// All that the peer has said is handed over: the connection stays only for what it is owed.
    fn conclude(&mut self, key: ConnKey, out: &mut Commands) {
        let Some(session) = self.session(key) else {
            return;
        };
        session.input = Input::Told;
        session.due = None;
        // A TLS peer that just stops may have been cut off by somebody else: it is gone, and owed nothing.
        let tls = session.tls.as_ref();
        let said_goodbye = tls.is_none_or(|tls| tls.is_finished());
        let held = session.held;
        if held > 0 {
            self.end(key, CloseReason::CutOff { bytes: held }.into(), out);
        } else if !said_goodbye || self.desk.finished(key) == Owed::Nothing {
            self.end(key, Ended::Eof.into(), out);
        }
    }

    /// Cuts frames out of what is kept and `input`, hands a slice of them over, and keeps the rest.
    fn take_in(&mut self, key: ConnKey, mut input: &[u8], out: &mut Commands) {
        let Some(session) = find(&mut self.table, &mut self.gone, key) else {
            return;
        };
        if session.phase != Phase::Open {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let mut fault = None;
        let mut whole = false;
        if session.waiting || (session.in_backlog && !input.is_empty()) {
            session.stream.keep(input);
        } else {
            let names = Names {
                desk: &self.desk,
                conn: key,
            };
            let (interop, max) = (session.interop, self.limits.max_payload);
            loop {
                if batch.len() == self.limits.slice {
                    whole = true;
                    session.stream.keep(input);
                    break;
                }
                match session.stream.next(&mut input, interop, max, &names) {
                    Ok(Some(frame)) => batch.push(frame),
                    Ok(None) => break,
                    Err(ending) => {
                        fault = Some(ending);
                        break;
                    }
                }
            }
        }
        let cut = batch.len();
        self.counters.frames_in += cut as u64;
        if cut > 0 {
            session.greeted = true;
            let mut answers = std::mem::take(&mut self.answers);
            if self.desk.frames(key, &mut batch, &mut answers) == Taken::Wait
                && let Some(session) = self.session(key)
            {
                session.waiting = true;
            }
            batch.clear();
            self.send(key, &mut answers, out);
            self.answers = answers;
        }
        self.batch = batch;
        if let Some(ending) = fault {
            return self.end(key, ending, out);
        }
        self.settle(key, cut > 0, whole, out);
    }

    /// After input: the backlog, the total of what is kept, the deadline, and whether reading goes on.
    fn settle(&mut self, key: ConnKey, progress: bool, more: bool, out: &mut Commands) {
        let limits = self.limits;
        let Some(session) = find(&mut self.table, &mut self.gone, key) else {
            return;
        };
        let held = session.stream.held();
        self.held = self.held - session.held + held;
        session.held = held;
        if more && held > 0 && !session.waiting && !session.in_backlog {
            session.in_backlog = true;
            self.backlogs.push_back(key);
        }
        let delayed_here = session.waiting || session.in_backlog;
        let full = delayed_here && held > limits.read_ahead;
        if full != session.paused && (full || !delayed_here) {
            session.paused = full;
            out.push(if full {
                Command::Pause { conn: key }
            } else {
                Command::Resume { conn: key }
            });
        }
        let (greeted, gone, input) = (session.greeted, session.gone, session.input);
        if delayed_here {
            if greeted && gone.is_none() {
                session.due = None;
            }
        } else if let Some(how) = gone {
            return self.forget(key, &lost(how, held));
        } else if input != Input::More {
            if input == Input::Finished {
                self.conclude(key, out);
            }
            return;
        } else if greeted && held == 0 {
            session.due = None;
        } else if greeted && (progress || session.due.is_none()) {
            self.set_due(key, Some(limits.frame));
        }
        if self.held > limits.memory {
            let limit = limits.memory;
            self.end(key, Ending::Memory { limit }, out);
        }
    }

    pub(super) fn serve_backlogs(&mut self, out: &mut Commands) {
        // One slice: whoever has just sent something goes first.
        if let Some(key) = self.backlogs.pop_front() {
            if let Some(session) = self.session(key) {
                session.in_backlog = false;
            }
            self.take_in(key, &[], out);
        }
    }

    pub(super) fn post(&mut self, key: ConnKey, post: Post, out: &mut Commands) {
        match post {
            Post::Write(mut frames) => {
                self.send(key, &mut frames, out);
                if self.gone.contains_key(&key) {
                    self.desk.written(key);
                }
            }
            Post::ReadOn => {
                if let Some(session) = self.session(key)
                    && std::mem::take(&mut session.waiting)
                {
                    self.take_in(key, &[], out);
                }
            }
            Post::Finish => self.end(key, Ended::Eof.into(), out),
            Post::Close(reason) => self.end(key, reason.into(), out),
        }
    }

    /// Encodes and queues `frames`, and empties them.
    fn send(&mut self, key: ConnKey, frames: &mut Vec<Frame>, out: &mut Commands) {
        if frames.is_empty() {
            return;
        }
        let mut fault = None;
        if let Some(session) = find(&mut self.table, &mut self.gone, key)
            && session.phase == Phase::Open
            && session.gone.is_none()
        {
            let mut bytes = match session.tls {
                Some(_) => std::mem::take(&mut self.plain),
                None => Vec::with_capacity(frames.iter().map(Frame::wire_len).sum()),
            };
            let names = Names {
                desk: &self.desk,
                conn: key,
            };
            for frame in frames.iter() {
                match session.stream.dialect() {
                    Dialect::B1 => frame.encode_into(&mut bytes),
                    Dialect::V3 => {
                        if let Err(error) = interop::to_v3(frame, &names, &mut bytes) {
                            fault = Some(Ending::from(error));
                            break;
                        }
                    }
                }
                self.counters.frames_out += 1;
            }
            if let Some(tls) = session.tls.as_mut() {
                let mut sealed = Vec::new();
                if let Err(ending) = tls.seal(&bytes, &mut sealed) {
                    fault = Some(ending);
                }
                bytes.clear();
                self.plain = std::mem::replace(&mut bytes, sealed);
            }
            out.push(Command::Send { conn: key, bytes });
        }
        frames.clear();
        if let Some(ending) = fault {
            self.end(key, ending, out);
        }
    }

    /// Ends a connection that the desk may have.
    pub(super) fn end(&mut self, key: ConnKey, ending: Ending, out: &mut Commands) {
        let Some(session) = self.session(key) else {
            return;
        };
        match session.phase {
            Phase::Ending => {}
            _ if session.gone.is_some() => self.forget(key, &ending),
            Phase::Open => {
                self.desk.closed(key, &ending);
                self.finish(key, ending, out);
            }
            Phase::Handshake => {
                if let Some(who) = session.who.take()
                    && !ending.is_ordinary()
                {
                    self.desk.turned_away(&who, &ending);
                }
                self.finish(key, ending, out);
            }
        }
    }

    /// The desk no longer has it: says why to the peer, if there is a peer to say it to, and closes.
    fn finish(&mut self, key: ConnKey, ending: Ending, out: &mut Commands) {
        if !ending.is_ordinary() {
            self.counters.faults += 1;
        }
        if ending.is_told() {
            let sealed = |session: &Session| {
                let tls = session.tls.as_ref();
                tls.is_none_or(|tls| !tls.is_handshaking())
            };
            // Nobody whom the desk has, but there is a session to say it in.
            if let Some(session) = self.session(key)
                && sealed(session)
            {
                session.phase = Phase::Open;
            }
            let mut notice = vec![notice(&ending)];
            self.send(key, &mut notice, out);
        }
        let Some(session) = find(&mut self.table, &mut self.gone, key) else {
            return;
        };
        session.phase = Phase::Ending;
        session.due = None;
        self.held -= std::mem::take(&mut session.held);
        session.stream = Stream::default();
        if let Some(mut tls) = session.tls.take() {
            let mut bytes = Vec::new();
            tls.goodbye(&mut bytes);
            out.push(Command::Send { conn: key, bytes });
        }
        out.push(match ending {
            Ending::Transport(how) if how != Ended::Eof => Command::Close { conn: key },
            _ => Command::Drain { conn: key },
        });
    }

    /// The transport has closed it.
    fn closed(&mut self, key: ConnKey, how: Ended) {
        let Some(entry) = self.table.get_mut(key.slot as usize) else {
            return;
        };
        let Some((_, mut session)) = entry.take_if(|(generation, _)| *generation == key.generation)
        else {
            return;
        };
        if session.phase == Phase::Open && (session.waiting || session.in_backlog) {
            session.gone = Some(how);
            session.tls = None;
            self.gone.insert(key, session);
            // What was under way to it goes nowhere. A desk that takes nothing in while its answers wait would wait for ever.
            self.desk.written(key);
            self.set_due(key, Some(self.limits.frame));
            return;
        }
        self.held -= session.held;
        if session.phase == Phase::Open {
            let ending = lost(how, session.held);
            self.count(&ending);
            self.desk.closed(key, &ending);
        }
    }

    /// What a peer that has gone had sent is handed over.
    fn forget(&mut self, key: ConnKey, ending: &Ending) {
        if let Some(session) = self.gone.remove(&key) {
            self.held -= session.held;
            self.count(ending);
            self.desk.closed(key, ending);
        }
    }

    fn count(&mut self, ending: &Ending) {
        if !ending.is_ordinary() {
            self.counters.faults += 1;
        }
    }

    fn set_due(&mut self, key: ConnKey, after: Option<Duration>) {
        let due = after.map(|after| self.now + after);
        if let Some(session) = self.session(key) {
            session.due = due;
        }
        self.note(key);
    }

    /// Puts a session that has a deadline on its page of the calendar, unless it stands on an earlier one.
    fn note(&mut self, key: ConnKey) {
        let epoch = self.epoch;
        let Some(session) = find(&mut self.table, &mut self.gone, key) else {
            return;
        };
        let Some(due) = session.due else { return };
        let page = (due.duration_since(epoch).as_nanos() / PAGE.as_nanos()) as u64 + 1;
        if session.noted.is_none_or(|noted| noted > page) {
            session.noted = Some(page);
            self.calendar.entry(page).or_default().push(key);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let (page, _) = self.calendar.first_key_value()?;
        Some(self.epoch + PAGE * (*page as u32))
    }

    pub(super) fn expire(&mut self, out: &mut Commands) {
        while self.next_due().is_some_and(|at| at <= self.now) {
            let Some((page, keys)) = self.calendar.pop_first() else {
                return;
            };
            for key in keys {
                let now = self.now;
                let Some(session) = self.session(key) else {
                    continue;
                };
                if session.noted == Some(page) {
                    session.noted = None;
                }
                match (session.due, session.gone) {
                    (None, _) => {}
                    (Some(due), _) if due > now => self.note(key),
                    (Some(_), Some(how)) => self.forget(key, &how.into()),
                    (Some(_), None) => {
                        let ending = match (session.phase, session.greeted) {
                            (Phase::Handshake, _) => Ending::HandshakeTimeout {
                                seconds: self.limits.greeting.as_secs() as u32,
                            },
                            (_, false) => CloseReason::GreetingTimeout {
                                seconds: self.limits.greeting.as_secs() as u32,
                            }
                            .into(),
                            _ => CloseReason::StalledFrame {
                                seconds: self.limits.frame.as_secs() as u32,
                            }
                            .into(),
                        };
                        self.end(key, ending, out);
                    }
                }
            }
        }
    }
}

fn find<'a>(
    table: &'a mut [Option<(u32, Box<Session>)>],
    gone: &'a mut BTreeMap<ConnKey, Box<Session>>,
    key: ConnKey,
) -> Option<&'a mut Session> {
    match table.get_mut(key.slot as usize) {
        Some(Some((generation, session))) if *generation == key.generation => Some(session),
        _ => gone.get_mut(&key).map(|session| &mut **session),
    }
}

/// How a connection ended that its transport lost, `held` bytes into a frame.
fn lost(how: Ended, held: usize) -> Ending {
    match how {
        Ended::Eof if held > 0 => CloseReason::CutOff { bytes: held }.into(),
        how => how.into(),
    }
}

/// The last frame of a connection that the gateway ends.
fn notice(ending: &Ending) -> Frame {
    let text = ending.to_string();
    let mut end = text.len().min(ERROR_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let payload = Response {
        status: Status::MALFORMED,
        error: &text[..end],
        result: &[],
    }
    .encode()
    .expect("the text was cut to the limit");
    Frame::new(kind::ERROR, PeerId::BUS, 0, payload)
}

impl<D: Desk> Handler for Sessions<D> {
    fn event(&mut self, event: Event<'_>, out: &mut Commands) {
        match event {
            Event::Accepted {
                conn,
                listener,
                origin,
            } => {
                self.now = Instant::now();
                let who = Identity {
                    listener,
                    origin,
                    client: None,
                };
                self.accepted(conn, who, out);
            }
            Event::Received { conn, bytes } => self.received(conn, bytes, out),
            Event::Sent { conn, waiting: 0 } => {
                let open = |session: &mut Session| session.phase == Phase::Open;
                if self.session(conn).is_some_and(open) {
                    self.desk.written(conn);
                }
            }
            Event::Finished { conn } => self.finished(conn, out),
            Event::Closed { conn, how } => self.closed(conn, how),
            Event::Listening { listener, state } => self.desk.listening(listener, state),
            Event::Sent { .. } | Event::Woken => {}
        }
    }
}
