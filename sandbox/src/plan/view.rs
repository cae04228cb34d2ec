//! The mount view: which parts of the host show where, and which places are the sandbox's own.
//!
//! The more specific path wins: a folder under `read` inside one under `write` is a read-only island, pinned there
//! by its own mount. Mounts are made in the order of their paths, so an inner one lands on its outer one.

use super::landlock::Rights;
use super::{Access, LaunchInputs, PlanRefused};
use crate::policy::{EffectivePolicy, PathBase, PathTemplate, Valued};
use crate::ports::SECRETS;
use agentd_launch::floor::ROOT_SOURCES;
use std::path::{Path, PathBuf};

/// Places every sandbox has of its own, writable, empty and limited in size.
pub(crate) const PRIVATE: [&str; 2] = ["/tmp", "/var/tmp"];
/// Places a grant or a policy path can't be at or below.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run/agentd"];
/// Where HOME is when the caller's own path won't do.
pub(crate) const FALLBACK_HOME: &str = "/home/agent";

/// Whether the launcher may bind this path of the host itself, read-only (the floor's list).
pub(crate) fn is_system_path(path: &Path) -> bool {
    ROOT_SOURCES.iter().any(|s| path.starts_with(s))
}

/// Whether this path is the sandbox's own and never the host's.
pub(crate) fn is_private_path(path: &Path) -> bool {
    path == Path::new("/")
        || path == Path::new("/run")
        || PRIVATE.iter().any(|p| path == Path::new(p))
        || RESERVED.iter().any(|p| path.starts_with(p))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The same path of the host.
    System,
    /// The grant of this index.
    Grant(u32),
    /// The grant of this index, under a layer of the sandbox's own that takes all changes.
    Scratch(u32),
    /// A unix socket, the grant of this index.
    Socket(u32),
    /// A character device, the grant of this index.
    Device(u32),
    Tmpfs,
    /// The folder of the TLS roots, with a bundle of the sandbox's own.
    Trust,
    /// The folder of the secrets, for this many.
    Secrets(u32),
    /// A copy of the file that is the grant of this index.
    Secret(u32),
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub dst: PathBuf,
    pub source: Source,
    pub writable: bool,
    pub exec: bool,
}

impl Mount {
    pub(crate) fn rights(&self) -> Rights {
        if matches!(self.source, Source::Device(_)) {
            Rights::Devices
        } else if self.writable {
            Rights::Write { exec: self.exec }
        } else {
            Rights::Read { exec: self.exec }
        }
    }
}

/// Something of the view that is covered: hidden, or made read-only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cover {
    pub path: PathBuf,
    /// What keeps the name where nothing is there yet.
    pub absent: Absent,
    /// All names that the view has of the file are covered.
    pub linked: bool,
}

/// What becomes of a name that is to be covered and isn't there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Absent {
    /// It can be made.
    Free,
    /// An empty file keeps it, for as long as the sandbox lives.
    File,
    /// Or an empty folder.
    Folder,
}

/// The whole view.
#[derive(Debug)]
pub(crate) struct View {
    pub home: PathBuf,
    /// In the order they are made.
    pub mounts: Vec<Mount>,
    /// What is hidden inside it.
    pub masks: Vec<Cover>,
    /// What is read-only inside what may be written.
    pub protected: Vec<Cover>,
    /// Of what the sandbox changes a copy.
    pub copies: Vec<Cover>,
    /// The program, where it is shown only because it is the program.
    pub program: Option<PathBuf>,
}

impl View {
    /// Whether a name on a grant is to be kept that nothing may have yet.
    pub(crate) fn keeps_names(&self) -> bool {
        let on_grant = |path: &Path| {
            let mount = self.mounts.iter().rfind(|m| path.starts_with(&m.dst));
            mount.is_some_and(|m| matches!(m.source, Source::Grant(_)))
        };
        let mut covers = self.masks.iter().chain(&self.protected).chain(&self.copies);
        covers.any(|c| c.absent != Absent::Free && on_grant(&c.path))
    }

    /// Whether something of the host or the sandbox is mounted at or above this path.
    pub(crate) fn shows(&self, path: &Path) -> bool {
        self.mounts
            .iter()
            .any(|m| m.source != Source::Tmpfs && path.starts_with(&m.dst))
    }
}

