//! Agent units: what an administrator or a user declares, from TOML text to checked values, and the engine that keeps
//! the declared agents alive.
//!
//! A unit is a file `NAME.toml` (or a template `NAME@.toml`) with drop-ins `NAME.toml.d/*.toml` laid over it.
//! [`UnitSet::load`] takes the texts of a whole directory and gives either every unit or every mistake, each with file,
//! line, key and what is allowed; [`UnitSet::unit`] makes a [`Unit`] of a name, also of a template's instance;
//! [`Diff`] compares two sets; [`supervisor::Supervisor`] decides when an agent of a unit is started, restarted and
//! stopped. `docs/units.md` is the reference for people.
//!
//! Nothing here reads a file, a clock or a source of randomness, and nothing starts anything: `agentd::units` does.
//! Start reading at `schema.rs`, the table of keys; `layer.rs` reads one text, `build.rs` makes the unit.

mod build;
mod diagnostic;
mod diff;
mod layer;
mod name;
mod quantity;
mod schema;
mod set;
mod specifier;
mod suggest;
pub mod supervisor;

pub use build::{Agent, Cores, Run, Shown, Status, Stdio, Triggers, Unit};
pub use diagnostic::{Diagnostic, Origin, UnitError};
pub use diff::{Change, Changed, Diff};
pub use name::{NameError, UnitName};
pub use quantity::show_duration;
pub use schema::{DRIVERS, reference};
pub use set::{UnitFile, UnitSet, WhichFile};

/// How many agents one unit's pool may have where nobody says otherwise.
pub const POOL_CEILING: u32 = 10;
