//! The hook by which every message's metadata reaches the record. Never its contents.
//!
//! Entries are queued in the router's own order and taken by one task. A slow sink holds up those who
//! send, not the router: they wait in [`Recorder::throttle`] while too many entries are queued.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc};

use agentd_bus::router::MessageMeta;

/// Where the metadata of messages goes.
pub trait MessageSink: Send + Sync + 'static {
    /// Takes one entry; waiting here is how it pushes back on the senders.
    fn record(&self, meta: MessageMeta) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Keeps nothing: for tests and tools that have no record.
#[derive(Clone, Copy, Debug)]
pub struct Unrecorded;

impl MessageSink for Unrecorded {
    fn record(&self, _meta: MessageMeta) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// Entries that may be queued before senders wait. One frame adds at most a few, so the queue stays
/// within this plus what one read of each connection can bring.
const AHEAD: usize = 1024;

/// The queue in front of the sink.
pub(super) struct Recorder {
    sender: mpsc::UnboundedSender<MessageMeta>,
    level: Arc<Level>,
}

#[derive(Default)]
struct Level {
    queued: AtomicUsize,
    fell: Notify,
}

impl Recorder {
    /// Starts the task that feeds `sink`; it ends when the recorder is dropped and the queue is empty.
    pub fn start(sink: Arc<dyn MessageSink>) -> Self {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let level = Arc::new(Level::default());
        let shared = level.clone();
        tokio::spawn(async move {
            while let Some(meta) = receiver.recv().await {
                sink.record(meta).await;
                shared.queued.fetch_sub(1, Ordering::AcqRel);
                shared.fell.notify_waiters();
            }
        });
        Self { sender, level }
    }

    pub fn push(&self, metas: Vec<MessageMeta>) {
        for meta in metas {
            self.level.queued.fetch_add(1, Ordering::AcqRel);
            if self.sender.send(meta).is_err() {
                // The runtime is shutting down and took the task with it.
                self.level.queued.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    pub async fn throttle(&self) {
        self.fall_to(AHEAD).await;
    }

    pub async fn flush(&self) {
        self.fall_to(0).await;
    }

    async fn fall_to(&self, most: usize) {
        loop {
            // Made before the look, so that a fall in between is not missed.
            let fell = self.level.fell.notified();
            if self.level.queued.load(Ordering::Acquire) <= most {
                return;
            }
            fell.await;
        }
    }
}
