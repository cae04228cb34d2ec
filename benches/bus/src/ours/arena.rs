//! Our arena over our lane: payloads in blocks of a sealed segment, references in the ring, copied out by the receiver.
//!
//! Segments travel as descriptors over a socket between the two processes, as they would through the bus. All options are
//! the library's own.

use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use agentd_bus::arena::segment::{Announce, FdArrivals, MemfdSupply, SegmentOptions};
use agentd_bus::arena::{BulkOptions, BulkReceiver, BulkSender};
use agentd_bus::shm::memfd::Mapping;
use anyhow::{Context, Result};
use bench_kit::{Receiver, Sender, Setup, Transport};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::lane::{self, FOREVER, TAG};

/// Slots of the lane below: more than there are blocks under way.
const SLOTS: usize = 1024;
/// What the receiver maps of this sender at most.
const LIMIT: u64 = 1 << 30;

pub struct Arena {
    lane: lane::Lane,
    sockets: Cell<Option<(OwnedFd, OwnedFd)>>,
}

/// The segments' way to the other process.
#[derive(Debug)]
struct Socket(OwnedFd);

type Next = Box<dyn FnMut(Option<Instant>) -> Option<(u32, OwnedFd)> + Send>;

pub struct Out(BulkSender<Mapping, Mapping, MemfdSupply<Socket>>);

pub struct In {
    receiver: BulkReceiver<Mapping, Mapping, FdArrivals<Next>>,
    buffer: Vec<u8>,
}

impl Announce for Socket {
    fn segment(&mut self, number: u32, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let number = number.to_le_bytes();
        sendmsg(
            &self.0,
            &[IoSlice::new(&number)],
            &mut control,
            SendFlags::empty(),
        )?;
        Ok(())
    }

    fn dropped(&mut self, _: u32) {}
}

/// The next segment on the socket. Only asked for what has been announced, so it need not mind the deadline.
fn arrival(socket: &OwnedFd) -> Option<(u32, OwnedFd)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut number = [0; 4];
    let received = recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut number)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    if !received.is_ok_and(|received| received.bytes == number.len()) {
        return None;
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Some((u32::from_le_bytes(number), fd?))
}

impl Transport for Arena {
    type Sender = Out;
    type Receiver = In;

    fn prepare(setup: &Setup) -> Result<Self> {
        let lane = lane::Lane::prepare(&Setup {
            slots: SLOTS,
            ..setup.clone()
        })?;
        let sockets = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        Ok(Self {
            lane,
            sockets: Cell::new(Some(sockets.context("make a pair of sockets")?)),
        })
    }

    fn receiver(&self) -> Result<In> {
        let (_, socket) = self.sockets.take().context("the receiver was made")?;
        let next: Next = Box::new(move |_| arrival(&socket));
        Ok(In {
            receiver: BulkReceiver::new(self.lane.receiver()?.0, FdArrivals::new(next), LIMIT),
            buffer: Vec::new(),
        })
    }

    fn sender(&self) -> Result<Out> {
        let (socket, _) = self.sockets.take().context("the sender was made")?;
        let supply = MemfdSupply::new(SegmentOptions::default(), Socket(socket));
        let lane = self.lane.sender()?.0;
        Ok(Out(BulkSender::new(lane, supply, BulkOptions::default())?))
    }
}

impl Sender for Out {
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        Ok(self.0.send(TAG, payload, FOREVER)?)
    }
}

impl Receiver for In {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        self.receiver.recv(&mut self.buffer, FOREVER)?;
        Ok(see(&self.buffer))
    }
}
