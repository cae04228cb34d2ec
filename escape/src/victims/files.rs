//! Victim files: one outside the view and one in the read-only folder for each case, a HOME with keys, and a workspace
//! with what must not be read or changed in it.
//!
//! What a case did is found by comparing whole states: kind, bytes, mode, owner, times, attributes.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Ground, Raise, RaiseError, give};
use crate::case::{Case, Effect};
use crate::scene::Scene;

/// Cases for which the host plants something in the workspace before the session: a symbolic link to the case's file
/// outside, a dangling one to the new name beside it, or a hard link to a denied file.
const LINKS: [&str; 3] = ["fs_read_symlink", "ipc_path_symlink", "fs_chmod_symlink"];
const DANGLING: [&str; 1] = ["fs_write_symlink"];
const HARD_LINKS: [&str; 1] = ["X11"];

/// Names under HOME that hold the secret.
pub const HOME_SECRETS: [&str; 9] = [
    ".ssh/id_rsa",
    ".aws/credentials",
    ".bash_history",
    ".claude/.credentials.json",
    ".codex/auth.json",
    ".config/gh/hosts.yml",
    ".docker/config.json",
    ".gnupg/private-keys-v1.d/key",
    ".netrc",
];

/// Names in the workspace that no session may read.
pub const HIDDEN: [&str; 2] = [".env", "conf/secret.key"];

/// Names in the workspace that programs outside run or obey, with what they hold.
const CONFIGURED: [(&str, &str); 12] = [
    (".git/HEAD", "ref: refs/heads/main\n"),
    (".git/config", "[core]\n\trepositoryformatversion = 0\n"),
    (".git/info/exclude", ""),
    (".git/objects/info/packs", ""),
    (".git/refs/heads/.keep", ""),
    (".git/hooks/pre-commit", "#!/bin/sh\nexit 0\n"),
    (".claude/settings.json", "{}\n"),
    (".mcp.json", "{}\n"),
    (".vscode/tasks.json", "{}\n"),
    (".vscode/settings.json", "{}\n"),
    ("src/main.c", "int main(void) { return 0; }\n"),
    (".agentd/agent.toml", "extends = \"coding\"\n"),
];

/// What a file is, as far as a session could change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Absent,
    Present {
        kind: u32,
        mode: u32,
        owner: (u32, u32),
        modified: (i64, i64),
        /// Bytes of a file, names in a folder, target of a link.
        content: Vec<u8>,
        attributes: Vec<u8>,
    },
}

impl State {
    pub fn of(path: &Path) -> Self {
        let Ok(found) = fs::symlink_metadata(path) else {
            return Self::Absent;
        };
        let content = match found.mode() & libc::S_IFMT {
            libc::S_IFREG => fs::read(path).unwrap_or_default(),
            libc::S_IFLNK => fs::read_link(path)
                .map(|target| target.as_os_str().as_bytes().to_vec())
                .unwrap_or_default(),
            libc::S_IFDIR => fs::read_dir(path).map_or_else(
                |_| Vec::new(),
                |entries| {
                    let mut names: Vec<_> = entries
                        .filter_map(|entry| Some(entry.ok()?.file_name().as_bytes().to_vec()))
                        .collect();
                    names.sort();
                    names.join(&b'\n')
                },
            ),
            _ => Vec::new(),
        };
        Self::Present {
            kind: found.mode() & libc::S_IFMT,
            mode: found.mode() & 0o7777,
            owner: (found.uid(), found.gid()),
            modified: (found.mtime(), found.mtime_nsec()),
            content,
            attributes: attributes(path),
        }
    }

