//! The launcher's promises, each shown from inside a real sandbox: what is allowed works, what is forbidden fails with
//! the errno that the promise names. In both modes, running real programs.

mod harness;

use harness::*;

#[test]
fn smoke() {
    for mode in modes() {
        let ended = shell(
            mode,
            "id -u; hostname; echo err >&2; ls /; cat /proc/self/status | grep -i -E 'cap|NoNew|Secc'; cat /proc/mounts; ls -la /dev /dev/pts; ls /proc; exit 3",
        );
        eprintln!("{mode:?} {ended:#?} {}", ended.stdout);
    }
}
