//! An agent that does nothing wrong: requests and replies over loopback TCP in a network namespace of its own, each numbered and
//! compared byte by byte, until it is told to stop.

use super::attack::own_network;
use crate::bed::{Agent, Child};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

/// Sizes of requests, in turn.
const SIZES: [usize; 5] = [1, 64, 1500, 4096, 70_000];

/// It ends with 0 when a byte is written to the descriptor and everything came back as it was sent.
pub fn start(agent: &Agent) -> (Child, OwnedFd) {
    let (until, stop) = rustix::pipe::pipe().expect("pipe");
    rustix::io::ioctl_fionbio(&until, true).expect("FIONBIO");
    let child = agent.start(move || match talk(&until) {
        Ok(()) => 0,
        Err(_) => 1,
    });
    (child, stop)
}

fn talk(until: &OwnedFd) -> std::io::Result<()> {
    own_network()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match server.read(&mut buffer)? {
                0 => return Ok(()),
                len => server.write_all(&buffer[..len])?,
            }
        }
    });
    let mut number: u64 = 0;
    while rustix::io::read(until, &mut [0u8; 1]) != Ok(1) {
        let size = SIZES[(number % SIZES.len() as u64) as usize];
        let sent: Vec<u8> = (0..size)
            .map(|at| (number.wrapping_mul(31) + at as u64) as u8)
            .collect();
        let mut came = vec![0; size];
        client.write_all(&sent)?;
        client.read_exact(&mut came)?;
        if came != sent {
            return Err(std::io::Error::other("another message"));
        }
        number += 1;
    }
    drop(client);
    echo.join()
        .map_err(|_| std::io::Error::other("the echo panicked"))?
}
