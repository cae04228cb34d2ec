//! The load: many connections, each with one request under way, driven by a ring so that the driver keeps ahead of what it
//! measures.
//!
//! One thread. Sends go out in batches; an answer that has come whole is followed by the next request.

use std::os::fd::{AsRawFd, OwnedFd};

use agentd_bus::frame::{Frame, PeerId, kind};
use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types::Fd};

/// Connections under load.
pub struct Storm {
    ring: IoUring,
    sockets: Vec<OwnedFd>,
    request: Vec<u8>,
    /// What each connection receives into, and how much of the answer is there.
    buffers: Vec<Box<[u8]>>,
    got: Vec<usize>,
}

const SEND: u64 = 1 << 40;

impl Storm {
    /// Over connections that are open, with `payload` bytes in each request.
    pub fn new(sockets: Vec<OwnedFd>, payload: usize) -> Result<Self> {
        let mut request = Vec::new();
        let body = vec![0x5A; payload];
        Frame::new(kind::REQUEST, PeerId::BUS, 1, body).encode_into(&mut request);
        let ring = IoUring::builder()
            .setup_cqsize(65_536)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(4096)
            .context("the load is driven by io_uring")?;
        Ok(Self {
            ring,
            buffers: vec![vec![0; request.len()].into(); sockets.len()],
            got: vec![0; sockets.len()],
            sockets,
            request,
        })
    }

    pub fn close(self) -> Vec<OwnedFd> {
        self.sockets
    }

    fn push(&mut self, entry: &io_uring::squeue::Entry) -> Result<()> {
        // SAFETY: what entries point to, the request and the receive buffers, lives in `self` until `rounds` has seen all
        // completions.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn ask(&mut self, at: usize) -> Result<()> {
        let fd = Fd(self.sockets[at].as_raw_fd());
        let send = opcode::Send::new(fd, self.request.as_ptr(), self.request.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(&send.user_data(SEND | at as u64))?;
        self.listen(at)
    }

    fn listen(&mut self, at: usize) -> Result<()> {
        let fd = Fd(self.sockets[at].as_raw_fd());
        let rest = &mut self.buffers[at][self.got[at]..];
        let receive = opcode::Recv::new(fd, rest.as_mut_ptr(), rest.len() as u32).build();
        self.push(&receive.user_data(at as u64))
    }

    /// `count` requests on every connection, answered.
    pub fn rounds(&mut self, count: usize) -> Result<()> {
        let mut left = vec![count; self.sockets.len()];
        let mut open = 2 * self.sockets.len();
        for at in 0..self.sockets.len() {
            self.ask(at)?;
        }
        while open > 0 {
            self.ring.submit_and_wait(64.min(open))?;
            let done: Vec<(u64, i32)> = self
                .ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result()))
                .collect();
            for (data, result) in done {
                ensure!(
                    result > 0,
                    "the server closed a connection, or errno {}",
                    -result
                );
                if data & SEND != 0 {
                    ensure!(result as usize == self.request.len(), "a short send");
                    open -= 1;
                    continue;
                }
                let at = data as usize;
                self.got[at] += result as usize;
                if self.got[at] < self.request.len() {
                    self.listen(at)?;
                    continue;
                }
                self.got[at] = 0;
                open -= 1;
                left[at] -= 1;
                if left[at] > 0 {
                    open += 2;
                    self.ask(at)?;
                }
            }
        }
        Ok(())
    }
}
