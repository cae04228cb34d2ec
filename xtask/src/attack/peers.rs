//! Other people's sandboxes, at pinned versions, each with a command line as tight as an agent
//! would still work under.
//!
//! bubblewrap comes from the distribution, sandlock from PyPI, Codex and sandbox-runtime from npm,
//! each by its ordinary client and into `target/tools`; what sessions execute is copied to where an
//! ordinary user can reach it, and gone afterwards. What can't be had is a named skip. The session
//! is the same as agentd's: an ordinary user, the workspace writable, one folder for reading, two
//! files that nobody may read.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::suite::{Place, SOMEBODY};
use crate::child::{capture, run};
use crate::demo::npm::{CODEX, SANDBOX_RUNTIME};
use crate::test::needs::which;
use crate::workspace::Metadata;

const SANDLOCK: &str = "0.9.0";
/// The system's own, since a user's may be where others can't reach.
const PYTHON: &str = "/usr/bin/python3";

/// sandlock has no command: its library is called as its documentation does, with everything that it can limit limited.
const SANDLOCK_SESSION: &str = r#"
import sys
from sandlock import Sandbox
work, shared, home, program = sys.argv[1:5]
system = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/proc"]
nodes = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]
box = Sandbox(
    fs_readable=system + nodes + [shared, program], fs_writable=[work],
    fs_denied=[work + "/.env", work + "/conf/secret.key"],
    max_memory="2G", max_processes=512, max_open_files=4096, no_coredump=True,
    clean_env=True, env={"PATH": "/usr/bin:/bin", "HOME": home}, cwd=work)
sys.exit(box.run_interactive(sys.argv[5:]))
"#;

/// A sandbox and how to get its command line.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    prepare: fn() -> Result<Prepared>,
}

/// A command line, and what it needs while it runs.
#[derive(Debug)]
pub struct Prepared {
    pub command: Vec<String>,
    _place: Option<Place>,
}

impl Peer {
    /// Installs it where it is missing.
    pub fn prepare(&self) -> Result<Prepared> {
        (self.prepare)()
    }
}

pub const ALL: [Peer; 4] = [
    Peer {
        name: "bubblewrap",
        prepare: bubblewrap,
    },
    Peer {
        name: "sandlock",
        prepare: sandlock,
    },
    Peer {
        name: "codex",
        prepare: codex,
    },
    Peer {
        name: "srt",
        prepare: sandbox_runtime,
    },
];

/// What each of them runs.
const INSIDE: [&str; 4] = ["{program}", "inside", "{scene}", "{cases}"];

/// Words of a command line with the session's own behind them.
fn session(words: impl IntoIterator<Item = String>) -> Vec<String> {
    words.into_iter().chain(INSIDE.map(str::to_owned)).collect()
}

fn bubblewrap() -> Result<Prepared> {
    const OPTIONS: &str = "--unshare-user --unshare-all --disable-userns --die-with-parent --new-session \
        --cap-drop ALL --clearenv --setenv PATH /usr/bin:/bin --setenv HOME {home} --ro-bind /usr /usr \
        --symlink usr/bin /bin --symlink usr/sbin /sbin --symlink usr/lib /lib --symlink usr/lib64 /lib64 \
        --ro-bind /etc/ld.so.cache /etc/ld.so.cache --proc /proc --dev /dev --tmpfs /tmp \
        --ro-bind {program} {program} --ro-bind {shared} {shared} --bind {work} {work} \
        --ro-bind {work}/.git/hooks {work}/.git/hooks --ro-bind /dev/null {work}/.env \
        --ro-bind /dev/null {work}/conf/secret.key --chdir {work} --";
    let Some(program) = which("bwrap") else {
        bail!("bubblewrap is not installed: sudo apt-get install -y bubblewrap");
    };
    let options = OPTIONS.split_whitespace().map(str::to_owned);
    Ok(Prepared {
        command: session([program.display().to_string()].into_iter().chain(options)),
        _place: None,
    })
}

