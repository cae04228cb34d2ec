//! Frames, lanes, router and client of the agent bus.
