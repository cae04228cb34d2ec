//! A hostile agentd: whatever it sends is refused with the right error, and the broker lives on.

use crate::harness::{
    Broker, assert_dies, assert_refused, plan, plan_as, refusal, root, shell, start_silent,
    status_file,
};
use agentd_broker::client::{self, ClientError, LaunchedAgent};
use agentd_broker::protocol::{self, ErrorCode, Failure, Launch, Reply, Request, Slot, VERSION};
use agentd_kernel::fdpass;
use agentd_kernel::pidfd::PidFd;
use agentd_launch::plan::{Mode, MountFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

/// Sends raw bytes and returns the broker's refusal.
#[track_caller]
fn refused_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Failure {
    fdpass::send(socket, bytes, fds).expect("send");
    match client::try_receive(socket).expect("reply").reply {
        Reply::Failed(failure) => failure,
        other => panic!("{bytes:?} was not refused: {other:?}"),
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe")
}

fn open_fds(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("fd")
        .count()
}

/// The broker still serves: a launch from beginning to end.
#[track_caller]
fn assert_alive(mut broker: Broker) {
    let agent = broker.launch(&plan(&["true"]));
    assert_eq!(agent.output().0, 0);
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    if !root() {
        return;
    }
    let broker = Broker::start();
    let socket = broker.client.as_fd();
    let kill = protocol::encode_request(7, &Request::Kill(Slot(1)));
    let mut cases = vec![
        b"x".to_vec(),
        vec![0; 16],
        vec![0xff; 1024],
        vec![0; 4000],
        kill[..20].to_vec(),
    ];
    cases.push([&kill[..], b"more"].concat());
    cases.push(protocol::encode_reply(7, &Reply::Done));
    cases.push(Vec::new());
    for bytes in cases {
        let failure = refused_bytes(socket, &bytes, &[]);
        assert_eq!(failure.code, ErrorCode::Malformed, "{bytes:?}: {failure}");
    }
    assert_alive(broker);
}

#[test]
fn hello_comes_first_once_with_the_right_version_and_a_pipe() {
    if !root() {
        return;
    }
    let (socket, _process) = start_silent();
    let (read_end, write_end) = pipe();
    let file: OwnedFd = tempfile::tempfile().expect("file").into();
    let hello = protocol::encode_request(1, &Request::Hello { version: VERSION });
    let stat = protocol::encode_request(2, &Request::Stat(Slot(1)));
    let future = protocol::encode_request(
        3,
        &Request::Hello {
            version: VERSION + 1,
        },
    );
    let refuse =
        |bytes: &[u8], fds: &[BorrowedFd<'_>]| refused_bytes(socket.as_fd(), bytes, fds).code;
    assert_eq!(refuse(&stat, &[]), ErrorCode::OutOfOrder);
    assert_eq!(refuse(&future, &[read_end.as_fd()]), ErrorCode::Version);
    assert_eq!(refuse(&hello, &[]), ErrorCode::Malformed);
    assert_eq!(refuse(&hello, &[file.as_fd()]), ErrorCode::Malformed);
    assert_eq!(refuse(&hello, &[write_end.as_fd()]), ErrorCode::Malformed);
    assert_eq!(
        refuse(&hello, &[read_end.as_fd(), read_end.as_fd()]),
        ErrorCode::Malformed
    );
    client::try_send(
        socket.as_fd(),
        4,
        &Request::Hello { version: VERSION },
        &[read_end.as_fd()],
    )
    .expect("send");
    assert!(matches!(
        client::try_receive(socket.as_fd()).expect("reply").reply,
        Reply::Welcome(_)
    ));
    assert_eq!(refuse(&hello, &[read_end.as_fd()]), ErrorCode::OutOfOrder);
}

#[test]
fn floods_of_descriptors_are_refused_and_closed() {
    if !root() {
        return;
    }
    let broker = Broker::start();
    let before = open_fds(broker.pid());
    let (_read_end, write_end) = pipe();
    let flood = vec![write_end.as_fd(); fdpass::MAX_FDS];
    let stat = protocol::encode_request(1, &Request::Stat(Slot(1)));
    for _ in 0..50 {
        assert_eq!(
            refused_bytes(broker.client.as_fd(), &stat, &flood).code,
            ErrorCode::Malformed
        );
        assert_eq!(
            refused_bytes(broker.client.as_fd(), &stat, &flood[..5]).code,
            ErrorCode::Malformed
        );
    }
    assert_eq!(
        open_fds(broker.pid()),
        before,
        "the broker kept descriptors"
    );
    assert_alive(broker);
}

#[test]
fn slots_of_nobody_are_refused() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    for slot in [0, 1, 4096, u32::MAX].map(Slot) {
        assert_refused(broker.client.kill(slot), ErrorCode::NoSuchSlot);
        assert_refused(broker.client.stat(slot), ErrorCode::NoSuchSlot);
        assert_refused(broker.client.freeze(slot), ErrorCode::NoSuchSlot);
        assert_refused(broker.client.release(slot), ErrorCode::NoSuchSlot);
    }
    let agent = broker.launch(&plan(&["sleep", "1000"]));
    agent.ready();
    assert_refused(broker.client.release(agent.slot), ErrorCode::NoSuchSlot);
    broker.client.kill(agent.slot).expect("kill");
    broker.wait_gone(agent.slot);
    assert_alive(broker);
}

/// Launches with `file` as the plan, claiming `len` bytes.
fn launch_file(
    broker: &mut Broker,
    file: BorrowedFd<'_>,
    len: usize,
) -> Result<LaunchedAgent, ClientError> {
    let launch = Launch {
        plan_len: len as u32,
        grants: 0,
        caller_uid: 0,
        caller_gid: 0,
    };
    broker
        .client
        .call(&Request::Launch(launch), &[file, status_file().as_fd()])?
        .try_into()
}

#[test]
fn plans_in_anything_but_a_sealed_file_of_the_stated_size_are_refused() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let bytes = plan(&["true"]).finish().expect("plan");
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(&bytes).expect("write");
    let unsealed =
        rustix::fs::memfd_create(c"plan", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memfd");
    let mut unsealed = File::from(unsealed);
    unsealed.write_all(&bytes).expect("write");
    let zero = File::open("/dev/zero").expect("open");
    for wrong in [
        file.as_fd(),
        unsealed.as_fd(),
        zero.as_fd(),
        pipe().0.as_fd(),
    ] {
        assert_refused(
            launch_file(&mut broker, wrong, bytes.len()),
            ErrorCode::PlanFile,
        );
    }
    let sealed = client::seal_plan(&bytes).expect("seal");
    for len in [0, bytes.len() - 1, bytes.len() + 1, u32::MAX as usize] {
        assert_refused(
            launch_file(&mut broker, sealed.as_fd(), len),
            ErrorCode::PlanFile,
        );
    }
    let huge = client::seal_plan(&vec![0; (1 << 20) + 1]).expect("seal");
    assert_refused(
        launch_file(&mut broker, huge.as_fd(), (1 << 20) + 1),
        ErrorCode::PlanFile,
    );
    for garbage in [vec![], vec![0; 64], bytes[..bytes.len() - 8].to_vec()] {
        let garbage = (client::seal_plan(&garbage).expect("seal"), garbage.len());
        assert_refused(
            launch_file(&mut broker, garbage.0.as_fd(), garbage.1),
            ErrorCode::Plan,
        );
    }
    assert_alive(broker);
}

#[test]
fn launches_with_too_few_or_too_many_descriptors_are_refused() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let sealed = client::seal_plan(&plan(&["true"]).finish().expect("plan")).expect("seal");
    for (grants, fds) in [(0, 0), (0, 1), (1, 2), (0, 3), (128, 4)] {
        let launch = Launch {
            plan_len: 1,
            grants,
            caller_uid: 0,
            caller_gid: 0,
        };
        let result = broker
            .client
            .call(&Request::Launch(launch), &vec![sealed.as_fd(); fds]);
        let result = result.and_then(LaunchedAgent::try_from);
        assert_refused(result, ErrorCode::Malformed);
    }
    assert_alive(broker);
}

#[test]
fn every_rule_of_the_floor_holds() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let mut refuse = |plan: &agentd_launch::plan::PlanBuilder| {
        assert_refused(broker.try_launch(plan, &[]), ErrorCode::Floor)
    };
    refuse(&plan_as(Mode::User, (1000, 1000), &["true"]));
    for ids in [(0, 1000), (1000, 0), (u32::MAX, 1000)] {
        refuse(&plan_as(Mode::Root, ids, &["true"]));
    }
    let text = refuse(plan(&["true"]).bind("/usr", "/mnt", MountFlags::NONE));
    assert!(text.contains("read-only"), "{text}");
    for source in [
        "/",
        "/etc",
        "/etc/shadow",
        "/root",
        "/home",
        "/proc",
        "/sys",
        "/dev",
        "/run",
        "/var",
    ] {
        refuse(plan(&["true"]).bind(source, "/mnt", MountFlags::RDONLY));
    }
    refuse(plan(&["true"]).grant_mount(0, "/work", MountFlags::NONE));
    refuse(plan(&["true"]).lifeline_grace(u32::MAX));
    let text = refuse(plan(&["true"]).host_network());
    assert!(text.contains("agentd-broker --host-network"), "{text}");
    assert_alive(broker);
}

