//! Who takes over from whom: the next agentd from the broker, the next worker from agentd, and nobody from a liar.

mod upgrade;

use crate::harness::{
    Agent, Broker, WATCHDOG, assert_dies, assert_refused, broker_program, plan, readable, root,
    shell, subtrees, wait,
};
use agentd_broker::client::{self, BrokerClient, ClientError, HeldAgent};
use agentd_broker::protocol::{
    ErrorCode, HeldState, Launched, MAX_KEPT, Mode, RESERVED_ID_BASE, Request, Slot, Welcome,
};
use agentd_kernel::fdpass;
use agentd_kernel::pidfd::{ExitStatus, PidFd};
use agentd_launch::plan::PlanBuilder;
use agentd_launch::status::{Control, Lifeline, MESSAGE_LEN, Status};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command};

const LONG: u32 = 600_000;

/// A broker on a listening socket, and a way to be its client again.
pub struct Served {
    folder: tempfile::TempDir,
    /// The supervisor.
    pub process: Child,
}

impl Served {
    pub fn start() -> Self {
        Self::start_from(broker_program(), &[])
    }

    fn start_from(program: PathBuf, arguments: &[OsString]) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let socket = client::bind(&folder.path().join("broker.sock")).expect("bind");
        let process = client::start_listening(&program, arguments, socket).expect("start");
        Self { folder, process }
    }

    fn connect(&self) -> OwnedFd {
        let socket = client::connect(&self.folder.path().join("broker.sock")).expect("connect");
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(WATCHDOG))
            .expect("SO_RCVTIMEO");
        socket
    }

    /// A new agentd.
    pub fn greet(&self) -> Agentd {
        let (lifeline_read, lifeline) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let mut client = BrokerClient::new(self.connect());
        let welcome = client.hello(lifeline_read.as_fd()).expect("hello");
        Agentd {
            client,
            lifeline_read,
            _lifeline: lifeline,
            welcome,
        }
    }

    /// Checks that the supervisor ends by itself and leaves nothing.
    pub fn finish(mut self) {
        assert!(wait(&mut self.process).success(), "the supervisor exits 0");
        assert_eq!(subtrees(self.process.id()), Vec::<PathBuf>::new());
    }
}

/// One agentd after another.
pub struct Agentd {
    pub client: BrokerClient,
    lifeline_read: OwnedFd,
    _lifeline: OwnedFd,
    pub welcome: Welcome,
}

impl Agentd {
    fn launch(&mut self, script: &str, grace_ms: u32, file: &File) -> Agent {
        self.launch_plan(shell(script), grace_ms, file)
    }

    pub fn launch_plan(&mut self, mut plan: PlanBuilder, grace_ms: u32, file: &File) -> Agent {
        let plan = plan.lifeline_grace(grace_ms).finish().expect("plan");
        let launched = self.client.launch(&plan, file.as_fd(), &[], (0, 0));
        Agent::new(launched.expect("launch"))
    }

    fn renew(&self, status: BorrowedFd<'_>) {
        let packet = Control::Lifeline {
            which: Lifeline::Agentd,
        };
        fdpass::send(status, &packet.encode(), &[self.lifeline_read.as_fd()]).expect("renew");
    }

    pub fn adopt(&mut self, agent: &Agent, kept: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let launched = &agent.launched;
        let (pidfd, status) = (launched.pidfd.as_fd(), launched.status.as_fd());
        self.client
            .adopt(launched.info.clone(), pidfd, status, kept)
    }

    fn end(&mut self, slot: Slot) -> Option<i32> {
        let gone = self.client.next_gone().expect("gone");
        assert_eq!(gone.slot, slot);
        self.client.release(slot).expect("release");
        gone.wait_status
    }

    pub fn kill_worker(&self) {
        let pidfd = PidFd::open(self.welcome.pid).expect("pidfd");
        pidfd.kill().expect("SIGKILL");
        assert_dies(&pidfd);
    }
}

/// An agent that answers on its streams.
const ECHO: &str = "while read x; do [ \"$x\" = end ] && exit 5; echo \"$x\"; done; sleep 1000";

