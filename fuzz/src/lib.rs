//! What is fuzzed: every reader of bytes, files and shared memory that others write, the policy language, and what is made of it.
//!
//! Each target is a function of bytes that panics when a promise is broken; `fuzz_targets/` puts libFuzzer in front of it. The
//! corpus in `corpus/TARGET` and every crash that was ever found in `crashes/TARGET` are replayed by this crate's tests, which
//! need neither libFuzzer nor a sanitizer.

#![forbid(unsafe_code)]

pub mod arena;
pub mod audit;
pub mod broker;
pub mod bytes;
pub mod compact;
pub mod gateway;
pub mod hostile;
pub mod input;
pub mod lane;
pub mod log;
pub mod plan;
pub mod policy;
pub mod protect;
pub mod router;
pub mod segment;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them; the names are those of the programs in `fuzz_targets/`.
pub const TARGETS: &[Target] = &[
    ("arena_reader", arena::reader),
    ("arena_references", arena::references),
    ("audit", audit::records),
    ("broker_protocol", broker::protocol),
    ("compact", compact::assembler),
    ("frames", bytes::frames),
    ("gateway_streams", gateway::streams),
    ("gateway_transports", gateway::transports),
    ("lane_consumer", lane::consumer),
    ("lane_open", lane::open),
    ("lane_producer", lane::producer),
    ("listings", bytes::listings),
    ("log_attach", log::attach),
    ("log_reader", log::reader),
    ("log_writer", log::writer),
    ("messages", bytes::messages),
    ("plan", plan::planned),
    ("policy", policy::parser),
    ("protect_altered", protect::altered),
    ("protect_forged", protect::forged),
    ("router", router::router),
    ("segment", segment::segment),
    ("topics", bytes::topics),
    ("view", lane::view),
    ("wire_plan", plan::wire),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::TARGETS;

    /// Every file below `directory/TARGET`, through its target.
    fn replay(directory: &str) -> usize {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        // Miri takes those that call no foreign code.
        let only = std::env::var("AGENTD_FUZZ_ONLY").unwrap_or_default();
        let only: Vec<&str> = only.split_whitespace().collect();
        let mut count = 0;
        for (name, target) in TARGETS {
            if !only.is_empty() && !only.contains(name) {
                continue;
            }
            let Ok(files) = root.join(name).read_dir() else {
                continue;
            };
            for file in files {
                let path = file.unwrap().path();
                eprintln!("{}", path.display());
                target(&std::fs::read(&path).unwrap());
                count += 1;
            }
        }
        count
    }

    #[test]
    fn the_corpus_breaks_no_promise() {
        let replayed = replay("corpus");
        assert!(
            replayed >= TARGETS.len() || std::env::var_os("AGENTD_FUZZ_ONLY").is_some(),
            "only {replayed} inputs: each target has some"
        );
    }

    #[test]
    fn no_crash_comes_back() {
        replay("crashes");
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (name, _) in TARGETS {
            assert!(
                root.join(format!("fuzz_targets/{name}.rs")).is_file(),
                "{name}"
            );
            assert!(root.join("corpus").join(name).is_dir(), "{name}");
        }
        let programs = root.join("fuzz_targets").read_dir().unwrap().count();
        assert_eq!(programs, TARGETS.len());
    }
}
