//! Files of a granted folder that have another name outside of what is granted: through one name the other is read and
//! written, whatever the view hides of it.
//!
//! Looks through the folders as the caller, by descriptors, without following links or leaving a file system, and only where
//! the policy says `fs.hard_links = "inside"`. What it finds goes into the launch as `fs.linked`, which hides it. A file that
//! is granted by its own name is what somebody named, so it stays.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agentd_kernel::grant::Kind;
use agentd_sandbox::{CallerContext, EffectivePolicy, HardLinks};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use crate::failure::Failure;
use crate::output::stderr_line;

/// Each hidden name is a mount.
const MOST_HIDDEN: usize = 64;

/// The names that one file has inside.
#[derive(Debug, Default)]
struct Names {
    links: u64,
    inside: Vec<PathBuf>,
}

type Found = HashMap<(u64, u64), Names>;

/// `fs.linked=PATH` for each name of a file that has one outside.
pub fn settings(
    policy: &EffectivePolicy,
    caller: &CallerContext,
) -> Result<Vec<(String, String)>, Failure> {
    if policy.fs.hard_links == HardLinks::Any {
        return Ok(Vec::new());
    }
    let wanted = policy.wanted_grants(caller);
    // A copy has no other names.
    let shown = || wanted.iter().filter(|w| w.kind != Kind::Content);
    let outermost =
        shown().filter(|w| !shown().any(|o| o.src != w.src && w.src.starts_with(&o.src)));
    let mut found = Found::new();
    for want in outermost {
        look(&want.src, &mut found)?;
    }
    let outside = found
        .into_values()
        .filter(|n| n.links > n.inside.len() as u64);
    let mut hidden: Vec<PathBuf> = outside.flat_map(|n| n.inside).collect();
    hidden.sort();
    if hidden.len() > MOST_HIDDEN {
        let first: Vec<String> = hidden[..5]
            .iter()
            .map(|p| p.display().to_string())
            .collect();
        let what = format!(
            "can't hide {} files that have another name elsewhere",
            hidden.len()
        );
        let why = format!(
            "at most {MOST_HIDDEN} can be hidden; the first are {}",
            first.join(", ")
        );
        return Err(Failure::usage(what, why)
            .try_next("break the links (cp FILE COPY; mv COPY FILE), or --set fs.hard_links=any"));
    }
    if !hidden.is_empty() {
        let n = hidden.len();
        stderr_line(&format!(
            "agentctl: hidden, since they have another name elsewhere: {n} files (fs.linked in the record)"
        ));
    }
    let setting = |path: PathBuf| {
        let text = path.to_str().map(str::to_owned);
        text.map(|t| ("fs.linked".to_owned(), t)).ok_or_else(|| {
            Failure::usage(
                format!("can't hide {}", path.display()),
                "its name is not UTF-8",
            )
        })
    };
    hidden.into_iter().map(setting).collect()
}

/// One folder of the walk: open, and where it is.
struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    device: u64,
}

