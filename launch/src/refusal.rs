//! What the sandbox's init tells of calls that it refused: records of 64 bytes, little-endian, in a pipe.
//!
//! Pure encoding; the reader treats the bytes as untrusted. A record is written whole or not at all (it is far below
//! `PIPE_BUF`), and never waited for: what finds the pipe full is counted, and the next record that fits says how many were
//! lost since the launch.

/// Bytes of a record.
pub const REFUSAL_LEN: usize = 64;

/// A system call that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    /// Refusals since the launch that could not be told.
    pub lost: u64,
    /// The call; `None` in a record that brings nothing but the number of those lost.
    pub call: Option<RefusedCall>,
}

/// Which, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedCall {
    /// The thread, in the sandbox's pid namespace.
    pub pid: u32,
    /// The system call's number.
    pub number: u32,
    /// Its first three arguments.
    pub args: [u64; 3],
    /// The thread's name, padded with NUL; the program chose it. Empty where the sandbox has no procfs.
    pub comm: [u8; 16],
}

/// A number that no system call has.
const NO_CALL: u32 = u32::MAX;

impl Refusal {
    /// The record.
    pub fn encode(&self) -> [u8; REFUSAL_LEN] {
        let none = RefusedCall {
            pid: 0,
            number: NO_CALL,
            args: [0; 3],
            comm: [0; 16],
        };
        let call = self.call.unwrap_or(none);
        let mut out = [0; REFUSAL_LEN];
        out[0..8].copy_from_slice(&self.time_ns.to_le_bytes());
        out[8..16].copy_from_slice(&self.lost.to_le_bytes());
        out[16..20].copy_from_slice(&call.pid.to_le_bytes());
        out[20..24].copy_from_slice(&call.number.to_le_bytes());
        for (slot, word) in out[24..48].chunks_exact_mut(8).zip(call.args) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        out[48..64].copy_from_slice(&call.comm);
        out
    }

    /// What a record says. Any bytes are one.
    pub fn decode(record: &[u8; REFUSAL_LEN]) -> Refusal {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&record[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let pid_and_number = word(16);
        let mut comm = [0; 16];
        comm.copy_from_slice(&record[48..64]);
        let number = (pid_and_number >> 32) as u32;
        Refusal {
            time_ns: word(0),
            lost: word(8),
            call: (number != NO_CALL).then_some(RefusedCall {
                pid: pid_and_number as u32,
                number,
                args: [word(24), word(32), word(40)],
                comm,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_pipe() {
        let call = RefusedCall {
            pid: 7,
            number: 165,
            args: [1, u64::MAX, 3],
            comm: *b"mount\0\0\0\0\0\0\0\0\0\0\0",
        };
        for call in [Some(call), None] {
            let refusal = Refusal {
                time_ns: 1 << 40,
                lost: 9,
                call,
            };
            assert_eq!(Refusal::decode(&refusal.encode()), refusal);
        }
    }
}
