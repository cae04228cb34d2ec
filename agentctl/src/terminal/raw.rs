//! Raw mode that ends with the value that holds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

/// A terminal that is ours to change, and how it was.
#[derive(Debug)]
pub struct RawTerminal<'a> {
    fd: BorrowedFd<'a>,
    cooked: Termios,
    is_raw: bool,
}

impl<'a> RawTerminal<'a> {
    /// Remembers the terminal's mode and makes it raw. In the background this stops the process until
    /// it is in the foreground, as the kernel does with any job that wants the terminal.
    pub fn enter(fd: &'a impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd();
        let mut terminal = Self {
            fd,
            cooked: tcgetattr(fd)?,
            is_raw: false,
        };
        terminal.make_raw()?;
        Ok(terminal)
    }

    /// Makes the terminal raw; again after [`restore`](Self::restore), or when somebody else changed it.
    pub fn make_raw(&mut self) -> io::Result<()> {
        let mut raw = self.cooked.clone();
        raw.make_raw();
        tcsetattr(self.fd, OptionalActions::Drain, &raw)?;
        self.is_raw = true;
        Ok(())
    }

    /// Puts the terminal back as it was found. Does nothing from the background: the terminal is the
    /// shell's then.
    pub fn restore(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.is_raw) {
            return Ok(());
        }
        let in_foreground = tcgetpgrp(self.fd).is_ok_and(|pgrp| pgrp == rustix::process::getpgrp());
        if in_foreground {
            tcsetattr(self.fd, OptionalActions::Drain, &self.cooked)?;
        }
        Ok(())
    }
}

impl Drop for RawTerminal<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        drop(self.restore());
    }
}

/// Rows and columns of a terminal; `None` if it is none, or does not know.
pub fn window(fd: impl AsFd) -> Option<(u16, u16)> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
