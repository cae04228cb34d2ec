//! The mount view: a tmpfs that becomes `/`, filled by descriptor.
//!
//! Every path is resolved once, without following any symbolic link: sources from the host's root, targets from the new
//! root and never out of it, so that a link planted in a granted directory leads nowhere. Runs in the launcher with
//! `CAP_SYS_ADMIN` of the new user namespace. `nosuid` and `nodev` are on everything that comes from the host.

use core::ffi::CStr;

use agentd_kernel::sys::fs::{
    self, FileKind, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH, O_RDONLY, O_WRONLY,
    RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS,
};
use agentd_kernel::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Depth};
use agentd_kernel::sys::{Errno, Fd, FdRef, process};

use super::{During, Outcome};
use crate::plan::{MAX_PATH, MAX_SECRET_BYTES, Mode, MountFlags, Plan, Record};
use crate::status::{NO_RECORD, Step};

pub(super) const RESOLVE: u64 = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;

/// Room for the plan's small files, links and directories; all else is on mounts of its own.
const ROOT_SIZE: &CStr = c"16m";
const ROOT_INODES: &CStr = c"16384";

/// A view under construction: on top of the host's root, which lookups from `/` still start beneath.
pub(super) struct View {
    root: Fd,
    host: Fd,
    known: Option<Known>,
}

/// The directory that something was placed in last: records come sorted, so it is often the next one's too.
struct Known {
    path: PathBuffer,
    len: usize,
    fd: Fd,
}

/// What there is to bind.
enum Source<'t> {
    Link(&'t CStr),
    Tree(Fd, FileKind),
}

/// A view that nothing is added to any more.
pub(super) struct Sealed(View);

/// `path` without its leading slash, `.` for `/` itself. Plans hold absolute paths only.
pub(super) fn relative(path: &CStr) -> Result<&CStr, Errno> {
    match path.to_bytes_with_nul() {
        [b'/', 0] => Ok(c"."),
        [b'/', rest @ ..] => CStr::from_bytes_with_nul(rest).map_err(|_| Errno::INVAL),
        _ => Err(Errno::INVAL),
    }
}

/// A path or a part of one, with a NUL.
pub(super) struct PathBuffer([u8; MAX_PATH + 1]);

impl PathBuffer {
    pub(super) fn new() -> PathBuffer {
        PathBuffer([0; MAX_PATH + 1])
    }

    pub(super) fn join(&mut self, parts: &[&[u8]]) -> Result<&CStr, Errno> {
        let mut len = 0;
        for part in parts {
            self.0
                .get_mut(len..len + part.len())
                .ok_or(Errno::NAMETOOLONG)?
                .copy_from_slice(part);
            len += part.len();
        }
        *self.0.get_mut(len).ok_or(Errno::NAMETOOLONG)? = 0;
        CStr::from_bytes_with_nul(&self.0[..=len]).map_err(|_| Errno::INVAL)
    }
}

/// A number in decimal, for mount options.
pub(super) struct Decimal([u8; 21]);

impl Decimal {
    pub(super) fn new() -> Decimal {
        Decimal([0; 21])
    }

    pub(super) fn of(&mut self, value: u64) -> &CStr {
        self.in_base(value, 10)
    }

    fn octal(&mut self, value: u32) -> &CStr {
        // Modes have at most 12 bits, so four digits are enough.
        self.in_base(u64::from(value & 0o7777), 8)
    }

    fn in_base(&mut self, mut value: u64, base: u64) -> &CStr {
        let mut at = self.0.len() - 1;
        loop {
            at -= 1;
            self.0[at] = b'0' + (value % base) as u8;
            value /= base;
            if value == 0 {
                break;
            }
        }
        CStr::from_bytes_with_nul(&self.0[at..]).unwrap_or(c"0")
    }
}

