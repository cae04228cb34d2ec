//! Taking a driven agent's conversation up again after a restart of agentd: what is on record of it, and what of that
//! has not reached the agent yet.
//!
//! Lines to the agent are recorded with the offset at which they end in the agent's stdin, before they are given to its
//! [`Feed`]. A recorded line that ends behind what the feed has accepted was never written: it is written now. One that
//! ends before has been or will be read; nobody writes it again.

use std::io;

use agentd_orchestrator::driver::{Line, MAX_LINE_BYTES, Recorded};
use agentd_storage::{Direction, DriverLine, LaunchId, Store, StoreError, Viewer};

use crate::agents::feed::Feed;

/// Lines read from the record at once.
const PAGE_LINES: u32 = 1024;

/// Everything that was said in a conversation, oldest first.
#[derive(Debug, Clone, Default)]
pub struct History {
    lines: Vec<DriverLine>,
}

impl History {
    /// Reads it from the record.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn load(store: &Store, launch: &LaunchId) -> Result<Self, StoreError> {
        let mut lines: Vec<DriverLine> = Vec::new();
        loop {
            let after = lines.last().map_or(0, |line| line.seq);
            let page = store
                .driver_lines(Viewer::Root, launch, after, PAGE_LINES)
                .await?;
            if page.is_empty() {
                return Ok(Self { lines });
            }
            lines.extend(page);
        }
    }

    /// How far into the agent's stdout the record goes, in bytes.
    pub fn read_to(&self) -> u64 {
        self.ends(Direction::In).max().unwrap_or(0)
    }

    fn ends(&self, direction: Direction) -> impl Iterator<Item = u64> + '_ {
        let lines = self.lines.iter();
        lines
            .filter(move |line| line.direction == direction)
            .filter_map(|line| line.end)
    }

    /// For the machine.
    pub fn recorded(&self) -> Vec<Recorded> {
        let mut read = 0;
        let lines = self.lines.iter().map(|line| match line.direction {
            Direction::Out => Recorded::Out(line.line.clone()),
            Direction::In => {
                let end = line.end.unwrap_or(read);
                let bytes = usize::try_from(end.saturating_sub(read)).unwrap_or(usize::MAX);
                read = end;
                // Of a line over the bound only the beginning is on record.
                Recorded::In(if bytes > MAX_LINE_BYTES + 1 {
                    Line::TooLong {
                        start: line.line.clone(),
                        bytes: bytes - 1,
                    }
                } else {
                    Line::Text(line.line.clone())
                })
            }
        });
        lines.collect()
    }

    /// Accepts the recorded lines that were never accepted, and nothing twice. Whoever writes next moves them: an agent that
    /// does not read must not hold up the adoption of others.
    ///
    /// # Errors
    /// When the feed does not take them.
    pub fn settle(&self, feed: &mut Feed) -> io::Result<()> {
        // Behind the last whole line is the beginning of one that agentd died over.
        let whole = self
            .ends(Direction::Out)
            .filter(|end| *end <= feed.end())
            .max();
        feed.truncate(whole.unwrap_or(0))?;
        let missing = self
            .lines
            .iter()
            .filter(|line| line.direction == Direction::Out);
        let accepted = feed.end();
        for line in missing.filter(|line| line.end.is_some_and(|end| end > accepted)) {
            let bytes = line.line.len() as u64 + 1;
            // Lines that could not be recorded left a gap. White space is none of the agent's business, and keeps the
            // offsets of all that follows true.
            let gap = line.end.unwrap_or(0).saturating_sub(feed.end() + bytes);
            let gap = " ".repeat(usize::try_from(gap).unwrap_or(0));
            feed.append(format!("{gap}{}\n", line.line).as_bytes())?;
        }
        Ok(())
    }
}
