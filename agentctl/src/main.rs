//! The entry point; everything is in the library, so that man pages and completions can be made from it.

fn main() -> std::process::ExitCode {
    agentctl::main()
}
