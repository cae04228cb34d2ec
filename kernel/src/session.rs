//! Starting a program that outlives the terminal it was started from.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes `command` start as the leader of a new session: no controlling terminal, so neither Ctrl-C nor the terminal's
/// end reaches it. Runs in the child between fork and exec, with the caller's rights.
pub fn new_session(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs in the forked child and makes one async-signal-safe system call; it touches no memory
    // of the parent and no lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_leads_its_own_session() {
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "read -r _ _ _ _ _ session _ < /proc/self/stat; echo $$ $session",
        ]);
        let output = new_session(&mut command).output().expect("sh runs");
        let text = String::from_utf8(output.stdout).expect("numbers");
        let (pid, session) = text.trim().split_once(' ').expect("two numbers");
        assert_eq!(pid, session);
    }
}
