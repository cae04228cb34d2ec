//! Limits hold: what goes over them is refused or killed inside the sandbox, and nowhere else.

use crate::harness::{Agent, Broker, assert_refused, root, shell};
use crate::skip::skip;
use agentd_broker::protocol::{ErrorCode, Limits};
use agentd_kernel::cgroup::Layout;
use agentd_kernel::probe::Roots;
use agentd_launch::layers::LAYER_CGROUP_LIMITS;
use agentd_launch::plan::CgroupLimits;
use std::path::Path;

#[test]
fn a_program_over_its_memory_limit_is_killed() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    if !broker.welcome.cgroups.memory {
        return skip("cgroup-memory", "no memory controller");
    }
    let limits = CgroupLimits {
        memory_max_bytes: 48 << 20,
        required: true,
        ..CgroupLimits::default()
    };
    // tail keeps all of a stream without newlines in memory.
    let agent = broker.launch(
        shell("head -c 300m /dev/zero | tail -c 300m | wc -c; echo survived").cgroup(limits),
    );
    assert_ne!(agent.launched.info.layers & LAYER_CGROUP_LIMITS, 0);
    let (_, stdout, _) = agent.output();
    assert_eq!(
        stdout, "0\nsurvived\n",
        "tail was killed, the shell was not"
    );
    let gone = broker.wait_gone(agent.slot);
    assert!(gone.stats.oom_kills.expect("oom kills") >= 1, "{gone:?}");
    assert!(
        gone.stats.memory_peak.is_none_or(|peak| peak <= 48 << 20),
        "{gone:?}"
    );
    broker.finish();
}

#[test]
fn a_program_over_its_process_limit_cannot_fork() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    if !broker.welcome.cgroups.pids {
        return skip("cgroup-pids", "no pids controller");
    }
    let limits = CgroupLimits {
        pids_max: 10,
        required: true,
        ..CgroupLimits::default()
    };
    let script = "n=0; while [ $n -lt 50 ]; do sleep 1000 & n=$((n+1)); done; echo all";
    let agent = broker.launch(shell(script).cgroup(limits));
    let (code, stdout, stderr) = agent.output();
    assert!(code != 0 && stdout.is_empty(), "{stdout}{stderr}");
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn a_processor_quota_is_set() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    if !broker.welcome.cgroups.cpu {
        return skip("cgroup-cpu", "no cpu controller");
    }
    let limits = CgroupLimits {
        cpu_quota_us: 20_000,
        cpu_period_us: 100_000,
        required: true,
        ..CgroupLimits::default()
    };
    let agent = broker.launch(shell("while :; do :; done").cgroup(limits));
    agent.ready();
    // 0.3 s of processor time at a fifth of one processor take 1.5 s; a period more or less at both ends.
    let begin = std::time::Instant::now();
    let used = |broker: &mut Broker| {
        broker
            .client
            .stat(agent.slot)
            .expect("stat")
            .cpu_usage_us
            .expect("cpu time")
    };
    let first = used(&mut broker);
    while used(&mut broker) < first + 300_000 {
        std::thread::yield_now();
    }
    assert!(
        begin.elapsed().as_millis() >= 1_000,
        "{:?}",
        begin.elapsed()
    );
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    broker.finish();
}

/// The first word of a control file of the agent's cgroup, in whichever hierarchy has the controller.
fn held(broker: &Broker, agent: &Agent, v1: &str, v2: &str) -> String {
    let group = format!("agentd-{}/agent-{}", broker.pid(), agent.slot);
    let layout = Layout::detect(&Roots::default()).expect("layout");
    let hierarchies = layout.v1.iter();
    let v1 = hierarchies.map(|hierarchy| hierarchy.own.join(&group).join(v1));
    let unified = String::from_utf8_lossy(&agent.launched.info.cgroup_path).into_owned();
    let mut files = v1.chain([Path::new(&unified).join(v2)]);
    let text = files.find_map(|file| std::fs::read_to_string(file).ok());
    let text = text.expect("a hierarchy has the controller");
    text.split_whitespace().next().expect("a value").to_owned()
}

#[test]
fn a_running_agent_is_held_to_less_and_to_what_it_had_again() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let has = broker.welcome.cgroups;
    if !(has.memory && has.pids && has.cpu) {
        return skip("cgroup-memory", "no memory, pids or cpu controller");
    }
    let launched = CgroupLimits {
        memory_max_bytes: 256 << 20,
        pids_max: 64,
        required: true,
        ..CgroupLimits::default()
    };
    let agent = broker.launch(shell("exec sleep 1000").cgroup(launched));
    agent.ready();
    let all = |broker: &Broker| {
        [
            held(broker, &agent, "memory.limit_in_bytes", "memory.max"),
            held(broker, &agent, "pids.max", "pids.max"),
            held(broker, &agent, "cpu.cfs_quota_us", "cpu.max"),
        ]
    };
    let before = all(&broker);
    assert_eq!(before[..2], ["268435456", "64"]);
    let own = Limits {
        memory_max_bytes: 256 << 20,
        pids_max: 64,
        ..Limits::default()
    };
    let less = Limits {
        memory_max_bytes: 64 << 20,
        pids_max: 20,
        cpu_quota_us: 50_000,
        cpu_period_us: 100_000,
    };
    broker.client.limit(agent.slot, less).expect("less");
    assert_eq!(all(&broker), ["67108864", "20", "50000"]);
    broker.client.limit(agent.slot, own).expect("as before");
    assert_eq!(all(&broker), before);
    let nothing = Limits::default();
    broker.client.limit(agent.slot, nothing).expect("no limit");
    let unlimited = all(&broker);
    assert_eq!(unlimited[1], "max");
    assert_ne!(unlimited[0], before[0]);
    broker.client.kill(agent.slot).expect("kill");
    let gone = broker.client.next_gone().expect("gone");
    assert_eq!(gone.slot, agent.slot);
    let refused = broker.client.limit(agent.slot, less);
    assert_refused(refused, ErrorCode::NoSuchSlot);
    broker.client.release(agent.slot).expect("release");
    broker.finish();
}

