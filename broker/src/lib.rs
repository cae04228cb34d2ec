//! The privileged process and its protocol.