pub(super) fn attributes(flags: MountFlags) -> u64 {
    let when = |flag, attribute| if flags.contains(flag) { attribute } else { 0 };
    let nodev = if flags.contains(MountFlags::DEVICE) {
        0
    } else {
        ATTR_NODEV
    };
    ATTR_NOSUID
        | nodev
        | when(MountFlags::RDONLY, ATTR_RDONLY)
        | when(MountFlags::NOEXEC, ATTR_NOEXEC)
}

impl View {
    /// Mounts the new root on top of the present one.
    pub(super) fn new() -> Outcome<View> {
        let make = || {
            let host = fs::openat2(FdRef::CWD, c"/", O_PATH | O_DIRECTORY, 0, 0)?;
            let root = new_root()?;
            mount::attach(root.borrow(), host.borrow())?;
            Ok(View {
                root,
                host,
                known: None,
            })
        };
        make().during(Step::Root, NO_RECORD)
    }

    /// A view at `place` of another, for a root that holds more than the view.
    pub(super) fn beneath(stage: &mut View, place: &CStr) -> Result<View, Errno> {
        let host = fs::openat2(FdRef::CWD, c"/", O_PATH | O_DIRECTORY, 0, 0)?;
        let root = new_root()?;
        stage.attach(&root, place, FileKind::Directory)?;
        Ok(View {
            root,
            host,
            known: None,
        })
    }

