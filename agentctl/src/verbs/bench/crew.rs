//! The agents of one run: launched, listened to, and ended.
//!
//! Each is launched as `agentctl run` does it: the program is granted as an open file, the policy goes along as text, and
//! standard streams come back as an attach socket. Reports are read from there by one task per agent. Whoever runs this
//! must call [`Crew::end`]; should it be killed instead, the agents notice that nobody speaks to them any more, and end.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use agentd_api::attach::MAX_FRAME;
use agentd_api::{AttachFrame, Error, LaunchReply, LaunchSpec, ManagerProxy, StdioMode};
use agentd_kernel::grant::Uses;
use agentd_sandbox::{CallerContext, EffectivePolicy, PolicyRef};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::orders::{Orders, Report};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::resolve::Context;
use crate::run::grants;
use crate::verbs::policy::sources;

/// What the agents of a bench may do: talk with one another, and nothing else.
const POLICY: &str = include_str!("policy.toml");

/// How long an agent may go without saying what it was asked for. Generous: a hundred of them start on two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often agents are told that somebody is still there.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Names an agent of the run: its place, and which of those that had it.
pub type Seat = (u32, u32);

/// What is heard of an agent.
#[derive(Debug)]
pub enum Heard {
    Said(Report),
    /// It wrote this on stderr, or what is no report.
    Grumbled(String),
    Ended,
}

/// The agents, by seat.
#[derive(Debug)]
pub struct Crew<'a> {
    context: &'a Context,
    daemon: &'a Daemon,
    exe: PathBuf,
    lifetime: Duration,
    members: BTreeMap<Seat, Member>,
    /// Those that have said all they had to say, and may end.
    done: BTreeSet<Seat>,
    sender: mpsc::UnboundedSender<(Seat, Heard)>,
    receiver: mpsc::UnboundedReceiver<(Seat, Heard)>,
    launched: u64,
    /// A launch that agentd may carry out although nobody waits for its answer any more.
    launching: Option<JoinHandle<Result<LaunchReply, Error>>>,
    /// Names of those that were heard to end, for whoever asks why.
    ended: BTreeMap<Seat, String>,
}

#[derive(Debug)]
struct Member {
    id: String,
    name: String,
    socket: std::sync::Arc<AsyncFd<OwnedFd>>,
    listener: JoinHandle<()>,
}

impl<'a> Crew<'a> {
    /// Nobody yet. Whatever happens, agents end `lifetime` after their start.
    pub fn new(
        context: &'a Context,
        daemon: &'a Daemon,
        lifetime: Duration,
    ) -> Result<Self, Failure> {
        let exe = std::env::current_exe()
            .map_err(|e| Failure::local("can't find the program of the agents", e))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        Ok(Self {
            context,
            daemon,
            exe,
            lifetime,
            members: BTreeMap::new(),
            done: BTreeSet::new(),
            sender,
            receiver,
            launched: 0,
            launching: None,
            ended: BTreeMap::new(),
        })
    }

