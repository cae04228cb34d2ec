//! Instructions that not every processor has, each behind a choice at run time and beside a plain version with
//! the same results.
//!
//! What is here won clearly in `benches/simd.rs`; what lost is in `docs/journal/`. Pure; any thread, no privilege.

pub mod crc32c;