#[test]
fn the_hosts_network_is_given_by_a_broker_that_was_told_to_and_no_listener_with_it() {
    if !root() {
        return;
    }
    let mut broker = Broker::start_by("exec \"$0\" --host-network 3<&0 0</dev/null");
    let namespace = std::fs::read_link("/proc/self/ns/net").expect("our own");
    let script = "readlink /proc/self/ns/net; ls /proc/self/net/dev > /dev/null && echo read";
    let agent = broker.launch(shell(script).host_network());
    assert_eq!(
        agent.launched.info.layers & agentd_launch::layers::LAYER_NET_NS,
        0
    );
    let (code, stdout, stderr) = agent.output();
    let expected = format!("{}\nread\n", namespace.display());
    assert_eq!((code, stdout.as_str()), (0, expected.as_str()), "{stderr}");
    broker.wait_gone(agent.slot);

    // One that does not ask for it has its own, as ever.
    let agent = broker.launch(&shell("readlink /proc/self/ns/net"));
    let (_, stdout, _) = agent.output();
    assert!(stdout.starts_with("net:[") && stdout.trim() != namespace.to_string_lossy());
    broker.wait_gone(agent.slot);

    let mut listening = plan(&["true"]);
    listening
        .host_network()
        .tcp_listener(8080, agentd_launch::plan::GATEWAY);
    let text = assert_refused(broker.try_launch(&listening, &[]), ErrorCode::Floor);
    assert!(text.contains("no TCP listener"), "{text}");
    let mut layer = plan(&["true"]);
    layer
        .host_network()
        .require(agentd_launch::layers::LAYER_NET_NS);
    assert_refused(broker.try_launch(&layer, &[]), ErrorCode::Unsupported);
    assert_alive(broker);
}