    pub(super) fn root(&self) -> FdRef<'_> {
        self.root.borrow()
    }

    /// The host's root.
    pub(super) fn host_root(&self) -> FdRef<'_> {
        self.host.borrow()
    }

    /// A file of the host.
    pub(super) fn host(&self, path: &CStr) -> Result<Fd, Errno> {
        fs::openat2(
            self.host.borrow(),
            relative(path)?,
            O_PATH | O_NOFOLLOW,
            0,
            RESOLVE,
        )
    }

    /// The directory that `path` lies in, made if need be, and its last component.
    fn parent<'p>(&mut self, path: &'p CStr) -> Result<(FdRef<'_>, &'p CStr), Errno> {
        let path = relative(path)?;
        let bytes = path.to_bytes_with_nul();
        let Some(slash) = bytes.iter().rposition(|byte| *byte == b'/') else {
            return Ok((self.root(), path));
        };
        let name = CStr::from_bytes_with_nul(&bytes[slash + 1..]).map_err(|_| Errno::INVAL)?;
        let directory = &bytes[..slash];
        let known = match self.known.take() {
            Some(known) if known.path.0[..known.len] == *directory => known,
            _ => {
                let mut path = PathBuffer::new();
                let fd = self.open_or_make(path.join(&[directory])?)?;
                let len = directory.len();
                Known { path, len, fd }
            }
        };
        Ok((self.known.insert(known).fd.borrow(), name))
    }

    fn open_or_make(&self, directory: &CStr) -> Result<Fd, Errno> {
        let flags = O_PATH | O_DIRECTORY;
        match fs::openat2(self.root(), directory, flags, 0, RESOLVE) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let mut buffer = PathBuffer::new();
        let mut deepest: Option<Fd> = None;
        for component in directory.to_bytes().split(|byte| *byte == b'/') {
            let parent = deepest.as_ref().map_or(self.root(), Fd::borrow);
            deepest = Some(place_directory(parent, buffer.join(&[component])?, 0o755)?);
        }
        deepest.ok_or(Errno::INVAL)
    }

    /// Forgets the last parent: mounts have come that could lie over it.
    pub(super) fn forget_parent(&mut self) {
        self.known = None;
    }

    /// The directory or file at `dst` for something of this kind to be mounted on, made if need be.
    pub(super) fn place(&mut self, dst: &CStr, kind: FileKind) -> Result<Fd, Errno> {
        let (parent, name) = self.parent(dst)?;
        match kind {
            FileKind::Directory => place_directory(parent, name, 0o755),
            _ => place_file(parent, name),
        }
    }

    pub(super) fn attach(&mut self, mount: &Fd, dst: &CStr, kind: FileKind) -> Result<(), Errno> {
        let (parent, name) = self.parent(dst)?;
        attach_at(mount, parent, name, kind)?;
        let is_covered = self.known.as_ref().is_some_and(|known| {
            let covered = relative(dst).map_or(&b""[..], CStr::to_bytes);
            known.path.0[..known.len].starts_with(covered)
        });
        if is_covered {
            self.forget_parent();
        }
        Ok(())
    }

    pub(super) fn bind(&mut self, src: &CStr, dst: &CStr, flags: MountFlags) -> Result<(), Errno> {
        let mut target = [0; MAX_PATH + 1];
        match self.source(src, &mut target) {
            Err(Errno::NOENT | Errno::NOTDIR) if flags.contains(MountFlags::OPTIONAL) => Ok(()),
            Err(errno) => Err(errno),
            Ok(Source::Link(_)) if !flags.contains(MountFlags::KEEP_LINK) => Err(Errno::LOOP),
            Ok(Source::Link(target)) => self.symlink(dst, target),
            Ok(Source::Tree(tree, kind)) => {
                mount::set_attributes(tree.borrow(), attributes(flags), Depth::Tree)?;
                self.attach(&tree, dst, kind)
            }
        }
    }

    fn source<'t>(&self, src: &CStr, target: &'t mut [u8]) -> Result<Source<'t>, Errno> {
        let name = relative(src)?;
        if name == c"." || name.to_bytes().contains(&b'/') {
            let source = self.host(src)?;
            return match fs::fstat(source.borrow())?.kind {
                FileKind::Symlink => fs::readlinkat(source.borrow(), c"", target).map(Source::Link),
                kind => Ok(Source::Tree(
                    mount::clone_tree(source.borrow(), Depth::Tree)?,
                    kind,
                )),
            };
        }
        // One component leads over no link but itself, so it is read and copied without being opened first.
        match fs::readlinkat(self.host.borrow(), name, target) {
            Err(Errno::INVAL) => {}
            link => return link.map(Source::Link),
        }
        let tree = mount::clone_named(self.host.borrow(), name, Depth::Tree)?;
        match fs::fstat(tree.borrow())?.kind {
            // It has become one meanwhile.
            FileKind::Symlink => Err(Errno::LOOP),
            kind => Ok(Source::Tree(tree, kind)),
        }
    }

    pub(super) fn mount_grant(
        &mut self,
        mode: Mode,
        grant: Fd,
        dst: &CStr,
        flags: MountFlags,
    ) -> Result<(), Errno> {
        let granted = fs::fstat(grant.borrow())?;
        let wanted = match (
            flags.contains(MountFlags::SOCKET),
            flags.contains(MountFlags::DEVICE),
        ) {
            (true, _) => granted.kind == FileKind::Socket,
            (_, true) => granted.kind == FileKind::CharDevice,
            _ => matches!(granted.kind, FileKind::Directory | FileKind::File),
        };
        if !wanted {
            return Err(Errno::INVAL);
        }
        let tree = self.granted_tree(mode, grant)?;
        mount::set_attributes(tree.borrow(), attributes(flags), Depth::Tree)?;
        self.attach(&tree, dst, granted.kind)
    }

    /// A detached mount of what was granted.
    pub(super) fn granted_tree(&self, mode: Mode, grant: Fd) -> Result<Fd, Errno> {
        if mode == Mode::Root {
            return Ok(grant);
        }
        // A descriptor of another mount namespace cannot be cloned: find the same file by its path in this one.
        let granted = fs::fstat(grant.borrow())?;
        let (mut number, mut link, mut target) =
            (Decimal::new(), PathBuffer::new(), [0; MAX_PATH + 1]);
        let number = number.of(u64::from(grant.borrow().raw().unsigned_abs()));
        let link = link.join(&[b"/proc/self/fd/", number.to_bytes()])?;
        let source = self.host(fs::readlinkat(FdRef::CWD, link, &mut target)?)?;
        let found = fs::fstat(source.borrow())?;
        if (found.dev, found.ino) != (granted.dev, granted.ino) {
            return Err(Errno::STALE);
        }
        mount::clone_tree(source.borrow(), Depth::Tree)
    }

    pub(super) fn tmpfs(
        &mut self,
        dst: &CStr,
        size: u64,
        inodes: u64,
        mode: u32,
        flags: MountFlags,
    ) -> Result<(), Errno> {
        let (mut a, mut b, mut c) = (Decimal::new(), Decimal::new(), Decimal::new());
        let options = [
            (c"size", a.of(size)),
            (c"nr_inodes", b.of(inodes)),
            (c"mode", c.octal(mode)),
        ];
        // Read-only comes last, when the plan's files are in it.
        let tmpfs = mount::new_mount(c"tmpfs", &options, attributes(flags) & !ATTR_RDONLY)?;
        self.attach(&tmpfs, dst, FileKind::Directory)
    }

    pub(super) fn file(&mut self, dst: &CStr, mode: u32, content: &[u8]) -> Result<(), Errno> {
        fs::write_all(self.new_file(dst, mode)?.borrow(), content)
    }

    /// What is in the granted file now, as a file of the view's own that only the agent can read. The giver opened it, and
    /// it may serve further launches: its position is left alone.
    pub(super) fn copy_grant(&mut self, grant: &Fd, dst: &CStr) -> Result<(), Errno> {
        if fs::fstat(grant.borrow())?.kind != FileKind::File {
            return Err(Errno::INVAL);
        }
        let file = self.new_file(dst, 0o400)?;
        copy_content(grant.borrow(), file.borrow(), MAX_SECRET_BYTES)
    }

    pub(super) fn new_file(&mut self, dst: &CStr, mode: u32) -> Result<Fd, Errno> {
        let (parent, name) = self.parent(dst)?;
        let flags = O_WRONLY | O_CREAT | O_EXCL;
        fs::openat2(parent, name, flags, mode, RESOLVE)
    }

    pub(super) fn symlink(&mut self, dst: &CStr, target: &CStr) -> Result<(), Errno> {
        let (parent, name) = self.parent(dst)?;
        fs::symlinkat(target, parent, name)
    }

    /// A directory that is already there is left as it is.
    pub(super) fn directory(&mut self, dst: &CStr, mode: u32) -> Result<(), Errno> {
        let (parent, name) = self.parent(dst)?;
        place_directory(parent, name, mode).map(drop)
    }

    /// A listening socket in the view; changes the working directory, as a socket's address has no room for a path.
    pub(super) fn listen(
        &mut self,
        path: &CStr,
        mode: u32,
        listen: fn(&CStr) -> Result<Fd, Errno>,
    ) -> Result<Fd, Errno> {
        let (parent, name) = self.parent(path)?;
        // An `O_PATH` descriptor is enough to change into.
        fs::fchdir(parent)?;
        process::umask(!mode & 0o777);
        let listener = listen(name);
        process::umask(0);
        listener
    }

    /// Makes the root and the tmpfs mounts that are to be so read-only.
    pub(super) fn seal(self, plan: &Plan<'_>) -> Outcome<Sealed> {
        for (at, record) in (0u16..).zip(plan.records()) {
            if let Record::Tmpfs { dst, flags, .. } = record
                && flags.contains(MountFlags::RDONLY)
            {
                let seal = || {
                    let mount = fs::openat2(
                        self.root(),
                        relative(dst)?,
                        O_PATH | O_DIRECTORY,
                        0,
                        RESOLVE,
                    )?;
                    mount::set_attributes(mount.borrow(), ATTR_RDONLY, Depth::One)
                };
                seal().during(Step::ReadOnly, at)?;
            }
        }
        self.seal_root()
    }

    /// Makes the root read-only, and nothing that is mounted on it.
    pub(super) fn seal_root(self) -> Outcome<Sealed> {
        mount::set_attributes(self.root(), ATTR_RDONLY, Depth::One)
            .during(Step::ReadOnly, NO_RECORD)?;
        Ok(Sealed(self))
    }
}