    /// What differs, for a report.
    pub fn difference(&self, after: &Self) -> Option<&'static str> {
        match (self, after) {
            (Self::Absent, Self::Absent) => None,
            (Self::Absent, Self::Present { .. }) => Some("was made"),
            (Self::Present { .. }, Self::Absent) => Some("was removed"),
            (
                Self::Present {
                    kind,
                    mode,
                    owner,
                    modified,
                    content,
                    attributes,
                },
                Self::Present {
                    kind: kind_after,
                    mode: mode_after,
                    owner: owner_after,
                    modified: modified_after,
                    content: content_after,
                    attributes: attributes_after,
                },
            ) => {
                if kind != kind_after {
                    Some("was replaced")
                } else if content != content_after {
                    Some("has other content")
                } else if mode != mode_after {
                    Some("has another mode")
                } else if owner != owner_after {
                    Some("has another owner")
                } else if attributes != attributes_after {
                    Some("has other attributes")
                } else if modified != modified_after {
                    Some("has another time")
                } else {
                    None
                }
            }
        }
    }
}

/// Names of the extended attributes, as one block.
fn attributes(path: &Path) -> Vec<u8> {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return Vec::new();
    };
    let mut names = vec![0_u8; 4096];
    // SAFETY: a path that ends in NUL, and a buffer with its length.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    names
}

#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    before: BTreeMap<PathBuf, State>,
}

impl Files {
    pub fn raise(
        ground: &Ground,
        mark: &str,
        secret: &str,
        cases: &[Case],
    ) -> Result<Self, RaiseError> {
        let root = ground.place.join(mark);
        fs::create_dir(&root).raise(root.display().to_string())?;
        let mut files = Self {
            root,
            before: BTreeMap::new(),
        };
        files
            .fill(ground.uid, secret, cases)
            .raise(format!("files below {}", files.root.display()))?;
        files.remember(cases);
        Ok(files)
    }

