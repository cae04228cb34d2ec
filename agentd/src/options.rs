//! What was typed and what the environment says, resolved into [`Options`].
//!
//! This is the one place where the daemon reads its environment; everything later takes values. The daemon has
//! five switches, so the arguments are read by hand: pulling a parser into a long-lived confined process buys nothing.

use std::ffi::OsString;
use std::path::PathBuf;

use agentd_api::dirs::{DirEnv, DirError};

use crate::audit::Verifying;

/// The text of `agentd --help`.
pub const HELP: &str = "\
agentd: launches AI agents as confined processes, wires them together and records what they do

usage: agentd [--config FILE] [--runtime-dir DIR] [--state-dir DIR] [--keep-agents] [--foreground]
       agentd --system [--host-caps FILE] [...]
       agentd --probe-host FILE

  --config FILE       configuration, TOML (AGENTD_CONFIG; default /etc/agentd/agentd.toml as root,
                      ~/.config/agentd/agentd.toml otherwise; a missing default file means defaults)
  --runtime-dir DIR   sockets (AGENTD_RUNTIME_DIR; default /run/agentd as root, $XDG_RUNTIME_DIR/agentd otherwise)
  --state-dir DIR     database and logs (AGENTD_STATE_DIR; default /var/lib/agentd as root,
                      $XDG_STATE_HOME/agentd otherwise)
  --keep-agents       SIGTERM leaves the agents to the next agentd (as `on_stop = \"keep\"` in the configuration)
  --system            serve the whole system although not started by root: root's directories, every user may call, and
                      the broker is whoever serves broker.sock (agentd.service does it so)
  --host-caps FILE    take what the host can do from FILE, which root wrote with --probe-host
  --probe-host FILE   write what the host can do to FILE, and end
  --check-config      check the configuration, print it as JSON, and end; needs no rights and starts nothing
  --foreground        accepted for symmetry with other daemons: agentd never forks into the background
  --check-record      say whether the record in the state directory is damaged, and end (`agentctl db check`)
  --backup-record F   copy it to F, and end (`agentctl db backup`)
  --recover-record    make a new one of what can be read of it, and end (`agentctl db recover`)
  --verify-record     verify the record's audit chain, print the verdict as JSON, and end (`agentctl audit verify`)
    --record F          a copy, instead of the record in the state directory
    --public-key K      the key, 64 hex digits or a path with a `/` in it [audit.pub beside the record]
    --noted-head H      a head that was noted: NUMBER:HASH
    --known-note N      an incident that was looked into; may be repeated
  --record-head       print the record's signed head and public key as JSON, and end (`agentctl audit head`)
  --version, --help

Also read: LISTEN_FDS and WATCHDOG_USEC of a service manager, DBUS_SYSTEM_BUS_ADDRESS, AGENTD_LOG (filter such as `info` or `agentd=debug`), AGENTD_BROKER and CREDENTIALS_DIRECTORY,
and the key variables that the configuration names. Agents are started with `agentctl run`.
";

/// The daemon's resolved options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Configuration file, and whether its absence is an error (it is when somebody named it).
    pub config: PathBuf,
    pub config_required: bool,
    pub runtime_dir: PathBuf,
    pub state_dir: PathBuf,
    /// SIGTERM leaves the agents to the next agentd, whatever the configuration says.
    pub keep_agents: bool,
    /// For whom this daemon is.
    pub standing: Standing,
    /// `--host-caps`.
    pub host_caps: Option<PathBuf>,
    /// Where the system bus is, as D-Bus writes addresses.
    pub system_bus: String,
    /// `AGENTD_BROKER`: the broker program, when it does not lie beside this one.
    pub broker: Option<PathBuf>,
}

/// Whose daemon this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Of whoever started it: the system's if that is root.
    Own,
    /// The system's, started without rights by a service manager that holds the sockets (`--system`).
    System,
}

