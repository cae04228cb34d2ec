//! `runtime.kind = "gvisor"` from the command line to the host's files and back.

use crate::harness::{Daemon, modes, skip, text};

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
        let (code, out, err) = &result;
        assert_eq!(*code, 7, "{mode:?}: {result:?}");
        assert!(out.starts_with("Linux version 4.4"), "{mode:?}: {result:?}");
        assert!(out.ends_with("bus\nagent\n") || out.contains("bus\n"), "{out} {err}");
        let made = std::fs::read_to_string(work.path().join("made")).expect("made");
        assert_eq!(made, "made\n");
        let result = text(&daemon.run_with(work.path(), &GVISOR, &["no-such-program"]));
        assert_eq!(result.0, 127, "{mode:?}: {result:?}");
    }
}
