//! Texts of units, taken in: the system's from their directories, a user's from open files. A whole set is accepted or
//! refused with every mistake; until it is accepted the old one holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentd_api::{DaemonMode, Error};
use agentd_orchestrator::unit::{Diagnostic, Diff, Origin, Unit, UnitError, UnitFile, UnitSet};
use agentd_sandbox::policy::PolicyError;
use agentd_sandbox::{EffectivePolicy, PolicyRef, Sources};
use agentd_storage::UnitText;
use serde_json::{Value, json};

use super::{Owner, UnitChange, Units};
use crate::agents::Caller;
use crate::daemon::Daemon;

/// No unit that a person writes comes near this.
const MAX_TEXT: u64 = 256 * 1024;

/// Files that one call may bring: what fits into one D-Bus message.
const MAX_FILES: usize = 250;

/// Reads every unit and drop-in below `dirs`, the first directory first. A directory that is not there is empty.
pub fn read_dirs(dirs: &[PathBuf]) -> Result<Vec<UnitFile>, UnitError> {
    let (mut files, mut findings) = (Vec::new(), Vec::new());
    for dir in dirs {
        read_dir(dir, "", &mut files, &mut findings);
    }
    if findings.is_empty() {
        Ok(files)
    } else {
        Err(UnitError(findings))
    }
}

fn read_dir(dir: &Path, below: &str, files: &mut Vec<UnitFile>, findings: &mut Vec<Diagnostic>) {
    let mut report = |path: &Path, problem: String, help: &str| {
        findings.push(Diagnostic {
            origin: Origin::new(path.display().to_string(), 0),
            key: String::new(),
            value: String::new(),
            problem,
            help: help.to_owned(),
        });
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) => {
            return report(
                dir,
                format!("cannot be read: {error}"),
                "its user must be able to",
            );
        }
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut drop_ins = Vec::new();
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if below.is_empty() && name.ends_with(".toml.d") {
            drop_ins.push((path.clone(), format!("{name}/")));
        } else if name.ends_with(".toml") {
            match read_file(&path) {
                Ok(text) => files.push(UnitFile {
                    place: format!("{below}{name}"),
                    origin: path.display().to_string(),
                    text,
                }),
                Err((problem, help)) => report(&path, problem, help),
            }
        }
    }
    for (path, below) in drop_ins {
        read_dir(&path, &below, files, findings);
    }
}

fn read_file(path: &Path) -> Result<String, (String, &'static str)> {
    let file = File::open(path).map_err(|e| (format!("cannot be read: {e}"), ""))?;
    let meta = file
        .metadata()
        .map_err(|e| (format!("cannot be read: {e}"), ""))?;
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != own {
        return Err((
            format!("it belongs to uid {}", meta.uid()),
            "a unit that agentd reads belongs to root or to agentd's own user",
        ));
    }
    if meta.mode() & 0o022 != 0 {
        return Err((
            format!("others may write it (mode {:o})", meta.mode() & 0o7777),
            "chmod go-w it",
        ));
    }
    read_text(file).map_err(|why| (why, ""))
}

/// Reads a regular file, from its beginning and up to the limit.
fn read_text(file: File) -> Result<String, String> {
    use std::os::unix::fs::FileExt as _;
    let meta = file
        .metadata()
        .map_err(|e| format!("cannot be read: {e}"))?;
    if !meta.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if meta.len() > MAX_TEXT {
        return Err("it is larger than 256 KiB".to_owned());
    }
    struct FromStart(File, u64);
    impl std::io::Read for FromStart {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = self.0.read_at(buffer, self.1)?;
            self.1 += n as u64;
            Ok(n)
        }
    }
    let mut text = String::new();
    FromStart(file, 0)
        .take(MAX_TEXT)
        .read_to_string(&mut text)
        .map_err(|e| format!("cannot be read as text: {e}"))?;
    Ok(text)
}

impl Units {
    /// Root, and whoever agentd runs as.
    pub fn may_manage_system(&self, caller: Caller) -> bool {
        caller.uid == 0 || caller.uid == rustix::process::geteuid().as_raw()
    }

    /// The texts of a set as they were taken in: place, file, text.
    ///
    /// # Errors
    /// When the system's are asked for by somebody whom they do not concern.
    pub fn texts(
        &self,
        caller: Caller,
        system: bool,
    ) -> Result<Vec<(String, String, String)>, Error> {
        let owner = if system {
            Owner::System
        } else {
            Owner::User(caller.uid)
        };
        if system && !self.may_manage_system(caller) {
            return Err(Error::Denied(
                "the system's units are root's to read".into(),
            ));
        }
        let inner = self.inner();
        let files = inner
            .sets
            .get(&owner)
            .map(|set| set.files())
            .unwrap_or_default();
        Ok(files
            .into_iter()
            .map(|f| (f.place, f.origin, f.text))
            .collect())
    }

