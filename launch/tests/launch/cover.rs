//! Masks, protections and scratch directories on a granted directory: what holds inside, and that the host's files stay.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use agentd_launch::plan::{Mode, MountFlags, PlanBuilder};
use agentd_launch::status::{Status, Step};

use crate::harness::*;

/// A workspace of the user's: `.git/hooks/pre-commit`, `.git/config`, `.env`, `src/main`, all with their path as content.
pub fn workspace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for path in [".git/hooks/pre-commit", ".git/config", ".env", "src/main"] {
        let file = folder.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, path).unwrap();
    }
    for path in tree(folder.path()).keys() {
        chown(path, Some(inside_id()), Some(inside_id())).unwrap();
    }
    // With `relatime` the first listing since a change is noted, and later ones are not.
    tree(folder.path());
    folder
}

/// Everything at and below a path that any change would show in.
fn tree(path: &Path) -> BTreeMap<std::path::PathBuf, [i64; 8]> {
    let mut out = BTreeMap::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let marks = [
            meta.mode().into(),
            meta.ino().cast_signed(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
            meta.atime(),
            meta.atime_nsec(),
        ];
        out.insert(path.clone(), marks);
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        }
    }
    out
}

fn run(mode: Mode, script: &str, folder: &Path, add: impl FnOnce(&mut PlanBuilder)) -> Ended {
    let mut plan = plan(mode, &["/bin/sh", "-c", script]);
    add(&mut plan);
    let grant = as_broker(Mode::Root, || grant(mode, folder, inside_id()));
    run_with(mode, &plan, &[grant])
}

#[test]
fn what_is_protected_can_be_read_and_nothing_else() {
    for mode in modes() {
        let folder = workspace();
        let script = "cd /work; cat .git/config; echo x > .git/config; rm .git/config; mv .git/config .git/c; \
            mv src/main .git/config; ln .git/config copy; chmod 600 .git/config; touch -d @0 .git/config; mv .git .g; \
            echo x > .git/hooks/new; mv .git/hooks .git/h; rm -r .git/hooks; echo y > .git/index && cat .git/index";
        let ended = run(mode, script, folder.path(), |plan| {
            plan.grant_mount(0, "/work", MountFlags::NONE)
                .protect("/work/.git/config", MountFlags::OPTIONAL)
                .protect("/work/.git/hooks", MountFlags::OPTIONAL)
                .protect("/work/absent", MountFlags::OPTIONAL);
        });
        assert_eq!(ended.stdout, ".git/configy\n", "{}", ended.stderr);
        let read = |path| std::fs::read_to_string(folder.path().join(path)).unwrap();
        assert_eq!(read(".git/config"), ".git/config");
        assert_eq!(read(".git/hooks/pre-commit"), ".git/hooks/pre-commit");
        assert_eq!(read(".git/index"), "y\n");
        assert_eq!(
            std::fs::read_dir(folder.path().join(".git"))
                .unwrap()
                .count(),
            3
        );
        assert!(!folder.path().join("copy").exists() && !folder.path().join("absent").exists());
    }
}

#[test]
fn a_copy_takes_the_changes_and_the_file_stays() {
    for mode in modes() {
        let folder = workspace();
        // As git writes its configuration: a new file beside the one that the link leads to, renamed over it.
        let script = "cd /work; cat .git/config; to=$(readlink .git/config); echo; echo x >> .git/config; cat .git/config; \
            echo new > $to.lock; mv $to.lock $to; cat .git/config; rm .git/config; mv .git/config .git/c; mv .git .g; \
            mv src/main .git/config; ln -sf /etc/passwd .git/config; chmod 600 .git/config; cat .git/config";
        let ended = run(mode, script, folder.path(), |plan| {
            plan.grant_mount(0, "/work", MountFlags::NONE)
                .tmpfs("/tmp", 1 << 20, 100, 0o1777, MountFlags::NONE)
                .copy("/work/.git/config", "/tmp/a/config", MountFlags::OPTIONAL)
                .copy("/work/absent", "/tmp/b/absent", MountFlags::OPTIONAL);
        });
        let expected = ".git/config\n.git/configx\nnew\nnew\n";
        assert_eq!(ended.stdout, expected, "{}", ended.stderr);
        let read = |path| std::fs::read_to_string(folder.path().join(path)).unwrap();
        assert_eq!(read(".git/config"), ".git/config");
        assert_eq!(read("src/main"), "src/main");
        assert!(!folder.path().join("absent").exists());
        assert_eq!(
            std::fs::read_dir(folder.path().join(".git"))
                .unwrap()
                .count(),
            2
        );
    }
}

