//! The bare launch beside bubblewrap: `true` in the same namespaces with the same view, one sample each in turn.
//!
//! Ours is everything that a broker does for a launch (memfds, socket, pipes, `clone3`, id maps) and the launcher to the
//! reaped end of its init, with the base seccomp filter and the capability drop that bubblewrap's default lacks. With
//! `--json` it prints one object with both lists of samples in ms, ten for each round (`--rounds`), for
//! `cargo xtask bench launch`; otherwise their medians. Destroying a network namespace is asynchronous for both.

#[allow(dead_code, reason = "shared with the tests, which need more of it")]
#[path = "../tests/launch/harness.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use agentd_launch::plan::{Mode, MountFlags, PlanBuilder, Stdio as PlanStdio};

const SAMPLES_PER_ROUND: usize = 10;
const WARM_UP: usize = 5;
const LINKS: [&str; 5] = ["bin", "sbin", "lib", "lib32", "lib64"];

fn plan(mode: Mode) -> Vec<u8> {
    let mut plan = PlanBuilder::new(mode);
    plan.ids(harness::inside_id(), harness::inside_id())
        .cwd("/")
        .stdio(PlanStdio::Null)
        .arg("true");
    plan.env("PATH=/usr/bin:/bin")
        .bind("/usr", "/usr", MountFlags::RDONLY);
    for link in LINKS {
        plan.symlink(format!("/{link}"), format!("usr/{link}"));
    }
    plan.proc("/proc")
        .dev("/dev", 1 << 20)
        .tmpfs("/tmp", 16 << 20, 1024, 0o1777, MountFlags::NONE);
    plan.finish().expect("the bench's own plan is valid")
}

/// The same with bubblewrap.
fn bwrap(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([
        "--unshare-user",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--ro-bind",
        "/usr",
        "/usr",
    ]);
    for link in LINKS {
        command.args(["--symlink", &format!("usr/{link}"), &format!("/{link}")]);
    }
    command.args([
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--", "true",
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Where bubblewrap is, so that its samples do not pay for a search through `PATH`.
fn find_bwrap() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join("bwrap"))
        .find(|program| program.is_file());
    found.expect("bubblewrap is needed: apt-get install bubblewrap")
}

fn ms(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1000.0
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let rounds = arguments.iter().position(|argument| argument == "--rounds");
    let rounds = rounds
        .and_then(|at| arguments.get(at + 1)?.parse::<usize>().ok())
        .unwrap_or(10);
    let mode = if harness::is_root() {
        Mode::Root
    } else {
        Mode::User
    };
    let plan = plan(mode);
    let peer_program = find_bwrap();
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for sample in 0..WARM_UP + rounds * SAMPLES_PER_ROUND {
        let own = ms(|| {
            assert_eq!(
                harness::spawn(mode, &plan, &[]).wait(),
                Some(0),
                "the launch failed"
            )
        });
        let peer = ms(|| {
            assert!(
                bwrap(&peer_program)
                    .status()
                    .is_ok_and(|status| status.success()),
                "bwrap is missing or failed"
            )
        });
        if sample >= WARM_UP {
            ours.push(own);
            peers.push(peer);
        }
    }
    let (own, peer) = (median(&ours), median(&peers));
    let text = if arguments.iter().any(|argument| argument == "--json") {
        format!("{{\"launcher_ms\":{ours:?},\"bwrap_ms\":{peers:?}}}")
    } else {
        format!(
            "launcher {own:.3} ms, bwrap {peer:.3} ms, ratio {:.3}",
            own / peer
        )
    };
    #[allow(
        clippy::print_stdout,
        reason = "the report is what this program is for"
    )]
    {
        println!("{text}");
    }
}
