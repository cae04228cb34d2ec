//! What the program sees: files, processes, network, devices, and nothing else.

use std::os::unix::fs::MetadataExt;

use agentd_launch::layers::*;
use agentd_launch::plan::{BUS, GATEWAY, Mode, MountFlags};
use agentd_launch::status::{Status, Step};

use crate::harness::*;

#[test]
fn programs_run_and_report_their_layers() {
    for mode in modes() {
        let ended = shell(mode, "echo out; echo err >&2; exit 3");
        assert_eq!(
            (ended.stdout.as_str(), ended.stderr.as_str()),
            ("out\n", "err\n")
        );
        assert_eq!((ended.code(), ended.init_code), (Some(3), Some(3)));
        assert_eq!(ended.layers & LAYERS_FLOOR, LAYERS_FLOOR);
        assert_eq!(
            ended.layers & (LAYER_LANDLOCK | LAYER_RLIMITS | LAYER_TIME_NS),
            0,
            "reported but not asked for"
        );
    }
}

#[test]
fn ids_host_name_and_environment_are_the_plans() {
    for mode in modes() {
        let ended = shell(mode, "id -u; id -g; id -G; hostname; env | sort; umask");
        let id = inside_id();
        let groups = ended.stdout.lines().nth(2).unwrap();
        assert!(
            groups.split(' ').all(|group| group != "0"),
            "root's group came along: {groups}"
        );
        let expected = format!(
            "{id}\n{id}\n{groups}\nsandbox\nPATH=/usr/local/bin:/usr/bin:/bin\nPWD=/tmp\n0022\n"
        );
        assert_eq!(ended.stdout, expected);
    }
}

#[test]
fn files_outside_the_view_are_absent() {
    for mode in modes() {
        let ended = shell(
            mode,
            "for f in /root /home /etc/shadow /etc/passwd /var /run /sys; do [ -e $f ] && echo $f; done; ls -A /tmp; ls /usr/bin/env",
        );
        assert_eq!(ended.stdout, "/usr/bin/env\n");
    }
}

