//! What an operator lets each user's launches be at most: `[[ceiling]]` of the configuration.
//!
//! A ceiling is a policy that no launch of a user may exceed, whatever policy text, name or `--set` it comes with. An entry
//! that names the user is for them, else those that name one of their groups, else those that name nobody; of entries of
//! one kind all hold. Root is under a ceiling only by name. Asked once per launch, before anything is opened; an entry
//! whose policy does not load refuses the launches of those it is for.
//!
//! Users and groups are looked up in `/etc/passwd` and `/etc/group`; of other directories their numbers are understood. `~` in a
//! ceiling is the HOME of `/etc/passwd`, whatever HOME the caller says it has.

use agentd_api::Error;
use agentd_sandbox::{CallerContext, EffectivePolicy, PolicyRef, Sources};
use serde::Deserialize;
use std::path::PathBuf;

use crate::agents::Caller;

/// A user or a group, as the operator writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Name {
    Id(u32),
    Text(String),
}

/// One `[[ceiling]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceiling {
    #[serde(default)]
    pub users: Vec<Name>,
    #[serde(default)]
    pub groups: Vec<Name>,
    /// A built-in policy, or one in `daemon.policy_dirs`.
    pub policy: String,
}

/// How near an entry is to a user; the nearest ones hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Nearness {
    Everyone,
    Group,
    User,
}

/// The two files as text.
struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    fn read() -> std::io::Result<Self> {
        Ok(Self {
            passwd: std::fs::read_to_string("/etc/passwd")?,
            group: std::fs::read_to_string("/etc/group")?,
        })
    }

    fn user(&self, uid: u32) -> Option<Vec<&str>> {
        let mut lines = self
            .passwd
            .lines()
            .map(|l| l.split(':').collect::<Vec<_>>());
        lines.find(|f| f.get(2).and_then(|id| id.parse().ok()) == Some(uid))
    }

    /// The groups of a user: (number, name).
    fn groups(&self, uid: u32, gid: u32) -> Vec<(u32, &str)> {
        let login = self.user(uid).map(|f| f[0]);
        let mut found = vec![(gid, "")];
        for line in self.group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let Some(id) = fields.get(2).and_then(|id| id.parse().ok()) else {
                continue;
            };
            let listed = login.is_some_and(|login| {
                let members = fields.get(3).copied().unwrap_or_default();
                members.split(',').any(|m| m == login)
            });
            if id == gid || listed {
                found.push((id, fields[0]));
            }
        }
        found
    }
}

/// The entries that hold for a user.
fn holding<'a>(
    entries: &'a [Ceiling],
    accounts: &Accounts,
    uid: u32,
    gid: u32,
) -> Vec<&'a Ceiling> {
    let login = accounts.user(uid).map(|f| f[0]);
    let groups = accounts.groups(uid, gid);
    let is_user = |name: &Name| match name {
        Name::Id(id) => *id == uid,
        Name::Text(text) => login == Some(text.as_str()),
    };
    let is_group = |name: &Name| match name {
        Name::Id(id) => groups.iter().any(|(g, _)| g == id),
        Name::Text(text) => groups.iter().any(|(_, n)| n == text),
    };
    let nearness = |c: &Ceiling| match () {
        () if c.users.iter().any(is_user) => Some(Nearness::User),
        () if uid == 0 => None,
        () if c.groups.iter().any(is_group) => Some(Nearness::Group),
        () if c.users.is_empty() && c.groups.is_empty() => Some(Nearness::Everyone),
        () => None,
    };
    let near: Vec<_> = entries
        .iter()
        .filter_map(|c| Some((nearness(c)?, c)))
        .collect();
    let nearest = near.iter().map(|(n, _)| *n).max();
    near.into_iter()
        .filter(|(n, _)| Some(*n) == nearest)
        .map(|(_, c)| c)
        .collect()
}

