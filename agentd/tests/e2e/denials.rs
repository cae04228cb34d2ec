//! What is refused is told: by layer, with the line of the policy, on record and as it happens. And it is refused whether or not
//! anybody is told.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::bus_channels;
use crate::harness::{Daemon, Mode, is_root, modes, output, text, wait_until};

/// Perl makes the call itself; what it prints is the error's number.
fn call(arguments: &str) -> String {
    format!("syscall({arguments}) == -1 or die; print 0 + $!, qq(\\n);")
}

fn denials(daemon: &Daemon, arguments: &[&str]) -> Vec<Value> {
    let all = [&["--json", "denials"], arguments].concat();
    let (code, out, err) = text(&output(&mut daemon.agentctl(all)));
    assert_eq!(code, 0, "{err}");
    let listed: Value = serde_json::from_str(&out).expect("JSON");
    listed["denials"].as_array().expect("a list").clone()
}

fn by_layer<'a>(denials: &'a [Value], layer: &str) -> Vec<&'a Value> {
    denials.iter().filter(|d| d["layer"] == layer).collect()
}

#[test]
fn a_refused_call_is_on_record_with_the_line_that_lacks_it() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        // ptrace, of which the policy says something, and mount, of which none can.
        let script = format!("{}{}", call("101, 0, 0, 0"), call("165, 7, 8, 9"));
        let (code, out, err) = text(&daemon.run_with(
            work.path(),
            &["--name", "curious"],
            &["perl", "-e", &script],
        ));
        assert_eq!((code, out.as_str()), (0, "1\n1\n"), "{mode:?}: {err}");
        wait_until("both are on record", || {
            by_layer(&denials(&daemon, &["curious"]), "seccomp").len() == 2
        });
        let all = denials(&daemon, &[]);
        let told = by_layer(&all, "seccomp");
        let of = |what: &str| {
            *told
                .iter()
                .find(|d| d["what"] == what)
                .unwrap_or_else(|| panic!("{mode:?} {what}: {all:?}"))
        };
        let ptrace = of("ptrace");
        assert_eq!(ptrace["agent"], "curious");
        assert!(
            ptrace["rule"]
                .as_str()
                .expect("a rule")
                .contains("\"debug\"")
        );
        let origin = ptrace["origin"].as_str().expect("a line");
        assert!(origin.contains("(built in):"), "{origin}");
        let mount = of("mount");
        assert!(
            mount["rule"]
                .as_str()
                .expect("a rule")
                .starts_with("the floor")
        );
        let target = mount["target"].as_str().expect("a target");
        assert!(
            target.starts_with("mount(0x7, 0x8, 0x9) by perl["),
            "{target}"
        );
        assert!(mount["origin"].is_null());
    }
}

#[test]
fn followers_hear_of_each_refusal_of_every_layer() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        start(
            &daemon,
            work.path(),
            &waits_for_go(&format!(
                "{}for (1..3) {{ {} }}",
                ask_the_proxy(),
                call("165, 0, 0, 0")
            )),
        );
        let mut follow = daemon
            .agentctl(["--json", "denials", "-f", "it"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("agentctl");
        // It follows as soon as it is connected; what happened before it did is on record and shown too.
        std::fs::write(work.path().join("go"), "").expect("go");
        let lines = BufReader::new(follow.stdout.take().expect("stdout")).lines();
        let (mut mounts, mut proxied) = (0, 0);
        for line in lines {
            let denial: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
            mounts += usize::from(denial["what"] == "mount");
            proxied += usize::from(denial["layer"] == "egress");
            // At most one was on record before it followed.
            if mounts >= 1 && proxied >= 1 {
                break;
            }
        }
        follow.kill().expect("it follows");
        follow.wait().expect("it has ended");
    }
}

#[test]
fn calls_are_refused_while_agentd_is_dead_and_told_to_the_next() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let script = format!(
            "open(my $f, '>', 'answer.new'); select($f); {}close $f; rename 'answer.new', 'answer'; sleep 1000;",
            call("165, 0, 0, 0")
        );
        start(&daemon, work.path(), &waits_for_go(&script));
        daemon.kill();
        std::fs::write(work.path().join("go"), "").expect("go");
        let answer = work.path().join("answer");
        wait_until("the call has returned without agentd", || answer.exists());
        assert_eq!(std::fs::read_to_string(&answer).expect("an answer"), "1\n");
        daemon.start_again();
        wait_until("the next agentd tells of it", || {
            by_layer(&denials(&daemon, &["it"]), "seccomp")
                .iter()
                .any(|d| d["what"] == "mount")
        });
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "it"])));
        assert_eq!(code, 0, "{err}");
    }
}

#[test]
fn what_live_control_refuses_is_told_with_how_it_comes_back() {
    if !is_root() {
        agentd_testkit::skip("root", "the kernel plane is root's");
        return;
    }
    let daemon = Daemon::start(Mode::Root);
    let work = daemon.workspace();
    let script = r#"use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die $!; connect($s, sockaddr_in(9, inet_aton("127.0.0.1")));"#;
    start(&daemon, work.path(), &waits_for_go(script));
    let (code, _, err) = text(&output(&mut daemon.agentctl(["revoke", "net", "it"])));
    if code == 1 && err.contains("can't be revoked") {
        agentd_testkit::skip("revoke-net", err.trim());
        return;
    }
    assert_eq!(code, 0, "{err}");
    // It ends with the refusal, which is told all the same.
    std::fs::write(work.path().join("go"), "").expect("go");
    wait_until("the refusal is on record", || {
        !by_layer(&denials(&daemon, &["it"]), "bpf").is_empty()
    });
    let all = denials(&daemon, &["it"]);
    let connect = by_layer(&all, "bpf")[0];
    assert_eq!(connect["what"], "connect");
    let target = connect["target"].as_str().expect("a target");
    assert!(target.starts_with("127.0.0.1:9 by perl["), "{target}");
    let rule = connect["rule"].as_str().expect("a rule");
    assert!(rule.contains("agentctl restore net"), "{rule}");
}