    /// Reads the system's directories again. For root and the daemon's own user.
    ///
    /// # Errors
    /// Every mistake of every file; the units stay as they are.
    pub async fn reload(&self, daemon: &Arc<Daemon>, caller: Caller) -> Result<Value, Error> {
        if !self.may_manage_system(caller) {
            return Err(Error::Denied(format!(
                "only root or the daemon's own user may have the system's units read again, not uid {}",
                caller.uid
            )));
        }
        let dirs = self.dirs.clone();
        let read = tokio::task::spawn_blocking(move || read_dirs(&dirs)).await;
        let files = read.map_err(|e| Error::Internal(e.to_string()))?;
        let loaded = files.and_then(|files| self.check(daemon, Owner::System, &files));
        match loaded {
            Ok(set) => {
                self.inner().trouble = None;
                Ok(self.replace(daemon, Owner::System, set))
            }
            Err(error) => {
                self.inner().trouble = Some(error.to_string());
                Err(Error::InvalidPolicy(error.to_string()))
            }
        }
    }

    /// Replaces the caller's own units by the texts in `files`.
    ///
    /// # Errors
    /// Every mistake of every text; the units stay as they are.
    pub async fn load(
        &self,
        daemon: &Arc<Daemon>,
        caller: Caller,
        places: Vec<(String, String)>,
        files: Vec<OwnedFd>,
    ) -> Result<Value, Error> {
        if places.len() != files.len() || files.len() > MAX_FILES {
            return Err(Error::InvalidArgument(format!(
                "{} files with {} names were handed over; each has a name, and at most {MAX_FILES} fit",
                files.len(),
                places.len()
            )));
        }
        // Whoever handed it over may have opened it on a file system that answers late.
        let read = tokio::task::spawn_blocking(move || {
            places
                .into_iter()
                .zip(files)
                .map(|((place, origin), fd)| {
                    let text =
                        read_text(File::from(fd)).map_err(|why| format!("{origin}: {why}"))?;
                    Ok(UnitFile {
                        place,
                        origin,
                        text,
                    })
                })
                .collect::<Result<Vec<_>, String>>()
        });
        let files = read
            .await
            .map_err(|e| Error::Internal(e.to_string()))?
            .map_err(Error::InvalidPolicy)?;
        let owner = Owner::User(caller.uid);
        let set = self
            .check(daemon, owner, &files)
            .map_err(|e| Error::InvalidPolicy(e.to_string()))?;
        let texts = files
            .into_iter()
            .map(|f| UnitText {
                place: f.place,
                origin: f.origin,
                text: f.text,
            })
            .collect();
        daemon
            .store
            .keep_unit_texts(owner.as_text(), texts)
            .await
            .map_err(|e| Error::Unavailable(format!("the units cannot be kept: {e}")))?;
        Ok(self.replace(daemon, owner, set))
    }

    /// Reads and checks a whole set: the units themselves, their policies, and whose they are.
    pub(super) fn check(
        &self,
        daemon: &Daemon,
        owner: Owner,
        files: &[UnitFile],
    ) -> Result<UnitSet, UnitError> {
        let set = UnitSet::load(files, self.pool_ceiling)?;
        let mut findings = Vec::new();
        for name in set
            .names()
            .chain(set.startable().filter(|n| n.instance().is_some()))
        {
            let Ok(unit) = set.unit(name) else { continue };
            if let Err(error) = self.uid_of(owner, &unit) {
                findings.push(unit.finding("agent.user", error.text()));
            }
            let sources = Sources {
                folders: daemon.config.daemon.policy_dirs.clone(),
                settings: unit.run.settings.clone(),
            };
            match EffectivePolicy::load(&PolicyRef::Name(unit.run.policy.clone()), &sources) {
                Ok(_) => {}
                // A user's own policies are known to agentctl, which sends their text with the start.
                Err(PolicyError::NotFound { .. }) if owner != Owner::System => {}
                Err(PolicyError::Invalid(list)) => {
                    findings.extend(list.into_iter().map(|found| {
                        let (value, help) = (&found.value, &found.help);
                        unit.finding_of_policy(&found.origin.file, value, &found.problem, help)
                            .unwrap_or_else(|| unit.finding("run.policy", found.to_string()))
                    }));
                }
                Err(error) => findings.push(unit.finding("run.policy", error.to_string())),
            }
        }
        if findings.is_empty() {
            Ok(set)
        } else {
            Err(UnitError(findings))
        }
    }

