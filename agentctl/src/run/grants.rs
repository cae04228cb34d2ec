//! Opening what an agent is to get, as the caller, and making grants of it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use agentd_kernel::grant::{self, Kind, Uses};
use agentd_sandbox::{Access, CallerContext, EffectivePolicy, PolicyRef, WantedGrant};
use rustix::fs::Access as Check;

use crate::failure::Failure;
use crate::resolve::{Context, RunRequest};
use crate::verbs::units::files::config_dir;

/// Opens everything that the policy wants from the caller, and makes a grant of each.
pub fn open_all(
    context: &Context,
    caller: &CallerContext,
    policy: Option<&EffectivePolicy>,
    uses: Uses,
) -> Result<Vec<OwnedFd>, Failure> {
    let wanted = match policy {
        Some(policy) => policy.wanted_grants(caller),
        // Only the daemon knows the policy: it gets the workspace, and decides.
        None => caller
            .workspace
            .iter()
            .map(|dir| workspace_grant(dir))
            .collect(),
    };
    let mut opened = Vec::with_capacity(wanted.len());
    let mut skipped = Vec::new();
    for want in wanted {
        match open(&want, uses) {
            Ok(grant) => opened.push(grant),
            Err(_) if want.optional => skipped.push(want.src.display().to_string()),
            Err(failure) => return Err(failure),
        }
    }
    if !skipped.is_empty() {
        context.tell(&format!("not there, so not granted: {}", skipped.join(" ")));
    }
    Ok(opened)
}

fn workspace_grant(dir: &Path) -> WantedGrant {
    WantedGrant {
        src: dir.to_owned(),
        dst: dir.to_owned(),
        access: Access::ReadWrite,
        kind: Kind::File,
        optional: false,
    }
}

/// What the policy needs to know of the caller.
pub fn caller(context: &Context, request: &RunRequest) -> CallerContext {
    CallerContext {
        home: context.dirs.home.clone(),
        workspace: request.workspace.path().map(Path::to_owned),
        exe: find_program(&request.argv[0]),
        keep: keep(context, &request.policy),
    }
}

/// The policy of this launch, and our own policies, units and settings: an agent whose workspace holds them must not write
/// the rules of the next launch.
fn keep(context: &Context, policy: &PolicyRef) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = config_dir(context).into_iter().collect();
    if let PolicyRef::Text { origin, .. } = policy {
        // Where it really is: the workspace is resolved, too.
        paths.extend(Path::new(origin).canonicalize());
    }
    paths
}

/// The program as our own shell would find it; `None` if there is none that we could execute.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let is_program =
        |path: &PathBuf| rustix::fs::access(path, Check::EXEC_OK).is_ok() && path.is_file();
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(is_program);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(is_program)
}

fn open(want: &WantedGrant, uses: Uses) -> Result<OwnedFd, Failure> {
    let fail = |why: &dyn std::fmt::Display| {
        let access = match want.access {
            Access::ReadOnly => "reading",
            Access::ReadWrite => "reading and writing",
        };
        Failure::local(
            format!("can't grant {} for {access}", want.src.display()),
            why,
        )
    };
    let object = grant::open(&want.src, want.kind, want.access).map_err(|e| fail(&e))?;
    grant::send(object.as_fd(), want.access, &want.dst, uses).map_err(|e| fail(&e))
}

#[cfg(test)]
mod tests {
    use rustix::fs::Mode;

    use super::*;

    #[test]
    fn a_grant_carries_what_was_opened() {
        let dir = tempfile::tempdir().expect("tempdir");
        let grant = open(&workspace_grant(dir.path()), Uses::Once).expect("our own directory");
        let received = agentd_kernel::grant::receive(grant).expect("a whole grant");
        assert_eq!(received.dst, dir.path());
        assert_eq!(received.access, grant::Access::ReadWrite);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let err =
            open(&workspace_grant(Path::new("/no/such/dir")), Uses::Once).expect_err("missing");
        assert!(err.to_string().contains("/no/such/dir"), "{err}");
    }

    #[test]
    fn a_fifo_is_no_grant_and_does_not_block() {
        let dir = tempfile::tempdir().expect("tempdir");
        let fifo = dir.path().join("fifo");
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        );
        made.expect("mkfifo");
        let mut want = workspace_grant(&fifo);
        want.access = Access::ReadOnly;
        assert!(open(&want, Uses::Once).is_err());
    }
}
