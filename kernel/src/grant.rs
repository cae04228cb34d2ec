//! Grants: the right to use one file object in one sandbox, given by whoever opened it.
//!
//! agentctl opens the workspace *as the caller* and makes a grant for it ([`send`]); agentd only forwards the grant; the
//! broker alone uses it ([`receive`]). A grant is one end of a SOCK_SEQPACKET pair in whose queue sits one message:
//! the opened object (`SCM_RIGHTS`), the wanted access, the path inside the sandbox, and the giver's ids as the kernel
//! attests them (`SCM_CREDENTIALS`). The other end is already closed, so nobody can add to it or alter it. Whoever forwards
//! it may drop it or look at it, but can't make one in somebody else's name.
//!
//! The giver also says how often it can be used ([`Uses`]): a grant for one launch is consumed by it; a lasting one is read
//! with `MSG_PEEK` and stays whole, so that an agent can be started again, by the same socket and in the same giver's name.
//!
//! Never opens a path, never trusts an id from the bytes. Callable from any thread; needs no privilege. Every way in which
//! a grant can be wrong is a [`GrantError`]; the socket is closed in any case.

use crate::fdpass::{self, ReceiveError, Received, Wait};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest path inside the sandbox, in bytes (`PATH_MAX` less the terminator).
pub const MAX_DST: usize = 4095;

/// The largest file of which a sandbox gets a copy, in bytes.
pub const MAX_CONTENT: u64 = 1 << 20;

const MAGIC: [u8; 4] = *b"AGGR";
const VERSION: u16 = 1;
/// magic, version u16, access u8, uses u8.
const HEADER: usize = 8;
/// What the kernel shows for ids that it was not told or that have no name in our namespace.
const OVERFLOW_ID: u32 = 65534;

/// What the agent may do with the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// What kind of file is granted: nothing but this may be at the path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A directory or a regular file.
    #[default]
    File,
    /// A unix socket that something may listen on. To connect takes the right to write it, which the kernel asks then.
    Socket,
    /// A character device. To open it takes what its owner, group and mode say, which the kernel asks then.
    Device,
    /// A regular file of which the sandbox gets a copy, and not the file: never followed through a link, at most
    /// [`MAX_CONTENT`] bytes. Whoever receives it finds a [`Kind::File`]; the plan says that it is copied.
    Content,
}

impl Kind {
    /// `None` for what can't be granted: block devices, FIFOs, links.
    fn of(object: BorrowedFd<'_>) -> Result<Option<Kind>, GrantError> {
        use rustix::fs::FileType;
        let stat = rustix::fs::fstat(object).map_err(|errno| GrantError::Os {
            call: "fstat",
            source: errno.into(),
        })?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory | FileType::RegularFile => Some(Kind::File),
            FileType::Socket => Some(Kind::Socket),
            FileType::CharacterDevice => Some(Kind::Device),
            _ => None,
        })
    }
}

/// Opens what is to be granted, with this process's rights: for reading, so that nobody grants what they could not read, and
/// checks writing where it is asked for. Sockets and devices are named, not opened. Never blocks on a FIFO, never makes a
/// terminal ours.
///
/// # Errors
/// What the call says; [`GrantError::Kind`] for another kind than the wanted one.
pub fn open(path: &Path, kind: Kind, access: Access) -> Result<OwnedFd, GrantError> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags};
    let os = |call| {
        move |errno: rustix::io::Errno| GrantError::Os {
            call,
            source: errno.into(),
        }
    };
    let flags = match kind {
        Kind::File => OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK,
        Kind::Content => OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW,
        Kind::Socket | Kind::Device => OFlags::PATH,
    };
    let opened = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    if kind == Kind::Content && opened.as_ref().err() == Some(&rustix::io::Errno::LOOP) {
        return Err(GrantError::Content {
            problem: "is a symbolic link (name what it leads to)",
        });
    }
    let object = opened.map_err(os("open"))?;
    if kind == Kind::Content {
        return check_content(object);
    }
    if Kind::of(object.as_fd())? != Some(kind) {
        return Err(GrantError::Kind);
    }
    if access == Access::ReadWrite {
        let check = rustix::fs::Access::WRITE_OK;
        rustix::fs::accessat(CWD, path, check, AtFlags::EACCESS).map_err(os("access"))?;
    }
    Ok(object)
}