#[track_caller]
fn answers(input: &OwnedFd, output: &OwnedFd, word: &str) {
    let mut input = File::from(input.try_clone().expect("dup"));
    input
        .write_all(format!("{word}\n").as_bytes())
        .expect("write");
    let mut output = File::from(output.try_clone().expect("dup"));
    let mut answer = vec![0; word.len() + 1];
    output.read_exact(&mut answer).expect("read");
    assert_eq!(answer, format!("{word}\n").as_bytes());
}

fn told(status: i32, seen: Option<i32>) {
    match seen {
        Some(seen) => assert_eq!(seen, status),
        // Only where this kernel tells nobody but the parent.
        None => {
            let mut child = Command::new("true").spawn().expect("true");
            let pidfd = PidFd::open(child.id() as i32).expect("pidfd");
            child.wait().expect("wait");
            assert!(!matches!(pidfd.exit_status(), Ok(ExitStatus::Known(_))));
        }
    }
}

#[test]
fn agents_of_a_dead_agentd_wait_for_the_next_one_with_what_was_kept() {
    if !root() {
        return;
    }
    agents_wait_for_the_next_agentd();
}

pub fn agents_wait_for_the_next_agentd() {
    let served = Served::start();
    let mut first = served.greet();
    assert_eq!(first.welcome.held, 0);
    let file = tempfile::tempfile().expect("file");
    let agent = first.launch(ECHO, LONG, &file);
    let (_, fds) = agent.ready();
    let other = first.launch("exit 3", LONG, &file);
    let (gone, info) = (other.slot, agent.launched.info.clone());
    other.ready();
    assert_eq!(first.client.next_gone().expect("gone").slot, gone);
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    first.client.keep(agent.slot, &borrowed).expect("keep");
    first
        .client
        .keep(gone, &borrowed[..1])
        .expect("keep for one that is gone");
    drop((first, agent, fds));

    let mut second = served.greet();
    assert_eq!(second.welcome.held, 2);
    let held = second.client.next_held(None).expect("next").expect("one");
    assert_eq!((&held.info, held.state), (&info, HeldState::Running));
    second.renew(held.status.as_fd());
    let [input, output, _] = &held.kept[..] else {
        panic!("{} kept", held.kept.len())
    };
    answers(input, output, "hello");
    let next = second.client.next_held(Some(held.info.slot)).expect("next");
    let HeldAgent {
        info, state, kept, ..
    } = next.expect("another");
    assert_eq!((info.slot, kept.len()), (gone, 1));
    let HeldState::Gone { wait_status, .. } = state else {
        panic!("{state:?}")
    };
    assert_eq!(wait_status, Some(3 << 8));
    assert!(second.client.next_held(Some(gone)).expect("next").is_none());
    second.client.release(gone).expect("release");

    File::from(input.try_clone().expect("dup"))
        .write_all(b"end\n")
        .expect("write");
    let mut packet = [0; MESSAGE_LEN];
    let received = fdpass::receive(held.status.as_fd(), &mut packet, 0, fdpass::Wait::AsSocket);
    assert_eq!(received.expect("status").len, MESSAGE_LEN);
    assert!(matches!(
        Status::decode(&packet),
        Some(Status::Exited {
            wait_status: 0x500,
            ..
        })
    ));
    assert_eq!(second.end(held.info.slot), Some(5 << 8));
    second.client.detach().expect("detach");
    served.finish();
}

#[test]
fn a_dead_worker_has_a_successor_that_adopts_its_agents() {
    if !root() {
        return;
    }
    a_successor_adopts();
}

