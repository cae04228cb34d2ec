//! Which hierarchies are mounted, and where in each this process lives.

use super::{CgroupError, Controller, read_file};
use crate::probe::Roots;
use std::fs;
use std::path::{Path, PathBuf};

/// The leaf into which the daemon's own processes move on cgroup2, so that their cgroup may have controllers.
pub(super) const DAEMON_LEAF: &str = "agentd-daemon";

/// The cgroup namespace that the kernel began with (`PROC_CGROUP_INIT_INO`).
const FIRST_NAMESPACE: &str = "cgroup:[4026531835]";

/// One mounted hierarchy and this process's own directory in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub own: PathBuf,
    /// Version 1: what is attached to it. cgroup2: what the own cgroup could enable for children.
    pub controllers: Vec<Controller>,
}

/// The host's hierarchies as this process sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The cgroup2 hierarchy.
    pub unified: Option<Hierarchy>,
    /// Its mount point, if this process's cgroup is further down, and what could be enabled there.
    pub unified_top: Option<Hierarchy>,
    /// Version 1 hierarchies with a controller that agentd uses, in mount order.
    pub v1: Vec<Hierarchy>,
}

impl Layout {
    /// Reads `self/mountinfo` and `self/cgroup` below `roots.proc`. A hierarchy that is not mounted, or whose mount does
    /// not show this process's cgroup, is left out.
    pub fn detect(roots: &Roots) -> Result<Self, CgroupError> {
        let read = |name: &str| {
            let path = roots.proc.join("self").join(name);
            fs::read_to_string(&path).map_err(|source| CgroupError::new("read", path, source))
        };
        let (mounts, own) = (read("mountinfo")?, read("cgroup")?);
        let mut layout = Self::default();
        for mount in mounts.lines().filter_map(Mount::parse) {
            if mount.unified {
                if layout.unified.is_some() {
                    continue;
                }
                let Some(own) = own_directory(&mount, &own, "") else {
                    continue;
                };
                // A process started from the daemon is in the daemon's leaf: agents go beside it, not below.
                let own = match own.parent() {
                    Some(parent) if own.ends_with(DAEMON_LEAF) => parent.to_path_buf(),
                    _ => own,
                };
                let enabled_in = |path: &Path| {
                    let listed = read_file(&path.join("cgroup.controllers")).unwrap_or_default();
                    named(listed.split_whitespace())
                };
                let top = Hierarchy {
                    own: PathBuf::from(&mount.point),
                    controllers: enabled_in(Path::new(&mount.point)),
                };
                let controllers = enabled_in(&own);
                layout.unified_top = (top.own != own).then_some(top);
                layout.unified = Some(Hierarchy { own, controllers });
            } else {
                let controllers = named(mount.options.split(','));
                let Some(&first) = controllers.first() else {
                    continue;
                };
                let seen = layout
                    .v1
                    .iter()
                    .any(|hierarchy| hierarchy.controllers.contains(&first));
                if let Some(own) = own_directory(&mount, &own, first.name()).filter(|_| !seen) {
                    layout.v1.push(Hierarchy { own, controllers });
                }
            }
        }
        Ok(layout)
    }
}

/// How many directories a cgroup2 directory is below the root of the whole hierarchy, which is what eBPF programs count from.
/// `None` where this process can't know: it is in a cgroup namespace, or sees a part of the hierarchy that is not below the root.
#[doc(alias = "bpf_get_current_ancestor_cgroup_id")]
pub fn unified_depth(roots: &Roots, path: &Path) -> Option<u32> {
    let own = fs::read_link(roots.proc.join("self/ns/cgroup")).ok()?;
    if own.to_str()? != FIRST_NAMESPACE {
        return None;
    }
    let mounts = fs::read_to_string(roots.proc.join("self/mountinfo")).ok()?;
    let below = mounts.lines().filter_map(Mount::parse).find_map(|mount| {
        let below = path.strip_prefix(&mount.point).ok()?;
        let root = Path::new(&mount.root).strip_prefix("/").ok()?;
        mount.unified.then(|| root.join(below))
    })?;
    let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    let depth = below.components().count();
    below
        .components()
        .all(plain)
        .then(|| u32::try_from(depth).ok())?
}

/// The mount that shows a cgroup2 directory, and how many directories it is below that; the mount's root may be any cgroup.
pub fn unified_mount(roots: &Roots, path: &Path) -> Option<(PathBuf, u32)> {
    let mounts = fs::read_to_string(roots.proc.join("self/mountinfo")).ok()?;
    let mounts = mounts.lines().filter_map(Mount::parse);
    let point = mounts
        .filter(|mount| mount.unified && path.starts_with(&mount.point))
        .map(|mount| PathBuf::from(mount.point))
        // Of mounts in each other the innermost is what is seen.
        .max_by_key(|point| point.components().count())?;
    let below = path.strip_prefix(&point).ok()?.components();
    let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    let depth = below.clone().count();
    (below.clone().all(plain)).then_some((point, u32::try_from(depth).ok()?))
}

fn named<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Controller> {
    names
        .filter_map(|name| {
            Controller::ALL
                .into_iter()
                .find(|controller| controller.name() == name)
        })
        .collect()
}

