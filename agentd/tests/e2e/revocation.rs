//! Live control: rights are taken from a running agent in the kernel, told by its own errno, and
//! given back by the right hand only.

use std::path::Path;

use crate::harness::{
    ALICE, Daemon, Mode, dir_of, is_root, modes, ok, output, signal, text, wait_until,
};
use crate::orders::Orders;

/// An agent that tries what it is ordered to.
const OBEDIENT: &str = r#"
use Socket; use IO::Handle;
sub tcp { socket(my $s, PF_INET, SOCK_STREAM, 0) or return "$!"; connect($s, sockaddr_in($_[0], inet_aton("127.0.0.1"))) or return "$!"; return $s }
sub told { my $r = shift; return ref \$r eq "GLOB" || ref $r eq "GLOB" ? "ok" : $r }
socket(my $udp, PF_INET, SOCK_DGRAM, 0) or die "udp: $!"; my $tunnel; # before anybody could take the right to it
open(my $in, "<", "ask") or die "ask: $!"; open(my $out, ">", "answer") or die "answer: $!"; $out->autoflush(1);
while (my $line = <$in>) {
  my ($verb, $arg) = split " ", $line;
  my $said = "?";
  if ($verb eq "connect") { $said = told(tcp($arg)) }
  elsif ($verb eq "tunnel") { $tunnel = tcp(3128); syswrite($tunnel, "CONNECT 127.0.0.1:$arg HTTP/1.1\r\nHost: x\r\n\r\n"); sysread($tunnel, $said, 12) }
  elsif ($verb eq "drain") { my $n; do { $n = sysread($tunnel, my $b, 4096) } while ($n); $said = defined $n ? "eof" : "$!" }
  elsif ($verb eq "datagram") { $said = defined send($udp, "x", 0, sockaddr_in(9, inet_aton("127.0.0.1"))) ? "ok" : "$!" }
  elsif ($verb eq "socket") { $said = socket(my $s, PF_INET, SOCK_DGRAM, 0) ? "ok" : "$!" }
  elsif ($verb eq "bind") { socket(my $s, PF_INET, SOCK_STREAM, 0); $said = bind($s, sockaddr_in(0, inet_aton("127.0.0.1"))) ? "ok" : "$!" }
  elsif ($verb eq "exec") { my $n = `/bin/echo ran 2>&1`; $said = $n =~ /ran/ ? "ok" : "refused: $!" }
  elsif ($verb eq "write") { $said = open(my $f, ">", "made") ? "ok" : "$!" }
  print $out "$said\n";
}
"#;

const REFUSED: &str = "Operation not permitted";

/// The agent, as `uid`'s with that name, in `work`, free to connect to `port` of the host.
fn obedient(daemon: &Daemon, uid: u32, name: &str, work: &Path, port: u16) -> Orders {
    let policy = format!(
        "extends = \"coding\"\n[net]\nallow = [{{ host = \"127.0.0.1:{port}\", private = true }}]\n"
    );
    std::fs::write(work.join("policy.toml"), policy).expect("write the policy");
    let mut run = daemon.agentctl_as(
        uid,
        ["run", "--detach", "--no-tty", "--name", name, "--policy"],
    );
    run.arg(work.join("policy.toml"))
        .arg("--workspace")
        .arg(work);
    run.args(["--", "perl", "-e", OBEDIENT]);
    Orders::start(work, uid, || {
        let (code, out, err) = text(&output(&mut run));
        assert_eq!(code, 0, "{out} {err}");
    })
}

/// Somebody on the host who accepts and says nothing.
fn host() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

/// Takes `right` from the agent; nothing where this host can't, which is then said.
fn revoke(daemon: &Daemon, uid: u32, right: &str, agent: &str) -> Option<String> {
    let (code, out, err) = text(&output(
        &mut daemon.agentctl_as(uid, ["revoke", right, agent]),
    ));
    if code == 1 && err.contains("can't be revoked") {
        agentd_testkit::skip(&format!("revoke-{right}"), err.trim());
        return None;
    }
    assert_eq!(code, 0, "{out} {err}");
    Some(out)
}

