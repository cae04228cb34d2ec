//! What Landlock refuses, by the kernel's audit.
//!
//! Turning that on leaves a trace in the kernel until the host starts again (ADR 40), so these run where AGENTD_TEST_AUDIT=1 says
//! that it may be, as in a guest of `cargo xtask vm`. The last one leaves none and runs everywhere.

use std::path::Path;

use agentd_kernel::audit::{Control, Enabled, Status};
use agentd_kernel::sys::security::landlock;
use serde_json::Value;

use crate::harness::{Daemon, Mode, is_root, output, program, text, wait_until};

const CONFIG: &str = "[daemon]\nkernel_audit = \"on\"\n";
/// Under this only port 3000 may be connected to, by the last line.
const POLICY: &str = "extends = \"coding\"\n\n[net]\nports = [3000]\n";
/// Perl: tries port 9 so often; whether each was refused by Landlock.
const CONNECT: &str = r#"use Socket; my $to = sockaddr_in(9, inet_aton("127.0.0.1")); sub tried { my $refused = 0;
    for (1..$_[0]) { socket(my $s, PF_INET, SOCK_STREAM, 0) or die "$!"; $refused++ if !connect($s, $to) && $! == 13 } return $refused }"#;

/// One at a time: audit is the whole host's.
fn alone() -> Option<std::sync::MutexGuard<'static, ()>> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    if !is_root() || std::env::var_os("AGENTD_TEST_AUDIT").is_none() {
        agentd_testkit::skip(
            "audit-host",
            "turning the kernel's audit on takes root, and AGENTD_TEST_AUDIT=1",
        );
        return None;
    }
    if landlock::abi() < landlock::LOGGING_ABI {
        agentd_testkit::skip(
            "landlock-audit",
            "this kernel's Landlock tells its audit nothing",
        );
        return None;
    }
    Some(
        ONE.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    )
}

fn status() -> Status {
    let control = Control::open().expect("the kernel's audit");
    control.status().expect("its status")
}

fn assert_is_as(before: &Status) {
    let after = status();
    assert_eq!(
        (after.enabled, after.limits),
        (before.enabled, before.limits)
    );
}

fn policy_in(directory: &Path) -> String {
    let policy = directory.join("team.toml");
    std::fs::write(&policy, POLICY).expect("a policy");
    policy.to_str().expect("a path").to_owned()
}

/// Whether Landlock is observable, and why not.
fn layer(daemon: &Daemon) -> (bool, String) {
    let layers = asked(daemon, &["--layers"]);
    let list = layers["layers"].as_array().expect("a list");
    let landlock = list.iter().find(|l| l["layer"] == "landlock");
    let landlock = landlock.expect("the layer");
    let why_not = landlock["why_not"].as_str().unwrap_or_default();
    (landlock["observable"] == true, why_not.to_owned())
}

fn asked(daemon: &Daemon, arguments: &[&str]) -> Value {
    let all = [&["--json", "denials"], arguments].concat();
    let (code, out, err) = text(&output(&mut daemon.agentctl(all)));
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).expect("JSON")
}

fn refused(daemon: &Daemon, agent: &str) -> Vec<Value> {
    let listed = asked(daemon, &[agent]);
    let all = listed["denials"].as_array().expect("a list");
    let landlocks = all.iter().filter(|d| d["layer"] == "landlock");
    landlocks.cloned().collect()
}

#[test]
fn what_landlock_refuses_is_told_with_its_line_and_audit_is_as_before_afterwards() {
    let Some(_alone) = alone() else { return };
    let before = status();
    let daemon = Daemon::with_config(Mode::Root, CONFIG);
    assert_eq!(layer(&daemon), (true, String::new()));
    assert_eq!(status().enabled, Enabled::On);

    let work = daemon.workspace();
    let policies = daemon.workspace();
    let policy = policy_in(policies.path());
    // Each is gone before anybody could look at its process.
    for n in 0..5 {
        let name = format!("quick-{n}");
        let script =
            format!("{CONNECT} print tried(1); kill(0, 1) and die 'the init was reached';");
        let (code, out, err) = text(&daemon.run_with(
            work.path(),
            &["--name", &name, "--policy", &policy],
            &["perl", "-e", &script],
        ));
        assert_eq!((code, out.as_str()), (0, "1"), "{err}");
        wait_until("both are on record", || refused(&daemon, &name).len() == 2);
        let told = refused(&daemon, &name);
        let of = |what: &str| {
            let found = told.iter().find(|d| d["what"] == what);
            found.unwrap_or_else(|| panic!("{what}: {told:?}")).clone()
        };
        let connect = of("net.connect_tcp");
        assert_eq!(connect["target"], "127.0.0.1:9");
        let origin = connect["origin"].as_str().expect("a line");
        assert!(origin.ends_with("team.toml:4"), "{origin}");
        let rule = of("scope.signal")["rule"].clone();
        assert!(rule.as_str().expect("a rule").starts_with("the floor"));
    }
    drop(daemon);
    assert_is_as(&before);
}

