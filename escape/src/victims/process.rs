//! The victim process: the caller's, outside the sandbox; it holds a secret in memory and in a descriptor, and counts the
//! signals that it gets.
//!
//! Forked from the single-threaded judge. As root it gets a high pid, which no process inside has by chance. It dies with
//! the judge.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use super::{Raise, RaiseError};
use crate::case::Hurt;
use crate::raw::call;
use crate::scene::Victim;

const SIGNALS: usize = 65;
const WORD: u64 = 0x5afe_5afe_5afe_5afe;

/// Shared between victim and judge.
#[derive(Debug)]
#[repr(C)]
struct Page {
    ready: AtomicU32,
    signals: [AtomicU32; SIGNALS],
    word: AtomicU64,
}

static PAGE: AtomicPtr<Page> = AtomicPtr::new(std::ptr::null_mut());

/// What of the process shows from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    nice: i64,
    affinity: String,
    policy: i64,
    io_priority: i64,
    limits: String,
    score: String,
    slack: String,
    group: i64,
    dump: String,
    tracer: String,
    alive: bool,
}

#[derive(Debug)]
pub struct Process {
    pid: i32,
    page: &'static Page,
    secret_at: u64,
    fd: i32,
    before: Look,
}

impl Process {
    pub fn raise(uid: u32, secret: &str, open: &Path) -> Result<Self, RaiseError> {
        // SAFETY: a new shared mapping; the size is checked below.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        const _: () = assert!(size_of::<Page>() <= 4096);
        if page == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).raise("the victim's page");
        }
        PAGE.store(page.cast(), Ordering::SeqCst);
        // SAFETY: mapped above for the rest of the process's life, zeroed by the kernel, and only atomics are in it.
        let page: &'static Page = unsafe { &*page.cast::<Page>() };
        page.word.store(WORD, Ordering::SeqCst);
        let secret: &'static mut [u8] = Box::leak(secret.as_bytes().to_vec().into_boxed_slice());
        let path = CString::new(open.as_os_str().as_bytes()).expect("our own path");
        // SAFETY: a path that ends in NUL.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        let pid = fork_high().raise("the victim process")?;
        if pid == 0 {
            be_victim(uid, page);
        }
        // SAFETY: our own copy; the victim has its own.
        unsafe { libc::close(fd) };
        while page.ready.load(Ordering::SeqCst) == 0 {
            if !Path::new(&format!("/proc/{pid}")).exists() {
                return Err(std::io::Error::from(std::io::ErrorKind::NotFound))
                    .raise("the victim process");
            }
            std::thread::yield_now();
        }
        Ok(Self {
            pid,
            page,
            secret_at: secret.as_ptr().expose_provenance() as u64,
            fd,
            before: look(pid),
        })
    }

    pub fn describe(&self) -> Victim {
        Victim {
            pid: self.pid,
            secret_at: self.secret_at,
            word_at: (&raw const self.page.word).expose_provenance() as u64,
            fd: self.fd,
        }
    }

    /// Whether it was hurt in this way.
    pub fn harm(&self, hurt: Hurt) -> Option<String> {
        let (before, after) = (&self.before, look(self.pid));
        let told = |what: &str, changed: bool| changed.then(|| format!("the victim's {what}"));
        if !after.alive {
            return Some("the victim is dead".into());
        }
        match hurt {
            Hurt::Signal(signal) => {
                let index = usize::try_from(signal).unwrap_or(0);
                let count = self.page.signals[index].load(Ordering::SeqCst);
                (count > 0).then(|| format!("the victim got signal {signal}"))
            }
            Hurt::Nice => told("nice value changed", before.nice != after.nice),
            Hurt::Affinity => told("CPUs changed", before.affinity != after.affinity),
            Hurt::Policy => told("scheduling policy changed", before.policy != after.policy),
            Hurt::IoPriority => told(
                "I/O priority changed",
                before.io_priority != after.io_priority,
            ),
            Hurt::Limit => told("limits changed", before.limits != after.limits),
            Hurt::Score => told("OOM score changed", before.score != after.score),
            Hurt::Slack => told("timer slack changed", before.slack != after.slack),
            Hurt::Group => told("process group changed", before.group != after.group),
            Hurt::Dump => told("core dump filter changed", before.dump != after.dump),
            Hurt::Memory => told(
                "memory changed",
                self.page.word.load(Ordering::SeqCst) != WORD,
            ),
            Hurt::Traced => told("tracer is there", before.tracer != after.tracer),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: our own child, reaped here.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

/// `fork`, with a pid near the top where we may choose.
fn fork_high() -> Result<i32, crate::raw::Refused> {
    let top: i32 = fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(32768);
    for pid in (top - 200..top - 1).rev() {
        let wanted = [pid];
        // struct clone_args; set_tid is the ninth word.
        let mut arguments = [0_u64; 11];
        arguments[4] = libc::SIGCHLD as u64;
        arguments[8] = wanted.as_ptr().expose_provenance() as u64;
        arguments[9] = 1;
        let size = size_of_val(&arguments);
        match call!(libc::SYS_clone3, arguments.as_mut_ptr(), size) {
            Ok(pid) => return Ok(i32::try_from(pid).unwrap_or(0)),
            Err(refused) if refused.errno == libc::EEXIST => {}
            // Not root.
            Err(_) => break,
        }
    }
    call!(libc::SYS_fork).map(|pid| i32::try_from(pid).unwrap_or(0))
}

extern "C" fn on_signal(signal: i32) {
    let page = PAGE.load(Ordering::SeqCst);
    // SAFETY: stored before the fork and never unmapped; only atomics.
    if let Some(page) = unsafe { page.as_ref() }
        && let Some(count) = usize::try_from(signal)
            .ok()
            .and_then(|n| page.signals.get(n))
    {
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// The rest of the child's life: system calls only, since it was forked by number.
fn be_victim(uid: u32, page: &Page) -> ! {
    // SAFETY: each call concerns this process alone. The handler only counts in memory that stays mapped.
    unsafe {
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>());
        libc::syscall(libc::SYS_setresgid, uid, uid, uid);
        libc::syscall(libc::SYS_setresuid, uid, uid, uid);
        libc::setpgid(0, 0);
        // Changing ids made it non-dumpable, and a victim is an ordinary process. Yama, where there is one, is asked to
        // stand aside: what is tried is the sandbox.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"escape-victim".as_ptr(), 0, 0, 0);
        let handler: extern "C" fn(i32) = on_signal;
        for signal in 1..=libc::SIGRTMAX() {
            if ![libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV, libc::SIGBUS].contains(&signal) {
                libc::signal(signal, handler as libc::sighandler_t);
            }
        }
        page.ready.store(1, Ordering::SeqCst);
        loop {
            libc::pause();
        }
    }
}

fn look(pid: i32) -> Look {
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let status = file("status");
    let of_status = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let stat = file("stat");
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
    // Numbered from 3 as in proc(5).
    let field = |number: usize| -> i64 {
        fields
            .get(number - 3)
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    };
    let io_priority = call!(libc::SYS_ioprio_get, 1, pid)
        .ok()
        .and_then(|value| i64::try_from(value).ok())
        .unwrap_or(-1);
    Look {
        nice: field(19),
        affinity: of_status("Cpus_allowed_list:"),
        policy: field(41),
        io_priority,
        limits: file("limits"),
        score: file("oom_score_adj"),
        slack: file("timerslack_ns"),
        group: field(5),
        dump: file("coredump_filter"),
        tracer: of_status("TracerPid:"),
        alive: !matches!(fields.first(), None | Some(&("Z" | "X"))),
    }
}
