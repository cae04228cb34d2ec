//! Redis streams as a contender: XADD on one side, a consumer group (XREADGROUP, XACK) on the other, through
//! `redis-server` on a Unix socket, nothing kept on disk.
//!
//! Both sides are pipelined: XADDs are gathered into writes of 64 KiB and their replies read without waiting for them; the
//! acknowledgement of one batch goes in the same write as the request for the next, of up to 512 messages.

use std::os::unix::net::UnixStream;

use anyhow::{Result, bail};
use bench_kit::{Receiver, Setup, Transport, Waiting};

use crate::redis::{Publisher, connect};
use crate::wire::{Wire, number};

/// Messages of one read.
const BATCH: usize = 512;

pub struct Streams {
    key: String,
}

pub struct Group {
    wire: Wire<UnixStream>,
    key: String,
    read: Vec<u8>,
    /// Taken and not acknowledged yet.
    ids: Vec<Vec<u8>>,
}

impl Transport for Streams {
    type Sender = Publisher;
    type Receiver = Group;

    fn prepare(setup: &Setup) -> Result<Self> {
        if setup.waiting != Waiting::Blocking {
            bail!("the server would share a CPU with what spins");
        }
        Ok(Self {
            key: setup.name.clone(),
        })
    }

    fn receiver(&self) -> Result<Group> {
        let mut wire = Wire::new(connect()?);
        let key = &self.key;
        let make = command(&["XGROUP", "CREATE", key, "g", "$", "MKSTREAM"]);
        wire.put(&[&make])?;
        wire.flush()?;
        let line = wire.line()?;
        if wire.bytes(line) != b"+OK" {
            bail!("XGROUP: {}", String::from_utf8_lossy(wire.bytes(line)));
        }
        let count = BATCH.to_string();
        let read = command(&[
            "XREADGROUP",
            "GROUP",
            "g",
            "c",
            "COUNT",
            &count,
            "BLOCK",
            "0",
            "STREAMS",
            key,
            ">",
        ]);
        Ok(Group {
            wire,
            key: key.clone(),
            read,
            ids: Vec::new(),
        })
    }

    fn sender(&self) -> Result<Publisher> {
        let key = &self.key;
        let head = format!(
            "*5\r\n$4\r\nXADD\r\n${}\r\n{key}\r\n$1\r\n*\r\n$1\r\nd\r\n$",
            key.len()
        );
        Publisher::with_head(head.into_bytes())
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    text.into_bytes()
}

impl Group {
    /// Acknowledges what was taken, and asks for more in the same write.
    fn ask(&mut self) -> Result<()> {
        let acked = !self.ids.is_empty();
        if acked {
            let head = format!(
                "*{}\r\n$4\r\nXACK\r\n${}\r\n{}\r\n$1\r\ng\r\n",
                self.ids.len() + 3,
                self.key.len(),
                self.key
            );
            self.wire.put(&[head.as_bytes()])?;
            for id in self.ids.drain(..) {
                let len = format!("${}\r\n", id.len());
                self.wire.put(&[len.as_bytes(), &id, b"\r\n"])?;
            }
        }
        self.wire.put(&[&self.read])?;
        self.wire.flush()?;
        if acked {
            self.expect(b':')?;
        }
        Ok(())
    }

    /// The number behind a line's first byte.
    fn expect(&mut self, kind: u8) -> Result<usize> {
        let line = self.wire.line()?;
        match self.wire.bytes(line) {
            [first, digits @ ..] if *first == kind => number(digits),
            other => bail!("redis said {:?}", String::from_utf8_lossy(other)),
        }
    }

    fn text(&mut self) -> Result<&[u8]> {
        let len = self.expect(b'$')?;
        self.wire.counted(len)
    }
}

impl Receiver for Group {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let mut see = Some(see);
        let mut seen = None;
        // One at a time is not what this is measured with.
        self.drain(1, |payload| seen = see.take().map(|see| see(payload)))?;
        seen.ok_or_else(|| anyhow::anyhow!("a read without a message"))
    }

    fn drain(&mut self, _most: u64, mut see: impl FnMut(&[u8])) -> Result<u64> {
        self.ask()?;
        // One stream: its key, then its entries.
        self.expect(b'*')?;
        self.expect(b'*')?;
        self.text()?;
        let entries = self.expect(b'*')?;
        for _ in 0..entries {
            self.expect(b'*')?;
            let id = self.text()?.to_vec();
            self.ids.push(id);
            self.expect(b'*')?;
            self.text()?;
            see(self.text()?);
        }
        Ok(entries as u64)
    }
}
