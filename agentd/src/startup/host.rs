//! What the host can do, written down by a process that may ask and read by one that may not.
//!
//! A system service starts without any right, in a sandbox of the service manager: asked there, the host would seem to
//! lack what the broker, outside of it, has. So the unit's `ExecStartPre=+` runs `agentd --probe-host FILE` as root before
//! each start, and the daemon reads FILE. It believes only a file of root's.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use agentd_kernel::probe::{HostCaps, Roots, probe_host};
use anyhow::{Context as _, bail};

/// Far more than a probe of a host takes.
const MAX_BYTES: u64 = 1 << 20;

/// Probes and writes `path` anew. Sound in a directory that another user can write to: nothing there is followed.
pub fn write(path: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(&probe_host(&Roots::default()))?;
    let mut name = path.file_name().context("not a file name")?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", new.display()));
        }
        _ => {}
    }
    // `create_new` is O_EXCL: a link that somebody puts there now is an error.
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .with_context(|| format!("cannot make {}", new.display()))?;
    // Whatever the umask: the daemon is another user.
    file.set_permissions(fs::Permissions::from_mode(0o644))
        .and_then(|()| file.write_all(&text))
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what [`write`] wrote.
pub fn read(path: &Path) -> anyhow::Result<HostCaps> {
    read_of(path, 0)
}

fn read_of(path: &Path, owner: u32) -> anyhow::Result<HostCaps> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .with_context(|| {
            format!(
                "cannot open {}: run `agentd --probe-host {0}` as root before agentd",
                path.display()
            )
        })?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != owner || meta.mode() & 0o022 != 0 {
        bail!(
            "{} must be a file of root's that nobody else can write (owner {}, mode {:o}): remove it and run \
             `agentd --probe-host {0}` as root",
            path.display(),
            meta.uid(),
            meta.mode() & 0o7777
        );
    }
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is not what this agentd writes; run `agentd --probe-host {0}` as root",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probed_is_read_back_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.json");
        let me = rustix::process::geteuid().as_raw();
        // Somebody put a link where the new file goes.
        let victim = dir.path().join("victim");
        fs::write(&victim, "unchanged").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("host.json.new")).unwrap();
        write(&path).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "unchanged");
        assert_eq!(read_of(&path, me).unwrap().euid, me);
        let error = read_of(&path, me + 1).unwrap_err().to_string();
        assert!(error.contains("--probe-host"), "{error}");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(read_of(&path, me).is_err());
    }
}