/// Where the bus is unless `DBUS_SYSTEM_BUS_ADDRESS` says otherwise.
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// What can be done with a record while no daemon has it open. For `agentctl db`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordTask {
    Check,
    Backup(PathBuf),
    Recover,
    Verify(Verifying),
    Head,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Serve(Options),
    /// `--probe-host`.
    ProbeHost(PathBuf),
    /// Say on stdout what the configuration amounts to, or on stderr what is wrong with it.
    CheckConfig(Options),
    /// One task on the record of a state directory that no daemon uses.
    Record(RecordTask, PathBuf),
    Help,
    Version,
}

/// A usage error; the text is for the person who typed it.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("unknown argument `{0}`; see `agentd --help`")]
    Unknown(String),
    #[error("`{0}` needs a value; see `agentd --help`")]
    MissingValue(&'static str),
    #[error("`--known-note` needs the number of a note, not `{0}`")]
    NotANote(String),
    #[error("`{name}` must be an absolute path, not `{value}`")]
    Relative { name: &'static str, value: String },
    #[error(transparent)]
    Dirs(#[from] DirError),
}

impl Command {
    /// Reads `args` (without the program's name) with `env` as the environment.
    pub fn parse(
        args: impl IntoIterator<Item = OsString>,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, OptionsError> {
        let path = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let mut config = path("AGENTD_CONFIG");
        let mut runtime_dir = path("AGENTD_RUNTIME_DIR");
        let mut state_dir = path("AGENTD_STATE_DIR");
        let mut record_task = None;
        let mut backup = None;
        let mut verifying = Verifying::default();
        let mut keep_agents = false;
        let (mut host_caps, mut probe_host) = (None, None);
        let mut standing = Standing::Own;
        let mut check = false;
        let (mut key, mut noted, mut known) = (None, None, None);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy().into_owned();
            let (name, inline) = match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(PathBuf::from(value))),
                None => (text.clone(), None),
            };
            let slot = match name.as_str() {
                "--config" => ("--config", &mut config),
                "--runtime-dir" => ("--runtime-dir", &mut runtime_dir),
                "--state-dir" => ("--state-dir", &mut state_dir),
                "--keep-agents" if inline.is_none() => {
                    keep_agents = true;
                    continue;
                }
                "--host-caps" => ("--host-caps", &mut host_caps),
                "--probe-host" => ("--probe-host", &mut probe_host),
                "--system" if inline.is_none() => {
                    standing = Standing::System;
                    continue;
                }
                "--check-config" if inline.is_none() => {
                    check = true;
                    continue;
                }
                "--foreground" if inline.is_none() => continue,
                "--check-record" if inline.is_none() => {
                    record_task = Some(RecordTask::Check);
                    continue;
                }
                "--recover-record" if inline.is_none() => {
                    record_task = Some(RecordTask::Recover);
                    continue;
                }
                "--verify-record" if inline.is_none() => {
                    record_task = Some(RecordTask::Verify(Verifying::default()));
                    continue;
                }
                "--record-head" if inline.is_none() => {
                    record_task = Some(RecordTask::Head);
                    continue;
                }
                "--record" => ("--record", &mut verifying.record),
                "--public-key" => ("--public-key", &mut key),
                "--noted-head" => ("--noted-head", &mut noted),
                "--known-note" => ("--known-note", &mut known),
                "--backup-record" => ("--backup-record", &mut backup),
                "--help" | "-h" => return Ok(Self::Help),
                "--version" | "-V" => return Ok(Self::Version),
                _ => return Err(OptionsError::Unknown(text)),
            };
            let value = inline.or_else(|| args.next().map(PathBuf::from));
            *slot.1 = Some(value.ok_or(OptionsError::MissingValue(slot.0))?);
            if let Some(note) = known.take() {
                let note = text_of(note);
                let number = note.parse().map_err(|_nan| OptionsError::NotANote(note))?;
                verifying.known.push(number);
            }
        }
        (verifying.key, verifying.noted) = (key.map(text_of), noted.map(text_of));
        if let Some(RecordTask::Verify(what)) = &mut record_task {
            *what = verifying;
        }
        if let Some(path) = probe_host {
            return Ok(Self::ProbeHost(path));
        }
        let config_required = config.is_some();
        let mut dirs = DirEnv::from_process();
        if standing == Standing::System {
            // Root's places, whoever we are.
            dirs.uid = 0;
        }
        let options = Options {
            config: config.unwrap_or_else(|| default_config(dirs.uid, env)),
            config_required,
            runtime_dir: dirs.runtime_dir(runtime_dir.as_deref()),
            state_dir: dirs.state_dir(state_dir.as_deref())?,
            keep_agents,
            standing,
            host_caps,
            system_bus: env("DBUS_SYSTEM_BUS_ADDRESS")
                .and_then(|address| address.into_string().ok())
                .filter(|address| !address.is_empty())
                .unwrap_or_else(|| SYSTEM_BUS.to_owned()),
            broker: path("AGENTD_BROKER"),
        };
        for (name, value) in [
            ("--runtime-dir", &options.runtime_dir),
            ("--state-dir", &options.state_dir),
        ] {
            if !value.is_absolute() {
                return Err(OptionsError::Relative {
                    name,
                    value: value.display().to_string(),
                });
            }
        }
        Ok(match backup.map(RecordTask::Backup).or(record_task) {
            Some(task) => Self::Record(task, options.state_dir),
            None if check => Self::CheckConfig(options),
            None => Self::Serve(options),
        })
    }
}

