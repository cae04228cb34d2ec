//! Terminals: putting words into somebody's mouth, and lines into the kernel's rarely used drivers.

use super::{done, fd};
use crate::case::{Case, Try};
use crate::raw::{Refused, call};

const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;
const TIOCCONS: u64 = 0x541d;
const TIOCSETD: u64 = 0x5423;
const TIOCVHANGUP: u64 = 0x5437;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTPEER: u64 = 0x5441;
const TIOCSCTTY: u64 = 0x540e;

pub const CASES: &[Case] = &[
    Case::new("tty_sti", "TIOCSTI: push input into a terminal", |_| {
        sti(TIOCSTI)
    }),
    Case::new(
        "tty_sti_hi",
        "TIOCSTI with high bits set, as filters on 64 bits miss it",
        |_| sti(TIOCSTI | (1 << 32)),
    ),
    Case::new("tty_linux", "TIOCLINUX: paste", |_| {
        let (_, terminal) = pair()?;
        let mut word = [3_u8; 8];
        call!(libc::SYS_ioctl, terminal, TIOCLINUX, word.as_mut_ptr())?;
        done("pasted")
    })
    .cannot("only consoles paste"),
    Case::new("tty_cons", "TIOCCONS: take the console's output", |_| {
        let (_, terminal) = pair()?;
        call!(libc::SYS_ioctl, terminal, TIOCCONS, 0)?;
        done("taken")
    })
    .cannot("it needs CAP_SYS_ADMIN"),
    Case::new("tty_vhangup", "TIOCVHANGUP", |_| {
        let (_, terminal) = pair()?;
        call!(libc::SYS_ioctl, terminal, TIOCVHANGUP, 0)?;
        done("hung up")
    })
    .cannot("it needs CAP_SYS_ADMIN"),
    Case::new("tty_setd", "TIOCSETD: load a line discipline", |_| {
        let (_, terminal) = pair()?;
        // N_NULL, which every kernel has; others are modules that the kernel would load for us.
        let mut discipline = 27_i32;
        call!(libc::SYS_ioctl, terminal, TIOCSETD, &mut discipline)?;
        done("set")
    }),
    Case::new(
        "tty_setd_module",
        "TIOCSETD of disciplines that are modules: N_HDLC, N_GSM0710, SLIP",
        |_| {
            let (_, terminal) = pair()?;
            for discipline in [13_i32, 21, 1, 5, 15] {
                let mut number = discipline;
                if call!(libc::SYS_ioctl, terminal, TIOCSETD, &mut number).is_ok() {
                    return done(format!("discipline {discipline}"));
                }
            }
            let mut number = 13_i32;
            call!(libc::SYS_ioctl, terminal, TIOCSETD, &mut number)?;
            done("set")
        },
    )
    .cannot("not every kernel has the modules, and some load them for root only"),
    Case::new("tty_dev_tty", "the caller's terminal by /dev/tty", |_| {
        call!(libc::SYS_openat, libc::AT_FDCWD, c"/dev/tty", libc::O_RDWR)?;
        done("open")
    })
    .cannot("sessions are started without a terminal here"),
    Case::new("tty_any_pts", "any terminal that shows in /dev/pts", |_| {
        let names: Vec<_> = std::fs::read_dir("/dev/pts")?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name != "ptmx")
            .collect();
        if names.is_empty() {
            return Err(Refused::without_errno("none"));
        }
        done(format!("{} terminals", names.len()))
    })
    .cannot("whether anybody has a terminal is the host's affair"),
    Case::new(
        "tty_steal",
        "TIOCSCTTY: steal a controlling terminal",
        |_| {
            let (_, terminal) = pair()?;
            call!(libc::SYS_ioctl, terminal, TIOCSCTTY, 1)?;
            done("stolen")
        },
    )
    .cannot("stealing needs CAP_SYS_ADMIN"),
    Case::new(
        "tty_kd",
        "keyboard and console modes: KDSETMODE, VT_ACTIVATE",
        |_| {
            let console = call!(libc::SYS_openat, libc::AT_FDCWD, c"/dev/tty0", libc::O_RDWR)?;
            call!(libc::SYS_ioctl, console, 0x5606, 1)?;
            done("switched")
        },
    )
    .cannot("the console is root's"),
];

/// A terminal of one's own, as the controlling one of a new session.
fn pair() -> Result<(i32, i32), Refused> {
    let leader = fd(call!(
        libc::SYS_openat,
        libc::AT_FDCWD,
        c"/dev/ptmx",
        libc::O_RDWR | libc::O_NOCTTY
    )?);
    let mut unlock = 0_i32;
    call!(libc::SYS_ioctl, leader, TIOCSPTLCK, &mut unlock)?;
    let terminal = call!(
        libc::SYS_ioctl,
        leader,
        TIOCGPTPEER,
        libc::O_RDWR | libc::O_NOCTTY
    )?;
    Ok((leader, fd(terminal)))
}

fn sti(request: u64) -> Try {
    // A terminal takes input from its own session only.
    let status = super::in_child(|| {
        if call!(libc::SYS_setsid).is_err() {
            return 100;
        }
        let Ok((_, terminal)) = pair() else {
            return 101;
        };
        let pushed = call!(libc::SYS_ioctl, terminal, TIOCSCTTY, 0)
            .and_then(|_| call!(libc::SYS_ioctl, terminal, request, c"x"));
        pushed.map_or_else(|refused| refused.errno, |_| 0)
    })?;
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => done("input was pushed"),
        (true, 100 | 101) => super::unavailable("no terminal of one's own"),
        (true, errno) => Err(Refused::new("ioctl", errno)),
        _ => Err(Refused::without_errno("killed")),
    }
}