#[test]
fn the_network_goes_at_once_with_what_is_open_and_comes_back() {
    if !is_root() {
        agentd_testkit::skip("root", "the kernel plane is root's");
        return;
    }
    let daemon = Daemon::start(Mode::Root);
    let (work, (_listener, port)) = (daemon.workspace(), host());
    let mut agent = obedient(&daemon, 0, "crawler", work.path(), port);
    assert_eq!(agent.told(&format!("tunnel {port}")), "HTTP/1.1 200");
    for wish in ["connect 3128", "connect 8080", "datagram", "socket", "bind"] {
        assert_eq!(agent.told(wish), "ok", "{wish}");
    }
    let Some(said) = revoke(&daemon, 0, "net", "crawler") else {
        return;
    };
    assert_eq!(said, "crawler: net revoked, 1 connection shut\n");
    assert_eq!(agent.told("drain"), "Connection reset by peer");
    for wish in ["connect 3128", "datagram", "socket", "bind"] {
        assert_eq!(agent.told(wish), REFUSED, "{wish}");
    }
    for kept in ["connect 8080", "connect 8765"] {
        assert_eq!(agent.told(kept), "ok", "agentd's own listener: {kept}");
    }
    let (_, record, _) = text(&output(&mut daemon.agentctl(["inspect", "crawler"])));
    assert!(
        record.contains("net revoked by uid 0; 1 connections shut"),
        "{record}"
    );

    assert_eq!(
        ok(&daemon, 0, &["restore", "net", "crawler"]),
        "crawler: nothing is taken from it\n"
    );
    assert_eq!(agent.told(&format!("tunnel {port}")), "HTTP/1.1 200");
    for wish in ["connect 3128", "datagram", "socket", "bind"] {
        assert_eq!(agent.told(wish), "ok", "{wish}");
    }
    ok(&daemon, 0, &["kill", "crawler"]);
}

#[test]
fn what_is_taken_stays_taken_when_agentd_dies_and_only_the_right_hand_gives_it_back() {
    if !is_root() {
        agentd_testkit::skip("root", "the kernel plane is root's");
        return;
    }
    let mut daemon = Daemon::start(Mode::Root);
    let (work, (_listener, port)) = (dir_of(ALICE), host());
    let mut agent = obedient(&daemon, ALICE, "mine", work.path(), port);
    if revoke(&daemon, 0, "net", "mine").is_none() {
        return;
    }
    let refused = |daemon: &Daemon| {
        let (code, _, err) = text(&output(
            &mut daemon.agentctl_as(ALICE, ["restore", "all", "mine"]),
        ));
        assert_eq!(code, 4, "{err}");
        assert!(err.contains("uid 0 took it"), "{err}");
    };
    refused(&daemon);
    daemon.kill();
    assert_eq!(
        agent.told("connect 8080"),
        "ok",
        "the kernel accepts for whoever comes"
    );
    assert_eq!(
        agent.told("connect 3128"),
        REFUSED,
        "nobody has to be there"
    );
    daemon.start_again();
    assert_eq!(agent.told("connect 3128"), REFUSED);
    refused(&daemon);
    // The worker dies: what its successor adopts is no more than there was.
    signal(daemon.broker, rustix::process::Signal::KILL);
    refused(&daemon);
    assert_eq!(agent.told("connect 3128"), REFUSED);
    ok(&daemon, 0, &["restore", "all", "mine"]);
    assert_eq!(agent.told("connect 3128"), "ok");
    // Her own hand is hers to undo.
    ok(&daemon, ALICE, &["revoke", "net", "mine"]);
    assert_eq!(agent.told("connect 3128"), REFUSED);
    ok(&daemon, ALICE, &["restore", "net", "mine"]);
    assert_eq!(agent.told("connect 3128"), "ok");
    ok(&daemon, ALICE, &["kill", "mine"]);
}

