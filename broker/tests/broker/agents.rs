//! Agents from launch to end, and what the broker itself has given up.

use crate::harness::{Broker, assert_dies, plan, root, shell};
use agentd_broker::protocol::Mode;
use agentd_kernel::cgroup::{Controller, Layout};
use agentd_kernel::probe::Roots;
use agentd_launch::layers::*;
use agentd_launch::plan::CgroupLimits;
use std::fs;

#[test]
fn a_program_runs_and_its_exit_code_arrives() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    assert_eq!(broker.welcome.mode, Mode::Root);
    let agent = broker.launch(&shell("echo out; echo err >&2; exit 42"));
    let info = &agent.launched.info;
    assert_eq!(
        (info.slot.0, info.host_uid, info.host_gid),
        (1, 2_046_820_353, 2_046_820_353)
    );
    assert_eq!(agent.output(), (42, "out\n".into(), "err\n".into()));
    let gone = broker.wait_gone(agent.slot);
    assert_eq!((gone.pid, gone.wait_status), (info.pid, Some(42 << 8)));
    broker.finish();
}

#[test]
fn the_layers_are_there_and_so_are_the_ids() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let agent = broker.launch(&plan(&["sleep", "1000"]));
    let (layers, fds) = agent.ready();
    let expected = LAYERS_FLOOR | LAYER_UTS_NS | LAYER_CGROUP_NS | LAYER_TIME_NS | LAYER_IDMAP;
    assert_eq!(
        layers & expected,
        expected,
        "{:?}",
        layer_names(layers).collect::<Vec<_>>()
    );
    let status =
        fs::read_to_string(format!("/proc/{}/status", agent.launched.info.pid)).expect("status");
    let line = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
            .expect("a status line")
    };
    let uid = agent.launched.info.host_uid.to_string();
    assert_eq!(
        line("Uid:").split_whitespace().collect::<Vec<_>>(),
        [&uid; 4]
    );
    assert_eq!(
        line("Gid:").split_whitespace().collect::<Vec<_>>(),
        [&uid; 4]
    );
    assert_eq!(line("Groups:"), "");
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"] {
        let of =
            |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("namespace");
        assert_ne!(
            of(&agent.launched.info.pid.to_string()),
            of("self"),
            "{namespace}"
        );
    }
    drop(fds);
    let hard = |pid: i32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .expect("a limit");
        line.split_whitespace()
            .nth(4)
            .and_then(|hard| hard.parse::<u64>().ok())
            .expect("a number")
    };
    assert!(
        hard(agent.launched.info.pid) >= hard(std::process::id() as i32),
        "the hard limit is not lowered"
    );
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn agents_do_not_inherit_a_shield_against_the_oom_killer() {
    if !root() {
        return;
    }
    // Without CAP_SYS_RESOURCE (in some containers) nobody can be shielded.
    let mut broker =
        Broker::start_by("echo -500 2>/dev/null > /proc/self/oom_score_adj; exec \"$0\" 3<&0");
    let adjustment =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("read");
    if adjustment(broker.pid()) != "-500\n" {
        crate::skip::skip("cap-sys-resource", "oom_score_adj can't be lowered here");
        return broker.finish();
    }
    let agent = broker.launch(&plan(&["sleep", "1000"]));
    agent.ready();
    assert_eq!(adjustment(agent.launched.info.pid), "0\n");
    broker.finish();
}

#[test]
fn an_agent_inherits_no_descriptor_and_no_environment() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let agent = broker.launch(&plan(&[
        "sh",
        "-c",
        "for f in /proc/self/fd/*; do echo ${f##*/}; done; tr '\\0' '\\n' < /proc/1/environ",
    ]));
    let (code, stdout, stderr) = agent.output();
    // The shell's own expansion holds no directory open by the time it prints.
    let inherited: Vec<_> = stdout
        .lines()
        .filter(|line| !matches!(*line, "0" | "1" | "2"))
        .collect();
    assert!(
        inherited.iter().all(|line| *line == "3"),
        "more than the glob's own descriptor: {stdout}"
    );
    assert!(
        code != 0 && !stdout.contains('='),
        "the init's environment: {stdout}{stderr}"
    );
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn kill_ends_a_tree_that_forks_as_fast_as_it_can() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let limits = CgroupLimits {
        pids_max: 200,
        ..CgroupLimits::default()
    };
    let agent = broker.launch(
        shell("trap '' TERM HUP INT; (f() { sleep 1000 & f & f; }; f) & while :; do :; done")
            .cgroup(limits),
    );
    agent.ready();
    let tree = loop {
        let tree = agent.tree();
        if tree.len() > 20 {
            break tree;
        }
    };
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    for process in tree {
        assert!(
            process.has_exited().expect("poll"),
            "a process outlived the kill"
        );
    }
    broker.finish();
}