#[test]
fn memory_below_what_is_used_is_refused_by_version_1_and_taken_by_the_oom_killer_in_cgroup2() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    if !broker.welcome.cgroups.memory {
        return skip("cgroup-memory", "no memory controller");
    }
    // tail keeps all of it until the end, which does not come.
    let agent = broker.launch(&shell(
        "(head -c 64m /dev/zero; exec sleep 1000) | tail -c 64m >/dev/null; exec sleep 1000",
    ));
    agent.ready();
    let stat = |broker: &mut Broker| broker.client.stat(agent.slot).expect("stat");
    while stat(&mut broker).memory_current < Some(64 << 20) {
        std::thread::yield_now();
    }
    let limits = Limits {
        memory_max_bytes: 16 << 20,
        ..Limits::default()
    };
    let is_v1 = !Path::new(&*String::from_utf8_lossy(&agent.launched.info.cgroup_path))
        .join("memory.max")
        .exists();
    let lowered = broker.client.limit(agent.slot, limits);
    if is_v1 {
        let text = assert_refused(lowered, ErrorCode::CgroupLimits);
        assert!(text.contains("bytes of memory"), "{text}");
        assert_eq!(stat(&mut broker).oom_kills, Some(0));
    } else {
        lowered.expect("the kernel makes room");
        while stat(&mut broker).oom_kills == Some(0) {
            std::thread::yield_now();
        }
    }
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn a_limit_that_the_kernel_refuses_refuses_the_launch() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    if !broker.welcome.cgroups.cpu {
        return skip("cgroup-cpu", "no cpu controller");
    }
    let limits = CgroupLimits {
        cpu_quota_us: 1,
        cpu_period_us: 1,
        ..CgroupLimits::default()
    };
    let refused = broker.try_launch(shell("true").cgroup(limits), &[]);
    let text = assert_refused(refused, ErrorCode::CgroupLimits);
    assert!(text.contains("cpu"), "{text}");
    broker.finish();
}

#[test]
fn a_devices_controller_lets_open_what_every_sandbox_has_and_what_was_granted() {
    use agentd_kernel::grant::{self, Access, Kind, Uses};
    use agentd_launch::plan::MountFlags;
    use std::os::fd::AsFd;
    if !root() {
        return;
    }
    let layout = agentd_kernel::cgroup::Layout::detect(&agentd_kernel::probe::Roots::default());
    let hierarchies = layout.expect("layout").v1;
    let devices = hierarchies.iter().find(|hierarchy| {
        hierarchy.own.ends_with("devices") || hierarchy.own.to_string_lossy().contains("/devices/")
    });
    let Some(devices) = devices else {
        return skip("cgroup-devices", "no version 1 devices controller");
    };
    let node = std::path::Path::new("/dev/kmsg");
    if !node.exists() {
        return skip("dev-kmsg", "there is no /dev/kmsg to grant");
    }
    let mut broker = Broker::start();
    let object = grant::open(node, Kind::Device, Access::ReadOnly).expect("open");
    let granted = grant::send(object.as_fd(), Access::ReadOnly, node, Uses::Once).expect("grant");
    let mut plan = shell("echo > /dev/null && head -c 1 /dev/urandom | wc -c; cat");
    plan.grant_mount(0, "/dev/kmsg", MountFlags::RDONLY | MountFlags::DEVICE);
    let agent = broker.launch_with(&plan, &[granted]);
    let group = format!("agentd-{}/agent-{}/devices.list", broker.pid(), agent.slot);
    let list = std::fs::read_to_string(devices.own.join(group)).expect("devices.list");
    let mut rules: Vec<&str> = list.lines().collect();
    rules.sort_unstable();
    assert_eq!(
        rules,
        [
            "c 136:* rw",
            "c 1:11 rw",
            "c 1:3 rw",
            "c 1:5 rw",
            "c 1:7 rw",
            "c 1:8 rw",
            "c 1:9 rw",
            "c 5:0 rw",
            "c 5:2 rw"
        ]
    );
    assert_eq!(agent.output().1, "1\n");
    broker.wait_gone(agent.slot);
    broker.finish();
}
