//! The caller's ssh-agent inside a sandbox, filtered: listing keys and signing pass, and nothing else.
//!
//! By a policy with `[ssh] agent = "forward"` there is a socket in the sandbox (`SSH_AUTH_SOCK`). Behind it stands one
//! connection to the caller's ssh-agent, which the *caller* opened and handed over (`Manager.ForwardSshAgent`): agentd,
//! whoever it runs as, never looks for anybody's agent. Requests of all the sandbox's connections go over it one after
//! another. Keys that the policy does not name are not listed and do not sign; adding, removing, locking and extensions
//! are answered with failure. Each signature is on record, and a person approves it first where the policy says so.
//!
//! Runs on daemon tasks without privilege. When the ssh-agent goes away, everything is answered with failure.

mod wire;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentd_api::approvals::{Answer, QuestionKind};
use agentd_api::{AgentId, AgentIdentity};
use agentd_sandbox::rules::SshRules;
use agentd_storage::{Approval, Denial, Event, Fact, Store};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::approvals::{Answered, Approvals, Ask};
use crate::revocation::Live;

/// Connections of one sandbox at a time.
const MAX_CONNECTIONS: usize = 16;
/// How long a request waits for the caller to hand its ssh-agent over.
const HAND_OVER: Duration = Duration::from_secs(10);
/// How long an ssh-agent may take; it may ask its user for a confirmation.
const ANSWER: Duration = Duration::from_secs(120);

type Upstream = Arc<tokio::sync::Mutex<Option<UnixStream>>>;

/// The ssh-agents that were handed over, by launch.
#[derive(Debug, Default)]
pub struct SshAgents(Mutex<HashMap<AgentId, watch::Sender<Option<Upstream>>>>);

impl SshAgents {
    fn slot(&self, id: AgentId) -> watch::Receiver<Option<Upstream>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .entry(id)
            .or_insert_with(|| watch::Sender::new(None))
            .subscribe()
    }

    /// This launch has a socket; an ssh-agent may be handed over for it from now on.
    pub fn expect(&self, id: AgentId) {
        drop(self.slot(id));
    }

    /// Puts a connection to its owner's ssh-agent behind the socket of a launch; an earlier one is dropped.
    ///
    /// # Errors
    /// When it is no stream socket, or the launch has no such socket.
    pub fn hand_over(&self, id: AgentId, connection: OwnedFd) -> io::Result<bool> {
        let stream = std::os::unix::net::UnixStream::from(connection);
        if rustix::net::sockopt::socket_type(&stream)? != rustix::net::SocketType::STREAM {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no stream socket",
            ));
        }
        stream.set_nonblocking(true)?;
        let upstream = Arc::new(tokio::sync::Mutex::new(Some(UnixStream::from_std(stream)?)));
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.get(&id) else {
            return Ok(false);
        };
        slot.send_replace(Some(upstream));
        Ok(true)
    }

    fn forget(&self, id: AgentId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }
}

/// One agent's way to its owner's ssh-agent.
#[derive(Debug)]
pub struct Forward {
    pub identity: AgentIdentity,
    pub rules: Live<SshRules>,
    pub unit: Option<String>,
    pub ask_timeout: Duration,
    pub approvals: Arc<Approvals>,
    pub store: Store,
    pub agents: Arc<SshAgents>,
}

/// Serves the socket of one sandbox until `cancel`led.
pub async fn serve(listener: UnixListener, forward: Forward, cancel: CancellationToken) {
    let id = forward.identity.id;
    let upstream = forward.agents.slot(id);
    let forward = Arc::new(forward);
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let seat = Arc::clone(&seats).acquire_owned().await.expect("the semaphore is never closed");
                listener.accept().await.map(|(stream, _)| (stream, seat))
            } => accepted,
            () = cancel.cancelled() => break,
        };
        let (stream, seat) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(agent = %forward.identity, %error, "cannot accept an ssh-agent connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (forward, upstream, cancel) = (Arc::clone(&forward), upstream.clone(), cancel.clone());
        tokio::spawn(async move {
            tokio::select! {
                ended = forward.converse(stream, upstream) => {
                    if let Err(error) = ended {
                        tracing::debug!(agent = %forward.identity, %error, "an ssh-agent connection broke");
                    }
                }
                () = cancel.cancelled() => {}
            }
            drop(seat);
        });
    }
    forward.agents.forget(id);
}

impl Forward {
    async fn converse(
        &self,
        mut inside: UnixStream,
        mut upstream: watch::Receiver<Option<Upstream>>,
    ) -> io::Result<()> {
        while let Some(request) = wire::read(&mut inside).await? {
            let answer = self.answer(&request, &mut upstream).await;
            wire::write(&mut inside, answer.as_deref().unwrap_or(&[wire::FAILURE])).await?;
        }
        Ok(())
    }

