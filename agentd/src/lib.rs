//! The daemon: start-up, wiring and interfaces.
