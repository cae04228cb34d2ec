//! The escape suite: what an agent might try to get out of its sandbox, the victims that it tries it on, and the
//! verdict by what became of them.
//!
//! Three parts, in one static program. [`inside`] runs in the sandbox and tries each case of the [`catalogue`] in a
//! process of its own; [`victims`] stands outside: files, processes, servers, memory, keys; [`judge`] starts a session of
//! any sandbox, looks at the victims before and after, and says what escaped. A case is stopped when its victim is
//! unharmed, whatever the kernel answered. Nothing here knows agentd: other sandboxes are judged by the same code.
//! Start reading at [`case`].

pub mod case;
pub mod cases;
pub mod catalogue;
pub mod inside;
pub mod judge;
pub mod openings;
pub mod raw;
pub mod report;
pub mod scene;
pub mod victims;
