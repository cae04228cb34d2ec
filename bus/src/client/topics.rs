//! What a publisher and a follower can say beyond the plain call: keep this for later, lose by that policy, store it first;
//! and groups.
//!
//! Any thread; each call waits for the bus's answer. Fails with [`ClientError`].

use super::{Client, ClientError, ok_result};
use crate::frame::{PeerId, flags, kind};
use crate::message::{
    Control, Delivery, Event, GROUP_PREFIX, ReplayFrom, Replayed, StreamKind, TopicSpec,
};
use crate::protect::policy::Addressee;

/// How a message is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishOptions {
    /// Those who subscribe later get it too; with empty data, what the topic retains is forgotten.
    pub retain: bool,
    /// The call returns once it is stored; refused for a topic that is not durable.
    pub durable: bool,
    /// 0 lowest, 2 high, 3 urgent; `None`: normal.
    pub priority: Option<u8>,
}

impl Client {
    /// As [`Client::publish`], with options.
    pub fn publish_with(
        &self,
        topic: &str,
        event_type: &str,
        data: &[u8],
        options: PublishOptions,
    ) -> Result<u32, ClientError> {
        let priority = options.priority.unwrap_or(1);
        let payload = Event {
            priority,
            event_type,
            topic,
            data,
        }
        .encode()?;
        let mut bits = u32::from(priority);
        if options.retain {
            bits |= flags::RETAIN;
        }
        if options.durable {
            bits |= flags::DURABLE;
        }
        let to = (PeerId::BUS, Addressee::Topic(topic));
        let answer = self.acknowledged_with(kind::EVENT, bits, to, payload, None)?;
        let result = ok_result(&answer)?.result;
        Ok(result.try_into().map_or(0, u32::from_le_bytes))
    }

    /// What the bus keeps of a topic from now on.
    pub fn declare_topic(&self, topic: &str, spec: TopicSpec) -> Result<(), ClientError> {
        let answer = self.control(Control::TopicDeclare { spec, topic })?;
        ok_result(&answer).map(drop)
    }

    /// Stored messages of a durable topic or queue, at most `max`, and from which offset on to ask for more.
    pub fn replay(
        &self,
        kind: StreamKind,
        name: &str,
        from: ReplayFrom,
        max: u32,
    ) -> Result<(u64, Vec<Replayed>), ClientError> {
        let answer = self.control(Control::Replay {
            kind,
            from,
            max,
            name,
        })?;
        Ok(Replayed::parse_list(ok_result(&answer)?.result)?)
    }

    /// From now on what is sent to the group comes into this agent's inbox, its topic `group:NAME`.
    pub fn join_group(&self, name: &str) -> Result<(), ClientError> {
        let delivery = Delivery::Inbox;
        let answer = self.control(Control::GroupJoin { delivery, name })?;
        ok_result(&answer).map(drop)
    }

    /// Undoes [`Self::join_group`].
    pub fn leave_group(&self, name: &str) -> Result<(), ClientError> {
        let delivery = Delivery::Inbox;
        let answer = self.control(Control::GroupLeave { delivery, name })?;
        ok_result(&answer).map(drop)
    }

    /// A message to everybody in the group but this agent; how many took it.
    pub fn send_to_group(
        &self,
        name: &str,
        event_type: &str,
        data: &[u8],
    ) -> Result<u32, ClientError> {
        let topic = format!("{GROUP_PREFIX}{name}");
        let payload = Event::normal(event_type, &topic, data).encode()?;
        let to = (PeerId::BUS, Addressee::All);
        let bits = kind::EVENT | kind::BROADCAST;
        let answer = self.acknowledged(bits, to, payload, None)?;
        let result = ok_result(&answer)?.result;
        Ok(result.try_into().map_or(0, u32::from_le_bytes))
    }
}
