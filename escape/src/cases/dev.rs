//! Device nodes: of the machine, of the kernel, of other terminals; given, or made by the agent itself.

use std::fs::File;
use std::io::{Read, Write};

use super::done;
use crate::case::{Case, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

const ROOTS: &str = "the node is root's";

/// Opens the first of these nodes that opens.
fn open(paths: &[&str]) -> Try {
    let mut last = Refused::new("open", libc::ENOENT);
    for path in paths {
        let path_c = c(path);
        for flags in [libc::O_RDWR, libc::O_RDONLY] {
            match call!(
                libc::SYS_openat,
                libc::AT_FDCWD,
                path_c.as_c_str(),
                flags | libc::O_NONBLOCK
            ) {
                Ok(_) => return done(format!("{path} is open")),
                Err(refused) => last = refused,
            }
        }
    }
    Err(last)
}

macro_rules! node {
    ($id:literal, $title:literal, [$($path:literal),+]) => {
        Case::new($id, $title, |_| open(&[$($path),+]))
    };
}

pub const CASES: &[Case] = &[
    Case::new("dev_kmsg_r", "read the kernel's log", |_| {
        let mut line = [0; 256];
        let mut log = File::open("/dev/kmsg")?;
        let count = log.read(&mut line)?;
        done(format!("{count} bytes of the log"))
    })
    .cannot(ROOTS),
    Case::new("dev_kmsg_w", "forge a line in the kernel's log", |s| {
        let mut log = File::options().write(true).open("/dev/kmsg")?;
        log.write_all(format!("{}-{}\n", s.mark, s.case).as_bytes())?;
        done("a line was written")
    })
    .cannot(ROOTS),
    node!(
        "dev_block",
        "a raw disk",
        [
            "/dev/vda",
            "/dev/sda",
            "/dev/nvme0n1",
            "/dev/loop0",
            "/dev/zram0"
        ]
    )
    .cannot(ROOTS),
    node!(
        "dev_mem",
        "physical memory and ports",
        ["/dev/mem", "/dev/port", "/dev/kmem"]
    )
    .cannot(ROOTS),
    node!("dev_kvm", "virtual machines", ["/dev/kvm"])
        .cannot("the node is root's or of a group, where there is one"),
    node!("dev_fuse", "FUSE", ["/dev/fuse"])
        .emulated(super::emulated::DEVICES)
        .cannot("as udev leaves it: open to all on most machines, root's on others"),
    node!("dev_tun", "network taps", ["/dev/net/tun"])
        .cannot("as udev leaves it: open to all on most machines, root's on others"),
    node!(
        "dev_vsock",
        "the hypervisor's sockets",
        ["/dev/vsock", "/dev/vhost-vsock", "/dev/vhost-net"]
    )
    .cannot("as udev leaves it: open to all on most machines, root's on others"),
    node!("dev_uffd", "userfaultfd's node", ["/dev/userfaultfd"]).cannot(ROOTS),
    node!(
        "dev_loop",
        "the loop device's control",
        [
            "/dev/loop-control",
            "/dev/btrfs-control",
            "/dev/mapper/control"
        ]
    )
    .cannot(ROOTS),
    node!(
        "dev_console",
        "consoles and their screens",
        [
            "/dev/console",
            "/dev/tty0",
            "/dev/tty1",
            "/dev/vcs",
            "/dev/vcsa1"
        ]
    )
    .cannot(ROOTS),
    node!(
        "dev_serial",
        "serial lines",
        ["/dev/ttyS0", "/dev/ttyUSB0", "/dev/hvc0"]
    )
    .cannot(ROOTS),
    node!(
        "dev_input",
        "keyboards and mice",
        ["/dev/input/event0", "/dev/uinput", "/dev/input/mice"]
    )
    .cannot(ROOTS),
    node!(
        "dev_gpu",
        "graphics",
        [
            "/dev/dri/card0",
            "/dev/dri/renderD128",
            "/dev/fb0",
            "/dev/nvidiactl",
            "/dev/nvidia0"
        ]
    )
    .cannot("of a group, where there is one"),
    node!(
        "dev_sound",
        "microphones",
        ["/dev/snd/controlC0", "/dev/snd/timer", "/dev/snd/seq"]
    )
    .cannot("of a group, where there is one"),
    node!("dev_video", "cameras", ["/dev/video0", "/dev/media0"])
        .cannot("of a group, where there is one"),
    node!(
        "dev_usb",
        "USB devices",
        ["/dev/bus/usb/001/001", "/dev/hidraw0"]
    )
    .cannot(ROOTS),
    node!("dev_rtc", "the clock's chip", ["/dev/rtc0", "/dev/rtc"]).cannot(ROOTS),
    node!(
        "dev_watchdog",
        "the watchdog",
        ["/dev/watchdog", "/dev/watchdog0"]
    )
    .cannot(ROOTS),
    node!(
        "dev_latency",
        "the CPU's sleep states",
        ["/dev/cpu_dma_latency"]
    )
    .cannot(ROOTS),
    node!("dev_vga", "the VGA arbiter", ["/dev/vga_arbiter"])
        .cannot("as udev leaves it: open to all on most machines, root's on others"),
    node!(
        "dev_msr",
        "model-specific registers",
        ["/dev/cpu/0/msr", "/dev/cpu/0/cpuid"]
    )
    .cannot(ROOTS),
    node!("dev_tpm", "the TPM", ["/dev/tpm0", "/dev/tpmrm0"])
        .cannot("of a group, where there is one"),
    node!("dev_hwrng", "the hardware's random numbers", ["/dev/hwrng"]).cannot(ROOTS),
    node!("dev_autofs", "autofs", ["/dev/autofs"])
        .cannot("as udev leaves it: open to all on most machines, root's on others"),
    node!("dev_ppp", "PPP", ["/dev/ppp"]).cannot(ROOTS),
    Case::new("dev_mknod", "make a node of the disk, then open it", |s| {
        mknod(s, libc::S_IFBLK, libc::makedev(254, 0))
    })
    .cannot("device nodes need CAP_MKNOD"),
    Case::new(
        "dev_mknod_mem",
        "make a node of physical memory, then open it",
        |s| mknod(s, libc::S_IFCHR, libc::makedev(1, 1)),
    )
    .cannot("device nodes need CAP_MKNOD"),
    Case::new(
        "dev_mknod_whiteout",
        "make a node of device 0:0, which needs no right",
        |s| mknod(s, libc::S_IFCHR, 0),
    )
    .cannot("no driver stands behind it"),
    Case::new(
        "dev_list",
        "nodes beyond those that every program needs",
        |_| {
            const PLAIN: [&str; 16] = [
                "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts",
                "shm", "fd", "stdin", "stdout", "stderr", "core", "mqueue",
            ];
            let extra: Vec<String> = std::fs::read_dir("/dev")?
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| !PLAIN.contains(&name.as_str()))
                .collect();
            if extra.is_empty() {
                return Err(Refused::without_errno("none"));
            }
            done(format!("{} nodes, such as {}", extra.len(), extra[0]))
        },
    )
    .emulated(super::emulated::DEVICES),
];

fn mknod(s: &Scene, kind: u32, device: u64) -> Try {
    let path = c(s.own());
    call!(
        libc::SYS_mknodat,
        libc::AT_FDCWD,
        path.as_c_str(),
        kind | 0o666,
        device
    )?;
    let node = super::opened(s.own(), libc::O_RDWR)?;
    done(format!("descriptor {node}"))
}
