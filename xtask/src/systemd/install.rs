//! `cargo xtask install` and `uninstall`: the built programs and everything that makes them a service, below a root.
//!
//! The list in [`FILES`] is the whole of it: `install` copies it, `uninstall` removes it and the directories that became
//! empty, and nothing else is touched unless `--purge` asks for state, configuration and the system user too. Neither
//! talks to a running systemd; both print the commands that do. Runs with the caller's rights. A file that can't be
//! copied ends the verb with its name.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child;
use crate::lab::{Profile, Programs};
use crate::workspace::root;

/// Directory of the repository → directory below the root, with the ending of the files that are taken.
const FILES: [(&str, &str, &str); 8] = [
    ("systemd/system", "usr/lib/systemd/system", ""),
    ("systemd/user", "usr/lib/systemd/user", ".service"),
    ("systemd/sysusers.d", "usr/lib/sysusers.d", ".conf"),
    ("systemd/tmpfiles.d", "usr/lib/tmpfiles.d", ".conf"),
    ("systemd/dbus-1", "usr/share/dbus-1/system.d", ".conf"),
    ("systemd/polkit-1", "usr/share/polkit-1/actions", ".policy"),
    ("docs/man", "usr/share/man/man1", ".1"),
    ("units", "usr/share/doc/agentd/units", ".toml"),
];

/// The programs and their directories: agentd looks for its broker beside itself, agentctl for agentd, and for the escape
/// suite of `agentctl selftest` where programs are that nobody types.
const PROGRAMS: [(&str, &str); 4] = [
    ("agentd", "usr/bin"),
    ("agentd-broker", "usr/bin"),
    ("agentctl", "usr/bin"),
    ("agentd-escape", "usr/libexec/agentd"),
];

/// What the services make, removed only by `--purge`.
const STATE: [&str; 5] = [
    "etc/agentd",
    "var/lib/agentd",
    "var/lib/agentd-broker",
    "var/lib/private/agentd",
    "run/agentd",
];

/// Pins of brokers that were killed; those of the others go with their last agent.
const PINS: &str = "sys/fs/bpf/agentd";

/// Directories of our own below the root; all others belong to the distribution.
const OWN_DIRECTORIES: [&str; 3] = [
    "usr/share/doc/agentd/units",
    "usr/share/doc/agentd",
    "usr/libexec/agentd",
];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The root to install below
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Take the programs from this directory instead of building them for release
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct UninstallArgs {
    /// The root to remove from
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Also remove configuration, records, logs and the user `agentd`
    #[arg(long)]
    purge: bool,
}

/// One file of the product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    source: PathBuf,
    /// Relative to the root.
    pub target: PathBuf,
    mode: u32,
}

pub fn install(args: &Args) -> Result<()> {
    let programs = match &args.programs {
        Some(directory) => Programs::in_directory(directory)?,
        None => Programs::build(Profile::Release)?,
    };
    put(&items(&programs)?, &args.root)?;
    eprintln!(
        "installed; now: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload"
    );
    eprintln!("and:            systemctl reload dbus; systemctl enable --now agentd.service");
    Ok(())
}

pub fn uninstall(args: &UninstallArgs) -> Result<()> {
    let programs = Programs::in_directory(root())?;
    take_away(&items(&programs)?, &args.root)?;
    let pins = args.root.join(PINS);
    match std::fs::remove_dir_all(&pins) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", pins.display()));
        }
        _ => {}
    }
    if args.purge {
        purge(&args.root)?;
    }
    eprintln!("removed; now: systemctl daemon-reload && systemctl reload dbus");
    Ok(())
}

/// Everything that is installed.
pub fn items(programs: &Programs) -> Result<Vec<Item>> {
    let mut items: Vec<Item> = PROGRAMS
        .iter()
        .map(|(name, directory)| Item {
            source: programs.path(name),
            target: Path::new(directory).join(name),
            mode: 0o755,
        })
        .collect();
    for (from, to, ending) in FILES {
        let directory = root().join(from);
        if !directory.exists() {
            continue;
        }
        let list = std::fs::read_dir(&directory)
            .with_context(|| format!("list {}", directory.display()))?;
        for entry in list {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            let name = entry.file_name();
            if entry.file_type().is_ok_and(|kind| kind.is_file())
                && name.to_string_lossy().ends_with(ending)
            {
                items.push(Item {
                    source: entry.path(),
                    target: Path::new(to).join(name),
                    mode: 0o644,
                });
            }
        }
    }
    items.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(items)
}

