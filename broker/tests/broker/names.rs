//! Names that a plan keeps from an agent before anything has them: what the agent finds, and what is left on the host.

use crate::harness::*;
use agentd_broker::client::{self, BrokerClient};
use agentd_broker::protocol::ErrorCode;
use agentd_kernel::grant::{Access, Uses};
use agentd_kernel::pidfd::PidFd;
use agentd_launch::plan::{MountFlags, PlanBuilder};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const GIVER: (u32, u32) = (1000, 1000);

/// A workspace of the giver's with a repository in it, and a grant of it.
fn workspace() -> (tempfile::TempDir, OwnedFd) {
    let folder = folder_of(GIVER.0, GIVER.1);
    let give = || {
        fs::create_dir(folder.path().join(".git")).expect("mkdir");
        agentd_kernel::grant::send(
            open_dir(folder.path()).as_fd(),
            Access::ReadWrite,
            Path::new("/work"),
            Uses::Once,
        )
        .expect("grant")
    };
    let grant = as_user(GIVER.0, GIVER.1, give);
    (folder, grant)
}

fn keeping(script: &str) -> PlanBuilder {
    let placed = MountFlags::OPTIONAL | MountFlags::PLACEHOLDER;
    let mut plan = shell(script);
    plan.grant_mount(0, "/work", MountFlags::NONE)
        .protect("/work/.envrc", placed)
        .protect("/work/.vscode", placed | MountFlags::FOLDER)
        .protect("/work/.git/config", placed)
        .protect("/work/absent/name", placed)
        .mask("/work/.env", placed);
    plan
}

fn list(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder)
        .expect("list")
        .map(|entry| entry.expect("entry"));
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn names_are_kept_while_the_sandbox_lives_and_not_after() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (folder, grant) = workspace();
    let script = "exec 2> /dev/null; cd /work; echo x > .envrc; mv .git .g; echo x > .vscode/tasks; echo x > .git/config; mv .git/config .git/c; \
        echo x > .env; cat .env; rm -rf .envrc .vscode .env; ls -A . .git; mkdir absent && echo fine > absent/name";
    let agent = broker.launch_with(&keeping(script), &[grant]);
    let (_, fds) = agent.ready();
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds).expect("pipes");
    drop((stdin, stderr));
    assert_eq!(
        read(stdout),
        ".:\n.env\n.envrc\n.git\n.vscode\n\n.git:\nconfig\n"
    );
    agent.exited();
    broker.wait_gone(agent.slot);
    assert_eq!(list(folder.path()), [".git", "absent"]);
    assert_eq!(list(&folder.path().join(".git")), Vec::<String>::new());
    broker.finish();
}

#[test]
fn a_placeholder_belongs_to_the_giver_and_what_is_made_of_it_stays() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (folder, grant) = workspace();
    let path = |name: &str| folder.path().join(name);
    let agent = broker.launch_with(&keeping("cat"), &[grant]);
    let (_, fds) = agent.ready();
    for name in [".envrc", ".vscode", ".env", ".git/config"] {
        let found = fs::symlink_metadata(path(name)).expect(name);
        assert_eq!((found.uid(), found.gid()), GIVER, "{name}");
    }
    fs::write(path(".envrc"), "written by the user").expect("write");
    fs::write(path("new"), "").expect("write");
    fs::rename(path("new"), path(".env")).expect("replace");
    drop(fds);
    agent.exited();
    broker.wait_gone(agent.slot);
    assert_eq!(list(folder.path()), [".env", ".envrc", ".git"]);
    assert_eq!(
        fs::read_to_string(path(".envrc")).expect("read"),
        "written by the user"
    );
    broker.finish();
}

#[test]
fn a_launch_that_fails_leaves_no_placeholder() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (folder, grant) = workspace();
    let mut plan = keeping("true");
    plan.bind("/no/such/source", "/x", MountFlags::RDONLY);
    assert_refused(broker.try_launch(&plan, &[grant]), ErrorCode::Floor);
    assert_eq!(list(folder.path()), [".git"]);
    broker.finish();
}

#[test]
fn the_next_broker_removes_what_a_killed_one_left() {
    if !root() {
        return;
    }
    let notes = tempfile::tempdir().expect("tempdir");
    let notes = notes.path().join("notes");
    let (folder, grant) = workspace();
    let runtime = tempfile::tempdir().expect("tempdir");
    let serve = |name: &str| {
        let path = runtime.path().join(name);
        let arguments = ["--notes".into(), notes.clone().into_os_string()];
        let socket = client::bind(&path).expect("bind");
        let process =
            client::start_listening(&broker_program(), &arguments, socket).expect("start");
        let (read_end, lifeline) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let mut client = BrokerClient::new(client::connect(&path).expect("connect"));
        client.hello(read_end.as_fd()).expect("hello");
        (process, client, lifeline)
    };
    let (mut supervisor, mut client, lifeline) = serve("first.sock");
    let plan = keeping("cat").finish().expect("plan");
    let launched = client
        .launch(&plan, status_file().as_fd(), &[grant.as_fd()], (0, 0))
        .expect("launch");
    let agent = Agent::new(launched);
    let (_, fds) = agent.ready();
    let agents_init = agent.pidfd();
    assert_eq!(list(folder.path()), [".env", ".envrc", ".git", ".vscode"]);
    assert_eq!(list(&notes).len(), 1);

    // While the sandbox lives its note is locked, whoever comes.
    let (mut second, client_of_second, _lifeline) = serve("second.sock");
    assert_eq!(list(folder.path()), [".env", ".envrc", ".git", ".vscode"]);
    client_of_second.shutdown().expect("shutdown");
    wait(&mut second);

    // Supervisor and worker die at once, and with them and agentd's lifeline the sandbox.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", supervisor.id()))
        .expect("children");
    // Held before the supervisor dies: from then on somebody else may reap them.
    let children: Vec<PidFd> = children
        .split_whitespace()
        .map(|child| PidFd::open(child.parse().expect("a pid")).expect("pidfd"))
        .collect();
    supervisor.kill().expect("kill");
    for child in &children {
        child.kill().expect("kill");
    }
    drop((lifeline, client, fds));
    wait(&mut supervisor);
    children.iter().for_each(assert_dies);
    assert_dies(&agents_init);

    let (mut third, client, _lifeline) = serve("third.sock");
    assert_eq!(list(folder.path()), [".git"]);
    assert!(!notes.exists(), "the folder goes with the last note");
    client.shutdown().expect("shutdown");
    wait(&mut third);
}
