//! Finding a daemon and talking with it.
//!
//! A client tries the directory it was given, or the user's own daemon and then the system's. The
//! connection is peer to peer: `EXTERNAL` authentication, one write before the first answer is needed.
//! Only `--bus` goes over the system bus, where the same objects are found under `org.agentd1`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agentd_api::{ErrorCode, ManagerProxy, dirs};
use zbus::Connection;

use crate::failure::Failure;
use crate::resolve::{Context, Door};

/// A connection and where it leads.
#[derive(Debug)]
pub struct Daemon {
    pub connection: Connection,
    pub runtime_dir: PathBuf,
}

impl Daemon {
    /// Connects to the first daemon that is there.
    pub async fn connect(context: &Context) -> Result<Self, Failure> {
        match context.door {
            Door::SystemBus => Self::over_bus().await,
            Door::Socket => {
                let (stream, runtime_dir) = find_socket(context)?;
                Self::over(stream, runtime_dir).await
            }
        }
    }

    /// Speaks with the system's daemon over the system bus (`DBUS_SYSTEM_BUS_ADDRESS`).
    pub async fn over_bus() -> Result<Self, Failure> {
        let connection = zbus::connection::Builder::system()
            .build()
            .await
            .map_err(|e| {
                Failure::of_code(ErrorCode::Unreachable, "can't reach the system bus", e)
                    .try_next("agentctl ps, which needs no bus")
            })?;
        Ok(Self {
            connection,
            runtime_dir: dirs::SYSTEM_RUNTIME_DIR.into(),
        })
    }

    /// Speaks D-Bus over a connected socket.
    pub async fn over(stream: UnixStream, runtime_dir: PathBuf) -> Result<Self, Failure> {
        let connection = zbus::connection::Builder::unix_stream(stream)
            .p2p()
            .build()
            .await;
        let connection = connection.map_err(|e| {
            let what = format!("can't talk with the agentd in {}", runtime_dir.display());
            Failure::of_code(ErrorCode::Unreachable, what, e).try_next("agentctl doctor")
        })?;
        Ok(Self {
            connection,
            runtime_dir,
        })
    }

    pub async fn manager(&self) -> Result<ManagerProxy<'_>, Failure> {
        ManagerProxy::new(&self.connection)
            .await
            .map_err(|e| Failure::api("can't talk with agentd", &e.into()))
    }

    /// The proxy of the agent that `name_or_id` means.
    pub async fn agent(&self, name_or_id: &str) -> Result<agentd_api::AgentProxy<'_>, Failure> {
        let found = self.manager().await?.find(name_or_id).await;
        let path = found.map_err(|e| {
            Failure::api(format!("can't find agent {name_or_id:?}"), &e)
                .try_next("agentctl ps --all")
        })?;
        self.agent_at(name_or_id, path).await
    }

    /// As [`Self::agent`]; `None` if the daemon knows no such agent, living or recently ended.
    pub async fn find_agent(
        &self,
        name_or_id: &str,
    ) -> Result<Option<agentd_api::AgentProxy<'_>>, Failure> {
        match self.manager().await?.find(name_or_id).await {
            Ok(path) => self.agent_at(name_or_id, path).await.map(Some),
            Err(e) if e.code() == ErrorCode::NotFound => Ok(None),
            Err(e) => Err(Failure::api(format!("can't find agent {name_or_id:?}"), &e)),
        }
    }

    async fn agent_at(
        &self,
        name_or_id: &str,
        path: zbus::OwnedObjectPath,
    ) -> Result<agentd_api::AgentProxy<'_>, Failure> {
        let proxy = agentd_api::AgentProxy::builder(&self.connection)
            .path(path)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build();
        proxy
            .await
            .map_err(|e| Failure::api(format!("can't find agent {name_or_id:?}"), &e.into()))
    }
}

/// A connected control socket and its runtime directory.
pub fn find_socket(context: &Context) -> Result<(UnixStream, PathBuf), Failure> {
    let mut tried = Vec::new();
    for dir in context.dirs.candidates(context.runtime_dir.as_deref()) {
        match connect_in(&dir, context) {
            Ok(stream) => return Ok((stream, dir)),
            Err(Absent::NoDaemon(why)) => tried.push(format!("{}: {why}", dir.display())),
            Err(Absent::Refused(failure)) => return Err(*failure),
        }
    }
    Err(Failure::of_code(
        ErrorCode::Unreachable,
        "can't reach agentd",
        tried.join("; "),
    )
    .try_next("start it with `agentd`, or let `agentctl run` start one for you"))
}

/// Why a directory yields no connection.
#[derive(Debug)]
pub enum Absent {
    /// Nobody serves there; another directory, or starting one, may help.
    NoDaemon(String),
    /// Somebody or something is there, and going on would be wrong.
    Refused(Box<Failure>),
}

/// Connects to the daemon of one runtime directory.
pub fn connect_in(dir: &Path, context: &Context) -> Result<UnixStream, Absent> {
    check_owner(dir, context)?;
    let socket = dirs::control_socket(dir);
    UnixStream::connect(&socket).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Absent::NoDaemon("no control socket".to_owned()),
        io::ErrorKind::ConnectionRefused => {
            Absent::NoDaemon("nobody listens on the control socket".to_owned())
        }
        io::ErrorKind::PermissionDenied => {
            let what = format!("can't connect to {}", socket.display());
            let failure = Failure::of_code(ErrorCode::Denied, what, "you may not use this agentd")
                .try_next(
                    "agentctl run, which starts an agentd of your own, without --runtime-dir",
                );
            Absent::Refused(Box::new(failure))
        }
        _ => {
            let what = format!("can't connect to {}", socket.display());
            Absent::Refused(Box::new(Failure::of_code(ErrorCode::Unreachable, what, e)))
        }
    })
}

/// A socket in a directory that somebody else made is not our daemon's: `/tmp/agentd-UID` could be
/// anybody's. What the user typed or set is the user's choice.
fn check_owner(dir: &Path, context: &Context) -> Result<(), Absent> {
    if context.runtime_dir.is_some() || context.dirs.agentd_runtime_dir.is_some() {
        return Ok(());
    }
    let Ok(stat) = std::fs::symlink_metadata(dir) else {
        return Err(Absent::NoDaemon("no such directory".to_owned()));
    };
    let owner = stat.uid();
    let system = Path::new(dirs::SYSTEM_RUNTIME_DIR);
    if dir == system || owner == context.dirs.uid || owner == 0 {
        return Ok(());
    }
    let what = format!("can't trust {}", dir.display());
    let why = format!("it belongs to uid {owner}, not to you");
    let failure = Failure::of_code(ErrorCode::Denied, what, why)
        .try_next("set XDG_RUNTIME_DIR or AGENTD_RUNTIME_DIR to a directory of your own");
    Err(Absent::Refused(Box::new(failure)))
}
