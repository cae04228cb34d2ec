//! What goes into an agent's stdin, so that a restart of agentd neither loses nor repeats a byte of it.
//!
//! A byte is first written to a queue, a memfd, and from there moved into the agent's pipe by `splice` with the queue's
//! *own file position*. That position lives in the open file description, which the broker keeps for us: the kernel moves
//! the bytes and the position in one system call, and a killed agentd returns from that call or was never in it. So at
//! any instruction `position` = bytes that went into the pipe, `size` = bytes that were accepted, and the next agentd goes
//! on at the position. Bytes of one write are all in the queue before the first of them moves.
//!
//! Offsets count from the agent's start and never wrap; what was moved long ago is given back to the kernel as a hole.
//! Belongs to one task at a time, no privilege. Fails with the pipe's error once the agent has closed its stdin.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom};
use rustix::pipe::SpliceFlags;
use tokio::io::AsyncWrite;
use tokio::io::unix::AsyncFd;

/// Most bytes that one system call moves.
const MOVE_BYTES: usize = 64 << 10;
/// Bytes behind the position that stay: what the pipe may still refer to.
const REFERRED_BYTES: u64 = 1 << 20;
/// How much must be behind that before a hole is made.
const HOLE_BYTES: u64 = 4 << 20;
const PAGE_BYTES: u64 = 4096;

/// What has to be done before the pipe may close.
type Before = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The daemon's end of an agent's stdin. The stream ends when it is shut down and dropped.
pub struct Feed {
    pipe: AsyncFd<OwnedFd>,
    queue: OwnedFd,
    /// Bytes accepted.
    end: u64,
    /// Bytes given to the pipe.
    moved: u64,
    /// Bytes given back to the kernel.
    hole: u64,
    before_end: Option<Before>,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed")
            .field("end", &self.end)
            .field("moved", &self.moved)
            .finish_non_exhaustive()
    }
}

