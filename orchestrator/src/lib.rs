//! Agent life cycles and driver protocols, as pure state machines.