#[test]
fn the_root_and_the_host_are_read_only_and_tmp_is_not() {
    for mode in modes() {
        let ended = shell(
            mode,
            "touch /x; touch /usr/x; touch /dev/x; touch /tmp/x && ls /tmp",
        );
        assert_eq!(ended.stdout, "x\n");
        assert_eq!(
            ended.stderr.matches("Read-only file system").count(),
            3,
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn tmpfs_limits_bytes_and_inodes() {
    for mode in modes() {
        let mut plan = plan(
            mode,
            &[
                "/bin/sh",
                "-c",
                "head -c 200000 /dev/zero > /small/f; i=0; while : > /small/$i; do i=$((i+1)); [ $i = 99 ] && break; done; echo $i",
            ],
        );
        plan.tmpfs("/small", 65536, 8, 0o755, MountFlags::NONE);
        let ended = run_with(mode, &plan, &[]);
        assert!(
            ended.stderr.contains("No space left on device"),
            "{}",
            ended.stderr
        );
        assert!(
            ended.stdout.trim().parse::<u32>().unwrap_or(0) < 8,
            "{}",
            ended.stdout
        );
    }
}

#[test]
fn files_links_directories_and_masks_are_as_planned() {
    for mode in modes() {
        let script = "cat /etc/motd; readlink /link; stat -c '%a %n' /etc/motd /deep/er/dir; cat /data/secret; ls /data/hidden; cat /data/open; touch /data/secret; ls -A /";
        let mut plan = plan(mode, &["/bin/sh", "-c", script]);
        plan.file("/etc/motd", 0o640, "hello\n")
            .symlink("/link", "/etc/motd")
            .dir("/deep/er/dir", 0o700);
        plan.tmpfs("/data", 65536, 32, 0o755, MountFlags::RDONLY);
        plan.file("/data/secret", 0o644, "key")
            .file("/data/hidden/key", 0o644, "key")
            .file("/data/open", 0o644, "open\n");
        plan.mask("/data/secret", MountFlags::NONE)
            .mask("/data/hidden", MountFlags::NONE);
        plan.mask("/data/absent", MountFlags::OPTIONAL);
        let ended = run_with(mode, &plan, &[]);
        assert!(
            ended
                .stdout
                .starts_with("hello\n/etc/motd\n640 /etc/motd\n700 /deep/er/dir\nopen\n"),
            "{}",
            ended.stdout
        );
        assert!(
            !ended.stdout.contains("key") && !ended.stdout.contains(".masked"),
            "{}",
            ended.stdout
        );
        assert_eq!(
            ended.stderr.matches("Permission denied").count(),
            3,
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_missing_source_fails_the_launch_unless_optional() {
    for mode in modes() {
        let mut plan = plan(mode, &["/bin/true"]);
        plan.bind("/usr/nowhere", "/nowhere", MountFlags::RDONLY);
        let bytes = plan.finish().unwrap();
        let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let Some((Status::Failed(failure), _)) = sandbox.receive() else {
            panic!("the launch should fail")
        };
        let plan = agentd_launch::plan::Plan::parse(&bytes).unwrap();
        assert_eq!(
            (failure.step, failure.errno, failure.shell_code()),
            (Step::Bind, libc::ENOENT, 125)
        );
        assert_eq!(
            failure.describe(&plan),
            "mount the host directory /usr/nowhere: No such file or directory (os error 2)"
        );
        assert_eq!(sandbox.wait(), Some(125));
    }
}

#[test]
fn a_required_layer_that_is_not_active_fails_the_launch() {
    for mode in modes() {
        let mut plan = agentd_launch::plan::PlanBuilder::new(mode);
        plan.ids(inside_id(), inside_id())
            .cwd("/")
            .stdio(agentd_launch::plan::Stdio::Pipes)
            .arg("/x");
        plan.require(LAYER_LANDLOCK | LAYER_TIME_NS);
        let bytes = plan.finish().unwrap();
        let sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let Some((Status::Failed(failure), _)) = sandbox.receive() else {
            panic!("the launch should fail")
        };
        assert_eq!(
            (failure.step, failure.detail),
            (Step::Require, LAYER_LANDLOCK | LAYER_TIME_NS)
        );
    }
}

#[test]
fn a_grant_is_the_callers_directory() {
    for mode in modes() {
        let directory = tempfile::tempdir().unwrap();
        let owner = if is_root() { USER } else { inside_id() };
        std::os::unix::fs::chown(directory.path(), Some(owner), Some(owner)).unwrap();
        std::fs::write(directory.path().join("in"), "from outside").unwrap();
        let grants = [as_broker(Mode::Root, || {
            grant(mode, directory.path(), owner)
        })];
        let mut plan = plan(
            mode,
            &[
                "/bin/sh",
                "-c",
                "cat /work/in; echo made > /work/out; stat -c %u /work/out",
            ],
        );
        plan.grant_mount(0, "/work", MountFlags::NONE);
        let ended = run_with(mode, &plan, &grants);
        assert_eq!(
            ended.stdout,
            format!("from outside{}\n", inside_id()),
            "{}",
            ended.stderr
        );
        let made = std::fs::metadata(directory.path().join("out")).unwrap();
        assert_eq!((made.uid(), made.gid()), (owner, owner));
        assert_eq!(ended.layers & LAYER_IDMAP != 0, mode == Mode::Root);
    }
}

#[test]
fn a_read_only_grant_is_read_only() {
    for mode in modes() {
        let directory = tempfile::tempdir().unwrap();
        let owner = if is_root() { USER } else { inside_id() };
        std::os::unix::fs::chown(directory.path(), Some(owner), Some(owner)).unwrap();
        let grants = [as_broker(Mode::Root, || {
            grant(mode, directory.path(), owner)
        })];
        let mut plan = plan(mode, &["/bin/touch", "/work/x"]);
        plan.grant_mount(0, "/work", MountFlags::RDONLY);
        let ended = run_with(mode, &plan, &grants);
        assert!(
            ended.stderr.contains("Read-only file system"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_link_in_a_grant_leads_nowhere() {
    for mode in modes() {
        let directory = tempfile::tempdir().unwrap();
        let owner = if is_root() { USER } else { inside_id() };
        std::os::unix::fs::chown(directory.path(), Some(owner), Some(owner)).unwrap();
        std::os::unix::fs::symlink("/tmp", directory.path().join("link")).unwrap();
        let grants = [as_broker(Mode::Root, || {
            grant(mode, directory.path(), owner)
        })];
        let mut plan = plan(mode, &["/bin/true"]);
        plan.grant_mount(0, "/work", MountFlags::NONE)
            .file("/work/link/planted", 0o644, "x");
        let bytes = plan.finish().unwrap();
        let sandbox = as_broker(mode, || spawn(mode, &bytes, &grants));
        let Some((Status::Failed(failure), _)) = sandbox.receive() else {
            panic!("the launch should fail")
        };
        assert_eq!((failure.step, failure.errno), (Step::File, libc::ELOOP));
    }
}

#[test]
fn only_its_own_processes_are_visible_and_not_its_init() {
    for mode in modes() {
        let script = "sleep 9 & for p in /proc/[0-9]*; do set -- $@ .; done; echo $#; ls -d /proc/1; cat /proc/1/environ; readlink /proc/1/root; kill -9 1; kill $!; echo alive";
        let ended = shell(mode, script);
        // sh and sleep
        assert_eq!(ended.stdout, "2\nalive\n", "{}", ended.stderr);
        assert_eq!(
            ended.stderr.matches("No such file").count(),
            2,
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn the_init_has_an_empty_environment_and_cannot_be_traced() {
    for mode in modes() {
        let mut sandbox = as_broker(mode, || {
            spawn(mode, &plan(mode, &["/bin/cat"]).finish().unwrap(), &[])
        });
        let (fds, _) = sandbox.ready();
        let proc = format!("/proc/{}", sandbox.pid);
        if is_root() {
            assert_eq!(std::fs::read(format!("{proc}/environ")).unwrap(), b"");
            let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert!(
                    status.contains(&format!("{set}:\t0000000000000000")),
                    "{status}"
                );
            }
        }
        let refused = as_broker(Mode::User, || {
            std::fs::read(format!("{proc}/environ")).unwrap_err()
        });
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
        drop(fds);
        assert_eq!(sandbox.wait(), Some(0));
    }
}

#[test]
fn the_network_is_a_loopback_interface() {
    for mode in modes() {
        let Some(ended) = python(
            mode,
            "import socket,errno
print(socket.if_nameindex())
s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(); c=socket.create_connection(s.getsockname()); print('loopback')
for to in ('192.0.2.1','8.8.8.8'):
    try: socket.create_connection((to,80),2)
    except OSError as e: print(errno.errorcode[e.errno])
try: socket.socket(40, socket.SOCK_STREAM)
except OSError as e: print(errno.errorcode[e.errno])",
        ) else {
            return;
        };
        assert_eq!(
            ended.stdout, "[(1, 'lo')]\nloopback\nENETUNREACH\nENETUNREACH\nEAFNOSUPPORT\n",
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn listeners_are_passed_out_and_accept_from_inside() {
    use std::io::{Read, Write};
    for mode in modes() {
        let script = "import socket
for address in (('127.0.0.1', 8080), '/run/agentd/bus.sock'):
    s=socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX); s.connect(address)
    print(s.recv(9).decode(), flush=True)";
        if !std::path::Path::new("/usr/bin/python3").exists() {
            return skip("python3", "/usr/bin/python3 is not there");
        }
        let mut plan = plan(mode, &["/usr/bin/python3", "-I", "-c", script]);
        plan.tcp_listener(8080, GATEWAY)
            .unix_listener("/run/agentd/bus.sock", BUS, 0o600);
        let bytes = plan.finish().unwrap();
        let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let (mut fds, _) = sandbox.ready();
        assert_eq!(fds.len(), 5);
        let unix = std::os::unix::net::UnixListener::from(fds.pop().unwrap());
        let tcp = std::net::TcpListener::from(fds.pop().unwrap());
        assert_eq!(tcp.local_addr().unwrap().to_string(), "127.0.0.1:8080");
        tcp.set_nonblocking(false).unwrap();
        unix.set_nonblocking(false).unwrap();
        tcp.accept().unwrap().0.write_all(b"gateway").unwrap();
        unix.accept().unwrap().0.write_all(b"bus").unwrap();
        let mut text = String::new();
        std::fs::File::from(fds.remove(1))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "gateway\nbus\n");
        assert_eq!(sandbox.wait(), Some(0));
    }
}

#[test]
fn no_descriptor_but_the_standard_ones_is_open() {
    for mode in modes() {
        let ended = shell(mode, "ls /proc/$$/fd");
        assert_eq!(ended.stdout, "0\n1\n2\n");
    }
}

#[test]
fn proc_is_read_only_and_hides_what_tells_of_the_host() {
    for mode in modes() {
        let script = "for f in kallsyms keys key-users interrupts kcore timer_list kmsg sysrq-trigger locks config.gz partitions; do \
            [ -e /proc/$f ] && cat /proc/$f; done 2> /dev/null; \
            for f in oom_score_adj coredump_filter comm setgroups uid_map timens_offsets; do echo 1 > /proc/self/$f; done; \
            echo 1 > /proc/sys/kernel/shmmax; echo b > /proc/sysrq-trigger; \
            head -1 /proc/meminfo | cut -d: -f1; grep -c ^processor /proc/cpuinfo > /dev/null && echo cpus; ls -A / | grep masked";
        let ended = shell(mode, script);
        assert_eq!(ended.stdout, "MemTotal\ncpus\n", "{}", ended.stderr);
        let refused = ended.stderr.matches("cannot create").count();
        assert_eq!(refused, 8, "{}", ended.stderr);
    }
}

#[test]
fn message_queues_are_the_sandboxs_own() {
    for mode in modes() {
        let mut plan = plan(
            mode,
            &[
                "/bin/sh",
                "-c",
                "touch /dev/mqueue/queue && ls /dev/mqueue; stat -fc %T /dev/mqueue",
            ],
        );
        plan.mqueue("/dev/mqueue");
        let ended = run_with(mode, &plan, &[]);
        assert!(
            ended.stdout.starts_with("queue\n"),
            "{}{}",
            ended.stdout,
            ended.stderr
        );
    }
}
