//! The audit chain as people use it: verified in place and as a copy, by whoever may, with what was changed named.

use serde_json::Value;

use crate::harness::{BOB, Daemon, Mode, modes, output, text};

fn verdict(out: &str) -> Value {
    serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[test]
fn a_record_is_verified_in_place_and_as_a_copy() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let (code, _, err) = text(&daemon.run(work.path(), &["true"]));
        assert_eq!(code, 0, "{err}");
        let (code, head, err) = text(&output(&mut daemon.agentctl(["audit", "head"])));
        assert_eq!(code, 0, "{err}");
        let (code, key, err) = text(&output(&mut daemon.agentctl(["audit", "key"])));
        assert_eq!(code, 0, "{err}");
        let (code, _, err) = text(&daemon.run(work.path(), &["true"]));
        assert_eq!(code, 0, "{err}");

        let verify = ["audit", "verify", "--json", "--head", head.trim()];
        let (code, out, err) = text(&output(&mut daemon.agentctl(verify)));
        assert_eq!(code, 0, "{out}{err}");
        let verified = verdict(&out);
        assert_eq!(verified["noted_found"], true, "{out}");
        assert_eq!(verified["key"], key.trim());
        if mode == Mode::Root {
            // The head tells nothing; the record is not for everybody.
            let (code, theirs, _) = text(&output(&mut daemon.agentctl_as(BOB, ["audit", "key"])));
            assert_eq!((code, theirs), (0, key.clone()));
            let mut command = daemon.agentctl_as(BOB, ["audit", "verify"]);
            assert_ne!(text(&output(&mut command)).0, 0);
        }

        // The daemon may be gone, and the record somewhere else.
        let copy = daemon.dir.path().join("copy.db");
        let (code, _, err) = text(&output(daemon.agentctl(["db", "backup"]).arg(&copy)));
        if mode == Mode::User && code != 0 {
            // An ordinary user's copy goes where that user may write.
            assert!(err.contains("copy.db"), "{err}");
            continue;
        }
        assert_eq!(code, 0, "{err}");
        let verify = |head: &str| {
            let mut command = daemon.agentctl(["audit", "verify", "--file"]);
            command
                .arg(&copy)
                .args(["--key", key.trim(), "--head", head]);
            text(&output(&mut command))
        };
        let (code, out, err) = verify(head.trim());
        assert_eq!(code, 0, "{out}{err}");
        let forged = format!("1:{}", "ab".repeat(32));
        let (code, out, _) = verify(&forged);
        assert!(code == 1 && out.contains("noted head"), "{out}");
    }
}