    fn fill(&self, uid: u32, secret: &str, cases: &[Case]) -> std::io::Result<()> {
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o755))?;
        for folder in [
            "outside",
            "shared",
            "home",
            "home/work",
            "home/work/own",
            "home/work/planted",
        ] {
            self.folder(folder, uid)?;
        }
        for case in cases {
            // The name of the case in front, so that files differ.
            let text = format!("{}\n{secret}\n", case.id);
            self.write(&format!("outside/{}", case.id), &text, 0o644, uid)?;
            self.write(&format!("shared/{}", case.id), &text, 0o644, uid)?;
        }
        self.write("outside/open", secret, 0o644, uid)?;
        for name in HOME_SECRETS {
            self.write(&format!("home/{name}"), secret, 0o600, uid)?;
        }
        for name in [".bashrc", ".profile", ".gitconfig"] {
            self.write(&format!("home/{name}"), "# yours\n", 0o644, uid)?;
        }
        for name in HIDDEN {
            self.write(&format!("home/work/{name}"), secret, 0o644, uid)?;
        }
        for (name, text) in CONFIGURED {
            let mode = if name.contains("hooks/") {
                0o755
            } else {
                0o644
            };
            self.write(&format!("home/work/{name}"), text, mode, uid)?;
        }
        let (outside, planted) = (
            self.root.join("outside"),
            self.root.join("home/work/planted"),
        );
        for id in LINKS {
            symlink(outside.join(id), planted.join(id))?;
        }
        for id in DANGLING {
            symlink(outside.join(format!("{id}.new")), planted.join(id))?;
        }
        for id in HARD_LINKS {
            if cases.iter().any(|case| case.id == id) {
                fs::hard_link(self.root.join("home/work/.env"), planted.join(id))?;
            }
        }
        self.set_id_programs()
    }

    /// Programs that change ids where nothing prevents it. Only root can leave set-uid-root ones.
    fn set_id_programs(&self) -> std::io::Result<()> {
        let program = std::env::current_exe()?;
        for (name, mode) in [("suid", 0o4755), ("sgid", 0o2755), ("caps", 0o755)] {
            let copy = self.root.join("shared").join(name);
            fs::copy(&program, &copy)?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(mode))?;
        }
        // struct vfs_cap_data, version 2: CAP_NET_RAW (13), permitted and effective.
        let data: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
        let path = crate::scene::c(self.root.join("shared/caps"));
        // SAFETY: a path and a name that end in NUL, and 20 bytes of data. Only root may; others have no such program.
        unsafe {
            libc::setxattr(
                path.as_ptr(),
                c"security.capability".as_ptr(),
                data.as_ptr().cast(),
                size_of_val(&data),
                0,
            )
        };
        Ok(())
    }

    fn folder(&self, name: &str, uid: u32) -> std::io::Result<()> {
        let path = self.root.join(name);
        if !path.exists() {
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            give(&path, uid)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, text: &str, mode: u32, uid: u32) -> std::io::Result<()> {
        let path = self.root.join(name);
        let mut above: Vec<&Path> = Path::new(name).ancestors().skip(1).collect();
        above.reverse();
        for folder in above.iter().filter_map(|folder| folder.to_str()) {
            self.folder(folder, uid)?;
        }
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        give(&path, uid)
    }

    fn remember(&mut self, cases: &[Case]) {
        let paths: Vec<PathBuf> = cases.iter().flat_map(|case| self.watched(case)).collect();
        self.before = paths
            .into_iter()
            .map(|path| (path.clone(), State::of(&path)))
            .collect();
    }

    /// What a case could have changed.
    fn watched(&self, case: &Case) -> Vec<PathBuf> {
        let pair = |folder: &str| {
            let folder = self.root.join(folder);
            vec![
                folder.join(case.id),
                folder.join(format!("{}.new", case.id)),
            ]
        };
        match case.effect {
            Effect::Outside => pair("outside"),
            Effect::Shared => pair("shared"),
            Effect::Workspace(name) => vec![self.root.join("home/work").join(name)],
            Effect::Home(name) => vec![self.root.join("home").join(name)],
            _ => Vec::new(),
        }
    }

    /// What the case did to its files.
    pub fn harm(&self, case: &Case) -> Option<String> {
        self.watched(case).into_iter().find_map(|path| {
            let before = self.before.get(&path)?;
            let what = before.difference(&State::of(&path))?;
            Some(format!("{} {what}", path.display()))
        })
    }

    /// Where the case may put things in the workspace.
    pub fn own(&self, id: &str) -> PathBuf {
        self.root.join("home/work/own").join(id)
    }

    pub fn work(&self) -> PathBuf {
        self.root.join("home/work")
    }

    pub fn scene(&self, mark: &str, ground: &Ground) -> Scene {
        Scene {
            mark: mark.to_owned(),
            program: ground.program.clone(),
            outside: self.root.join("outside"),
            shared: self.root.join("shared"),
            work: self.work(),
            home: self.root.join("home"),
            uid: ground.uid,
            runtime_dir: ground.runtime_dir.clone(),
            unix: self.root.join("outside/stream.sock"),
            unix_dgram: self.root.join("outside/dgram.sock"),
            fifo: self.root.join("outside/fifo"),
            ..Scene::default()
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // A session may have left modes that keep even us out, and very deep folders: rm goes down without recursion.
        let removed = std::process::Command::new("rm")
            .arg("-rf")
            .arg("--")
            .arg(&self.root)
            .status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!(
                "agentd-escape: {} could not be removed",
                self.root.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_tells_what_became_of_a_file() {
        let path = std::env::temp_dir().join(format!("agentd-escape-state-{}", std::process::id()));
        fs::write(&path, "one").expect("written");
        let before = State::of(&path);
        assert_eq!(before.difference(&State::of(&path)), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        assert_eq!(
            before.difference(&State::of(&path)),
            Some("has another mode")
        );
        fs::write(&path, "two").expect("written");
        assert_eq!(
            before.difference(&State::of(&path)),
            Some("has other content")
        );
        fs::remove_file(&path).expect("removed");
        assert_eq!(before.difference(&State::of(&path)), Some("was removed"));
    }
}