/// One cgroup line of mountinfo (proc_pid_mountinfo(5)).
struct Mount<'a> {
    root: String,
    point: String,
    unified: bool,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (unescape(left.next()?), unescape(left.next()?));
        let mut right = right.split(' ');
        let unified = match right.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        Some(Self {
            root,
            point,
            unified,
            options: right.nth(1)?,
        })
    }
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// The directory, under the mount point, of the cgroup that `/proc/self/cgroup` names for `controller` ("" for cgroup2).
fn own_directory(mount: &Mount<'_>, own: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        names
            .split(',')
            .any(|name| name == controller)
            .then_some(path)
    })?;
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    if below
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return None;
    }
    Some(if below.as_os_str().is_empty() {
        mount.point.clone().into()
    } else {
        Path::new(&mount.point).join(below)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fakes procfs with these two files; `{dir}` in them is the folder itself.
    fn detect(
        mountinfo: &str,
        cgroup: &str,
        prepare: impl FnOnce(&Path),
    ) -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().expect("tempdir");
        let own = folder.path().join("self");
        fs::create_dir(&own).expect("mkdir");
        let text = mountinfo.replace("{dir}", folder.path().to_str().expect("utf-8"));
        fs::write(own.join("mountinfo"), text).expect("write");
        fs::write(own.join("cgroup"), cgroup).expect("write");
        prepare(folder.path());
        let roots = Roots {
            proc: folder.path().to_path_buf(),
            ..Roots::default()
        };
        let layout = Layout::detect(&roots).expect("layout");
        (folder, layout)
    }

    #[test]
    fn a_hybrid_host_has_controllers_on_v1_and_a_bare_unified_mount() {
        let (_folder, layout) = detect(
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             32 31 0:29 / /cg/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /cg/memory rw,relatime - cgroup cgroup rw,memory\n\
             37 31 0:34 / /cg/freezer rw,relatime - cgroup cgroup rw,freezer\n\
             40 31 0:37 / /cg/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /cg/uni\\040fied rw,relatime - cgroup2 cgroup2 rw\n",
            "9:name=systemd:/x\n6:freezer:/\n4:memory:/api/1e\n1:cpu,cpuacct:/\n0::/u\n",
            |_| {},
        );
        assert_eq!(
            layout.unified,
            Some(Hierarchy {
                own: "/cg/uni fied/u".into(),
                controllers: Vec::new()
            })
        );
        assert_eq!(
            layout.v1,
            [
                Hierarchy {
                    own: "/cg/cpu,cpuacct".into(),
                    controllers: vec![Controller::Cpu, Controller::Cpuacct]
                },
                Hierarchy {
                    own: "/cg/memory/api/1e".into(),
                    controllers: vec![Controller::Memory]
                },
            ]
        );
    }

    #[test]
    fn a_pure_v2_host_lists_its_controllers_and_steps_out_of_the_daemon_leaf() {
        let (folder, layout) = detect(
            "30 23 0:27 / {dir}/cg rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
            "0::/system.slice/agentd.service/agentd-daemon\n",
            |dir| {
                let own = dir.join("cg/system.slice/agentd.service/agentd-daemon");
                fs::create_dir_all(&own).expect("mkdir");
                let parent = own.parent().expect("parent");
                fs::write(
                    parent.join("cgroup.controllers"),
                    "cpuset cpu io memory pids\n",
                )
                .expect("write");
            },
        );
        let own = folder.path().join("cg/system.slice/agentd.service");
        let controllers = vec![Controller::Cpu, Controller::Memory, Controller::Pids];
        assert_eq!(layout.unified, Some(Hierarchy { own, controllers }));
        let top = layout.unified_top.expect("the top is elsewhere");
        assert_eq!(top.own, folder.path().join("cg"));
        assert_eq!(layout.v1, []);
    }

    #[test]
    fn depth_is_counted_from_the_root_of_the_hierarchy_or_not_at_all() {
        let (folder, _) = detect(
            "41 31 0:38 /slice /cg rw - cgroup2 cgroup2 rw\n",
            "0::/slice/a\n",
            |_| {},
        );
        let roots = Roots {
            proc: folder.path().to_path_buf(),
            ..Roots::default()
        };
        let depth = |path: &str| unified_depth(&roots, Path::new(path));
        assert_eq!(depth("/cg/a"), None, "which namespace is not known");
        fs::create_dir(folder.path().join("self/ns")).expect("mkdir");
        let link = folder.path().join("self/ns/cgroup");
        std::os::unix::fs::symlink(FIRST_NAMESPACE, &link).expect("symlink");
        assert_eq!(depth("/cg/a/agentd-5"), Some(3));
        assert_eq!(depth("/cg"), Some(1));
        assert_eq!(depth("/elsewhere/a"), None);
        fs::remove_file(&link).expect("unlink");
        std::os::unix::fs::symlink("cgroup:[4026532200]", &link).expect("symlink");
        assert_eq!(depth("/cg/a"), None, "a namespace hides how deep it begins");
        let mount = |path: &str| unified_mount(&roots, Path::new(path));
        assert_eq!(mount("/cg/a/agentd-5"), Some(("/cg".into(), 2)));
        assert_eq!(mount("/cg"), Some(("/cg".into(), 0)));
        assert_eq!(mount("/cg/../x"), None);
        assert_eq!(mount("/elsewhere/a"), None);
    }

    #[test]
    fn a_mount_that_does_not_show_our_cgroup_is_left_out() {
        let (_folder, layout) = detect(
            "30 23 0:27 /docker/abc /cg rw - cgroup2 cgroup2 rw\n",
            "0::/docker/other\n",
            |_| {},
        );
        assert_eq!(layout, Layout::default());
        let (_folder, layout) = detect(
            "30 23 0:27 / /cg rw - cgroup2 cgroup2 rw\n",
            "0::/../up\n",
            |_| {},
        );
        assert_eq!(layout, Layout::default());
    }
}
