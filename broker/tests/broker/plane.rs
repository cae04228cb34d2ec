//! The kernel plane through the broker: agents are known to it while they live, and restricted by slot.
//!
//! What each program refuses is tested where the programs are (`bpf/load/tests/kernel`); here is what the broker does with them.

use crate::harness::{Agent, Broker, assert_refused, plan, root, shell, status_file};
use crate::skip::skip;
use crate::succession::Served;
use agentd_bpf::layout::{Counters, LAYOUT, ROWS, revoked};
use agentd_bpf::{Group, Rows, Table};
use agentd_broker::client::BrokerClient;
use agentd_broker::protocol::{ErrorCode, Request, Slot};
use agentd_kernel::pidfd::PidFd;
use rustix::process::Signal;
use std::path::PathBuf;

/// Says on its standard output, for each line on its standard input, whether a connect is refused
/// by nobody listening or by a rule.
const PROBE: &str = "while read line; do \
    if (: > /dev/tcp/127.0.0.1/1) 2>&1 | grep -q refused; then echo open; else echo revoked; fi; done";

/// Whether the group is there; otherwise the calling test is skipped.
fn has(client: &mut BrokerClient, group: Group) -> bool {
    let there = client.plane().expect("plane").plane.groups.has(group);
    if !there {
        let why = client.absent(group).expect("absent");
        assert_ne!(why, "", "what is absent has a reason");
        skip(&format!("bpf-{group}"), &why);
    }
    there
}

struct Prober {
    agent: Agent,
    input: std::fs::File,
    output: std::io::BufReader<std::fs::File>,
}

impl Prober {
    fn new(agent: Agent) -> Self {
        let (_, fds) = agent.ready();
        let mut fds = fds.into_iter().map(std::fs::File::from);
        let (input, output) = (fds.next().expect("stdin"), fds.next().expect("stdout"));
        Self {
            agent,
            input,
            output: std::io::BufReader::new(output),
        }
    }

    /// "open" or "revoked".
    fn probe(&mut self) -> String {
        use std::io::{BufRead, Write};
        writeln!(self.input, "now").expect("write");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read");
        line.trim_end().to_owned()
    }

    fn slot(&self) -> Slot {
        self.agent.slot
    }

    /// The directory of the pins of the broker that launched it.
    fn pins(&self) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::fs::MetadataExt;
        let path = std::ffi::OsStr::from_bytes(&self.agent.launched.info.cgroup_path);
        let subtree = std::path::Path::new(path).parent().expect("the subtree");
        let id = std::fs::metadata(subtree).expect("the subtree").ino();
        format!("/sys/fs/bpf/agentd/{id:x}").into()
    }
}

#[test]
fn an_agent_is_revoked_and_restored_by_its_slot() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    if !has(&mut broker.client, Group::Net) {
        return broker.finish();
    }
    assert_eq!(broker.client.absent(Group::Net).expect("absent"), "");
    let plane = broker.client.plane().expect("plane");
    assert_eq!(plane.plane.layout, LAYOUT);
    let counters = plane
        .tables
        .into_iter()
        .find(|(table, _)| *table == Table::Counters);
    let counters = Rows::<Counters>::map(counters.expect("handed").1, "COUNTERS", ROWS);
    let counters = counters.expect("map");
    let mut one = Prober::new(broker.launch(&plan(&["bash", "-c", PROBE])));
    let mut other = Prober::new(broker.launch(&plan(&["bash", "-c", PROBE])));
    assert_eq!((one.probe(), other.probe()), ("open".into(), "open".into()));
    let client = &mut broker.client;
    client
        .restrict(one.slot(), revoked::NET, [0; 8])
        .expect("restrict");
    assert_eq!(
        (one.probe(), other.probe()),
        ("revoked".into(), "open".into())
    );
    let denied = |prober: &Prober| counters.get(prober.slot().0 as usize).expect("row").denied;
    assert!(denied(&one) > 0);
    assert_eq!(denied(&other), 0);
    client.restrict(one.slot(), 0, [0; 8]).expect("restrict");
    assert_eq!(one.probe(), "open");

    // The next agent on the slot begins with nothing revoked and nothing counted.
    client
        .restrict(one.slot(), revoked::NET, [0; 8])
        .expect("restrict");
    client.kill(one.slot()).expect("kill");
    let (slot, pins) = (one.slot(), one.pins());
    broker.wait_gone(slot);
    let mut next = Prober::new(broker.launch(&plan(&["bash", "-c", PROBE])));
    assert_eq!(next.slot(), slot);
    assert_eq!(next.probe(), "open");
    assert_eq!(denied(&next), 0);
    assert!(pins.is_dir());
    broker.finish();
    assert!(!pins.exists(), "pins are left");
}

