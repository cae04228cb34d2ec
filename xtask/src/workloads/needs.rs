//! The programs that workloads use: where they are, and which package of Debian and Ubuntu has each.
//!
//! A program that is missing is installed where that may be done (root, apt); elsewhere its workloads are named skips.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::test::needs;

/// `(program, package)` of what a plain system may lack.
const PACKAGES: [(&str, &str); 37] = [
    ("ar", "binutils"),
    ("bwrap", "bubblewrap"),
    ("bzip2", "bzip2"),
    ("cc", "gcc"),
    ("cmake", "cmake"),
    ("curl", "curl"),
    ("diff", "diffutils"),
    ("flock", "util-linux"),
    ("g++", "g++"),
    ("gcc", "gcc"),
    ("gdb", "gdb"),
    ("git", "git"),
    ("go", "golang-go"),
    ("initdb", "postgresql"),
    ("inotifywait", "inotify-tools"),
    ("java", "default-jdk-headless"),
    ("javac", "default-jdk-headless"),
    ("jq", "jq"),
    ("make", "make"),
    ("meson", "meson"),
    ("ninja", "ninja-build"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("openssl", "openssl"),
    ("patch", "patch"),
    ("perl", "perl"),
    ("python3", "python3-venv"),
    ("redis-cli", "redis-tools"),
    ("redis-server", "redis-server"),
    ("rsync", "rsync"),
    ("script", "bsdutils"),
    ("sqlite3", "sqlite3"),
    ("ssh-keygen", "openssh-client"),
    ("strace", "strace"),
    ("tmux", "tmux"),
    ("vim", "vim"),
    ("zstd", "zstd"),
];

/// Where `program` is.
pub fn find(program: &str) -> Option<PathBuf> {
    needs::which(program).or_else(|| in_postgresql(program))
}

/// Debian keeps PostgreSQL's own programs off the PATH, in a directory for each version.
fn in_postgresql(program: &str) -> Option<PathBuf> {
    Path::new("/usr/lib/postgresql")
        .read_dir()
        .ok()?
        .filter_map(Result::ok)
        .map(|version| version.path().join("bin").join(program))
        .find(|path| path.is_file())
}

/// What would bring `program`.
pub fn hint(program: &str) -> String {
    match PACKAGES.iter().find(|(name, _)| *name == program) {
        Some((_, package)) => format!("sudo apt-get install -y {package}"),
        None if matches!(program, "cargo" | "rustc") => "https://rustup.rs".to_owned(),
        None => format!("a package with {program}"),
    }
}

/// Installs what is missing of `programs`, or says how.
pub fn install_missing<'a>(programs: impl Iterator<Item = &'a str>) {
    let mut packages: Vec<&str> = programs
        .filter(|program| find(program).is_none())
        .filter_map(|program| PACKAGES.iter().find(|(name, _)| *name == program))
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return;
    }
    eprintln!("missing for workloads: {}", packages.join(" "));
    if let Err(error) = needs::apt_install(&packages) {
        // Not the end: what needs one of them is skipped by name.
        eprintln!("{error:#}");
    }
}
