//! On gVisor's kernel: when a signal for a terminal's foreground reaches all of it.
//!
//! Linux gives a signal for a process group to a child that a member is making at that moment, too. gVisor's kernel does not:
//! the child joins the group afterwards, without the signal. A shell that waits for its child before it obeys Control-C
//! itself, as dash does, would then go on until the child ends by itself. So the signal waits, for a moment, until each
//! member sleeps, since nobody makes a child then. Whoever computes instead gets it at the end of that moment. Runs in the
//! program's init on gVisor's kernel; without `/proc` there is nothing to wait for. No allocation.

use core::ffi::CStr;

use agentd_kernel::sys::fs::{self, O_DIRECTORY, O_RDONLY};
use agentd_kernel::sys::wait;

use super::view::PathBuffer;

/// The most that a key may take.
const MOMENT_MS: u64 = 250;

/// Returns when every member of the group sleeps, or the moment is over.
pub(super) fn settle(group: i32) {
    let end = wait::now_ms() + MOMENT_MS;
    while anybody_awake(group) && wait::now_ms() < end {
        // Nothing tells of a process that goes to sleep: it is asked again a millisecond later.
        wait::poll(&mut [], Some(1)).unwrap_or(());
    }
}

fn anybody_awake(group: i32) -> bool {
    let Ok(processes) = fs::open(c"/proc", O_RDONLY | O_DIRECTORY) else {
        return false;
    };
    let mut buffer = [0; 2048];
    while let Ok(len @ 1..) = fs::read_entries(processes.borrow(), &mut buffer) {
        let mut rest = &buffer[..len];
        while let Some((name, after)) = entry(rest) {
            if is_awake(name, group) {
                return true;
            }
            rest = after;
        }
    }
    false
}

/// The first entry's name, and what is behind it.
fn entry(entries: &[u8]) -> Option<(&CStr, &[u8])> {
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let length = entries.get(LENGTH..LENGTH + 2)?;
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    let name = CStr::from_bytes_until_nul(entries.get(NAME..length)?).ok()?;
    Some((name, entries.get(length..)?))
}

/// Whether this name of `/proc` is a process of the group that may be making another one.
fn is_awake(name: &CStr, group: i32) -> bool {
    if !name.to_bytes().iter().all(u8::is_ascii_digit) {
        return false;
    }
    let mut path = PathBuffer::new();
    let mut stat = [0; 256];
    path.join(&[b"/proc/", name.to_bytes(), b"/stat"])
        .and_then(|path| fs::open(path, O_RDONLY))
        .and_then(|file| fs::read(file.borrow(), &mut stat))
        .is_ok_and(|len| state_in(&stat[..len]) == Some((State::Awake, group)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It runs, or waits for its child to execute something.
    Awake,
    Asleep,
}

/// `7 (a name) R 1 7 …`: the state, and the group behind the parent.
fn state_in(stat: &[u8]) -> Option<(State, i32)> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = core::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = match fields.next()? {
        "R" | "D" => State::Awake,
        _ => State::Asleep,
    };
    Some((state, fields.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_group_stand_behind_whatever_the_program_is_called() {
        assert_eq!(
            state_in(b"7 (a) R (b) D 1 42 7 0"),
            Some((State::Awake, 42))
        );
        assert_eq!(state_in(b"7 (sh) S 1 7 7 0"), Some((State::Asleep, 7)));
        assert_eq!(state_in(b"7 (sh"), None);
        assert_eq!(state_in(b"7 (sh) R 1"), None);
    }

    #[test]
    fn entries_are_read_one_by_one() {
        let mut bytes = [0_u8; 48];
        bytes[16] = 24;
        bytes[19..22].copy_from_slice(b"42\0");
        bytes[24 + 16] = 24;
        bytes[24 + 19..24 + 24].copy_from_slice(b"self\0");
        let (name, rest) = entry(&bytes).expect("the first");
        assert_eq!(name, c"42");
        let (name, rest) = entry(rest).expect("the second");
        assert_eq!((name, rest.len()), (c"self", 0));
        assert_eq!(entry(rest), None);
    }

    #[test]
    fn a_group_of_nobody_is_asleep() {
        assert!(!anybody_awake(i32::MAX));
        settle(i32::MAX);
    }
}
