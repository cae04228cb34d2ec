//! Output that is written as its reader takes it, so that waiting for it never blocks the loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

/// Bytes that a pipe or terminal takes at once when `poll` says that it is writable.
const ONE_WRITE: usize = 4096;

/// One of our output streams and what has yet to be written to it.
#[derive(Debug)]
pub struct Sink<'a> {
    fd: BorrowedFd<'a>,
    is_file: bool,
    pending: Vec<u8>,
    written: usize,
    is_gone: bool,
}

impl<'a> Sink<'a> {
    pub fn new(fd: BorrowedFd<'a>) -> Self {
        let kind = rustix::fs::fstat(fd).map(|s| rustix::fs::FileType::from_raw_mode(s.st_mode));
        Self {
            fd,
            is_file: kind == Ok(rustix::fs::FileType::RegularFile),
            pending: Vec::new(),
            written: 0,
            is_gone: false,
        }
    }

    /// Whether everything has been written.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether nobody reads it any more; what is put in is dropped then.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Takes bytes over. To be called only when idle, so that memory stays bounded.
    pub fn put(&mut self, bytes: &[u8]) {
        if !self.is_gone {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// Writes one piece. Call it when `poll` says that the descriptor is writable.
    ///
    /// # Errors
    /// What the write said, unless it means that the reader is gone: that is [`is_gone`](Self::is_gone).
    pub fn write_some(&mut self) -> io::Result<()> {
        while !self.is_idle() {
            let rest = &self.pending[self.written..];
            let piece = if self.is_file {
                rest
            } else {
                &rest[..rest.len().min(ONE_WRITE)]
            };
            match rustix::io::write(self.fd, piece) {
                Ok(n) => self.written += n,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE | Errno::IO | Errno::NXIO | Errno::BADF) => {
                    self.is_gone = true;
                    self.written = self.pending.len();
                }
                Err(errno) => return Err(errno.into()),
            }
            if self.written == self.pending.len() {
                self.pending.clear();
                self.written = 0;
            } else if !self.is_file {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl AsFd for Sink<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}
