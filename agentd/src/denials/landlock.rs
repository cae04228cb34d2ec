//! What Landlock refused: records of the kernel's audit, on a socket that the broker made and that
//! lets nothing else through.
//!
//! The kernel waits for nobody. What finds the socket full is counted by it ([`Source::dropped`]);
//! what a domain refused in all is in the record of its end, so each agent's losses are exact where
//! that comes through. The socket is read no faster than its [`Allowance`], whatever agents do. A
//! record is text by the kernel with names from inside sandboxes in it;
//! [`agentd_kernel::audit::record`] parses it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agentd_kernel::audit;
use agentd_kernel::audit::record::{Access, Target, parse_message};
use rustix::net::RecvFlags;
use rustix::net::netlink::SocketAddrNetlink;

use super::allowance::Allowance;
use super::domains::{Domains, Verdict};
use super::{Layer, Witness, shown_name};

/// Bytes of a path that are shown.
const SHOWN: usize = 1024;

/// The socket, and whose the domains are.
#[derive(Debug)]
pub struct Source {
    socket: OwnedFd,
    domains: Mutex<Domains<Arc<Witness>>>,
    /// What it had dropped when this agentd came.
    before: u32,
}

impl Source {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            before: dropped(&socket),
            socket,
            domains: Mutex::default(),
        }
    }

    /// An agent is there, whose sandbox has this init. Its domain, if it is known by now and nobody keeps it yet.
    pub fn arrive(&self, init: u32, witness: &Arc<Witness>, domain: Option<u64>) -> Option<u64> {
        let arrival = self.lock().arrive(init, Arc::clone(witness), domain);
        if !arrival.held.is_empty() {
            let witness = Arc::clone(witness);
            tokio::spawn(async move {
                for access in arrival.held {
                    tell(&witness, &access).await;
                }
            });
        }
        arrival.learned
    }

    pub fn leave(&self, init: u32) {
        self.lock().leave(init);
    }

    /// Refusals of which nobody can say whose they were: all that was lost, here and in the kernel (`kernel`), but for what is
    /// shown as some agent's own (`owned`). Records of the domains' own beginnings and ends may be among it.
    pub fn lost(&self, kernel: u64, owned: u64) -> u64 {
        // The kernel's counter wraps.
        let dropped = dropped(&self.socket).wrapping_sub(self.before);
        (u64::from(dropped) + kernel).saturating_sub(owned) + self.lock().strays()
    }

    fn lock(&self) -> MutexGuard<'_, Domains<Arc<Witness>>> {
        // No call below leaves anything half done.
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dropped(socket: &OwnedFd) -> u32 {
    // Older than Landlock's records is the kernel that can't say.
    audit::dropped(socket.as_fd()).unwrap_or(0)
}

/// Tells of what arrives for as long as agentd runs.
///
/// # Errors
/// The trouble of the socket: nothing of Landlock's is told from then on.
pub async fn follow(source: &Source) -> io::Result<()> {
    let socket = crate::agents::watch_fd(source.socket.try_clone()?)?;
    let mut buffer = [0u8; audit::MAX_RECORD];
    let mut allowance = Allowance::new(Instant::now());
    loop {
        let mut ready = socket.readable().await?;
        if allowance.at(Instant::now()) == 0 {
            // Enough for this while: the socket fills, and the kernel counts.
            tokio::time::sleep_until(allowance.again().into()).await;
            continue;
        }
        let received =
            rustix::net::recvfrom(socket.get_ref(), buffer.as_mut_slice(), RecvFlags::empty());
        let (len, from) = match received {
            Ok((len, _, from)) => (len, from),
            Err(rustix::io::Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            // Something was dropped since the last one, and counted.
            Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        allowance.spend(1);
        let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
        if from.is_some_and(|from| from.pid() == 0)
            && let Some(record) = parse_message(&buffer[..len])
        {
            let verdict = source.lock().hear(record);
            match verdict {
                Verdict::Tell(witness, access) => tell(&witness, &access).await,
                Verdict::Learned(witness, domain) => witness.learn(domain),
                Verdict::Ended(witness, untold) => witness.set_lost(Layer::Landlock, untold),
                Verdict::Nothing => {}
            }
        }
    }
}

async fn tell(witness: &Witness, access: &Access) {
    let path = match &access.target {
        Target::Path(path) => Some(std::ffi::OsStr::from_bytes(path)),
        _ => None,
    };
    let reason = witness
        .rules
        .landlock(&access.blockers, path.map(Path::new));
    let (target, same) = target(&access.target);
    witness
        .tell(Layer::Landlock, &access.blockers, target, reason, &same)
        .await;
}

/// In words, and what makes two the same.
fn target(target: &Target) -> (String, String) {
    let one = match target {
        Target::Path(path) => shown_name(&path[..path.len().min(SHOWN)]),
        Target::Port { address, port } => match address.as_str() {
            "" => format!("port {port}"),
            six if six.contains(':') => format!("[{six}]:{port}"),
            four => format!("{four}:{port}"),
        },
        Target::Process { pid, comm } => {
            let name = shown_name(comm);
            return (format!("{name}[{pid}]"), name);
        }
        Target::Unknown => "the kernel does not say".into(),
    };
    (one.clone(), one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_what_people_call_them_and_can_do_no_harm() {
        let shown = |one| target(&one).0;
        assert_eq!(shown(Target::Path(b"/etc/shadow".to_vec())), "/etc/shadow");
        assert_eq!(shown(Target::Path(b"/\x1b[2J\n".to_vec())), "/?[2J?");
        let long = Target::Path(vec![b'a'; 4 * SHOWN]);
        assert_eq!(shown(long).len(), SHOWN);
        let port = |address: &str| Target::Port {
            address: address.into(),
            port: 443,
        };
        assert_eq!(shown(port("")), "port 443");
        assert_eq!(shown(port("127.0.0.1")), "127.0.0.1:443");
        assert_eq!(shown(port("::1")), "[::1]:443");
        let process = Target::Process {
            pid: 7,
            comm: b"a\x07".to_vec(),
        };
        assert_eq!(target(&process), ("a?[7]".into(), "a?".into()));
    }
}
