//! Everything that agentctl prints: data on stdout, the rest on stderr.
//!
//! Colours only on a terminal and without `NO_COLOR`; tables aligned by display columns; a reader that
//! went away is [`Failure::is_broken_pipe`], which ends the program with code 0. Never decides what to
//! print.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::failure::Failure;

/// How much decoration a stream takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Ansi,
}

impl Colour {
    /// What suits this stream in this environment.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        if stream.is_terminal() && !refused {
            Self::Ansi
        } else {
            Self::Plain
        }
    }

    /// `text` in a style.
    pub fn paint(self, style: Style, text: &str) -> String {
        match (self, style.sgr()) {
            (Self::Ansi, Some(sgr)) if !text.is_empty() => format!("\x1b[{sgr}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// The few styles in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
}

impl Style {
    fn sgr(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Dim => Some("2"),
            Self::Good => Some("32"),
            Self::Warn => Some("33"),
            Self::Bad => Some("31"),
        }
    }
}

/// Buffered stdout.
#[derive(Debug)]
pub struct Out {
    writer: io::BufWriter<io::Stdout>,
    pub colour: Colour,
    terminal: bool,
}

impl Out {
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        let colour = Colour::of(&stdout);
        Self {
            terminal: stdout.is_terminal(),
            writer: io::BufWriter::new(stdout),
            colour,
        }
    }

    /// Whether somebody looks at it.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// One line.
    pub fn line(&mut self, text: impl std::fmt::Display) -> Result<(), Failure> {
        writeln!(self.writer, "{text}").map_err(|e| Failure::output(&e))
    }

    /// One line of JSON, written at once: a reader of a stream wants it now.
    pub fn json(&mut self, value: &Value) -> Result<(), Failure> {
        self.line(value)?;
        self.flush()
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.writer
            .write_all(bytes)
            .map_err(|e| Failure::output(&e))
    }

    /// Must be called at the end: an error of the last write is an error too.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(|e| Failure::output(&e))
    }
}

/// One cell of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub fn styled(style: Style, text: impl Into<String>) -> Self {
        Self {
            text: visible(&text.into()),
            style,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(Style::Plain, text)
    }
}

/// Rows under a heading, columns aligned, two spaces between.
#[derive(Debug)]
pub struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    /// Columns of numbers, whose ends are one below the other.
    right: Vec<usize>,
}

