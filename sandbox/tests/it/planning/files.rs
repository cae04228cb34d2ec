//! What of the file tree is in the plan: mounts, and what is hidden, protected, copied or thrown away in them.

use agentd_launch::floor::{self, FloorContext};
use agentd_launch::plan::{self as wire, MountFlags, Network, Plan, Record};
use agentd_sandbox::{Mode, SandboxPlan, plan};

use super::{MODES, planned, text};
use crate::{host, inputs, load};

#[test]
fn mounts_are_made_outer_before_inner_and_only_the_workspace_is_writable() {
    let plan = planned(Mode::Root);
    let mounts = &plan.summary.mounts;
    assert!(
        mounts
            .windows(2)
            .all(|w| w[0].path < w[1].path || !w[1].path.starts_with(&w[0].path))
    );
    let writable: Vec<&str> = mounts
        .iter()
        .filter(|m| m.access == "read-write")
        .map(|m| m.path.as_str())
        .collect();
    assert_eq!(
        writable,
        ["/home/ada", "/home/ada/repo", "/tmp", "/var/tmp"]
    );
    let hooks = mounts
        .iter()
        .find(|m| m.path == "/home/ada/repo/.git/hooks")
        .expect("an island");
    assert_eq!(
        (hooks.source.as_str(), hooks.access.as_str()),
        ("grant 1", "read-only")
    );
    let ssl = mounts.iter().find(|m| m.path == "/etc/ssl").expect("bound");
    assert!(!ssl.exec, "certificates are not programs");
}

#[test]
fn denied_paths_are_masked_where_they_are_visible() {
    let policy = load(
        "extends = \"coding\"\n[fs]\ndeny = [\"${workspace}/.env\", \"~/.ssh\", \"/srv/x\"]\n",
    )
    .expect("loads");
    let plan = plan(&policy, &inputs(Mode::Root), &host(7, &[])).expect("planned");
    assert_eq!(
        plan.summary.masks,
        ["/home/ada/.ssh", "/home/ada/repo/.env"]
    );
}

/// (path, placeholder, folder) of the records that make read-only, and of those that hide.
fn covers(plan: &SandboxPlan) -> [Vec<(String, bool, bool)>; 2] {
    let parsed = Plan::parse(&plan.wire).expect("a plan");
    let mut out = [Vec::new(), Vec::new()];
    for record in parsed.records() {
        let (list, dst, flags) = match record {
            Record::Protect { dst, flags } => (0, dst, flags),
            Record::Mask { dst, flags } => (1, dst, flags),
            _ => continue,
        };
        let has = |flag| flags.contains(flag);
        let placed = has(MountFlags::PLACEHOLDER);
        out[list].push((text(dst).to_owned(), placed, has(MountFlags::FOLDER)));
    }
    out
}

#[test]
fn protected_and_denied_names_inside_what_may_be_written_are_kept_before_they_exist() {
    let policy = load(
        "extends = \"coding\"\n[fs]\nprotect = { replace = [\"${workspace}/.envrc\", \"${workspace}/.vscode/\", \"/srv/x\"] }\n\
         read = [\"${workspace}/vendor\"]\ndeny = [\"${workspace}/.env\", \"~/.ssh\"]\n",
    )
    .expect("loads");
    for mode in MODES {
        let plan = plan(&policy, &inputs(mode), &host(7, &[])).expect("planned");
        let [protected, masks] = covers(&plan);
        let is = |path: &str, placed, folder| (path.to_owned(), placed, folder);
        for expected in [
            is("/home/ada/repo/.envrc", true, false),
            is("/home/ada/repo/.vscode", true, true),
            is("/home/ada/repo/vendor", false, false),
        ] {
            assert!(protected.contains(&expected), "{expected:?}: {protected:?}");
        }
        assert!(!protected.iter().any(|(path, ..)| path.starts_with("/srv")));
        // The private HOME goes with the sandbox: no name in it needs to be kept.
        assert_eq!(
            masks,
            [
                is("/home/ada/.ssh", false, false),
                is("/home/ada/repo/.env", true, false)
            ]
        );
    }
}

