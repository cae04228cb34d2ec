//! `runtime.kind = "gvisor"` from the command line to the host's files and back.

use agentd_testkit::skip;

use crate::harness::{Daemon, modes, text};

const GVISOR: [&str; 2] = ["--set", "runtime.kind=gvisor"];

fn is_installed() -> bool {
    let found = ["/usr/local/bin/runsc", "/usr/bin/runsc"]
        .iter()
        .any(|path| std::path::Path::new(path).is_file());
    if !found {
        skip("gvisor", "there is no runsc in /usr/local/bin or /usr/bin");
    }
    found
}

#[test]
fn the_runtime_of_a_launch_is_only_ever_made_tighter() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let looser = ["--set", "runtime.kind=gvisor", "--runtime", "native"];
        let (code, _, said) = text(&daemon.run_with(work.path(), &looser, &["true"]));
        assert_ne!(code, 0, "{mode:?}");
        assert!(said.contains("only ever makes a launch tighter"), "{said}");
        assert!(said.contains("--set runtime.kind"), "{said}");
        if !is_installed() {
            continue;
        }
        let tighter = ["--runtime", "gvisor"];
        let result = text(&daemon.run_with(work.path(), &tighter, &["cat", "/proc/version"]));
        assert!(
            result.1.starts_with("Linux version 4.4"),
            "{mode:?}: {result:?}"
        );
    }
}

#[test]
fn a_program_runs_under_gvisor_in_the_workspace_and_ends_with_its_code() {
    if !is_installed() {
        return;
    }
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let script = "read -r kernel < /proc/version; echo \"$kernel\"; echo made > made; \
                      test -S /run/agentd/bus.sock && echo bus; id -un; exit 7";
        let result = text(&daemon.run_with(work.path(), &GVISOR, &["sh", "-c", script]));
        assert_eq!(result.0, 7, "{mode:?}: {result:?}");
        let lines: Vec<_> = result.1.lines().collect();
        assert!(
            lines[0].starts_with("Linux version 4.4"),
            "{mode:?}: {result:?}"
        );
        assert_eq!(lines[1], "bus", "{mode:?}: {result:?}");
        // The only name that uid 0 has inside, and it is not root.
        assert_ne!(lines[2], "root", "{mode:?}: {result:?}");
        let made = std::fs::read_to_string(work.path().join("made")).expect("made");
        assert_eq!(made, "made\n");
        let result = text(&daemon.run_with(work.path(), &GVISOR, &["no-such-program"]));
        assert_eq!(result.0, 127, "{mode:?}: {result:?}");
    }
}