pub fn a_successor_adopts() {
    let served = Served::start();
    let mut agentd = served.greet();
    let file = tempfile::tempfile().expect("file");
    let agent = agentd.launch(ECHO, LONG, &file);
    let doomed = agentd.launch("sleep 1000", LONG, &file);
    let (_, fds) = agent.ready();
    doomed.ready();
    agentd.kill_worker();

    let mut agentd = served.greet();
    assert_eq!(agentd.welcome.held, 0);
    let kept: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    agentd.adopt(&agent, &kept).expect("adopt");
    agentd.adopt(&doomed, &[]).expect("adopt");
    assert_refused(agentd.adopt(&agent, &[]), ErrorCode::Adopt);
    agentd.renew(agent.launched.status.as_fd());
    agentd.renew(doomed.launched.status.as_fd());
    answers(&fds[0], &fds[1], "again");

    // A new agent gets a slot of its own, and the adopted ones have all that the launched ones have.
    let third = agentd.launch("exit 0", LONG, &file);
    assert!(third.slot != agent.slot && third.slot != doomed.slot);
    assert_eq!(agentd.end(third.slot), Some(0));
    let stats = agentd.client.stat(agent.slot).expect("stat");
    let unified = agentd.welcome.cgroups.unified;
    assert_eq!(stats.cpu_usage_us.is_some(), unified, "{stats:?}");
    agentd.client.kill(doomed.slot).expect("kill");
    told(libc::SIGKILL, agentd.end(doomed.slot));

    // The next agentd finds what this worker was given.
    drop(agentd);
    let mut agentd = served.greet();
    let held = agentd.client.next_held(None).expect("next").expect("one");
    assert_eq!(held.info, agent.launched.info);
    agentd.renew(held.status.as_fd());
    answers(&held.kept[0], &held.kept[1], "still");
    File::from(held.kept[0].try_clone().expect("dup"))
        .write_all(b"end\n")
        .expect("write");
    told(5 << 8, agentd.end(agent.slot));
    let mut report = [0; MESSAGE_LEN];
    file.read_exact_at(&mut report, 0).expect("the status file");
    assert!(matches!(
        Status::decode(&report),
        Some(Status::Exited { .. })
    ));
    drop(agentd);
    served.finish();
}

/// What goes on between this agentd and its worker, about an agent in the slot, when the worker is killed.
type Moment = fn(&mut Agentd, Slot);

#[test]
fn a_worker_may_die_at_any_moment() {
    if !root() {
        return;
    }
    let served = Served::start();
    let file = tempfile::tempfile().expect("file");
    let mut agentd = served.greet();
    let agent = agentd.launch(ECHO, LONG, &file);
    let (_, fds) = agent.ready();
    let moments: [(&str, Moment); 7] = [
        ("idle", |_, _| {}),
        ("frozen", |agentd, slot| {
            let unified = agentd.welcome.cgroups.unified;
            if unified {
                agentd.client.freeze(slot).expect("freeze");
            }
        }),
        ("a request unread", |agentd, slot| {
            client::try_send(agentd.client.as_fd(), 99, &Request::Stat(slot), &[]).expect("send");
        }),
        ("a launch unanswered", |agentd, _| {
            let file = tempfile::tempfile().expect("file");
            let bytes = shell("sleep 1000")
                .lifeline_grace(100)
                .finish()
                .expect("plan");
            let plan = client::seal_plan(&bytes).expect("seal");
            let launch = agentd_broker::protocol::Launch {
                plan_len: bytes.len() as u32,
                grants: 0,
                caller_uid: 0,
                caller_gid: 0,
            };
            let fds = [plan.as_fd(), file.as_fd()];
            client::try_send(agentd.client.as_fd(), 99, &Request::Launch(launch), &fds)
                .expect("send");
        }),
        ("a launch under way", |agentd, _| {
            let file = tempfile::tempfile().expect("file");
            agentd.launch("sleep 1000", 100, &file);
        }),
        ("an agent gone and unreleased", |agentd, _| {
            let file = tempfile::tempfile().expect("file");
            agentd.launch("true", 100, &file);
            agentd.client.next_gone().expect("gone");
        }),
        ("a keep unanswered", |agentd, slot| {
            let file = tempfile::tempfile().expect("file");
            let keep = Request::Keep { slot, count: 1 };
            client::try_send(agentd.client.as_fd(), 99, &keep, &[file.as_fd()]).expect("send");
        }),
    ];
    for (moment, happen) in moments {
        happen(&mut agentd, agent.slot);
        agentd.kill_worker();
        // The lifeline from before counts until the new one has taken its place.
        let _before = std::mem::replace(&mut agentd, served.greet());
        agentd
            .adopt(&agent, &[])
            .unwrap_or_else(|error| panic!("{moment}: {error}"));
        agentd.renew(agent.launched.status.as_fd());
        if agentd.welcome.cgroups.unified {
            agentd.client.thaw(agent.slot).expect("thaw");
        }
        answers(&fds[0], &fds[1], "alive");
    }
    // Before its first request, too.
    agentd.kill_worker();
    let silent = served.connect();
    drop(silent);
    let mut agentd = served.greet();
    agentd.adopt(&agent, &[]).expect("adopt");
    agentd.client.kill(agent.slot).expect("kill");
    told(libc::SIGKILL, agentd.end(agent.slot));
    drop(agentd);
    served.finish();
}

