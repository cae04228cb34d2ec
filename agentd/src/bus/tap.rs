//! Who listens in on what the router does: message metadata, or the steps of one queue's messages; filtered per listener,
//! never contents.
//!
//! A tap never holds anybody up. Each has a bounded queue; what finds it full is left out, counted, and told with the
//! next entry or as soon as the queue is empty. Offering happens under the router's lock, so the entries have its order;
//! without taps it costs one look. Any thread; can't fail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use agentd_bus::frame::PeerId;
use agentd_bus::router::{MessageMeta, QueueStep};
use agentd_bus::topic;
use tokio::sync::mpsc;

use super::server::Shared;

/// Entries that wait for one listener.
const HELD: usize = 1024;

/// What a listener wants to hear of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapFilter {
    /// Of this user's agents; of everybody's when absent.
    pub uid: Option<u32>,
    /// Sent or received by this peer.
    pub peer: Option<PeerId>,
    /// Published to a topic that this pattern covers.
    pub topic: Option<String>,
    /// Not of messages as they are routed, but of what happens to those in queues of this name.
    pub queue: Option<String>,
}

impl TapFilter {
    fn wants(&self, meta: &MessageMeta) -> bool {
        let is_side =
            |peer| meta.from == peer || meta.to.as_ref().is_some_and(|(to, _)| *to == peer);
        let covers = |pattern: &String| {
            let topic = meta.topic.as_deref();
            topic.is_some_and(|topic| topic::matches(pattern, topic))
        };
        self.queue.is_none()
            && self.uid.is_none_or(|uid| meta.uid == Some(uid))
            && self.peer.is_none_or(is_side)
            && self.topic.as_ref().is_none_or(covers)
    }

    fn wants_step(&self, step: &QueueStep) -> bool {
        let by = step.by.as_ref().map(|(id, _)| *id);
        self.queue.as_deref() == Some(&*step.queue)
            && self.uid.is_none_or(|uid| step.uid == uid)
            && self.peer.is_none_or(|peer| by == Some(peer))
    }
}

/// What a listener hears.
#[derive(Debug)]
pub enum Tapped {
    Message(Arc<MessageMeta>),
    Step(Arc<QueueStep>),
    /// So many of them found the listener's own queue full.
    LeftOut(u64),
}

/// One thing to hear of.
#[derive(Clone, Debug)]
enum Heard {
    Message(Arc<MessageMeta>),
    Step(Arc<QueueStep>),
}

impl From<Heard> for Tapped {
    fn from(heard: Heard) -> Self {
        match heard {
            Heard::Message(meta) => Self::Message(meta),
            Heard::Step(step) => Self::Step(step),
        }
    }
}

#[derive(Debug)]
struct Listener {
    filter: TapFilter,
    sender: mpsc::Sender<Entry>,
    left_out: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Entry {
    heard: Heard,
    /// How many were left out before it.
    left_out: u64,
}

/// All taps of a bus.
#[derive(Debug, Default)]
pub(super) struct Taps(Mutex<Vec<Listener>>);

impl Taps {
    /// Adds a listener for as long as the [`Tap`] lives.
    pub fn listen(self: &Arc<Self>, filter: TapFilter) -> Tap {
        let (sender, receiver) = mpsc::channel(HELD);
        let left_out = Arc::new(AtomicU64::new(0));
        self.lock().push(Listener {
            filter,
            sender,
            left_out: Arc::clone(&left_out),
        });
        Tap {
            receiver,
            left_out,
            next: None,
            taps: Arc::downgrade(self),
            watch: None,
        }
    }

    /// Tells whoever listens.
    pub fn offer(&self, metas: &[MessageMeta]) {
        let listeners = self.lock();
        if listeners.is_empty() {
            return;
        }
        for meta in metas {
            let mut shared: Option<Arc<MessageMeta>> = None;
            for listener in listeners.iter().filter(|l| l.filter.wants(meta)) {
                let meta = shared.get_or_insert_with(|| Arc::new(meta.clone()));
                listener.offer(Heard::Message(Arc::clone(meta)));
            }
        }
    }