#[test]
fn figures_are_those_of_the_agent() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let agent = broker.launch(&shell(
        "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; echo; sleep 1000",
    ));
    let (_, fds) = agent.ready();
    let mut stdout = fs::File::from(fds[1].try_clone().expect("dup"));
    std::io::Read::read_exact(&mut stdout, &mut [0u8]).expect("the loop is done");
    let stats = broker.client.stat(agent.slot).expect("stat");
    let features = broker.welcome.cgroups;
    if features.unified {
        assert!(stats.cpu_usage_us.expect("cpu") > 1_000, "{stats:?}");
    }
    if features.pids {
        assert!(
            matches!(stats.pids_current, Some(2 | 3)),
            "init, sh, perhaps sleep: {stats:?}"
        );
    }
    if features.memory {
        let (current, peak) = (
            stats.memory_current.expect("memory"),
            stats.memory_peak.unwrap_or(u64::MAX),
        );
        assert!(
            current > 4096 && peak >= current && current < 256 << 20,
            "{stats:?}"
        );
    }
    broker.client.kill(agent.slot).expect("kill");
    let gone = broker.wait_gone(agent.slot);
    assert_eq!(
        gone.stats.cpu_usage_us.is_some(),
        stats.cpu_usage_us.is_some(),
        "last figures come with the event"
    );
    broker.finish();
}

#[test]
fn a_frozen_agent_stands_still_and_can_still_be_killed() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    if !broker.welcome.cgroups.unified {
        return crate::skip::skip("cgroup2", "freezing needs a cgroup2 mount");
    }
    let agent = broker.launch(&shell("while :; do :; done"));
    agent.ready();
    let path = std::path::PathBuf::from(
        String::from_utf8(agent.launched.info.cgroup_path.clone()).expect("utf-8"),
    );
    let frozen = || {
        fs::read_to_string(path.join("cgroup.events"))
            .expect("events")
            .contains("frozen 1")
    };
    broker.client.freeze(agent.slot).expect("freeze");
    while !frozen() {
        std::thread::yield_now();
    }
    // The kernel says so a moment before the last of them has left its processor. Reading this file waits for that.
    for pid in fs::read_to_string(path.join("cgroup.procs"))
        .expect("procs")
        .lines()
    {
        while fs::read_to_string(format!("/proc/{pid}/syscall"))
            .is_ok_and(|said| said.starts_with("running"))
        {
            std::thread::yield_now();
        }
    }
    let mut used = || broker.client.stat(agent.slot).expect("stat").cpu_usage_us;
    assert_eq!(used(), used());
    broker.client.thaw(agent.slot).expect("thaw");
    while frozen() {
        std::thread::yield_now();
    }
    broker.client.freeze(agent.slot).expect("freeze");
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn slots_are_reused_only_after_release() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let first = broker.launch(&plan(&["true"]));
    assert_eq!(first.output().0, 0);
    let gone = broker.client.next_gone().expect("gone");
    let second = broker.launch(&plan(&["true"]));
    assert_ne!(first.slot, second.slot);
    broker
        .client
        .kill(gone.slot)
        .expect("killing the dead is no error");
    assert_eq!(second.output().0, 0);
    broker.client.release(gone.slot).expect("release");
    broker.wait_gone(second.slot);
    let third = broker.launch(&plan(&["true"]));
    assert_eq!(third.slot, first.slot);
    third.output();
    broker.wait_gone(third.slot);
    broker.finish();
}