impl Sealed {
    /// Makes the view the root; the host's root is detached and out of reach.
    pub(super) fn enter(self) -> Outcome<()> {
        let Sealed(View { root, host, .. }) = self;
        drop(host);
        let enter = || {
            fs::fchdir(root.borrow())?;
            mount::pivot_here()?;
            mount::detach_here()
        };
        enter().during(Step::Pivot, NO_RECORD)
    }
}

/// All that is in a file, up to a limit.
pub(super) fn copy_content(from: FdRef<'_>, to: FdRef<'_>, most: u64) -> Result<(), Errno> {
    let (mut buffer, mut copied) = ([0; 4096], 0);
    loop {
        let len = fs::read_at(from, &mut buffer, copied)?;
        let read = buffer.get(..len).ok_or(Errno::INVAL)?;
        if read.is_empty() {
            return Ok(());
        }
        copied += len as u64;
        if copied > most {
            return Err(Errno::FBIG);
        }
        fs::write_all(to, read)?;
    }
}

fn new_root() -> Result<Fd, Errno> {
    let options = [
        (c"size", ROOT_SIZE),
        (c"nr_inodes", ROOT_INODES),
        (c"mode", c"0755"),
    ];
    mount::new_mount(c"tmpfs", &options, ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
}

/// Attaches a mount at `name`, which is made if it is not there; never at a link.
pub(super) fn attach_at(
    mount: &Fd,
    parent: FdRef<'_>,
    name: &CStr,
    kind: FileKind,
) -> Result<(), Errno> {
    let made = match kind {
        FileKind::Directory => fs::mkdirat(parent, name, 0o755),
        _ => fs::make_file(parent, name, 0o644),
    };
    if made.is_ok() {
        return mount::attach_named(mount.borrow(), parent, name);
    }
    let place = match kind {
        FileKind::Directory => place_directory(parent, name, 0o755),
        _ => place_file(parent, name),
    };
    mount::attach(mount.borrow(), place?.borrow())
}

/// The directory `name`, made if it is not there; never a link.
pub(super) fn place_directory(parent: FdRef<'_>, name: &CStr, mode: u32) -> Result<Fd, Errno> {
    match fs::mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        // What is there counts even where nothing could be made.
        Err(errno @ (Errno::ROFS | Errno::ACCES | Errno::PERM)) => {
            return fs::openat2(parent, name, O_PATH | O_DIRECTORY, 0, RESOLVE).map_err(|_| errno);
        }
        Err(errno) => return Err(errno),
    }
    fs::openat2(parent, name, O_PATH | O_DIRECTORY, 0, RESOLVE)
}

