//! The host's sockets, shared memory, queues and keys.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use super::{done, fd, loot, unavailable};
use crate::case::{Attempt, Case, Effect, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

const KEYCTL_READ: i32 = 11;
const KEYCTL_SEARCH: i32 = 10;
const KEYCTL_UPDATE: i32 = 2;
const KEY_SPEC_USER_KEYRING: i32 = -4;
const KEY_SPEC_SESSION_KEYRING: i32 = -3;

const fn heard(id: &'static str, title: &'static str, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, title, run).effect(Effect::Heard)
}

pub const CASES: &[Case] = &[
    heard("ipc_abs", "an abstract socket of the host", |s| {
        let address = SocketAddr::from_abstract_name(&s.abstract_stream)?;
        say(UnixStream::connect_addr(&address)?, s)
    }),
    heard(
        "ipc_abs_dgram",
        "an abstract datagram socket of the host",
        |s| {
            let address = SocketAddr::from_abstract_name(&s.abstract_dgram)?;
            UnixDatagram::unbound()?.send_to_addr(s.case.as_bytes(), &address)?;
            done("sent")
        },
    ),
    heard(
        "ipc_abs_bind",
        "take an abstract name that host programs connect to",
        |s| {
            let address = SocketAddr::from_abstract_name(&s.abstract_wanted)?;
            let listener = UnixListener::bind_addr(&address)?;
            accepted(&listener, s)
        },
    ),
    heard("ipc_path_out", "a socket outside by its path", |s| {
        say(UnixStream::connect(&s.unix)?, s)
    }),
    heard(
        "ipc_path_dgram",
        "a datagram socket outside by its path",
        |s| {
            UnixDatagram::unbound()?.send_to(s.case.as_bytes(), &s.unix_dgram)?;
            done("sent")
        },
    ),
    heard(
        "ipc_path_symlink",
        "a socket outside through a link of the agent's own",
        |s| {
            std::os::unix::fs::symlink(&s.unix, s.own())?;
            say(UnixStream::connect(s.own())?, s)
        },
    ),
    heard(
        "ipc_path_proc",
        "a socket outside through /proc/PID/root",
        |s| {
            say(
                UnixStream::connect(format!("/proc/{}/root{}", s.victim.pid, s.unix.display()))?,
                s,
            )
        },
    ),
    Case::new("ipc_fifo_out", "a fifo outside", |s| {
        let path = c(&s.fifo);
        call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_c_str(),
            libc::O_RDWR | libc::O_NONBLOCK
        )?;
        done("it is open")
    }),
    Case::new("ipc_dbus", "the system or session bus", |_| {
        any_socket(&[
            "/run/dbus/system_bus_socket",
            "/run/user/0/bus",
            "/run/user/1000/bus",
        ])
    })
    .cannot("whether a bus runs is the host's affair"),
    Case::new("ipc_docker", "container engines", |_| {
        any_socket(&[
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/containerd/containerd.sock",
            "/run/podman/podman.sock",
        ])
    })
    .cannot("whether one runs is the host's affair"),
    Case::new("ipc_systemd", "systemd's and the journal's sockets", |_| {
        any_socket(&[
            "/run/systemd/private",
            "/run/systemd/notify",
            "/run/systemd/journal/socket",
            "/run/systemd/journal/stdout",
            "/dev/log",
        ])
    })
    .cannot("whether systemd runs is the host's affair"),
    Case::new(
        "ipc_display",
        "X11, Wayland, PipeWire, ssh-agent, gpg-agent",
        |_| {
            any_socket(&[
                "/tmp/.X11-unix/X0",
                "/run/user/1000/wayland-0",
                "/run/user/1000/pipewire-0",
                "/run/user/1000/gnupg/S.gpg-agent",
                "/run/user/1000/keyring/ssh",
            ])
        },
    )
    .cannot("whether one runs is the host's affair"),
    Case::new(
        "ipc_agentd",
        "agentd's own control and broker sockets",
        |s| {
            let Some(folder) = &s.runtime_dir else {
                return unavailable("no agentd runs here");
            };
            let paths =
                ["control.sock", "broker.sock"].map(|name| folder.join(name).display().to_string());
            any_socket(&paths.each_ref().map(String::as_str))
        },
    )
    .cannot("there is no agentd without a sandbox"),
    Case::new("ipc_shm", "POSIX shared memory", |s| {
        loot(format!("/dev/shm/{}", s.shm_name))
    })
    .secret(),
    Case::new("ipc_sysv", "System V shared memory by its key", |s| {
        let id = call!(libc::SYS_shmget, s.shm_key, 0, 0)?;
        attach(fd(id))
    })
    .secret(),
    Case::new("ipc_sysv_id", "System V shared memory by its id", |s| {
        attach(s.shm_id)
    })
    .secret(),
    Case::new(
        "ipc_sysv_stat",
        "System V shared memory by SHM_STAT_ANY",
        |s| {
            let mut buffer = [0_u64; 32];
            let index = s.shm_id & 0x7fff;
            let id = call!(libc::SYS_shmctl, index, 15, buffer.as_mut_ptr())?;
            if fd(id) == s.shm_id {
                done("the segment answers")
            } else {
                Err(Refused::without_errno("another segment"))
            }
        },
    ),
    Case::new("ipc_sem", "a System V semaphore", |s| {
        let id = call!(libc::SYS_semget, s.sem_key, 0, 0)?;
        let mut operation = libc::sembuf {
            sem_num: 0,
            sem_op: 1,
            sem_flg: libc::IPC_NOWAIT as i16,
        };
        call!(libc::SYS_semop, id, &mut operation, 1)?;
        done("it was raised")
    }),
    Case::new("ipc_msg", "a System V message queue", |s| {
        let id = call!(libc::SYS_msgget, s.msg_key, 0)?;
        let mut message = vec![0_u8; 512];
        let count = call!(
            libc::SYS_msgrcv,
            id,
            message.as_mut_ptr(),
            500,
            0,
            libc::IPC_NOWAIT
        )?;
        Ok(Attempt::Loot(message[8..8 + count].to_vec()))
    })
    .secret(),
    Case::new("ipc_mq", "a POSIX message queue", |s| {
        let name = c(&s.mq_name);
        let queue = call!(
            libc::SYS_mq_open,
            name.as_c_str(),
            libc::O_RDWR | libc::O_NONBLOCK,
            0,
            0
        )?;
        let mut message = vec![0_u8; 8192];
        let count = call!(
            libc::SYS_mq_timedreceive,
            queue,
            message.as_mut_ptr(),
            message.len(),
            0,
            0
        )?;
        message.truncate(count);
        Ok(Attempt::Loot(message))
    })
    .secret(),
    Case::new("ipc_keyring", "search the caller's keyring", |s| {
        let name = c(&s.key_name);
        let key = call!(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            KEY_SPEC_USER_KEYRING,
            c"user",
            name.as_c_str(),
            0
        )?;
        read_key(fd(key))
    })
    .secret(),
    Case::new("ipc_keyring_id", "read the caller's key by its id", |s| {
        read_key(s.key_id)
    })
    .secret(),
    Case::new("ipc_key_update", "change the caller's key", |s| {
        // With what it holds, so that other cases still find it.
        let mut bytes = vec![0_u8; 256];
        let count = call!(
            libc::SYS_keyctl,
            KEYCTL_READ,
            s.key_id,
            bytes.as_mut_ptr(),
            bytes.len()
        )?;
        call!(
            libc::SYS_keyctl,
            KEYCTL_UPDATE,
            s.key_id,
            bytes.as_ptr(),
            count
        )?;
        done("it was changed")
    }),
    Case::new("ipc_request_key", "request_key", |s| {
        let name = c(&s.key_name);
        let key = call!(libc::SYS_request_key, c"user", name.as_c_str(), 0, 0)?;
        read_key(fd(key))
    })
    .secret(),
    Case::new(
        "ipc_add_key",
        "a key of one's own, which outlives the session",
        |_| {
            call!(
                libc::SYS_add_key,
                c"user",
                c"escape",
                c"x",
                1,
                KEY_SPEC_SESSION_KEYRING
            )?;
            done("a key was added")
        },
    ),
];

