//! Grants: what an agent can do through one, and every way in which one can be wrong.

use crate::harness::{Broker, as_user, assert_refused, folder_of, grant, open_dir, root, shell};
use agentd_broker::protocol::ErrorCode;
use agentd_kernel::fdpass;
use agentd_kernel::grant::{self as kernel_grant, Access, Kind, Uses};
use agentd_launch::layers::LAYER_IDMAP;
use agentd_launch::plan::{MountFlags, PlanBuilder};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

const ALICE: (u32, u32) = (61_001, 61_101);
const BOB: (u32, u32) = (61_002, 61_102);

/// A shell with the first grant on /work.
fn granted(script: &str, flags: MountFlags) -> PlanBuilder {
    let mut plan = shell(script);
    plan.grant_mount(0, "/work", flags);
    plan
}

fn grant_of(giver: (u32, u32), path: &Path, access: Access) -> OwnedFd {
    as_user(giver.0, giver.1, || grant(path, access, "/work"))
}

#[test]
fn what_an_agent_writes_belongs_to_the_giver() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(ALICE.0, ALICE.1);
    let script = "cd /work && echo hello > file && mkdir dir && ln -s file link && stat -c %u:%g file && id -u";
    let agent = broker.launch_with(
        &granted(script, MountFlags::NONE),
        &[grant_of(ALICE, folder.path(), Access::ReadWrite)],
    );
    assert_eq!(
        (
            agent.launched.info.caller_uid,
            agent.launched.info.caller_gid
        ),
        ALICE
    );
    assert_ne!(agent.launched.info.layers & LAYER_IDMAP, 0);
    let (code, stdout, stderr) = agent.output();
    assert_eq!(
        (code, stdout.as_str()),
        (0, "1000:1000\n1000\n"),
        "{stderr}"
    );
    for name in ["file", "dir", "link"] {
        let metadata = fs::symlink_metadata(folder.path().join(name)).expect(name);
        assert_eq!((metadata.uid(), metadata.gid()), ALICE, "{name}");
    }
    assert_eq!(
        fs::read_to_string(folder.path().join("file")).expect("read"),
        "hello\n"
    );
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn a_read_only_grant_cannot_be_written() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(ALICE.0, ALICE.1);
    fs::write(folder.path().join("file"), "old").expect("write");
    let give = || grant_of(ALICE, folder.path(), Access::ReadOnly);
    let text = assert_refused(
        broker.try_launch(&granted("true", MountFlags::NONE), &[give()]),
        ErrorCode::Grant,
    );
    assert!(text.contains("read-only"), "{text}");
    let plan = granted("cat /work/file; echo new > /work/file", MountFlags::RDONLY);
    let agent = broker.launch_with(&plan, &[give()]);
    let (code, stdout, stderr) = agent.output();
    assert_ne!(code, 0);
    assert!(
        stdout == "old" && stderr.contains("Read-only"),
        "{stdout}{stderr}"
    );
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn a_grant_gives_no_more_than_the_giver_has() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(0, 0);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::write(folder.path().join("public"), "seen").expect("write");
    fs::write(folder.path().join("secret"), "hidden").expect("write");
    fs::set_permissions(
        folder.path().join("secret"),
        fs::Permissions::from_mode(0o600),
    )
    .expect("chmod");
    let script = "cd /work; cat public; cat secret; echo x > new; echo x >> public; rm -f public; chmod 777 . secret";
    let agent = broker.launch_with(
        &granted(script, MountFlags::NONE),
        &[grant_of(ALICE, folder.path(), Access::ReadWrite)],
    );
    let (_, stdout, stderr) = agent.output();
    assert_eq!(stdout, "seen", "{stderr}");
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .expect("read")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["public", "secret"]);
    assert_eq!(
        fs::read_to_string(folder.path().join("public")).expect("read"),
        "seen"
    );
    let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
    assert_eq!(
        (mode(folder.path()), mode(&folder.path().join("secret"))),
        (0o755, 0o600)
    );
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn set_id_bits_on_a_granted_folder_have_no_effect_and_cannot_be_set() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(0, 0);
    fs::copy("/usr/bin/id", folder.path().join("id")).expect("copy");
    fs::set_permissions(folder.path().join("id"), fs::Permissions::from_mode(0o6755))
        .expect("chmod");
    let script =
        "cd /work; ./id -u; cp /usr/bin/id mine; chmod u+s mine; chmod 4755 mine; stat -c %a mine";
    let agent = broker.launch_with(
        &granted(script, MountFlags::NONE),
        &[grant(folder.path(), Access::ReadWrite, "/work")],
    );
    assert_eq!(agent.launched.info.caller_uid, 0);
    let (_, stdout, stderr) = agent.output();
    assert_eq!(stdout, "1000\n755\n", "{stderr}");
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn a_grant_is_spent_once_used() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(ALICE.0, ALICE.1);
    let first = grant_of(ALICE, folder.path(), Access::ReadWrite);
    let copies = [
        first.try_clone().expect("dup"),
        first.try_clone().expect("dup"),
    ];
    let mut plan = granted("true", MountFlags::NONE);
    plan.grant_mount(1, "/again", MountFlags::NONE);
    let twice = [first.try_clone().expect("dup"), first];
    let text = assert_refused(broker.try_launch(&plan, &twice), ErrorCode::Grant);
    assert!(text.contains("used once"), "{text}");
    for copy in copies {
        assert_refused(
            broker.try_launch(&granted("true", MountFlags::NONE), &[copy]),
            ErrorCode::Grant,
        );
    }
    broker.finish();
}

