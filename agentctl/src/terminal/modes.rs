//! What a program has switched on in the terminal, so that it can be switched off for it.
//!
//! A program that dies in the alternate screen, with the mouse captured or the cursor hidden, leaves
//! its user a terminal that can't be used. This watches the output for the few modes that matter and
//! gives the bytes that undo exactly those still on.

/// DEC private modes that are off by default and hurt when left on.
const WATCHED: [u16; 12] = [
    1, 9, 47, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 1049, 2004,
];
/// Cursor visibility: on by default.
const CURSOR: u16 = 25;
/// Longer parameter lists than any program sends are not followed.
const MAX_PARAMS: usize = 16;

/// Follows a program's output.
#[derive(Debug, Default)]
pub struct ModeWatch {
    on: [bool; WATCHED.len()],
    cursor_hidden: bool,
    styled: bool,
    kitty_keyboard: u8,
    state: State,
    params: [u16; MAX_PARAMS],
    count: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    /// After `ESC [` and the private marker, if there was one (0: none).
    Csi(u8),
}

impl ModeWatch {
    /// Looks at a piece of output; sequences may be split anywhere.
    pub fn feed(&mut self, mut output: &[u8]) {
        while !output.is_empty() {
            if self.state == State::Text {
                // Most output holds no escapes: skip to the next at once.
                let Some(at) = output.iter().position(|b| *b == 0x1b) else {
                    return;
                };
                self.state = State::Escape;
                output = &output[at + 1..];
                continue;
            }
            self.step(output[0]);
            output = &output[1..];
        }
    }

    fn step(&mut self, byte: u8) {
        self.state = match (self.state, byte) {
            (_, 0x1b) => State::Escape,
            (State::Escape, b'[') => {
                self.params = [0; MAX_PARAMS];
                self.count = 0;
                State::Csi(0)
            }
            (State::Escape, b'c') => {
                *self = Self::default();
                State::Text
            }
            (State::Csi(0), b'?' | b'>' | b'<' | b'=') => State::Csi(byte),
            (State::Csi(_), b'0'..=b'9') => {
                if let Some(param) = self.params.get_mut(self.count) {
                    *param = param
                        .saturating_mul(10)
                        .saturating_add(u16::from(byte - b'0'));
                }
                self.state
            }
            (State::Csi(_), b';' | b':') => {
                self.count += 1;
                self.state
            }
            // Intermediate bytes belong to sequences that are none of ours.
            (State::Csi(_), 0x20..=0x2f) => State::Csi(b'!'),
            (State::Csi(marker), 0x40..=0x7e) => {
                self.finish(marker, byte);
                State::Text
            }
            (State::Csi(_), _) => self.state,
            _ => State::Text,
        };
    }

    fn finish(&mut self, marker: u8, last: u8) {
        let given = &self.params[..MAX_PARAMS.min(self.count + 1)];
        match (marker, last) {
            (b'?', b'h' | b'l') => {
                let set = last == b'h';
                for mode in given {
                    if *mode == CURSOR {
                        self.cursor_hidden = !set;
                    }
                    if let Some(i) = WATCHED.iter().position(|w| w == mode) {
                        self.on[i] = set;
                    }
                }
            }
            (0, b'm') => self.styled = given.last().is_some_and(|p| *p != 0),
            (b'>', b'u') => self.kitty_keyboard = self.kitty_keyboard.saturating_add(1),
            (b'<', b'u') => {
                let pops = given[0].clamp(1, 255) as u8;
                self.kitty_keyboard = self.kitty_keyboard.saturating_sub(pops);
            }
            _ => {}
        }
    }

    /// The bytes that undo what is still on; empty when the program cleaned up.
    pub fn undo(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.kitty_keyboard > 0 {
            bytes.extend_from_slice(format!("\x1b[<{}u", self.kitty_keyboard).as_bytes());
        }
        for (mode, _) in WATCHED.iter().zip(self.on).filter(|(_, on)| *on) {
            bytes.extend_from_slice(format!("\x1b[?{mode}l").as_bytes());
        }
        if self.styled {
            bytes.extend_from_slice(b"\x1b[0m");
        }
        if self.cursor_hidden {
            bytes.extend_from_slice(b"\x1b[?25h");
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undo_of(pieces: &[&[u8]]) -> Vec<u8> {
        let mut watch = ModeWatch::default();
        for piece in pieces {
            watch.feed(piece);
        }
        watch.undo()
    }

    #[test]
    fn a_program_that_cleans_up_leaves_nothing_to_do() {
        let output: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[31mhi\x1b[0m\x1b[?25h\x1b[?1049l";
        assert_eq!(undo_of(&[output]), b"");
        assert_eq!(undo_of(&[b"plain text \xff\xfe"]), b"");
    }

    #[test]
    fn what_is_left_on_is_undone() {
        let undo = undo_of(&[b"\x1b[?1049h\x1b[?1000;1006;2004h\x1b[?25l\x1b[1;31mx"]);
        assert_eq!(
            undo,
            b"\x1b[?1000l\x1b[?1006l\x1b[?1049l\x1b[?2004l\x1b[0m\x1b[?25h"
        );
        assert_eq!(undo_of(&[b"\x1b[>1u\x1b[>3u\x1b[<u"]), b"\x1b[<1u");
    }

    #[test]
    fn sequences_may_be_split_anywhere() {
        let whole = b"a\x1b[?1049h\x1b[?25lz";
        for cut in 0..whole.len() {
            let (a, b) = whole.split_at(cut);
            assert_eq!(undo_of(&[a, b]), b"\x1b[?1049l\x1b[?25h", "cut at {cut}");
        }
    }

    #[test]
    fn a_full_reset_clears_everything() {
        assert_eq!(undo_of(&[b"\x1b[?1049h\x1b[?25l\x1bc"]), b"");
    }

    #[test]
    fn endless_parameters_do_no_harm() {
        let mut output = b"\x1b[?".to_vec();
        output.extend(b"99999;".repeat(1000));
        output.extend(b"h\x1b[?1000h");
        assert_eq!(undo_of(&[&output]), b"\x1b[?1000l");
    }
}
