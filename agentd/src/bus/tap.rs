//! Who listens in on what the router does: message metadata, filtered per listener, never contents.
//!
//! A tap never holds anybody up. Each has a bounded queue; what finds it full is left out, counted, and told with the
//! next entry or as soon as the queue is empty. Offering happens under the router's lock, so the entries have its order;
//! without taps it costs one look. Any thread; can't fail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use agentd_bus::frame::PeerId;
use agentd_bus::router::MessageMeta;
use agentd_bus::topic;
use tokio::sync::mpsc;

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
}

impl TapFilter {
    fn wants(&self, meta: &MessageMeta) -> bool {
        let is_side =
            |peer| meta.from == peer || meta.to.as_ref().is_some_and(|(to, _)| *to == peer);
        let covers = |pattern: &String| {
            let topic = meta.topic.as_deref();
            topic.is_some_and(|topic| topic::matches(pattern, topic))
        };
        self.uid.is_none_or(|uid| meta.uid == Some(uid))
            && self.peer.is_none_or(is_side)
            && self.topic.as_ref().is_none_or(covers)
    }
}

/// What a listener hears.
#[derive(Debug)]
pub enum Tapped {
    Message(Arc<MessageMeta>),
    /// So many messages found the queue full.
    LeftOut(u64),
}

#[derive(Debug)]
struct Listener {
    filter: TapFilter,
    sender: mpsc::Sender<Entry>,
    left_out: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Entry {
    meta: Arc<MessageMeta>,
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
                listener.offer(meta);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    fn offer(&self, meta: &Arc<MessageMeta>) {
        // Taken and put back by one thread at a time: whoever holds the list. The other side only takes.
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        let entry = Entry {
            meta: Arc::clone(meta),
            left_out,
        };
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
    /// The message that comes after what was said to be left out.
    next: Option<Arc<MessageMeta>>,
    taps: Weak<Taps>,
}

impl Tap {
    /// The next message, or how many are missing before it; `None` when the bus has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Tapped> {
        if let Some(meta) = self.next.take() {
            return Some(Tapped::Message(meta));
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
            return Some(Tapped::Message(entry.meta));
        }
        self.next = Some(entry.meta);
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
        }
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
