//! Packages of the distribution, fetched and unpacked beside the system instead of into it.
//!
//! Uses this machine's own apt configuration, mirrors and keys, with package lists, archives and a package status of its
//! own: nothing is installed here, no lock of the machine's is taken, and a parallel `apt-get update` deletes nothing of
//! ours. Suites that the machine does not use are asked for from the mirror that its own release comes from. A package
//! or suite that can't be had is an error with apt's own words.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::child::{self, capture};
use crate::test::needs::which;

/// Where a package comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// What this machine's own sources offer.
    Own,
    /// The backports of this machine's release, over its own sources.
    OwnBackports,
    /// One suite of Debian, and nothing else.
    Debian(&'static str),
}

/// What counts as installed while dependencies are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// Nothing: the whole closure is fetched.
    Nothing,
    /// What is on this machine: only what is missing is fetched.
    ThisMachine,
}

/// apt with directories of its own, its lists up to date.
#[derive(Debug)]
pub struct Apt {
    directory: PathBuf,
    suite: Suite,
    sources: Option<PathBuf>,
    /// The release to prefer over the default.
    target: Option<String>,
}

impl Apt {
    /// Fetches the package lists of `suite` into `directory`.
    pub fn open(directory: &Path, suite: Suite) -> Result<Self> {
        for program in ["apt-get", "dpkg-deb", "tar"] {
            if which(program).is_none() {
                bail!("{program} is missing: packages come from Debian's or Ubuntu's archive");
            }
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            let at = directory.join(part);
            std::fs::create_dir_all(&at).with_context(|| format!("make {}", at.display()))?;
        }
        std::fs::write(directory.join("status"), "").context("make an empty package status")?;
        let mut apt = Self {
            directory: directory.to_owned(),
            suite,
            sources: None,
            target: None,
        };
        let extra = match suite {
            Suite::Own => None,
            Suite::OwnBackports => Some(format!("{}-backports", own_release()?)),
            Suite::Debian(name) => Some(name.to_owned()),
        };
        if let Some(name) = extra {
            let at = directory.join("sources.list");
            let mut list = source_line(&own_mirror()?, &name);
            if suite == Suite::OwnBackports {
                // Backports need the release that they are for.
                list += &std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
            }
            std::fs::write(&at, list).with_context(|| format!("write {}", at.display()))?;
            apt.sources = Some(at);
            apt.target = Some(name);
        }
        capture(
            apt.get(Installed::Nothing)
                .args(["-q", "update", "--error-on=any"]),
        )?;
        Ok(apt)
    }

    /// The newest version of a package, and what it depends on, as `apt-cache show` says it.
    pub fn depends(&self, package: &str) -> Result<Option<String>> {
        let mut command = self.tool("apt-cache", Installed::Nothing);
        let shown = child::capture_any(command.args(["show", "--no-all-versions", package]))?;
        let text = String::from_utf8_lossy(&shown.stdout);
        Ok(text.lines().next().is_some().then(|| {
            text.lines()
                .find_map(|line| line.strip_prefix("Depends: "))
                .unwrap_or_default()
                .to_owned()
        }))
    }

    /// Fetches exactly `packages` and unpacks them into `tree`.
    pub fn unpack_alone(&self, packages: &[&str], tree: &Path, only: &[&str]) -> Result<()> {
        let archives = tempfile::tempdir_in(&self.directory).context("make a directory")?;
        capture(
            self.get(Installed::Nothing)
                .args(["-q", "download"])
                .args(packages)
                .current_dir(archives.path()),
        )?;
        unpack(archives.path(), tree, only)
    }

    /// Fetches `packages` with everything that they depend on and that is not `installed`, and unpacks all of it.
    pub fn unpack_closure(
        &self,
        packages: &[&str],
        installed: Installed,
        tree: &Path,
    ) -> Result<()> {
        let archives = tempfile::tempdir_in(&self.directory).context("make a directory")?;
        std::fs::create_dir(archives.path().join("partial")).context("make a directory")?;
        let mut command = self.get(installed);
        command
            .args(["-q", "-y", "--no-install-recommends", "--download-only"])
            .arg("-o")
            .arg(format!(
                "Dir::Cache::archives={}",
                archives.path().display()
            ));
        if let Some(target) = &self.target {
            command.args(["--target-release", target]);
        }
        capture(command.arg("install").args(packages))?;
        unpack(archives.path(), tree, &[])
    }

    fn get(&self, installed: Installed) -> Command {
        self.tool("apt-get", installed)
    }

