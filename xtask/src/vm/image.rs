//! The guest's file systems: a small tree of this machine's own release, and the programs under test.
//!
//! The tree is the closure of [`PACKAGES`], unpacked without running anything of it, so that it takes seconds and needs no
//! chroot; it has the C library that the programs were built against. It lies in the cache. The programs are put into a
//! second image at each run. Both are made by `mkfs.ext4 -d`, without a mount. Building the tree needs root, for the
//! owners of its files.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::{Apt, Installed, Suite, own_release};
use super::cache::Cache;
use crate::child::capture;

/// What agents, tests and the guest's own scripts run.
const PACKAGES: [&str; 13] = [
    "bash",
    "busybox-static",
    "coreutils",
    "dash",
    "findutils",
    "git",
    "grep",
    "hostname",
    "libc-bin",
    "mount",
    "python3",
    "sed",
    "util-linux",
];

/// Directories that no package brings.
const DIRECTORIES: [(&str, u32); 9] = [
    ("programs", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("home/user", 0o755),
    ("work", 0o1777),
    ("var/tmp", 0o1777),
];

const FILES: [(&str, u32, &str); 6] = [
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/bash\nagentd:x:990:990::/nonexistent:/usr/sbin/nologin\n\
         nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\nuser:x:1000:1000::/home/user:/bin/bash\n",
    ),
    (
        "etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\nagentd:x:990:\nnogroup:x:65534:\nuser:x:1000:\n",
    ),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n"),
    ("etc/hostname", 0o644, "agentd-vm\n"),
    (
        "etc/nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nhosts: files\n",
    ),
    ("sbin/init", 0o755, include_str!("init.sh")),
];

/// Links that a package's own scripts would have made.
const LINKS: [(&str, &str); 2] = [("usr/bin/sh", "dash"), ("usr/bin/awk", "mawk")];

/// The guest's root: an image that boots write into a copy of.
#[derive(Debug)]
pub struct Guest {
    pub image: PathBuf,
    pub busybox: PathBuf,
}

impl Guest {
    /// From the cache, else from packages.
    pub fn get(cache: &Cache) -> Result<Self> {
        let recipe = (own_release()?, PACKAGES, DIRECTORIES, FILES, LINKS, 2);
        let at = cache.once("guest", recipe, |at| {
            eprintln!(
                "vm: building the guest's file system of {} packages and what they need",
                PACKAGES.len()
            );
            let scratch = tempfile::tempdir_in(at).context("make a directory")?;
            let tree = scratch.path().join("tree");
            build_tree(&tree, &scratch.path().join("apt"))?;
            std::fs::copy(tree.join("usr/bin/busybox"), at.join("busybox"))
                .or_else(|_| std::fs::copy(tree.join("bin/busybox"), at.join("busybox")))
                .context("keep busybox")?;
            // Room for what the tests write: sparse, and thrown away after each boot.
            ext4(&tree, &at.join("root.ext4"), 4 << 30)
        })?;
        Ok(Self {
            image: at.join("root.ext4"),
            busybox: at.join("busybox"),
        })
    }
}

fn build_tree(tree: &Path, apt: &Path) -> Result<()> {
    std::fs::create_dir(tree).context("make the tree")?;
    std::fs::set_permissions(tree, Permissions::from_mode(0o755)).context("open the tree")?;
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(tree.join("usr").join(name)).context("make /usr")?;
        symlink(format!("usr/{name}"), tree.join(name)).context("merge /usr")?;
    }
    Apt::open(apt, Suite::Own)?.unpack_closure(&PACKAGES, Installed::Nothing, tree)?;
    for (name, mode) in DIRECTORIES {
        let at = tree.join(name);
        std::fs::create_dir_all(&at).with_context(|| format!("make /{name}"))?;
        std::fs::set_permissions(&at, Permissions::from_mode(mode))
            .with_context(|| format!("set the mode of /{name}"))?;
    }
    std::os::unix::fs::chown(tree.join("home/user"), Some(1000), Some(1000))
        .context("give /home/user away")?;
    for (name, mode, text) in FILES {
        let at = tree.join(name);
        std::fs::write(&at, text).with_context(|| format!("write /{name}"))?;
        std::fs::set_permissions(&at, Permissions::from_mode(mode))
            .with_context(|| format!("set the mode of /{name}"))?;
    }
    for (name, target) in LINKS {
        let at = tree.join(name);
        if std::fs::symlink_metadata(&at).is_err() {
            symlink(target, &at).with_context(|| format!("link /{name}"))?;
        }
    }
    // The cache of libraries; by path, since root's directories are not on everybody's PATH.
    capture(Command::new("/sbin/ldconfig").arg("-r").arg(tree))?;
    Ok(())
}

/// An image of `files` (name inside, file here), every one of them executable.
pub fn of_programs(at: &Path, files: &[(String, PathBuf)]) -> Result<PathBuf> {
    let (tree, image) = (at.join("programs"), at.join("programs.ext4"));
    std::fs::create_dir(&tree).context("make a directory for the programs")?;
    std::fs::set_permissions(&tree, Permissions::from_mode(0o755)).context("open it")?;
    for (name, file) in files {
        let to = tree.join(name);
        std::fs::copy(file, &to)
            .with_context(|| format!("copy {} to {}", file.display(), to.display()))?;
        std::fs::set_permissions(&to, Permissions::from_mode(0o755))
            .with_context(|| format!("set the mode of {name}"))?;
    }
    ext4(&tree, &image, 0)?;
    std::fs::remove_dir_all(&tree).context("remove the copies")?;
    Ok(image)
}

/// Makes an ext4 image of `tree` with `room` more bytes; with project quotas, as limits on disk space need.
fn ext4(tree: &Path, image: &Path, room: u64) -> Result<()> {
    let used = size_of(tree)?;
    let file = std::fs::File::create(image).with_context(|| format!("make {}", image.display()))?;
    // Blocks, inodes and tables besides the contents.
    file.set_len((used + used / 4 + room + (32 << 20)).next_multiple_of(1 << 20))
        .with_context(|| format!("size {}", image.display()))?;
    capture(
        Command::new("mkfs.ext4")
            .env("PATH", super::with_sbin())
            .args(["-q", "-F", "-m", "0", "-O", "^has_journal,quota,project"])
            .args(["-E", "root_owner=0:0,quotatype=prjquota", "-d"])
            .arg(tree)
            .arg(image),
    )?;
    Ok(())
}

/// Bytes in the files below `tree`, each rounded up to a block.
fn size_of(tree: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("list {}", directory.display()))?
        {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            let meta = entry.metadata().context("look at a file")?;
            if meta.is_dir() {
                directories.push(entry.path());
            }
            sum += meta.len().next_multiple_of(4096);
        }
    }
    Ok(sum)
}
