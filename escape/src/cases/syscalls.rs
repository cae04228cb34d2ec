//! Kernel interfaces that no agent needs and that exploits come through; and other ways into the kernel than the one that a
//! filter watches.

use std::arch::asm;
use std::path::Path;

use super::{done, fd, loot_fd};
use crate::case::{Case, Opening, Try};
use crate::raw::{Refused, call};
use crate::scene::c;

const ADMIN: &str = "it needs CAP_SYS_ADMIN or more";

macro_rules! made {
    ($id:literal, $title:literal, $($call:tt)+) => {
        Case::new($id, $title, |_| {
            call!($($call)+)?;
            done("the kernel did it")
        })
    };
}

pub const CASES: &[Case] = &[
    Case::new("sc_uring_setup", "io_uring_setup", |_| {
        let ring = ring()?;
        done(format!("ring {ring}"))
    }),
    Case::new(
        "sc_uring_openat",
        "open a secret through io_uring, which no filter sees",
        |s| {
            let path = c(s.outside());
            let ring = Ring::new()?;
            // IORING_OP_OPENAT
            let opened = ring.submit(
                18,
                libc::AT_FDCWD,
                path.as_ptr().expose_provenance() as u64,
                0,
                0,
            )?;
            loot_fd(opened)
        },
    )
    .secret(),
    Case::new("sc_uring_socket", "make a socket through io_uring", |_| {
        let ring = Ring::new()?;
        // IORING_OP_SOCKET: domain, type in off, protocol in len
        let socket = ring.submit(45, libc::AF_INET, 0, 0, libc::SOCK_STREAM as u64)?;
        done(format!("socket {socket}"))
    }),
    Case::new(
        "sc_uring_register",
        "io_uring_register without a ring",
        |_| {
            let mut probe = vec![0_u8; 16 + 8 * 256];
            // IORING_REGISTER_PROBE with the registered-ring flag clear wants a ring: EBADF says that the call is let through.
            match call!(libc::SYS_io_uring_register, -1, 8, probe.as_mut_ptr(), 256) {
                Err(refused) if [libc::EBADF, libc::EINVAL].contains(&refused.errno) => {
                    done("it reaches the kernel")
                }
                Err(refused) => Err(refused),
                Ok(_) => done("it answered"),
            }
        },
    ),
    made!(
        "sc_uffd",
        "userfaultfd(UFFD_USER_MODE_ONLY)",
        libc::SYS_userfaultfd,
        1
    ),
    made!(
        "sc_uffd_kernel",
        "userfaultfd that also stops the kernel",
        libc::SYS_userfaultfd,
        0
    )
    .cannot("vm.unprivileged_userfaultfd forbids it"),
    Case::new("sc_bpf_map", "bpf(BPF_MAP_CREATE)", |_| {
        let mut attr = [0_u32; 32];
        (attr[0], attr[1], attr[2], attr[3]) = (2, 4, 8, 1);
        call!(libc::SYS_bpf, 0, attr.as_mut_ptr(), size_of_val(&attr))?;
        done("a map was made")
    })
    .cannot("kernel.unprivileged_bpf_disabled forbids it on most hosts"),
    Case::new(
        "sc_bpf_prog",
        "bpf(BPF_PROG_LOAD) of a socket filter",
        |_| {
            // r0 = 0; exit
            let program: [u64; 2] = [0xb7, 0x95];
            let mut attr = [0_u64; 16];
            attr[0] = 1 | (2 << 32);
            attr[1] = program.as_ptr().expose_provenance() as u64;
            attr[2] = c"GPL".as_ptr().expose_provenance() as u64;
            call!(libc::SYS_bpf, 5, attr.as_mut_ptr(), size_of_val(&attr))?;
            done("a program was loaded")
        },
    )
    .cannot("kernel.unprivileged_bpf_disabled forbids it on most hosts"),
    Case::new(
        "sc_socket_filter",
        "a classic BPF program on a socket, which the JIT compiles",
        |_| {
            let socket = call!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
            let mut filter = [0x6_u64];
            #[repr(C)]
            struct Program {
                length: u16,
                filter: *mut u64,
            }
            let mut program = Program {
                length: 1,
                filter: filter.as_mut_ptr(),
            };
            call!(
                libc::SYS_setsockopt,
                socket,
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                &mut program,
                size_of::<Program>()
            )?;
            done("attached")
        },
    ),
    Case::new("sc_perf", "perf_event_open on oneself", |_| {
        let mut attr = [0_u64; 16];
        attr[0] = 1 | (128 << 32);
        attr[5] = 1 << 5;
        call!(libc::SYS_perf_event_open, attr.as_mut_ptr(), 0, -1, -1, 0)?;
        done("a counter runs")
    }),
    made!("sc_kexec", "kexec_load", libc::SYS_kexec_load, 0, 0, 0, 0).cannot(ADMIN),
    made!(
        "sc_kexec_file",
        "kexec_file_load",
        libc::SYS_kexec_file_load,
        0,
        0,
        0,
        c"",
        0x4
    )
    .cannot(ADMIN),
    made!(
        "sc_module",
        "init_module",
        libc::SYS_init_module,
        c"x",
        1,
        c""
    )
    .cannot(ADMIN),
    made!(
        "sc_module_file",
        "finit_module",
        libc::SYS_finit_module,
        0,
        c"",
        0
    )
    .cannot(ADMIN),
    made!(
        "sc_module_delete",
        "delete_module",
        libc::SYS_delete_module,
        c"nothing",
        libc::O_NONBLOCK
    )
    .cannot(ADMIN),
    made!(
        "sc_reboot",
        "reboot: Ctrl-Alt-Del",
        libc::SYS_reboot,
        0xfee1_dead_u32,
        672_274_793,
        0,
        0
    )
    .cannot(ADMIN),
    made!("sc_swapon", "swapoff", libc::SYS_swapoff, c"/nowhere").cannot(ADMIN),
    Case::new(
        "sc_hostname",
        "sethostname, in a user namespace where need be",
        |_| named(libc::SYS_sethostname),
    ),
    Case::new(
        "sc_domainname",
        "setdomainname, in a user namespace where need be",
        |_| named(libc::SYS_setdomainname),
    ),
    Case::new(
        "sc_modify_ldt",
        "modify_ldt: a code segment of one's own",
        |_| {
            // entry 0, base 0, limit 0xfffff, 32 bit, pages
            let mut entry = [0_u32, 0, 0xf_ffff, 0b101_0001];
            call!(libc::SYS_modify_ldt, 1, entry.as_mut_ptr(), 16)?;
            done("written")
        },
    ),
    made!(
        "sc_personality",
        "personality(ADDR_NO_RANDOMIZE)",
        libc::SYS_personality,
        0x004_0000
    ),
    made!(
        "sc_personality_high",
        "the same with high bits set",
        libc::SYS_personality,
        (1_i64 << 40) | 0x004_0000
    ),
    made!(
        "sc_personality_compat",
        "personality(ADDR_COMPAT_LAYOUT | MMAP_PAGE_ZERO)",
        libc::SYS_personality,
        0x030_0000
    ),
    made!(
        "sc_quotactl",
        "quotactl",
        libc::SYS_quotactl,
        0x8000_0100_u32,
        0,
        0,
        0
    ),
    made!("sc_vhangup", "vhangup", libc::SYS_vhangup).cannot(ADMIN),
    made!("sc_iopl", "iopl", libc::SYS_iopl, 3).cannot(ADMIN),
    made!("sc_ioperm", "ioperm", libc::SYS_ioperm, 0x70, 2, 1).cannot(ADMIN),
    made!("sc_acct", "acct", libc::SYS_acct, 0).cannot(ADMIN),
    made!(
        "sc_syslog",
        "syslog: read the kernel's log",
        libc::SYS_syslog,
        10,
        0,
        0
    )
    .cannot("kernel.dmesg_restrict forbids it on most hosts"),
    made!(
        "sc_syslog_read",
        "syslog: SYSLOG_ACTION_READ_ALL",
        libc::SYS_syslog,
        3,
        c"",
        0
    )
    .cannot("kernel.dmesg_restrict forbids it on most hosts"),
    made!(
        "sc_fanotify",
        "fanotify_init",
        libc::SYS_fanotify_init,
        0x200,
        0
    ),
    made!(
        "sc_lookup_handle",
        "open_by_handle_at",
        libc::SYS_open_by_handle_at,
        -100,
        0,
        0
    )
    .cannot(ADMIN),
    made!(
        "sc_remap",
        "set_mempolicy",
        libc::SYS_set_mempolicy,
        1,
        0,
        0
    )
    .cannot("whether nodes can be preferred depends on the machine"),
    Case::new("sc_mbind", "mbind", |_| {
        let at = call!(
            libc::SYS_mmap,
            0,
            4096,
            3,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0
        )?;
        call!(libc::SYS_mbind, at, 4096, 0, 0, 0, 0)?;
        done("bound")
    }),
    made!(
        "sc_aio",
        "io_setup: the old asynchronous I/O",
        libc::SYS_io_setup,
        1,
        &mut 0_u64
    ),
    made!(
        "sc_ustat",
        "ustat",
        libc::SYS_ustat,
        0xfe00,
        [0_u64; 8].as_mut_ptr()
    )
    .cannot("it wants the number of a mounted device"),
    made!(
        "sc_sysfs",
        "sysfs: names of file systems",
        libc::SYS_sysfs,
        3
    ),
    made!(
        "sc_ioprio_rt",
        "ioprio_set to real time",
        libc::SYS_ioprio_set,
        1,
        0,
        1 << 13
    )
    .cannot("it needs CAP_SYS_NICE"),
    Case::new("sc_fifo", "sched_setscheduler(SCHED_FIFO)", |_| {
        let mut parameter = 1_i32;
        call!(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_FIFO,
            &mut parameter
        )?;
        done("real time")
    })
    .cannot("RLIMIT_RTPRIO is 0 for ordinary users"),
    Case::new("sc_deadline", "sched_setattr(SCHED_DEADLINE)", |_| {
        let mut attr = [0_u64; 6];
        attr[0] = 48 | (6 << 32);
        (attr[3], attr[4], attr[5]) = (1_000_000, 10_000_000, 10_000_000);
        call!(libc::SYS_sched_setattr, 0, attr.as_mut_ptr(), 0)?;
        done("real time")
    })
    .cannot("it needs CAP_SYS_NICE"),
    made!(
        "sc_nice",
        "a negative nice value",
        libc::SYS_setpriority,
        0,
        0,
        -5
    )
    .emulated(super::emulated::NICE)
    .cannot("RLIMIT_NICE forbids it to ordinary users"),
    Case::new(
        "sc_seccomp_listener",
        "a filter with a listener: to answer system calls for others",
        |_| {
            let mut filter = [0x7fff_0000_0000_0006_u64];
            #[repr(C)]
            struct Program {
                length: u16,
                filter: *mut u64,
            }
            let mut program = Program {
                length: 1,
                filter: filter.as_mut_ptr(),
            };
            call!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
            // SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
            call!(libc::SYS_seccomp, 1, 8, &mut program)?;
            done("a listener is open")
        },
    )
    .opens(Opening::Has("syscalls.allow", "confinement")),
    Case::new("sc_landlock", "Landlock rules of one's own", |_| {
        let version = call!(libc::SYS_landlock_create_ruleset, 0, 0, 1)?;
        done(format!("ABI {version}"))
    })
    .opens(Opening::Has("syscalls.allow", "confinement")),
    made!(
        "sc_lsm_attr",
        "lsm_list_modules",
        461,
        [0_u64; 32].as_mut_ptr(),
        &mut 256_u32,
        0
    ),
    made!(
        "sc_mm_map",
        "prctl(PR_SET_MM): move one's own brk and arguments",
        libc::SYS_prctl,
        libc::PR_SET_MM,
        6,
        0,
        0,
        0
    )
    .cannot("it wants addresses that fit"),
    made!(
        "sc_vm86",
        "arch_prctl(ARCH_SET_CPUID): fault on cpuid",
        libc::SYS_arch_prctl,
        0x1012,
        1
    )
    .cannot("not every CPU can"),
    Case::new(
        "sc_kcmp_self",
        "kcmp of oneself: an order of kernel addresses",
        |_| {
            let own = std::process::id();
            call!(libc::SYS_kcmp, own, own, 1, 0, 0)?;
            done("compared")
        },
    )
    .opens(Opening::Has("syscalls.allow", "debug")),
    Case::new("sc_vmread_self", "process_vm_readv of oneself", |_| {
        let (mut from, mut to) = ([7_u8; 8], [0_u8; 8]);
        let mut local = [to.as_mut_ptr().expose_provenance() as u64, 8];
        let mut remote = [from.as_mut_ptr().expose_provenance() as u64, 8];
        call!(
            libc::SYS_process_vm_readv,
            std::process::id(),
            local.as_mut_ptr(),
            1,
            remote.as_mut_ptr(),
            1,
            0
        )?;
        done("read")
    })
    .opens(Opening::Has("syscalls.allow", "debug")),
    made!("sc_vserver", "a number that no kernel has", 1023).cannot("there is no such call"),
    made!(
        "sc_old",
        "_sysctl, create_module, nfsservctl",
        libc::SYS__sysctl,
        0
    )
    .cannot("there is no such call any more"),
    Case::new("sc_x32", "a number of the x32 ABI", |_| {
        call!(0x4000_0000_i64 | libc::SYS_getpid)?;
        done("the x32 entry answers")
    })
    .cannot("this kernel may be built without x32"),
    Case::new("sc_x32_chmod", "chmod by the x32 ABI", |s| {
        std::fs::write(s.own(), "x")?;
        let path = c(s.own());
        call!(0x4000_0000_i64 | libc::SYS_chmod, path.as_c_str(), 0o4755)?;
        done("changed")
    })
    .cannot("this kernel may be built without x32"),
    Case::new("sc_int80_getpid", "int 0x80: getpid", |_| {
        int80("getpid", 20, 0, 0, 0).and_then(|pid| done(format!("pid {pid}")))
    }),
    Case::new(
        "sc_int80_socket",
        "int 0x80: a socket for the kernel's events",
        |_| {
            // AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT
            int80("socket", 359, 16, 3, 15).and_then(|socket| done(format!("socket {socket}")))
        },
    ),
    Case::new("sc_int80_uring", "int 0x80: io_uring_setup", |_| {
        let mut parameters = low_page()?;
        let at = parameters.at();
        int80("io_uring_setup", 425, 1, at, 0).and_then(|ring| done(format!("ring {ring}")))
    }),
    Case::new(
        "sc_int80_unshare",
        "int 0x80: unshare a user namespace",
        |_| {
            int80("unshare", 310, libc::CLONE_NEWUSER as usize, 0, 0)
                .and_then(|_| done("the namespace was made"))
        },
    ),
    Case::new("sc_int80_ptrace", "int 0x80: be traced", |_| {
        int80("ptrace", 26, 0, 0, 0).and_then(|_| done("traced"))
    }),
    Case::new("sc_int80_keyctl", "int 0x80: keyctl", |_| {
        int80("keyctl", 288, 0, usize::MAX - 2, 0).and_then(|key| done(format!("keyring {key}")))
    }),
    Case::new(
        "X14",
        "two hundred thousand refused calls, then a secret",
        |s| {
            for _ in 0..200_000 {
                drop(call!(libc::SYS_mount, 0, 0, 0, 0, 0));
            }
            super::loot(s.outside())
        },
    )
    .secret()
    .limit(60),
];

