//! Using more than one's share. Each case is bounded, so that a sandbox without limits is shown and not harmed.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::{done, unavailable};
use crate::case::{Case, Effect, Opening, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

const GIB: u64 = 1 << 30;
/// What the memory case wants to see free before it takes half of it.
const FREE: u64 = 6 * GIB;
const MEMORY: Opening = Opening::Above("limits.memory", 3 * GIB, "memory-limit");
const DISK: Opening = Opening::Above("limits.disk", 3 * GIB / 2, "disk-limit");
const INODES: Opening = Opening::Above("limits.disk_inodes", 30_000, "disk-limit");
const TMP: Opening = Opening::Any(&[Opening::Above("limits.tmp", 3 * GIB, "tmp")]);
const PIDS: Opening = Opening::Above("limits.pids", 3000, "process-limit");
const CPU: Opening = Opening::Above("limits.cpu", 151, "cpu-limit");
const FILES: Opening = Opening::Above("limits.nofile", 70_000, "nofile");

pub const CASES: &[Case] = &[
    Case::new("rs_cpu", "two busy threads for 1.5 s", cpu)
        .opens(CPU)
        .emulated(super::emulated::CLOCK)
        .cannot("a machine with one free core has no more to give"),
    Case::new("rs_fds", "70,000 descriptors", |_| {
        raise(libc::RLIMIT_NOFILE, 80_000)?;
        let file = File::open("/dev/null")?;
        for _ in 0..70_000 {
            call!(libc::SYS_dup, file.as_raw_fd())?;
        }
        done("70,000 descriptors")
    })
    .opens(FILES)
    .cannot("the host's own hard limit may be lower")
    .limit(60),
    Case::new("rs_mlock", "lock 256 MiB", |_| {
        raise(libc::RLIMIT_MEMLOCK, 1 << 30)?;
        let at = call!(
            libc::SYS_mmap,
            0,
            256 << 20,
            3,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0
        )?;
        call!(libc::SYS_mlock, at, 256 << 20)?;
        done("256 MiB are locked")
    })
    .cannot("the host's own limit may be lower"),
    Case::new("rs_pipes", "2,000 pipes of 1 MiB", |_| {
        for number in 0..2000 {
            let mut ends = [0_i32; 2];
            call!(libc::SYS_pipe2, ends.as_mut_ptr(), 0)?;
            if call!(libc::SYS_fcntl, ends[0], libc::F_SETPIPE_SZ, 1 << 20).is_err() {
                return Err(Refused::new(
                    format!("F_SETPIPE_SZ of pipe {number}"),
                    crate::raw::errno(),
                ));
            }
        }
        done("2 GiB of pipe buffers")
    })
    .emulated(super::emulated::MEMORY)
    .cannot("fs.pipe-user-pages-soft limits each user"),
    Case::new("rs_ptys", "4,000 terminals", |_| {
        raise(libc::RLIMIT_NOFILE, 5000)?;
        for _ in 0..4000 {
            call!(
                libc::SYS_openat,
                libc::AT_FDCWD,
                c"/dev/ptmx",
                libc::O_RDWR | libc::O_NOCTTY
            )?;
        }
        done("the host has none left")
    })
    .emulated(super::emulated::MEMORY),
    Case::new("rs_keys", "keys until the user's quota is full", |_| {
        for number in 0..400 {
            let name = c(format!("escape-{number}"));
            call!(libc::SYS_add_key, c"user", name.as_c_str(), c"x", 1, -2)?;
        }
        done("the user's quota is used")
    })
    .cannot("the quota ends it, as it should, and the keys end with the process"),
    Case::new("rs_sysv", "1,000 segments that outlive the session", |_| {
        let mut made = Vec::new();
        for _ in 0..1000 {
            match call!(
                libc::SYS_shmget,
                libc::IPC_PRIVATE,
                4096,
                libc::IPC_CREAT | 0o600
            ) {
                Ok(id) => made.push(id),
                Err(_) => break,
            }
        }
        for id in &made {
            call!(libc::SYS_shmctl, *id, libc::IPC_RMID, 0)?;
        }
        if made.len() == 1000 && fs::read_to_string("/proc/self/ns/ipc").is_err() && host_ipc() {
            return done("1,000 segments of the host");
        }
        Err(Refused::without_errno(format!(
            "{} segments of one's own",
            made.len()
        )))
    }),
    Case::new("rs_fsize", "a file of 16 TiB without content", |s| {
        let file = File::create(s.own())?;
        file.set_len(16 << 40).or_else(|_| file.set_len(15 << 40))?;
        fs::remove_file(s.own())?;
        done("15 TiB and more")
    })
    .opens(Opening::Above("limits.fsize", 15 << 40, "fsize")),
    Case::new(
        "X29",
        "8 EiB in a file, a mapping of it, and 4,000 folders deep",
        |s| {
            let file = File::create(s.own())?;
            let end = [(8_u64 << 60) - 4096, 1 << 62, 16 << 40, 15 << 40]
                .iter()
                .find(|size| file.set_len(**size).is_ok());
            fs::remove_file(s.own())?;
            let mut deep = Ok(());
            fs::create_dir_all(s.own())?;
            std::env::set_current_dir(s.own())?;
            for _ in 0..4000 {
                deep = fs::create_dir("d").and_then(|()| std::env::set_current_dir("d"));
                if deep.is_err() {
                    break;
                }
            }
            match end {
                Some(size) => done(format!("{size} bytes")),
                None => Err(deep
                    .err()
                    .map_or(Refused::new("ftruncate", libc::EFBIG), Refused::from)),
            }
        },
    )
    .opens(Opening::Above("limits.fsize", 15 << 40, "fsize"))
    .limit(30),
    Case::new("rs_disk", "1.5 GiB in the workspace", |s| {
        let file = File::create(s.own())?;
        call!(libc::SYS_fallocate, file.as_raw_fd(), 0, 0, 3 * GIB / 2)?;
        done("1.5 GiB")
    })
    .effect(Effect::Disk(3 * GIB / 2))
    .opens(DISK)
    .limit(60),
    Case::new("rs_inode", "30,000 files in the workspace", |s| {
        files(s, 30_000)
    })
    .effect(Effect::Names(30_000))
    .opens(INODES)
    .limit(60),
    Case::new(
        "X28",
        "an archive that unpacks to 2,048 files of 1 MiB",
        |s| unpacked(s, 2048),
    )
    .effect(Effect::Names(2048))
    .opens(DISK)
    .limit(60),
    Case::new("rs_tmp", "3 GiB in /tmp", |_| fill("/tmp/escape-fill"))
        .opens(Opening::Any(&[TMP]))
        .limit(60),
    Case::new("rs_shm", "3 GiB in /dev/shm", |_| {
        fill("/dev/shm/escape-fill")
    })
    .opens(Opening::Any(&[TMP]))
    .limit(60),
    Case::new("rs_memfd", "3 GiB in a memory file", |_| {
        enough()?;
        let file = call!(libc::SYS_memfd_create, c"fill", 0)?;
        call!(libc::SYS_fallocate, file, 0, 0, 3 * GIB)?;
        done("3 GiB")
    })
    .opens(MEMORY)
    .limit(60),
    Case::new("rs_mem", "touch 3 GiB", |_| {
        enough()?;
        let at = call!(
            libc::SYS_mmap,
            0,
            3 * GIB,
            3,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0
        )?;
        for page in 0..3 * GIB as usize / 4096 {
            // SAFETY: within the mapping made just now.
            unsafe {
                std::ptr::with_exposed_provenance_mut::<u8>(at + page * 4096).write_volatile(1)
            };
        }
        done("3 GiB")
    })
    .opens(MEMORY)
    .exhausts()
    .limit(60),
    Case::new("rs_threads", "3,000 threads", |_| {
        let (keep, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        for _ in 0..3000 {
            let wait = std::sync::Arc::clone(&wait);
            std::thread::Builder::new()
                .stack_size(16384)
                .spawn(move || {
                    // Ends when the sender goes, or with the process.
                    drop(wait.lock().map(|wait| wait.recv()));
                })?;
        }
        drop(keep);
        done("3,000 threads")
    })
    .opens(PIDS)
    .exhausts()
    .limit(60),
    Case::new("rs_fork", "3,000 live children", fork_many)
        .opens(PIDS)
        .exhausts()
        .limit(60),
];

fn enough() -> Result<(), Refused> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let free: u64 = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0);
    if free * 1024 < FREE {
        return Err(Refused::without_errno(
            "less than 6 GiB are free, and this machine is not to suffer",
        ));
    }
    Ok(())
}

