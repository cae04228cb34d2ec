//! The kernel plane as this daemon has it: which groups of eBPF programs are there, why others are
//! not, and the tables to read.
//!
//! Asked of the broker once, before anybody is served; a successor of the broker goes on with the
//! same tables. Nothing here makes a system call: a table is mapped by the room that reads it.
//! Without a plane everything here is absent, with the broker's reason, and the daemon works as on
//! a host that has none.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agentd_bpf::{Group, Groups, Table};

use crate::agents::broker::{BrokerError, BrokerLink};

#[derive(Debug)]
pub struct KernelPlane {
    groups: Groups,
    tables: Vec<(Table, OwnedFd)>,
    why_not: BTreeMap<Group, String>,
}

impl KernelPlane {
    /// What the broker has. A broker that can't say has none.
    pub async fn ask(broker: &BrokerLink) -> Self {
        match Self::try_ask(broker).await {
            Ok(plane) => plane,
            Err(error) => {
                tracing::warn!("no kernel plane: {error}");
                Self::none(&error.to_string())
            }
        }
    }

    fn none(why: &str) -> Self {
        let reason = |group| (group, why.to_owned());
        Self {
            groups: Groups::NONE,
            tables: Vec::new(),
            why_not: Group::ALL.into_iter().map(reason).collect(),
        }
    }

    async fn try_ask(broker: &BrokerLink) -> Result<Self, BrokerError> {
        let found = broker.plane().await?;
        let groups = if found.plane.layout == agentd_bpf::layout::LAYOUT {
            found.plane.groups
        } else {
            Groups::NONE
        };
        let mut why_not = BTreeMap::new();
        for group in Group::ALL {
            if !groups.has(group) {
                why_not.insert(group, broker.absent(group).await?);
            }
        }
        Ok(Self {
            groups,
            tables: found.tables,
            why_not,
        })
    }

    pub fn has(&self, group: Group) -> bool {
        self.groups.has(group)
    }

    /// Why a group is not there; empty where it is.
    pub fn why_not(&self, group: Group) -> &str {
        self.why_not.get(&group).map_or("", String::as_str)
    }

    /// Every group, with the reason of one that is not there.
    pub fn groups(&self) -> impl Iterator<Item = (Group, &str)> {
        Group::ALL
            .into_iter()
            .map(|group| (group, self.why_not(group)))
    }

    pub fn table(&self, wanted: Table) -> Option<BorrowedFd<'_>> {
        let found = self.tables.iter().find(|(table, _)| *table == wanted);
        found.map(|(_, fd)| fd.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_names_the_groups_as_the_programs_do() {
        assert_eq!(agentd_api::PLANE_GROUPS, Group::ALL.map(Group::name));
    }

    #[test]
    fn a_plane_that_is_not_there_has_the_reason_for_every_group() {
        let none = KernelPlane::none("no cgroup2 here");
        assert_eq!(none.groups().count(), Group::ALL.len());
        assert!(none.groups().all(|(_, why)| why == "no cgroup2 here"));
    }
}
