//! User mode: the tests in `inner` run in a second process of this test binary, as an ordinary user.

use crate::harness::{
    Broker, assert_refused, broker_program, folder_of, grant, plan_as, root, shell, subtrees,
};
use agentd_broker::protocol::{ErrorCode, Mode};
use agentd_kernel::grant::Access;
use agentd_launch::layers::{LAYER_IDMAP, LAYERS_FLOOR};
use agentd_launch::plan::{CgroupLimits, MountFlags};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

pub const USER: u32 = 61_003;
const MARK: &str = "BROKER_TEST_USER";

/// True in the second process; in the first, runs `test` there and fails if it fails.
pub fn as_ordinary_user(test: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    if !root() {
        return false;
    }
    // Where the binaries were built may be closed to other users.
    let folder = tempfile::tempdir().expect("tempdir");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = |from: std::path::PathBuf, name: &str| {
        let to = folder.path().join(name);
        fs::copy(from, &to).expect("copy a binary");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("chmod");
        to
    };
    let program = copy(broker_program(), "agentd-broker");
    let tests = copy(std::env::current_exe().expect("own path"), "tests");
    let mut command = Command::new(tests);
    command
        .args([test, "--exact", "--nocapture"])
        .env(MARK, "1")
        .env("BROKER_TEST_PROGRAM", program);
    // SAFETY: three raw calls with numbers and a null list of length 0, between fork and exec; all async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            let results = [
                libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
                libc::syscall(libc::SYS_setresgid, USER, USER, USER),
                libc::syscall(libc::SYS_setresuid, USER, USER, USER),
            ];
            if results == [0; 3] {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let output = command
        .current_dir("/")
        .output()
        .expect("run the tests as a user");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(stdout.contains("1 passed"), "{stdout}");
    false
}

#[test]
fn an_ordinary_user_launches_agents() {
    if !as_ordinary_user("user::an_ordinary_user_launches_agents") {
        return;
    }
    let mut broker = Broker::start();
    assert_eq!(broker.welcome.mode, Mode::User);
    let folder = folder_of(USER, USER);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
    let mut plan = shell("id -u; cd /work && echo hello > file; exit 7");
    plan.grant_mount(0, "/work", MountFlags::NONE);
    let agent = broker.launch_with(&plan, &[grant(folder.path(), Access::ReadWrite, "/work")]);
    let info = &agent.launched.info;
    assert_eq!(
        (info.host_uid, info.caller_uid, info.layers & LAYER_IDMAP),
        (USER, USER, 0)
    );
    let (code, stdout, stderr) = agent.output();
    assert_eq!((code, stdout), (7, format!("{USER}\n")), "{stderr}");
    let metadata = fs::metadata(folder.path().join("file")).expect("the agent's file");
    assert_eq!((metadata.uid(), metadata.gid()), (USER, USER));
    broker.wait_gone(agent.slot);

    let agent = broker.launch(&plan_as(
        agentd_launch::plan::Mode::User,
        (USER, USER),
        &["sleep", "1000"],
    ));
    let (layers, _fds) = agent.ready();
    assert_eq!(layers & LAYERS_FLOOR, LAYERS_FLOOR);
    let tree = agent.tree();
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    for process in tree {
        assert!(process.has_exited().expect("poll"));
    }
    broker.finish();
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    if !as_ordinary_user("user::an_ordinary_user_is_told_what_is_missing") {
        return;
    }
    let mut broker = Broker::start();
    let limits = CgroupLimits {
        pids_max: 10,
        required: true,
        ..CgroupLimits::default()
    };
    if !broker.welcome.cgroups.pids {
        let text = assert_refused(
            broker.try_launch(shell("true").cgroup(limits), &[]),
            ErrorCode::CgroupLimits,
        );
        assert!(text.contains("pids"), "{text}");
        assert!(subtrees(broker.process.id()).is_empty());
    }
    let optional = CgroupLimits {
        required: false,
        ..limits
    };
    let agent = broker.launch(shell("true").cgroup(optional));
    assert_eq!(agent.output().0, 0);
    broker.wait_gone(agent.slot);
    let text = assert_refused(
        broker.try_launch(shell("true").require(LAYER_IDMAP), &[]),
        ErrorCode::Unsupported,
    );
    assert!(text.contains("idmap"), "{text}");
    broker.finish();
}

#[test]
fn an_ordinary_users_plan_keeps_the_floor() {
    if !as_ordinary_user("user::an_ordinary_users_plan_keeps_the_floor") {
        return;
    }
    let mut broker = Broker::start();
    let mut refuse = |plan: &agentd_launch::plan::PlanBuilder| {
        assert_refused(broker.try_launch(plan, &[]), ErrorCode::Floor)
    };
    refuse(shell("true").bind("/tmp", "/mnt", MountFlags::NONE));
    refuse(&plan_as(
        agentd_launch::plan::Mode::User,
        (0, USER),
        &["true"],
    ));
    refuse(&plan_as(
        agentd_launch::plan::Mode::Root,
        (USER, USER),
        &["true"],
    ));
    broker.finish();
}

#[test]
fn an_ordinary_users_agents_die_with_their_lifelines() {
    if !as_ordinary_user("user::an_ordinary_users_agents_die_with_their_lifelines") {
        return;
    }
    let mut broker = Broker::start();
    let agent = broker.launch(
        shell("trap '' TERM; setsid sleep 1000 & while :; do sleep 1000; done")
            .lifeline_grace(600_000),
    );
    let (_, _fds) = agent.ready();
    let tree = agent.tree();
    broker.process.kill().expect("SIGKILL");
    crate::harness::wait(&mut broker.process);
    assert!(
        !tree
            .iter()
            .any(|process| process.has_exited().expect("poll")),
        "one lifeline holds"
    );
    broker.lifeline = None;
    tree.iter().for_each(crate::harness::assert_dies);
}

#[test]
fn an_ordinary_users_agents_wait_for_the_next_agentd() {
    if !as_ordinary_user("user::an_ordinary_users_agents_wait_for_the_next_agentd") {
        return;
    }
    crate::succession::agents_wait_for_the_next_agentd();
}

#[test]
fn an_ordinary_users_agents_are_adopted() {
    if !as_ordinary_user("user::an_ordinary_users_agents_are_adopted") {
        return;
    }
    crate::succession::a_successor_adopts();
}

#[test]
fn an_ordinary_users_own_processes_are_no_agents() {
    if !as_ordinary_user("user::an_ordinary_users_own_processes_are_no_agents") {
        return;
    }
    crate::succession::strangers_are_not_adopted();
}

#[test]
fn an_ordinary_user_keeps_names_from_an_agent_and_has_them_back() {
    if !as_ordinary_user("user::an_ordinary_user_keeps_names_from_an_agent_and_has_them_back") {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(USER, USER);
    let placed = MountFlags::OPTIONAL | MountFlags::PLACEHOLDER;
    let mut plan =
        shell("cd /work; echo x > .envrc; rm -f .envrc; mkdir .vscode/x; echo x > .env; ls -A");
    plan.grant_mount(0, "/work", MountFlags::NONE)
        .protect("/work/.envrc", placed)
        .protect("/work/.vscode", placed | MountFlags::FOLDER)
        .mask("/work/.env", placed);
    let agent = broker.launch_with(&plan, &[grant(folder.path(), Access::ReadWrite, "/work")]);
    let (_, stdout, stderr) = agent.output();
    assert_eq!(stdout, ".env\n.envrc\n.vscode\n", "{stderr}");
    broker.wait_gone(agent.slot);
    assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
    broker.finish();
}
