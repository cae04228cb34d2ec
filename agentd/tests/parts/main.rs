//! The daemon's parts, each against its real neighbours: one test binary, one module for each part.

mod driver;
mod egress;
mod gateway;
mod lab;
mod real;