/// Refuses a launch that goes beyond a ceiling of its user. `at` is the launch as its caller describes it.
///
/// # Errors
/// [`Error::Denied`] with every excess, each naming key, value, line and the ceiling's line.
pub fn check(
    entries: &[Ceiling],
    policy_dirs: &[PathBuf],
    caller: Caller,
    policy: &EffectivePolicy,
    at: &CallerContext,
) -> Result<(), Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let accounts = Accounts::read().map_err(|e| {
        Error::Denied(format!(
            "no ceiling can be looked up: /etc/passwd, /etc/group: {e}"
        ))
    })?;
    // Of a user of another directory nobody here knows the HOME but the user.
    let known = accounts.user(caller.uid);
    let known = known.and_then(|f| f.get(5).map(PathBuf::from));
    let home = known.or_else(|| at.home.clone());
    let ceiling_at = CallerContext { home, ..at.clone() };
    let sources = Sources {
        folders: policy_dirs.to_vec(),
        settings: Vec::new(),
    };
    for entry in holding(entries, &accounts, caller.uid, caller.gid) {
        let name = &entry.policy;
        let ceiling =
            EffectivePolicy::load(&PolicyRef::Name(name.clone()), &sources).map_err(|e| {
                Error::Denied(format!(
                    "the ceiling of uid {} is policy {name}, which does not load: {e}",
                    caller.uid
                ))
            })?;
        let found = policy.exceeds(at, &ceiling, &ceiling_at);
        if !found.is_empty() {
            let list: Vec<String> = found.iter().map(|e| format!("\n  {e}")).collect();
            return Err(Error::Denied(format!(
                "the operator lets launches of uid {} be at most policy {name}, and {} goes beyond it:{}",
                caller.uid,
                policy.name,
                list.concat()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\nbob:x:1001:100::/home/bob:/bin/sh\n".into(),
            group: "root:x:0:\nada:x:1000:\nusers:x:100:\nstaff:x:50:ada,carol\n".into(),
        }
    }

    fn entry(users: &[&str], groups: &[&str], policy: &str) -> Ceiling {
        let names = |list: &[&str]| {
            let name = |t: &&str| {
                t.parse()
                    .map_or_else(|_| Name::Text((*t).to_owned()), Name::Id)
            };
            list.iter().map(name).collect()
        };
        Ceiling {
            users: names(users),
            groups: names(groups),
            policy: policy.into(),
        }
    }

    #[test]
    fn the_nearest_entries_hold_all_together() {
        let entries = [
            entry(&[], &[], "everyone"),
            entry(&[], &["staff"], "staff"),
            entry(&[], &["100"], "users"),
            entry(&[], &["50", "nobody"], "staff-too"),
            entry(&["bob"], &[], "bob"),
            entry(&["1001"], &["staff"], "bob-too"),
        ];
        let of = |uid, gid| -> Vec<String> {
            let holding = holding(&entries, &accounts(), uid, gid);
            holding.iter().map(|c| c.policy.clone()).collect()
        };
        assert_eq!(of(1000, 1000), ["staff", "staff-too", "bob-too"]);
        assert_eq!(of(1001, 100), ["bob", "bob-too"]);
        // Nobody that this host knows: everyone, or the group that the kernel attests.
        assert_eq!(of(4242, 4242), ["everyone"]);
        assert_eq!(of(4242, 100), ["users"]);
        assert_eq!(of(0, 0), [""; 0]);
    }

    #[test]
    fn a_launch_beyond_its_ceiling_is_denied_with_every_line() {
        let load = |name: &str| {
            EffectivePolicy::load(&PolicyRef::Name(name.into()), &Sources::default())
                .expect("loads")
        };
        let caller = Caller {
            uid: 4242,
            gid: 4242,
        };
        let check = |entries: &[Ceiling], policy: &str| {
            check(
                entries,
                &[],
                caller,
                &load(policy),
                &CallerContext::default(),
            )
        };
        let review = [entry(&[], &[], "review")];
        assert!(check(&[], "coding").is_ok());
        assert!(check(&review, "review").is_ok());
        let error = check(&review, "coding").expect_err("beyond").text();
        for expected in [
            "at most policy review",
            "\n  coding (built in):",
            "net.mode = proxy",
            "fs.write = ${workspace}",
        ] {
            assert!(error.contains(expected), "{error}");
        }
        let broken = check(&[entry(&[], &[], "no-such")], "base")
            .expect_err("fails closed")
            .text();
        assert!(broken.contains("which does not load"), "{broken}");
    }
}