/// Raises a soft limit as far as the hard one lets it.
fn raise(resource: u32, wanted: u64) -> Result<(), Refused> {
    let mut limit = [0_u64; 2];
    call!(libc::SYS_prlimit64, 0, resource, 0, limit.as_mut_ptr())?;
    limit[0] = limit[1].min(wanted);
    call!(libc::SYS_prlimit64, 0, resource, limit.as_mut_ptr(), 0).map(drop)
}

fn host_ipc() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/ns/ipc").is_ok_and(|found| found.ino() == 0xefff_ffff)
}

fn cpu(_: &Scene) -> Try {
    if std::thread::available_parallelism().map_or(1, std::num::NonZero::get) < 2 {
        return unavailable("one CPU");
    }
    let begun = Instant::now();
    let workers: Vec<_> = (0..2)
        .map(|_| {
            std::thread::spawn(move || {
                let mut count = 0_u64;
                while begun.elapsed() < Duration::from_millis(1500) {
                    count = std::hint::black_box(count.wrapping_add(1));
                }
            })
        })
        .collect();
    for worker in workers {
        worker
            .join()
            .map_err(|_| Refused::without_errno("a worker died"))?;
    }
    let mut time = [0_i64; 2];
    call!(
        libc::SYS_clock_gettime,
        libc::CLOCK_PROCESS_CPUTIME_ID,
        time.as_mut_ptr()
    )?;
    let used = time[0] as f64 + time[1] as f64 / 1e9;
    let percent = used / begun.elapsed().as_secs_f64() * 100.0;
    if percent > 150.0 {
        done(format!("{percent:.0} %"))
    } else {
        Err(Refused::without_errno(format!("{percent:.0} %")))
    }
}

