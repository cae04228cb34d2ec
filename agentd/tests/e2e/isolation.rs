//! What an agent cannot reach: the host's files, processes, network and privileges.

use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::harness::{Daemon, dir_of, modes, output, text};

#[test]
fn files_of_others_do_not_exist_inside() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let secret = dir_of(daemon.owner());
        std::fs::write(secret.path().join("id_rsa"), "SECRET-OF-THE-USER").expect("write");
        std::fs::set_permissions(
            secret.path().join("id_rsa"),
            std::fs::Permissions::from_mode(0o644),
        )
        .expect("chmod");
        std::os::unix::fs::symlink(secret.path().join("id_rsa"), work.path().join("link"))
            .expect("symlink");
        let script = format!(
            "cat {0}/id_rsa; cat link; cat /proc/self/root{0}/id_rsa; cat /proc/1/root{0}/id_rsa; ls {0}; \
             cat {1}/agentd.db; ls /root /home/*/.ssh; cat /etc/shadow; true",
            secret.path().display(),
            daemon.state_dir().display(),
        );
        let (code, out, err) = text(&daemon.run(work.path(), &["sh", "-c", &script]));
        assert_eq!(code, 0, "{err}");
        assert!(
            !out.contains("SECRET-OF-THE-USER") && !out.contains("SQLite"),
            "{mode:?}: {out}"
        );
        assert!(err.contains("No such file or directory"), "{mode:?}: {err}");
    }
}

#[test]
fn another_agents_files_and_processes_do_not_exist_inside() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let (mine, theirs) = (daemon.workspace(), daemon.workspace());
        let script = "echo SECRET-OF-A > $HOME/a; echo SECRET-OF-A > /tmp/a; echo SECRET-OF-A > a; exec sleep 1000";
        let (code, _, err) = text(&daemon.run_with(
            theirs.path(),
            &["--detach", "--name", "a"],
            &["sh", "-c", script],
        ));
        assert_eq!(code, 0, "{err}");
        let script = format!(
            "cat $HOME/a /tmp/a {0}/a; for p in /proc/[0-9]*; do cat $p/cmdline; done; true",
            theirs.path().display()
        );
        let (code, out, err) = text(&daemon.run(mine.path(), &["sh", "-c", &script]));
        assert_eq!(code, 0, "{err}");
        assert!(
            !out.contains("SECRET-OF-A") && !out.contains("1000"),
            "{mode:?}: {out}"
        );
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "a"])));
        assert_eq!(code, 0, "{err}");
    }
}

#[test]
fn no_address_but_the_daemons_own_sockets_can_be_reached() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let host = TcpListener::bind("127.0.0.1:0").expect("listen on the host");
        host.set_nonblocking(true).expect("non-blocking");
        let port = host.local_addr().expect("address").port();
        // perl is in every Debian; a connect that fails prints its errno.
        let connect = r#"use Socket; for my $a (@ARGV) { my ($h, $p) = split /:/, $a;
            socket(my $s, PF_INET, SOCK_STREAM, 0) or do { print "$a socket $!\n"; next };
            print "$a ", (connect($s, sockaddr_in($p, inet_aton($h))) ? "CONNECTED" : "$!"), "\n"; }"#;
        let targets = [
            format!("127.0.0.1:{port}"),
            "10.0.0.1:80".into(),
            "169.254.169.254:80".into(),
            "1.1.1.1:443".into(),
        ];
        let mut argv = vec!["perl", "-e", connect];
        argv.extend(targets.iter().map(String::as_str));
        let (code, out, err) = text(&daemon.run(work.path(), &argv));
        assert_eq!(code, 0, "{err}");
        assert!(!out.contains("CONNECTED"), "{mode:?}: {out}");
        assert_eq!(out.lines().count(), 4, "{out}");
        assert!(
            host.accept().is_err(),
            "{mode:?}: somebody connected to the host"
        );
        let (_, out, _) = text(&daemon.run(
            work.path(),
            &["perl", "-e", connect, "127.0.0.1:8080", "127.0.0.1:3128"],
        ));
        assert_eq!(
            out.matches("CONNECTED").count(),
            2,
            "{mode:?}: the daemon's own sockets: {out}"
        );
    }
}

#[test]
fn the_proxy_refuses_what_no_rule_allows_and_says_so() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let ask = r#"use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0); connect($s, sockaddr_in(3128, inet_aton("127.0.0.1"))) or die $!;
            syswrite($s, "CONNECT $ARGV[0] HTTP/1.1\r\nHost: $ARGV[0]\r\n\r\n"); local $/; print scalar <$s>;"#;
        for target in [
            "evil.example:443",
            "169.254.169.254:80",
            "127.0.0.1:22",
            "[::1]:22",
        ] {
            let (code, out, err) = text(&daemon.run_with(
                work.path(),
                &["--name", "curious"],
                &["perl", "-e", ask, target],
            ));
            assert_eq!(code, 0, "{err}");
            assert!(out.starts_with("HTTP/1.1 403"), "{mode:?} {target}: {out}");
        }
        let (_, out, _) = text(&output(
            &mut daemon.agentctl(["--json", "inspect", "curious"]),
        ));
        let record: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert!(
            !record["denials"].as_array().expect("denials").is_empty(),
            "the refusal is on record: {out}"
        );
    }
}