#[test]
fn a_lasting_grant_launches_again_and_again_in_its_givers_name_only() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (alices, bobs) = (folder_of(ALICE.0, ALICE.1), folder_of(BOB.0, BOB.1));
    let lasting = as_user(ALICE.0, ALICE.1, || {
        let (object, dst) = (open_dir(alices.path()), Path::new("/work"));
        kernel_grant::send(object.as_fd(), Access::ReadWrite, dst, Uses::Lasting).expect("grant")
    });
    for round in 1..=3 {
        let plan = granted("echo x >> /work/log; wc -l < /work/log", MountFlags::NONE);
        let agent = broker.launch_with(&plan, &[lasting.try_clone().expect("dup")]);
        let info = &agent.launched.info;
        assert_eq!((info.caller_uid, info.caller_gid), ALICE);
        let (code, stdout, stderr) = agent.output();
        assert_eq!((code, stdout.trim()), (0, &*round.to_string()), "{stderr}");
        broker.wait_gone(agent.slot);
        // With a grant of somebody else beside it, it is as good as a fresh one: not good enough.
        let mut plan = granted("true", MountFlags::NONE);
        plan.grant_mount(1, "/bob", MountFlags::NONE);
        let second = as_user(BOB.0, BOB.1, || {
            grant(bobs.path(), Access::ReadWrite, "/bob")
        });
        let both = [lasting.try_clone().expect("dup"), second];
        assert_refused(broker.try_launch(&plan, &both), ErrorCode::Grant);
        // And only where it was given for.
        let mut plan = shell("true");
        plan.grant_mount(0, "/elsewhere", MountFlags::NONE);
        let moved = [lasting.try_clone().expect("dup")];
        assert_refused(broker.try_launch(&plan, &moved), ErrorCode::Grant);
    }
    let owner = fs::metadata(alices.path().join("log")).expect("log").uid();
    assert_eq!(owner, ALICE.0);
    broker.finish();
}

#[test]
fn forged_grants_are_refused() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(ALICE.0, ALICE.1);
    let dir = open_dir(folder.path());
    // Without credentials.
    let (ours, silent) = fdpass::seqpacket_pair().expect("pair");
    fdpass::send(ours.as_fd(), b"AGGR\x01\x00\x01\x00/work", &[dir.as_fd()]).expect("send");
    drop(ours);
    // Not sockets, or sockets with nothing in them.
    let file: OwnedFd = tempfile::tempfile().expect("file").into();
    let (stream, _other) = std::os::unix::net::UnixStream::pair().expect("pair");
    let (empty, _other) = fdpass::seqpacket_pair().expect("pair");
    let forged = [
        silent,
        file,
        dir.try_clone().expect("dup"),
        stream.into(),
        empty,
    ];
    for wrong in forged {
        assert_refused(
            broker.try_launch(&granted("true", MountFlags::NONE), &[wrong]),
            ErrorCode::Grant,
        );
    }
    // In somebody else's name, without the right to.
    let refused = as_user(BOB.0, BOB.1, || {
        let (ours, _theirs) = fdpass::seqpacket_pair().expect("pair");
        send_as(ours, ALICE)
    });
    assert_eq!(
        refused,
        Some(libc::EPERM),
        "the kernel itself refuses false credentials"
    );
    broker.finish();
}

