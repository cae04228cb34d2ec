//! gVisor's stage: the root that `runsc` runs in, with the view as one directory of it, and the OCI bundle for it.
//!
//! ```text
//! /rootfs   the view, as the program sees it
//! /runsc    the host's own program, from one of the places in RUNSC
//! /bundle   config.json, written here from the checked plan and from nothing else
//! /inside   this launcher again, the plan, a socket; shown to the sandbox, read-only, at INSIDE
//! /proc /dev /tmp /run   what runsc needs for itself; no program ever sees them
//! ```
//!
//! runsc gets no capability of the sandbox's: it makes a user namespace of its own below it, in which it is root over the
//! mounts of the view and nothing else. Every mount of the view is one of the sandbox too, with the same flags, so that
//! gVisor's kernel holds them a first time and the host's a second. Runs in the launcher, before the root is left.

use core::ffi::CStr;

use agentd_kernel::sys::fs::{
    self, FileKind, O_CREAT, O_EXCL, O_NOFOLLOW, O_PATH, O_RDONLY, O_WRONLY,
};
use agentd_kernel::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Depth};
use agentd_kernel::sys::{Errno, Fd, FdRef, net};

use super::view::{RESOLVE, View, relative};
use super::{During, Outcome};
use crate::plan::{MountFlags, Plan, Record, Stdio};
use crate::status::{NO_RECORD, Step};

/// Where the host's `runsc` is looked for, in this order; links are not followed. `agentd_kernel::probe::RUNSC_PLACES` again,
/// without the allocation.
pub const RUNSC: [&CStr; 2] = [c"/usr/local/bin/runsc", c"/usr/bin/runsc"];

/// Where the program's side of the launch finds itself in the sandbox.
pub(super) const INSIDE: &CStr = c"/run/agentd/inside";
pub(super) const INSIDE_PLAN: &CStr = c"/run/agentd/inside/plan";
pub(super) const INSIDE_SOCKET: &CStr = c"/run/agentd/inside/socket";

pub(super) const PROGRAM: &CStr = c"/runsc";
pub(super) const BUNDLE: &CStr = c"/bundle";
pub(super) const ROOTFS: &CStr = c"/rootfs";

/// What runsc keeps for itself; gVisor's memory is a memory file, and counted as such.
const OWN_BYTES: u64 = 64 << 20;
const OWN_INODES: u64 = 4096;
/// The launcher and a plan.
const INSIDE_BYTES: u64 = 8 << 20;
/// Directories that gVisor mounts on.
const PLACES: [&CStr; 4] = [INSIDE, c"/proc", c"/dev", c"/sys"];

/// The stage under construction.
pub(super) struct Stage {
    view: View,
    /// Where the program's side will say how it went.
    listener: Fd,
}

impl Stage {
    /// Makes the stage on top of the present root, with an empty view in it.
    pub(super) fn new(plan: &Plan<'_>, plan_bytes: &[u8]) -> Outcome<(Stage, View)> {
        let mut stage = View::new()?;
        let mut make = || {
            stage.procfs(c"/proc")?;
            stage.devices(c"/dev", 1 << 20)?;
            for own in [c"/tmp", c"/run"] {
                stage.tmpfs(own, OWN_BYTES, OWN_INODES, 0o700, MountFlags::NOEXEC)?;
            }
            stage.runsc()?;
            stage.inside(plan_bytes)?;
            let listener = stage.listen(c"/inside/socket", 0o600, net::listen_packets)?;
            stage.directory(BUNDLE, 0o755)?;
            let mut view = View::beneath(&mut stage, ROOTFS)?;
            for place in PLACES {
                view.directory(place, 0o755)?;
            }
            Ok((listener, view))
        };
        let (listener, view) = make().during(Step::Runtime, NO_RECORD)?;
        debug_assert!(plan.gvisor().is_some(), "only gVisor has a stage");
        Ok((
            Stage {
                view: stage,
                listener,
            },
            view,
        ))
    }