fn sandlock() -> Result<Prepared> {
    let installed = tools("sandlock", SANDLOCK)?;
    if !installed.join("sandlock").exists() {
        run(Command::new(PYTHON)
            .args(["-m", "pip", "install", "--quiet", "--target"])
            .arg(&installed)
            .arg(format!("sandlock=={SANDLOCK}"))
            .stdout(std::io::stderr()))
        .context("sandlock comes from PyPI: sudo apt-get install -y python3-pip")?;
    }
    let place = Place::own()?;
    copy(&installed.join("sandlock"), &place)?;
    let words = [
        "/usr/bin/env".to_owned(),
        format!("PYTHONPATH={}", place.path().display()),
        PYTHON.to_owned(),
        "-c".to_owned(),
        SANDLOCK_SESSION.to_owned(),
    ];
    let values = ["{work}", "{shared}", "{home}", "{program}"].map(str::to_owned);
    Ok(Prepared {
        command: session(words.into_iter().chain(values)),
        _place: Some(place),
    })
}

/// Codex's own sandbox as its agent uses it by default: the workspace writable, no network.
fn codex() -> Result<Prepared> {
    let binary = CODEX.install()?;
    // …/bin/codex; its helpers are beside `bin`.
    let package = binary.ancestors().nth(2).context("codex is in a package")?;
    let place = Place::own()?;
    copy(package, &place)?;
    let name = package.file_name().context("the package has a name")?;
    let settings = place.path().join("settings");
    std::fs::create_dir(&settings).with_context(|| format!("make {}", settings.display()))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&settings, Some(SOMEBODY), Some(SOMEBODY))
            .with_context(|| format!("give away {}", settings.display()))?;
    }
    let program = place.path().join(name).join("bin/codex");
    let words = [
        "/usr/bin/env".to_owned(),
        format!("CODEX_HOME={}", settings.display()),
        program.display().to_string(),
        "sandbox".to_owned(),
        "-c".to_owned(),
        "sandbox_mode=\"workspace-write\"".to_owned(),
        "--".to_owned(),
    ];
    Ok(Prepared {
        command: session(words),
        _place: Some(place),
    })
}

/// Claude Code's sandbox as a command: the workspace writable but for the denied files, no domain allowed.
fn sandbox_runtime() -> Result<Prepared> {
    /// Its settings are a file, which the session's paths have to be written to first.
    const SESSION: &str = r#"
        at=$1 work=$2 home=$3; shift 3
        printf '{"network":{"allowedDomains":[],"deniedDomains":[]},"filesystem":{"denyRead":["%s/.env","%s/conf/secret.key","%s"],"allowWrite":["%s"],"denyWrite":[]}}' \
            "$work" "$work" "$home" "$work" > "$at/settings.json"
        cd "$work" && HOME=$at exec /usr/bin/env node "$at/package/dist/cli.js" --settings "$at/settings.json" -- "$@"
    "#;
    let missing: Vec<&str> = ["node", "rg", "socat", "bwrap"]
        .into_iter()
        .filter(|program| which(program).is_none())
        .collect();
    if !missing.is_empty() {
        bail!(
            "{} needs {}: sudo apt-get install -y nodejs ripgrep socat bubblewrap",
            SANDBOX_RUNTIME.title,
            missing.join(", ")
        );
    }
    let program = SANDBOX_RUNTIME.install()?;
    // …/node_modules/@scope/package/dist/cli.js; what it needs is beside it in node_modules.
    let above = |levels| {
        program
            .ancestors()
            .nth(levels)
            .context("it is in node_modules")
    };
    let (package, modules, tools) = (above(2)?, above(4)?, above(5)?);
    let place = Place::own()?;
    copy(modules, &place)?;
    let link = place.path().join("package");
    std::os::unix::fs::symlink(package.strip_prefix(tools)?, &link).context("link the package")?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(place.path(), Some(SOMEBODY), Some(SOMEBODY))
            .with_context(|| format!("give away {}", place.path().display()))?;
    }
    let words = ["/bin/sh", "-euc", SESSION, "srt"].map(str::to_owned);
    let at = place.path().display().to_string();
    let values = [at, "{work}".to_owned(), "{home}".to_owned()];
    Ok(Prepared {
        command: session(words.into_iter().chain(values)),
        _place: Some(place),
    })
}

fn tools(name: &str, version: &str) -> Result<PathBuf> {
    let place = Metadata::of_members()?
        .target_directory
        .join("tools")
        .join(name)
        .join(version);
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    Ok(place)
}

/// Copies a folder to where every user can read it.
fn copy(from: &Path, to: &Place) -> Result<()> {
    capture(Command::new("cp").arg("-r").arg(from).arg(to.path()))
        .with_context(|| format!("copy {}", from.display()))?;
    capture(Command::new("chmod").args(["-R", "a+rX"]).arg(to.path()))
        .with_context(|| format!("open {}", to.path().display()))?;
    Ok(())
}