#[test]
fn what_was_granted_is_mounted_whatever_stands_at_its_path_by_now() {
    for mode in modes() {
        let place = tempfile::tempdir().unwrap();
        std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let (work, secret) = (place.path().join("work"), place.path().join("secret"));
        for (folder, content) in [(&work, "mine"), (&secret, "secret")] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("file"), content).unwrap();
        }
        let mut plan = plan(mode, &["/bin/sh", "-c", "cat /work/file"]);
        plan.grant_mount(0, "/work", MountFlags::NONE);
        let grant = as_broker(Mode::Root, || grant(mode, &work, inside_id()));
        // Between the grant and the mount.
        std::fs::rename(&work, place.path().join("away")).unwrap();
        std::os::unix::fs::symlink(&secret, &work).unwrap();
        let ended = run_with(mode, &plan, &[grant]);
        assert_eq!(ended.stdout, "mine", "{mode:?}: {}", ended.stderr);
    }
}

#[test]
fn a_mask_pins_the_directories_above_it() {
    for mode in modes() {
        let folder = workspace();
        let script =
            "cd /work; cat .git/config; mv .git .g; mv .git/config .git/c; cat .g/config .git/c";
        let ended = run(mode, script, folder.path(), |plan| {
            plan.grant_mount(0, "/work", MountFlags::NONE)
                .mask("/work/.git/config", MountFlags::OPTIONAL);
        });
        assert_eq!(ended.stdout, "");
        assert_eq!(ended.stderr.matches("busy").count(), 2, "{}", ended.stderr);
    }
}

#[test]
fn what_has_two_names_or_is_a_link_cant_be_covered() {
    for mode in modes() {
        let folder = workspace();
        std::fs::hard_link(folder.path().join(".env"), folder.path().join("other")).unwrap();
        std::os::unix::fs::symlink("src", folder.path().join("link")).unwrap();
        for (path, errno) in [("/work/.env", libc::EMLINK), ("/work/link", libc::ELOOP)] {
            for step in [Step::Mask, Step::Protect] {
                let mut plan = plan(mode, &["/bin/true"]);
                plan.grant_mount(0, "/work", MountFlags::NONE);
                match step {
                    Step::Mask => plan.mask(path, MountFlags::OPTIONAL),
                    _ => plan.protect(path, MountFlags::OPTIONAL),
                };
                let bytes = plan.finish().unwrap();
                let grant = as_broker(Mode::Root, || grant(mode, folder.path(), inside_id()));
                let sandbox = as_broker(mode, || spawn(mode, &bytes, &[grant]));
                let Some((Status::Failed(failure), _)) = sandbox.receive() else {
                    panic!("{path} was covered");
                };
                assert_eq!((failure.step, failure.errno), (step, errno));
            }
        }
        let ended = run(mode, "cat /work/.env /work/other", folder.path(), |plan| {
            plan.grant_mount(0, "/work", MountFlags::NONE)
                .mask("/work/.env", MountFlags::LINKED)
                .mask("/work/other", MountFlags::LINKED);
        });
        assert_eq!(ended.stdout, "");
        assert_eq!(
            ended.stderr.matches("denied").count(),
            2,
            "{}",
            ended.stderr
        );
    }
}