#[test]
fn only_agents_of_this_broker_are_adopted() {
    if !root() {
        return;
    }
    let served = Served::start();
    let mut agentd = served.greet();
    let file = tempfile::tempfile().expect("file");
    let agent = agentd.launch("sleep 1000 & sleep 1000", LONG, &file);
    agent.ready();
    let second = agentd.launch("sleep 1000", LONG, &file);
    second.ready();
    let dead = agentd.launch("sleep 1000", LONG, &file);
    dead.ready();
    agentd.kill_worker();
    dead.pidfd().kill().expect("SIGKILL");
    assert_dies(&dead.pidfd());
    let mut agentd = served.greet();

    let info = &agent.launched.info;
    let mut refuse = |info: &Launched, pid: i32, why: &str| {
        let pidfd: OwnedFd = PidFd::open(pid).expect("pidfd").into();
        let info = Launched {
            pid,
            ..info.clone()
        };
        let status = agent.launched.status.as_fd();
        let result = agentd.client.adopt(info, pidfd.as_fd(), status, &[]);
        let text = assert_refused(result, ErrorCode::Adopt);
        assert!(text.contains(why), "{text:?} does not say {why:?}");
    };
    // A process of anybody's.
    let mut stranger = Command::new("sleep").arg("1000").spawn().expect("sleep");
    refuse(info, stranger.id() as i32, "not the init");
    // One that has the slot's uid, but is no init.
    let slot_uid = RESERVED_ID_BASE + agent.slot.0;
    let mut twin = crate::harness::as_user(slot_uid, slot_uid, || {
        Command::new("sleep").arg("1000").spawn().expect("sleep")
    });
    refuse(info, twin.id() as i32, "not the init");
    // Another process of the same agent.
    let inner = agent
        .tree()
        .into_iter()
        .filter_map(|p| p.pid().expect("pid"));
    let inner = inner.filter(|pid| *pid != info.pid).max().expect("a child");
    refuse(info, inner, "not the init");
    // Another slot's init.
    refuse(info, second.launched.info.pid, "runs as uid");
    // An init that isn't ours: of another broker, with the same uid if it has the same slot.
    let mut other = Broker::start();
    let foreign = other.launch(&plan(&["sleep", "1000"]));
    foreign.ready();
    let as_foreign = Launched {
        slot: foreign.slot,
        ..info.clone()
    };
    if foreign.slot != agent.slot && foreign.slot != second.slot {
        refuse(&as_foreign, foreign.launched.info.pid, "not an orphan");
    }
    // A lie about the pid, a dead one, a slot that there isn't, and what is no pidfd.
    let lie = Launched {
        pid: 1,
        ..info.clone()
    };
    let fds = (agent.launched.pidfd.as_fd(), agent.launched.status.as_fd());
    let text = assert_refused(
        agentd.client.adopt(lie, fds.0, fds.1, &[]),
        ErrorCode::Adopt,
    );
    assert!(text.contains("not 1"), "{text}");
    let text = assert_refused(agentd.adopt(&dead, &[]), ErrorCode::Adopt);
    assert!(text.contains("nothing to adopt"), "{text}");
    for slot in [Slot(0), Slot(u32::MAX)] {
        let info = Launched {
            slot,
            ..info.clone()
        };
        assert_refused(
            agentd.client.adopt(info, fds.0, fds.1, &[]),
            ErrorCode::Adopt,
        );
    }
    let no_pidfd = agentd.client.adopt(info.clone(), file.as_fd(), fds.1, &[]);
    assert_refused(no_pidfd, ErrorCode::Adopt);
    let no_socket = agentd.client.adopt(info.clone(), fds.0, file.as_fd(), &[]);
    assert_refused(no_socket, ErrorCode::Malformed);
    // What agentd says of ids and cgroups is not believed.
    let fake = Launched {
        host_uid: 0,
        host_gid: 0,
        cgroup_id: 1,
        cgroup_path: b"/sys/fs/cgroup".to_vec(),
        ..info.clone()
    };
    agentd
        .client
        .adopt(fake, fds.0, fds.1, &[])
        .expect("the truth is in the kernel");
    let held = agentd.client.next_held(None).expect("next").expect("one");
    assert_eq!(&held.info, info);

    other.client.kill(foreign.slot).expect("kill");
    other.wait_gone(foreign.slot);
    other.finish();
    for process in [&mut stranger, &mut twin] {
        process.kill().expect("kill");
        process.wait().expect("wait");
    }
    agentd.adopt(&second, &[]).expect("adopt");
    agentd.client.shutdown().expect("shutdown");
    served.finish();
}

