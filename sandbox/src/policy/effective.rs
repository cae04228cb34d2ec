//! A policy after inheritance: checked values, each with its origin.
//!
//! Files are laid over each other, the most basic first. A single value is replaced; a list grows, unless the
//! later file says `{ replace = … }` or `{ remove = … }`; variables are merged by name.

use super::layer::{Layer, ListEdit, Setting};
use super::path::{PathBase, PathTemplate};
use super::schema::{self, KEYS, Kind, Scalar};
use super::{Origin, PolicyError, PolicyRef, Sources, Valued};
use crate::plan::{Access, Property};
use crate::rules::ipc::NamePattern;
use crate::rules::{EgressRules, IpcRules, ModelRules, SshRules, ToolRule, ToolRules};
use crate::seccomp::SyscallSet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that is counted. `None` means that the policy sets no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    /// 100 is one core kept busy.
    pub cpu_percent: Option<u64>,
    pub nofile: u64,
    /// The largest file that may be written.
    pub fsize_bytes: Option<u64>,
    /// Size of each private tmpfs (`/tmp`, HOME, …).
    pub tmp_bytes: u64,
    pub tmp_inodes: u64,
    pub wall_clock: Option<Duration>,
    /// What the agent may write to its terminal or pipes before the daemon stops it.
    pub output_bytes: Option<u64>,
    /// Input and output tokens of the whole launch.
    pub tokens: Option<u64>,
}

/// `[fs]`: what is seen, what may be changed, what may be executed, and what is hidden inside that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FsRules {
    pub read: Vec<Valued<PathTemplate>>,
    pub write: Vec<Valued<PathTemplate>>,
    pub exec: Vec<Valued<PathTemplate>>,
    pub deny: Vec<Valued<PathTemplate>>,
}

/// `[env]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EnvRules {
    /// Names taken over from the caller; a last `*` stands for any rest.
    pub pass: Vec<Valued<String>>,
    pub set: BTreeMap<String, Valued<String>>,
}

impl EnvRules {
    pub fn passes(&self, name: &str) -> bool {
        self.pass.iter().any(|p| match p.value.strip_suffix('*') {
            Some(stem) => name.starts_with(stem),
            None => name == p.value,
        })
    }
}

/// What agentctl knows when it opens paths for a launch.
#[derive(Debug, Clone, Default)]
pub struct CallerContext {
    /// The caller's own HOME.
    pub home: Option<PathBuf>,
    pub workspace: Option<PathBuf>,
    /// The program as resolved on the caller's side: it is granted read-only if the policy's view would hide it.
    pub exe: Option<PathBuf>,
}

/// A path the caller is asked to open and hand over, because only the caller has the right to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedGrant {
    pub src: PathBuf,
    /// Where it appears inside; the same path unless said otherwise.
    pub dst: PathBuf,
    pub access: Access,
    /// Skip it silently when it does not exist or cannot be opened.
    pub optional: bool,
}

/// One line of `policy show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownValue {
    /// Such as `limits.memory`.
    pub key: String,
    /// As it would be written in TOML.
    pub value: String,
    pub origin: Origin,
}

/// A policy that holds: every value is checked.
#[derive(Debug, Clone, Serialize)]
pub struct EffectivePolicy {
    pub name: String,
    pub description: Option<String>,
    /// The files it is made of, the most basic first.
    pub files: Vec<String>,
    pub fs: FsRules,
    pub env: EnvRules,
    pub syscalls: Vec<Valued<SyscallSet>>,
    pub limits: Limits,
    pub egress: EgressRules,
    pub model: ModelRules,
    pub ipc: IpcRules,
    pub tools: ToolRules,
    pub ssh: SshRules,
    /// Properties that a launch may go without.
    pub degrade: Vec<Valued<Property>>,
    /// Every effective value in the order of the reference.
    pub shown: Vec<ShownValue>,
}