fn look(root: &Path, found: &mut Found) -> Result<(), Failure> {
    let fail = |path: &Path, why: rustix::io::Errno| {
        Failure::local(
            format!("can't look for hard links in {}", path.display()),
            why,
        )
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(root, flags, Mode::empty()) {
        Ok(fd) => fd,
        // A file by its own name, or nothing: granting it says what is wrong with it.
        Err(_) => return Ok(()),
    };
    let device = rustix::fs::fstat(&fd).map_err(|e| fail(root, e))?.st_dev;
    let mut folders = vec![Folder {
        fd,
        path: root.to_owned(),
        device,
    }];
    while let Some(folder) = folders.pop() {
        let entries = match Dir::read_from(&folder.fd) {
            // It was removed since it was opened: it has no names any more.
            Err(rustix::io::Errno::NOENT) => continue,
            entries => entries.map_err(|e| fail(&folder.path, e))?,
        };
        for entry in entries {
            let entry = match entry {
                Err(rustix::io::Errno::NOENT) => break,
                entry => entry.map_err(|e| fail(&folder.path, e))?,
            };
            let name: &CStr = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match rustix::fs::statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(e) => return Err(fail(&folder.path, e)),
            };
            let path = || folder.path.join(OsStr::from_bytes(name.to_bytes()));
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if stat.st_dev == folder.device => {
                    let flags = flags | OFlags::NOFOLLOW;
                    match rustix::fs::openat(&folder.fd, name, flags, Mode::empty()) {
                        Ok(fd) => folders.push(Folder {
                            fd,
                            path: path(),
                            device: folder.device,
                        }),
                        // What we can't open, the agent can't either.
                        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::NOENT) => {}
                        Err(e) => return Err(fail(&path(), e)),
                    }
                }
                FileType::RegularFile if stat.st_nlink > 1 => {
                    let names = found.entry((stat.st_dev, stat.st_ino)).or_default();
                    names.links = stat.st_nlink;
                    names.inside.push(path());
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_sandbox::{PolicyRef, Sources};

    #[test]
    fn a_file_with_a_name_outside_is_hidden_under_each_of_its_names_inside() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (work, out) = (dir.path().join("work"), dir.path().join("out"));
        std::fs::create_dir_all(work.join("deep")).expect("mkdir");
        std::fs::create_dir(&out).expect("mkdir");
        for name in ["work/own", "out/secret", "work/pair"] {
            std::fs::write(dir.path().join(name), name).expect("write");
        }
        std::fs::hard_link(out.join("secret"), work.join("deep/a")).expect("link");
        std::fs::hard_link(out.join("secret"), work.join("b")).expect("link");
        std::fs::hard_link(work.join("pair"), work.join("deep/pair")).expect("link");
        std::os::unix::fs::symlink(&out, work.join("way")).expect("link");
        let load = |hard_links: &str| {
            let text = format!("[fs]\nwrite = [\"${{workspace}}\"]\nhard_links = {hard_links:?}\n");
            let origin = "test.toml".to_owned();
            EffectivePolicy::load(&PolicyRef::Text { origin, text }, &Sources::default())
                .expect("loads")
        };
        let caller = CallerContext {
            workspace: Some(work.clone()),
            ..CallerContext::default()
        };
        let names: Vec<PathBuf> = settings(&load("inside"), &caller)
            .expect("few")
            .into_iter()
            .map(|(key, path)| {
                assert_eq!(key, "fs.linked");
                path.into()
            })
            .collect();
        assert_eq!(names, [work.join("b"), work.join("deep/a")]);
        assert_eq!(settings(&load("any"), &caller).expect("not looked for"), []);
        for n in 0..MOST_HIDDEN {
            std::fs::hard_link(out.join("secret"), work.join(format!("n{n}"))).expect("link");
        }
        let error = settings(&load("inside"), &caller)
            .expect_err("too many")
            .to_string();
        assert!(
            error.contains("can't hide 66 files") && error.contains("work/b, "),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_goes_while_it_is_looked_through_is_no_failure() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().expect("tempdir");
        let text = "[fs]\nwrite = [\"${workspace}\"]\nhard_links = \"inside\"\n".to_owned();
        let origin = "test.toml".to_owned();
        let policy = EffectivePolicy::load(&PolicyRef::Text { origin, text }, &Sources::default())
            .expect("loads");
        let caller = CallerContext {
            workspace: Some(dir.path().to_owned()),
            ..CallerContext::default()
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::fs::create_dir_all(dir.path().join("a/b")).expect("mkdir");
                    std::fs::remove_dir_all(dir.path().join("a")).expect("rmdir");
                }
            });
            let looked: Result<Vec<_>, _> = (0..2000).map(|_| settings(&policy, &caller)).collect();
            done.store(true, Ordering::Relaxed);
            assert!(looked.expect("no failure").concat().is_empty());
        });
    }
}