/// What a user's broker must tell apart though everything has the same uid.
pub fn strangers_are_not_adopted() {
    let served = Served::start();
    let mut agentd = served.greet();
    let file = tempfile::tempfile().expect("file");
    let agent = agentd.launch("sleep 1000", LONG, &file);
    agent.ready();
    // The init of another broker's agent: alike in all but its parent and its cgroup.
    let mut other = Broker::start();
    let foreign = other.launch(&plan(&["sleep", "1000"]));
    foreign.ready();
    agentd.kill_worker();
    let mut agentd = served.greet();
    for (info, pid) in [
        (&agent.launched.info, std::process::id() as i32),
        (&foreign.launched.info, foreign.launched.info.pid),
        (&agent.launched.info, foreign.launched.info.pid),
    ] {
        let pidfd: OwnedFd = PidFd::open(pid).expect("pidfd").into();
        let info = Launched {
            pid,
            ..info.clone()
        };
        let status = agent.launched.status.as_fd();
        let result = agentd.client.adopt(info, pidfd.as_fd(), status, &[]);
        assert_refused(result, ErrorCode::Adopt);
    }
    agentd.adopt(&agent, &[]).expect("adopt");
    agentd.client.shutdown().expect("shutdown");
    served.finish();
    other.client.kill(foreign.slot).expect("kill");
    other.wait_gone(foreign.slot);
    other.finish();
}

#[test]
fn what_is_kept_is_bounded_and_replaced() {
    if !root() {
        return;
    }
    let served = Served::start();
    let mut agentd = served.greet();
    let file = tempfile::tempfile().expect("file");
    let agent = agentd.launch("sleep 1000", LONG, &file);
    agent.ready();
    let many = vec![file.as_fd(); MAX_KEPT + 1];
    let call = |agentd: &mut Agentd, count: u32, fds: &[BorrowedFd<'_>]| {
        let slot = agent.slot;
        let reply = agentd.client.call(&Request::Keep { slot, count }, fds);
        match reply.expect("reply").reply {
            agentd_broker::protocol::Reply::Failed(failure) => Err(ClientError::Refused(failure)),
            _ => Ok(()),
        }
    };
    for _ in 0..100 {
        assert_refused(call(&mut agentd, 33, &many), ErrorCode::Malformed);
        assert_refused(call(&mut agentd, 2, &many[..1]), ErrorCode::Malformed);
        assert_refused(call(&mut agentd, 0, &many[..1]), ErrorCode::Malformed);
    }
    assert_refused(
        agentd.client.keep(Slot(agent.slot.0 + 1), &many[..1]),
        ErrorCode::NoSuchSlot,
    );
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    agentd
        .client
        .keep(agent.slot, &[writer.as_fd()])
        .expect("keep");
    drop(writer);
    for _ in 0..500 {
        agentd
            .client
            .keep(agent.slot, &many[..MAX_KEPT])
            .expect("keep");
    }
    let end = rustix::io::read(&reader, &mut [0u8; 1]);
    assert_eq!(end, Ok(0), "what was replaced is closed");
    let open = std::fs::read_dir(format!("/proc/{}/fd", agentd.welcome.pid));
    let open = open.expect("fd").count();
    assert!(open < 100, "{open} descriptors");
    agentd.client.shutdown().expect("shutdown");
    served.finish();
}

