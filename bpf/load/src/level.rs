//! How deep a cgroup is below the root of the whole hierarchy, for a process that doesn't see that
//! root.
//!
//! Programs count levels from the root, and a cgroup namespace hides it from every file of `/proc`
//! and of cgroup2. The kernel tells a program all the same: this one, run once by the calling task
//! and never attached, asks for the ids of the task's ancestors level by level until one is the id
//! that is looked for (ADR 43). Needs what loading needs; makes two calls of `bpf(2)`.

use crate::sys;
use std::io;
use std::os::fd::AsFd;

/// Levels that are looked at. systemd's deepest units are ten or so deep.
const MOST: u32 = 64;
/// What the program returns if none is the one.
const NOT_FOUND: u32 = u32::MAX;

/// Why a level is not known.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    #[error("asking the kernel how deep cgroup {id} is: {source}")]
    Kernel { id: u64, source: io::Error },
    #[error(
        "cgroup {id} is none of the {MOST} topmost that this process is in: start agentd below the cgroup2 mount that its agents get"
    )]
    Elsewhere { id: u64 },
}

/// The level of the cgroup with this id, of those that the calling task is in; the root's is 0.
#[doc(alias = "bpf_get_current_ancestor_cgroup_id")]
pub fn level_of(id: u64) -> Result<u32, LevelError> {
    let failed = |source| LevelError::Kernel { id, source };
    let program = sys::load_raw_tracepoint(&program(id)).map_err(failed)?;
    match sys::run(program.as_fd()).map_err(failed)? {
        NOT_FOUND => Err(LevelError::Elsewhere { id }),
        level => Ok(level),
    }
}

/// One instruction as `struct bpf_insn` lays it out (`Documentation/bpf/standardization/instruction-set.rst`).
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u64) << 32
}

fn program(id: u64) -> [u64; 12] {
    const LOAD_64: u8 = 0x18;
    const SET: u8 = 0xb7;
    const COPY: u8 = 0xbf;
    const ADD: u8 = 0x07;
    const CALL: u8 = 0x85;
    const IF_EQUAL: u8 = 0x1d;
    const IF_BELOW: u8 = 0xa5;
    const EXIT: u8 = 0x95;
    const GET_CURRENT_ANCESTOR_CGROUP_ID: u32 = 123;
    [
        // r6 = id; r7 = 0
        instruction(LOAD_64, 6, 0, 0, id as u32),
        instruction(0, 0, 0, 0, (id >> 32) as u32),
        instruction(SET, 7, 0, 0, 0),
        // loop: if ancestor(r7) == r6 goto found
        instruction(COPY, 1, 7, 0, 0),
        instruction(CALL, 0, 0, 0, GET_CURRENT_ANCESTOR_CGROUP_ID),
        instruction(IF_EQUAL, 0, 6, 4, 0),
        // if ++r7 < MOST goto loop
        instruction(ADD, 7, 0, 0, 1),
        instruction(IF_BELOW, 7, 0, -5, MOST),
        // return NOT_FOUND
        instruction(SET, 0, 0, 0, NOT_FOUND),
        instruction(EXIT, 0, 0, 0, 0),
        // found: return r7
        instruction(COPY, 0, 7, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_as_the_kernel_lays_them_out() {
        // r7 < 64, five back: code, registers, offset, immediate in this order of bytes.
        let bytes = program(0x1122_3344_5566_7788)[7].to_le_bytes();
        assert_eq!(bytes, [0xa5, 0x07, 0xfb, 0xff, 0x40, 0, 0, 0]);
        let [low, high] = [0, 1].map(|at| program(0x1122_3344_5566_7788)[at] >> 32);
        assert_eq!((high, low), (0x1122_3344, 0x5566_7788));
    }
}
