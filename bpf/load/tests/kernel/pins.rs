//! Pins: found again, replaced without a gap, removed without a rest.

use crate::bed::{Bed, id, object};
use crate::connect::connect_to_nobody;
use crate::elf::spoil;
use agentd_bpf::layout::{LAYOUT, revoked};
use agentd_bpf::{Group, Table};
use agentd_bpf_load::LoadError;
use agentd_bpf_load::pins::Pins;
use aya::programs::links::PinnedLink;
use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the only version that is pinned.
fn version(bed: &Bed) -> PathBuf {
    let entries = fs::read_dir(bed.pins.path()).expect("the instance");
    let all: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    let [one] = <[PathBuf; 1]>::try_from(all).expect("one version");
    one
}

/// Ids of the link and of the program in it.
fn link(bed: &Bed, name: &str) -> (u32, u32) {
    let link = PinnedLink::from_pin(version(bed).join("links").join(name)).expect("the link");
    let link: aya::programs::links::FdLink = link.into();
    let info = link.info().expect("info");
    (info.id(), info.program_id())
}

#[test]
fn nothing_is_left_at_the_end() {
    let Some(bed) = Bed::new() else { return };
    let instance = bed.pins.path().to_owned();
    let name = version(&bed);
    let name = name
        .file_name()
        .and_then(|name| name.to_str())
        .expect("name");
    assert!(name.starts_with(&format!("{LAYOUT}-")), "{name}");
    for table in Table::ALL {
        assert!(
            version(&bed).join("maps").join(table.name()).exists(),
            "{table:?}"
        );
    }
    drop(bed);
    assert!(!instance.exists());
}

#[test]
fn a_load_after_a_restart_takes_over_tables_and_links() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let (kept, gone) = (bed.agent(), bed.agent());
    bed.restrict(&kept, revoked::NET);
    let before = link(&bed, "connect4");
    let again = bed.load_again(&object(), &[&kept]).expect("load");
    assert_eq!(again.groups, bed.loaded.groups);
    let after = link(&bed, "connect4");
    assert_eq!(after.0, before.0, "the same link");
    assert_ne!(after.1, before.1, "another program in it");
    assert_eq!(kept.run(connect_to_nobody), libc::EPERM, "still revoked");
    bed.restrict(&kept, 0);
    assert_eq!(
        kept.run(connect_to_nobody),
        libc::ECONNREFUSED,
        "the same tables"
    );
    assert_eq!(
        bed.directory.slot(gone.id),
        None,
        "an agent that is no more has no place"
    );
}

#[test]
fn another_build_takes_over_without_a_gap() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    bed.restrict(&agent, revoked::NET);
    let (end, until) = rustix::pipe::pipe().expect("pipe");
    rustix::io::ioctl_fionbio(&end, true).expect("FIONBIO");
    // Connects until it is told to stop; 1 if any was let through.
    let child = agent.start(move || {
        loop {
            if connect_to_nobody() != libc::EPERM {
                return 1;
            }
            if rustix::io::read(&end, &mut [0u8; 1]) == Ok(1) {
                return 0;
            }
        }
    });
    // Any trailing byte makes another hash of the same programs.
    let other = [object(), vec![0]].concat();
    let first = version(&bed);
    for object in [&other, &object()] {
        bed.load_again(object, &[&agent]).expect("load");
    }
    bed.load_again(&other, &[&agent]).expect("load");
    assert_ne!(version(&bed), first);
    rustix::io::write(&until, b"x").expect("write");
    assert_eq!(child.code(), 0, "no connect was let through");
}

#[test]
fn a_program_that_does_not_verify_leaves_its_group_out_and_says_why() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let agent = bed.agent();
    bed.restrict(&agent, revoked::NET);
    let spoilt = spoil(&object(), "cgroup/connect4");
    let loaded = bed
        .load_again(&spoilt, &[&agent])
        .expect("the tables are there");
    let absent = loaded
        .absent
        .iter()
        .find(|absent| absent.group == Group::Net);
    let absent = absent.expect("said");
    assert!(absent.why.starts_with("connect4: "), "{}", absent.why);
    assert!(
        absent.log.contains("ff"),
        "the verifier's own words: {}",
        absent.log
    );
    assert!(loaded.groups.has(Group::Net), "the programs before go on");
    assert_eq!(agent.run(connect_to_nobody), libc::EPERM);

    bed.pins.remove().expect("remove");
    bed.pins.make(|| None).expect("make");
    let loaded = bed.load_again(&spoilt, &[]).expect("the tables are there");
    assert!(!loaded.groups.has(Group::Net), "nothing went before");
}

#[test]
fn bytes_that_are_no_object_are_an_error_and_change_nothing() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let before = link(&bed, "connect4");
    let error = bed.load_again(b"no object", &[]).expect_err("refused");
    assert!(matches!(error, LoadError::Object(_)), "{error}");
    assert_eq!(link(&bed, "connect4"), before);
}

#[test]
fn an_instance_whose_subtree_is_no_more_is_swept() {
    let Some(bed) = Bed::new() else { return };
    let stale = Pins::of(u64::MAX - 1);
    stale.make(|| None).expect("make");
    fs::create_dir(stale.path().join("1-0")).expect("mkdir");
    let directory = bed.pins.path().parent().expect("agentd's");
    // Asked under the lock, so that no bed beside this one is missed.
    let living = || {
        let all = fs::read_dir(directory).expect("agentd's").flatten();
        let ids = all.filter_map(|entry| u64::from_str_radix(entry.file_name().to_str()?, 16).ok());
        Some(ids.filter(|id| *id != u64::MAX - 1).collect())
    };
    bed.pins.make(living).expect("make");
    assert!(!stale.path().exists());
    assert!(bed.pins.path().exists());
}

#[test]
fn a_subtree_has_the_instance_of_its_id() {
    let Some(bed) = Bed::new() else { return };
    let name = format!("/sys/fs/bpf/agentd/{:x}", id(&bed.subtree));
    assert_eq!(bed.pins.path(), Path::new(&name));
}