#[test]
fn of_what_is_copied_nothing_is_hidden_or_protected_as_well() {
    let policy = load(
        "extends = \"coding\"\n[fs]\ncopy = [\"${workspace}/a/settings\", \"${workspace}/kept\", \"${workspace}/secret/key\", \"~/.gitconfig\"]\n\
         protect = [\"${workspace}/kept\"]\ndeny = [\"${workspace}/secret\"]\n",
    )
    .expect("loads");
    for mode in MODES {
        let plan = plan(&policy, &inputs(mode), &host(7, &[])).expect("planned");
        let parsed = Plan::parse(&plan.wire).expect("a plan");
        let copies: Vec<_> = parsed
            .records()
            .filter_map(|record| match record {
                Record::Copy { dst, to, flags } => {
                    let placed = flags.contains(MountFlags::PLACEHOLDER);
                    Some((text(dst).to_owned(), text(to).to_owned(), placed))
                }
                _ => None,
            })
            .collect();
        let is = |path: &str, to: &str| (path.to_owned(), to.to_owned(), true);
        assert_eq!(
            copies,
            [
                is(
                    "/home/ada/repo/.git/config",
                    "/var/tmp/agentd-copies/0/config"
                ),
                is(
                    "/home/ada/repo/a/settings",
                    "/var/tmp/agentd-copies/1/settings"
                ),
            ]
        );
        let [protected, masks] = covers(&plan);
        let named =
            |list: &[(String, bool, bool)], path| list.iter().any(|(name, ..)| name == path);
        assert!(named(&protected, "/home/ada/repo/kept"), "{protected:?}");
        assert!(named(&masks, "/home/ada/repo/secret"), "{masks:?}");
        assert!(!named(&protected, "/home/ada/repo/.git/config"));
    }
}

#[test]
fn a_scratch_workspace_is_an_overlay_and_what_is_read_or_protected_in_it_stays_so() {
    let policy = load(
        "extends = \"base\"\n[fs]\nscratch = [\"${workspace}\"]\nread = [\"${workspace}/.git\"]\nprotect = { replace = [\"${workspace}/.envrc\"] }\n\
         [limits]\ntmp = \"64MiB\"\ntmp_inodes = 500\n",
    )
    .expect("loads");
    let mut i = inputs(Mode::Root);
    i.grants.truncate(1);
    let plan = plan(&policy, &i, &host(7, &[])).expect("planned");
    let parsed = Plan::parse(&plan.wire).expect("a plan");
    let overlays: Vec<_> = parsed
        .records()
        .filter_map(|record| match record {
            Record::Overlay {
                index,
                dst,
                size_bytes,
                inodes,
                flags,
            } => Some((
                index,
                text(dst),
                size_bytes,
                inodes,
                flags.contains(MountFlags::NOEXEC),
            )),
            _ => None,
        })
        .collect();
    assert_eq!(overlays, [(0, "/home/ada/repo", 64 << 20, 500, true)]);
    let [protected, _] = covers(&plan);
    assert_eq!(
        protected,
        [
            ("/home/ada/repo/.envrc".to_owned(), true, false),
            ("/home/ada/repo/.git".to_owned(), false, false)
        ]
    );
    let context = FloorContext {
        mode: wire::Mode::Root,
        grants: 1,
        network: Network::Own,
    };
    assert_eq!(floor::check(&parsed, &context), Ok(()));
}

#[test]
fn names_of_a_file_with_one_outside_are_hidden_and_said_to_be_all() {
    let policy = load(
        "extends = \"coding\"\n[fs]\nhard_links = \"inside\"\nlinked = [\"${workspace}/a\", \"${workspace}/b/c\"]\n",
    )
    .expect("loads");
    let made = plan(&policy, &inputs(Mode::Root), &host(7, &[])).expect("planned");
    let parsed = Plan::parse(&made.wire).expect("parses");
    let linked: Vec<String> = parsed
        .records()
        .filter_map(|record| match record {
            Record::Mask { dst, flags } if flags.contains(MountFlags::LINKED) => {
                Some(dst.to_string_lossy().into_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(linked, ["/home/ada/repo/a", "/home/ada/repo/b/c"]);
}
