//! Grants that are not mounted files: sockets that the agent may connect to, devices that it may open, files that are copied.

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;

use agentd_launch::plan::{Mode, MountFlags};
use agentd_launch::status::{Status, Step};

use crate::harness::*;

#[test]
fn a_granted_socket_can_be_connected_to_and_its_neighbours_are_not_there() {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        return skip("python3", "/usr/bin/python3 is not there");
    }
    for mode in modes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = folder.path().join("service.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let _neighbour = UnixListener::bind(folder.path().join("other.sock")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        chown(&path, Some(inside_id()), Some(inside_id())).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            said
        });
        let script = "import os, socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/run/host/service.sock')\n\
            print(s.recv(9).decode(), os.listdir('/run/host'))\ns.sendall(b'ask')\n";
        let mut plan = plan(mode, &["/usr/bin/python3", "-I", "-c", script]);
        let flags = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::SOCKET;
        plan.grant_mount(0, "/run/host/service.sock", flags);
        let grant = as_broker(Mode::Root, || grant(mode, &path, inside_id()));
        let ended = run_with(mode, &plan, &[grant]);
        assert_eq!(ended.stdout, "hello ['service.sock']\n", "{}", ended.stderr);
        assert_eq!(server.join().unwrap(), "ask");
    }
}

/// Two device nodes that behave as `/dev/null` and `/dev/loop0`, if this user can make any.
fn nodes() -> Option<tempfile::TempDir> {
    use rustix::fs::{CWD, FileType, makedev, mknodat};
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let all = rustix::fs::Mode::from_raw_mode(0o666);
    for (name, kind, device) in [
        ("char", FileType::CharacterDevice, makedev(1, 3)),
        ("block", FileType::BlockDevice, makedev(7, 0)),
    ] {
        let path = folder.path().join(name);
        if let Err(errno) = mknodat(CWD, &path, kind, all, device) {
            skip("root", &format!("making a device node: {errno}"));
            return None;
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    }
    Some(folder)
}

#[test]
fn a_granted_character_device_works_and_only_where_it_was_granted_as_one() {
    let Some(folder) = nodes() else { return };
    for mode in modes() {
        let script = "echo gone > /dev/special && wc -c < /dev/special; echo x > /work/char; rm /dev/special";
        let mut plan = plan(mode, &["/bin/sh", "-c", script]);
        plan.grant_mount(
            0,
            "/dev/special",
            MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::DEVICE,
        )
        .grant_mount(1, "/work", MountFlags::NONE);
        let give = |path| as_broker(Mode::Root, || grant(mode, path, inside_id()));
        let grants = [give(&folder.path().join("char")), give(folder.path())];
        let ended = run_with(mode, &plan, &grants);
        assert_eq!(ended.stdout, "0\n", "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 2, "{}", ended.stderr);
    }
}

#[test]
fn nothing_but_what_the_plan_says_is_mounted() {
    let Some(folder) = nodes() else { return };
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for mode in modes() {
        for (name, flags) in [
            ("block", MountFlags::DEVICE),
            ("block", MountFlags::NONE),
            ("char", MountFlags::NONE),
            ("char", MountFlags::SOCKET),
            ("file", MountFlags::DEVICE),
            ("file", MountFlags::SOCKET),
        ] {
            let mut plan = plan(mode, &["/bin/true"]);
            plan.grant_mount(0, "/x", flags);
            let grant = as_broker(Mode::Root, || {
                grant(mode, &folder.path().join(name), inside_id())
            });
            let sandbox = as_broker(mode, || spawn(mode, &plan.finish().unwrap(), &[grant]));
            let Some((Status::Failed(failure), _)) = sandbox.receive() else {
                panic!("{name} was mounted with {flags:?}");
            };
            assert_eq!((failure.step, failure.errno), (Step::Grant, libc::EINVAL));
        }
    }
}

#[test]
fn a_copied_file_is_what_was_opened_and_only_a_small_regular_file_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let copy = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::COPY;
    for mode in modes() {
        std::fs::write(at("key"), "opened\n").unwrap();
        let opened = std::fs::File::open(at("key")).unwrap();
        // Another file has its name by the time of the launch.
        std::fs::remove_file(at("key")).unwrap();
        std::fs::write(at("key"), "replaced\n").unwrap();
        let script =
            "cat /run/secrets/key; stat -c %a:%u /run/secrets/key; echo x >> /run/secrets/key";
        let mut made = plan(mode, &["/bin/sh", "-c", script]);
        made.tmpfs("/run/secrets", 1 << 20, 2, 0o700, MountFlags::RDONLY)
            .grant_mount(0, "/run/secrets/key", copy);
        // The second launch begins where the file does, as the first: grants may last.
        for _ in 0..2 {
            let ended = run_with(mode, &made, &[opened.try_clone().unwrap().into()]);
            let shown = format!("opened\n400:{}\n", inside_id());
            assert_eq!(ended.stdout, shown, "{}", ended.stderr);
            assert!(!ended.stderr.is_empty(), "the copy was changed");
        }

        let large = std::fs::File::create(at("large")).unwrap();
        large
            .set_len(agentd_launch::plan::MAX_SECRET_BYTES + 1)
            .unwrap();
        for (name, errno) in [("large", libc::EFBIG), ("", libc::EINVAL)] {
            let mut made = plan(mode, &["/bin/true"]);
            made.tmpfs("/run/secrets", 4 << 20, 2, 0o700, MountFlags::RDONLY)
                .grant_mount(0, "/run/secrets/key", copy);
            let object = std::fs::File::open(at(name)).unwrap();
            let grants = [object.into()];
            let sandbox = as_broker(mode, || spawn(mode, &made.finish().unwrap(), &grants));
            let Some((Status::Failed(failure), _)) = sandbox.receive() else {
                panic!("{name:?} was copied");
            };
            assert_eq!(
                (failure.step, failure.errno),
                (Step::Copy, errno),
                "{name:?}"
            );
        }
    }
}
