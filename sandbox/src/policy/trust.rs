//! Policy files are read like sudoers: only if nobody else can have written them.
//!
//! A file, and the folder that names are looked up in, has to be owned by root or by whoever runs this program, and must not
//! be writable by anybody else. What is checked is what was opened, not the path a second time.

use super::PolicyError;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One byte more than a policy may have, so that a longer one is told by reading, not by running out of memory.
const MAX_READ: u64 = super::layer::MAX_BYTES as u64 + 1;

/// Writable by the group or by others.
const FOREIGN_WRITERS: u32 = 0o022;

/// A policy file that a person named, read with their rights. Pipes will do.
///
/// # Errors
/// [`PolicyError::Read`], and [`PolicyError::Untrusted`] with the command that mends it.
pub fn read_policy_file(path: &Path) -> Result<String, PolicyError> {
    let fail = |source| PolicyError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    check(path, &file.metadata().map_err(fail)?)?;
    let mut text = String::new();
    file.take(MAX_READ)
        .read_to_string(&mut text)
        .map_err(fail)?;
    Ok(text)
}

/// The same for a name that was looked up in a folder: whoever can write the folder can put another file there.
pub(super) fn read_in_folder(folder: &Path, path: &Path) -> Result<String, PolicyError> {
    let text = read_policy_file(path)?;
    let metadata = folder.metadata().map_err(|source| PolicyError::Read {
        path: folder.to_owned(),
        source,
    })?;
    check(folder, &metadata)?;
    Ok(text)
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), PolicyError> {
    let own = rustix::process::geteuid().as_raw();
    let shown = path.display();
    let untrusted = |problem: String, remedy: String| {
        Err(PolicyError::Untrusted {
            path: path.to_owned(),
            problem,
            remedy,
        })
    };
    let owner = metadata.uid();
    if owner != 0 && owner != own {
        let allowed = if own == 0 {
            "root".to_owned()
        } else {
            format!("root or uid {own}")
        };
        let problem =
            format!("it belongs to uid {owner}, and only what {allowed} owns is believed");
        return untrusted(problem, format!("chown {own} {shown}"));
    }
    if metadata.mode() & FOREIGN_WRITERS != 0 {
        let mode = metadata.mode() & 0o7777;
        let problem = format!("its mode is {mode:04o}, so others than its owner can write it");
        return untrusted(problem, format!("chmod go-w {shown}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{EffectivePolicy, PolicyRef, Sources};
    use std::os::unix::fs::{PermissionsExt, chown};

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn what_others_could_have_written_is_not_read() {
        let place = tempfile::tempdir().expect("tempdir");
        let folder = place.path().join("policy");
        std::fs::create_dir(&folder).expect("mkdir");
        let file = folder.join("team.toml");
        std::fs::write(&file, "extends = \"base\"\n").expect("write");
        mode(&folder, 0o755);
        mode(&file, 0o644);
        let sources = Sources {
            folders: vec![folder.clone()],
            settings: Vec::new(),
        };
        let load = || EffectivePolicy::load(&PolicyRef::Name("team".into()), &sources);
        load().expect("root's or our own, and nobody else writes it");
        for (path, bits, good) in [
            (&file, 0o664, 0o644),
            (&file, 0o646, 0o644),
            (&folder, 0o775, 0o755),
        ] {
            mode(path, bits);
            let error = load().expect_err("writable by others").to_string();
            let remedy = format!("mend it with: chmod go-w {}", path.display());
            assert!(
                error.contains(&remedy) && error.contains(&format!("{bits:04o}")),
                "{error}"
            );
            mode(path, good);
        }
        if rustix::process::geteuid().is_root() {
            for path in [&file, &folder] {
                chown(path, Some(12345), None).expect("chown");
                let error = load().expect_err("somebody else's").to_string();
                assert!(
                    error.contains("uid 12345") && error.contains("mend it with: chown 0 "),
                    "{error}"
                );
                chown(path, Some(0), None).expect("chown");
            }
        }
        load().expect("as at first");
    }
}
