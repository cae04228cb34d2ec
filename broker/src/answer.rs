//! What each request does, once its bytes are understood.
//!
//! Runs in the worker's loop with the client's descriptors in hand, which are closed by whoever does not store them. Every
//! refusal names what would be allowed.

use crate::adopt::adopt;
use crate::agents::{Agents, Grace, stats};
use crate::failure::{failed, refused};
use crate::limit;
use crate::server::Server;
use agentd_bpf::layout::route::slot_of;
use agentd_broker::protocol::{
    CgroupFeatures, ErrorCode, Failure, Reply, Request, Slot, VERSION, Welcome,
};
use agentd_kernel::cgroup::{Controller, Freeze};
use std::os::fd::{AsFd, OwnedFd};

/// A reply and its descriptors; `None` where the end of the connection is the answer.
type Answer = Result<Option<(Reply, Vec<OwnedFd>)>, Failure>;

impl Server {
    pub fn answer(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Answer {
        if self.end.is_some() {
            return Err(refused(
                ErrorCode::ShuttingDown,
                "the broker is shutting down",
            ));
        }
        let carries = matches!(
            request,
            Request::Hello { .. } | Request::Launch(_) | Request::Keep { .. } | Request::Adopt(_)
        );
        if !carries && !fds.is_empty() {
            return Err(refused(
                ErrorCode::Malformed,
                "only hello, launch, keep and adopt carry descriptors",
            ));
        }
        let lifeline = self
            .client
            .as_ref()
            .and_then(|client| client.lifeline.as_ref());
        let lifeline = match (request, lifeline) {
            (&Request::Hello { version }, None) => {
                return Ok(Some((self.hello(version, fds)?, Vec::new())));
            }
            (Request::Hello { .. }, Some(_)) | (_, None) => {
                return Err(refused(
                    ErrorCode::OutOfOrder,
                    "hello is the first request of a connection, once",
                ));
            }
            (_, Some(lifeline)) => lifeline.as_fd(),
        };
        let done = (Reply::Done, Vec::new());
        Ok(Some(match request {
            Request::Hello { .. } => unreachable!("answered above"),
            Request::Launch(launch) => {
                let slot = self.agents.free_slot()?;
                let started = self.workshop.launch(slot, launch, fds, lifeline)?;
                let reply = Reply::Launched(started.agent.info.clone());
                self.agents.insert(started.agent);
                (reply, vec![started.pidfd, started.status])
            }
            &Request::Kill(slot) => {
                self.agents.get(slot)?.kill()?;
                done
            }
            &Request::Freeze(slot) => {
                freeze(&mut self.agents, slot, Freeze::Frozen)?;
                done
            }
            &Request::Thaw(slot) => {
                freeze(&mut self.agents, slot, Freeze::Thawed)?;
                done
            }
            &Request::Stat(slot) => {
                let usage = self.agents.get(slot)?.running_group()?.usage();
                (Reply::Stats(stats(usage)), Vec::new())
            }
            &Request::Release(slot) => {
                self.agents.release(slot)?;
                done
            }
            &Request::Keep { slot, count } => {
                if fds.len() != count as usize {
                    let text = format!("keep says {count} descriptors and carries {}", fds.len());
                    return Err(refused(ErrorCode::Malformed, text));
                }
                self.agents.get(slot)?.kept = fds;
                done
            }
            &Request::Next { after } => match self.agents.next_after(after) {
                None => done,
                Some(agent) => {
                    let held = agent.held().map_err(|error| {
                        failed(ErrorCode::TooMany, "duplicating what is kept", &error)
                    })?;
                    (Reply::Held(held.0), held.1)
                }
            },
            Request::Adopt(info) => {
                if !self.agents.takes(info.slot) {
                    let text = format!("slot {} holds another agent, or is none", info.slot);
                    return Err(refused(ErrorCode::Adopt, text));
                }
                self.agents.insert(adopt(&self.workshop, info, fds)?);
                done
            }
            Request::Plane => self.workshop.plane.hand_over()?,
            Request::Audit => self.audit.hand_over(),
            Request::AuditLost => (Reply::Count(self.audit.lost()?), Vec::new()),
            &Request::Absent(group) => {
                let reason = self.workshop.plane.why_absent(group);
                (Reply::Reason(reason.to_owned()), Vec::new())
            }
            &Request::Restrict {
                slot,
                revoked,
                kept_ports,
            } => {
                self.agents.get(slot)?.running_group()?;
                self.workshop.plane.restrict(slot, revoked, kept_ports)?;
                done
            }
            &Request::Route { from, to, right } => {
                for address in [from, to] {
                    self.agents.get(Slot(slot_of(address)))?.running_group()?;
                }
                self.workshop.plane.route(from, to, right)?;
                done
            }
            &Request::Limit { slot, limits } => {
                limit::while_it_runs(self.agents.get(slot)?.running_group()?, limits)?;
                done
            }
            Request::Detach => done,
            Request::Shutdown => {
                self.stop();
                return Ok(None);
            }
        }))
    }

    fn hello(&mut self, version: u32, fds: Vec<OwnedFd>) -> Result<Reply, Failure> {
        if version != VERSION {
            let pid = std::process::id();
            let text = format!(
                "this broker (pid {pid}) speaks version {VERSION}, not {version}: end it and its agents with kill {pid}, \
                 then start agentd again"
            );
            return Err(refused(ErrorCode::Version, text));
        }
        let wrong = || {
            refused(
                ErrorCode::Malformed,
                "hello carries one descriptor: the read end of a pipe",
            )
        };
        let [lifeline] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| wrong())?;
        let stat = rustix::fs::fstat(&lifeline).map_err(|_| wrong())?;
        let flags = rustix::fs::fcntl_getfl(&lifeline).map_err(|_| wrong())?;
        let is_read_end = rustix::fs::FileType::from_raw_mode(stat.st_mode)
            == rustix::fs::FileType::Fifo
            && flags & rustix::fs::OFlags::ACCMODE == rustix::fs::OFlags::RDONLY;
        if !is_read_end {
            return Err(wrong());
        }
        if let Some(client) = &mut self.client {
            client.lifeline = Some(lifeline);
        }
        for agent in self.agents.iter_mut() {
            agent.grace = Grace::Whole;
        }
        let subtree = &self.workshop.subtree;
        let has = |wanted| subtree.controllers().any(|controller| controller == wanted);
        let cgroups = CgroupFeatures {
            memory: has(Controller::Memory),
            pids: has(Controller::Pids),
            cpu: has(Controller::Cpu),
            unified: subtree.has_unified(),
        };
        Ok(Reply::Welcome(Welcome {
            version: VERSION,
            mode: self.workshop.mode,
            pid: std::process::id() as i32,
            cgroups,
            held: self.agents.count() as u32,
        }))
    }
}

fn freeze(agents: &mut Agents, slot: Slot, state: Freeze) -> Result<(), Failure> {
    match agents.get(slot)?.running_group()?.freeze(state) {
        Ok(true) => Ok(()),
        Ok(false) => Err(refused(
            ErrorCode::Unsupported,
            "freezing needs a cgroup2 hierarchy, and there is none here",
        )),
        Err(error) => Err(failed(ErrorCode::Cgroup, &error.operation, &error.source)),
    }
}
