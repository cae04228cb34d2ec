//! `[net] mode = "host"`: what it needs, what it takes away, and what still holds, from inside real sandboxes.

use super::harness::{modes, skip};
use super::workloads::Launch;
use super::{host, inputs, load};
use agentd_kernel::probe::{Feature, Roots, probe_host};
use agentd_launch::layers::LAYER_NET_NS;
use agentd_launch::plan::{Network, Plan};
use agentd_sandbox::{Mode, plan};
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

const POLICY: &str =
    "extends = \"build\"\n[net]\nmode = \"host\"\n[degrade]\nallow = [\"network\"]\n";

#[test]
fn the_hosts_network_is_given_up_by_name_and_only_where_abstract_sockets_stay_out_of_reach() {
    for mode in [Mode::Root, Mode::User] {
        let planned = |text: &str, abi| {
            let policy = load(text).expect("loads");
            plan(&policy, &inputs(mode), &host(abi, &[])).map_err(|e| e.to_string())
        };
        let unnamed = POLICY.replace("\"network\"", "");
        let error = planned(&unnamed, 7).expect_err("not named");
        assert!(
            error.starts_with(
                "property network: network namespace with loopback only: net.mode is host"
            ),
            "{error}"
        );
        let error = planned(POLICY, 5).expect_err("no scopes");
        assert!(
            error.starts_with("property abstract-sockets: ")
                && error.contains("needs Landlock ABI 6"),
            "{error}"
        );
        let gateway = POLICY.replace("extends = \"build\"", "extends = \"coding\"");
        let error = planned(&gateway, 7).expect_err("the gateway is on loopback");
        assert!(
            error.contains("everybody could spend its tokens"),
            "{error}"
        );
        let deep = format!("{POLICY}mechanisms = 2\n");
        let error = planned(&deep, 7).expect_err("one of two is given away");
        assert!(
            error.contains(
                "property abstract-sockets: held by Landlock abstract socket scope alone"
            ),
            "{error}"
        );

        let made = planned(POLICY, 7).expect("a plan");
        let wire = Plan::parse(&made.wire).expect("parses");
        assert_eq!(wire.network(), Network::Host);
        assert_eq!(made.required_layers & LAYER_NET_NS, 0);
        let lost: Vec<&str> = made
            .degradations
            .iter()
            .map(|d| d.property.as_str())
            .collect();
        assert!(lost.contains(&"network"), "{lost:?}");
        let listeners: Vec<&str> = made.listeners.iter().map(|l| l.address.as_str()).collect();
        assert_eq!(listeners, ["/run/agentd/bus.sock"]);
    }
}

#[test]
fn loopback_services_are_reached_and_abstract_sockets_netlink_and_raw_sockets_are_not() {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        return skip("python3", "/usr/bin/python3 is not there");
    }
    if probe_host(&Roots::default()).landlock_abi < 6 {
        return skip(Feature::Landlock.name(), "Landlock scopes need ABI 6");
    }
    for mode in modes() {
        let service = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = service.local_addr().expect("address").port();
        let name = format!("agentd-host-network-{}-{mode:?}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let _hidden = UnixListener::bind_addr(&address).expect("bind");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = service.accept().expect("accept");
            stream.write_all(b"hello").expect("write");
        });
        let script = "import errno, socket, sys\n\
            def tried(make):\n\
            \x20   try: make(); return 'done'\n\
            \x20   except OSError as e: return errno.errorcode[e.errno]\n\
            print(socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(9).decode())\n\
            print(tried(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + sys.argv[2])))\n\
            print(tried(lambda: socket.socket(16, socket.SOCK_RAW, 0)))\n\
            print(tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)))\n\
            print(tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)))\n\
            print(tried(lambda: socket.sethostname('x')))\n";
        let mut launch = Launch::new(mode);
        launch.policy = POLICY.to_owned();
        let port = port.to_string();
        let ended = launch.run(&["/usr/bin/python3", "-I", "-c", script, &port, &name]);
        let said: Vec<&str> = ended.stdout.lines().collect();
        assert_eq!(
            said,
            [
                "hello",
                "EPERM",
                "EAFNOSUPPORT",
                "EPROTONOSUPPORT",
                "EAFNOSUPPORT",
                "EPERM"
            ],
            "{mode:?} {}",
            ended.stderr
        );
        server.join().expect("served");
    }
}
