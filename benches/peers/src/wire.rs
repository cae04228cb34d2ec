//! What the clients of NATS and Redis here share: a blocking socket, writes gathered as their own clients gather them,
//! and lines and counted bytes taken out of one buffer.

use std::io::{ErrorKind, Read, Write};

use anyhow::{Context, Result, bail};

/// What is gathered before it is written, and read at once.
const CHUNK: usize = 64 << 10;

#[derive(Debug)]
pub struct Wire<S> {
    pub socket: S,
    gathered: Vec<u8>,
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl<S: Read + Write> Wire<S> {
    pub fn new(socket: S) -> Self {
        Self {
            socket,
            gathered: Vec::with_capacity(2 * CHUNK),
            buffer: vec![0; 4 * CHUNK],
            from: 0,
            to: 0,
        }
    }

    /// Gathers `parts`; writes once there is a chunk of them. Whether it wrote.
    pub fn put(&mut self, parts: &[&[u8]]) -> Result<bool> {
        for part in parts {
            self.gathered.extend_from_slice(part);
        }
        if self.gathered.len() < CHUNK {
            return Ok(false);
        }
        self.flush()?;
        Ok(true)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.socket.write_all(&self.gathered).context("write")?;
        self.gathered.clear();
        Ok(())
    }

    /// The next line without its end, as a range of [`Self::bytes`] that the next call makes invalid.
    pub fn line(&mut self) -> Result<(usize, usize)> {
        let mut looked = self.from;
        loop {
            if let Some(at) = self.buffer[looked..self.to]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line = (self.from, looked + at - 1);
                self.from = looked + at + 1;
                return Ok(line);
            }
            let seen = self.to - self.from;
            self.fill()?;
            looked = self.from + seen;
        }
    }

    /// The next `len` bytes and the end of line behind them.
    pub fn counted(&mut self, len: usize) -> Result<&[u8]> {
        while self.to - self.from < len + 2 {
            self.fill()?;
        }
        let payload = self.from..self.from + len;
        self.from += len + 2;
        Ok(&self.buffer[payload])
    }

    pub fn bytes(&self, (from, to): (usize, usize)) -> &[u8] {
        &self.buffer[from..to]
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        if self.to == self.buffer.len() {
            bail!("a line or message of more than {} bytes", self.buffer.len());
        }
        loop {
            match self.socket.read(&mut self.buffer[self.to..]) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(read) => {
                    self.to += read;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read"),
            }
        }
    }
}

/// A decimal number.
pub fn number(digits: &[u8]) -> Result<usize> {
    let text = std::str::from_utf8(digits).context("read a number")?;
    text.parse()
        .with_context(|| format!("{text:?} is no number"))
}
