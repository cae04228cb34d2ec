//! Why a connection of the gateway ended: every way by name, and which of them the peer is told.

use crate::router::CloseReason;

use super::interop::InteropError;
use super::transport::Ended;

/// How a connection of the gateway ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    #[error(transparent)]
    Transport(#[from] Ended),
    #[error(transparent)]
    Bus(#[from] CloseReason),
    #[error(transparent)]
    Interop(#[from] InteropError),
    #[error("this listener speaks B1 only, and these bytes do not begin with its magic")]
    InteropOff,
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no finished TLS handshake within {seconds} s")]
    HandshakeTimeout { seconds: u32 },
    #[error("{0}")]
    Turned(String),
    #[error("the gateway holds {limit} bytes of unfinished frames, the most it may")]
    Memory { limit: usize },
    #[error("the gateway ends")]
    Stopped,
}

impl Ending {
    /// Whether there is somebody left to tell.
    pub(super) fn is_told(&self) -> bool {
        !matches!(
            self,
            Self::Transport(_)
                | Self::Tls(_)
                | Self::HandshakeTimeout { .. }
                | Self::Bus(CloseReason::CutOff { .. })
        )
    }

    /// Whether it is the ordinary end of a connection that did nothing wrong.
    pub fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::Transport(Ended::Eof | Ended::Asked)
                | Self::Stopped
                | Self::Bus(CloseReason::Detached | CloseReason::Finished)
        )
    }
}