#[test]
fn a_required_layer_that_the_broker_cannot_give_is_refused() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let plan = plan(&["true"])
        .require(agentd_launch::layers::LAYER_CGROUP_LIMITS)
        .clone();
    let text = assert_refused(broker.try_launch(&plan, &[]), ErrorCode::CgroupLimits);
    assert!(text.contains("cgroup-limits"), "{text}");
    assert_alive(broker);
}

#[test]
fn after_shutdown_nothing_is_served() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let agent = broker.launch(&shell("trap '' TERM; sleep 1000"));
    agent.ready();
    let socket = broker.client.as_fd();
    client::try_send(socket, 1, &Request::Shutdown, &[]).expect("send");
    let result = client::try_send(socket, 2, &Request::Stat(agent.slot), &[]);
    let answer = result.and_then(|()| client::try_receive(socket));
    match answer {
        Err(ClientError::Gone) => {}
        Ok(incoming) => match incoming.reply {
            Reply::Failed(failure) => assert_eq!(failure.code, ErrorCode::ShuttingDown),
            Reply::Gone(gone) => assert_eq!(gone.slot, agent.slot),
            other => panic!("{other:?}"),
        },
        Err(other) => panic!("{other}"),
    }
    assert_dies(&agent.pidfd());
    assert!(crate::harness::wait(&mut broker.process).success());
}

