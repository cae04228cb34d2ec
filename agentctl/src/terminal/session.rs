//! The loop that carries bytes, signals and window sizes between this terminal and an agent.
//!
//! One thread, one `poll`. Output is taken from the socket only when the last piece has been written,
//! input from stdin only when the last frame has been sent: memory is bounded, order is kept, and
//! neither direction waits for the other. Ends when the agent has, when the detach keys are typed, or
//! when the socket closes without an exit frame.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agentd_api::attach::{MAX_FRAME, MAX_PAYLOAD};
use agentd_api::{AttachFrame, ExitInfo};
use agentd_kernel::signals::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::keys::{DetachKeys, KeyWatch, Watched};
use super::modes::ModeWatch;
use super::raw::{RawTerminal, window};
use super::sink::Sink;
use crate::resolve::Input;

/// The signals that a session takes over. Create the [`SignalFd`] with these, before the launch.
pub const SIGNALS: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGWINCH,
    libc::SIGCONT,
];

/// How many requests to end may go unheard before the user is told of `agentctl kill`.
const PATIENCE: u32 = 3;

/// What the program has for stdin, stdout and stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    Pty,
    Pipes,
}

/// Everything a session needs.
#[derive(Debug)]
pub struct Session<'a> {
    pub socket: OwnedFd,
    pub signals: &'a SignalFd,
    /// Signals that came before the session did, for the program.
    pub early: Vec<i32>,
    pub streams: Streams,
    pub input: Input,
    pub detach_keys: &'a DetachKeys,
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub struct SessionOutcome {
    pub end: SessionEnd,
    /// Bytes of output that the daemon dropped because they were not read in time.
    pub lost_bytes: u64,
    /// The offset in the agent's log of the first byte of output that did not come; `None` if agentd did not say.
    pub offset: Option<u64>,
    /// The program's last output did not end its line; a message on the same terminal should.
    pub mid_line: bool,
    /// Our stdout was closed by its reader, and the program was told by SIGPIPE.
    pub broken_pipe: bool,
}

/// Why a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The agent is over and all of its output has been written.
    Exited(Box<ExitInfo>),
    /// The user left; the agent runs on.
    Detached,
    /// The socket closed without a word: the daemon is gone.
    Lost,
}

impl Session<'_> {
    /// Runs to the end. `tell` gets the rare line for the user.
    ///
    /// # Errors
    /// If our own terminal or streams fail in a way that is not simply their end, or the daemon sends
    /// what is no frame.
    pub fn run(self, tell: &mut dyn FnMut(&str)) -> io::Result<SessionOutcome> {
        let wants_raw = self.streams == Streams::Pty
            && self.input == Input::Send
            && rustix::termios::isatty(self.stdin);
        let raw = if wants_raw {
            Some(RawTerminal::enter(&self.stdin)?)
        } else {
            None
        };
        let mut loop_ = Loop {
            reads_stdin: self.input == Input::Send,
            watch: raw.is_some().then(|| KeyWatch::new(self.detach_keys)),
            modes: (self.streams == Streams::Pty && rustix::termios::isatty(self.stdout))
                .then(ModeWatch::default),
            stdout: Sink::new(self.stdout),
            stderr: Sink::new(self.stderr),
            raw,
            outgoing: VecDeque::new(),
            can_send: true,
            end: None,
            lost_bytes: 0,
            offset: None,
            unheard: 0,
            mid_line: false,
            broken_pipe: false,
            buffer: vec![0; MAX_FRAME],
            session: &self,
        };
        loop_.send_window();
        for signo in &self.early {
            loop_.queue(&AttachFrame::Signal(*signo));
        }
        let end = loop_.turn_until_end(tell)?;
        Ok(SessionOutcome {
            end,
            lost_bytes: loop_.lost_bytes,
            offset: loop_.offset,
            mid_line: loop_.mid_line,
            broken_pipe: loop_.broken_pipe,
        })
    }
}

struct Loop<'a> {
    session: &'a Session<'a>,
    raw: Option<RawTerminal<'a>>,
    watch: Option<KeyWatch>,
    modes: Option<ModeWatch>,
    stdout: Sink<'a>,
    stderr: Sink<'a>,
    reads_stdin: bool,
    outgoing: VecDeque<Vec<u8>>,
    /// False once the daemon has closed its side; what it sent before may still be read.
    can_send: bool,
    end: Option<SessionEnd>,
    lost_bytes: u64,
    offset: Option<u64>,
    unheard: u32,
    mid_line: bool,
    broken_pipe: bool,
    buffer: Vec<u8>,
}