    /// Puts an accepted set in place of the old one. What runs goes on, under the new rules; a unit whose file is gone
    /// runs on until it is stopped.
    pub(super) fn replace(&self, daemon: &Arc<Daemon>, owner: Owner, set: UnitSet) -> Value {
        let now = self.now();
        let mut actions = Vec::new();
        let diff = {
            let mut inner = self.inner();
            let units = |set: &UnitSet| -> Vec<Unit> {
                set.names()
                    .chain(set.startable())
                    .filter_map(|name| set.unit(name).ok())
                    .collect()
            };
            let old = inner
                .sets
                .get(&owner)
                .map(|set| units(set))
                .unwrap_or_default();
            let diff = Diff::between(&old, &units(&set));
            for ((of, name), active) in &mut inner.active {
                if *of != owner {
                    continue;
                }
                match set.unit(name) {
                    Ok(unit) if self.uid_of(owner, &unit).ok() == Some(active.uid) => {
                        active.removed = false;
                        let todo = active.engine.configure(unit.rules(), now);
                        actions
                            .extend(todo.into_iter().map(|action| ((*of, name.clone()), action)));
                        active.unit = unit;
                    }
                    _ => active.removed = true,
                }
            }
            inner.active.retain(|(of, _), active| {
                *of != owner
                    || !active.removed
                    || active.engine.is_on()
                    || !active.agents.is_empty()
            });
            inner.sets.insert(owner, Arc::new(set));
            diff
        };
        for (key, action) in actions {
            self.perform(daemon, &key, action);
        }
        self.wake.notify_one();
        self.announce(UnitChange::Reloaded);
        to_json(&diff)
    }

    /// What users handed over to an earlier agentd.
    pub(super) fn sets_of_users(texts: Vec<(String, UnitText)>) -> BTreeMap<Owner, Vec<UnitFile>> {
        let mut sets: BTreeMap<Owner, Vec<UnitFile>> = BTreeMap::new();
        for (owner, text) in texts {
            if let Some(owner) = Owner::parse(&owner) {
                sets.entry(owner).or_default().push(UnitFile {
                    place: text.place,
                    origin: text.origin,
                    text: text.text,
                });
            }
        }
        sets
    }

    /// The directories of the system's units, or in user mode the owner's.
    pub fn default_dirs(mode: DaemonMode, config: &Path) -> Vec<PathBuf> {
        match mode {
            DaemonMode::Root => vec!["/etc/agentd/agents".into(), "/usr/lib/agentd/agents".into()],
            DaemonMode::User => config
                .parent()
                .map(|dir| dir.join("agents"))
                .into_iter()
                .collect(),
        }
    }
}

/// A difference as clients see it.
fn to_json(diff: &Diff) -> Value {
    let changed: Vec<Value> = diff
        .changed
        .iter()
        .map(|changed| {
            let values: Vec<Value> = changed
                .changes
                .iter()
                .map(|c| json!({ "key": c.key, "old": c.old, "new": c.new }))
                .collect();
            json!({ "unit": changed.unit, "values": values })
        })
        .collect();
    json!({ "added": diff.added, "removed": diff.removed, "changed": changed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_directory_gives_its_units_and_drop_ins_and_nothing_else() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("a.toml.d")).expect("mkdir");
        for place in ["a.toml", "a.toml.d/10-x.toml", "README", "a.toml.d/notes"] {
            std::fs::write(dir.path().join(place), "").expect("write");
        }
        let missing = dir.path().join("missing");
        let files = read_dirs(&[missing, dir.path().to_owned()]).expect("reads");
        let places: Vec<_> = files.iter().map(|f| f.place.as_str()).collect();
        assert_eq!(places, ["a.toml", "a.toml.d/10-x.toml"]);
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a.toml");
        std::fs::write(&path, "").expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
        let error = read_dirs(&[dir.path().to_owned()])
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains("a.toml: others may write it (mode 666); chmod go-w it"),
            "{error}"
        );
    }

    #[test]
    fn only_a_regular_file_of_reasonable_size_is_a_text() {
        let dir = tempfile::tempdir().expect("tempdir");
        let why = read_text(File::open(dir.path()).expect("open")).expect_err("a directory");
        assert!(why.contains("regular"), "{why}");
        let path = dir.path().join("big");
        File::create(&path)
            .and_then(|f| f.set_len(MAX_TEXT + 1))
            .expect("grow");
        let why = read_text(File::open(&path).expect("open")).expect_err("too large");
        assert!(why.contains("256 KiB"), "{why}");
    }
}