/// Tries to send a message with somebody else's credentials; the errno.
fn send_as(socket: OwnedFd, (uid, gid): (u32, u32)) -> Option<i32> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred, sendmsg};
    use rustix::process::{Gid, Uid, getpid};
    let credentials = UCred {
        pid: getpid(),
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
    };
    let mut space = [std::mem::MaybeUninit::uninit(); 64];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmCredentials(credentials)));
    let bytes = [std::io::IoSlice::new(b"AGGR\x01\x00\x01\x00/work")];
    sendmsg(&socket, &bytes, &mut control, SendFlags::empty())
        .err()
        .map(|errno| errno.raw_os_error())
}

#[test]
fn grants_of_two_givers_are_refused() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let (alices, bobs) = (folder_of(ALICE.0, ALICE.1), folder_of(BOB.0, BOB.1));
    let mut plan = granted("true", MountFlags::NONE);
    plan.grant_mount(1, "/bob", MountFlags::NONE);
    let second = as_user(BOB.0, BOB.1, || {
        grant(bobs.path(), Access::ReadWrite, "/bob")
    });
    let both = [grant_of(ALICE, alices.path(), Access::ReadWrite), second];
    let text = assert_refused(broker.try_launch(&plan, &both), ErrorCode::Grant);
    assert!(text.contains("61001") && text.contains("61002"), "{text}");
    broker.finish();
}

#[test]
fn a_grant_goes_only_where_the_giver_said() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(ALICE.0, ALICE.1);
    let mut plan = shell("true");
    plan.grant_mount(0, "/usr/local/bin", MountFlags::NONE);
    let given = grant_of(ALICE, folder.path(), Access::ReadWrite);
    let text = assert_refused(broker.try_launch(&plan, &[given]), ErrorCode::Grant);
    assert!(
        text.contains("/work") && text.contains("/usr/local/bin"),
        "{text}"
    );
    broker.finish();
}

#[test]
fn objects_that_cannot_be_mounted_with_mapped_ids_are_refused() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    for path in ["/proc/self", "/sys/kernel"] {
        let given = grant(Path::new(path), Access::ReadWrite, "/work");
        let text = assert_refused(
            broker.try_launch(&granted("true", MountFlags::NONE), &[given]),
            ErrorCode::Mount,
        );
        assert!(text.contains("/work"), "{text}");
    }
    // Opened in another mount namespace.
    let folder = folder_of(ALICE.0, ALICE.1);
    let path = folder.path().to_path_buf();
    let elsewhere = std::thread::spawn(move || {
        // SAFETY: unshare takes a number; CLONE_FS and CLONE_NEWNS affect this thread only, which ends at once.
        let result = unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) };
        assert_eq!(result, 0, "unshare");
        grant(&path, Access::ReadWrite, "/work")
    });
    let given = elsewhere.join().expect("thread");
    let text = assert_refused(
        broker.try_launch(&granted("true", MountFlags::NONE), &[given]),
        ErrorCode::Mount,
    );
    assert!(text.contains("another mount namespace"), "{text}");
    broker.finish();
}