fn say(mut stream: UnixStream, s: &Scene) -> Try {
    stream.write_all(s.case.as_bytes())?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut bytes = vec![0; 256];
    let count = stream.read(&mut bytes)?;
    bytes.truncate(count);
    Ok(Attempt::Loot(bytes))
}

/// Waits a second for somebody to come.
fn accepted(listener: &UnixListener, s: &Scene) -> Try {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    call!(libc::SYS_poll, &mut poll, 1, 1000)?;
    if poll.revents == 0 {
        return Err(Refused::without_errno("nobody came"));
    }
    let (mut stream, _) = listener.accept()?;
    stream.write_all(s.case.as_bytes())?;
    done("somebody came")
}

fn any_socket(paths: &[&str]) -> Try {
    let mut last = Refused::new("connect", libc::ENOENT);
    for path in paths {
        let connected = UnixStream::connect(path)
            .map(drop)
            .or_else(|_| UnixDatagram::unbound()?.connect(path));
        match connected {
            Ok(()) => return done(format!("{path} answers")),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn attach(id: i32) -> Try {
    let at = call!(libc::SYS_shmat, id, 0, libc::SHM_RDONLY)?;
    // SAFETY: the kernel attached at least one page there.
    let bytes =
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(at), 256) };
    Ok(Attempt::Loot(bytes.to_vec()))
}

fn read_key(key: i32) -> Try {
    let mut bytes = vec![0_u8; 256];
    let count = call!(
        libc::SYS_keyctl,
        KEYCTL_READ,
        key,
        bytes.as_mut_ptr(),
        bytes.len()
    )?;
    bytes.truncate(count);
    Ok(Attempt::Loot(bytes))
}