/// The file `name`, made empty if it is not there; never a link.
pub(super) fn place_file(parent: FdRef<'_>, name: &CStr) -> Result<Fd, Errno> {
    match fs::openat2(parent, name, O_RDONLY | O_CREAT | O_EXCL, 0o644, RESOLVE) {
        Err(Errno::EXIST | Errno::ROFS | Errno::ACCES) => {
            fs::openat2(parent, name, O_PATH, 0, RESOLVE)
        }
        file => file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal_and_octal() {
        assert_eq!(Decimal::new().of(0), c"0");
        assert_eq!(Decimal::new().of(u64::MAX), c"18446744073709551615");
        assert_eq!(Decimal::new().octal(0o1777), c"1777");
    }

    #[test]
    fn paths_are_made_relative() {
        assert_eq!(relative(c"/"), Ok(c"."));
        assert_eq!(relative(c"/usr/bin"), Ok(c"usr/bin"));
        assert_eq!(relative(c"usr"), Err(Errno::INVAL));
    }

    #[test]
    fn what_is_too_long_for_a_path_is_refused() {
        let long = [b'a'; MAX_PATH];
        assert!(PathBuffer::new().join(&[&long]).is_ok());
        assert_eq!(
            PathBuffer::new().join(&[&long, b"b"]),
            Err(Errno::NAMETOOLONG)
        );
    }
}
