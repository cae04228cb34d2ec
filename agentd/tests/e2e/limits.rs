//! Secrets, the limit of disk and the host's network, from the command line to the record.

use crate::harness::{Daemon, modes, output, text};

#[test]
fn secrets_are_copied_disk_is_metered_and_the_hosts_network_takes_leave() {
    for mode in modes() {
        let daemon = Daemon::with_config(mode, "[daemon]\nhost_network = \"allow\"\n");
        let (work, vault) = (daemon.workspace(), daemon.workspace());
        let at = |name: &str| vault.path().join(name);
        let write = |name: &str, content: &str| {
            std::fs::write(at(name), content).expect("write");
            let owner = Some(daemon.owner());
            std::os::unix::fs::lchown(at(name), owner, owner).expect("chown");
        };
        write("key", "hunter2\n");
        let policy = |name: &str, key: &str, rest: &str| {
            let key = at(key);
            let text =
                format!("extends = \"build\"\n{rest}[secrets]\nfiles = {{ key = {key:?} }}\n");
            write(name, &text);
            at(name).to_str().expect("UTF-8").to_owned()
        };
        let run = |policy: &str, script: &str| {
            let options = ["--name", "limited", "--policy", policy];
            text(&daemon.run_with(work.path(), &options, &["/bin/sh", "-c", script]))
        };

        let limited = policy("limited.toml", "key", "[limits]\ndisk = \"4MiB\"\n");
        let script = "cat /run/agentd/secrets/key; head -c 16m /dev/zero > big; exec sleep 1000";
        let (code, out, err) = run(&limited, script);
        assert_eq!((code, out.as_str()), (137, "hunter2\n"), "{mode:?}: {err}");
        let (_, record, _) = text(&output(
            &mut daemon.agentctl(["--json", "inspect", "limited"]),
        ));
        assert!(record.contains("limits.disk allows 4194304"), "{record}");
        assert!(!record.contains("hunter2"), "{record}");

        std::os::unix::fs::symlink(at("key"), at("link")).expect("symlink");
        let linked = policy("linked.toml", "link", "");
        let (code, _, err) = run(&linked, "true");
        assert_ne!(code, 0);
        assert!(
            err.contains("it is a symbolic link") && err.contains("link"),
            "{err}"
        );

        let host = "[net]\nmode = \"host\"\n[degrade]\nallow = [\"network\"]\n";
        let open = policy("host.toml", "key", host);
        let (code, out, err) = run(&open, "readlink /proc/self/ns/net");
        let own = std::fs::read_link("/proc/self/ns/net").expect("our own");
        assert_eq!(
            (code, out.trim()),
            (0, own.to_str().expect("UTF-8")),
            "{err}"
        );
        let unnamed = policy("unnamed.toml", "key", "[net]\nmode = \"host\"\n");
        let (code, _, err) = run(&unnamed, "true");
        assert_eq!(code, 125, "{err}");
        assert!(err.contains("property network"), "{err}");
    }
}
