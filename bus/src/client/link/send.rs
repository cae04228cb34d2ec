//! Frames on their way out: onto the socket, or into the route where the connection has one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{PoisonError, TryLockError};

use agentd_kernel::fdpass;
use rustix::net::SendFlags;

use super::super::ClientError;
use super::Link;
use crate::frame::{Frame, PeerId, WithFd, kind};
use crate::message::Control;

/// Bytes of a heartbeat that the socket has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Writer {
    tail: Vec<u8>,
}

impl Link {
    /// Sends one frame whole; waits while the bus is not reading.
    pub fn send(&self, frame: Frame, fd: Option<&OwnedFd>) -> Result<(), ClientError> {
        match self.route.get() {
            Some(route) if fd.is_none() && !belongs_to_socket(&frame) => route.send(self, frame),
            _ => self.send_on_socket(frame, fd),
        }
    }

    /// As [`Self::send`], of a frame whose parts are there, and that does not [belong to the socket](belongs_to_socket).
    pub fn send_parts(
        &self,
        head: (u16, u32, u32),
        to: PeerId,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        if let Some(route) = self.route.get()
            && route.send_parts(self, head, to, payload)?
        {
            return Ok(());
        }
        let (bits, header_flags, correlation) = head;
        let mut frame = Frame::new(bits, to, correlation, payload);
        frame.header.flags = header_flags.into();
        self.send(frame, None)
    }

    /// As [`Self::send`], over the socket whatever there is besides.
    pub fn send_on_socket(
        &self,
        mut frame: Frame,
        fd: Option<&OwnedFd>,
    ) -> Result<(), ClientError> {
        frame.set_fd_flag(if fd.is_some() {
            WithFd::Yes
        } else {
            WithFd::No
        });
        let mut bytes = Vec::with_capacity(frame.wire_len());
        frame.encode_into(&mut bytes);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = std::mem::take(&mut writer.tail);
        let sent = self
            .write_all(&tail, None)
            .and_then(|()| self.write_all(&bytes, fd));
        sent.map_err(|error| ClientError::Closed {
            why: self.lock().closed.clone().unwrap_or(error.to_string()),
        })
    }

    fn write_all(&self, mut bytes: &[u8], mut fd: Option<&OwnedFd>) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = match fd {
                Some(fd) => fdpass::send(self.stream.as_fd(), bytes, &[fd.as_fd()])?,
                None => fdpass::send(self.stream.as_fd(), bytes, &[])?,
            };
            bytes = &bytes[sent..];
            fd = None;
        }
        Ok(())
    }

    /// Tells the bus something to which no answer is due. A lost connection has said it already.
    pub fn tell(&self, control: Control<'_>) {
        if let Ok(payload) = control.encode() {
            drop(self.send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None));
        }
    }

    /// Shows life without ever waiting. A thread that is writing shows it already.
    pub(super) fn beat(&self) {
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if writer.tail.is_empty() {
            Frame::new(kind::HEARTBEAT, PeerId::BUS, 0, []).encode_into(&mut writer.tail);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Ok(sent) = rustix::net::send(&self.stream, &writer.tail, flags) {
            writer.tail.drain(..sent);
        }
        // An error is either "would block" (the tail stays) or the end, which the reader sees too.
    }
}

/// What concerns things that come with descriptors, or the connection itself.
fn belongs_to_socket(frame: &Frame) -> bool {
    let bits = frame.kind();
    if bits & kind::COMMAND == 0 {
        return bits == kind::HEARTBEAT;
    }
    match Control::parse(&frame.payload) {
        Ok(control) => matches!(
            control,
            Control::Hello { .. }
                | Control::ChannelClosed { .. }
                | Control::AcceptLanes
                | Control::LogFollow { .. }
                | Control::LogUnfollow { .. }
                | Control::SegmentDropped { .. }
        ),
        Err(_) => true,
    }
}