#[test]
fn agents_live_side_by_side() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let agents: Vec<_> = (0..12).map(|_| broker.launch(&plan(&["cat"]))).collect();
    let ready: Vec<_> = agents.iter().map(|agent| agent.ready().1).collect();
    let mut uids: Vec<_> = agents
        .iter()
        .map(|agent| agent.launched.info.host_uid)
        .collect();
    uids.dedup();
    assert_eq!(uids.len(), 12, "each has a kernel uid of its own");
    broker.client.kill(agents[5].slot).expect("kill");
    broker.wait_gone(agents[5].slot);
    drop(ready);
    let survivors: Vec<_> = agents
        .iter()
        .filter(|agent| agent.slot != agents[5].slot)
        .collect();
    for agent in &survivors {
        assert_eq!(agent.exited(), 0);
    }
    for _ in &survivors {
        let gone = broker.client.next_gone().expect("gone");
        broker.client.release(gone.slot).expect("release");
    }
    broker.finish();
}

#[test]
fn a_program_that_is_not_there_fails_with_its_step() {
    if !root() {
        return;
    }
    use agentd_launch::status::{Status, Step};
    let mut broker = Broker::start();
    let agent = broker.launch(&plan(&["/no/such/program"]));
    match agent.next_status() {
        (Status::Failed(failure), fds) => {
            assert_eq!(
                (failure.step, failure.errno, fds.len()),
                (Step::Exec, libc::ENOENT, 0)
            );
            assert_eq!(failure.shell_code(), 127);
        }
        other => panic!("{other:?}"),
    }
    assert_dies(&agent.pidfd());
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn the_broker_keeps_three_capabilities_and_little_else() {
    if !root() {
        return;
    }
    let broker = Broker::start();
    let read =
        |name: &str| fs::read_to_string(format!("/proc/{}/{name}", broker.pid())).expect("read");
    let status = read("status");
    let line = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
            .expect("a status line")
    };
    // CAP_SETGID 6, CAP_SETUID 7, CAP_SYS_ADMIN 21.
    let kept = format!("{:016x}", 1u64 << 6 | 1 << 7 | 1 << 21);
    assert_eq!(line("CapEff:"), kept);
    assert_eq!(line("CapBnd:"), line("CapPrm:"));
    // CAP_DAC_OVERRIDE 1: permitted only, for the end, where the broker runs in the root of a cgroup hierarchy.
    let permitted = u64::from_str_radix(line("CapPrm:"), 16).expect("a set");
    assert_eq!(permitted & !(1 << 1), 1 << 6 | 1 << 7 | 1 << 21);
    assert_eq!([line("CapInh:"), line("CapAmb:")], ["0000000000000000"; 2]);
    assert_eq!(
        (line("NoNewPrivs:"), line("Seccomp:"), line("Groups:")),
        ("1", "2", "")
    );
    assert_eq!((line("Umask:"), line("Threads:")), ("0077", "1"));
    assert_eq!(read("environ"), "");
    assert_eq!(
        fs::read_link(format!("/proc/{}/cwd", broker.pid()))
            .expect("cwd")
            .as_os_str(),
        "/"
    );
    broker.finish();
}

#[test]
fn the_hierarchies_of_this_host_are_used() {
    if !root() {
        return;
    }
    let broker = Broker::start();
    let layout = Layout::detect(&Roots::default()).expect("layout");
    let v1 = |wanted| {
        layout
            .v1
            .iter()
            .any(|hierarchy| hierarchy.controllers.contains(&wanted))
    };
    let v2 = |wanted| {
        layout
            .unified
            .as_ref()
            .is_some_and(|hierarchy| hierarchy.controllers.contains(&wanted))
    };
    let features = broker.welcome.cgroups;
    if !v2(Controller::Memory) {
        assert_eq!(features.memory, v1(Controller::Memory));
        assert_eq!(features.pids, v1(Controller::Pids));
        assert_eq!(features.cpu, v1(Controller::Cpu));
    }
    assert_eq!(features.unified, layout.unified.is_some());
    broker.finish();
}