impl Feed {
    /// A feed for the pipe of a new agent.
    ///
    /// # Errors
    /// Whatever `memfd_create` or the runtime says.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC;
        // MFD_NOEXEC_SEAL is Linux 6.3; before it the queue is merely never executed.
        let queue = rustix::fs::memfd_create(c"agentd-input", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create(c"agentd-input", flags))?;
        Self::adopt(pipe, queue)
    }

    /// Goes on with the pipe and the queue of an earlier agentd.
    ///
    /// # Errors
    /// When `queue` is not a file, or the runtime can't watch `pipe`.
    pub fn adopt(pipe: OwnedFd, queue: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let size = rustix::fs::fstat(&queue)?.st_size;
        let moved = rustix::fs::seek(&queue, SeekFrom::Current(0))?;
        Ok(Self {
            pipe: super::watch_fd(pipe)?,
            queue,
            end: u64::try_from(size).unwrap_or(0),
            moved,
            hole: 0,
            before_end: None,
        })
    }

    /// Has `forget` run before the stream is ended on purpose: whoever else keeps the pipe must let go of it, or the agent
    /// sees no end of file.
    pub fn before_end(&mut self, forget: impl Future<Output = ()> + Send + 'static) {
        self.before_end = Some(Box::pin(forget));
    }

    /// The pipe and the queue, to be kept by the broker.
    pub fn kept_fds(&self) -> [(&'static str, BorrowedFd<'_>); 2] {
        [
            ("stdin", self.pipe.get_ref().as_fd()),
            ("stdin-queue", self.queue.as_fd()),
        ]
    }

    /// Bytes accepted since the agent's start.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that have gone into the pipe since the agent's start.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Forgets what was accepted behind `end`: the beginning of a write that was never finished. Bytes that have moved
    /// can't be taken back, so the feed ends there at the least.
    ///
    /// # Errors
    /// Whatever `ftruncate` says.
    pub fn truncate(&mut self, end: u64) -> io::Result<()> {
        let end = end.clamp(self.moved, self.end);
        rustix::fs::ftruncate(&self.queue, end)?;
        self.end = end;
        Ok(())
    }

    /// Accepts all of `bytes` at once, however much waits already. A flush moves them.
    ///
    /// # Errors
    /// Whatever `pwrite` says.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut at = self.end;
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = rustix::io::pwrite(&self.queue, rest, at)?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += n as u64;
            rest = &rest[n..];
        }
        self.end = at;
        Ok(())
    }

    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.moved < self.end {
            let mut guard = ready!(self.pipe.poll_write_ready(cx))?;
            let left = usize::try_from(self.end - self.moved).unwrap_or(MOVE_BYTES);
            let moved = guard.try_io(|pipe| {
                let flags = SpliceFlags::NONBLOCK;
                // Without an offset: the queue's own position counts, and moves with the bytes.
                Ok(rustix::pipe::splice(
                    &self.queue,
                    None,
                    pipe.get_ref(),
                    None,
                    left.min(MOVE_BYTES),
                    flags,
                )?)
            });
            match moved {
                Ok(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(Ok(n)) => self.moved += n as u64,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
        self.give_back();
        Poll::Ready(Ok(()))
    }

    /// Frees the memory of what the agent has read long ago.
    fn give_back(&mut self) {
        let behind = self.moved.saturating_sub(REFERRED_BYTES) / PAGE_BYTES * PAGE_BYTES;
        if behind < self.hole + HOLE_BYTES {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.queue, flags, self.hole, behind - self.hole) {
            Ok(()) => self.hole = behind,
            Err(error) => tracing::debug!("an agent's input keeps its memory: {error}"),
        }
    }
}

/// Accepted bytes are safe at once; a flush waits until they are in the agent's pipe.
impl AsyncWrite for Feed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // One write ahead at most: whoever feeds an agent that does not read waits here.
        ready!(self.poll_move(cx))?;
        self.append(bytes)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_move(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An agent that takes nothing any more is no reason to keep its stdin open.
        let moved = ready!(self.poll_move(cx));
        if let Some(forget) = &mut self.before_end {
            ready!(forget.as_mut().poll(cx));
            self.before_end = None;
        }
        Poll::Ready(moved)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn read(pipe: &mut std::fs::File, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        pipe.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// What the broker does: it holds the same open file descriptions.
    fn keep(feed: &Feed) -> [OwnedFd; 2] {
        feed.kept_fds()
            .map(|(_, fd)| fd.try_clone_to_owned().unwrap())
    }

    #[tokio::test]
    async fn a_successor_goes_on_behind_the_last_byte_that_moved() {
        let (agent, pipe) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut agent = std::fs::File::from(agent);
        let mut feed = Feed::new(pipe).unwrap();
        let big: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        feed.write_all(&big).await.unwrap();
        // Accepted, and as much of it moved as the pipe takes; then agentd dies.
        let full = tokio::time::timeout(std::time::Duration::from_millis(50), feed.flush()).await;
        assert!(full.is_err(), "a pipe does not take 300 kB");
        assert!(feed.moved() > 0);
        let [pipe, queue] = keep(&feed);
        drop(feed);
        let mut feed = Feed::adopt(pipe, queue).unwrap();
        assert_eq!(feed.end(), 300_000);
        let reader = std::thread::spawn(move || {
            let bytes = read(&mut agent, 300_003);
            (bytes, agent)
        });
        feed.write_all(b"end").await.unwrap();
        feed.flush().await.unwrap();
        let (bytes, mut agent) = reader.join().unwrap();
        assert!(bytes[..300_000] == big && bytes.ends_with(b"end"));
        drop(feed);
        assert_eq!(agent.read(&mut [0]).unwrap(), 0, "nobody feeds it any more");
    }

    #[tokio::test]
    async fn an_unfinished_write_is_forgotten_and_moved_bytes_stay() {
        let (agent, pipe) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut agent = std::fs::File::from(agent);
        let mut feed = Feed::new(pipe).unwrap();
        feed.write_all(b"one\n").await.unwrap();
        feed.flush().await.unwrap();
        feed.append(b"tw").unwrap();
        let [pipe, queue] = keep(&feed);
        drop(feed);
        let mut feed = Feed::adopt(pipe, queue).unwrap();
        feed.truncate(0).unwrap();
        assert_eq!((feed.moved(), feed.end()), (4, 4));
        feed.write_all(b"two\n").await.unwrap();
        feed.flush().await.unwrap();
        assert_eq!(read(&mut agent, 8), b"one\ntwo\n");
    }

    #[tokio::test]
    async fn memory_is_given_back_and_offsets_go_on() {
        let (agent, pipe) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut agent = std::fs::File::from(agent);
        let mut feed = Feed::new(pipe).unwrap();
        let chunk: Vec<u8> = (0..1u32 << 20).map(|n| (n / 7) as u8).collect();
        let expected = chunk.clone();
        let reader =
            std::thread::spawn(move || (0..12).all(|_| read(&mut agent, 1 << 20) == expected));
        for _ in 0..12 {
            feed.write_all(&chunk).await.unwrap();
            feed.flush().await.unwrap();
        }
        assert!(reader.join().unwrap(), "holes are made behind the reader");
        let blocks = rustix::fs::fstat(&feed.queue).unwrap().st_blocks;
        assert_eq!(feed.end(), 12 << 20);
        assert!(blocks * 512 < 7 << 20, "{blocks} blocks are still held");
    }

    #[tokio::test]
    async fn an_agent_that_closed_its_stdin_is_an_error() {
        let (agent, pipe) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut feed = Feed::new(pipe).unwrap();
        drop(agent);
        feed.write_all(b"x").await.unwrap();
        let error = feed.flush().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
