//! The model key lives in agentd and nowhere else.

use std::path::Path;

use crate::harness::{Daemon, descendants_of, modes, output, text, wait_until};
use crate::standin::Standin;

const KEY: &str = "sk-ant-e2e-THE-REAL-KEY-0123456789";

const SCRIPT: &str = r#"
require_key = "sk-ant-e2e-THE-REAL-KEY-0123456789"
[[rule]]
name = "greet"
when = {}
reply = { text = "hello from the model" }
"#;

/// A model request with nothing but perl, which every Debian has.
const ASK: &str = r#"use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0); connect($s, sockaddr_in(8080, inet_aton("127.0.0.1"))) or die $!;
    my $b = '{"model":"claude-test","max_tokens":64,"messages":[{"role":"user","content":"hi"}]}';
    syswrite($s, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: agentd-gateway\r\nanthropic-version: 2023-06-01\r\n" .
      "Content-Type: application/json\r\nConnection: close\r\nContent-Length: " . length($b) . "\r\n\r\n$b"); local $/; print scalar <$s>;"#;

#[test]
fn the_key_is_used_and_never_seen() {
    for mode in modes() {
        let kit = tempfile::tempdir().expect("a directory");
        let standin = Standin::start(kit.path(), SCRIPT);
        let keys = crate::harness::dir_of(
            if crate::harness::is_root() && mode == crate::harness::Mode::User {
                crate::harness::ALICE
            } else {
                rustix::process::geteuid().as_raw()
            },
        );
        let key_file = keys.path().join("key");
        std::fs::write(&key_file, KEY).expect("write the key");
        std::fs::set_permissions(
            &key_file,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .expect("chmod");
        if crate::harness::is_root() && mode == crate::harness::Mode::User {
            std::os::unix::fs::chown(&key_file, Some(crate::harness::ALICE), None).expect("chown");
        }
        let config = format!(
            "[model.anthropic]\nbase_url = \"http://{}\"\nkey = {{ file = \"{}\" }}\n",
            standin.address,
            key_file.display()
        );
        let daemon = Daemon::with_config(mode, &config);
        let work = daemon.workspace();

        let (code, out, err) =
            text(&daemon.run_with(work.path(), &["--name", "asker"], &["perl", "-e", ASK]));
        assert_eq!(code, 0, "{err}");
        assert!(
            out.starts_with("HTTP/1.1 200") && out.contains("hello from the model"),
            "{mode:?}: {out} {err}"
        );
        assert!(
            !out.contains(KEY),
            "{mode:?}: the answer shows the key: {out}"
        );

        // From inside: environment, files, every process that it can see, the daemon's sockets.
        let hunt = format!(
            "env; cat /proc/*/environ /proc/*/cmdline; cat {0} {1}/agentd.db {1}/agentd.db-wal; \
             for f in /proc/*/mem /proc/*/maps; do head -c 65536 \"$f\"; done; cat /proc/*/root{0}; true",
            key_file.display(),
            daemon.state_dir().display()
        );
        let (_, out, err) =
            text(&daemon.run(work.path(), &["sh", "-c", &format!("({hunt}) 2>&1")]));
        assert!(
            !out.contains(KEY) && !err.contains(KEY),
            "{mode:?}: an agent found the key"
        );

        // From outside: state, logs, records, and what the processes of the sandbox were given.
        let (code, _, err) = text(&daemon.run_with(
            work.path(),
            &["--detach", "--name", "idle"],
            &["sleep", "1000"],
        ));
        assert_eq!(code, 0, "{err}");
        for pid in descendants_of(daemon.broker)
            .into_iter()
            .chain([daemon.broker])
        {
            for file in ["environ", "cmdline"] {
                let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                assert!(
                    !contains(&bytes, KEY),
                    "{mode:?}: /proc/{pid}/{file} shows the key"
                );
            }
        }
        let agentd = std::fs::read(format!("/proc/{}/environ", daemon.pid())).unwrap_or_default();
        assert!(!contains(&agentd, KEY));
        let (_, records, _) = text(&output(
            &mut daemon.agentctl(["--json", "inspect", "asker"]),
        ));
        assert!(
            records.contains("\"usage\"") && !records.contains(KEY),
            "{records}"
        );
        assert_no_file_contains(&daemon.state_dir(), KEY);
        assert_no_file_contains(&daemon.runtime_dir(), KEY);
        assert!(
            !daemon.log().contains(KEY),
            "{mode:?}: the daemon's log shows the key"
        );

        // A core would show it: agentd is not dumpable, so no ordinary process can read its memory either.
        let status = std::fs::read_to_string(format!("/proc/{}/coredump_filter", daemon.pid()));
        let owner = std::os::unix::fs::MetadataExt::uid(
            &std::fs::metadata(format!("/proc/{}/mem", daemon.pid())).expect("mem"),
        );
        assert_eq!(
            owner, 0,
            "{mode:?}: a dumpable process owns its own /proc files ({status:?})"
        );
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "idle"])));
        assert_eq!(code, 0, "{err}");
    }
}

#[test]
fn tokens_are_metered_and_the_ceiling_holds() {
    for mode in modes() {
        let kit = tempfile::tempdir().expect("a directory");
        let standin = Standin::start(kit.path(), &SCRIPT.replace("require_key", "# require_key"));
        let config = format!(
            "[model.anthropic]\nbase_url = \"http://{}\"\nkey = \"none\"\n",
            standin.address
        );
        let daemon = Daemon::with_config(mode, &config);
        let work = daemon.workspace();
        let (code, out, err) =
            text(&daemon.run_with(work.path(), &["--name", "asker"], &["perl", "-e", ASK]));
        assert_eq!(code, 0, "{err}");
        assert!(out.starts_with("HTTP/1.1 200"), "{out}");
        let (_, out, _) = text(&output(
            &mut daemon.agentctl(["--json", "inspect", "asker"]),
        ));
        let record: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert!(
            record["tokens"]["input"].as_u64() > Some(0)
                && record["tokens"]["output"].as_u64() > Some(0),
            "{out}"
        );

        let (_, out, _) = text(&daemon.run_with(
            work.path(),
            &["--set", "limits.tokens=1"],
            &["perl", "-e", ASK],
        ));
        assert!(!out.starts_with("HTTP/1.1 200"), "{mode:?}: {out}");
        assert!(
            out.contains("ceiling") || out.contains("budget"),
            "{mode:?}: the reason is said: {out}"
        );
        wait_until("the stand-in has logged", || {
            kit.path().join("requests.jsonl").exists()
        });
    }
}

fn contains(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
}

fn assert_no_file_contains(dir: &Path, needle: &str) {
    // What is only there while an agent ends may be gone when it is looked at.
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    for entry in std::fs::read_dir(dir).expect("list") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("type");
        if kind.is_dir() {
            assert_no_file_contains(&entry.path(), needle);
        } else if kind.is_file() {
            let bytes = match std::fs::read(entry.path()) {
                Err(error) if gone(&error) => continue,
                bytes => bytes.expect("read"),
            };
            assert!(
                !contains(&bytes, needle),
                "{} shows the key",
                entry.path().display()
            );
        }
    }
}