/// Whether an overlay can note on its upper layer that it hides a directory of the lower one; said as a skip where not.
fn tmpfs_has_user_attributes() -> bool {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    let value = [1u8];
    // SAFETY: the name ends in NUL, and the value is one byte of live memory.
    let set = unsafe {
        let value = value.as_ptr().cast();
        libc::fsetxattr(file.as_raw_fd(), c"user.agentd".as_ptr(), value, 1, 0)
    };
    if set != 0 {
        skip(
            "tmpfs-user-xattr",
            "directories can't be removed from a scratch directory",
        );
    }
    set == 0
}

#[test]
fn nothing_done_in_a_scratch_directory_reaches_the_host() {
    for mode in modes() {
        let folder = workspace();
        let before = tree(folder.path());
        // Linux before 6.6 can't remove a directory of the lower layer.
        let removal = match tmpfs_has_user_attributes() {
            true => "rm -r .git; mkdir .git",
            false => "rm .git/config",
        };
        let script = format!(
            "cd /work; cat src/main .env; ls -lR > /dev/null; echo changed > src/main; chmod 700 src; touch -d @0 .env; \
            {removal}; echo new > .git/config; ln src/main hard; mkfifo pipe; mv src/main src/moved; \
            cat src/moved .git/config; ls -A . src; ls .git/hooks; cp /bin/true true; ./true && echo ran; ls -A / | grep layers"
        );
        let ended = run(mode, &script, folder.path(), |plan| {
            plan.overlay(0, "/work", 1 << 20, 64, MountFlags::NOEXEC);
        });
        let hooks = match tmpfs_has_user_attributes() {
            true => "",
            false => "pre-commit\n",
        };
        assert_eq!(
            ended.stdout,
            format!(
                "src/main.envchanged\nnew\n.:\n.env\n.git\nhard\npipe\nsrc\n\nsrc:\nmoved\n{hooks}"
            ),
            "{}",
            ended.stderr
        );
        assert!(
            ended.stderr.contains("./true: Permission denied"),
            "{}",
            ended.stderr
        );
        assert_eq!(tree(folder.path()), before);
    }
}

#[test]
fn changes_in_a_scratch_directory_are_limited() {
    for mode in modes() {
        let folder = workspace();
        let script = "cd /work; head -c 300000 /dev/zero > big; stat -c %s big; rm big; \
            i=0; while touch f$i; do i=$((i+1)); [ $i = 99 ] && break; done; echo $i";
        let ended = run(mode, script, folder.path(), |plan| {
            plan.overlay(0, "/work", 128 << 10, 16, MountFlags::NONE);
        });
        assert!(!ended.stdout.is_empty(), "{}", ended.stderr);
        let mut numbers = ended
            .stdout
            .lines()
            .map(|line| line.parse::<u32>().unwrap());
        assert!(numbers.next().unwrap() <= 128 << 10);
        assert!(numbers.next().unwrap() <= 16);
        assert_eq!(
            ended.stderr.matches("No space left").count(),
            2,
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn names_in_a_scratch_directory_can_be_protected_and_denied_before_they_exist() {
    for mode in modes() {
        let folder = workspace();
        let before = tree(folder.path());
        let script = "cd /work; cat .env; cat .git/config; echo x > .git/config; echo x > .envrc; rm .envrc; mkdir .vscode; \
            echo x > .vscode/tasks; echo x > secret; mv src s; mkdir deep && echo fine > deep/name && cat deep/name";
        let placed = MountFlags::OPTIONAL | MountFlags::PLACEHOLDER;
        let ended = run(mode, script, folder.path(), |plan| {
            plan.overlay(0, "/work", 1 << 20, 64, MountFlags::NONE)
                .protect("/work/.git/config", placed)
                .protect("/work/.envrc", placed)
                .protect("/work/.vscode", placed | MountFlags::FOLDER)
                .protect("/work/src/new", placed)
                .protect("/work/deep/name", placed)
                .mask("/work/.env", placed)
                .mask("/work/secret", placed);
        });
        assert_eq!(ended.stdout, ".git/configfine\n", "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 8, "{}", ended.stderr);
        assert_eq!(tree(folder.path()), before);
    }
}