impl Table {
    pub fn new(heading: &[&'static str]) -> Self {
        Self {
            heading: heading.to_vec(),
            rows: Vec::new(),
            right: Vec::new(),
        }
    }

    /// Aligns these columns at their right, as numbers are read.
    #[must_use]
    pub fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.heading.len());
        self.rows.push(cells);
    }

    pub fn print(&self, out: &mut Out) -> Result<(), Failure> {
        for line in self.lines(out.colour) {
            out.line(line)?;
        }
        Ok(())
    }

    /// The finished lines, without trailing blanks.
    pub fn lines(&self, colour: Colour) -> Vec<String> {
        let mut widths: Vec<usize> = self.heading.iter().map(|h| columns(h)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(columns(&cell.text));
            }
        }
        let heading = self.heading.iter().map(|h| Cell::styled(Style::Bold, *h));
        let mut lines = vec![self.join(&heading.collect::<Vec<_>>(), &widths, colour)];
        lines.extend(self.rows.iter().map(|row| self.join(row, &widths, colour)));
        lines
    }

    fn join(&self, cells: &[Cell], widths: &[usize], colour: Colour) -> String {
        let mut line = String::new();
        for (i, (cell, width)) in cells.iter().zip(widths).enumerate() {
            if i > 0 {
                line.push_str("  ");
            }
            let blanks = std::iter::repeat_n(' ', width - columns(&cell.text));
            let text = colour.paint(cell.style, &cell.text);
            if self.right.contains(&i) {
                line.extend(blanks);
                line.push_str(&text);
            } else {
                line.push_str(&text);
                if i + 1 < cells.len() {
                    line.extend(blanks);
                }
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// Columns that a text takes. Wide East Asian characters take two.
fn columns(text: &str) -> usize {
    text.chars()
        .map(|c| match u32::from(c) {
            0x0300..=0x036f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
            0x1100..=0x115f
            | 0x2e80..=0xa4cf
            | 0xac00..=0xd7a3
            | 0xf900..=0xfaff
            | 0xfe30..=0xfe6f
            | 0xff00..=0xff60
            | 0xffe0..=0xffe6
            | 0x1f300..=0x1faff
            | 0x20000..=0x3fffd => 2,
            _ => 1,
        })
        .sum()
}

/// The text with control characters made visible: names and command lines come from agents, and must
/// not move the cursor of whoever lists them.
pub fn visible(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// The text cut to `max` columns, the cut shown.
pub fn shorten(text: &str, max: usize) -> String {
    if columns(text) <= max {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        if columns(&short) + columns(c.encode_utf8(&mut [0; 4])) >= max {
            break;
        }
        short.push(c);
    }
    short.push('…');
    short
}

/// A command line as one would type it.
pub fn command_line(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    argv.iter()
        .map(|arg| {
            if !arg.is_empty() && arg.chars().all(plain) {
                arg.clone()
            } else {
                format!("'{}'", arg.replace('\'', r"'\''"))
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// A span of time in its two largest units.
pub fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        _ if ms < 1000 => format!("{ms}ms"),
        0..60 => format!("{}.{}s", s, ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86400, s % 86400 / 3600),
    }
}

/// A size in the largest binary unit that leaves a number of at least one.
pub fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in units {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// A number with thousands apart: 1 234 567.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// A count in at most four digits: 999, 9999, 12.3k, 4.5M.
pub fn count(n: u64) -> String {
    if n < 10_000 {
        return n.to_string();
    }
    scaled(n as f64)
}

/// A rate in at most four digits: 0, 0.25, 7.5, 12.3k, 143M.
pub fn per_second(rate: f64) -> String {
    if rate == 0.0 {
        return "0".to_owned();
    }
    if rate < 1000.0 {
        let digits = 2_usize.saturating_sub(rate.max(1.0).log10() as usize);
        let text = format!("{rate:.digits$}");
        return match text.split_once('.') {
            Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            None => text,
        };
    }
    scaled(rate)
}

fn scaled(n: f64) -> String {
    let units = [("G", 1e9), ("M", 1e6), ("k", 1e3)];
    // What would round up to the next unit belongs to it.
    let (unit, scale) = units
        .into_iter()
        .find(|(_, scale)| n >= scale * 0.9995)
        .unwrap_or(("", 1.0));
    let n = n / scale;
    let digits = if n < 99.95 { 1 } else { 0 };
    format!("{n:.digits$}{unit}")
}

/// A short time in its largest unit: 85 ns, 1.2 µs, 34 ms, 2.1 s.
pub fn nanoseconds(ns: u64) -> String {
    let (scale, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..999_950 => (1e3, "µs"),
        999_950..999_950_000 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    let n = ns as f64 / scale;
    let digits = if n < 99.95 { 1 } else { 0 };
    format!("{n:.digits$} {unit}")
}

/// A failure on stderr, for people or as one JSON object.
pub fn print_failure(failure: &Failure, json: bool) {
    if json {
        stderr_line(&failure.to_json().to_string());
        return;
    }
    let colour = Colour::of(&io::stderr());
    let mut text = format!(
        "{} {}: {}",
        colour.paint(Style::Bad, "agentctl:"),
        failure.what,
        failure.why
    );
    if let Some(next) = &failure.next {
        text.push_str(&format!("\n  {} {next}", colour.paint(Style::Bold, "try:")));
    }
    stderr_line(&text);
}

/// One line on stderr. A stderr that nobody reads is no reason to fail.
pub fn stderr_line(text: &str) {
    let mut stderr = io::stderr().lock();
    drop(writeln!(stderr, "{text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_leave_no_trailing_blanks() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["a".into(), Cell::styled(Style::Good, "running")]);
        table.row(vec!["longer-name".into(), "".into()]);
        assert_eq!(
            table.lines(Colour::Plain),
            ["NAME         STATE", "a            running", "longer-name"]
        );
        assert!(table.lines(Colour::Ansi)[1].ends_with("\x1b[32mrunning\x1b[0m"));
    }

    #[test]
    fn numbers_end_below_one_another() {
        let mut table = Table::new(&["N", "NAME"]).right(&[0]);
        table.row(vec!["7".into(), "a".into()]);
        table.row(vec!["123".into(), "b".into()]);
        assert_eq!(
            table.lines(Colour::Plain),
            ["  N  NAME", "  7  a", "123  b"]
        );
    }

    #[test]
    fn control_characters_are_shown_not_sent() {
        assert_eq!(visible("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(visible("héllo"), "héllo");
    }

    #[test]
    fn command_lines_are_quoted_where_needed() {
        let argv = ["sh", "-c", "echo 'x y'", ""].map(str::to_owned);
        assert_eq!(command_line(&argv), r"sh -c 'echo '\''x y'\''' ''");
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(span(999), "999ms");
        assert_eq!(span(1_500), "1.5s");
        assert_eq!(span(61_000), "1m01s");
        assert_eq!(span(90_000_000), "1d01h");
        assert_eq!(size(512), "512 B");
        assert_eq!(size(3 << 19), "1.5 MiB");
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!(grouped(12), "12");
        assert_eq!(count(9_999), "9999");
        assert_eq!(count(12_345), "12.3k");
        assert_eq!(count(143_200_000), "143M");
        assert_eq!(count(999_999), "1.0M");
        assert_eq!(per_second(0.0), "0");
        assert_eq!(per_second(0.25), "0.25");
        assert_eq!(per_second(7.5), "7.5");
        assert_eq!(per_second(100.0), "100");
        assert_eq!(per_second(123_456.0), "123k");
        assert_eq!(nanoseconds(85), "85 ns");
        assert_eq!(nanoseconds(1_250), "1.2 µs");
        assert_eq!(nanoseconds(143_000_000), "143 ms");
        assert_eq!(nanoseconds(999_999), "1.0 ms");
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("abcd", 4), "abcd");
    }
}
