//! Which transport a shard gets, and why: io_uring where there is one, else epoll, and the reason is kept for whoever asks.

use super::epoll::Epoll;
use super::transport::{Transport, TransportError, TransportKind, TransportLimits};
use super::uring::{Uring, UringUnavailable};

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// io_uring if there is one.
    #[default]
    Best,
    Epoll,
    /// Nothing else will do.
    IoUring,
}

/// What a shard got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub kind: TransportKind,
    /// For people: `agentctl bus peers`, doctor.
    pub why: String,
}

/// No transport as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    #[error(transparent)]
    Epoll(#[from] TransportError),
    #[error("io_uring is asked for by name, but {0}")]
    IoUring(#[from] UringUnavailable),
}

/// Makes a transport. Rings have to be made before the process confines itself.
pub fn select(
    wanted: Wanted,
    limits: TransportLimits,
) -> Result<(Box<dyn Transport + Send>, Chosen), SelectError> {
    let epoll = |why: String| -> Result<(Box<dyn Transport + Send>, Chosen), SelectError> {
        let kind = TransportKind::Epoll;
        Ok((Box::new(Epoll::new(limits)?), Chosen { kind, why }))
    };
    if wanted == Wanted::Epoll {
        return epoll("the configuration asks for it".to_owned());
    }
    match Uring::new(limits) {
        Ok(uring) => {
            let kind = TransportKind::IoUring;
            let why = "this kernel has all that it needs".to_owned();
            Ok((Box::new(uring), Chosen { kind, why }))
        }
        Err(unavailable) if wanted == Wanted::Best => epoll(unavailable.to_string()),
        Err(unavailable) => Err(unavailable.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_is_there_for_whoever_asks_and_says_why() {
        let (transport, chosen) = select(Wanted::Epoll, TransportLimits::default()).unwrap();
        assert_eq!(transport.kind(), TransportKind::Epoll);
        assert_eq!(chosen.why, "the configuration asks for it");
    }

    /// What is chosen on a thread for which a filter answers `io_uring_setup` with `errno`.
    fn chosen_where_setup_fails(errno: i32) -> Chosen {
        let run = move || {
            let rule = |code: u32, jt, jf, k| libc::sock_filter {
                code: code as u16,
                jt,
                jf,
                k,
            };
            let refused = libc::SECCOMP_RET_ERRNO | errno as u32;
            let mut rules = [
                rule(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
                rule(
                    libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                    0,
                    1,
                    libc::SYS_io_uring_setup as u32,
                ),
                rule(libc::BPF_RET | libc::BPF_K, 0, 0, refused),
                rule(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
            ];
            let program = libc::sock_fprog {
                len: rules.len() as u16,
                filter: rules.as_mut_ptr(),
            };
            // SAFETY: numbers only; concerns this thread, which ends with the test.
            let private = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            // SAFETY: `program` and the rules it points to live until the call has copied them.
            let filtered = unsafe {
                libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                )
            };
            assert_eq!((private, filtered), (0, 0));
            assert!(select(Wanted::IoUring, TransportLimits::default()).is_err());
            select(Wanted::Best, TransportLimits::default()).unwrap().1
        };
        std::thread::spawn(run).join().unwrap()
    }

    #[test]
    fn a_forbidden_or_missing_io_uring_gives_epoll_and_its_name() {
        let forbidden = chosen_where_setup_fails(libc::EPERM);
        assert_eq!(forbidden.kind, TransportKind::Epoll);
        // A host that has switched it off says that instead.
        let names = ["io_uring is forbidden to", "io_uring is switched off"];
        assert!(
            names.iter().any(|name| forbidden.why.starts_with(name)),
            "{}",
            forbidden.why
        );
        let missing = chosen_where_setup_fails(libc::ENOSYS);
        assert_eq!(
            (missing.kind, missing.why.as_str()),
            (TransportKind::Epoll, "this kernel has no io_uring")
        );
    }

    #[test]
    fn without_io_uring_the_reason_is_told() {
        let (transport, chosen) = select(Wanted::Best, TransportLimits::default()).unwrap();
        assert_eq!(transport.kind(), chosen.kind);
        // Which of the two it is depends on the host; that it agrees with a request by name does not.
        let by_name = select(Wanted::IoUring, TransportLimits::default());
        match chosen.kind {
            TransportKind::IoUring => assert!(by_name.is_ok()),
            _ => assert!(by_name.unwrap_err().to_string().ends_with(&chosen.why)),
        }
    }
}