/// Sets a name in a UTS namespace of one's own, so that the machine keeps its name where nothing stops us.
fn named(number: i64) -> Try {
    let status = super::in_child(|| {
        let own = call!(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWUTS);
        // Without the namespace it is tried all the same: a sandbox with a right too many is one's own anyway.
        match call!(number, c"escaped", 7) {
            Ok(_) => 0,
            Err(refused) => own.err().map_or(refused.errno, |own| own.errno),
        }
    })?;
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => done("the name was set"),
        (true, errno) => Err(Refused::new("sethostname", errno)),
        _ => Err(Refused::without_errno("killed")),
    }
}

fn ring() -> Result<usize, Refused> {
    let mut parameters = [0_u32; 30];
    call!(libc::SYS_io_uring_setup, 2, parameters.as_mut_ptr())
}

/// A ring with one entry in flight, without any library.
struct Ring {
    fd: usize,
    submission: usize,
    entries: usize,
    parameters: [u32; 30],
}

impl Ring {
    fn new() -> Result<Self, Refused> {
        let mut parameters = [0_u32; 30];
        let fd = call!(libc::SYS_io_uring_setup, 2, parameters.as_mut_ptr())?;
        let map = |length: usize, offset: i64| {
            call!(libc::SYS_mmap, 0, length, 3, libc::MAP_SHARED, fd, offset)
        };
        // IORING_FEAT_SINGLE_MMAP: both rings in one mapping.
        Ok(Self {
            fd,
            submission: map(8192, 0)?,
            entries: map(4096, 0x1000_0000)?,
            parameters,
        })
    }

