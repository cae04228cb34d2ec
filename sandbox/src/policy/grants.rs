//! Which paths of the host a launch needs, so that the caller opens them with its own rights.

use super::path::PathBase;
use super::{CallerContext, EffectivePolicy, WantedGrant};
use crate::plan::Access;
use crate::ports::SECRETS;
use agentd_kernel::grant::Kind;
use std::path::{Path, PathBuf};

impl EffectivePolicy {
    /// The paths that the caller has to open for this policy, the workspace first if there is one.
    ///
    /// What lies in a system folder is not among them: the launcher binds those itself. Where a grant covers
    /// another with the same access, only the outer one is wanted.
    pub fn wanted_grants(&self, caller: &CallerContext) -> Vec<WantedGrant> {
        let (home, workspace) = (caller.home.as_deref(), caller.workspace.as_deref());
        let mut wanted: Vec<WantedGrant> = Vec::new();
        let mut want = |path: PathBuf, access: Access, optional: bool| {
            let skip = crate::plan::is_system_path(&path)
                || crate::plan::is_private_path(&path)
                || Some(path.as_path()) == home;
            // The workspace is wanted wherever it is; planning says if it can't be there.
            if skip && optional {
                return;
            }
            match wanted.iter_mut().find(|w| w.src == path) {
                Some(w) if access == Access::ReadWrite => w.access = access,
                Some(_) => {}
                None => wanted.push(WantedGrant {
                    src: path.clone(),
                    dst: path,
                    access,
                    kind: Kind::File,
                    optional,
                }),
            }
        };
        // To protect is to take away from what may be written; it shows nothing that would be hidden otherwise.
        let protected: Vec<PathBuf> = self
            .fs
            .protect
            .iter()
            .filter_map(|e| e.value.resolve(home, workspace))
            .collect();
        for (list, access) in [
            (&self.fs.write, Access::ReadWrite),
            (&self.fs.read, Access::ReadOnly),
            (&self.fs.scratch, Access::ReadOnly),
        ] {
            for entry in list {
                if let Some(path) = entry.value.resolve(home, workspace) {
                    let is_workspace =
                        entry.value.base == PathBase::Workspace && entry.value.rest.is_empty();
                    let access = match protected.iter().any(|p| path.starts_with(p)) {
                        true => Access::ReadOnly,
                        false => access,
                    };
                    want(path, access, !is_workspace);
                }
            }
        }
        let write = self.fs.write.iter();
        let writable: Vec<PathBuf> = write
            .filter_map(|e| e.value.resolve(home, workspace))
            .collect();
        for path in &caller.keep {
            if writable.iter().any(|w| path != w && path.starts_with(w)) {
                want(path.clone(), Access::ReadOnly, true);
            }
        }
        if let Some(at) = workspace.and_then(|w| wanted.iter().position(|g| g.src == w)) {
            wanted[..=at].rotate_right(1);
        }
        let all = wanted.clone();
        wanted.retain(|w| {
            let outer = all
                .iter()
                .filter(|o| o.src != w.src && w.src.starts_with(&o.src));
            // An inner grant with other access than the nearest outer one is an island, and stays.
            outer
                .max_by_key(|o| o.src.as_os_str().len())
                .is_none_or(|o| o.access != w.access)
        });
        pin_ancestors(&mut wanted);
        for (list, kind) in [(&self.sockets, Kind::Socket), (&self.devices, Kind::Device)] {
            let paths = list.iter().filter_map(|e| e.value.resolve(home, workspace));
            wanted.extend(paths.map(|path| WantedGrant {
                src: path.clone(),
                dst: path,
                // What the file itself allows is asked when it is connected to, or opened.
                access: Access::ReadOnly,
                kind,
                optional: true,
            }));
        }
        for (name, line) in &self.secrets {
            if let Some(src) = line.value.resolve(home, workspace) {
                wanted.push(WantedGrant {
                    src,
                    dst: Path::new(SECRETS).join(name),
                    access: Access::ReadOnly,
                    kind: Kind::Content,
                    // A program that was promised a key should not start without it.
                    optional: false,
                });
            }
        }
        // The program that is asked for runs where the policy shows nothing of it, or would not let it be executed: as a
        // read-only mount of its own.
        if let Some(exe) = &caller.exe
            && !crate::plan::is_system_path(exe)
            && !crate::plan::is_private_path(exe)
            && !exe.starts_with("/etc")
            && !wanted.iter().any(|w| w.dst == *exe)
            && !(wanted.iter().any(|w| exe.starts_with(&w.dst))
                && self.may_exec(exe, home, workspace))
        {
            wanted.push(WantedGrant {
                src: exe.clone(),
                dst: exe.clone(),
                access: Access::ReadOnly,
                kind: Kind::File,
                optional: false,
            });
        }
        wanted
    }

    /// Whether the policy lets programs below `path` be executed.
    pub fn may_exec(&self, path: &Path, home: Option<&Path>, workspace: Option<&Path>) -> bool {
        self.fs
            .exec
            .iter()
            .filter_map(|e| e.value.resolve(home, workspace))
            .any(|e| path.starts_with(e))
    }
}

/// A folder with an island somewhere below it could be renamed away, island and all, and made anew. A folder that is a
/// mount of its own cannot: so each one between the grant and the island becomes a grant. (What is denied or protected
/// needs none: the launcher pins the folders above it.)
fn pin_ancestors(wanted: &mut Vec<WantedGrant>) {
    let islands: Vec<PathBuf> = wanted.iter().map(|w| w.src.clone()).collect();
    for path in islands {
        let outer = wanted
            .iter()
            .filter(|w| w.src != path && path.starts_with(&w.src));
        let Some(outer) = outer.max_by_key(|w| w.src.as_os_str().len()).cloned() else {
            continue;
        };
        if outer.access != Access::ReadWrite {
            continue;
        }
        let between = path.ancestors().skip(1).take_while(|a| *a != outer.src);
        for folder in between.map(Path::to_owned).collect::<Vec<_>>() {
            wanted.push(WantedGrant {
                src: folder.clone(),
                dst: folder,
                optional: true,
                ..outer
            });
        }
    }
}
