//! Real processes that die at any store to shared memory, or write anything to it. Needs a hook in every such store, the feature
//! `crash-points`, which the tier `integration` enables for this program alone.

#[cfg(all(feature = "crash-points", not(loom)))]
#[path = "killed/processes.rs"]
mod processes;

#[cfg(all(feature = "crash-points", not(loom)))]
fn main() {
    processes::main();
}

#[cfg(not(all(feature = "crash-points", not(loom))))]
#[expect(clippy::print_stdout, reason = "a test program's report")]
fn main() {
    println!("nothing runs here: cargo test -p agentd-bus --features crash-points --test killed");
}
