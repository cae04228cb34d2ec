//! Writes agentctl's man pages into a directory: `cargo run -p agentctl --example gen-man -- DIR`.
//!
//! `cargo xtask gen` calls this. One page per verb, from the definition that parses the command line.

fn main() -> std::io::Result<()> {
    let Some(dir) = std::env::args_os().nth(1) else {
        return Err(std::io::Error::other("usage: gen-man DIR"));
    };
    clap_mangen::generate_to(agentctl::cli::command(), dir)
}
