//! The broker's own program is replaced, and service managers that supervise instead of it.

use super::*;

/// Copies the broker's program by a process of its own: what this one has open for writing, a child that another test's thread
/// has just forked has open, too, and nobody can execute it until that child's exec (ETXTBSY).
fn put_program(to: &std::path::Path) {
    let mut copy = std::process::Command::new("cp");
    copy.args(["--preserve=mode", "--"]).arg(broker_program());
    assert!(copy.arg(to).status().expect("cp runs").success());
}

#[test]
fn the_program_is_replaced_under_living_agents() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let program = folder.path().join("agentd-broker");
    let install = || {
        let new = folder.path().join("new");
        put_program(&new);
        std::fs::rename(&new, &program).expect("rename");
    };
    install();
    let served = Served::start_from(program.clone(), &[]);
    let mut agentd = served.greet();
    let agent = agentd.launch(ECHO, LONG, &tempfile::tempfile().expect("file"));
    let (_, fds) = agent.ready();
    install();
    let worker = PidFd::open(agentd.welcome.pid).expect("pidfd");
    let supervisor = PidFd::open(served.process.id() as i32).expect("pidfd");
    rustix::process::pidfd_send_signal(&supervisor, Signal::USR2).expect("SIGUSR2");
    assert_dies(&worker);
    let mut agentd = served.greet();
    agentd.adopt(&agent, &[]).expect("adopt");
    agentd.renew(agent.launched.status.as_fd());
    let exe = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).expect("exe");
    assert_eq!(exe(agentd.welcome.pid), program, "the new one");
    assert_eq!(exe(served.process.id() as i32), program);
    answers(&fds[0], &fds[1], "upgraded");
    agentd.client.shutdown().expect("shutdown");
    served.finish();
}

#[test]
fn an_upgrade_that_cannot_be_executed_changes_nothing() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let program = folder.path().join("agentd-broker");
    put_program(&program);
    let served = Served::start_from(program.clone(), &[]);
    let mut agentd = served.greet();
    let agent = agentd.launch(ECHO, LONG, &tempfile::tempfile().expect("file"));
    let (_, fds) = agent.ready();
    std::fs::remove_file(&program).expect("remove");
    let worker = PidFd::open(agentd.welcome.pid).expect("pidfd");
    let supervisor = PidFd::open(served.process.id() as i32).expect("pidfd");
    rustix::process::pidfd_send_signal(&supervisor, Signal::USR2).expect("SIGUSR2");
    assert_dies(&worker);
    let mut agentd = served.greet();
    agentd.adopt(&agent, &[]).expect("adopt");
    answers(&fds[0], &fds[1], "as before");
    agentd.client.shutdown().expect("shutdown");
    served.finish();
}

/// Runs in a process of its own that adopts orphans, as a service manager does.
#[test]
fn a_service_manager_may_supervise_instead() {
    const NAME: &str = "succession::a_service_manager_may_supervise_instead";
    const MARK: &str = "BROKER_TEST_SERVICE_MANAGER";
    if !root() {
        return;
    }
    if std::env::var_os(MARK).is_none() {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        let output = command
            .args([NAME, "--exact", "--nocapture"])
            .env(MARK, "1")
            .output()
            .expect("run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {text}", output.status);
        return;
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("subreaper");
    let layout = agentd_kernel::cgroup::Layout::detect(&agentd_kernel::probe::Roots::default());
    let unified = layout.expect("layout").unified;
    let delegated = unified.map(|at| at.own.join(format!("broker-test-{}", std::process::id())));
    let mut arguments: Vec<OsString> = vec!["--no-supervisor".into(), "--keep-agents".into()];
    if let Some(path) = &delegated {
        arguments.extend(["--cgroup".into(), path.clone().into()]);
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("broker.sock");
    let socket = client::bind(&path).expect("bind");
    let start = || {
        let socket = socket.try_clone().expect("dup");
        client::start_listening(&broker_program(), &arguments, socket).expect("start")
    };
    let process = start();
    let mut served = Served { folder, process };
    let mut agentd = served.greet();
    assert_eq!(agentd.welcome.mode, Mode::Root);
    assert_eq!(
        agentd.welcome.pid,
        served.process.id() as i32,
        "one process"
    );
    let agent = agentd.launch(ECHO, LONG, &tempfile::tempfile().expect("file"));
    let (_, fds) = agent.ready();
    if let Some(path) = &delegated {
        let at = path.join(format!("agent-{}", agent.slot));
        assert_eq!(
            agent.launched.info.cgroup_path,
            at.as_os_str().as_encoded_bytes()
        );
    }
    for signal in [Signal::TERM, Signal::KILL] {
        let broker = PidFd::open(agentd.welcome.pid).expect("pidfd");
        rustix::process::pidfd_send_signal(&broker, signal).expect("signal");
        let status = wait(&mut served.process);
        assert_eq!(status.success(), signal == Signal::TERM, "{status:?}");
        answers(&fds[0], &fds[1], "alive");
        served.process = start();
        let _before = std::mem::replace(&mut agentd, served.greet());
        agentd.adopt(&agent, &[]).expect("adopt");
        agentd.renew(agent.launched.status.as_fd());
    }
    let info = &agent.launched.info;
    assert_eq!(
        &agentd
            .client
            .next_held(None)
            .expect("next")
            .expect("one")
            .info,
        info
    );
    agentd.client.kill(agent.slot).expect("kill");
    assert_dies(&agent.pidfd());
    // The exit status is this process's to reap.
    rustix::process::waitpid(
        rustix::process::Pid::from_raw(info.pid),
        rustix::process::WaitOptions::empty(),
    )
    .expect("reap");
    told(libc::SIGKILL, agentd.end(agent.slot));
    drop(agentd);
    assert!(wait(&mut served.process).success());
    if let Some(path) = &delegated {
        assert_eq!(
            std::fs::read_dir(path)
                .expect("stays")
                .filter(|e| { e.as_ref().is_ok_and(|e| e.path().is_dir()) })
                .count(),
            0
        );
        std::fs::remove_dir(path).expect("remove");
    }
}