pub(crate) fn view(policy: &EffectivePolicy, inputs: &LaunchInputs) -> Result<View, PlanRefused> {
    let caller_home = inputs.caller_home.as_deref();
    let workspace = inputs.workspace.as_deref();
    let home = private_home(inputs)?;
    let may_exec = |path: &Path| {
        policy.may_exec(path, caller_home, workspace)
            // "~" in the policy means the private HOME wherever that is.
            || (path == home && policy.fs.exec.iter().any(|e| e.value.base == PathBase::Home && e.value.rest.is_empty()))
    };
    let mut mounts: Vec<Mount> = Vec::new();

    // What the launcher binds itself. A path under `exec` needs a mount of its own where the outer one is noexec.
    let fs = &policy.fs;
    for entry in fs.read.iter().chain(&fs.write).chain(&fs.exec) {
        let Some(path) = entry.value.resolve(caller_home, workspace) else {
            continue;
        };
        if entry.value.base == PathBase::Root
            && is_system_path(&path)
            && !mounts.iter().any(|m| m.dst == path)
        {
            let exec = may_exec(&path);
            mounts.push(Mount {
                dst: path,
                source: Source::System,
                writable: false,
                exec,
            });
        }
    }
    let outer = mounts.clone();
    mounts.retain(|m| {
        !outer
            .iter()
            .any(|o| o.dst != m.dst && m.dst.starts_with(&o.dst) && o.exec == m.exec)
    });

    for path in PRIVATE.iter().map(PathBuf::from).chain([home.clone()]) {
        if inputs.grants.iter().any(|g| g.dst == path) {
            let problem =
                "it is private to each sandbox, so nothing can be granted there".to_owned();
            return Err(refuse_grant(&path, problem));
        }
        let exec = may_exec(&path);
        mounts.push(Mount {
            dst: path,
            source: Source::Tmpfs,
            writable: true,
            exec,
        });
    }
    if let Some(folder) = inputs.trust.as_ref().and_then(|t| t.path.parent()) {
        mounts.push(Mount {
            dst: folder.to_owned(),
            source: Source::Trust,
            writable: false,
            exec: false,
        });
    }
    let mut program = None;
    for (index, grant) in (0u32..).zip(&inputs.grants) {
        if let Ok(name) = grant.dst.strip_prefix(SECRETS) {
            if !name
                .to_str()
                .is_some_and(|n| policy.secrets.contains_key(n))
            {
                let problem = format!(
                    "policy {} has no such line under secrets.files",
                    policy.name
                );
                return Err(refuse_grant(&grant.dst, problem));
            }
            mounts.push(Mount {
                dst: grant.dst.clone(),
                source: Source::Secret(index),
                writable: false,
                exec: false,
            });
            continue;
        }
        let special = [
            (&policy.sockets, Source::Socket(index)),
            (&policy.devices, Source::Device(index)),
        ];
        let special = special
            .into_iter()
            .find(|(list, _)| resolve_all(list, inputs).contains(&grant.dst));
        if let Some((_, source)) = special {
            if grant.dst.starts_with("/run/agentd") {
                let problem = "this place belongs to the sandbox itself".into();
                return Err(refuse_grant(&grant.dst, problem));
            }
            mounts.push(Mount {
                dst: grant.dst.clone(),
                source,
                writable: false,
                exec: false,
            });
            continue;
        }
        let by_policy = policy_access(policy, inputs, &grant.dst)?;
        if by_policy.is_none() {
            program = Some(grant.dst.clone());
        }
        let protected = covers(&resolve_all(&policy.fs.protect, inputs), &grant.dst);
        let is_program = inputs.names_program(&grant.dst);
        // The program stays as it is, on its own: what is writable in memory is not executed.
        let scratch = by_policy == Some(Shown::Scratch) && !protected && !is_program;
        let writable = scratch
            || by_policy == Some(Shown::Write) && grant.access == Access::ReadWrite && !protected;
        let exec = by_policy.is_none() || may_exec(&grant.dst) || is_program;
        // What the caller hands over stands before what the launcher would bind there.
        mounts.retain(|m| m.source != Source::System || m.dst != grant.dst);
        mounts.push(Mount {
            dst: grant.dst.clone(),
            source: if scratch {
                Source::Scratch(index)
            } else {
                Source::Grant(index)
            },
            writable,
            exec,
        });
    }
    secrets_folder(policy, &mut mounts)?;
    mounts.sort_by(|a, b| a.dst.cmp(&b.dst));
    if let Some(pair) = mounts.windows(2).find(|w| w[0].dst == w[1].dst) {
        return Err(refuse_grant(
            &pair[0].dst,
            "two grants have this path".into(),
        ));
    }

    let Covers {
        masks,
        protected,
        copies,
    } = covers_of(policy, inputs, &mounts);
    Ok(View {
        home,
        mounts,
        masks,
        protected,
        copies,
        program,
    })
}

