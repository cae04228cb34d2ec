//! Malformed input of every kind gets an error that helps, and harms nobody else.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::harness::{Daemon, Mode, modes, output, text};

/// The daemon still does its job.
fn still_works(daemon: &Daemon) {
    let work = daemon.workspace();
    let (code, _, err) = text(&daemon.run(work.path(), &["true"]));
    assert_eq!(code, 0, "{err}");
}

#[test]
fn a_malformed_policy_names_file_line_and_key() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let policy = work.path().join("mine.toml");
        for (content, needles) in [
            (
                "extends = \"coding\"\n[limits]\nmemroy = \"1GiB\"\n",
                &["mine.toml", "3", "memroy", "memory"][..],
            ),
            (
                "extends = \"coding\"\n[net]\nmode = \"everything\"\n",
                &["mine.toml", "3", "everything", "proxy"][..],
            ),
            ("extends = \"nothing-such\"\n", &["nothing-such"][..]),
            ("this is not toml", &["mine.toml", "1"][..]),
        ] {
            std::fs::write(&policy, content).expect("write");
            let result = text(&daemon.run_with(
                work.path(),
                &["--policy", policy.to_str().expect("utf-8")],
                &["true"],
            ));
            assert_eq!(result.0, 125, "{content}: {result:?}");
            for needle in needles {
                assert!(
                    result.2.contains(needle),
                    "{mode:?} {content:?} lacks {needle}: {}",
                    result.2
                );
            }
        }
        still_works(&daemon);
    }
}

#[test]
fn garbage_on_the_control_socket_is_dropped() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        for garbage in [
            &b"\0AUTH NONSENSE\r\n"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            &[0xff; 4096],
            b"\0",
        ] {
            let mut stream =
                UnixStream::connect(daemon.runtime_dir().join("control.sock")).expect("connect");
            // The daemon may close before everything is written; that is a refusal too.
            if stream.write_all(garbage).is_ok()
                && stream.shutdown(std::net::Shutdown::Write).is_ok()
            {
                let mut answer = Vec::new();
                stream
                    .set_read_timeout(Some(crate::harness::WATCHDOG))
                    .expect("time-out");
                if stream.read_to_end(&mut answer).is_ok() {
                    let answer = String::from_utf8_lossy(&answer);
                    assert!(
                        !answer.contains("BEGIN") && !answer.contains("org.agentd1"),
                        "{answer}"
                    );
                }
            }
        }
        still_works(&daemon);
    }
}

#[test]
fn garbage_on_the_bus_and_the_gateway_hurts_only_its_sender() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let script = r#"use Socket;
            socket(my $b, PF_UNIX, SOCK_STREAM, 0); connect($b, sockaddr_un("/run/agentd/bus.sock")) or die "bus $!";
            syswrite($b, "\xff" x 8192); shutdown($b, 1); { local $/; my $x = <$b>; } print "bus closed\n";
            for my $p (8080, 3128, 8765) { socket(my $s, PF_INET, SOCK_STREAM, 0); connect($s, sockaddr_in($p, inet_aton("127.0.0.1"))) or die "$p $!";
              syswrite($s, "\x16\x03\x01 nonsense \0\r\n\r\n"); shutdown($s, 1); local $/; my $x = <$s>; print "$p closed\n"; }"#;
        let (code, out, err) = text(&daemon.run(work.path(), &["perl", "-e", script]));
        assert_eq!(code, 0, "{mode:?}: {err}");
        assert_eq!(out.matches("closed").count(), 4, "{out}");
        still_works(&daemon);
    }
}

#[test]
fn wrong_arguments_say_what_is_allowed() {
    let daemon = Daemon::start(*modes().last().expect("a mode"));
    let work = daemon.workspace();
    for (args, code, needles) in [
        (
            &["run", "--name", "a b", "--", "true"][..],
            125,
            &["a b", "letters"][..],
        ),
        (&["run"][..], 2, &["run"][..]),
        (&["frobnicate"][..], 2, &["frobnicate"][..]),
        (&["stop", "nobody"][..], 1, &["nobody", "ps"][..]),
        (
            &["run", "--set", "limits.memory=lots", "--", "true"][..],
            125,
            &["limits.memory", "lots"][..],
        ),
    ] {
        let mut command = daemon.agentctl(args);
        command.current_dir(work.path());
        let result = text(&output(&mut command));
        assert_eq!(result.0, code, "{args:?}: {result:?}");
        for needle in needles {
            assert!(
                result.2.contains(needle),
                "{args:?} lacks {needle}: {}",
                result.2
            );
        }
    }
    assert_ne!(daemon.mode, Mode::Root, "the last mode is the user's");
}

#[test]
fn a_malformed_configuration_stops_agentd_with_the_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("agentd.toml");
    std::fs::write(&config, "[daemon]\nmax_agents = \"many\"\n").expect("write");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_agentd"));
    command
        .arg("--config")
        .arg(&config)
        .arg("--runtime-dir")
        .arg(dir.path().join("r"))
        .arg("--state-dir")
        .arg(dir.path().join("s"));
    let (code, _, err) = text(&output(&mut command));
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains("agentd.toml") && err.contains("line 2") && err.contains("max_agents"),
        "{err}"
    );
}