#[test]
fn programs_and_files_go_where_the_kernel_has_bpf_lsm_and_elsewhere_it_says_why() {
    if !is_root() {
        agentd_testkit::skip("root", "the kernel plane is root's");
        return;
    }
    let daemon = Daemon::start(Mode::Root);
    let (work, (_listener, port)) = (daemon.workspace(), host());
    let mut agent = obedient(&daemon, 0, "coder", work.path(), port);
    for (right, wish) in [("exec", "exec"), ("write", "write")] {
        assert_eq!(agent.told(wish), "ok");
        let Some(said) = revoke(&daemon, 0, right, "coder") else {
            assert_eq!(
                agent.told(wish),
                "ok",
                "a refused revocation changes nothing"
            );
            continue;
        };
        assert_eq!(said, format!("coder: {right} revoked\n"));
        let now = agent.told(wish);
        assert!(now.contains(REFUSED), "{wish}: {now}");
        ok(&daemon, 0, &["restore", right, "coder"]);
        assert_eq!(agent.told(wish), "ok");
    }
    ok(&daemon, 0, &["kill", "coder"]);
}

#[test]
fn a_frozen_agent_stands_still_until_it_is_thawed() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let (work, (_listener, port)) = (daemon.workspace(), host());
        let mut agent = obedient(&daemon, owner, "still", work.path(), port);
        let (code, out, err) = text(&output(&mut daemon.agentctl(["freeze", "still"])));
        if code == 1 && err.contains("can't be frozen") {
            assert!(err.contains("cgroup2"), "it says what is missing: {err}");
            assert_eq!(agent.told("connect 8080"), "ok", "{mode:?}: it runs on");
            let feature = match mode {
                Mode::Root => "freeze",
                Mode::User => "freeze-user",
            };
            agentd_testkit::skip(feature, err.trim());
            ok(&daemon, owner, &["kill", "still"]);
            continue;
        }
        assert_eq!((code, out.as_str()), (0, "still: frozen\n"), "{err}");
        assert!(ok(&daemon, owner, &["ps"]).contains("stopped"));
        let pid = agent_pid(&daemon);
        wait_until("the kernel has frozen it", || {
            events(pid).contains("frozen 1")
        });
        assert_eq!(
            ok(&daemon, owner, &["thaw", "still"]),
            "still: nothing is taken from it\n"
        );
        wait_until("the kernel has thawed it", || {
            events(pid).contains("frozen 0")
        });
        assert_eq!(agent.told("connect 8080"), "ok");
        // Stopping a frozen agent lets it use its grace.
        ok(&daemon, owner, &["freeze", "still"]);
        ok(&daemon, owner, &["stop", "--grace", "60s", "still"]);
        let record = ok(&daemon, owner, &["inspect", "still"]);
        for line in ["frozen by uid", "thawed by uid"] {
            assert!(record.contains(line), "{line}: {record}");
        }
    }
}

#[test]
fn without_the_kernel_plane_a_revocation_is_refused_by_name() {
    for mode in modes().into_iter().filter(|mode| *mode == Mode::User) {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let (work, (_listener, port)) = (daemon.workspace(), host());
        let mut agent = obedient(&daemon, owner, "free", work.path(), port);
        let (code, out, err) = text(&output(&mut daemon.agentctl(["revoke", "net", "free"])));
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(
            err.contains("net can't be revoked") && err.contains("root"),
            "{err}"
        );
        assert_eq!(agent.told("connect 3128"), "ok", "nothing has changed");
        ok(&daemon, owner, &["kill", "free"]);
    }
}

/// The pid of the only agent's init.
fn agent_pid(daemon: &Daemon) -> i32 {
    let ps = ok(daemon, daemon.owner(), &["--json", "ps"]);
    let ps: serde_json::Value = serde_json::from_str(&ps).expect("JSON");
    ps["agents"][0]["pid"]
        .as_i64()
        .expect("a pid")
        .try_into()
        .expect("fits")
}

/// `cgroup.events` of a process's cgroup2 directory.
fn events(pid: i32) -> String {
    let of = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = of
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let root = mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let place = fields.next()?;
            (fields.next()? == "cgroup2").then_some(place)
        })
        .expect("a cgroup2 mount");
    std::fs::read_to_string(format!("{root}{path}/cgroup.events")).unwrap_or_default()
}
