//! Clocks: the host's must keep their time, whatever a session would like its limits to see.

use super::{done, in_child};
use crate::case::Case;
use crate::raw::{Refused, call};

const ADMIN: &str = "it needs CAP_SYS_TIME";

pub const CASES: &[Case] = &[
    Case::new("tm_settime", "clock_settime", |_| {
        let mut now = [0_i64; 2];
        call!(
            libc::SYS_clock_gettime,
            libc::CLOCK_REALTIME,
            now.as_mut_ptr()
        )?;
        call!(
            libc::SYS_clock_settime,
            libc::CLOCK_REALTIME,
            now.as_mut_ptr()
        )?;
        done("set")
    })
    .cannot(ADMIN),
    Case::new("tm_settimeofday", "settimeofday", |_| {
        let mut now = [0_i64; 2];
        call!(libc::SYS_gettimeofday, now.as_mut_ptr(), 0)?;
        call!(libc::SYS_settimeofday, now.as_mut_ptr(), 0)?;
        done("set")
    })
    .cannot(ADMIN),
    Case::new("tm_adjtimex", "adjtimex", |_| {
        let mut timex = [0_u64; 32];
        // ADJ_TICK with the tick as it is
        timex[0] = 0x4000;
        timex[10] = 10_000;
        call!(libc::SYS_adjtimex, timex.as_mut_ptr())?;
        done("set")
    })
    .cannot(ADMIN),
    Case::new("tm_clock_adjtime", "clock_adjtime", |_| {
        let mut timex = [0_u64; 32];
        timex[0] = 0x4000;
        timex[10] = 10_000;
        call!(libc::SYS_clock_adjtime, 0, timex.as_mut_ptr())?;
        done("set")
    })
    .cannot(ADMIN),
    Case::new("X35", "a time namespace with other offsets", |_| {
        let status = in_child(|| {
            let made = call!(libc::SYS_unshare, libc::CLONE_NEWUSER | 0x80).is_ok()
                && std::fs::write("/proc/self/timens_offsets", "monotonic 86400 0\n").is_ok();
            i32::from(!made)
        })?;
        if status == 0 {
            done("a day has passed")
        } else {
            Err(Refused::new("unshare", libc::EPERM))
        }
    }),
    Case::new("tm_alarm", "a timer that wakes a sleeping machine", |_| {
        let mut timer = 0_i32;
        call!(
            libc::SYS_timer_create,
            libc::CLOCK_REALTIME_ALARM,
            0,
            &mut timer
        )?;
        done("made")
    })
    .cannot("it needs CAP_WAKE_ALARM"),
    Case::new("tm_rtc", "the clock's chip", |_| {
        let clock = call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/dev/rtc0",
            libc::O_RDONLY
        )?;
        let mut time = [0_i32; 16];
        call!(libc::SYS_ioctl, clock, 0x8024_7009_u32, time.as_mut_ptr())?;
        done("read")
    })
    .cannot("the node is root's"),
];