impl EffectivePolicy {
    /// Reads, checks and joins a policy and everything it extends.
    pub fn load(policy: &PolicyRef, sources: &Sources) -> Result<Self, PolicyError> {
        let chain = sources.chain(policy)?;
        let mut merged = Merged::default();
        for (_, layer) in &chain.layers {
            merged.lay_over(layer);
        }
        let files = chain
            .layers
            .iter()
            .map(|(f, _)| f.clone())
            .filter(|f| f != "--set")
            .collect();
        Ok(merged.into_policy(chain.name, files))
    }

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
                    optional,
                }),
            }
        };
        for (list, access) in [
            (&self.fs.write, Access::ReadWrite),
            (&self.fs.read, Access::ReadOnly),
        ] {
            for entry in list {
                if let Some(path) = entry.value.resolve(home, workspace) {
                    let is_workspace =
                        entry.value.base == PathBase::Workspace && entry.value.rest.is_empty();
                    want(path, access, !is_workspace);
                }
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
        self.pin_ancestors(&mut wanted, home, workspace);
        if let Some(exe) = &caller.exe
            && !crate::plan::is_system_path(exe)
            && !crate::plan::is_private_path(exe)
            && !exe.starts_with("/etc")
            && !wanted.iter().any(|w| exe.starts_with(&w.src))
        {
            wanted.push(WantedGrant {
                src: exe.clone(),
                dst: exe.clone(),
                access: Access::ReadOnly,
                optional: false,
            });
        }
        wanted
    }

    /// A folder with an island or a mask somewhere below it could be renamed away, protection and all, and made anew.
    /// A folder that is a mount of its own cannot: so each one between the grant and what it protects becomes a grant.
    fn pin_ancestors(
        &self,
        wanted: &mut Vec<WantedGrant>,
        home: Option<&Path>,
        workspace: Option<&Path>,
    ) {
        let denied = self
            .fs
            .deny
            .iter()
            .filter_map(|e| e.value.resolve(home, workspace));
        let protected: Vec<PathBuf> = wanted.iter().map(|w| w.src.clone()).chain(denied).collect();
        for path in protected {
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

    /// Whether the policy lets programs below `path` be executed.
    pub fn may_exec(&self, path: &Path, home: Option<&Path>, workspace: Option<&Path>) -> bool {
        self.fs
            .exec
            .iter()
            .filter_map(|e| e.value.resolve(home, workspace))
            .any(|e| path.starts_with(e))
    }

    /// The canonical form that [`Self::hash`] is taken of: every effective value, without origins.
    pub fn canonical(&self) -> String {
        let mut lines: Vec<String> = self
            .shown
            .iter()
            .filter(|s| s.key != "description" && s.key != "extends")
            .map(|s| format!("{} = {}\n", s.key, s.value))
            .collect();
        lines.sort();
        lines.dedup();
        format!("agentd policy 1\n{}", lines.concat())
    }

    /// SHA-256 of [`Self::canonical`] in hex: the same for two texts that mean the same.
    pub fn hash(&self) -> String {
        use sha2::{Digest, Sha256};
        Sha256::digest(self.canonical())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    /// `key = value  # origin`, aligned, for people.
    pub fn show(&self) -> String {
        let left: Vec<String> = self
            .shown
            .iter()
            .map(|s| format!("{} = {}", s.key, s.value))
            .collect();
        let width = left
            .iter()
            .map(|l| l.chars().count())
            .filter(|w| *w <= 60)
            .max()
            .unwrap_or(0);
        let mut out = format!("# policy {}, hash {}\n", self.name, self.hash());
        for (l, s) in left.iter().zip(&self.shown) {
            out.push_str(&format!("{l:width$}  # {}\n", s.origin));
        }
        out
    }
}

#[derive(Default)]
struct Merged {
    lists: BTreeMap<(&'static str, &'static str), Vec<Valued<Scalar>>>,
    singles: BTreeMap<(&'static str, &'static str), Valued<Scalar>>,
    variables: BTreeMap<String, Valued<Scalar>>,
}

impl Merged {
    fn lay_over(&mut self, layer: &Layer) {
        for (key, setting) in &layer.settings {
            match setting {
                Setting::Single(value) => {
                    self.singles.insert(*key, value.clone());
                }
                Setting::Variables(map) => {
                    self.variables
                        .extend(map.iter().map(|(k, v)| (k.clone(), v.clone())));
                }
                Setting::List(edit) => edit_list(self.lists.entry(*key).or_default(), edit),
            }
        }
    }

    fn list(&self, section: &'static str, name: &'static str) -> &[Valued<Scalar>] {
        self.lists.get(&(section, name)).map_or(&[], Vec::as_slice)
    }

    /// The typed items of a list. Items were checked when they were read, so each converts.
    fn typed<T>(
        &self,
        section: &'static str,
        name: &'static str,
        make: impl Fn(&str, &Origin) -> Option<T>,
    ) -> Vec<T> {
        self.list(section, name)
            .iter()
            .filter_map(|v| match &v.value {
                Scalar::Text(text) => make(text, &v.origin),
                _ => None,
            })
            .collect()
    }

    fn single<T>(
        &self,
        section: &'static str,
        name: &'static str,
        make: impl Fn(&schema::Key, &Scalar) -> Result<T, schema::Problem>,
    ) -> Option<T> {
        let key = schema::find(section, name)?;
        let value = self.singles.get(&(section, name))?;
        if key.may_be_none && value.value == Scalar::Text("none".into()) {
            return None;
        }
        make(key, &value.value).ok()
    }

    fn is(&self, section: &'static str, name: &'static str, word: &str) -> bool {
        self.singles
            .get(&(section, name))
            .is_some_and(|v| v.value == Scalar::Text(word.into()))
    }

    fn into_policy(self, name: String, files: Vec<String>) -> EffectivePolicy {
        let paths = |n| {
            self.typed("fs", n, |t, o| {
                PathTemplate::parse(t)
                    .ok()
                    .map(|p| Valued::new(p, o.clone()))
            })
        };
        let names = |n| self.typed("ipc", n, |t, _| NamePattern::parse(t).ok());
        let hosts = |n| {
            self.list("net", n)
                .iter()
                .filter_map(|v| schema::host_rule(&v.value, &v.origin).ok())
                .collect()
        };
        let tools = |n| self.typed("tools", n, |t, o| ToolRule::parse(t, o.clone()).ok());
        let tokens = self.single("limits", "tokens", schema::Key::count);
        EffectivePolicy {
            description: self.single("", "description", |_, v| schema::text(v).map(str::to_owned)),
            fs: FsRules {
                read: paths("read"),
                write: paths("write"),
                exec: paths("exec"),
                deny: paths("deny"),
            },
            env: EnvRules {
                pass: self.typed("env", "pass", |t, o| {
                    Some(Valued::new(t.to_owned(), o.clone()))
                }),
                set: self
                    .variables
                    .iter()
                    .filter_map(|(k, v)| {
                        schema::text(&v.value)
                            .ok()
                            .map(|t| (k.clone(), Valued::new(t.to_owned(), v.origin.clone())))
                    })
                    .collect(),
            },
            syscalls: self.typed("syscalls", "allow", |t, o| {
                SyscallSet::from_name(t).map(|s| Valued::new(s, o.clone()))
            }),
            limits: Limits {
                memory_bytes: self.single("limits", "memory", schema::Key::size),
                pids: self.single("limits", "pids", schema::Key::count),
                cpu_percent: self.single("limits", "cpu", |_, v| schema::percent(v)),
                nofile: self
                    .single("limits", "nofile", schema::Key::count)
                    .unwrap_or(1024),
                fsize_bytes: self.single("limits", "fsize", schema::Key::size),
                tmp_bytes: self
                    .single("limits", "tmp", schema::Key::size)
                    .unwrap_or(64 << 20),
                tmp_inodes: self
                    .single("limits", "tmp_inodes", schema::Key::count)
                    .unwrap_or(16_384),
                wall_clock: self.single("limits", "wall_clock", |_, v| schema::duration(v)),
                output_bytes: self.single("limits", "output", schema::Key::size),
                tokens,
            },
            egress: EgressRules {
                enabled: self.is("net", "mode", "proxy"),
                rules: hosts("allow"),
                ask: hosts("ask"),
                credentials: self.typed("net", "credentials", |t, _| Some(t.to_owned())),
            },
            model: ModelRules {
                enabled: self.is("model", "access", "gateway"),
                models: self.typed("model", "models", |t, _| Some(t.to_owned())),
                max_tokens_total: tokens,
                max_tokens_per_request: self.single("model", "max_tokens", schema::Key::count),
            },
            ipc: IpcRules {
                send: names("send"),
                request: names("request"),
                publish: names("publish"),
                subscribe: names("subscribe"),
                shared_memory: self
                    .single("ipc", "shared_memory", |_, v| schema::flag(v))
                    .unwrap_or(true),
            },
            tools: ToolRules {
                allow: tools("allow"),
                ask: tools("ask"),
                deny: tools("deny"),
                ask_timeout: self
                    .single("tools", "ask_timeout", |_, v| schema::ask_timeout(v))
                    .unwrap_or(crate::rules::tools::DEFAULT_ASK_TIMEOUT),
            },
            ssh: SshRules {
                enabled: self.is("ssh", "agent", "forward"),
                keys: self.typed("ssh", "keys", |t, _| Some(t.to_owned())),
                ask: self.is("ssh", "sign", "ask"),
            },
            degrade: self
                .list("degrade", "allow")
                .iter()
                .flat_map(|v| match &v.value {
                    Scalar::Text(t) => Property::degradable(t)
                        .iter()
                        .map(|p| Valued::new(*p, v.origin.clone()))
                        .collect::<Vec<_>>(),
                    _ => Vec::new(),
                })
                .collect(),
            shown: self.shown(),
            name,
            files,
        }
    }

    fn shown(&self) -> Vec<ShownValue> {
        let mut out = Vec::new();
        for key in KEYS {
            let id = (key.section, key.name);
            let line = |key: String, v: &Valued<Scalar>| ShownValue {
                key,
                value: v.value.show(),
                origin: v.origin.clone(),
            };
            if key.kind == Kind::Variables {
                out.extend(
                    self.variables
                        .iter()
                        .map(|(k, v)| line(format!("{}.{k}", key.path()), v)),
                );
            } else if key.kind.is_list() {
                out.extend(self.list(id.0, id.1).iter().map(|v| line(key.path(), v)));
            } else if let Some(v) = self.singles.get(&id) {
                out.push(line(key.path(), v));
            }
        }
        out
    }
}

fn edit_list(list: &mut Vec<Valued<Scalar>>, edit: &ListEdit) {
    if edit.replace {
        list.clear();
    }
    list.retain(|v| !edit.remove.iter().any(|r| r.value == v.value));
    for item in &edit.add {
        if !list.iter().any(|v| v.value == item.value) {
            list.push(item.clone());
        }
    }
}