/// A file that can be copied.
fn check_content(object: OwnedFd) -> Result<OwnedFd, GrantError> {
    use rustix::fs::FileType;
    let stat = rustix::fs::fstat(&object).map_err(|errno| GrantError::Os {
        call: "fstat",
        source: errno.into(),
    })?;
    let problem = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if u64::try_from(stat.st_size).is_ok_and(|s| s <= MAX_CONTENT) => {
            return Ok(object);
        }
        FileType::RegularFile => "is larger than 1 MiB",
        FileType::Directory => "is a directory",
        FileType::Fifo => "is a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "is a device",
        _ => "is neither a file nor anything that can be read",
    };
    Err(GrantError::Content { problem })
}

/// How often a grant can be used; its giver decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uses {
    /// By one launch, which consumes it.
    Once,
    /// By any number of launches, for as long as somebody keeps the grant's socket.
    Lasting,
}

/// What a grant's bytes say; nothing of it is attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub access: Access,
    /// Absolute, without `.` or `..` components.
    pub dst: PathBuf,
    pub uses: Uses,
}

/// A grant as its user gets it.
#[derive(Debug)]
pub struct Grant {
    /// What the giver opened.
    pub object: OwnedFd,
    pub kind: Kind,
    pub access: Access,
    /// Absolute, without `.` or `..` components.
    pub dst: PathBuf,
    pub uses: Uses,
    /// The giver's effective ids when the grant was made, attested by the kernel.
    pub uid: u32,
    pub gid: u32,
    pub pid: i32,
}

/// Why a grant could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    #[error(
        "the grant's path {path:?} must be absolute, without . or .. components, and at most {MAX_DST} bytes long"
    )]
    Path { path: PathBuf },
    #[error(
        "only a directory or a regular file can be granted, or, where a policy lists it as such, a unix socket or a character device"
    )]
    Kind,
    #[error("it {problem}; a regular file of at most 1 MiB can be copied into a sandbox")]
    Content { problem: &'static str },
    #[error("{call}: {source}")]
    Os {
        call: &'static str,
        source: io::Error,
    },
    #[error("the descriptor is not an AF_UNIX SOCK_SEQPACKET socket")]
    NotAGrant,
    #[error("the grant is empty: a grant can be used once")]
    Spent,
    #[error("the grant's message is malformed ({what})")]
    Malformed { what: &'static str },
    #[error(
        "the kernel attests no sender for the grant (sent without credentials, or from a namespace out of sight)"
    )]
    Unattested,
}

/// Makes a grant of `object` in the name of this process's effective ids. Hand the returned socket to agentd.
///
/// # Errors
/// [`GrantError::Path`] and [`GrantError::Kind`] before anything is sent, [`GrantError::Os`] if a call fails.
pub fn send(
    object: BorrowedFd<'_>,
    access: Access,
    dst: &Path,
    uses: Uses,
) -> Result<OwnedFd, GrantError> {
    check_dst(dst)?;
    check_kind(object)?;
    let mut message = Vec::with_capacity(HEADER + dst.as_os_str().len());
    message.extend_from_slice(&MAGIC);
    message.extend_from_slice(&VERSION.to_le_bytes());
    message.push(match access {
        Access::ReadOnly => 0,
        Access::ReadWrite => 1,
    });
    message.push(match uses {
        Uses::Once => 0,
        Uses::Lasting => 1,
    });
    message.extend_from_slice(dst.as_os_str().as_bytes());
    let (ours, theirs) = fdpass::seqpacket_pair().map_err(|source| GrantError::Os {
        call: "socketpair",
        source,
    })?;
    fdpass::send_with_credentials(ours.as_fd(), &message, &[object]).map_err(|source| {
        GrantError::Os {
            call: "sendmsg",
            source,
        }
    })?;
    Ok(theirs)
}

/// Uses a grant: consumes one that is for one use, leaves a lasting one whole. Never blocks.
///
/// # Errors
/// Anything that is not exactly one well-formed grant message with one object and an attested sender.
pub fn receive(socket: OwnedFd) -> Result<Grant, GrantError> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let is_grant = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&socket) == Ok(SocketType::SEQPACKET);
    if !is_grant {
        return Err(GrantError::NotAGrant);
    }
    fdpass::pass_credentials(socket.as_fd()).map_err(|source| GrantError::Os {
        call: "SO_PASSCRED",
        source,
    })?;
    let mut buffer = [0u8; HEADER + MAX_DST + 1];
    // A message that does not parse is taken out of the queue too, like one for one use.
    if let Ok(received) = fdpass::peek(socket.as_fd(), &mut buffer, 1)
        && let Ok(terms) = parse_message(&buffer[..received.len])
        && terms.uses == Uses::Lasting
    {
        return attest(received, terms);
    }
    let received = fdpass::receive(socket.as_fd(), &mut buffer, 1, Wait::Never).map_err(
        |error| match error {
            error if error.is_would_block() => GrantError::Spent,
            ReceiveError::Io(source) => GrantError::Os {
                call: "recvmsg",
                source,
            },
            ReceiveError::TooLong { .. } => GrantError::Malformed { what: "too long" },
            ReceiveError::ControlTruncated => GrantError::Malformed {
                what: "more than one descriptor",
            },
        },
    )?;
    if received.len == 0 && received.fds.is_empty() {
        return Err(GrantError::Spent);
    }
    let terms = parse_message(&buffer[..received.len])?;
    attest(received, terms)
}

