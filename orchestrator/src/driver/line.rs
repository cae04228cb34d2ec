//! Cuts an agent's output into lines, with a bound.

/// The longest line that is kept. Tool results with pictures come to a few MiB.
pub const MAX_LINE_BYTES: usize = 8 * 1024 * 1024;
const EXCERPT_CHARS: usize = 200;

/// One line without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A whole line; bytes that are no UTF-8 have become U+FFFD.
    Text(String),
    /// A line over the bound: only its beginning was kept.
    TooLong {
        /// The beginning.
        start: String,
        /// The whole length in bytes.
        bytes: usize,
    },
}

impl Line {
    /// What goes on record.
    pub fn record(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::TooLong { start, .. } => start,
        }
    }
}

/// A line and where it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The line.
    pub line: Line,
    /// Bytes of the stream up to its end, its newline included.
    pub end: u64,
}

/// The beginning of a text, for messages.
pub fn excerpt(text: &str) -> String {
    let mut out: String = text.chars().take(EXCERPT_CHARS).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

/// Bytes in, lines out. Holds at most one unfinished line of at most `max` bytes.
#[derive(Debug)]
pub struct Lines {
    max: usize,
    partial: Vec<u8>,
    /// Bytes of the present line that were thrown away.
    dropped: usize,
    /// Bytes of the stream taken so far.
    taken: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self::with_max(MAX_LINE_BYTES)
    }
}

impl Lines {
    /// With another bound.
    pub fn with_max(max: usize) -> Self {
        Self {
            max,
            partial: Vec::new(),
            dropped: 0,
            taken: 0,
        }
    }

    /// For a stream of which `taken` bytes, up to the end of a line, were taken before.
    pub fn starting_at(taken: u64) -> Self {
        Self {
            taken,
            ..Self::default()
        }
    }

    /// Takes what was read; the lines it completes. Empty lines are left out.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Cut> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.keep(&bytes[..end]);
            self.taken += 1;
            lines.extend(self.take());
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
        lines
    }

    /// The stream has ended: the last line, if it had no newline.
    pub fn finish(&mut self) -> Option<Cut> {
        self.take()
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.taken += bytes.len() as u64;
        let room = self.max - self.partial.len();
        let (kept, dropped) = bytes.split_at(bytes.len().min(room));
        self.partial.extend_from_slice(kept);
        self.dropped += dropped.len();
    }

    fn take(&mut self) -> Option<Cut> {
        let end = self.taken;
        self.take_line().map(|line| Cut { line, end })
    }

    fn take_line(&mut self) -> Option<Line> {
        let mut bytes = std::mem::take(&mut self.partial);
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            let total = bytes.len() + dropped;
            bytes.truncate(4 * EXCERPT_CHARS);
            return Some(Line::TooLong {
                start: excerpt(&String::from_utf8_lossy(&bytes)),
                bytes: total,
            });
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        Some(Line::Text(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(bad) => String::from_utf8_lossy(bad.as_bytes()).into_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &str, end: u64) -> Cut {
        Cut {
            line: Line::Text(text.to_owned()),
            end,
        }
    }

    #[test]
    fn a_line_over_the_bound_is_cut_and_the_next_is_whole() {
        let mut lines = Lines::with_max(10);
        assert_eq!(lines.push(b"0123456789abc"), []);
        assert_eq!(
            lines.push(b"def\nok\n"),
            [
                Cut {
                    line: Line::TooLong {
                        start: "0123456789".into(),
                        bytes: 16
                    },
                    end: 17
                },
                cut("ok", 20)
            ]
        );
    }

    #[test]
    fn a_line_of_exactly_the_bound_is_whole() {
        let mut lines = Lines::with_max(4);
        assert_eq!(lines.push(b"abcd\n"), [cut("abcd", 5)]);
    }

    #[test]
    fn the_last_line_needs_no_newline() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\r\n\n b"), [cut("a", 3)]);
        assert_eq!(lines.finish(), Some(cut(" b", 6)));
        assert_eq!(lines.finish(), None);
    }

    proptest! {
        #[test]
        fn where_the_reads_are_cut_makes_no_difference(text in "[a-z\n\u{e4}]{0,200}", cuts in prop::collection::vec(0usize..200, 0..10)) {
            let bytes = text.as_bytes();
            let mut whole = Lines::with_max(16);
            let mut expected = whole.push(bytes);
            expected.extend(whole.finish());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut lines = Lines::with_max(16);
            let mut got = Vec::new();
            let mut at = 0;
            for cut in cuts {
                got.extend(lines.push(&bytes[at..cut]));
                at = cut;
            }
            got.extend(lines.finish());
            prop_assert_eq!(got, expected);
        }
    }
}