#[test]
fn a_new_agentd_tells_of_an_agent_whose_domain_an_earlier_one_learned() {
    let Some(_alone) = alone() else { return };
    let mut daemon = Daemon::with_config(Mode::Root, CONFIG);
    let work = daemon.workspace();
    let policies = daemon.workspace();
    let policy = policy_in(policies.path());
    let script = format!(
        "{CONNECT} tried(1); open(my $up, '>', 'up'); close $up; until (-e 'go') {{ select(undef, undef, undef, 0.01) }}
         $to = sockaddr_in(10, inet_aton('127.0.0.1')); tried(1); open(my $done, '>', 'done'); close $done; sleep 1000;"
    );
    let options = ["--detach", "--name", "it", "--policy", &policy];
    let (code, _, err) = text(&daemon.run_with(work.path(), &options, &["perl", "-e", &script]));
    assert_eq!(code, 0, "{err}");
    wait_until("the first is on record", || {
        refused(&daemon, "it").len() == 1
    });
    daemon.kill();
    std::fs::write(work.path().join("go"), "").expect("go");
    let done = work.path().join("done");
    wait_until("it was refused without agentd", || done.exists());
    daemon.start_again();
    wait_until("the next agentd tells of it", || {
        refused(&daemon, "it")
            .iter()
            .any(|d| d["target"] == "127.0.0.1:10")
    });
    let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "it"])));
    assert_eq!(code, 0, "{err}");
}