    fn tool(&self, program: &str, installed: Installed) -> Command {
        let mut command = Command::new(program);
        let mut set = |key: &str, value: &str| {
            command.arg("-o").arg(format!("{key}={value}"));
        };
        let at = |part: &str| self.directory.join(part).display().to_string();
        set("Dir::State::Lists", &at("lists"));
        set("Dir::Cache", &at("cache"));
        set("Dir::Cache::archives", &at("cache/archives"));
        if installed == Installed::Nothing {
            set("Dir::State::status", &at("status"));
        }
        if let Some(sources) = &self.sources {
            set("Dir::Etc::SourceList", &sources.display().to_string());
            if self.suite != Suite::OwnBackports {
                set("Dir::Etc::SourceParts", "/dev/null");
            }
        }
        set("APT::Sandbox::User", "root");
        set("Acquire::Languages", "none");
        for index in [
            "DEP-11",
            "DEP-11-icons",
            "DEP-11-icons-small",
            "Contents-deb",
        ] {
            set(
                &format!("Acquire::IndexTargets::deb::{index}::DefaultEnabled"),
                "false",
            );
        }
        // Everything written is ours alone, and the machine's own package status is only read.
        set("Debug::NoLocking", "true");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// Unpacks every archive of a directory: all of each, or only the members that match a pattern of `only`.
fn unpack(archives: &Path, tree: &Path, only: &[&str]) -> Result<()> {
    let mut seen = 0;
    for entry in
        std::fs::read_dir(archives).with_context(|| format!("list {}", archives.display()))?
    {
        let deb = entry
            .with_context(|| format!("list {}", archives.display()))?
            .path();
        if deb.extension().is_none_or(|ending| ending != "deb") {
            continue;
        }
        seen += 1;
        let mut data = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&deb)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start dpkg-deb")?;
        let stream = data.stdout.take().context("dpkg-deb has no output")?;
        let mut tar = Command::new("tar");
        tar.args(["-x", "--keep-directory-symlink", "--no-same-owner", "-C"])
            .arg(tree);
        for documents in ["doc", "man", "locale", "info", "lintian", "bug"] {
            tar.arg(format!("--exclude=./usr/share/{documents}/*"));
        }
        if !only.is_empty() {
            tar.arg("--wildcards").args(only);
        }
        let unpacked = tar.stdin(stream).output().context("start tar")?;
        let read = data.wait().context("wait for dpkg-deb")?;
        // A pattern that matches nothing in this archive is none of tar's business to decide: the caller looks.
        let fine = unpacked.status.success() || !only.is_empty();
        if !fine || (!read.success() && only.is_empty()) {
            bail!(
                "unpack {}: {}",
                deb.display(),
                String::from_utf8_lossy(&unpacked.stderr).trim_end()
            );
        }
    }
    if seen == 0 {
        bail!("apt fetched nothing into {}", archives.display());
    }
    Ok(())
}

/// The name of this machine's release.
pub fn own_release() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release has no VERSION_CODENAME")
}

/// The mirror that this machine's own release comes from, and the file of the keys it is signed with.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    keys: Option<String>,
}

fn own_mirror() -> Result<Mirror> {
    let release = own_release()?;
    let targets = capture(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(RELEASE) $(REPO_URI)",
    ]))?;
    let uri = mirror_of(&targets, &release)
        .with_context(|| format!("apt has no source of {release}: see apt-get indextargets"))?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    Ok(Mirror {
        uri,
        keys: Path::new(keys).exists().then(|| keys.to_owned()),
    })
}

/// From lines of release and mirror, the mirror of `release` itself.
fn mirror_of(targets: &str, release: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let (name, uri) = line.split_once(' ')?;
        (name == release).then(|| uri.to_owned())
    })
}

fn source_line(mirror: &Mirror, suite: &str) -> String {
    let options = mirror
        .keys
        .as_ref()
        .map_or_else(String::new, |keys| format!("[signed-by={keys}] "));
    format!("deb {options}{} {suite} main\n", mirror.uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_of_the_release_itself_is_taken_not_that_of_its_updates() {
        let targets = "one-security http://s/\none-updates http://u/\none http://m/\n";
        assert_eq!(mirror_of(targets, "one").as_deref(), Some("http://m/"));
        assert_eq!(mirror_of(targets, "two"), None);
    }

    #[test]
    fn a_source_names_its_keys_where_there_are_any() {
        let mirror = |keys: Option<&str>| Mirror {
            uri: "http://m/".to_owned(),
            keys: keys.map(str::to_owned),
        };
        assert_eq!(
            source_line(&mirror(Some("/k")), "s"),
            "deb [signed-by=/k] http://m/ s main\n"
        );
        assert_eq!(source_line(&mirror(None), "s"), "deb http://m/ s main\n");
    }
}