#[test]
fn a_socket_of_another_kind_or_peer_is_not_served() {
    if !root() {
        return;
    }
    let run = |stdin: Stdio, arguments: &[&str]| {
        let script = "exec \"$0\" \"$@\" 3<&0";
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(crate::harness::broker_program())
            .args(arguments);
        command.stdin(stdin).output().expect("run the broker")
    };
    let (stream, _other) = std::os::unix::net::UnixStream::pair().expect("pair");
    let output = run(OwnedFd::from(stream).into(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("not an AF_UNIX SOCK_SEQPACKET"),
        "{output:?}"
    );
    let (ours, theirs) = fdpass::seqpacket_pair().expect("pair");
    let output = run(theirs.into(), &["--client-uid", "4242"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("has uid 0, only uids [4242] may"),
        "{output:?}"
    );
    drop(ours);
    let output = run(Stdio::null(), &["--verbose"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_listening_socket_serves_its_first_connection() {
    if !root() {
        return;
    }
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    };
    let folder = tempfile::tempdir().expect("tempdir");
    let address = SocketAddrUnix::new(folder.path().join("broker.sock")).expect("address");
    let socket = || {
        socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socket")
    };
    let (listener, ours) = (socket(), socket());
    bind(&listener, &address).expect("bind");
    listen(&listener, 1).expect("listen");
    connect(&ours, &address).expect("connect");
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" 3<&0"])
        .arg(crate::harness::broker_program())
        .stdin(Stdio::from(listener));
    let mut process = command.spawn().expect("start");
    let mut client = client::BrokerClient::new(ours);
    let (read_end, _lifeline) = pipe();
    assert_eq!(
        client.hello(read_end.as_fd()).expect("hello").version,
        VERSION
    );
    client.shutdown().expect("shutdown");
    assert!(crate::harness::wait(&mut process).success());
}

#[test]
fn a_client_that_never_reads_cannot_stop_the_broker() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let agent = broker.launch(&plan(&["sleep", "1000"]));
    agent.ready();
    let socket = broker.client.as_fd();
    rustix::io::ioctl_fionbio(socket, true).expect("FIONBIO");
    let mut sent = 0u64;
    while sent < 100_000 {
        match client::try_send(socket, sent, &Request::Stat(Slot(99)), &[]) {
            Ok(()) => sent += 1,
            Err(error) if error.is_would_block() => break,
            Err(error) => panic!("{error}"),
        }
    }
    // Its queue is full in both directions now; a signal must still be heard, and the agent die.
    let process = PidFd::open(broker.pid()).expect("pidfd");
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::TERM).expect("SIGTERM");
    assert_dies(&agent.pidfd());
    assert!(crate::harness::wait(&mut broker.process).success());
    assert!(crate::harness::subtrees(broker.process.id()).is_empty());
}

#[test]
fn refusals_say_what_and_why() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let failure = refusal(broker.try_launch(
        plan(&["true"]).bind("/etc/shadow", "/x", MountFlags::RDONLY),
        &[],
    ));
    assert!(
        failure.to_string().ends_with("(floor)") && failure.text.contains("record"),
        "{failure}"
    );
    assert_alive(broker);
}