#[test]
fn a_flood_is_refused_whole_and_what_was_not_told_is_counted_at_its_end() {
    let Some(_alone) = alone() else { return };
    const CALLS: u64 = 100_000;
    let daemon = Daemon::with_config(Mode::Root, CONFIG);
    let work = daemon.workspace();
    let policies = daemon.workspace();
    let policy = policy_in(policies.path());
    let mut follow = daemon
        .agentctl(["--json", "denials", "-f"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("agentctl");
    let reader = std::thread::spawn({
        let pipe = follow.stdout.take().expect("stdout");
        move || {
            let lines = std::io::BufRead::lines(std::io::BufReader::new(pipe));
            let events = lines.map_while(Result::ok);
            let events = events.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
            events.fold((0, 0), |(told, left_out), event| {
                let told = told + u64::from(event["layer"] == "landlock");
                (told, left_out + event["left_out"].as_u64().unwrap_or(0))
            })
        }
    });
    let script = format!("{CONNECT} print tried({CALLS});");
    let options = ["--name", "it", "--policy", &policy];
    let ran = daemon.run_with(work.path(), &options, &["perl", "-e", &script]);
    let (code, out, err) = text(&ran);
    assert_eq!((code, out), (0, CALLS.to_string()), "{err}");
    // Its own, where the record of its domain's end came through, and what the kernel and the socket lost of anybody's.
    let lost = || {
        let listed = asked(&daemon, &["it"]);
        let lost = listed["lost"].as_array().expect("a list").clone();
        let landlocks = lost.iter().filter(|l| l["layer"] == "landlock");
        landlocks
            .map(|l| l["lost"].as_u64().expect("a number"))
            .sum::<u64>()
    };
    wait_until("losses are counted", || lost() > 0);
    // Somebody else's refusal is told after the flood: nothing is stuck. In the flood's last second the kernel's limit takes it.
    let other = format!("{CONNECT} print tried(1);");
    let mut others = 0;
    wait_until("another agent's is told", || {
        others += 1;
        let name = format!("next-{others}");
        let options = ["--name", &name, "--policy", &policy];
        let ran = daemon.run_with(work.path(), &options, &["perl", "-e", &other]);
        let (code, out, err) = text(&ran);
        assert_eq!((code, out.as_str()), (0, "1"), "{err}");
        !refused(&daemon, &name).is_empty()
    });
    let lost = lost();
    follow.kill().expect("it follows");
    follow.wait().expect("it has ended");
    let (told, left_out) = reader.join().expect("the follower");
    // Beside the calls there are the others', and of each launch the signal and the domain's two records among what is lost.
    let all = told + left_out + lost;
    assert!(
        (CALLS..=CALLS + 10 + 4 * others).contains(&all),
        "{told} told, {left_out} left out, {lost} lost of {CALLS} and {others} others"
    );
    assert!(told > 0, "some were told");
}

#[test]
fn a_host_whose_audit_is_on_is_left_as_it_is() {
    let Some(_alone) = alone() else { return };
    let before = status();
    let control = Control::open().expect("the kernel's audit");
    control.never_audit_tasks().expect("the rule");
    control.set(true, before.limits).expect("on");
    let restored = scopeguard(move || {
        control
            .set(before.enabled != Enabled::Off, before.limits)
            .expect("as before");
    });
    let daemon = Daemon::with_config(Mode::Root, CONFIG);
    assert_eq!(layer(&daemon), (true, String::new()));
    assert_eq!(status().limits, before.limits);
    drop(daemon);
    assert_eq!(
        (status().enabled, status().limits),
        (Enabled::On, before.limits)
    );
    drop(restored);
}

/// Runs `last` when it is dropped, after a failed assertion too.
fn scopeguard(last: impl FnOnce()) -> impl Drop {
    struct Guard<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Guard<F> {
        fn drop(&mut self) {
            if let Some(last) = self.0.take() {
                last();
            }
        }
    }
    Guard(Some(last))
}

/// A daemon whose broker starts with no more than `rights` to be had.
fn bounded(rights: &[String]) -> Daemon {
    let place = tempfile::tempdir().expect("a directory");
    let at = place.path().join("broker");
    let bounds: Vec<String> = rights
        .iter()
        .map(|right| format!(",+{}", right.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-all{} {} \"$@\"\n",
        bounds.concat(),
        program("agentd-broker").display()
    );
    // By a child: a test beside this one may fork while the file is open here, and it would be busy.
    let mut write = std::process::Command::new("sh");
    write.args(["-c", r#"printf %s "$1" > "$2" && chmod 755 "$2""#, "sh"]);
    let written = output(write.arg(script).arg(&at));
    assert_eq!(text(&written).0, 0, "{written:?}");
    let broker = format!("AGENTD_BROKER={}", at.display());
    Daemon::prepared(Mode::Root, CONFIG, &["env", &broker], |_dir| {})
}

/// The capabilities that a unit's text lets its service have.
fn bounding_set(unit: &str) -> Vec<String> {
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line.expect("a bounding set").split(' ');
    names.map(str::to_owned).collect()
}

const UNIT: &str = include_str!("../../../systemd/system/agentd-broker.service");
/// With the drop-in for the unit.
const PAGE: &str = include_str!("../../../docs/systemd.md");

#[test]
fn the_rights_of_the_drop_in_for_systemd_are_enough() {
    let Some(_alone) = alone() else { return };
    let before = status();
    let daemon = bounded(&[bounding_set(UNIT), bounding_set(PAGE)].concat());
    assert_eq!(layer(&daemon), (true, String::new()));
    drop(daemon);
    assert_is_as(&before);
}

#[test]
fn a_kernel_that_tells_nothing_and_a_broker_without_the_rights_are_named_and_agents_run() {
    if !is_root() {
        agentd_testkit::skip("root", "the kernel's audit is root's");
        return;
    }
    // None of audit's: the kernel refuses every question.
    let daemon = bounded(&bounding_set(UNIT));
    let (observable, why_not) = layer(&daemon);
    assert!(!observable);
    let (abi, tells) = (landlock::abi(), landlock::LOGGING_ABI);
    let expected = if abi < tells {
        format!(
            "this kernel's Landlock (ABI {abi}) tells its audit nothing: from ABI {tells} on (Linux 6.15) it does"
        )
    } else {
        "it takes CAP_AUDIT_CONTROL and CAP_AUDIT_READ, outside of containers".to_owned()
    };
    let has_none = why_not.ends_with("this kernel has no audit");
    assert!(has_none || why_not.ends_with(&expected), "{why_not}");
    let (code, doctor, err) = text(&output(&mut daemon.agentctl(["doctor"])));
    assert_eq!(code, 0, "{err}");
    assert!(has_none || doctor.contains(&expected), "{doctor}");
    let work = daemon.workspace();
    let (code, out, err) = text(&daemon.run(work.path(), &["echo", "ran"]));
    assert_eq!((code, out.as_str()), (0, "ran\n"), "{err}");
}