#[test]
fn what_the_bus_refuses_is_told_with_the_line_or_with_whose_hand_it_was() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let (reader, work) = (daemon.workspace(), daemon.workspace());
        bus_channels::start(&daemon, reader.path(), bus_channels::READER, &[], &["read"]);
        bus_channels::wait_for_line(reader.path(), "events", "reading", 0);
        bus_channels::put_program(work.path());
        let policy = work.path().join("quiet.toml");
        std::fs::write(
            &policy,
            "extends = \"coding\"\n[ipc]\nsend = { replace = [\"somebody\"] }\npublish = { replace = [\"own.#\"] }\n\
             subscribe = { replace = [\"own.#\"] }\n",
        )
        .expect("write a policy");
        let policy = policy.to_str().expect("utf-8");
        // A lane, a log, a follow, and a message over the socket.
        let attempt = ["./channel-agent", "try", bus_channels::READER];
        let options = ["--name", "quiet", "--policy", policy];
        let (code, out, err) = text(&daemon.run_with(work.path(), &options, &attempt));
        assert_eq!(code, 0, "{err}");
        assert_eq!(out.matches(": denied:").count(), 4, "{out}");
        // What is the same within a minute is on record once.
        let expected = [("send", 3), ("publish", 4), ("subscribe", 5)];
        wait_until("each is on record", || {
            by_layer(&denials(&daemon, &["quiet"]), "bus").len() >= expected.len()
        });
        let all = denials(&daemon, &["quiet"]);
        let told = by_layer(&all, "bus");
        assert_eq!(told.len(), expected.len(), "{mode:?}: {told:?}");
        for (denial, (key, line)) in told.into_iter().zip(expected) {
            assert_eq!(denial["what"], key);
            assert_eq!(denial["rule"], format!("not in ipc.{key}"));
            let origin = denial["origin"].as_str().expect("a line");
            assert!(origin.ends_with(&format!("quiet.toml:{line}")), "{origin}");
        }
        assert_eq!(by_layer(&all, "bus")[0]["target"], bus_channels::READER);

        // The same agent, allowed all of it, and then not by whoever calls.
        let script = format!(
            "until [ -e go ]; do sleep 0.05; done; {}",
            attempt.join(" ")
        );
        let options = ["--detach", "--name", "talker"];
        let argv = ["sh", "-c", &script];
        let (code, _, err) = text(&daemon.run_with(work.path(), &options, &argv));
        assert_eq!(code, 0, "{err}");
        let revoke = ["bus", "revoke", "talker", "send"];
        let (code, _, err) = text(&output(&mut daemon.agentctl(revoke)));
        assert_eq!(code, 0, "{err}");
        std::fs::write(work.path().join("go"), "").expect("go");
        wait_until("the refusal is on record", || {
            !by_layer(&denials(&daemon, &["talker"]), "bus").is_empty()
        });
        let all = denials(&daemon, &["talker"]);
        let told = by_layer(&all, "bus");
        assert_eq!(told.len(), 1, "{told:?}");
        let rule = told[0]["rule"].as_str().expect("a rule");
        let hand = format!("send for # was revoked by uid {}", daemon.owner());
        assert!(
            rule.starts_with(&hand) && rule.contains("agentctl bus restore"),
            "{rule}"
        );
        assert!(told[0]["origin"].is_null());
        bus_channels::end(&daemon, bus_channels::READER);
    }
}

#[test]
fn each_layer_says_whether_it_can_tell_and_why_not() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let (code, out, err) = text(&output(
            &mut daemon.agentctl(["--json", "denials", "--layers"]),
        ));
        assert_eq!(code, 0, "{err}");
        let layers: Value = serde_json::from_str(&out).expect("JSON");
        let of = |name: &str| {
            let layers = layers["layers"].as_array().expect("a list");
            layers
                .iter()
                .find(|l| l["layer"] == name)
                .expect("the layer")
                .clone()
        };
        assert_eq!(of("egress")["observable"], true);
        assert_eq!(of("bus")["observable"], true);
        // It changes the host, so it is off until somebody wants it.
        let landlock = of("landlock")["why_not"].as_str().expect("off").to_owned();
        let helps = match mode {
            Mode::Root => "kernel_audit = \"on\" under [daemon]",
            Mode::User => "root's",
        };
        assert!(landlock.contains(helps), "{landlock}");
        let mounts = of("mounts");
        let why_not = mounts["why_not"].as_str().expect("a reason");
        assert!(why_not.starts_with("not observable here: "), "{why_not}");
    }
}

fn ask_the_proxy() -> &'static str {
    r#"use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0); connect($s, sockaddr_in(3128, inet_aton("127.0.0.1"))) or die $!;
       syswrite($s, "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n"); sysread($s, my $answer, 99); "#
}

fn waits_for_go(script: &str) -> String {
    format!(
        "open(my $up, '>', 'up'); close $up; until (-e 'go') {{ select(undef, undef, undef, 0.01) }} {script}"
    )
}

fn start(daemon: &Daemon, work: &Path, script: &str) {
    let options = ["--detach", "--name", "it"];
    let (code, _, err) = text(&daemon.run_with(work, &options, &["perl", "-e", script]));
    assert_eq!(code, 0, "{err}");
    let up = work.join("up");
    wait_until("the agent is up", || up.exists());
}