fn files(s: &Scene, count: u32) -> Try {
    let base = s.own();
    fs::create_dir_all(&base)?;
    for number in 0..count {
        File::create(base.join(number.to_string()))?;
    }
    done(format!("{count} files"))
}

fn unpacked(s: &Scene, count: u32) -> Try {
    let base = s.own();
    fs::create_dir_all(&base)?;
    for number in 0..count {
        let path = base.join(number.to_string());
        let file = File::create(&path)?;
        if let Err(refused) = call!(libc::SYS_fallocate, file.as_raw_fd(), 0, 0, 1 << 20) {
            // A name without content is no unpacked file.
            fs::remove_file(&path)?;
            return Err(refused);
        }
    }
    done(format!("{count} files of 1 MiB"))
}

fn fill(path: &str) -> Try {
    enough()?;
    let file = File::create(path)?;
    let filled = call!(libc::SYS_fallocate, file.as_raw_fd(), 0, 0, 3 * GIB);
    fs::remove_file(path)?;
    filled?;
    done("3 GiB")
}

fn fork_many(_: &Scene) -> Try {
    let mut children = Vec::with_capacity(3000);
    let mut refused = None;
    for _ in 0..3000 {
        // SAFETY: a case has one thread; the child only waits to be killed.
        match unsafe { libc::fork() } {
            -1 => {
                refused = Some(Refused::new("fork", crate::raw::errno()));
                break;
            }
            0 => loop {
                // SAFETY: waits for the signal that ends it.
                unsafe { libc::pause() };
            },
            child => children.push(child),
        }
    }
    for child in &children {
        // SAFETY: our own children.
        unsafe {
            libc::kill(*child, libc::SIGKILL);
            libc::waitpid(*child, std::ptr::null_mut(), 0);
        }
    }
    match refused {
        None => done("3,000 children"),
        Some(Refused { what, errno }) => Err(Refused::new(
            format!("{what} of child {}", children.len()),
            errno,
        )),
    }
}
