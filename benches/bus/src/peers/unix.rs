//! What the kernel has for this: AF_UNIX sockets and pipes.
//!
//! * `seqpacket`: one `send` and one `recv` per message.
//! * `stream`: messages with a length in front, gathered into writes of 64 KiB; the receiver reads as much as is there.
//! * `pipe`: as the stream, with one `write` per message.
//!
//! Buffers are as large as root may make them. Busy means MSG_DONTWAIT (O_NONBLOCK) in a loop.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

/// Socket and pipe buffers; what a batched writer gathers is a part of it.
const BUFFER: usize = 1 << 20;
const BATCH: usize = 64 << 10;
/// Length in front of each message of a stream.
const PREFIX: usize = 4;

/// A pair of descriptors of which each process takes one.
struct Pair {
    write: Cell<Option<OwnedFd>>,
    read: Cell<Option<OwnedFd>>,
    waiting: Waiting,
}

impl Pair {
    fn new((write, read): (OwnedFd, OwnedFd), setup: &Setup) -> Self {
        Self {
            write: Cell::new(Some(write)),
            read: Cell::new(Some(read)),
            waiting: setup.waiting,
        }
    }

    fn sockets(kind: SocketType, setup: &Setup) -> Result<Self> {
        let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .context("make a pair of sockets")?;
        // Without the right to go over the system's limit, the limit it is.
        if rustix::net::sockopt::set_socket_send_buffer_size_force(&pair.0, BUFFER).is_err() {
            rustix::net::sockopt::set_socket_send_buffer_size(&pair.0, BUFFER)
                .context("set the send buffer")?;
        }
        Ok(Self::new(pair, setup))
    }

    fn write_end(&self) -> Result<OwnedFd> {
        self.write.take().context("the writing end was taken")
    }

    fn read_end(&self) -> Result<OwnedFd> {
        self.read.take().context("the reading end was taken")
    }
}

pub struct Seqpacket(Pair);

impl Transport for Seqpacket {
    type Sender = Packets;
    type Receiver = Packets;

    fn prepare(setup: &Setup) -> Result<Self> {
        Pair::sockets(SocketType::SEQPACKET, setup).map(Self)
    }

    fn receiver(&self) -> Result<Packets> {
        Ok(Packets {
            fd: self.0.read_end()?,
            buffer: vec![0; 64 << 10],
            flags: match self.0.waiting {
                Waiting::Busy => RecvFlags::DONTWAIT,
                Waiting::Adaptive | Waiting::Blocking => RecvFlags::empty(),
            },
        })
    }

    fn sender(&self) -> Result<Packets> {
        Ok(Packets {
            fd: self.0.write_end()?,
            buffer: Vec::new(),
            flags: RecvFlags::empty(),
        })
    }
}

/// An end of the packet socket.
#[derive(Debug)]
pub struct Packets {
    fd: OwnedFd,
    buffer: Vec<u8>,
    flags: RecvFlags,
}

impl Sender for Packets {
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        rustix::net::send(&self.fd, payload, SendFlags::empty()).context("send")?;
        Ok(())
    }
}

impl Receiver for Packets {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), self.flags) {
                Ok((_, len)) => return Ok(see(&self.buffer[..len])),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno).context("recv"),
            }
        }
    }
}

pub struct Stream(Pair);

impl Transport for Stream {
    type Sender = Writer;
    type Receiver = Reader;

    fn prepare(setup: &Setup) -> Result<Self> {
        Pair::sockets(SocketType::STREAM, setup).map(Self)
    }

    fn receiver(&self) -> Result<Reader> {
        Reader::new(self.0.read_end()?, self.0.waiting)
    }

    fn sender(&self) -> Result<Writer> {
        Ok(Writer::new(self.0.write_end()?, BATCH))
    }
}

pub struct Pipe(Pair);

impl Transport for Pipe {
    type Sender = Writer;
    type Receiver = Reader;

    fn prepare(setup: &Setup) -> Result<Self> {
        let (read, write) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
        rustix::pipe::fcntl_setpipe_size(&write, BUFFER).context("set the pipe's size")?;
        Ok(Self(Pair::new((write, read), setup)))
    }

    fn receiver(&self) -> Result<Reader> {
        Reader::new(self.0.read_end()?, self.0.waiting)
    }

    fn sender(&self) -> Result<Writer> {
        Ok(Writer::new(self.0.write_end()?, 0))
    }
}

/// Writes once more than `batch` bytes are gathered.
#[derive(Debug)]
pub struct Writer {
    fd: OwnedFd,
    gathered: Vec<u8>,
    batch: usize,
}

impl Writer {
    fn new(fd: OwnedFd, batch: usize) -> Self {
        Self {
            fd,
            gathered: Vec::with_capacity(2 * BATCH),
            batch,
        }
    }
}

impl Sender for Writer {
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let len = u32::try_from(payload.len()).context("a message of 4 GiB")?;
        self.gathered.extend_from_slice(&len.to_le_bytes());
        self.gathered.extend_from_slice(payload);
        if self.gathered.len() > self.batch {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let mut left = self.gathered.as_slice();
        while !left.is_empty() {
            match rustix::io::write(&self.fd, left) {
                Ok(written) => left = &left[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("write"),
            }
        }
        self.gathered.clear();
        Ok(())
    }
}

/// Reads what is there, and takes it apart.
#[derive(Debug)]
pub struct Reader {
    fd: OwnedFd,
    buffer: Vec<u8>,
    /// What of the buffer is not taken apart yet.
    from: usize,
    to: usize,
}

impl Reader {
    fn new(fd: OwnedFd, waiting: Waiting) -> Result<Self> {
        if waiting == Waiting::Busy {
            rustix::io::ioctl_fionbio(&fd, true).context("make the descriptor non-blocking")?;
        }
        Ok(Self {
            fd,
            buffer: vec![0; 4 * BATCH],
            from: 0,
            to: 0,
        })
    }

    /// The whole message at `from`, if it is there: where it ends.
    fn whole(&self) -> Option<usize> {
        let prefix = self.buffer[self.from..self.to].first_chunk::<PREFIX>()?;
        let end = self.from + PREFIX + u32::from_le_bytes(*prefix) as usize;
        (end <= self.to).then_some(end)
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        loop {
            match rustix::io::read(self.fd.as_fd(), &mut self.buffer[self.to..]) {
                Ok(0) => bail!("the writing end is closed"),
                Ok(read) => {
                    self.to += read;
                    return Ok(());
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno).context("read"),
            }
        }
    }
}

impl Receiver for Reader {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let end = loop {
            match self.whole() {
                Some(end) => break end,
                None => self.fill()?,
            }
        };
        let payload = &self.buffer[self.from + PREFIX..end];
        self.from = end;
        Ok(see(payload))
    }
}
