//! Two ends and what is between them, each a process of its own, all on one CPU.
//!
//! A requester sends a frame and waits for the answer, as often as it is told over its control
//! socket; the replier answers until its connection ends. Forked by a caller with one thread; each
//! child dies with it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use agentd_ebpf_common::route::{HEAD_LEN, MAGIC, PORT, address};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

/// Bytes of a frame with the longest content.
const FRAME_MAX: usize = HEAD_LEN + 4096;

/// What one sample showed, ns for a request and its reply.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub p50: f64,
    pub p99: f64,
}

/// A stream of either kind.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A child of this process, killed and reaped on drop.
#[derive(Debug)]
pub struct Child(Pid);

impl Drop for Child {
    fn drop(&mut self) {
        let ended = rustix::process::kill_process(self.0, Signal::KILL)
            .and_then(|()| waitpid(Some(self.0), WaitOptions::empty()).map(drop));
        if let Err(error) = ended {
            eprintln!("end a child: {error}");
        }
    }
}

/// Runs `body` in a child on the CPU that all of them share.
pub fn fork(body: impl FnOnce() -> Result<()>) -> Result<Child> {
    // SAFETY: this process has one thread, so the child may do what it likes; it leaves by `_exit` and never returns from here.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("fork"),
        0 => {
            let done = settle().and_then(|()| body());
            if let Err(error) = &done {
                eprintln!("error: {error:#}");
            }
            // SAFETY: ends this process at once; nothing of its parent's is dropped or flushed.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        pid => Ok(Child(Pid::from_raw(pid).context("fork gave no pid")?)),
    }
}

fn settle() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(0);
    rustix::thread::sched_setaffinity(None, &cpus).context("pin to CPU 0")
}

/// Two ends of a plain TCP connection over loopback.
pub fn tcp_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

/// A direct connection: in `cgroup`, in a network namespace of its own, to a listener that accepts and never writes.
pub fn direct(cgroup: &Path) -> Result<(TcpStream, TcpStream)> {
    std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("enter {}", cgroup.display()))?;
    // SAFETY: this process has one thread; a new network namespace affects no descriptor that it has.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error()).context("make a network namespace");
    }
    raise_loopback()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    client.set_nodelay(true)?;
    Ok((client, accepted))
}

fn raise_loopback() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is valid: names and flags are integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    use std::os::fd::AsRawFd;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives on this stack; the descriptor is open.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(std::io::Error::last_os_error()).context("raise lo");
    }
    Ok(())
}

/// A frame of `content` bytes from agent `from` to agent `to`.
pub fn frame(from: u32, to: u32, content: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; HEAD_LEN + content];
    frame[..HEAD_LEN].fill(0);
    frame[0..4].copy_from_slice(&MAGIC.to_ne_bytes());
    frame[4..8].copy_from_slice(&(content as u32).to_ne_bytes());
    frame[8..16].copy_from_slice(&address(from, 1).to_ne_bytes());
    frame[16..24].copy_from_slice(&address(to, 1).to_ne_bytes());
    frame
}

/// Reads one whole frame; nothing at the end of the stream.
fn read_frame(stream: &mut impl Stream, buffer: &mut [u8; FRAME_MAX]) -> Result<Option<usize>> {
    let mut have = 0;
    loop {
        let n = stream.read(&mut buffer[have..])?;
        if n == 0 {
            return Ok(None);
        }
        have += n;
        if have >= HEAD_LEN {
            let content = u32::from_ne_bytes(buffer[4..8].try_into()?) as usize;
            if content + HEAD_LEN > FRAME_MAX {
                bail!("a frame of {content} bytes");
            }
            if have == content + HEAD_LEN {
                return Ok(Some(have));
            }
        }
    }
}

/// Answers each frame with one of the same length.
pub fn reply(mut stream: impl Stream, from: u32, to: u32) -> Result<()> {
    let mut buffer = [0; FRAME_MAX];
    let mut answer = Vec::new();
    while let Some(len) = read_frame(&mut stream, &mut buffer)? {
        if answer.len() != len {
            answer = frame(from, to, len - HEAD_LEN);
        }
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// Carries whole frames between two streams until either ends: what a process between two agents can't do less than.
pub fn relay(mut left: UnixStream, mut right: UnixStream) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut buffer = [0; FRAME_MAX];
    loop {
        let ready = {
            let mut fds = [
                PollFd::new(&left, PollFlags::IN),
                PollFd::new(&right, PollFlags::IN),
            ];
            poll(&mut fds, None)?;
            [!fds[0].revents().is_empty(), !fds[1].revents().is_empty()]
        };
        if ready[0] {
            let Some(len) = read_frame(&mut left, &mut buffer)? else {
                return Ok(());
            };
            right.write_all(&buffer[..len])?;
        }
        if ready[1] {
            let Some(len) = read_frame(&mut right, &mut buffer)? else {
                return Ok(());
            };
            left.write_all(&buffer[..len])?;
        }
    }
}

/// Asks as often as `control` says.
pub fn request(mut stream: impl Stream, mut control: UnixStream, from: u32, to: u32) -> Result<()> {
    let mut buffer = [0; FRAME_MAX];
    loop {
        let mut order = [0; 16];
        match control.read_exact(&mut order) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let count = u64::from_ne_bytes(order[..8].try_into()?);
        let content = u64::from_ne_bytes(order[8..].try_into()?) as usize;
        let ask = frame(from, to, content);
        let mut times = Vec::with_capacity(count as usize);
        for n in 0..count + count / 10 {
            let begun = Instant::now();
            stream.write_all(&ask)?;
            if read_frame(&mut stream, &mut buffer)?.is_none() {
                bail!("the connection ended");
            }
            if n >= count / 10 {
                times.push(begun.elapsed().as_nanos() as u64);
            }
        }
        times.sort_unstable();
        let at = |of: u64| times[(times.len() as u64 * of / 1000) as usize].to_ne_bytes();
        control.write_all(&[at(500), at(990)].concat())?;
    }
}

/// A running pair of ends.
pub struct Pair {
    control: UnixStream,
    _children: Vec<Child>,
}

impl Pair {
    pub fn new(control: UnixStream, children: Vec<Child>) -> Self {
        Self {
            control,
            _children: children,
        }
    }

    /// Takes one sample.
    pub fn sample(&mut self, count: u64, content: u64) -> Result<Sample> {
        self.control
            .write_all(&[count.to_ne_bytes(), content.to_ne_bytes()].concat())?;
        let mut answer = [0; 16];
        self.control
            .read_exact(&mut answer)
            .context("the requester ended")?;
        Ok(Sample {
            p50: u64::from_ne_bytes(answer[..8].try_into()?) as f64,
            p99: u64::from_ne_bytes(answer[8..].try_into()?) as f64,
        })
    }
}