    /// Submits one operation and gives its result.
    fn submit(
        &self,
        operation: u8,
        descriptor: i32,
        address: u64,
        length: u32,
        offset: u64,
    ) -> Result<i32, Refused> {
        let entry = std::ptr::with_exposed_provenance_mut::<u8>(self.entries);
        // struct io_sqring_offsets stands at word 10: head, tail, mask, entries, flags, dropped, array.
        let (tail, array) = (self.parameters[11] as usize, self.parameters[16] as usize);
        // struct io_cqring_offsets at word 20: head, tail, mask, entries, overflow, cqes.
        let completion = self.parameters[25] as usize;
        // SAFETY: the kernel mapped both areas, and the offsets are its own; nobody else uses this ring.
        unsafe {
            std::ptr::write_bytes(entry, 0, 64);
            entry.write(operation);
            entry.add(4).cast::<i32>().write(descriptor);
            entry.add(8).cast::<u64>().write(offset);
            entry.add(16).cast::<u64>().write(address);
            entry.add(24).cast::<u32>().write(length);
            let rings = std::ptr::with_exposed_provenance_mut::<u8>(self.submission);
            rings.add(array).cast::<u32>().write_volatile(0);
            rings.add(tail).cast::<u32>().write_volatile(1);
        }
        // IORING_ENTER_GETEVENTS
        call!(libc::SYS_io_uring_enter, self.fd, 1, 1, 1, 0, 0)?;
        // SAFETY: as above; the first completion is there, since the call waited for it.
        let result = unsafe {
            std::ptr::with_exposed_provenance::<u8>(self.submission)
                .add(completion + 8)
                .cast::<i32>()
                .read_volatile()
        };
        if result < 0 {
            Err(Refused::new("io_uring", -result))
        } else {
            Ok(result)
        }
    }
}