/// One message's object with what the kernel says of its sender; `terms` are those of the same message.
fn attest(received: Received, terms: Terms) -> Result<Grant, GrantError> {
    let Terms { access, dst, uses } = terms;
    let credentials = received.credentials.ok_or(GrantError::Unattested)?;
    if credentials.pid == 0 || is_nobody(credentials.uid) || is_nobody(credentials.gid) {
        return Err(GrantError::Unattested);
    }
    let object = received
        .fds
        .into_iter()
        .next()
        .ok_or(GrantError::Malformed {
            what: "no descriptor",
        })?;
    Ok(Grant {
        kind: check_kind(object.as_fd())?,
        object,
        access,
        dst,
        uses,
        uid: credentials.uid,
        gid: credentials.gid,
        pid: credentials.pid,
    })
}

/// What a grant says of itself, without consuming it: for whoever forwards it and must plan a place for it.
///
/// Nothing here is attested; the broker decides by what it receives. No descriptor is received. Never blocks.
///
/// # Errors
/// As [`receive`], as far as the bytes tell.
pub fn peek(socket: BorrowedFd<'_>) -> Result<Terms, GrantError> {
    use rustix::net::RecvFlags;
    let mut buffer = [0u8; HEADER + MAX_DST + 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    match rustix::net::recv(socket, &mut buffer[..], flags) {
        Ok((_, 0)) | Err(rustix::io::Errno::AGAIN) => Err(GrantError::Spent),
        Ok((_, len)) => {
            let bytes = buffer
                .get(..len)
                .ok_or(GrantError::Malformed { what: "too long" })?;
            parse_message(bytes)
        }
        Err(rustix::io::Errno::NOTSOCK) => Err(GrantError::NotAGrant),
        Err(errno) => Err(GrantError::Os {
            call: "recv",
            source: errno.into(),
        }),
    }
}

fn is_nobody(id: u32) -> bool {
    id == OVERFLOW_ID || id == u32::MAX
}

fn parse_message(bytes: &[u8]) -> Result<Terms, GrantError> {
    let Some((header, dst)) = bytes.split_at_checked(HEADER) else {
        return Err(GrantError::Malformed { what: "too short" });
    };
    if header[..4] != MAGIC {
        return Err(GrantError::Malformed { what: "magic" });
    }
    if header[4..6] != VERSION.to_le_bytes() {
        return Err(GrantError::Malformed { what: "version" });
    }
    let access = match header[6] {
        0 => Access::ReadOnly,
        1 => Access::ReadWrite,
        _ => return Err(GrantError::Malformed { what: "access" }),
    };
    let uses = match header[7] {
        0 => Uses::Once,
        1 => Uses::Lasting,
        _ => return Err(GrantError::Malformed { what: "uses" }),
    };
    let dst = Path::new(OsStr::from_bytes(dst));
    check_dst(dst)?;
    let dst = dst.to_path_buf();
    Ok(Terms { access, dst, uses })
}

/// Absolute, no NUL, no empty, `.` or `..` component, not the root itself.
fn check_dst(dst: &Path) -> Result<(), GrantError> {
    let bytes = dst.as_os_str().as_bytes();
    let clean = bytes.strip_prefix(b"/").is_some_and(|rest| {
        !rest.contains(&0)
            && rest
                .split(|&byte| byte == b'/')
                .all(|name| !matches!(name, b"" | b"." | b".."))
    });
    if clean && bytes.len() <= MAX_DST {
        Ok(())
    } else {
        Err(GrantError::Path {
            path: dst.to_path_buf(),
        })
    }
}

fn check_kind(object: BorrowedFd<'_>) -> Result<Kind, GrantError> {
    Kind::of(object)?.ok_or(GrantError::Kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, open};

    fn open_dir(path: &Path) -> OwnedFd {
        open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .expect("open directory")
    }

    /// A socket in whose queue sits `bytes`, sent with credentials.
    fn forged(bytes: &[u8], fds: &[BorrowedFd<'_>]) -> OwnedFd {
        let (ours, theirs) = fdpass::seqpacket_pair().expect("socketpair");
        fdpass::send_with_credentials(ours.as_fd(), bytes, fds).expect("send");
        theirs
    }

    #[test]
    fn a_peek_leaves_the_grant_whole() {
        let dir = std::fs::File::open("/").expect("open /");
        let (access, dst, uses) = (Access::ReadWrite, PathBuf::from("/w"), Uses::Once);
        let socket = send(dir.as_fd(), access, &dst, uses).expect("send");
        let terms = Terms { access, dst, uses };
        for _ in 0..2 {
            assert_eq!(peek(socket.as_fd()).expect("peek"), terms);
        }
        let spare = socket.try_clone().expect("dup");
        assert_eq!(receive(socket).expect("receive").dst, Path::new("/w"));
        assert!(matches!(peek(spare.as_fd()), Err(GrantError::Spent)));
    }

    #[test]
    fn a_grant_carries_the_object_the_access_and_the_giver() {
        let folder = tempfile::tempdir().expect("tempdir");
        let socket = send(
            open_dir(folder.path()).as_fd(),
            Access::ReadWrite,
            Path::new("/workspace"),
            Uses::Once,
        )
        .expect("grant");
        let grant = receive(socket).expect("receive");
        assert_eq!(grant.access, Access::ReadWrite);
        assert_eq!(grant.dst, Path::new("/workspace"));
        assert_eq!(grant.uid, rustix::process::geteuid().as_raw());
        assert_eq!(grant.gid, rustix::process::getegid().as_raw());
        assert_eq!(grant.pid, std::process::id() as i32);
        let (stat, expected) = (
            rustix::fs::fstat(&grant.object).expect("fstat"),
            rustix::fs::stat(folder.path()).expect("stat"),
        );
        assert_eq!(
            (stat.st_dev, stat.st_ino),
            (expected.st_dev, expected.st_ino)
        );
    }

    #[test]
    fn a_grant_can_be_used_once() {
        let folder = tempfile::tempdir().expect("tempdir");
        let socket = send(
            open_dir(folder.path()).as_fd(),
            Access::ReadOnly,
            Path::new("/w"),
            Uses::Once,
        )
        .expect("grant");
        let copy = socket.try_clone().expect("dup");
        receive(socket).expect("first use");
        assert!(matches!(receive(copy), Err(GrantError::Spent)));
    }

    #[test]
    fn a_lasting_grant_is_the_same_at_each_use() {
        let folder = tempfile::tempdir().expect("tempdir");
        let dir = open_dir(folder.path());
        let socket = send(
            dir.as_fd(),
            Access::ReadOnly,
            Path::new("/w"),
            Uses::Lasting,
        )
        .expect("grant");
        for _ in 0..3 {
            let grant = receive(socket.try_clone().expect("dup")).expect("each use");
            assert_eq!(
                (grant.access, grant.uses),
                (Access::ReadOnly, Uses::Lasting)
            );
            assert_eq!(grant.uid, rustix::process::geteuid().as_raw());
            let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).expect("fstat").st_ino;
            assert_eq!(inode(&grant.object), inode(&dir));
        }
    }

    #[test]
    fn a_lasting_grant_without_attested_sender_is_refused_each_time() {
        let dir = open_dir(Path::new("/"));
        let (ours, theirs) = fdpass::seqpacket_pair().expect("socketpair");
        fdpass::send(ours.as_fd(), b"AGGR\x01\x00\x00\x01/x", &[dir.as_fd()]).expect("send");
        drop(ours);
        for _ in 0..2 {
            let copy = theirs.try_clone().expect("dup");
            assert!(matches!(receive(copy), Err(GrantError::Unattested)));
        }
    }

    #[test]
    fn paths_that_could_escape_are_refused_on_both_sides() {
        let folder = tempfile::tempdir().expect("tempdir");
        let dir = open_dir(folder.path());
        for path in [
            "", "/", "relative", "/a/../b", "/a/./b", "/a//b", "/a/", "/a\0b",
        ] {
            let error =
                send(dir.as_fd(), Access::ReadOnly, Path::new(path), Uses::Once).expect_err(path);
            assert!(
                matches!(error, GrantError::Path { .. }),
                "{path:?}: {error}"
            );
            let mut bytes = b"AGGR\x01\x00\x00\x00".to_vec();
            bytes.extend_from_slice(path.as_bytes());
            assert!(receive(forged(&bytes, &[dir.as_fd()])).is_err(), "{path:?}");
        }
        let long = format!("/{}", "a".repeat(MAX_DST));
        assert!(matches!(
            send(dir.as_fd(), Access::ReadOnly, Path::new(&long), Uses::Once),
            Err(GrantError::Path { .. })
        ));
    }

    #[test]
    fn only_directories_files_sockets_and_character_devices_can_be_granted() {
        let (pipe, _writer) = rustix::pipe::pipe().expect("pipe");
        assert!(matches!(
            send(pipe.as_fd(), Access::ReadOnly, Path::new("/x"), Uses::Once),
            Err(GrantError::Kind)
        ));
        let socket = forged(b"AGGR\x01\x00\x00\x00/x", &[pipe.as_fd()]);
        assert!(matches!(receive(socket), Err(GrantError::Kind)));
    }

    #[test]
    fn what_is_granted_is_of_the_kind_that_was_wanted() {
        let folder = tempfile::tempdir().expect("tempdir");
        let listener = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&listener).expect("bind");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("write");
        let of = [
            (Path::new("/dev/null"), Kind::Device),
            (&listener, Kind::Socket),
            (&file, Kind::File),
            (folder.path(), Kind::File),
        ];
        for (path, kind) in of {
            for wanted in [Kind::File, Kind::Socket, Kind::Device, Kind::Content] {
                let opened = super::open(path, wanted, Access::ReadOnly);
                let fits = wanted == kind || (wanted == Kind::Content && *path == file);
                assert_eq!(opened.is_ok(), fits, "{path:?} as {wanted:?}");
                let Ok(object) = opened else { continue };
                let socket =
                    send(object.as_fd(), Access::ReadOnly, path, Uses::Once).expect("send");
                assert_eq!(receive(socket).expect("receive").kind, kind);
            }
        }
    }

    #[test]
    fn content_is_a_regular_file_of_bounded_size_and_never_a_link() {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("key"), "k").expect("write");
        std::os::unix::fs::symlink(at("key"), at("link")).expect("symlink");
        std::fs::File::create(at("large"))
            .and_then(|f| f.set_len(MAX_CONTENT + 1))
            .expect("write");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, Mode::RUSR, 0).expect("mkfifo");
        for (path, problem) in [
            (at("link"), "is a symbolic link"),
            (at("large"), "is larger than 1 MiB"),
            (at("fifo"), "is a FIFO"),
            (folder.path().to_owned(), "is a directory"),
            ("/dev/null".into(), "is a device"),
        ] {
            let error = super::open(&path, Kind::Content, Access::ReadOnly).expect_err(problem);
            assert!(error.to_string().contains(problem), "{path:?}: {error}");
        }
        assert!(super::open(&at("key"), Kind::Content, Access::ReadOnly).is_ok());
    }

    #[test]
    fn malformed_messages_are_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let dir = open_dir(folder.path());
        let one: &[BorrowedFd<'_>] = &[dir.as_fd()];
        for (bytes, fds) in [
            (&b"AGG"[..], one),
            (b"XXXX\x01\x00\x00\x00/x", one),
            (b"AGGR\x02\x00\x00\x00/x", one),
            (b"AGGR\x01\x00\x02\x00/x", one),
            (b"AGGR\x01\x00\x00\x02/x", one),
            (b"AGGR\x01\x00\x00\x00/x", &[]),
            (b"AGGR\x01\x00\x00\x00/x", &[dir.as_fd(), dir.as_fd()]),
        ] {
            let error = receive(forged(bytes, fds)).expect_err("malformed");
            assert!(
                matches!(error, GrantError::Malformed { .. }),
                "{bytes:?}: {error}"
            );
        }
        let long = [&b"AGGR\x01\x00\x00\x00/"[..], &[b'a'; 2 * MAX_DST]].concat();
        assert!(matches!(
            receive(forged(&long, one)),
            Err(GrantError::Malformed { what: "too long" })
        ));
    }

    #[test]
    fn a_grant_without_attested_sender_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let dir = open_dir(folder.path());
        let (ours, theirs) = fdpass::seqpacket_pair().expect("socketpair");
        fdpass::send(ours.as_fd(), b"AGGR\x01\x00\x00\x00/x", &[dir.as_fd()]).expect("send");
        drop(ours);
        assert!(matches!(receive(theirs), Err(GrantError::Unattested)));
    }

    #[test]
    fn other_descriptors_are_not_grants() {
        let file: OwnedFd = tempfile::tempfile().expect("file").into();
        assert!(matches!(receive(file), Err(GrantError::NotAGrant)));
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().expect("pair");
        assert!(matches!(receive(stream.into()), Err(GrantError::NotAGrant)));
        let (silent, _open) = fdpass::seqpacket_pair().expect("pair");
        assert!(matches!(receive(silent), Err(GrantError::Spent)));
    }
}