#[test]
fn no_set_id_file_can_be_left_on_disk() {
    // chmod fchmod fchmodat open openat creat mknod mknodat fchmodat2 mkdir mkdirat by number, then the tools.
    let attempts = r#"
        my $m = 06755; my ($b, $o1, $o2, $o3, $c1, $m1, $m2) = qw(base o1 o2 o3 c1 m1 m2);
        open(my $f, ">", $b); close $f;
        syscall(90, $b, $m); open($f, "+<", $b); syscall(91, fileno($f), $m); syscall(268, -100, $b, $m);
        syscall(452, -100, $b, $m, 0); syscall(2, $o1, 0101, $m); syscall(257, -100, $o2, 0101, $m); syscall(85, $c1, $m);
        syscall(133, $m1, 0100000 | $m, 0); syscall(259, -100, $m2, 0100000 | $m, 0);
        my $how = pack("QQQ", 0101, $m, 0); syscall(437, -100, $o3, $how, 24);
        system("chmod u+s base; chmod 6755 base; cp /bin/sh sh; chmod u+s sh; install -m 4755 /bin/sh sh2; mkdir d; chmod g+s d; true");
    "#;
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let (code, _, err) = text(&daemon.run(work.path(), &["perl", "-e", attempts]));
        assert_eq!(code, 0, "{err}");
        let mut seen = 0;
        for entry in std::fs::read_dir(work.path()).expect("list") {
            let entry = entry.expect("entry");
            let mode_bits = entry.metadata().expect("metadata").mode();
            assert_eq!(
                mode_bits & 0o6000,
                0,
                "{mode:?}: {:?} has mode {mode_bits:o}",
                entry.file_name()
            );
            seen += 1;
        }
        assert!(seen >= 2, "the attempts ran: {err}");
    }
}

#[test]
fn privileged_calls_are_refused_by_number() {
    // Each prints its errno: 1 EPERM, 13 EACCES, 38 ENOSYS are refusals.
    let calls = r#"
        my %c = (mount => [165, "none", "/tmp", "tmpfs", 0, 0], unshare_user => [272, 0x10000000], ptrace => [101, 16, 1, 0, 0],
          bpf => [321, 0, 0, 0], io_uring_setup => [425, 8, 0], keyctl => [250, 0, 0, 0, 0, 0], perf => [298, 0, 0, -1, -1, 0],
          userfaultfd => [323, 0], pivot_root => [155, "/", "/"], setns => [308, 0, 0], kexec => [246, 0, 0, 0, 0],
          open_by_handle => [304, -100, 0, 0], init_module => [175, 0, 0, 0], swapon => [167, "x", 0], reboot => [169, 0, 0, 0]);
        for (sort keys %c) { my $r = syscall(shift @{$c{$_}}, @{$c{$_}}); print "$_ $r ", ($r < 0 ? $!+0 : 0), "\n"; }
    "#;
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let (code, out, err) = text(&daemon.run(work.path(), &["perl", "-e", calls]));
        assert_eq!(code, 0, "{err}");
        assert_eq!(out.lines().count(), 15, "{out}");
        for line in out.lines() {
            let refused = ["-1 1", "-1 13", "-1 38"]
                .iter()
                .any(|end| line.ends_with(end));
            assert!(refused, "{mode:?}: {line}");
        }
    }
}

#[test]
fn the_inside_is_clean() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let mut command = daemon.agentctl(["run", "--no-tty", "--workspace"]);
        command
            .arg(work.path())
            .env("AWS_SECRET_ACCESS_KEY", "SECRET-IN-ENV")
            .env("ANTHROPIC_API_KEY", "SECRET-IN-ENV");
        // An inherited descriptor of the caller must not arrive.
        command.args(["--", "sh", "-c", "env; cat /proc/1/environ; ls /proc/self/fd; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/net/dev"]);
        let (code, out, err) = text(&output(&mut command));
        assert_eq!(code, 0, "{err}");
        assert!(!out.contains("SECRET-IN-ENV"), "{mode:?}: {out}");
        for cap in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(
                out.contains(&format!("{cap}:\t0000000000000000")),
                "{mode:?} {cap}: {out}"
            );
        }
        assert!(
            out.contains("NoNewPrivs:\t1") && out.contains("Seccomp:\t2"),
            "{mode:?}: {out}"
        );
        let interfaces = out.lines().filter(|l| {
            l.contains(':')
                && l.split(':')
                    .nth(1)
                    .is_some_and(|r| r.split_whitespace().count() == 16)
        });
        assert_eq!(interfaces.count(), 1, "only lo: {out}");
    }
}

#[test]
fn agentd_confines_itself() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let mut status = String::new();
        std::fs::File::open(format!("/proc/{}/status", daemon.pid()))
            .expect("status")
            .read_to_string(&mut status)
            .expect("read");
        for line in [
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
        ] {
            assert!(status.contains(line), "{mode:?} {line}: {status}");
        }
        let uid: u32 = status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:\t"))
            .and_then(|l| l.split('\t').next())
            .and_then(|u| u.parse().ok())
            .expect("a uid");
        assert_ne!(uid, 0, "{mode:?}: agentd does not stay root");
    }
}
