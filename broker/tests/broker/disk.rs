//! The limit of disk: what is over it ends, whatever modes hide it, and so does an agent whose meter is gone.

use crate::harness::{
    Agent, Broker, as_user, assert_dies, folder_of, grant, root, shell, status_file,
};
use crate::user::{USER, as_ordinary_user};
use agentd_broker::protocol::Mode;
use agentd_kernel::grant::Access;
use agentd_kernel::pidfd::PidFd;
use agentd_launch::plan::{DiskLimit, MountFlags};
use agentd_launch::status::{MESSAGE_LEN, OverDisk, Status};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

const MIB: u64 = 1 << 20;

/// A shell with this folder, writable, on /work, and a limit.
fn launch(broker: &mut Broker, folder: &Path, limit: DiskLimit, script: &str) -> (Agent, fs::File) {
    let mut plan = shell(script);
    plan.grant_mount(0, "/work", MountFlags::NONE)
        .disk_limit(limit);
    let report = status_file();
    let owner = folder.metadata().expect("metadata");
    let give = || grant(folder, Access::ReadWrite, "/work");
    let granted = match broker.welcome.mode {
        Mode::Root => as_user(owner.uid(), owner.gid(), give),
        Mode::User => give(),
    };
    let plan = plan.finish().expect("plan");
    let launched = broker
        .client
        .launch(&plan, report.as_fd(), &[granted.as_fd()], (0, 0));
    (Agent::new(launched.expect("launch")), report)
}

fn last_report(file: &fs::File) -> Option<Status> {
    let mut packet = [0; MESSAGE_LEN];
    file.read_exact_at(&mut packet, 0).ok()?;
    Status::decode(&packet)
}

/// The process that the broker started for its agent's limit.
fn meter_of(init: i32) -> PidFd {
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = |status: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix("PPid:"));
        line.map(|l| l.trim().to_owned())
    };
    let broker = parent(&status(&init.to_string())).expect("its parent");
    let found = fs::read_dir("/proc")
        .expect("list")
        .flatten()
        .find_map(|entry| {
            let pid = entry.file_name().into_string().ok()?;
            let text = status(&pid);
            let is_meter = text.starts_with("Name:\tagentd-meter\n") && parent(&text)? == broker;
            is_meter.then(|| pid.parse().ok()).flatten()
        });
    PidFd::open(found.expect("a meter")).expect("pidfd")
}

fn limits_hold(giver: (u32, u32)) {
    let mut broker = Broker::start();
    let folder = folder_of(giver.0, giver.1);
    // What was there does not count.
    fs::write(folder.path().join("old"), vec![1; 8 << 20]).expect("write");
    let limit = DiskLimit {
        bytes: 4 * MIB,
        inodes: 100,
    };

    let below = "head -c 1m /dev/zero > /work/new && echo done; exit 3";
    let (agent, report) = launch(&mut broker, folder.path(), limit, below);
    let (code, stdout, stderr) = agent.output();
    assert_eq!((code, stdout.as_str()), (3, "done\n"), "{stderr}");
    broker.wait_gone(agent.slot);
    assert!(matches!(last_report(&report), Some(Status::Exited { .. })));

    let hidden =
        "mkdir /work/d && head -c 9m /dev/zero > /work/d/f && chmod 000 /work/d; exec sleep 1000";
    let (agent, report) = launch(&mut broker, folder.path(), limit, hidden);
    agent.ready();
    let tree = agent.tree();
    broker.wait_gone(agent.slot);
    for process in tree {
        assert!(process.has_exited().expect("poll"));
    }
    let Some(Status::OverDisk(OverDisk::Bytes { added, limit: said })) = last_report(&report)
    else {
        panic!("no verdict: {:?}", last_report(&report));
    };
    assert!(added > said && said == 4 * MIB, "{added} of {said}");
    let open = fs::Permissions::from_mode(0o700);
    fs::set_permissions(folder.path().join("d"), open).expect("chmod");

    let many = "i=0; while [ $i -lt 300 ]; do : > /work/$i; i=$((i+1)); done; exec sleep 1000";
    let (agent, report) = launch(&mut broker, folder.path(), limit, many);
    agent.ready();
    broker.wait_gone(agent.slot);
    let Some(Status::OverDisk(OverDisk::Inodes { added, limit: 100 })) = last_report(&report)
    else {
        panic!("no verdict: {:?}", last_report(&report));
    };
    assert!(added > 100, "{added}");

    // Without its meter nobody holds the limit.
    let (agent, report) = launch(&mut broker, folder.path(), limit, "exec sleep 1000");
    agent.ready();
    let meter = meter_of(agent.launched.info.pid);
    meter.kill().expect("kill");
    broker.wait_gone(agent.slot);
    assert_eq!(last_report(&report), None);

    // And it goes with the agent.
    let (agent, _) = launch(&mut broker, folder.path(), limit, "exec sleep 1000");
    agent.ready();
    let meter = meter_of(agent.launched.info.pid);
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    assert_dies(&meter);
    broker.finish();
}

#[test]
fn an_agent_over_its_disk_limit_is_ended_and_says_so_in_its_status_file() {
    if root() {
        limits_hold((61_001, 61_101));
    }
}

#[test]
fn an_ordinary_users_agent_over_its_disk_limit_is_ended_too() {
    if as_ordinary_user("disk::an_ordinary_users_agent_over_its_disk_limit_is_ended_too") {
        limits_hold((USER, USER));
    }
}