    /// Where devices and terminals are made.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// Writes the bundle for what `view` holds by now, and makes the stage the root.
    pub(super) fn enter(self, plan: &Plan<'_>, view: View) -> Outcome<Fd> {
        let config = || {
            let file = fs::openat2(
                self.view.root(),
                c"bundle/config.json",
                O_WRONLY | O_CREAT | O_EXCL,
                0o444,
                RESOLVE,
            )?;
            Config::new(file.borrow()).write(plan, &view)
        };
        config().during(Step::Runtime, NO_RECORD)?;
        drop(view.seal(plan)?);
        self.view.seal_root()?.enter()?;
        Ok(self.listener)
    }
}

impl View {
    /// `/proc` for runsc: writable, since it writes the id maps of its own namespaces there.
    fn procfs(&mut self, dst: &CStr) -> Result<(), Errno> {
        let proc = mount::new_mount(c"proc", &[], ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)?;
        self.attach(&proc, dst, FileKind::Directory)
    }

    fn runsc(&mut self) -> Result<(), Errno> {
        let mut missing = Errno::NOENT;
        for path in RUNSC {
            match self.host(path) {
                Ok(found) if fs::fstat(found.borrow())?.kind == FileKind::File => {
                    let program = mount::clone_tree(found.borrow(), Depth::One)?;
                    let attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
                    mount::set_attributes(program.borrow(), attributes, Depth::One)?;
                    return self.attach(&program, PROGRAM, FileKind::File);
                }
                Ok(_) => missing = Errno::LOOP,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => missing = errno,
            }
        }
        Err(missing)
    }

    /// The launcher itself and its plan.
    fn inside(&mut self, plan: &[u8]) -> Result<(), Errno> {
        self.tmpfs(c"/inside", INSIDE_BYTES, 16, 0o755, MountFlags::NONE)?;
        self.file(c"/inside/plan", 0o444, plan)?;
        let own = fs::openat2(FdRef::CWD, c"/proc/self/exe", O_RDONLY, 0, 0)?;
        let copy = fs::openat2(
            self.root(),
            c"inside/launch",
            O_WRONLY | O_CREAT | O_EXCL,
            0o555,
            RESOLVE,
        )?;
        let mut page = [0; 4096];
        loop {
            match fs::read(own.borrow(), &mut page)? {
                0 => return Ok(()),
                len => fs::write_all(copy.borrow(), &page[..len])?,
            }
        }
    }
}

/// `config.json`, as `opencontainers/runtime-spec` has it, written piece by piece.
struct Config<'f> {
    file: FdRef<'f>,
    buffer: [u8; 1024],
    len: usize,
}

