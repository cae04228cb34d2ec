//! How much the kernel holds for a peer that never reads: what it finds in its queue once it does.
//!
//! Two peers: one that does nothing, and one that looks at what is there again and again and takes none of it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use agentd_ebpf_common::route::CONTENT_MAX;
use anyhow::{Context, Result};

use crate::kernel::Plane;
use crate::stage::{direct, fork, frame};

/// Frames that are tried: 64 MiB and more.
const FRAMES: u64 = 16_384;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Silent,
    /// Peeks after each frame.
    Peeking,
}

/// Bytes that were queued to the peer of slot 2 when the flood had ended.
pub fn flood(plane: &Plane, peer: Peer) -> Result<u64> {
    let (mut control, mut theirs) = UnixStream::pair()?;
    let _silent = fork(|| {
        let (mut stream, _accepted) = direct(plane.cgroup(1))?;
        theirs.write_all(&[1])?;
        let mut order = [0];
        loop {
            theirs.read_exact(&mut order)?;
            if order[0] == 0 {
                break;
            }
            stream.peek(&mut [0; 1 << 12])?;
            theirs.write_all(&[1])?;
        }
        theirs.write_all(&found(&mut stream)?.to_ne_bytes())?;
        theirs.read_exact(&mut order).context("the driver ended")
    })?;
    let mut ready = [0];
    control
        .read_exact(&mut ready)
        .context("the silent peer ended")?;
    let (mut sent, mut done) = UnixStream::pair()?;
    let mut orders = control.try_clone()?;
    let _flooder = fork(|| {
        let (mut stream, _accepted) = direct(plane.cgroup(0))?;
        stream.set_write_timeout(Some(std::time::Duration::from_millis(200)))?;
        let full = frame(1, 2, CONTENT_MAX as usize);
        for _ in 0..FRAMES {
            let went = stream.write_all(&full).is_ok();
            if peer == Peer::Peeking {
                if !went {
                    break;
                }
                orders.write_all(&[1])?;
                orders.read_exact(&mut [0])?;
            }
        }
        done.write_all(&[1])?;
        done.read_exact(&mut [0]).context("the driver ended")
    })?;
    sent.read_exact(&mut ready).context("the flooder ended")?;
    control.write_all(&[0])?;
    let mut bytes = [0; 8];
    control.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Reads all that is there.
fn found(stream: &mut TcpStream) -> Result<u64> {
    stream.set_nonblocking(true)?;
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes += n as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(bytes),
            Err(error) => return Err(error.into()),
        }
    }
}
