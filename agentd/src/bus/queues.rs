//! Queues and stored messages through a port: for the user (`agentctl bus queue`) and for agents that speak MCP.
//!
//! Goes through the same verbs, rights and bounds as an agent's own connection. What a port takes from a queue it holds
//! until it says what became of it, the visibility time-out passes or its agent ends.

use agentd_bus::message::{
    BATCH_MAX, BatchBuilder, Control, DeadAction, Deliveries, Numbers, Outcome, QueuePart,
    ReplayFrom, Replayed, Status, StreamKind,
};
use agentd_bus::router::{QueueStatus, TopicStatus};

use super::port::{AgentPort, malformed};
use super::server::BusServer;
use super::types::BusError;

/// A message of a queue, as it lies there or as it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Of a message that was taken: what to settle it by. Of a dead letter that is looked at: its reason.
    pub tag: u64,
    pub id: u64,
    pub sent_ns: u64,
    pub priority: u8,
    pub deliveries: u16,
    pub data: Vec<u8>,
}

impl AgentPort {
    /// The number of the queue called `name`, which is made with the defaults if it is not there.
    pub async fn queue(&self, name: &str) -> Result<u32, BusError> {
        let result = self.control(Control::QueueOpen { name }).await?;
        number(&result)
    }

    /// Puts one message in; its id.
    pub async fn queue_put(&self, name: &str, priority: u8, data: &[u8]) -> Result<u64, BusError> {
        let queue = self.queue(name).await?;
        let mut batch = BatchBuilder::new();
        if !batch.push(priority, data) {
            let text = format!("priority {priority} is none: 0 lowest to 3 urgent");
            return Err(BusError::new(Status::MALFORMED, text));
        }
        let messages = batch.messages();
        let result = self.control(Control::Produce { queue, messages }).await?;
        let id = result.get(8..16).and_then(|bytes| bytes.try_into().ok());
        id.map(u64::from_le_bytes).ok_or_else(short)
    }

    /// Takes up to `max` messages that are there now.
    pub async fn queue_take(&self, name: &str, max: u32) -> Result<Vec<Queued>, BusError> {
        let queue = self.queue(name).await?;
        let result = self.control(Control::QueueTake { queue, max }).await?;
        queued(&result)
    }

    /// Says what became of messages that this port took; of how many that was heard in time.
    pub async fn queue_settle(
        &self,
        name: &str,
        outcome: Outcome,
        tags: &[u64],
    ) -> Result<u32, BusError> {
        let queue = self.queue(name).await?;
        let bytes = bytes_of(tags)?;
        let tags = Numbers::parse(&bytes).map_err(malformed)?;
        let result = self.control(Control::Settle {
            queue,
            outcome,
            tags,
        });
        number(&result.await?)
    }

    /// Messages of a queue from id `from` on, as they lie.
    pub async fn queue_peek(
        &self,
        name: &str,
        part: QueuePart,
        from: u64,
        max: u32,
    ) -> Result<Vec<Queued>, BusError> {
        let queue = self.queue(name).await?;
        let result = self.control(Control::QueuePeek {
            queue,
            part,
            max,
            from,
        });
        queued(&result.await?)
    }

    /// Dead letters live again or go for good, of no ids all; how many.
    pub async fn queue_dead(
        &self,
        name: &str,
        action: DeadAction,
        ids: &[u64],
    ) -> Result<u32, BusError> {
        let queue = self.queue(name).await?;
        let bytes = bytes_of(ids)?;
        let ids = Numbers::parse(&bytes).map_err(malformed)?;
        number(
            &self
                .control(Control::QueueDead { queue, action, ids })
                .await?,
        )
    }

    /// The queue goes with all that it holds.
    pub async fn queue_drop(&self, name: &str) -> Result<(), BusError> {
        let queue = self.queue(name).await?;
        self.control(Control::QueueDrop { queue }).await.map(drop)
    }

    /// Stored messages, and from which offset on to ask for more.
    pub async fn replay(
        &self,
        kind: StreamKind,
        name: &str,
        from: ReplayFrom,
        max: u32,
    ) -> Result<(u64, Vec<Replayed>), BusError> {
        let control = Control::Replay {
            kind,
            from,
            max,
            name,
        };
        Replayed::parse_list(&self.control(control).await?).map_err(malformed)
    }
}

impl BusServer {
    /// The queues of a user, or of all, by user and name.
    pub async fn queues(&self, uid: Option<u32>) -> Vec<QueueStatus> {
        let mut list = Vec::new();
        for shard in self.shards() {
            let asked = shard.ask(move |router, _, _| router.queues(uid));
            list.extend(asked.await.unwrap_or_default());
        }
        list.sort_by(|a, b| (a.uid, &a.name).cmp(&(b.uid, &b.name)));
        list
    }

    /// The topics of a user, or of all, by user and name.
    pub async fn topics(&self, uid: Option<u32>) -> Vec<TopicStatus> {
        let mut list = Vec::new();
        for shard in self.shards() {
            let asked = shard.ask(move |router, _, _| router.topics(uid));
            list.extend(asked.await.unwrap_or_default());
        }
        list.sort_by(|a, b| (a.uid, &a.topic).cmp(&(b.uid, &b.topic)));
        list
    }
}

fn short() -> BusError {
    BusError::new(Status::MALFORMED, "the bus gave a short answer")
}

fn number(result: &[u8]) -> Result<u32, BusError> {
    let bytes = result.get(..4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_le_bytes).ok_or_else(short)
}

fn bytes_of(numbers: &[u64]) -> Result<Vec<u8>, BusError> {
    if numbers.len() > BATCH_MAX {
        let text = format!("{} at a time; at most {BATCH_MAX}", numbers.len());
        return Err(BusError::new(Status::MALFORMED, text));
    }
    Ok(numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
}

fn queued(result: &[u8]) -> Result<Vec<Queued>, BusError> {
    let deliveries = Deliveries::parse(result).map_err(malformed)?;
    let list = deliveries.iter().map(|delivery| Queued {
        tag: delivery.tag,
        id: delivery.id,
        sent_ns: delivery.sent_ns,
        priority: delivery.priority,
        deliveries: delivery.deliveries,
        data: delivery.data.to_vec(),
    });
    Ok(list.collect())
}
