//! `connect(2)` of an agent whose network is revoked.

use crate::bed::Bed;
use agentd_bpf::Group;
use agentd_bpf::layout::revoked;
use rustix::net::{AddressFamily, Ipv4Addr, SocketAddrV4, SocketType, connect, socket};

/// The errno of a connect to a port of this host where nobody listens; 0 if it succeeded.
pub fn connect_to_nobody() -> i32 {
    let tried = socket(AddressFamily::INET, SocketType::STREAM, None)
        .and_then(|socket| connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)));
    tried.map_or_else(|errno| errno.raw_os_error(), |()| 0)
}

#[test]
fn a_store_revokes_and_another_restores() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let (one, other) = (bed.agent(), bed.agent());
    assert_eq!(one.run(connect_to_nobody), libc::ECONNREFUSED);
    bed.restrict(&one, revoked::NET);
    assert_eq!(one.run(connect_to_nobody), libc::EPERM);
    assert_eq!(
        other.run(connect_to_nobody),
        libc::ECONNREFUSED,
        "its neighbour"
    );
    assert!(bed.counters(&one).denied >= 1);
    assert_eq!(bed.counters(&other).denied, 0);
    bed.restrict(&one, 0);
    assert_eq!(one.run(connect_to_nobody), libc::ECONNREFUSED);
}

#[test]
fn a_cgroup_below_the_agents_is_the_agents() {
    let Some(bed) = Bed::with(Group::Net) else {
        return;
    };
    let mut agent = bed.agent();
    agent.cgroup.push("inner");
    std::fs::create_dir(&agent.cgroup).expect("mkdir");
    assert_eq!(agent.run(connect_to_nobody), libc::ECONNREFUSED);
    bed.restrict(&agent, revoked::NET);
    assert_eq!(agent.run(connect_to_nobody), libc::EPERM);
}

#[test]
fn a_cgroup_that_nobody_knows_is_refused() {
    let Some(mut bed) = Bed::with(Group::Net) else {
        return;
    };
    let stranger = bed.stranger();
    assert_eq!(stranger.run(connect_to_nobody), libc::EPERM);
    assert!(bed.denials().iter().all(|denial| denial.slot == 0));
}
