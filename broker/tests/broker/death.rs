//! Who survives whom: agents die with their time, never outlive both agentd and the broker, and leave nothing.

use crate::harness::{
    Agent, Broker, WATCHDOG, assert_dies, assert_swept, grant, readable, root, shell, status_file,
    subtrees, wait,
};
use agentd_broker::client;
use agentd_broker::protocol::{Launch, Request};
use agentd_kernel::grant::Access;
use agentd_kernel::pidfd::PidFd;
use agentd_launch::plan::MountFlags;
use std::os::fd::AsFd;
use std::time::Duration;

/// A tree of several processes that ignores every polite signal.
fn stubborn(broker: &mut Broker, grace_ms: u32) -> (Agent, Vec<PidFd>) {
    let script = "trap '' TERM HUP INT PIPE; (sleep 1000 & sleep 1000) & setsid sleep 1000 & echo; while :; do sleep 1000; done";
    let agent = broker.launch(shell(script).lifeline_grace(grace_ms));
    let (_, fds) = agent.ready();
    let mut stdout = std::fs::File::from(fds[1].try_clone().expect("dup"));
    std::io::Read::read_exact(&mut stdout, &mut [0u8]).expect("the tree stands");
    // stdin and stdout go away with agentd, which must not matter; keep them for the test's life.
    std::mem::forget(fds);
    let tree = agent.tree();
    assert!(tree.len() >= 3, "{} processes", tree.len());
    (agent, tree)
}

#[track_caller]
fn assert_all_die(tree: &[PidFd]) {
    tree.iter().for_each(assert_dies);
}

fn any_exited(tree: &[PidFd]) -> bool {
    tree.iter()
        .any(|process| process.has_exited().expect("poll"))
}

fn kill(broker: &mut Broker) {
    broker.process.kill().expect("SIGKILL");
    wait(&mut broker.process);
}

const LONG: u32 = 600_000;

#[test]
fn broker_killed_then_agentd_gone_means_death_at_once() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (_agent, tree) = stubborn(&mut broker, LONG);
    kill(&mut broker);
    assert!(!any_exited(&tree), "one lifeline holds");
    broker.lifeline = None;
    assert_all_die(&tree);
    assert_swept(broker.process.id());
}

#[test]
fn agentd_gone_then_broker_killed_means_death_at_once() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (_agent, tree) = stubborn(&mut broker, LONG);
    let Broker {
        client,
        mut process,
        lifeline,
        ..
    } = broker;
    drop((client, lifeline));
    let pidfd = PidFd::open(process.id() as i32).expect("pidfd");
    assert!(
        !readable(pidfd.as_fd(), Duration::from_millis(100)),
        "the broker waits for the grace"
    );
    assert!(!any_exited(&tree), "one lifeline holds");
    process.kill().expect("SIGKILL");
    wait(&mut process);
    assert_all_die(&tree);
    assert_swept(process.id());
}

#[test]
fn without_grace_one_loss_is_enough() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (_agent, tree) = stubborn(&mut broker, 0);
    kill(&mut broker);
    assert_all_die(&tree);
    assert_swept(broker.process.id());
}

#[test]
fn after_the_grace_the_broker_ends_what_agentd_left_and_itself() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (_short, first) = stubborn(&mut broker, 50);
    let (_long, second) = stubborn(&mut broker, 300);
    let Broker {
        client,
        mut process,
        lifeline,
        ..
    } = broker;
    drop((client, lifeline));
    assert_all_die(&first);
    assert_all_die(&second);
    assert!(wait(&mut process).success());
    assert!(subtrees(process.id()).is_empty());
}

#[test]
fn without_agents_the_broker_ends_with_agentd() {
    if !root() {
        return;
    }
    let Broker {
        client,
        mut process,
        ..
    } = Broker::start();
    drop(client);
    assert!(wait(&mut process).success());
    assert!(subtrees(process.id()).is_empty());
}

