//! Making a ring: what it is made with, what it is restricted to, and by what name it fails where there is none.
//!
//! io_uring does not pass through seccomp: what a filter denies, a ring may do. So a ring is made before the process
//! confines itself, is disabled while it is set up, and can from its first use on only do what the gateway needs: no
//! opening of files, no connecting, no registering of anything more. Enabling it binds it to the enabling thread.

use std::io;

use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue};

use super::buffers::BufferRing;

/// Entries of the submission queue: the largest batch.
pub(super) const BATCH: u32 = 256;
/// Entries of the completion queue; more wait in the kernel.
const COMPLETIONS: u32 = 8192;
/// Receive buffers of a shard. Their memory is touched only as far as they are used at the same time.
const BUFFERS: u16 = 1024;
/// Group of the receive buffers.
pub(super) const GROUP: u16 = 0;

/// Why there is no ring here.
#[derive(Debug, thiserror::Error)]
pub enum UringUnavailable {
    #[error("this kernel has no io_uring")]
    NoSuchCall,
    #[error(
        "io_uring is switched off: kernel.io_uring_disabled is {value}; `sudo sysctl -w kernel.io_uring_disabled=0` allows it"
    )]
    SwitchedOff { value: String },
    #[error("io_uring is forbidden to this process (seccomp or the container's policy)")]
    Forbidden,
    #[error("this kernel's io_uring lacks {what}, which Linux {since} has")]
    TooOld {
        what: &'static str,
        since: &'static str,
    },
    #[error("{call} failed: {source}")]
    Call {
        call: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What the gateway asks of a ring, and since when kernels have it.
const NEEDED: &[(u8, &str, &str)] = &[
    (opcode::Accept::CODE, "accept", "5.5"),
    (opcode::RecvMulti::CODE, "recv", "5.6"),
    (opcode::Send::CODE, "send", "5.6"),
    (opcode::SendZc::CODE, "send_zc", "6.0"),
    (opcode::AsyncCancel2::CODE, "async_cancel", "5.5"),
    (opcode::LinkTimeout::CODE, "link_timeout", "5.5"),
    (opcode::Close::CODE, "close", "5.6"),
    (opcode::Read::CODE, "read", "5.6"),
    (opcode::PollAdd::CODE, "poll_add", "5.1"),
    (opcode::FixedFdInstall::CODE, "fixed_fd_install", "6.8"),
];

fn failed(call: &'static str) -> impl Fn(io::Error) -> UringUnavailable {
    move |source| UringUnavailable::Call { call, source }
}

/// A ring that is set up and restricted, but not yet enabled, and its buffers. `connections` direct descriptors.
pub(super) fn make(
    connections: u32,
    buffer_bytes: usize,
) -> Result<(IoUring, BufferRing), UringUnavailable> {
    let ring: IoUring = IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(COMPLETIONS)
        .dontfork()
        .build(BATCH)
        .map_err(why_no_ring)?;
    let submitter = ring.submitter();
    let mut probe = Probe::new();
    submitter
        .register_probe(&mut probe)
        .map_err(failed("IORING_REGISTER_PROBE"))?;
    for (code, what, since) in NEEDED {
        if !probe.is_supported(*code) {
            return Err(UringUnavailable::TooOld { what, since });
        }
    }
    submitter
        .register_files_sparse(connections)
        .map_err(failed("IORING_REGISTER_FILES2"))?;
    let buffers = BufferRing::new(BUFFERS, buffer_bytes)
        .map_err(|errno| failed("mmap of receive buffers")(errno.into()))?;
    // SAFETY: the entries are mapped for `count` of them and stay so until `buffers` is dropped, which `Uring` does only
    // after the ring has nothing in flight any more.
    unsafe { submitter.register_buf_ring_with_flags(buffers.address(), buffers.count(), GROUP, 0) }
        .map_err(failed("IORING_REGISTER_PBUF_RING"))?;
    let flags = 1 // IOSQE_FIXED_FILE, which the crate sets by itself
        | squeue::Flags::IO_LINK.bits()
        | squeue::Flags::BUFFER_SELECT.bits();
    let mut allowed: Vec<Restriction> = NEEDED
        .iter()
        .map(|(code, _, _)| Restriction::sqe_op(*code))
        .chain([Restriction::sqe_flags_allowed(flags)])
        .collect();
    submitter
        .register_restrictions(&mut allowed)
        .map_err(failed("IORING_REGISTER_RESTRICTIONS"))?;
    Ok((ring, buffers))
}

fn why_no_ring(error: io::Error) -> UringUnavailable {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => UringUnavailable::NoSuchCall,
        Some(libc::EPERM | libc::EACCES) => {
            let value = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            match value.as_deref().map(str::trim) {
                Ok(value @ ("1" | "2")) => UringUnavailable::SwitchedOff {
                    value: value.to_owned(),
                },
                _ => UringUnavailable::Forbidden,
            }
        }
        Some(libc::EINVAL) => UringUnavailable::TooOld {
            what: "defer_taskrun",
            since: "6.1",
        },
        _ => failed("io_uring_setup")(error),
    }
}