    /// Tells whoever listens to these queues.
    pub fn offer_steps(&self, steps: Vec<QueueStep>) {
        if steps.is_empty() {
            return;
        }
        let listeners = self.lock();
        for step in steps {
            let step = Arc::new(step);
            for listener in listeners.iter().filter(|l| l.filter.wants_step(&step)) {
                listener.offer(Heard::Step(Arc::clone(&step)));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    fn offer(&self, heard: Heard) {
        // Taken and put back by one thread at a time: whoever holds the list. The other side only takes.
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        let entry = Entry { heard, left_out };
        if self.sender.try_send(entry).is_err() {
            self.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
        }
    }
}

/// One listener's end.
#[derive(Debug)]
pub struct Tap {
    receiver: mpsc::Receiver<Entry>,
    left_out: Arc<AtomicU64>,
    /// What comes after what was said to be left out.
    next: Option<Heard>,
    taps: Weak<Taps>,
    /// Dropped with the tap.
    pub(super) watch: Option<QueueWatch>,
}

/// A queue that is watched for as long as this lives.
#[derive(Debug)]
pub(super) struct QueueWatch {
    bus: Weak<Shared>,
    name: String,
}

impl QueueWatch {
    pub fn new(bus: &Arc<Shared>, name: &str) -> Self {
        for shard in bus.shards() {
            let name = name.to_owned();
            // Whatever is said after this call comes after it in the router too.
            drop(shard.ask(move |router, _, _| router.watch_queue(&name)));
        }
        Self {
            bus: Arc::downgrade(bus),
            name: name.to_owned(),
        }
    }
}

impl Drop for QueueWatch {
    fn drop(&mut self) {
        let Some(bus) = self.bus.upgrade() else {
            return;
        };
        for shard in bus.shards() {
            let name = self.name.clone();
            drop(shard.ask(move |router, _, _| router.unwatch_queue(&name)));
        }
    }
}

impl Tap {
    /// The next one, or how many are missing before it; `None` when the bus has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Tapped> {
        if let Some(heard) = self.next.take() {
            return Some(heard.into());
        }
        let entry = match self.receiver.try_recv() {
            Ok(entry) => entry,
            // Nothing may come for a long time: what is missing is told now.
            Err(_) => match self.left_out.swap(0, Ordering::Relaxed) {
                0 => self.receiver.recv().await?,
                left_out => return Some(Tapped::LeftOut(left_out)),
            },
        };
        if entry.left_out == 0 {
            return Some(entry.heard.into());
        }
        self.next = Some(entry.heard);
        Some(Tapped::LeftOut(entry.left_out))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(taps) = self.taps.upgrade() {
            taps.lock()
                .retain(|listener| !Arc::ptr_eq(&listener.left_out, &self.left_out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_bus::message::Status;
    use agentd_bus::router::QueueStepKind;

    fn meta(seq: u64, uid: u32, from: u8, topic: Option<&str>) -> MessageMeta {
        MessageMeta {
            seq,
            uid: Some(uid),
            from: PeerId([from; 16]),
            from_name: format!("a{from}").into(),
            to: None,
            topic: topic.map(Into::into),
            kind: "publish",
            what: "note".into(),
            bytes: 1,
            correlation: 0,
            at_ns: 0,
            outcome: Status::OK,
            receivers: 0,
        }
    }

    async fn next(tap: &mut Tap) -> Result<u64, u64> {
        match tap.next().await.expect("the bus lives") {
            Tapped::Message(meta) => Ok(meta.seq),
            Tapped::LeftOut(n) => Err(n),
            Tapped::Step(step) => panic!("nobody asked for {step:?}"),
        }
    }

    #[tokio::test]
    async fn who_listens_to_a_queue_hears_its_steps_and_nothing_else() {
        let taps = Arc::new(Taps::default());
        let mut tap = taps.listen(TapFilter {
            uid: Some(1000),
            queue: Some("builds".into()),
            ..TapFilter::default()
        });
        let mut other = taps.listen(TapFilter::default());
        let step = |uid, queue: &str, message| QueueStep {
            uid,
            queue: queue.into(),
            message,
            kind: QueueStepKind::Acked,
            by: None,
            deliveries: 1,
            bytes: 3,
            at_ns: 0,
        };
        taps.offer(&[meta(1, 1000, 1, Some("queue.builds"))]);
        taps.offer_steps(vec![
            step(1001, "builds", 1),
            step(1000, "tests", 2),
            step(1000, "builds", 3),
        ]);
        match tap.next().await {
            Some(Tapped::Step(step)) => assert_eq!(step.message, 3),
            heard => panic!("{heard:?}"),
        }
        assert_eq!(next(&mut other).await, Ok(1));
        assert!(tap.receiver.is_empty() && other.receiver.is_empty());
    }

    #[tokio::test]
    async fn a_listener_hears_only_what_it_may_and_wants() {
        let taps = Arc::new(Taps::default());
        let mut mine = taps.listen(TapFilter {
            uid: Some(1000),
            topic: Some("build.*".into()),
            ..TapFilter::default()
        });
        let mut of_one = taps.listen(TapFilter {
            peer: Some(PeerId([2; 16])),
            ..TapFilter::default()
        });
        taps.offer(&[
            meta(1, 1000, 1, Some("build.a")),
            meta(2, 1001, 2, Some("build.a")),
            meta(3, 1000, 1, Some("test.a")),
            meta(4, 1000, 2, Some("build.b")),
        ]);
        assert_eq!(
            (next(&mut mine).await, next(&mut mine).await),
            (Ok(1), Ok(4))
        );
        assert_eq!(
            (next(&mut of_one).await, next(&mut of_one).await),
            (Ok(2), Ok(4))
        );
        drop((mine, of_one));
        assert!(taps.lock().is_empty());
    }

    #[tokio::test]
    async fn what_finds_the_queue_full_is_counted_and_told_where_it_is_missing() {
        let taps = Arc::new(Taps::default());
        let mut tap = taps.listen(TapFilter::default());
        let held = HELD as u64;
        for seq in 0..held + 5 {
            taps.offer(&[meta(seq, 1000, 1, None)]);
        }
        assert_eq!(next(&mut tap).await, Ok(0));
        taps.offer(&[meta(9_999, 1000, 1, None)]);
        for seq in 1..held {
            assert_eq!(next(&mut tap).await, Ok(seq));
        }
        assert_eq!(next(&mut tap).await, Err(5));
        assert_eq!(next(&mut tap).await, Ok(9_999));
        for seq in 0..=held {
            taps.offer(&[meta(seq, 1000, 1, None)]);
        }
        for seq in 0..held {
            assert_eq!(next(&mut tap).await, Ok(seq));
        }
        assert_eq!(
            next(&mut tap).await,
            Err(1),
            "told although nothing follows"
        );
    }
}