impl<'f> Config<'f> {
    fn new(file: FdRef<'f>) -> Config<'f> {
        Config {
            file,
            buffer: [0; 1024],
            len: 0,
        }
    }

    fn flush(&mut self) -> Result<(), Errno> {
        fs::write_all(self.file, &self.buffer[..self.len])?;
        self.len = 0;
        Ok(())
    }

    fn put(&mut self, text: &str) -> Result<(), Errno> {
        for byte in text.bytes() {
            if self.len == self.buffer.len() {
                self.flush()?;
            }
            self.buffer[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }

    /// A JSON string. What is not UTF-8 can't be said in one.
    fn string(&mut self, text: &CStr) -> Result<(), Errno> {
        let text = text.to_str().map_err(|_| Errno::INVAL)?;
        self.put("\"")?;
        for letter in text.chars() {
            match letter {
                '"' => self.put("\\\"")?,
                '\\' => self.put("\\\\")?,
                '\0'..='\x1f' => {
                    const HEX: [&str; 16] = [
                        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d", "e",
                        "f",
                    ];
                    let code = letter as usize;
                    self.put("\\u00")?;
                    self.put(HEX[code >> 4])?;
                    self.put(HEX[code & 15])?;
                }
                letter => self.put(letter.encode_utf8(&mut [0; 4]))?,
            }
        }
        self.put("\"")
    }

    fn write(mut self, plan: &Plan<'_>, view: &View) -> Result<(), Errno> {
        self.put(r#"{"ociVersion":"1.0.0","process":{"terminal":"#)?;
        self.put(match plan.stdio() {
            Stdio::Pty { .. } => "true",
            Stdio::Pipes | Stdio::Null => "false",
        })?;
        // Uid 0 of runsc's user namespace is the program's own uid outside; it has no capability.
        self.put(r#","user":{"uid":0,"gid":0},"args":["/run/agentd/inside/launch","inside"],"#)?;
        self.put(r#""env":["PATH=/"],"cwd":"/","capabilities":{},"noNewPrivileges":true},"#)?;
        // It is read-only, and runsc would take its other flags off to say so again, which it may not.
        self.put(r#""root":{"path":"/rootfs","readonly":false},"#)?;
        for record in plan.records() {
            if let Record::Hostname(name) = record {
                self.put(r#""hostname":"#)?;
                self.string(name)?;
                self.put(",")?;
            }
        }
        self.put(r#""mounts":[{"destination":"/proc","type":"proc","source":"proc","#)?;
        self.put(r#""options":["nosuid","nodev","noexec"]},"#)?;
        // gVisor's own, with what stands in them: no program that is dropped there runs. `/dev/shm` is the view's.
        self.put(r#"{"destination":"/sys","type":"sysfs","source":"sysfs","#)?;
        self.put(r#""options":["ro","nosuid","nodev","noexec"]},"#)?;
        self.put(r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs","#)?;
        self.put(r#""options":["nosuid","noexec"]},"#)?;
        self.put(r#"{"destination":"/run/agentd/inside","type":"bind","source":"/inside","#)?;
        self.put(r#""options":["rbind","ro","nosuid","nodev"]}"#)?;
        for record in plan.records() {
            match record {
                // It lies on a tmpfs, which is one of them.
                Record::GrantMount { flags, .. } if flags.contains(MountFlags::COPY) => {}
                Record::Bind { dst, flags, .. }
                | Record::GrantMount { dst, flags, .. }
                | Record::Overlay { dst, flags, .. }
                | Record::Tmpfs { dst, flags, .. } => self.mount(view, dst, flags)?,
                Record::Dev { dst, .. } => {
                    let mut path = super::view::PathBuffer::new();
                    let path = path.join(&[dst.to_bytes(), b"/shm"])?;
                    self.mount(view, path, MountFlags::NOEXEC)?;
                }
                _ => {}
            }
        }
        self.put(r#"],"linux":{"namespaces":[{"type":"pid"},{"type":"mount"},"#)?;
        self.put(r#"{"type":"ipc"},{"type":"uts"}]}}"#)?;
        self.flush()
    }

    /// A mount of the view, if it is there and no link.
    fn mount(&mut self, view: &View, dst: &CStr, flags: MountFlags) -> Result<(), Errno> {
        match fs::openat2(view.root(), relative(dst)?, O_PATH | O_NOFOLLOW, 0, RESOLVE) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Ok(found) if fs::fstat(found.borrow())?.kind == FileKind::Symlink => return Ok(()),
            found => drop(found?),
        }
        self.put(r#",{"destination":"#)?;
        self.string(dst)?;
        self.put(r#","type":"bind","source":"#)?;
        let mut path = super::view::PathBuffer::new();
        self.string(path.join(&[ROOTFS.to_bytes(), dst.to_bytes()])?)?;
        self.put(r#","options":["rbind","nosuid","nodev""#)?;
        for (flag, option) in [
            (MountFlags::RDONLY, ",\"ro\""),
            (MountFlags::NOEXEC, ",\"noexec\""),
        ] {
            if flags.contains(flag) {
                self.put(option)?;
            }
        }
        self.put("]}")
    }
}