    /// Launches an agent with its orders.
    pub async fn launch(&mut self, seat: Seat, name: &str, orders: &Orders) -> Result<(), Failure> {
        let what = || format!("can't launch agent {name}");
        let policy = PolicyRef::Text {
            origin: "the policy of agentctl bench".to_owned(),
            text: POLICY.to_owned(),
        };
        let effective = EffectivePolicy::load(&policy, &sources(self.context, &[]))
            .map_err(|e| crate::verbs::policy::failure(&policy, &e))?;
        let caller = CallerContext {
            exe: Some(self.exe.clone()),
            ..CallerContext::default()
        };
        let grants = grants::open_all(self.context, &caller, Some(&effective), Uses::Once)?;
        let exe = self.exe.to_str().ok_or_else(|| {
            Failure::local(what(), format!("{} is not UTF-8", self.exe.display()))
        })?;
        let orders = serde_json::to_string(orders).map_err(|e| Failure::local(what(), e))?;
        let argv = [exe, "bench", "agent", &orders].map(str::to_owned);
        let mut spec = LaunchSpec::new(argv.to_vec());
        spec.policy_text = Some(POLICY.to_owned());
        spec.policy_origin = Some("the policy of agentctl bench".to_owned());
        spec.exe = Some(exe.to_owned());
        spec.name = Some(name.to_owned());
        spec.stdio = Some(StdioMode::Pipes);
        spec.timeout_ms = u64::try_from(self.lifetime.as_millis()).ok();
        spec.attach = Some(true);
        let manager = ManagerProxy::new(&self.daemon.connection).await;
        let manager = manager.map_err(|e| Failure::api(what(), &e.into()))?;
        // On a task of its own: who is interrupted here still learns of the agent, and ends it.
        let launching = self.launching.insert(tokio::spawn(async move {
            let fds = grants.iter().map(|g| g.as_fd().into()).collect();
            manager.launch(&spec, fds).await
        }));
        let reply = launching.await.map_err(|e| Failure::local(what(), e));
        self.launching = None;
        let reply = reply?.map_err(|e| Failure::api(what(), &e).try_next("agentctl doctor"))?;
        self.launched += 1;
        let socket: OwnedFd = reply
            .attach
            .ok_or_else(|| Failure::local(what(), "agentd gave no attach socket"))?
            .into();
        #[expect(
            deprecated,
            reason = "its replacement is unsafe; an owned descriptor stays open for as long as it is owned"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)
            .map_err(|e| Failure::local(what(), e))?;
        let socket = std::sync::Arc::new(socket);
        let listener = tokio::spawn(listen(
            std::sync::Arc::clone(&socket),
            seat,
            self.sender.clone(),
        ));
        let member = Member {
            id: reply.id.to_string(),
            name: reply.name,
            socket,
            listener,
        };
        self.members.insert(seat, member);
        Ok(())
    }

    /// Agents launched so far.
    pub fn launched(&self) -> u64 {
        self.launched
    }

    /// Seats of those that live, as far as is known.
    pub fn seats(&self) -> Vec<Seat> {
        self.members.keys().copied().collect()
    }

    /// Of one that lives or has ended; empty for one that was killed.
    pub fn name(&self, seat: Seat) -> &str {
        let living = self.members.get(&seat).map(|member| &member.name);
        living
            .or_else(|| self.ended.get(&seat))
            .map_or("", String::as_str)
    }

    /// A line for an agent. One that can't take it has ended, which is heard.
    pub fn tell(&self, seat: Seat, line: &str) {
        let Some(member) = self.members.get(&seat) else {
            return;
        };
        let line = format!("{line}\n");
        let frame = AttachFrame::Stdin(line.as_bytes()).to_vec();
        let sent = rustix::net::send(&*member.socket, &frame, SendFlags::NOSIGNAL);
        if let Err(error) = sent {
            self.context.tell(&format!("{}: {error}", member.name));
        }
    }

    /// A line for all.
    pub fn tell_all(&self, line: &str) {
        for seat in self.seats() {
            self.tell(seat, line);
        }
    }

    /// What is heard next; `None` after `patience`.
    pub async fn hear(&mut self, patience: Duration) -> Option<(Seat, Heard)> {
        let heard = tokio::time::timeout(patience, self.receiver.recv()).await;
        let heard = heard.ok().flatten();
        if let Some((seat, Heard::Ended)) = &heard
            && let Some(member) = self.members.remove(seat)
        {
            self.ended.insert(*seat, member.name);
        }
        heard
    }

    /// As [`Self::hear`] for runs in which nobody may grumble, keep silent, or end before it is done: each of that is
    /// the run's failure.
    pub async fn report(&mut self, what: &str) -> Result<(Seat, Report), Failure> {
        let failed = |why: String| Failure::local(format!("can't finish the {what} bench"), why);
        loop {
            match self.hear(PATIENCE).await {
                Some((seat, Heard::Said(Report::Failed(why)))) => {
                    return Err(failed(format!("{}: {why}", self.name(seat))));
                }
                Some((seat, Heard::Said(report))) => {
                    if report.is_last() {
                        self.done.insert(seat);
                    }
                    return Ok((seat, report));
                }
                Some((seat, Heard::Ended)) if self.done.contains(&seat) => {}
                Some((seat, Heard::Grumbled(text))) => {
                    return Err(failed(format!("{}: {text}", self.name(seat))));
                }
                Some((seat, Heard::Ended)) => {
                    let name = self.name(seat);
                    let why = format!("{name} ended in the middle");
                    return Err(failed(why).try_next(format!("agentctl inspect {name}")));
                }
                None => {
                    let why = format!(
                        "nothing was heard of the agents for {} s",
                        PATIENCE.as_secs()
                    );
                    return Err(failed(why).try_next("agentctl bus top"));
                }
            }
        }
    }

    /// Kills an agent, and forgets it.
    pub async fn kill(&mut self, seat: Seat) -> Result<(), Failure> {
        let Some(member) = self.members.remove(&seat) else {
            return Ok(());
        };
        member.listener.abort();
        kill(self.daemon, &member.id, &member.name).await
    }

    /// Kills all that live, and whoever is just being launched. Called however the run ended; the first failure is told,
    /// after all were tried.
    pub async fn end(mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        if let Some(launching) = self.launching.take()
            && let Ok(Ok(reply)) = launching.await
        {
            let killed = kill(self.daemon, &reply.id.to_string(), &reply.name).await;
            outcome = outcome.and(killed);
        }
        for (_, member) in std::mem::take(&mut self.members) {
            member.listener.abort();
            let killed = kill(self.daemon, &member.id, &member.name).await;
            outcome = outcome.and(killed);
        }
        outcome
    }
}