#[test]
fn the_second_client_waits_for_the_first_to_go() {
    if !root() {
        return;
    }
    let served = Served::start();
    let mut first = served.greet();
    let agent = first.launch("sleep 1000", LONG, &tempfile::tempfile().expect("file"));
    agent.ready();
    let second = served.connect();
    let (lifeline, _writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
    let version = agentd_broker::protocol::VERSION;
    let fds = [lifeline.as_fd()];
    client::try_send(second.as_fd(), 1, &Request::Hello { version }, &fds).expect("send");
    first.client.stat(agent.slot).expect("served");
    first.client.stat(agent.slot).expect("served still");
    assert!(!readable(second.as_fd(), std::time::Duration::ZERO));
    drop(first);
    assert!(readable(second.as_fd(), WATCHDOG), "served now");
    let mut second = BrokerClient::new(second);
    let (next, _) = (second.next_gone(), ());
    assert!(matches!(
        next,
        Err(ClientError::Unexpected { got: "welcome", .. })
    ));
    second.shutdown().expect("shutdown");
    served.finish();
}

#[test]
fn with_worker_and_agentd_dead_everything_is_dead_at_once() {
    if !root() {
        return;
    }
    let served = Served::start();
    let mut agentd = served.greet();
    let script = "trap '' TERM HUP INT; setsid sleep 1000 & sleep 1000";
    let agent = agentd.launch(script, LONG, &tempfile::tempfile().expect("file"));
    agent.ready();
    let tree = agent.tree();
    agentd.kill_worker();
    assert!(
        !tree
            .iter()
            .any(|process| process.has_exited().expect("poll"))
    );
    drop(agentd);
    tree.iter().for_each(assert_dies);
    served.finish();
}

#[test]
fn a_broker_whose_log_nobody_reads_goes_on() {
    if !root() {
        return;
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let socket = client::bind(&folder.path().join("broker.sock")).expect("bind");
    rustix::net::listen(&socket, 1).expect("listen");
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let process = Command::new("sh")
        .args(["-c", "exec \"$0\" 3<&0"])
        .arg(broker_program())
        .stdin(socket)
        .stderr(writer)
        .spawn()
        .expect("start the broker");
    let served = Served { folder, process };
    let agentd = served.greet();
    // The supervisor says so, to nobody.
    agentd.kill_worker();
    served.greet().client.detach().expect("detach");
    served.finish();
}

#[test]
fn agents_of_a_dead_worker_that_nobody_adopts_end_with_their_grace() {
    if !root() {
        return;
    }
    let served = Served::start();
    let mut agentd = served.greet();
    let agent = agentd.launch("sleep 1000", 200, &tempfile::tempfile().expect("file"));
    agent.ready();
    agentd.kill_worker();
    assert_dies(&agent.pidfd());
    served.finish();
    drop(agentd);
}

#[test]
fn agents_of_a_dead_agentd_end_with_their_grace() {
    if !root() {
        return;
    }
    let served = Served::start();
    let mut agentd = served.greet();
    let agent = agentd.launch("sleep 1000", 200, &tempfile::tempfile().expect("file"));
    agent.ready();
    drop(agentd);
    assert_dies(&agent.pidfd());
    served.finish();
}
