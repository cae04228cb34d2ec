//! The workloads, by what they are about. To add one: an entry in the file where it belongs.

mod build;
mod files;
mod git;
mod kernel;
mod languages;
mod nested;
mod network;
mod presets;
mod services;
mod terminal;

use super::workload::Workload;

/// All of them, the long ones first, so that none is left alone at the end.
pub fn all() -> impl Iterator<Item = &'static Workload> {
    [
        build::WORKLOADS,
        languages::WORKLOADS,
        services::WORKLOADS,
        git::WORKLOADS,
        network::WORKLOADS,
        nested::WORKLOADS,
        terminal::WORKLOADS,
        kernel::WORKLOADS,
        files::WORKLOADS,
        presets::WORKLOADS,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_name_is_there_once_and_each_entry_has_a_check() {
        let mut names = BTreeSet::new();
        for workload in all() {
            assert!(
                names.insert(workload.name),
                "{} is there twice",
                workload.name
            );
            assert!(!workload.run.trim().is_empty(), "{}", workload.name);
            assert!(!workload.check.trim().is_empty(), "{}", workload.name);
        }
    }

    #[test]
    fn at_least_forty_run_under_coding() {
        assert!(all().filter(|workload| workload.policy == "coding").count() >= 40);
    }
}