async fn kill(daemon: &Daemon, id: &str, name: &str) -> Result<(), Failure> {
    let Some(agent) = daemon.find_agent(id).await? else {
        return Ok(());
    };
    match agent.kill().await {
        Ok(()) => Ok(()),
        // It ended by itself.
        Err(e) if e.code() == agentd_api::ErrorCode::Unavailable => Ok(()),
        Err(e) => Err(Failure::api(format!("can't kill {name}"), &e)
            .try_next(format!("agentctl kill {name}"))),
    }
}

/// Turns what an agent writes into reports, until it ends.
async fn listen(
    socket: std::sync::Arc<AsyncFd<OwnedFd>>,
    seat: Seat,
    sender: mpsc::UnboundedSender<(Seat, Heard)>,
) {
    let mut buffer = vec![0; MAX_FRAME];
    let mut out = Lines::default();
    let mut err = Lines::default();
    // The receiver is gone when the run is over: then nobody wants to hear.
    let tell = |heard| drop(sender.send((seat, heard)));
    let mut sign = tokio::time::interval(SIGN_OF_LIFE);
    let sign_of_life = AttachFrame::Stdin(b"\n").to_vec();
    loop {
        let ready = tokio::select! {
            ready = socket.readable() => ready,
            _ = sign.tick() => {
                // One that can't take it has ended, or has enough of them before it.
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                let _sent = rustix::net::send(&*socket, &sign_of_life, flags);
                continue;
            }
        };
        let Ok(mut ready) = ready else {
            break;
        };
        let packet = rustix::net::recv(&*socket, &mut *buffer, RecvFlags::DONTWAIT);
        let length = match packet {
            Ok((0, _)) => break,
            Ok((length, _)) => length,
            Err(rustix::io::Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
        };
        match AttachFrame::decode(&buffer[..length]) {
            Ok(AttachFrame::Stdout(bytes)) => out.feed(bytes, |line| {
                tell(match serde_json::from_str(line) {
                    Ok(report) => Heard::Said(report),
                    Err(_) => Heard::Grumbled(line.to_owned()),
                });
            }),
            Ok(AttachFrame::Stderr(bytes)) => {
                err.feed(bytes, |line| tell(Heard::Grumbled(line.to_owned())));
            }
            Ok(AttachFrame::Lost(bytes)) => {
                tell(Heard::Grumbled(format!(
                    "{bytes} bytes of reports were lost"
                )));
            }
            Ok(AttachFrame::Exit(_)) | Err(_) => break,
            Ok(_) => {}
        }
    }
    tell(Heard::Ended);
}

/// Bytes in any pieces, lines out.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        self.0.extend_from_slice(bytes);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let rest = self.0.split_off(end + 1);
            let whole = std::mem::replace(&mut self.0, rest);
            line(String::from_utf8_lossy(&whole[..end]).as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in ["a", "b\nc", "\n\nd"] {
            lines.feed(piece.as_bytes(), |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["ab", "c", ""]);
    }

    #[test]
    fn the_policy_of_the_agents_is_sound() {
        let policy = PolicyRef::Text {
            origin: "bench".to_owned(),
            text: POLICY.to_owned(),
        };
        let sources = agentd_sandbox::policy::Sources::default();
        EffectivePolicy::load(&policy, &sources).expect("a policy");
    }
}