#[test]
fn launches_and_refusals_leave_no_descriptor_in_the_broker() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(ALICE.0, ALICE.1);
    let open_after = |broker: &mut Broker| {
        let agent = broker.launch_with(
            &granted("true", MountFlags::NONE),
            &[grant_of(ALICE, folder.path(), Access::ReadWrite)],
        );
        assert_eq!(agent.output().0, 0);
        broker.wait_gone(agent.slot);
        let wrong = [grant_of(ALICE, folder.path(), Access::ReadOnly)];
        assert_refused(
            broker.try_launch(&granted("true", MountFlags::NONE), &wrong),
            ErrorCode::Grant,
        );
        let wrong = [grant(Path::new("/proc/self"), Access::ReadWrite, "/work")];
        assert_refused(
            broker.try_launch(&granted("true", MountFlags::NONE), &wrong),
            ErrorCode::Mount,
        );
        fs::read_dir(format!("/proc/{}/fd", broker.pid()))
            .expect("fd")
            .count()
    };
    // The first launch of a giver leaves its id map in the cache.
    let after_one = open_after(&mut broker);
    for _ in 0..5 {
        assert_eq!(open_after(&mut broker), after_one);
    }
    broker.finish();
}

#[test]
fn a_single_file_can_be_granted() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(ALICE.0, ALICE.1);
    let path = folder.path().join("config");
    fs::write(&path, "setting").expect("write");
    std::os::unix::fs::chown(&path, Some(ALICE.0), Some(ALICE.1)).expect("chown");
    let file = fs::File::open(&path).expect("open");
    let given = as_user(ALICE.0, ALICE.1, || {
        kernel_grant::send(
            file.as_fd(),
            Access::ReadOnly,
            Path::new("/work"),
            Uses::Once,
        )
        .expect("grant")
    });
    let agent = broker.launch_with(&granted("cat /work", MountFlags::RDONLY), &[given]);
    let (code, stdout, stderr) = agent.output();
    assert_eq!((code, stdout.as_str()), (0, "setting"), "{stderr}");
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn many_grants_keep_their_order() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folders: Vec<_> = (0..40).map(|_| folder_of(ALICE.0, ALICE.1)).collect();
    let mut plan = shell("for n in $(seq 0 39); do cat /g$n/n; done");
    let mut given = Vec::new();
    for (n, folder) in folders.iter().enumerate() {
        fs::write(folder.path().join("n"), format!("{n} ")).expect("write");
        plan.grant_mount(n as u32, format!("/g{n}"), MountFlags::RDONLY);
        given.push(as_user(ALICE.0, ALICE.1, || {
            grant(folder.path(), Access::ReadOnly, &format!("/g{n}"))
        }));
    }
    let agent = broker.launch_with(&plan, &given);
    let expected: String = (0..40).map(|n| format!("{n} ")).collect();
    assert_eq!(agent.output().1, expected);
    broker.wait_gone(agent.slot);
    broker.finish();
}

#[test]
fn a_copied_file_needs_no_mount_and_its_owner_alone_can_grant_it() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    let folder = folder_of(ALICE.0, ALICE.1);
    let key = folder.path().join("key");
    fs::write(&key, "hunter2\n").expect("write");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).expect("chmod");
    std::os::unix::fs::chown(&key, Some(ALICE.0), Some(ALICE.1)).expect("chown");
    let copied = |script| {
        let mut plan = shell(script);
        let flags = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::COPY;
        plan.tmpfs("/run/secrets", 1 << 20, 2, 0o700, MountFlags::RDONLY)
            .grant_mount(0, "/run/secrets/key", flags);
        plan
    };
    let give = |(uid, gid), uses| {
        as_user(uid, gid, || {
            let object = kernel_grant::open(&key, Kind::Content, Access::ReadOnly)?;
            kernel_grant::send(
                object.as_fd(),
                Access::ReadOnly,
                Path::new("/run/secrets/key"),
                uses,
            )
        })
    };
    assert!(give(BOB, Uses::Once).is_err(), "bob can't read it");

    let lasting = give(ALICE, Uses::Lasting).expect("alice can");
    for _ in 0..2 {
        let again = lasting.try_clone().expect("dup");
        let script =
            "cat /run/secrets/key; stat -c %a:%u /run/secrets/key; ls -l /proc/self/fd | wc -l";
        let agent = broker.launch_with(&copied(script), &[again]);
        let (code, stdout, stderr) = agent.output();
        // The three streams, the folder that ls reads, and a line for the sum.
        assert_eq!(
            (code, stdout.as_str()),
            (0, "hunter2\n400:1000\n5\n"),
            "{stderr}"
        );
        broker.wait_gone(agent.slot);
    }
    broker.finish();
}