fn text_of(value: PathBuf) -> String {
    value.to_string_lossy().into_owned()
}

/// `/etc/agentd/agentd.toml` for root, otherwise the user's own.
fn default_config(uid: u32, env: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name| {
        env(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let system = PathBuf::from("/etc/agentd/agentd.toml");
    if uid == 0 {
        return system;
    }
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map_or(system, |dir| dir.join("agentd/agentd.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Command, OptionsError> {
        let env = |name: &str| (name == "AGENTD_STATE_DIR").then(|| OsString::from("/from/env"));
        Command::parse(args.iter().map(OsString::from), &env)
    }

    #[test]
    fn what_is_typed_wins_over_the_environment() {
        let Ok(Command::Serve(options)) =
            parse(&["--runtime-dir", "/r", "--config=/c.toml", "--foreground"])
        else {
            panic!("these arguments are right")
        };
        assert_eq!(
            (options.runtime_dir, options.state_dir),
            ("/r".into(), "/from/env".into())
        );
        assert_eq!(
            (options.config, options.config_required),
            ("/c.toml".into(), true)
        );
    }

    #[test]
    fn a_system_service_has_roots_places_whoever_it_is() {
        let Ok(Command::Serve(options)) = parse(&["--system", "--host-caps", "/h"]) else {
            panic!("these arguments are right")
        };
        assert_eq!(options.standing, Standing::System);
        assert_eq!(options.runtime_dir, PathBuf::from("/run/agentd"));
        assert_eq!(options.config, PathBuf::from("/etc/agentd/agentd.toml"));
        assert_eq!(options.host_caps, Some("/h".into()));
        assert!(matches!(
            parse(&["--probe-host", "/h"]),
            Ok(Command::ProbeHost(_))
        ));
    }

    #[test]
    fn mistakes_are_named() {
        for (args, needle) in [
            (
                &["--runtim-dir", "/r"][..],
                "unknown argument `--runtim-dir`",
            ),
            (&["--state-dir"][..], "`--state-dir` needs a value"),
            (
                &["--state-dir", "here"][..],
                "must be an absolute path, not `here`",
            ),
            (&["serve"][..], "unknown argument `serve`"),
        ] {
            let error = parse(args).expect_err("wrong arguments").to_string();
            assert!(error.contains(needle), "{args:?}: {error}");
        }
    }

    #[test]
    fn help_and_version_need_no_directories() {
        assert!(matches!(parse(&["--help"]), Ok(Command::Help)));
        assert!(matches!(parse(&["-V"]), Ok(Command::Version)));
    }
}