/// The folder that the secrets are copied to, if there are any. Each that the policy names has to be there.
fn secrets_folder(policy: &EffectivePolicy, mounts: &mut Vec<Mount>) -> Result<(), PlanRefused> {
    let there = |name: &str| {
        let dst = Path::new(SECRETS).join(name);
        mounts.iter().any(|m| m.dst == dst)
    };
    if let Some((name, line)) = policy.secrets.iter().find(|(name, _)| !there(name)) {
        return Err(PlanRefused::Input {
            what: format!("secrets.files.{name} = {} ({})", line.value, line.origin),
            problem: "the file was not handed over with the launch".into(),
            allowed: "start it with agentctl run, which opens it with your rights; a path below ${workspace} needs --workspace".into(),
        });
    }
    let count = u32::try_from(policy.secrets.len()).unwrap_or(u32::MAX);
    if count > 0 {
        mounts.push(Mount {
            dst: SECRETS.into(),
            source: Source::Secrets(count),
            writable: false,
            exec: false,
        });
    }
    Ok(())
}

fn resolve_all(list: &[Valued<PathTemplate>], inputs: &LaunchInputs) -> Vec<PathBuf> {
    list.iter()
        .filter_map(|entry| resolve(&entry.value, inputs))
        .collect()
}

fn resolve(path: &PathTemplate, inputs: &LaunchInputs) -> Option<PathBuf> {
    path.resolve(inputs.caller_home.as_deref(), inputs.workspace.as_deref())
}

/// Whether one of the paths is this one, or a folder above it.
fn covers(paths: &[PathBuf], path: &Path) -> bool {
    paths.iter().any(|p| path.starts_with(p))
}

/// What is hidden, and what keeps its content inside what may be written, without what is there already by a mount of its own.
struct Covers {
    masks: Vec<Cover>,
    protected: Vec<Cover>,
    copies: Vec<Cover>,
}

fn covers_of(policy: &EffectivePolicy, inputs: &LaunchInputs, mounts: &[Mount]) -> Covers {
    let fs = &policy.fs;
    let on = |path: &Path| mounts.iter().rfind(|m| path.starts_with(&m.dst));
    let is_writable = |path: &Path| {
        on(path).is_some_and(|m| {
            m.writable && matches!(m.source, Source::Grant(_) | Source::Scratch(_))
        })
    };
    let linked = resolve_all(&fs.linked, inputs);
    let cover = |entry: &Valued<PathTemplate>| {
        let path = resolve(&entry.value, inputs)?;
        let absent = match (is_writable(&path), entry.value.folder) {
            (false, _) => Absent::Free,
            (true, false) => Absent::File,
            (true, true) => Absent::Folder,
        };
        Some(Cover {
            linked: linked.contains(&path),
            path,
            absent,
        })
    };
    let sorted = |mut list: Vec<Cover>| {
        // Of two lines for one path, the one that keeps the name counts.
        list.sort_by(|a, b| (&a.path, b.absent).cmp(&(&b.path, a.absent)));
        list.dedup_by(|a, b| a.path == b.path);
        list
    };
    let free = |c: Cover| Cover {
        absent: Absent::Free,
        ..c
    };
    let masks: Vec<Cover> = fs
        .deny
        .iter()
        .filter_map(cover)
        .chain(fs.linked.iter().filter_map(cover).map(free))
        .filter(|c| on(&c.path).is_some())
        .collect();

    // A line under `read` inside what may be written is kept as it is if it is there, whether or not a grant came for it.
    let writable = [&fs.write, &fs.scratch].map(|list| resolve_all(list, inputs));
    let is_read = |c: &Cover| !writable.iter().flatten().any(|w| w.starts_with(&c.path));
    let read = fs.read.iter().filter_map(cover).filter(is_read).map(free);
    let is_kept = |c: &Cover| is_writable(&c.path) && !mounts.iter().any(|m| m.dst == c.path);
    let protect = fs.protect.iter().filter_map(cover);
    let protected: Vec<Cover> = protect.chain(read).filter(is_kept).collect();
    // Whatever takes more away counts.
    let is_taken = |c: &Cover| {
        let mut above = masks.iter().chain(&protected);
        above.any(|above| c.path.starts_with(&above.path))
    };
    let copies = fs.copy.iter().filter_map(cover).filter(is_kept);
    let copies = copies.filter(|c| !is_taken(c)).collect();
    Covers {
        copies: sorted(copies),
        masks: sorted(masks),
        protected: sorted(protected),
    }
}