    /// `None` is a failure, whatever the reason: a client can't tell them apart, the record can.
    async fn answer(
        &self,
        request: &[u8],
        upstream: &mut watch::Receiver<Option<Upstream>>,
    ) -> Option<Vec<u8>> {
        let handed = tokio::time::timeout(HAND_OVER, upstream.wait_for(Option::is_some)).await;
        let upstream = handed.ok()?.ok()?.clone()?;
        match *request.first()? {
            wire::REQUEST_IDENTITIES => Some(wire::identities(&self.keys(&upstream).await?)),
            wire::SIGN_REQUEST => {
                let blob = wire::parse_sign_request(request)?;
                let name = wire::fingerprint(blob);
                let key = self
                    .keys(&upstream)
                    .await?
                    .into_iter()
                    .find(|k| k.blob == blob);
                let Some(key) = key else {
                    self.refuse(&name).await;
                    return None;
                };
                let comment = String::from_utf8_lossy(&key.comment).into_owned();
                if !self.consents(&name, &comment).await {
                    return None;
                }
                let answer = ask(&upstream, request).await?;
                (answer.first() == Some(&wire::SIGN_RESPONSE)).then_some(answer)
            }
            _ => None,
        }
    }

    /// The keys that this agent may know of.
    async fn keys(&self, upstream: &Upstream) -> Option<Vec<wire::Key>> {
        let answer = ask(upstream, &[wire::REQUEST_IDENTITIES]).await?;
        let mut keys = wire::parse_identities(&answer)?;
        let rules = self.rules.now();
        keys.retain(|k| rules.allows(&wire::fingerprint(&k.blob)));
        Some(keys)
    }

    async fn refuse(&self, fingerprint: &str) {
        let denial = Denial {
            layer: "ssh".into(),
            what: "sign".into(),
            target: fingerprint.to_owned(),
            rule: "the key is not in [ssh] keys, or the ssh-agent does not hold it".into(),
            origin: self
                .rules
                .now()
                .refused_by(fingerprint)
                .map(ToString::to_string),
        };
        self.record(Fact::Denial(denial)).await;
    }

    /// Whether this signature may be made; on record before it is.
    async fn consents(&self, fingerprint: &str, comment: &str) -> bool {
        let request_id = format!("sign {fingerprint}");
        let answered = if self.rules.now().ask {
            let ask = Ask {
                identity: self.identity.clone(),
                unit: self.unit.clone(),
                request_id: request_id.clone(),
                kind: QuestionKind::Sign,
                tool: fingerprint.to_owned(),
                input: json!({ "key": comment }),
                rule: "[ssh] sign = \"ask\"".into(),
                workspace: None,
                timeout: self.ask_timeout,
            };
            self.approvals.ask(ask).await
        } else {
            Answered {
                answer: Answer::Allow,
                by: "policy".into(),
                reason: "[ssh] agent = \"forward\"".into(),
            }
        };
        let fact = Fact::Approval(Approval {
            request_id,
            tool: format!("sign with {fingerprint} ({comment})"),
            decision: answered.answer.as_str().to_owned(),
            by: answered.by,
            reason: answered.reason,
        });
        if !self.record(fact).await || answered.answer != Answer::Allow {
            return false;
        }
        // A person may have taken long.
        if self.rules.now().allows(fingerprint) {
            return true;
        }
        self.refuse(fingerprint).await;
        false
    }

    async fn record(&self, fact: Fact) -> bool {
        let event = Event::now(self.identity.id.to_string(), fact);
        let written = self.store.record_durable(event).await;
        if let Err(error) = &written {
            tracing::error!(agent = %self.identity, "the use of a key can't be recorded: {error}");
        }
        written.is_ok()
    }
}

/// One request and its answer over the one connection. Whatever breaks it ends it: what comes after would answer
/// another question.
async fn ask(upstream: &Upstream, request: &[u8]) -> Option<Vec<u8>> {
    let mut place = upstream.lock().await;
    // Taken out while the question is open, so that a caller that gives up leaves no half-read stream behind.
    let mut stream = place.take()?;
    let exchange = async {
        wire::write(&mut stream, request).await?;
        wire::read(&mut stream).await
    };
    match tokio::time::timeout(ANSWER, exchange).await {
        Ok(Ok(Some(answer))) => {
            *place = Some(stream);
            Some(answer)
        }
        Ok(Ok(None)) => {
            tracing::info!("an ssh-agent that was handed over has gone");
            None
        }
        Ok(Err(error)) => {
            tracing::info!(%error, "the connection to an ssh-agent broke");
            None
        }
        Err(_) => {
            tracing::info!("an ssh-agent did not answer in {ANSWER:?}");
            None
        }
    }
}