/// Copies `items` below `root`. A program that runs is replaced by a new file, never written to.
pub fn put(items: &[Item], root: &Path) -> Result<()> {
    for item in items {
        let target = root.join(&item.target);
        let directory = target.parent().context("a target without a directory")?;
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let new = directory.join(format!(".{name}.new"));
        std::fs::copy(&item.source, &new)
            .with_context(|| format!("copy {} to {}", item.source.display(), new.display()))?;
        std::fs::set_permissions(&new, Permissions::from_mode(item.mode))
            .with_context(|| format!("set the mode of {}", new.display()))?;
        std::fs::rename(&new, &target).with_context(|| format!("put {}", target.display()))?;
    }
    Ok(())
}

/// Removes `items` below `root`, and our own directories where they are empty then.
pub fn take_away(items: &[Item], root: &Path) -> Result<()> {
    for item in items {
        gone(&root.join(&item.target), |path| std::fs::remove_file(path))?;
    }
    for directory in OWN_DIRECTORIES {
        let at = root.join(directory);
        let empty = std::fs::read_dir(&at).is_ok_and(|mut list| list.next().is_none());
        if empty {
            gone(&at, |path| std::fs::remove_dir(path))?;
        }
    }
    Ok(())
}

/// Removes what running services left: state, configuration, the user.
pub fn purge(root: &Path) -> Result<()> {
    for directory in STATE {
        gone(&root.join(directory), |path| std::fs::remove_dir_all(path))?;
    }
    let passwd = std::fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
    if passwd.lines().any(|line| line.starts_with("agentd:")) {
        let mut userdel = Command::new("userdel");
        if root != Path::new("/") {
            userdel.arg("--prefix").arg(root);
        }
        child::capture(userdel.arg("agentd"))?;
    }
    Ok(())
}

fn gone(path: &Path, remove: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    match remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Every `ExecStart=` of the shipped units names a file that is installed.
pub fn check_units(items: &[Item]) -> Result<()> {
    for item in items
        .iter()
        .filter(|i| i.target.extension().is_some_and(|e| e == "service"))
    {
        let text = std::fs::read_to_string(&item.source)
            .with_context(|| format!("read {}", item.source.display()))?;
        for line in text.lines().filter(|line| line.starts_with("Exec")) {
            let program = line.split_once('=').map_or("", |(_, value)| value);
            let program = program.trim_start_matches(['+', '-', '!', ':', '@']);
            let program = program.split(' ').next().unwrap_or_default();
            let ours = program.starts_with("/usr/bin/agent");
            let known = items
                .iter()
                .any(|i| Path::new("/").join(&i.target) == Path::new(program));
            if ours && !known {
                bail!(
                    "{}: `{line}` names a program that is not installed",
                    item.source.display()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uninstall_leaves_nothing_of_what_install_put() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (programs, to) = (scratch.path().join("bin"), scratch.path().join("root"));
        std::fs::create_dir_all(&programs).expect("made");
        std::fs::create_dir_all(&to).expect("made");
        for (name, _) in PROGRAMS {
            std::fs::write(programs.join(name), name).expect("written");
        }
        let items = items(&Programs::in_directory(&programs).expect("there")).expect("listed");
        check_units(&items).expect("every program is installed");
        put(&items, &to).expect("installed");
        for item in &items {
            let mode = to
                .join(&item.target)
                .metadata()
                .expect("there")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, item.mode, "{item:?}");
        }
        take_away(&items, &to).expect("removed");
        let mut left = vec![to];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).expect("listed") {
                let entry = entry.expect("an entry");
                assert!(
                    entry.file_type().expect("a type").is_dir(),
                    "{entry:?} is left"
                );
                assert!(
                    !entry.file_name().to_string_lossy().contains("agentd"),
                    "{entry:?} is left"
                );
                left.push(entry.path());
            }
        }
    }
}
