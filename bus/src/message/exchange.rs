//! What agents say to each other: requests, responses, events. Pure.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::{ERROR_MAX, EVENT_TYPE_MAX, METHOD_MAX, MessageError, Status, TOPIC_MAX};
use crate::wire::{Reader, check_len};

/// `timeout_ms u32 · method_len u16 · 0 u16 · method · params`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// 1 to [`METHOD_MAX`] bytes.
    pub method: &'a str,
    /// Opaque to the bus; JSON by custom.
    pub params: &'a [u8],
    /// How long the requester waits, from the moment the bus reads it. 0 = the bus's default.
    pub timeout_ms: u32,
}

impl<'a> Request<'a> {
    /// Reads untrusted bytes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(payload);
        let timeout_ms = reader.u32("timeout")?;
        let method_len = reader.u16("method length")?;
        reader.zero(2, "request field at 6")?;
        let method = reader.text(usize::from(method_len), METHOD_MAX, "method")?;
        let request = Self {
            method,
            params: reader.rest(),
            timeout_ms,
        };
        request.check()?;
        Ok(request)
    }

    /// The payload's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let mut out = Vec::with_capacity(8 + self.method.len() + self.params.len());
        self.encode_into(&mut out)?;
        Ok(out)
    }

    /// Appends them to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), MessageError> {
        self.check()?;
        out.extend_from_slice(&self.timeout_ms.to_le_bytes());
        out.extend_from_slice(&(self.method.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.method.as_bytes());
        out.extend_from_slice(self.params);
        Ok(())
    }

    fn check(&self) -> Result<(), MessageError> {
        check_len(self.method.len(), METHOD_MAX, "method")?;
        if self.method.is_empty() {
            Err(MessageError::Missing { what: "method" })
        } else {
            Ok(())
        }
    }
}

/// `status u32 · error_len u16 · 0 u16 · error · result`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    pub status: Status,
    /// At most [`ERROR_MAX`] bytes; empty when the status is [`Status::OK`].
    pub error: &'a str,
    pub result: &'a [u8],
}

impl<'a> Response<'a> {
    /// A success.
    pub fn ok(result: &'a [u8]) -> Self {
        Self {
            status: Status::OK,
            error: "",
            result,
        }
    }

    /// Reads untrusted bytes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(payload);
        let status = Status(reader.u32("status")?);
        let error_len = reader.u16("error length")?;
        reader.zero(2, "response field at 6")?;
        let error = reader.text(usize::from(error_len), ERROR_MAX, "error text")?;
        Ok(Self {
            status,
            error,
            result: reader.rest(),
        })
    }

    /// The payload's bytes as a frame has them: a short one is put together without memory of its own in between.
    pub fn encode_shared(&self) -> Result<Arc<[u8]>, MessageError> {
        check_len(self.error.len(), ERROR_MAX, "error text")?;
        let len = 8 + self.error.len() + self.result.len();
        let mut short = [0; 64];
        if len > short.len() {
            return Ok(self.encode()?.into());
        }
        let bytes = &mut short[..len];
        bytes[..4].copy_from_slice(&self.status.0.to_le_bytes());
        bytes[4..6].copy_from_slice(&(self.error.len() as u16).to_le_bytes());
        let (error, result) = bytes[8..].split_at_mut(self.error.len());
        error.copy_from_slice(self.error.as_bytes());
        result.copy_from_slice(self.result);
        Ok(Arc::from(&*bytes))
    }

    /// The payload's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        check_len(self.error.len(), ERROR_MAX, "error text")?;
        let mut out = Vec::with_capacity(8 + self.error.len() + self.result.len());
        out.extend_from_slice(&self.status.0.to_le_bytes());
        out.extend_from_slice(&(self.error.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.error.as_bytes());
        out.extend_from_slice(self.result);
        Ok(out)
    }
}

/// `priority u8 · 0 u8 · type_len u16 · topic_len u16 · 0 u16 · type · topic · data`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// 0 lowest to 3 urgent.
    pub priority: u8,
    /// What kind of event, for the reader; may be empty. At most [`EVENT_TYPE_MAX`] bytes.
    pub event_type: &'a str,
    /// Empty for a message to one agent's inbox. At most [`TOPIC_MAX`] bytes.
    pub topic: &'a str,
    pub data: &'a [u8],
}

impl<'a> Event<'a> {
    /// An event of normal priority.
    pub const fn normal(event_type: &'a str, topic: &'a str, data: &'a [u8]) -> Self {
        Self {
            priority: 1,
            event_type,
            topic,
            data,
        }
    }

    /// Reads untrusted bytes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(payload);
        let priority = reader.u8("priority")?;
        reader.zero(1, "event field at 1")?;
        let type_len = reader.u16("event type length")?;
        let topic_len = reader.u16("topic length")?;
        reader.zero(2, "event field at 6")?;
        let event_type = reader.text(usize::from(type_len), EVENT_TYPE_MAX, "event type")?;
        let topic = reader.text(usize::from(topic_len), TOPIC_MAX, "topic")?;
        let event = Self {
            priority,
            event_type,
            topic,
            data: reader.rest(),
        };
        event.check()?;
        Ok(event)
    }

    /// The payload's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let mut out =
            Vec::with_capacity(8 + self.event_type.len() + self.topic.len() + self.data.len());
        self.encode_into(&mut out)?;
        Ok(out)
    }

    /// Appends them to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), MessageError> {
        self.check()?;
        out.extend_from_slice(&[self.priority, 0]);
        out.extend_from_slice(&(self.event_type.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.topic.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.event_type.as_bytes());
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(self.data);
        Ok(())
    }

    fn check(&self) -> Result<(), MessageError> {
        check_len(self.event_type.len(), EVENT_TYPE_MAX, "event type")?;
        check_len(self.topic.len(), TOPIC_MAX, "topic")?;
        if self.priority > 3 {
            return Err(MessageError::Unknown {
                what: "priority",
                found: u32::from(self.priority),
                known: "0 to 3",
            });
        }
        Ok(())
    }
}