/// What a policy makes of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Read,
    Write,
    Scratch,
}

/// What the policy lets this grant be; `None` when it is the program and no line of the policy shows it. Grants are the
/// caller's to give, within the policy.
fn policy_access(
    policy: &EffectivePolicy,
    inputs: &LaunchInputs,
    dst: &Path,
) -> Result<Option<Shown>, PlanRefused> {
    if dst.to_str().is_none() {
        return Err(refuse_grant(dst, "the path is not UTF-8".into()));
    }
    if is_private_path(dst) {
        return Err(refuse_grant(
            dst,
            "this place belongs to the sandbox itself".into(),
        ));
    }
    // The deepest line of the policy that covers the path decides; of two equally deep ones, the one that keeps changes in
    // the sandbox, then the one that gives more.
    let deepest = |list: &[Valued<PathTemplate>]| {
        resolve_all(list, inputs)
            .into_iter()
            .filter(|p| dst.starts_with(p))
            .map(|p| p.components().count())
            .max()
    };
    let lines = [
        (deepest(&policy.fs.read), Shown::Read),
        (deepest(&policy.fs.write), Shown::Write),
        (deepest(&policy.fs.scratch), Shown::Scratch),
    ];
    // Of equals the last is taken.
    let shown = lines.into_iter().max_by_key(|(depth, _)| *depth);
    match shown {
        Some((Some(_), shown)) => Ok(Some(shown)),
        _ if inputs.is_program(dst) => Ok(None),
        _ => Err(refuse_grant(
            dst,
            format!("policy {} does not show it", policy.name),
        )),
    }
}

fn refuse_grant(path: &Path, problem: String) -> PlanRefused {
    PlanRefused::Input {
        what: format!("grant {}", path.display()),
        problem,
        allowed:
            "grants are the paths under fs.read, fs.write, fs.scratch, ipc.sockets, devices.allow and secrets.files of the policy, and the program itself"
                .into(),
    }
}

/// At the caller's own HOME path, so that `~/x` is the same place inside and outside, unless that would cover
/// something else.
fn private_home(inputs: &LaunchInputs) -> Result<PathBuf, PlanRefused> {
    let usable = |path: &Path| {
        path.is_absolute()
            && !is_private_path(path)
            && !is_system_path(path)
            && !Path::new("/run/agentd").starts_with(path)
            && !PRIVATE
                .iter()
                .any(|p| path.starts_with(p) || Path::new(p).starts_with(path))
            && !ROOT_SOURCES.iter().any(|s| Path::new(s).starts_with(path))
            && !inputs.grants.iter().any(|g| path.starts_with(&g.dst))
    };
    match &inputs.home {
        Some(home) if usable(home) => Ok(home.clone()),
        Some(home) => Err(PlanRefused::Input {
            what: format!("home {}", home.display()),
            problem: "HOME is a private, empty folder and would hide what is there".into(),
            allowed: format!(
                "name a path that is not a system folder, a grant or /tmp, such as {FALLBACK_HOME}"
            ),
        }),
        None => Ok(inputs
            .caller_home
            .clone()
            .filter(|h| usable(h))
            .unwrap_or_else(|| FALLBACK_HOME.into())),
    }
}
