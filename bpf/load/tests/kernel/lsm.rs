//! Programs, files and the guard, where the kernel loads BPF LSM: what an agent loses, what it
//! keeps, and that nobody else on the host notices.

use crate::bed::{Agent, Bed, Child};
use agentd_bpf::Group;
use agentd_bpf::layout::{op, revoked};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use std::ffi::CString;
use std::os::unix::net::UnixListener;
use std::path::Path;

fn code<T>(tried: Result<T, Errno>) -> i32 {
    tried.map_or_else(|errno| errno.raw_os_error(), |_| 0)
}

/// Becomes `/bin/true`, which ends with 0; otherwise the errno.
fn exec() -> i32 {
    let program = c"/bin/true".as_ptr();
    let arguments = [program, std::ptr::null()];
    // SAFETY: strings and array end with null and outlive the call, which returns only if it fails.
    unsafe { libc::execve(program, arguments.as_ptr(), [std::ptr::null()].as_ptr()) };
    std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

#[test]
fn no_program_is_started_without_exec_and_others_start_theirs() {
    let Some(mut bed) = Bed::with(Group::Exec) else {
        return;
    };
    let (agent, other, stranger) = (bed.agent(), bed.agent(), bed.stranger());
    assert_eq!(agent.run(exec), 0);
    bed.restrict(&agent, revoked::EXEC);
    assert_eq!(agent.run(exec), libc::EPERM);
    let told = bed.denials();
    let program = rustix::fs::stat("/bin/true").expect("stat");
    let named = [program.st_dev, program.st_ino, 0];
    assert!(
        told.iter().any(|denial| denial.op == op::EXEC
            && denial.slot == agent.slot
            && denial.detail == named),
        "{named:?} {told:?}"
    );
    for free in [&other, &stranger] {
        assert_eq!(free.run(exec), 0);
    }
    bed.restrict(&agent, 0);
    assert_eq!(agent.run(exec), 0);
}

/// Tries it; the errno.
type Change = Box<dyn Fn() -> i32>;

/// Ways to change a file of `directory`, which has `old` and `gone` in it.
fn changes(directory: &Path) -> Vec<(&'static str, Change)> {
    let at = |name: &str| {
        CString::new(directory.join(name).into_os_string().into_encoded_bytes()).expect("a path")
    };
    let (old, fresh, gone) = (at("old"), at("fresh"), at("gone"));
    let open = |path: &CString, flags: OFlags| {
        let path = path.clone();
        move || code(rustix::fs::open(path.as_c_str(), flags, Mode::RUSR))
    };
    vec![
        ("open", Box::new(open(&old, OFlags::WRONLY))),
        (
            "truncate",
            Box::new(open(&old, OFlags::RDWR | OFlags::TRUNC)),
        ),
        (
            "create",
            Box::new(open(&fresh, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)),
        ),
        (
            "mkdir",
            Box::new({
                let path = at("dir");
                move || code(rustix::fs::mkdir(path.as_c_str(), Mode::RWXU))
            }),
        ),
        (
            "link",
            Box::new({
                let (old, path) = (old.clone(), at("link"));
                move || code(rustix::fs::link(old.as_c_str(), path.as_c_str()))
            }),
        ),
        (
            "symlink",
            Box::new({
                let path = at("symlink");
                move || code(rustix::fs::symlink(c"x", path.as_c_str()))
            }),
        ),
        (
            "rename",
            Box::new({
                let path = at("moved");
                move || code(rustix::fs::rename(gone.as_c_str(), path.as_c_str()))
            }),
        ),
        (
            "unlink",
            Box::new({
                let path = at("moved");
                move || code(rustix::fs::unlink(path.as_c_str()))
            }),
        ),
        (
            "chmod",
            Box::new({
                let old = old.clone();
                move || {
                    code(rustix::fs::chmodat(
                        CWD,
                        old.as_c_str(),
                        Mode::RWXU,
                        AtFlags::empty(),
                    ))
                }
            }),
        ),
    ]
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["old", "gone"] {
        std::fs::write(directory.path().join(name), "text").expect("write");
    }
    directory
}

#[test]
fn no_file_is_changed_without_write_and_reading_goes_on() {
    let Some(bed) = Bed::with(Group::Write) else {
        return;
    };
    let (agent, stranger) = (bed.agent(), bed.stranger());
    let kept = directory();
    bed.restrict(&agent, revoked::WRITE);
    for (name, change) in changes(kept.path()) {
        // What the refused ones before it left undone does not matter: the hook is asked first, but for the look-up.
        let refused = agent.run(&*change);
        assert!(
            [libc::EPERM, libc::ENOENT].contains(&refused),
            "{name}: {refused}"
        );
        assert!(refused == libc::EPERM || name == "unlink", "{name}");
    }
    let mut left: Vec<_> = std::fs::read_dir(kept.path())
        .expect("list")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["gone", "old"]);
    assert_eq!(
        std::fs::read(kept.path().join("old")).expect("read"),
        b"text"
    );
    let old = kept.path().join("old");
    assert_eq!(
        agent.run(|| code(rustix::fs::open(&old, OFlags::RDONLY, Mode::empty()))),
        0
    );
    let device = || code(rustix::fs::open("/dev/null", OFlags::WRONLY, Mode::empty()));
    assert_eq!(agent.run(device), 0, "a device is no file");
    bed.restrict(&agent, 0);
    for who in [&agent, &stranger] {
        let own = directory();
        for (name, change) in changes(own.path()) {
            assert_eq!(who.run(&*change), 0, "{name}");
        }
    }
}

