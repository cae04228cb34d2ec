//! gVisor: whether there is a `runsc` where the launcher looks for it, that only root can have put there, and which release.
//!
//! The one probe that executes a program, `runsc --version`, with an empty environment; it tells nobody's secrets and takes
//! some ten milliseconds where there is one. Whether it can start a sandbox shows in the first launch: the launcher tells
//! what is really active, or fails.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{ProbeState, Roots};

/// Where `runsc` is looked for, in this order, below the root; links are not followed. The launcher looks there too.
pub const RUNSC_PLACES: [&str; 2] = ["usr/local/bin/runsc", "usr/bin/runsc"];

/// From this release on `ls` of today's systems works in it: it knows `AT_NO_AUTOMOUNT`.
const KNOWS_TODAYS_CALLS: u32 = 20230101;

/// State, release, detail.
pub(super) fn probe(roots: &Roots) -> (ProbeState, Option<u32>, Option<String>) {
    let found = RUNSC_PLACES
        .iter()
        .map(|place| roots.root.join(place))
        .find(|path| path.symlink_metadata().is_ok());
    let Some(path) = found else {
        let why = "there is no runsc in /usr/local/bin or /usr/bin".into();
        return (ProbeState::Unsupported { why }, None, None);
    };
    match release(&path) {
        Ok(release) => {
            let old = match release < KNOWS_TODAYS_CALLS {
                true => ", in which ls of coreutils 9 does not work",
                false => "",
            };
            let detail = format!("{}, release {release}{old}", path.display());
            (ProbeState::Supported, Some(release), Some(detail))
        }
        Err(why) => (ProbeState::Unsupported { why }, None, None),
    }
}

fn release(path: &Path) -> Result<u32, String> {
    let shown = path.display();
    let found = fs::symlink_metadata(path).map_err(|e| format!("{shown}: {e}"))?;
    if !found.is_file() {
        return Err(format!(
            "{shown} is not a regular file, and links are not followed"
        ));
    }
    // An owner without a name in this namespace is root outside of it.
    let (root, overflow) = (0, 65534);
    if !(found.uid() == root || found.uid() == overflow) || found.mode() & 0o022 != 0 {
        return Err(format!("{shown} can be changed by others than root"));
    }
    let output = Command::new(path)
        .arg("--version")
        .env_clear()
        .current_dir(PathBuf::from("/"))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{shown} can't be run: {e}"))?;
    parse_release(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| format!("{shown} --version does not name a release"))
}

/// `release-20240729.0`, or Debian's `0.0~20240729.0`: the first eight digits in a row.
fn parse_release(version: &str) -> Option<u32> {
    version
        .split(|letter: char| !letter.is_ascii_digit())
        .find(|digits| digits.len() == 8)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn releases_are_read_as_google_and_debian_write_them() {
        let google = "runsc version release-20240729.0\nspec: 1.1.0-rc.1\n";
        let debian = "runsc version 0.0~20221219.0\nspec: 1.0.2-dev\n";
        assert_eq!(parse_release(google), Some(20240729));
        assert_eq!(parse_release(debian), Some(20221219));
        assert_eq!(parse_release("runsc version VERSION_MISSING\n"), None);
    }

    #[test]
    fn what_others_can_change_is_not_run() {
        let root = tempfile::tempdir().unwrap();
        let roots = Roots {
            root: root.path().into(),
            ..Roots::default()
        };
        let why = |roots: &Roots| match probe(roots) {
            (ProbeState::Unsupported { why }, None, None) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(&roots).starts_with("there is no runsc"));
        let path = root.path().join("usr/bin/runsc");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "#!/bin/sh\necho runsc version release-20240729.0\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(why(&roots).ends_with("can be changed by others than root"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/bin/true", &path).unwrap();
        assert!(why(&roots).contains("not a regular file"));
    }
}