#[test]
fn what_the_plane_cannot_do_is_refused_with_the_reason() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let nobody = broker.client.restrict(Slot(9), 0, [0; 8]);
    assert_refused(nobody, ErrorCode::NoSuchSlot);
    let agent = broker.launch(&shell("sleep 1000"));
    agent.ready();
    let present = broker.client.plane().expect("plane").plane.groups;
    for (group, bit) in [
        (Group::Net, revoked::NET),
        (Group::Exec, revoked::EXEC),
        (Group::Write, revoked::WRITE),
    ] {
        let restricted = broker.client.restrict(agent.slot, bit, [0; 8]);
        if present.has(group) {
            restricted.expect("restrict");
            continue;
        }
        let why = broker.client.absent(group).expect("absent");
        let text = assert_refused(restricted, ErrorCode::Unsupported);
        let begins: String = why.chars().take(100).collect();
        assert!(text.contains(&begins), "{text}: {why}");
    }
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    let gone = broker.client.restrict(agent.slot, 0, [0; 8]);
    assert_refused(gone, ErrorCode::NoSuchSlot);
    broker.finish();
}

#[test]
fn only_what_is_asked_for_is_handed_over_and_nothing_is_kept_of_it() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let open = |pid: i32| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("fd")
            .count()
    };
    let before = open(broker.pid());
    for _ in 0..50 {
        broker.client.plane().expect("plane");
    }
    // It closes its copies behind the reply that carried them, and before it reads the next request.
    broker.client.absent(Group::Net).expect("absent");
    assert_eq!(open(broker.pid()), before);
    let file = status_file();
    for request in [Request::Plane, Request::Absent(Group::Net)] {
        use std::os::fd::AsFd;
        let carried = broker
            .client
            .call(&request, &[file.as_fd()])
            .expect("reply");
        let refused = matches!(
            &carried.reply,
            agentd_broker::protocol::Reply::Failed(failure) if failure.code == ErrorCode::Malformed
        );
        assert!(refused, "{:?}", carried.reply);
    }
    broker.finish();
}

#[test]
fn a_revocation_outlives_the_worker_and_the_program() {
    if !root() {
        return;
    }
    let served = Served::start();
    let mut agentd = served.greet();
    if !has(&mut agentd.client, Group::Net) {
        agentd.client.shutdown().expect("shutdown");
        return served.finish();
    }
    let file = tempfile::tempfile().expect("file");
    let agent = agentd.launch_plan(plan(&["bash", "-c", PROBE]), 60_000, &file);
    let mut prober = Prober::new(agent);
    agentd
        .client
        .restrict(prober.slot(), revoked::NET, [0; 8])
        .expect("restrict");
    assert_eq!(prober.probe(), "revoked");

    agentd.kill_worker();
    assert_eq!(prober.probe(), "revoked", "while nobody is there");
    let mut agentd = served.greet();
    agentd.adopt(&prober.agent, &[]).expect("adopt");
    assert_eq!(prober.probe(), "revoked", "with the next worker");
    agentd
        .client
        .restrict(prober.slot(), 0, [0; 8])
        .expect("restrict");
    assert_eq!(prober.probe(), "open", "which has the same tables");
    agentd
        .client
        .restrict(prober.slot(), revoked::NET, [0; 8])
        .expect("restrict");

    let worker = PidFd::open(agentd.welcome.pid).expect("pidfd");
    let supervisor = rustix::process::Pid::from_raw(served.process.id() as i32).expect("pid");
    rustix::process::kill_process(supervisor, Signal::USR2).expect("kill");
    crate::harness::assert_dies(&worker);
    drop(agentd);
    let mut agentd = served.greet();
    agentd.adopt(&prober.agent, &[]).expect("adopt");
    assert_eq!(prober.probe(), "revoked", "with the next program");
    agentd
        .client
        .restrict(prober.slot(), 0, [0; 8])
        .expect("restrict");
    assert_eq!(prober.probe(), "open", "which has the same tables");
    let mut second = Prober::new(agentd.launch_plan(plan(&["bash", "-c", PROBE]), 60_000, &file));
    assert_eq!(second.probe(), "open", "and makes agents known");
    let pins = prober.pins();
    agentd.client.shutdown().expect("shutdown");
    served.finish();
    assert!(!pins.exists(), "pins are left");
}
