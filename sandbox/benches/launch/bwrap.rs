//! bubblewrap, given the launcher's plan as far as it can follow it.
//!
//! The same namespaces but time, the same mounts, files, ids and environment, and the same two seccomp programs. It has no way to
//! Landlock, rlimits and listeners, so it is spared those. Programs and files go in by descriptor, as bubblewrap wants them.

use std::ffi::{CStr, OsStr, OsString};
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentd_launch::floor::{Refusals, base_filter};
use agentd_launch::plan::{MountFlags, Plan, Record};
use rustix::fs::MemfdFlags;

/// A bubblewrap command line, and what it reads by descriptor.
pub struct Follower {
    program: PathBuf,
    arguments: Vec<OsString>,
    files: Vec<std::fs::File>,
}

impl Follower {
    pub fn of(plan: &Plan<'_>) -> Self {
        let mut follower = Self {
            program: find(),
            arguments: Vec::new(),
            files: Vec::new(),
        };
        follower.add(&[
            "--unshare-user",
            "--unshare-all",
            "--die-with-parent",
            "--new-session",
            "--clearenv",
        ]);
        // First, as the launcher does: under the plan's no further program can be loaded.
        let base: Vec<u8> = base_filter(plan.exec(), Refusals::Silent)
            .iter()
            .flat_map(|instruction| {
                let [low, high] = instruction.code.to_ne_bytes();
                let k = instruction.k.to_ne_bytes();
                [
                    low,
                    high,
                    instruction.jt,
                    instruction.jf,
                    k[0],
                    k[1],
                    k[2],
                    k[3],
                ]
            })
            .collect();
        follower.add_file("--add-seccomp-fd", &base);
        for record in plan.records() {
            follower.follow(&record);
        }
        follower.add(&["--"]);
        for record in plan.records() {
            if let Record::Arg(argument) = record {
                follower.arguments.push(os(argument).to_owned());
            }
        }
        follower
    }

    fn add(&mut self, words: &[&str]) {
        self.arguments.extend(words.iter().map(OsString::from));
    }

    fn add_path(&mut self, path: &CStr) {
        self.arguments.push(os(path).to_owned());
    }

    /// `option FD`, where the descriptor has `content`.
    fn add_file(&mut self, option: &str, content: &[u8]) {
        // Not close-on-exec: bubblewrap inherits it, and so would nothing else that this program starts meanwhile.
        let file = rustix::fs::memfd_create("bwrap", MemfdFlags::empty()).expect("a memfd");
        let mut file = std::fs::File::from(file);
        file.write_all(content)
            .expect("a memfd takes what it is given");
        self.add(&[option, &file.as_raw_fd().to_string()]);
        self.files.push(file);
    }

    fn follow(&mut self, record: &Record<'_>) {
        match *record {
            Record::Ids { uid, gid } => {
                self.add(&["--uid", &uid.to_string(), "--gid", &gid.to_string()]);
            }
            Record::Hostname(name) => {
                self.add(&["--hostname"]);
                self.add_path(name);
            }
            Record::Bind { src, dst, flags } => {
                let link = std::fs::read_link(Path::new(os(src)));
                match link {
                    Ok(target) if flags.contains(MountFlags::KEEP_LINK) => {
                        self.add(&["--symlink"]);
                        self.arguments.push(target.into_os_string());
                    }
                    _ => {
                        let is_optional = flags.contains(MountFlags::OPTIONAL);
                        self.add(&[if is_optional {
                            "--ro-bind-try"
                        } else {
                            "--ro-bind"
                        }]);
                        self.add_path(src);
                    }
                }
                self.add_path(dst);
            }
            Record::Tmpfs {
                dst,
                size_bytes,
                mode,
                ..
            } => {
                self.add(&[
                    "--size",
                    &size_bytes.to_string(),
                    "--perms",
                    &format!("{mode:o}"),
                    "--tmpfs",
                ]);
                self.add_path(dst);
            }
            Record::Proc { dst } => {
                self.add(&["--proc"]);
                self.add_path(dst);
            }
            Record::Dev { dst, .. } => {
                self.add(&["--dev"]);
                self.add_path(dst);
            }
            Record::File { dst, mode, content } => {
                self.add(&["--perms", &format!("{mode:o}")]);
                self.add_file("--file", content);
                self.add_path(dst);
            }
            Record::Symlink { dst, target } => {
                self.add(&["--symlink"]);
                self.add_path(target);
                self.add_path(dst);
            }
            Record::Dir { dst, mode } => {
                self.add(&["--perms", &format!("{mode:o}"), "--dir"]);
                self.add_path(dst);
            }
            Record::Env(assignment) => {
                let text = assignment.to_bytes();
                let at = text
                    .iter()
                    .position(|byte| *byte == b'=')
                    .expect("NAME=value");
                self.add(&["--setenv"]);
                self.arguments
                    .push(OsStr::from_bytes(&text[..at]).to_owned());
                self.arguments
                    .push(OsStr::from_bytes(&text[at + 1..]).to_owned());
            }
            Record::Cwd(path) => {
                self.add(&["--chdir"]);
                self.add_path(path);
            }
            Record::Seccomp(program) => self.add_file("--add-seccomp-fd", program),
            // The program comes last; the rest is what bubblewrap can't do, or does anyway.
            _ => {}
        }
    }

    /// One launch, to its end.
    pub fn run(&self) {
        for mut file in &self.files {
            // The child reads from where the descriptor stands, which all share.
            file.rewind().expect("a memfd can be rewound");
        }
        let ended = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .expect("bubblewrap starts");
        assert!(
            ended.status.success(),
            "bwrap failed: {}",
            String::from_utf8_lossy(&ended.stderr)
        );
    }
}

fn os(text: &CStr) -> &OsStr {
    OsStr::from_bytes(text.to_bytes())
}

/// Where bubblewrap is, so that its samples do not pay for a search through `PATH`.
fn find() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join("bwrap"))
        .find(|program| program.is_file());
    found.expect("bubblewrap is needed: apt-get install bubblewrap")
}
