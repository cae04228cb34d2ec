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
