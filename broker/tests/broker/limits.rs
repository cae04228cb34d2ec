//! Limits hold: what goes over them is refused or killed inside the sandbox, and nowhere else.

use crate::harness::{Broker, root, shell};
use crate::skip::skip;
use agentd_launch::layers::LAYER_CGROUP_LIMITS;
use agentd_launch::plan::CgroupLimits;

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
    let text =
        crate::harness::assert_refused(refused, agentd_broker::protocol::ErrorCode::CgroupLimits);
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