impl Loop<'_> {
    fn turn_until_end(&mut self, tell: &mut dyn FnMut(&str)) -> io::Result<SessionEnd> {
        loop {
            if self.is_drained()
                && let Some(end) = self.end.take()
            {
                self.tidy_terminal()?;
                return Ok(end);
            }
            self.turn(tell)?;
        }
    }

    fn is_drained(&self) -> bool {
        self.stdout.is_idle() && self.stderr.is_idle()
    }

    /// Waits once and does what can be done.
    fn turn(&mut self, tell: &mut dyn FnMut(&str)) -> io::Result<()> {
        let live = self.end.is_none();
        let mut socket = PollFlags::empty();
        socket.set(PollFlags::IN, live && self.is_drained());
        socket.set(PollFlags::OUT, live && !self.outgoing.is_empty());
        let stdin = live && self.reads_stdin && self.outgoing.is_empty();
        let session = self.session;
        let mut fds = vec![PollFd::new(session.signals, PollFlags::IN)];
        // A descriptor that is not asked about stays out: poll would report its hang-up for ever.
        let mut add = |fd, flags: PollFlags| {
            (!flags.is_empty()).then(|| {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                fds.len() - 1
            })
        };
        let when = |yes, flags| if yes { flags } else { PollFlags::empty() };
        let at_socket = add(session.socket.as_fd(), socket);
        let at_stdin = add(session.stdin, when(stdin, PollFlags::IN));
        let at_stdout = add(session.stdout, when(!self.stdout.is_idle(), PollFlags::OUT));
        let at_stderr = add(session.stderr, when(!self.stderr.is_idle(), PollFlags::OUT));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let said = |at: Option<usize>| at.map_or(PollFlags::empty(), |i| fds[i].revents());
        let (socket, stdin) = (said(at_socket), said(at_stdin));
        let (stdout, stderr) = (said(at_stdout), said(at_stderr));
        let signalled = !fds[0].revents().is_empty();

        if signalled {
            self.take_signals(tell)?;
        }
        if !stdout.is_empty() {
            self.stdout.write_some()?;
            self.notice_broken_pipe();
        }
        if !stderr.is_empty() {
            self.stderr.write_some()?;
        }
        if socket.contains(PollFlags::OUT) {
            self.send_queued()?;
        }
        if socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && self.is_drained() {
            self.take_frame(tell)?;
        }
        if !stdin.is_empty() && self.end.is_none() {
            self.take_input()?;
        }
        Ok(())
    }

    fn queue(&mut self, frame: &AttachFrame<'_>) {
        if self.can_send {
            self.outgoing.push_back(frame.to_vec());
        }
    }

    fn send_window(&mut self) {
        if self.session.streams == Streams::Pty
            && let Some((rows, cols)) = window(self.session.stdout)
        {
            self.queue(&AttachFrame::Resize { rows, cols });
        }
    }

    fn send_queued(&mut self) -> io::Result<()> {
        while let Some(packet) = self.outgoing.front() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.session.socket, packet, flags) {
                Ok(_) => drop(self.outgoing.pop_front()),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                    self.can_send = false;
                    self.reads_stdin = false;
                    self.outgoing.clear();
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn take_frame(&mut self, tell: &mut dyn FnMut(&str)) -> io::Result<()> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let received = rustix::net::recv(&self.session.socket, &mut self.buffer[..], flags);
        let length = match received {
            Ok((_, length)) => length,
            // The second: the daemon closed before it read all of our input. What it sent is still there.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNRESET) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if length == 0 {
            self.end = Some(SessionEnd::Lost);
            return Ok(());
        }
        let packet = self.buffer.get(..length).unwrap_or_default();
        let invalid = |e| io::Error::new(io::ErrorKind::InvalidData, format!("agentd sent: {e}"));
        match AttachFrame::decode(packet).map_err(invalid)? {
            AttachFrame::At(offset) => self.offset = Some(offset),
            AttachFrame::Stdout(bytes) => {
                self.offset = self.offset.map(|offset| offset + bytes.len() as u64);
                if let Some(modes) = &mut self.modes {
                    modes.feed(bytes);
                    self.mid_line = !bytes.ends_with(b"\n");
                }
                self.stdout.put(bytes);
            }
            AttachFrame::Stderr(bytes) => {
                self.offset = self.offset.map(|offset| offset + bytes.len() as u64);
                self.stderr.put(bytes);
            }
            AttachFrame::Exit(info) => self.end = Some(SessionEnd::Exited(info)),
            AttachFrame::Stopped(_) => self.suspend()?,
            AttachFrame::Continued => {}
            AttachFrame::Lost(bytes) => self.lost_bytes += bytes,
            AttachFrame::Notice(text) => {
                let text = crate::output::visible(&text);
                // In raw mode a line feed alone does not go back to the first column.
                let text = if self.raw.is_some() {
                    format!("{text}\r")
                } else {
                    text
                };
                tell(&text);
            }
            AttachFrame::Stdin(_)
            | AttachFrame::StdinEof
            | AttachFrame::Resize { .. }
            | AttachFrame::Signal(_) => {
                let text = "agentd sent a frame that only clients send";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(())
    }

    fn take_input(&mut self) -> io::Result<()> {
        let mut typed = vec![0; MAX_PAYLOAD / 2];
        let length = match rustix::io::read(self.session.stdin, &mut typed[..]) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            // A terminal that was hung up, or a stdin that was never there.
            Err(Errno::IO | Errno::BADF) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if length == 0 {
            self.reads_stdin = false;
            if self.raw.is_some() {
                self.queue(&AttachFrame::Signal(libc::SIGHUP));
            } else {
                self.queue(&AttachFrame::StdinEof);
            }
            return Ok(());
        }
        typed.truncate(length);
        let mut bytes = typed;
        if let Some(watch) = &mut self.watch {
            let mut passed = Vec::with_capacity(bytes.len());
            if watch.feed(&bytes, &mut passed) == Watched::Detach {
                self.end = Some(SessionEnd::Detached);
            }
            bytes = passed;
        }
        // The watch may let go of bytes it held back: at most the detach keys more than were typed.
        for piece in bytes.chunks(MAX_PAYLOAD) {
            self.queue(&AttachFrame::Stdin(piece));
        }
        self.send_queued()
    }

    fn take_signals(&mut self, tell: &mut dyn FnMut(&str)) -> io::Result<()> {
        while let Some(arrival) = self.session.signals.try_next()? {
            match arrival.signo {
                libc::SIGWINCH => self.send_window(),
                libc::SIGCONT => {
                    if let Some(raw) = &mut self.raw {
                        raw.make_raw()?;
                    }
                    self.send_window();
                }
                libc::SIGTSTP if self.session.input == Input::Nothing => {
                    self.session.signals.stop_job()?;
                }
                _ if self.session.input == Input::Nothing => self.end = Some(SessionEnd::Detached),
                // A stop that a program can ignore would leave the user's Ctrl-Z without effect.
                libc::SIGTSTP => self.queue(&AttachFrame::Signal(libc::SIGSTOP)),
                signo => {
                    self.queue(&AttachFrame::Signal(signo));
                    self.unheard += u32::from(matches!(signo, libc::SIGINT | libc::SIGTERM));
                    if self.unheard == PATIENCE {
                        tell(
                            "the program does not end when asked; agentctl kill ends it for certain",
                        );
                    }
                }
            }
        }
        self.send_queued()
    }

    /// The program was stopped: so is this job, as the shell expects; when continued, so is it.
    fn suspend(&mut self) -> io::Result<()> {
        if let Some(raw) = &mut self.raw {
            raw.restore()?;
        }
        self.session.signals.stop_job()?;
        if let Some(raw) = &mut self.raw {
            raw.make_raw()?;
        }
        self.send_window();
        self.queue(&AttachFrame::Signal(libc::SIGCONT));
        self.send_queued()
    }

    /// Nobody reads our stdout: tell the program as the kernel would, had it been its own.
    fn notice_broken_pipe(&mut self) {
        if self.stdout.is_gone() && !self.broken_pipe {
            self.broken_pipe = true;
            let signo = match self.session.streams {
                Streams::Pty => libc::SIGHUP,
                Streams::Pipes => libc::SIGPIPE,
            };
            if self.session.input == Input::Send {
                self.queue(&AttachFrame::Signal(signo));
            } else {
                self.end = Some(SessionEnd::Detached);
            }
        }
    }

    /// Undoes what the program left switched on, then leaves raw mode.
    fn tidy_terminal(&mut self) -> io::Result<()> {
        let undo = self.modes.take().map(|m| m.undo()).unwrap_or_default();
        if !undo.is_empty() {
            self.stdout.put(&undo);
            while !self.stdout.is_idle() {
                let mut fds = [PollFd::new(&self.stdout, PollFlags::OUT)];
                if poll(&mut fds, None).is_ok() {
                    self.stdout.write_some()?;
                }
            }
        }
        match &mut self.raw {
            Some(raw) => raw.restore(),
            None => Ok(()),
        }
    }
}