#[test]
fn sigterm_ends_everything_at_once_and_leaves_nothing() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (_first, mut tree) = stubborn(&mut broker, LONG);
    let (_second, more) = stubborn(&mut broker, LONG);
    tree.extend(more);
    let pidfd = PidFd::open(broker.pid()).expect("pidfd");
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::HUP).expect("SIGHUP");
    broker
        .client
        .stat(agentd_broker::protocol::Slot(1))
        .expect("a hang-up changes nothing");
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::TERM).expect("SIGTERM");
    assert_all_die(&tree);
    assert!(wait(&mut broker.process).success());
    assert!(subtrees(broker.process.id()).is_empty());
}

#[test]
fn an_init_killed_from_outside_takes_its_tree_along() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (agent, tree) = stubborn(&mut broker, LONG);
    agent.pidfd().kill().expect("SIGKILL");
    let gone = broker.wait_gone(agent.slot);
    assert_eq!(gone.wait_status, Some(libc::SIGKILL));
    for process in tree {
        assert!(
            process.has_exited().expect("poll"),
            "gone means the whole tree"
        );
    }
    broker.finish();
}

#[test]
fn a_program_that_ends_takes_what_it_started_along() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let agent = broker.launch(&shell("setsid sleep 1000 & sleep 1000 & exit 3"));
    agent.ready();
    assert_eq!(agent.exited(), 3 << 8);
    assert!(readable(agent.launched.pidfd.as_fd(), WATCHDOG));
    broker.wait_gone(agent.slot);
    broker.finish();
}

/// Runs in a process of its own that adopts orphans, so that whatever a killed broker leaves becomes its child.
#[test]
fn a_broker_killed_at_any_point_of_a_launch_leaves_no_process() {
    const NAME: &str = "death::a_broker_killed_at_any_point_of_a_launch_leaves_no_process";
    const MARK: &str = "BROKER_TEST_ADOPTS";
    if !root() {
        return;
    }
    if std::env::var_os(MARK).is_none() {
        let mut command = std::process::Command::new(std::env::current_exe().expect("own path"));
        let output = command
            .args([NAME, "--exact", "--nocapture"])
            .env(MARK, "1")
            .output()
            .expect("run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {text}", output.status);
        return;
    }
    // SAFETY: numbers only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1), 0);
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let mut brokers = Vec::new();
    let mut reaped = 0;
    let mut round = 0u64;
    // On a busy machine the first sixty may all be over before a launch begins: the next ones take more time.
    while round < 60 || (reaped <= brokers.len() && round < 600) {
        // SAFETY: a number. The alarm ends this process, and so fails the test, if a process is left for ever.
        unsafe { libc::alarm(WATCHDOG.as_secs() as u32) };
        let mut broker = Broker::start();
        brokers.push(broker.process.id());
        let mut plan = shell("trap '' TERM; setsid sleep 1000 & sleep 1000");
        plan.lifeline_grace(LONG)
            .grant_mount(0, "/work", MountFlags::NONE);
        let plan = plan.finish().expect("plan");
        let memfd = client::seal_plan(&plan).expect("seal");
        let launch = Launch {
            plan_len: plan.len() as u32,
            grants: 1,
            caller_uid: 0,
            caller_gid: 0,
        };
        let file = status_file();
        for id in 1..4 {
            let given = grant(folder.path(), Access::ReadWrite, "/work");
            let fds = [memfd.as_fd(), file.as_fd(), given.as_fd()];
            client::try_send(broker.client.as_fd(), id, &Request::Launch(launch), &fds)
                .expect("send");
        }
        // Anywhere between before the first launch and after the last.
        let longest = 20_000 * (1 + round / 60);
        std::thread::sleep(Duration::from_micros(round * 7919 % longest));
        round += 1;
        broker.process.kill().expect("SIGKILL");
        drop(broker);
        // SAFETY: waitpid with a null status; ends when no child is left.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {
            reaped += 1;
        }
    }
    assert!(
        reaped > brokers.len(),
        "no round left an orphan: nothing was tested"
    );
    // SAFETY: a number: none.
    unsafe { libc::alarm(0) };
    brokers.into_iter().for_each(assert_swept);
}
