//! Running what did not come from the system: out of memory, out of writable places, by the loader, by mapping it.
//!
//! Programs that are dropped are copies of this one, asked for an echo; mapped code is a function that returns 42.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{done, fd, in_child, path_of, unavailable};
use crate::case::{Case, Opening, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

const WRITE_EXEC: Opening = Opening::Is("exec.write_exec", "true");
const MEMFD: Opening = Opening::Any(&[
    Opening::Is("exec.memfd", "any"),
    Opening::LetGo("memfd-exec"),
]);
/// A memory file is mapped for execution by just-in-time compilers, too.
const MEMORY: Opening = Opening::Any(&[MEMFD, WRITE_EXEC]);
const WORK: Opening = Opening::Has("fs.exec", "${workspace}");
const TMP: Opening = Opening::Has("fs.exec", "/tmp");
const VARTMP: Opening = Opening::Has("fs.exec", "/var/tmp");
const HOME: Opening = Opening::Has("fs.exec", "~");
const SHM: Opening = Opening::Has("fs.exec", "/dev/shm");

/// mov eax, 42; ret
const CODE: [u8; 6] = [0xb8, 42, 0, 0, 0, 0xc3];
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const RX: i32 = libc::PROT_READ | libc::PROT_EXEC;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

pub const CASES: &[Case] = &[
    Case::new("ex_memfd", "execveat of a memory file", |s| {
        let file = memfd(0)?;
        fill(&file, &s.program)?;
        by_fd(&file)
    })
    .opens(MEMFD),
    Case::new("ex_memfd_exec", "a memory file made with MFD_EXEC", |s| {
        let file = memfd(0x10)?;
        fill(&file, &s.program)?;
        by_fd(&file)
    })
    .opens(MEMFD),
    Case::new(
        "ex_memfd_noseal",
        "a memory file made with MFD_NOEXEC_SEAL, its mode changed",
        |s| {
            let file = memfd(0x8)?;
            fill(&file, &s.program)?;
            call!(libc::SYS_fchmod, file.as_raw_fd(), 0o777)?;
            by_fd(&file)
        },
    )
    .opens(MEMFD)
    .cannot("the seal holds"),
    Case::new(
        "ex_memfd_path",
        "exec of a memory file by /proc/self/fd",
        |s| {
            let file = memfd(0)?;
            fill(&file, &s.program)?;
            by_path(path_of(&file))
        },
    )
    .opens(MEMFD),
    Case::new("ex_memfd_huge", "a memory file of huge pages", |s| {
        let file = memfd(0x4)?;
        fill(&file, &s.program)?;
        by_fd(&file)
    })
    .opens(MEMFD)
    .cannot("it needs reserved huge pages"),
    Case::new("ex_memfd_ldso", "the loader on a memory file", |_| {
        let file = memfd(0)?;
        fill(&file, Path::new("/bin/echo"))?;
        by_loader(Path::new(&path_of(&file)))
    })
    .opens(MEMORY),
    Case::new(
        "ex_memfd_mmap",
        "a memory file mapped for execution",
        |_| {
            let file = memfd(0)?;
            use std::io::Write;
            (&file).write_all(&CODE)?;
            mapped(&file)
        },
    )
    .opens(MEMORY),
    Case::new(
        "ex_memfd_script",
        "an interpreter line in a memory file",
        |_| {
            let file = memfd(0)?;
            use std::io::Write;
            (&file).write_all(b"#!/bin/echo\n")?;
            by_path(path_of(&file))
        },
    )
    .opens(MEMFD),
    Case::new("ex_memfd_secret", "memfd_secret", |_| {
        call!(libc::SYS_memfd_secret, 0)?;
        done("memory that the kernel itself can't read")
    }),
    Case::new(
        "ex_ldso",
        "the loader on a file of the workspace without the execute bit",
        |s| loader_at(s.own()),
    )
    .opens(WORK),
    Case::new("ex_ldso_tmp", "the loader on a file in /tmp", |s| {
        loader_at(place("/tmp", s))
    })
    .opens(TMP),
    Case::new("ex_ldso_shm", "the loader on a file in /dev/shm", |s| {
        loader_at(place("/dev/shm", s))
    })
    .opens(SHM),
    Case::new(
        "ex_ldso_fd",
        "the loader on /proc/self/fd/N of a file in /tmp",
        |s| {
            let path = place("/tmp", s);
            fs::copy("/bin/echo", &path)?;
            let file = File::open(&path)?;
            fs::remove_file(&path)?;
            let program = path_of(&file);
            // Inherited by the loader under the same number.
            call!(libc::SYS_fcntl, file.as_raw_fd(), libc::F_SETFD, 0)?;
            by_loader(Path::new(&program))
        },
    )
    .opens(TMP),
    Case::new(
        "ex_ldso_ro",
        "the loader on a file that is granted for reading only",
        |s| {
            let program = s.shared.join("suid");
            by_loader(&program)
        },
    )
    .cannot("the program there is static, which the loader does not take"),
    Case::new(
        "ex_ldso_preload",
        "LD_PRELOAD of a library of the agent's own",
        |s| {
            let library = s.own();
            fs::copy(library_of_system()?, &library)?;
            let output = Command::new("/bin/cat")
                .arg("/proc/self/maps")
                .env("LD_PRELOAD", &library)
                .output()?;
            // Its code, not only its header: the loader leaves that mapped where the rest is refused.
            let name = library.display().to_string();
            let maps = String::from_utf8_lossy(&output.stdout).into_owned();
            if maps
                .lines()
                .any(|line| line.contains("r-x") && line.ends_with(&name))
            {
                done("the library was loaded")
            } else {
                Err(Refused::without_errno(
                    String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                ))
            }
        },
    )
    .opens(WORK),
    Case::new("ex_work", "a program dropped in the workspace", |s| {
        dropped(s, s.own())
    })
    .opens(WORK),
    Case::new("ex_work_script", "a script dropped in the workspace", |s| {
        fs::write(s.own(), "#!/bin/sh\necho ran\n")?;
        fs::set_permissions(s.own(), fs::Permissions::from_mode(0o755))?;
        by_path(s.own().display().to_string())
    })
    .opens(WORK),
    Case::new("ex_work_fd", "the same by descriptor, unlinked", |s| {
        fs::copy(&s.program, s.own())?;
        fs::set_permissions(s.own(), fs::Permissions::from_mode(0o755))?;
        let file = File::open(s.own())?;
        fs::remove_file(s.own())?;
        by_fd(&file)
    })
    .opens(WORK),
    Case::new(
        "ex_tmpfile",
        "an unnamed file of the workspace, by descriptor",
        |s| {
            let folder = c(&s.work);
            let made = call!(
                libc::SYS_openat,
                libc::AT_FDCWD,
                folder.as_c_str(),
                libc::O_TMPFILE | libc::O_RDWR,
                0o755
            )?;
            fs::write(format!("/proc/self/fd/{made}"), fs::read(&s.program)?)?;
            let again = File::open(format!("/proc/self/fd/{made}"))?;
            call!(libc::SYS_close, made)?;
            by_fd(&again)
        },
    )
    .opens(WORK),
    Case::new("ex_tmp", "a program dropped in /tmp", |s| {
        dropped(s, place("/tmp", s))
    })
    .opens(TMP),
    Case::new("ex_vartmp", "a program dropped in /var/tmp", |s| {
        dropped(s, place("/var/tmp", s))
    })
    .opens(VARTMP),
    Case::new("ex_devshm", "a program dropped in /dev/shm", |s| {
        dropped(s, place("/dev/shm", s))
    })
    .opens(SHM),
    Case::new("ex_home", "a program dropped in HOME", |s| {
        let path = s.home.join(format!("escape-{}", s.case));
        dropped(s, path)
    })
    .opens(HOME),
    Case::new("ex_run", "a program dropped in /run, /dev or /", |s| {
        [
            "/run",
            "/dev",
            "/",
            "/etc",
            "/var",
            "/run/lock",
            "/run/user",
        ]
        .iter()
        .find_map(|folder| dropped(s, place(folder, s)).ok())
        .ok_or(Refused::new("exec", libc::EACCES))
    }),
    Case::new(
        "ex_shared",
        "a program of the folder that is granted for reading only",
        |s| by_path(s.shared.join("sgid").display().to_string()),
    )
    .opens(Opening::Has("fs.exec", "${shared}")),
    Case::new(
        "ex_copy_cat",
        "a program written by another process, renamed over a granted name",
        |s| {
            let staged = s.own().with_extension("staged");
            let status = Command::new("/bin/cp")
                .arg(&s.program)
                .arg(&staged)
                .status()?;
            if !status.success() {
                return Err(Refused::without_errno("cp failed"));
            }
            fs::set_permissions(&staged, fs::Permissions::from_mode(0o755))?;
            fs::rename(&staged, s.own())?;
            by_path(s.own().display().to_string())
        },
    )
    .opens(WORK),
    Case::new(
        "ex_mmap_work",
        "a file of the workspace mapped for execution",
        |s| mapped_at(s.own()),
    )
    .opens(WORK),
    Case::new("ex_mmap_tmp", "a file in /tmp mapped for execution", |s| {
        mapped_at(place("/tmp", s))
    })
    .opens(TMP),
    Case::new(
        "ex_mmap_shm",
        "a file in /dev/shm mapped for execution",
        |s| mapped_at(place("/dev/shm", s)),
    )
    .opens(SHM),
    Case::new("ex_mmap_home", "a file in HOME mapped for execution", |s| {
        mapped_at(s.home.join("escape-code"))
    })
    .opens(HOME),
    Case::new(
        "ex_mprotect_file",
        "a file of the workspace mapped for reading, then made executable",
        |s| {
            fs::write(s.own(), CODE)?;
            let file = File::open(s.own())?;
            let at = map(libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd())?;
            call!(libc::SYS_mprotect, at, 4096, RX)?;
            execute(at)
        },
    )
    .opens(Opening::Any(&[WORK, WRITE_EXEC])),
    Case::new("ex_wx", "memory that is writable and executable", |_| {
        let at = map(RW | libc::PROT_EXEC, PRIVATE, -1)?;
        place_code(at);
        execute(at)
    })
    .opens(WRITE_EXEC),
    Case::new("ex_wx_mprotect", "written, then made executable", |_| {
        let at = map(RW, PRIVATE, -1)?;
        place_code(at);
        call!(libc::SYS_mprotect, at, 4096, RX)?;
        execute(at)
    })
    .opens(WRITE_EXEC),
    Case::new(
        "ex_wx_back",
        "executable, then made writable and back",
        |_| {
            let at = map(RX, PRIVATE, -1)?;
            call!(libc::SYS_mprotect, at, 4096, RW)?;
            place_code(at);
            call!(libc::SYS_mprotect, at, 4096, RX)?;
            execute(at)
        },
    )
    .opens(WRITE_EXEC),
    Case::new("ex_wx_text", "the program's own code made writable", |_| {
        let code: fn() -> Try = || unavailable("");
        let at = code as usize & !4095;
        call!(libc::SYS_mprotect, at, 4096, RW | libc::PROT_EXEC)?;
        done("code is writable")
    })
    .opens(WRITE_EXEC),
    Case::new("ex_wx_pkey", "pkey_mprotect", |_| {
        let at = map(RW, PRIVATE, -1)?;
        place_code(at);
        call!(libc::SYS_pkey_mprotect, at, 4096, RX, -1)?;
        execute(at)
    })
    .opens(WRITE_EXEC),
    Case::new(
        "ex_wx_dual",
        "one memory file mapped twice, once for writing and once for executing",
        |_| {
            let file = memfd(0)?;
            file.set_len(4096)?;
            let write = map(RW, libc::MAP_SHARED, file.as_raw_fd())?;
            let run = map(RX, libc::MAP_SHARED, file.as_raw_fd())?;
            place_code(write);
            execute(run)
        },
    )
    .opens(MEMORY),
    Case::new(
        "ex_wx_dual_file",
        "one file of the workspace mapped twice",
        |s| dual(s.own()),
    )
    .opens(WORK),
    Case::new("ex_wx_dual_shm", "one file of /dev/shm mapped twice", |s| {
        dual(place("/dev/shm", s))
    })
    .opens(SHM),
    Case::new("ex_wx_anon_shared", "shared anonymous memory", |_| {
        let at = map(RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
        place_code(at);
        call!(libc::SYS_mprotect, at, 4096, RX)?;
        execute(at)
    })
    .opens(WRITE_EXEC),
    Case::new(
        "ex_wx_shm_exec",
        "System V memory attached with SHM_EXEC",
        |_| {
            let id = call!(
                libc::SYS_shmget,
                libc::IPC_PRIVATE,
                4096,
                libc::IPC_CREAT | 0o700
            )?;
            // SHM_EXEC
            let at = call!(libc::SYS_shmat, id, 0, 0o100_000);
            call!(libc::SYS_shmctl, id, libc::IPC_RMID, 0)?;
            let at = at?;
            place_code(at);
            execute(at)
        },
    )
    .opens(WRITE_EXEC),
    Case::new(
        "ex_wx_shm_mprotect",
        "System V memory made executable",
        |_| {
            let id = call!(
                libc::SYS_shmget,
                libc::IPC_PRIVATE,
                4096,
                libc::IPC_CREAT | 0o700
            )?;
            let at = call!(libc::SYS_shmat, id, 0, 0);
            call!(libc::SYS_shmctl, id, libc::IPC_RMID, 0)?;
            let at = at?;
            place_code(at);
            call!(libc::SYS_mprotect, at, 4096, RX)?;
            execute(at)
        },
    )
    .opens(WRITE_EXEC),
    Case::new("ex_wx_stack", "the stack made executable", |_| {
        let word = 0_u64;
        let at = (&raw const word).expose_provenance() & !4095;
        call!(libc::SYS_mprotect, at, 4096, RW | libc::PROT_EXEC)?;
        done("the stack is executable")
    })
    .opens(WRITE_EXEC),
    Case::new("ex_wx_heap", "the heap made executable", |_| {
        let top = call!(libc::SYS_brk, 0)?;
        let grown = call!(libc::SYS_brk, top + 8192)?;
        let at = (grown - 4096) & !4095;
        call!(libc::SYS_mprotect, at, 4096, RW | libc::PROT_EXEC)?;
        place_code(at);
        execute(at)
    })
    .opens(WRITE_EXEC),
    Case::new(
        "ex_wx_personality",
        "READ_IMPLIES_EXEC: everything readable is executable",
        |_| {
            call!(libc::SYS_personality, 0x040_0000)?;
            let at = map(RW, PRIVATE, -1)?;
            place_code(at);
            execute(at)
        },
    ),
    Case::new(
        "ex_wx_mremap",
        "executable memory moved with mremap",
        |_| {
            let at = map(RW, PRIVATE, -1)?;
            place_code(at);
            let moved = call!(libc::SYS_mremap, at, 4096, 8192, libc::MREMAP_MAYMOVE)?;
            call!(libc::SYS_mprotect, moved, 8192, RX)?;
            execute(moved)
        },
    )
    .opens(WRITE_EXEC),
    Case::new("ex_wx_remap_pages", "remap_file_pages", |_| {
        let file = memfd(0)?;
        file.set_len(8192)?;
        let at = map(RW, libc::MAP_SHARED, file.as_raw_fd())?;
        call!(libc::SYS_remap_file_pages, at, 4096, 0, 1, 0)?;
        done("pages were remapped")
    }),
    Case::new(
        "ex_wx_userfault",
        "uselib: a library mapped the old way",
        |_| {
            let path = c("/lib/x86_64-linux-gnu/libc.so.6");
            call!(libc::SYS_uselib, path.as_c_str())?;
            done("mapped")
        },
    )
    .cannot("kernels are built without it"),
    Case::new(
        "ex_binfmt",
        "register an interpreter with the kernel",
        |_| {
            fs::write(
                "/proc/sys/fs/binfmt_misc/register",
                ":escape:E::escape::/bin/sh:F",
            )?;
            done("registered")
        },
    )
    .cannot("the file is root's"),
    Case::new("ex_elf32", "a 32-bit program", |s| {
        let path = s.own();
        fs::write(&path, super::syscalls::elf32())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        match Command::new(&path).status()?.code() {
            Some(42) => done("it made a 32-bit system call"),
            _ => Err(Refused::without_errno("killed or without effect")),
        }
    }),
    Case::new(
        "ex_setarch",
        "AT_EXECVE_CHECK says yes to a dropped program",
        |s| {
            fs::copy(&s.program, s.own())?;
            fs::set_permissions(s.own(), fs::Permissions::from_mode(0o755))?;
            let path = c(s.own());
            // AT_EXECVE_CHECK
            call!(
                libc::SYS_execveat,
                libc::AT_FDCWD,
                path.as_c_str(),
                0,
                0,
                0x10000
            )?;
            done("it may be executed")
        },
    )
    .opens(WORK),
];

fn place(folder: &str, s: &Scene) -> PathBuf {
    Path::new(folder).join(format!("escape-{}-{}", std::process::id(), s.case))
}

fn memfd(flags: u32) -> Result<File, Refused> {
    use std::os::fd::FromRawFd;
    let made = call!(libc::SYS_memfd_create, c"escape", flags)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { File::from_raw_fd(fd(made)) })
}

fn fill(file: &File, from: &Path) -> Result<(), Refused> {
    use std::io::Write;
    let mut file = file;
    file.write_all(&fs::read(from)?)?;
    Ok(())
}

/// Executes a descriptor as a program with the argument `ids`, in a child; its exit code 0 means that it ran.
fn by_fd(file: &File) -> Try {
    let number = file.as_raw_fd();
    let (name, word) = (c("escape"), c("ids"));
    let null = call!(libc::SYS_openat, libc::AT_FDCWD, c"/dev/null", libc::O_RDWR).unwrap_or(1);
    let mut errno = 0_i32;
    let page = map(RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    let status = in_child(|| {
        let argv = [name.as_ptr(), word.as_ptr(), std::ptr::null()];
        let envp = [std::ptr::null::<libc::c_char>()];
        let failed = call!(libc::SYS_dup2, null, 1).and_then(|_| {
            call!(
                libc::SYS_execveat,
                number,
                c"",
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH
            )
        });
        if let Err(refused) = failed {
            // SAFETY: mapped above with 4096 bytes, shared with the parent.
            unsafe {
                std::ptr::with_exposed_provenance_mut::<i32>(page).write_volatile(refused.errno)
            };
        }
        99
    })?;
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        return done("it ran");
    }
    // SAFETY: as above.
    errno = errno.max(unsafe { std::ptr::with_exposed_provenance::<i32>(page).read_volatile() });
    Err(Refused::new("execveat", errno))
}

fn by_path(path: String) -> Try {
    let status = Command::new(&path)
        .arg("ids")
        .stdout(std::process::Stdio::null())
        .status()?;
    if status.success() {
        done("it ran")
    } else {
        Err(Refused::without_errno(format!("{status}")))
    }
}

fn dropped(s: &Scene, path: PathBuf) -> Try {
    let tried = (|| {
        fs::copy(&s.program, &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        by_path(path.display().to_string())
    })();
    fs::remove_file(&path).ok();
    tried
}

fn loader_at(path: PathBuf) -> Try {
    let tried = (|| {
        fs::copy("/bin/echo", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        by_loader(&path)
    })();
    fs::remove_file(&path).ok();
    tried
}

fn by_loader(path: &Path) -> Try {
    if !Path::new(LOADER).exists() {
        return unavailable(format!("{LOADER} is not in the view"));
    }
    let file = fs::File::open(path)?;
    call!(libc::SYS_fcntl, file.as_raw_fd(), libc::F_SETFD, 0)?;
    let output = Command::new(LOADER).arg(path).arg("ran").output()?;
    if String::from_utf8_lossy(&output.stdout).trim() == "ran" {
        return done("the loader ran it");
    }
    Err(Refused::without_errno(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

/// A small library that every system has.
fn library_of_system() -> Result<PathBuf, Refused> {
    [
        "/lib/x86_64-linux-gnu/libdl.so.2",
        "/lib64/libdl.so.2",
        "/usr/lib/libdl.so.2",
        "/lib/x86_64-linux-gnu/libm.so.6",
        "/lib64/libm.so.6",
    ]
    .iter()
    .map(PathBuf::from)
    .find(|path| path.exists())
    .ok_or(Refused::new("find a library", libc::ENOENT))
}

fn map(protection: i32, flags: i32, file: i32) -> Result<usize, Refused> {
    call!(libc::SYS_mmap, 0, 4096, protection, flags, file, 0)
}

fn place_code(at: usize) {
    // SAFETY: every caller has just mapped or made writable 4096 bytes there.
    unsafe {
        std::ptr::copy_nonoverlapping(
            CODE.as_ptr(),
            std::ptr::with_exposed_provenance_mut(at),
            CODE.len(),
        );
    }
}

/// Calls the code there. What can't be executed ends the case by SIGSEGV, which is an outcome.
fn execute(at: usize) -> Try {
    // SAFETY: a function of ours stands there; where it doesn't, only this process is lost.
    let code: extern "C" fn() -> i32 =
        unsafe { std::mem::transmute(std::ptr::with_exposed_provenance::<()>(at)) };
    match code() {
        42 => done("written code was executed"),
        other => Err(Refused::without_errno(format!("it gave {other}"))),
    }
}

fn mapped(file: &File) -> Try {
    let at = map(RX, libc::MAP_PRIVATE, file.as_raw_fd())?;
    execute(at)
}

fn mapped_at(path: PathBuf) -> Try {
    fs::write(&path, CODE)?;
    let file = File::open(&path)?;
    let tried = mapped(&file);
    fs::remove_file(&path)?;
    tried
}

fn dual(path: PathBuf) -> Try {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    file.set_len(4096)?;
    fs::remove_file(&path)?;
    let write = map(RW, libc::MAP_SHARED, file.as_raw_fd())?;
    let run = map(RX, libc::MAP_SHARED, file.as_raw_fd())?;
    place_code(write);
    execute(run)
}