#[test]
fn no_agent_uses_bpf_or_looks_into_a_process_that_is_not_its_own() {
    let Some(bed) = Bed::with(Group::Guard) else {
        return;
    };
    let (agent, other, stranger) = (bed.agent(), bed.agent(), bed.stranger());
    // SAFETY: no attributes: the kernel reads nothing.
    let bpf = || unsafe { libc::syscall(libc::SYS_bpf, 0, std::ptr::null::<u8>(), 0) } as i32;
    let bpf = || {
        if bpf() < 0 {
            std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
        } else {
            0
        }
    };
    assert_eq!(agent.run(bpf), libc::EPERM);
    assert_ne!(stranger.run(bpf), libc::EPERM);

    let sleeper = |of: &Agent| -> (Child, i32) {
        let child = of.start(|| {
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        });
        let pid = child.pid().as_raw_pid();
        (child, pid)
    };
    let look =
        |pid: i32| move || code(rustix::fs::readlink(format!("/proc/{pid}/exe"), Vec::new()));
    let (_own, own) = sleeper(&agent);
    let (_foreign, foreign) = sleeper(&other);
    assert_eq!(agent.run(look(own)), 0, "its own");
    assert_eq!(agent.run(look(foreign)), libc::EACCES, "another agent's");
    assert_eq!(stranger.run(look(foreign)), 0, "nobody's business");
}

#[test]
fn without_the_network_unix_sockets_of_the_host_are_refused_and_its_own_are_not() {
    let Some(bed) = Bed::with(Group::Guard) else {
        return;
    };
    let agent = bed.agent();
    let place = tempfile::tempdir().expect("a directory");
    let (hosts, own) = (place.path().join("host"), place.path().join("own"));
    let _listener = UnixListener::bind(&hosts).expect("bind");
    let to = |path: &Path| {
        let address = SocketAddrUnix::new(path).expect("an address");
        code(
            socket(AddressFamily::UNIX, SocketType::STREAM, None)
                .and_then(|s| connect(&s, &address)),
        )
    };
    let both = || {
        let _mine = UnixListener::bind(&own);
        let said = (to(&hosts), to(&own));
        std::fs::remove_file(&own).ok();
        match said {
            (0, 0) => 0,
            (libc::EPERM, 0) => 1,
            _ => 2,
        }
    };
    assert_eq!(agent.run(both), 0);
    bed.restrict(&agent, revoked::NET);
    assert_eq!(agent.run(both), 1);
}