/// The kernel's other entry: arguments in 32-bit registers.
fn int80(name: &str, number: usize, a: usize, b: usize, c: usize) -> Result<usize, Refused> {
    let result: i64;
    // SAFETY: enters the kernel as a system call; pointers among the arguments are below 4 GiB and live. rbx is kept by hand
    // because the compiler reserves it.
    unsafe {
        asm!(
            "xchg rbx, {a}",
            "int 0x80",
            "xchg rbx, {a}",
            a = inout(reg) a => _,
            inlateout("rax") number as i64 => result,
            in("rcx") b,
            in("rdx") c,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let result = result as i32;
    if result < 0 {
        return Err(Refused::new(format!("int 0x80 {name}"), -result));
    }
    Ok(fd(result as usize) as usize)
}

/// A page below 4 GiB, where the 32-bit entry can see it.
struct LowPage(usize);

impl LowPage {
    fn at(&mut self) -> usize {
        self.0
    }
}

fn low_page() -> Result<LowPage, Refused> {
    // MAP_32BIT
    call!(
        libc::SYS_mmap,
        0,
        4096,
        3,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | 0x40,
        -1,
        0
    )
    .map(LowPage)
}

/// A call with a path and a number through the 32-bit entry.
pub(super) fn int80_path(number: usize, path: &Path, value: u32) -> Result<usize, Refused> {
    let page = low_page()?.at();
    let text = c(path);
    let bytes = text.as_bytes_with_nul();
    // SAFETY: a page of ours, and paths are shorter.
    unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            std::ptr::with_exposed_provenance_mut(page),
            bytes.len().min(4096),
        )
    };
    int80("by path", number, page, value as usize, 0)
}

/// A static program for i386 that calls `exit(42)` when `getpid` works.
pub(super) fn elf32() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    // mov eax, 20; int 0x80; mov eax, 1; mov ebx, 42; int 0x80
    const CODE: [u8; 19] = [
        0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xb8, 1, 0, 0, 0, 0xbb, 42, 0, 0, 0, 0xcd, 0x80,
    ];
    let half = |value: u16| value.to_le_bytes().to_vec();
    let word = |value: u32| value.to_le_bytes().to_vec();
    let size = 52 + 32 + CODE.len() as u32;
    [
        vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        half(2),
        half(3),
        word(1),
        word(BASE + 84),
        word(52),
        word(0),
        word(0),
        half(52),
        half(32),
        half(1),
        half(40),
        half(0),
        half(0),
        word(1),
        word(0),
        word(BASE),
        word(BASE),
        word(size),
        word(size),
        word(5),
        word(4096),
        CODE.to_vec(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_program_has_the_size_that_its_header_says() {
        let elf = elf32();
        assert_eq!(elf.len(), 52 + 32 + 19);
        assert_eq!(&elf[..4], b"\x7fELF");
    }
}
