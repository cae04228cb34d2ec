//! How deep a cgroup is, as a process learns it that a cgroup namespace hides the root from.

use crate::bed::{Bed, id};
use agentd_bpf_load::{LevelError, level_of};

#[test]
fn a_cgroup_namespace_does_not_hide_how_deep_a_cgroup_is() {
    let Some(bed) = Bed::new() else {
        return;
    };
    let (agent, other) = (bed.agent(), bed.agent());
    let root = id(bed.subtree.parent().expect("the mount"));
    let ids = [root, id(&bed.subtree), agent.id, other.id];
    let code = agent.run(|| {
        // SAFETY: a namespace for this child alone, which has one thread.
        if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } != 0 {
            return 100;
        }
        let levels = ids.map(level_of);
        match levels {
            [Ok(0), Ok(1), Ok(2), Err(LevelError::Elsewhere { .. })] => 0,
            [Err(LevelError::Kernel { source, .. }), ..] => source.raw_os_error().unwrap_or(101),
            _ => 102,
        }
    });
    assert_eq!(
        code, 0,
        "an errno, or 100 and more for the steps of this test"
    );
}
