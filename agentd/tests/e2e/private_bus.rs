//! A D-Bus daemon of a test's own, as a user's session bus or in the place of the system's.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

use agentd_testkit::skip;

use crate::harness::{as_user, dir_of, wait_until};

/// Everybody may own names and send there. Ends with this value.
pub struct PrivateBus {
    child: Child,
    pub address: String,
    _dir: tempfile::TempDir,
}

impl PrivateBus {
    /// Run by `uid`. Whoever connects needs an entry in passwd: dbus-daemon asks for their groups.
    pub fn start(uid: u32) -> Option<Self> {
        let program = Path::new("/usr/bin/dbus-daemon");
        if !program.exists() {
            skip(
                "dbus-daemon",
                "there is no /usr/bin/dbus-daemon for a private bus",
            );
            return None;
        }
        let dir = dir_of(uid);
        let address = format!("unix:path={}", dir.path().join("bus").display());
        let config = format!(
            "<busconfig><type>session</type><listen>{address}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/>\
             <allow user=\"*\"/></policy></busconfig>"
        );
        std::fs::write(dir.path().join("bus.conf"), config).expect("write the bus's configuration");
        let mut command = as_user(program.to_owned(), uid);
        command
            .arg("--nofork")
            .arg("--config-file")
            .arg(dir.path().join("bus.conf"));
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .expect("start dbus-daemon");
        let bus = Self {
            child,
            address,
            _dir: dir,
        };
        // The socket's name is there before it takes anyone.
        wait_until("the private bus listens", || {
            UnixStream::connect(bus._dir.path().join("bus")).is_ok()
        });
        Some(bus)
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        // A bus that has died already is as good; waiting reaps it either way.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
