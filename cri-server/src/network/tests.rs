//! The network at work: a host, its pods and a machine outside, each a network namespace of its own.

mod root {
    use std::{
        fs, io,
        io::{Read as _, Write as _},
        net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
        os::fd::OwnedFd,
        path::PathBuf,
        process::Command,
        sync::atomic::{AtomicU32, Ordering},
        time::{Duration, Instant},
    };

    use tempfile::TempDir;
    use vaina_sys::{mount, netns};

    use super::super::*;
    use crate::error::{Classify as _, Kind};

    const LIMIT: Duration = Duration::from_secs(5);
    /// How long a packet that is dropped is waited for.
    const SHORT: Duration = Duration::from_millis(300);
    const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    /// A host at 192.0.2.1 and a machine outside at 192.0.2.2, which has no route to pods.
    struct World {
        pins: TempDir,
        runtime: tokio::runtime::Runtime,
        pods: AtomicU32,
    }

    impl World {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let world = Self { pins: tempfile::tempdir().unwrap(), runtime, pods: AtomicU32::new(0) };
            for name in ["host", "outside"] {
                netns::create(&world.pin(name)).unwrap();
                world.run(name, "ip link set lo up");
            }
            let outside = world.pin("outside");
            world.run("host", "ip link add up0 type veth peer name up1");
            // By descriptor: the pin is not where `ip` looks for names.
            let file = fs::File::open(&outside).unwrap();
            let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
            world.run("host", &format!("ip link set up1 netns {path} name eth0"));
            world.run("host", "ip address add 192.0.2.1/24 dev up0");
            world.run("host", "ip link set up0 up");
            world.run("outside", "ip address add 192.0.2.2/24 dev eth0");
            world.run("outside", "ip link set eth0 up");
            world.run("host", "ip route add default via 192.0.2.2");
            world
        }

        fn pin(&self, name: &str) -> PathBuf {
            self.pins.path().join("netns").join(name)
        }

        fn fd(&self, name: &str) -> OwnedFd {
            netns::open(&self.pin(name)).unwrap()
        }

        fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
            netns::run_in(self.fd(name), || Ok::<_, io::Error>(work())).unwrap()
        }

        fn run(&self, name: &str, command: &str) -> String {
            let mut words = command.split_whitespace();
            let output = self
                .inside(name, || Command::new(words.next().unwrap()).args(words).output())
                .unwrap_or_else(|error| panic!("{command}: {error}"));
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        }

        fn load(&self, rules: &str) {
            let path = self.pins.path().join("rules");
            fs::write(&path, rules).unwrap();
            self.run("host", &format!("nft -f {}", path.display()));
        }

        fn open_as(&self, bridge: &str, subnet: &str) -> Result<Network, NetworkError> {
            let config = config::Network { bridge: bridge.to_owned(), subnet: subnet.to_owned() };
            self.inside("host", || self.runtime.block_on(Network::open(&config)))
        }

        fn open(&self) -> Network {
            self.open_as("pods0", "10.77.0.0/24").unwrap()
        }

        /// A pod's namespace and what it is to be attached with.
        fn pod(&self, name: &str, ports: &[PortMapping]) -> Attachment {
            netns::create(&self.pin(name)).unwrap();
            let number = self.pods.fetch_add(1, Ordering::Relaxed);
            let last = u8::try_from(number + 2).unwrap();
            Attachment {
                sandbox: SandboxId::new(format!("{last:02x}").repeat(32)),
                netns: self.pin(name),
                address: Ipv4Addr::new(10, 77, 0, last).into(),
                ports: ports.to_vec(),
            }
        }

        fn attach(&self, network: &Network, pod: &Attachment) -> Result<(), NetworkError> {
            self.runtime.block_on(network.attach(pod))
        }

        fn detach(&self, network: &Network, pod: &Attachment) {
            self.runtime.block_on(network.detach(pod)).unwrap();
        }

        /// Names of the host's interfaces but the bridge.
        fn links(&self) -> String {
            let all = self.run("host", "ip -o link show type veth");
            all.lines().filter_map(|line| line.split_whitespace().nth(1)).collect::<Vec<_>>().join("\n")
        }

        fn elements(&self) -> usize {
            let list = self.run("host", "nft list table inet pods0");
            list.matches("comment").count()
        }

        fn tcp(&self, at: &str, port: u16) -> TcpListener {
            self.inside(at, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap()
        }

        fn udp(&self, at: &str, port: u16) -> UdpSocket {
            let socket = self.inside(at, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket
        }

        /// Connects, has the server answer, and tells from where the server saw the client.
        fn call(&self, from: &str, to: impl Into<SocketAddr>, server: &TcpListener) -> io::Result<IpAddr> {
            let to = to.into();
            let mut client = self.inside(from, || TcpStream::connect_timeout(&to, LIMIT))?;
            let (mut accepted, seen) = server.accept()?;
            accepted.write_all(b"pod")?;
            drop(accepted);
            let mut answer = String::new();
            client.read_to_string(&mut answer)?;
            assert_eq!(answer, "pod");
            Ok(seen.ip())
        }

        /// With time for a second try of the kernel's: the first packet over a new link may be lost.
        fn reaches(&self, from: &str, to: impl Into<SocketAddr>) -> bool {
            let to = to.into();
            self.inside(from, || TcpStream::connect_timeout(&to, LIMIT)).is_ok()
        }

        fn is_dropped(&self, from: &str, to: impl Into<SocketAddr>) -> bool {
            let to = to.into();
            self.inside(from, || TcpStream::connect_timeout(&to, SHORT)).is_err()
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let directory = self.pins.path().join("netns");
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let _ = netns::unpin(&entry.path());
            }
            let _ = mount::detach(&directory);
        }
    }

    fn port(host_port: u16, container_port: u16, protocol: Protocol) -> PortMapping {
        PortMapping { host_ip: None, host_port, container_port, protocol }
    }

    fn ip(attachment: &Attachment) -> IpAddr {
        attachment.address
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < LIMIT, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn pods_reach_each_other_the_host_and_the_outside() {
        let world = World::new();
        let network = world.open();
        let (a, b) = (world.pod("a", &[]), world.pod("b", &[]));
        world.attach(&network, &a).unwrap();
        world.attach(&network, &b).unwrap();
        let (in_a, in_b) = (world.tcp("a", 80), world.tcp("b", 80));
        let (on_host, outside) = (world.tcp("host", 90), world.tcp("outside", 90));
        let gateway = Ipv4Addr::new(10, 77, 0, 1);
        assert_eq!(world.call("a", (ip(&b), 80), &in_b).unwrap(), ip(&a));
        assert_eq!(world.call("b", (ip(&a), 80), &in_a).unwrap(), ip(&b));
        assert_eq!(world.call("a", (Ipv4Addr::LOCALHOST, 80), &in_a).unwrap(), Ipv4Addr::LOCALHOST);
        assert_eq!(world.call("host", (ip(&a), 80), &in_a).unwrap(), gateway);
        assert_eq!(world.call("a", (gateway, 90), &on_host).unwrap(), ip(&a));
        assert_eq!(world.call("a", (HOST, 90), &on_host).unwrap(), ip(&a));
        assert_eq!(world.call("a", (OUTSIDE, 90), &outside).unwrap(), HOST, "masqueraded");
        assert!(world.run("a", "ip -o address show dev eth0").contains("10.77.0.2/24"));
        world.detach(&network, &a);
        world.detach(&network, &a);
        assert!(!world.runtime.block_on(network.is_attached(&a.sandbox)));
        eventually("the interface stays", || !world.links().contains(&link::host_interface(&a.sandbox)));
        assert_eq!(world.call("host", (ip(&b), 80), &in_b).unwrap(), gateway, "the other goes on");
    }

    #[test]
    fn host_ports_lead_to_the_pod_from_everywhere() {
        let world = World::new();
        let network = world.open();
        let at = |address: Ipv4Addr, host_port| PortMapping {
            host_ip: Some(address.into()),
            ..port(host_port, 80, Protocol::Tcp)
        };
        let a = world.pod(
            "a",
            &[
                port(8080, 80, Protocol::Tcp),
                port(5353, 53, Protocol::Udp),
                port(8082, 80, Protocol::Sctp),
                at(Ipv4Addr::LOCALHOST, 8081),
                at(Ipv4Addr::UNSPECIFIED, 8083),
            ],
        );
        let b = world.pod("b", &[]);
        world.attach(&network, &a).unwrap();
        world.attach(&network, &b).unwrap();
        assert_eq!(world.elements(), 5);
        let server = world.tcp("a", 80);
        let gateway = Ipv4Addr::new(10, 77, 0, 1);
        for (from, to, seen) in [
            ("host", (Ipv4Addr::LOCALHOST, 8080), gateway),
            ("host", (gateway, 8080), gateway),
            ("host", (HOST, 8080), HOST),
            ("host", (Ipv4Addr::LOCALHOST, 8081), gateway),
            ("host", (Ipv4Addr::LOCALHOST, 8083), gateway),
            ("outside", (HOST, 8080), OUTSIDE),
            ("outside", (HOST, 8083), OUTSIDE),
            ("b", (gateway, 8080), gateway),
            ("b", (HOST, 8080), gateway),
            ("a", (gateway, 8080), gateway),
        ] {
            let found = world.call(from, to, &server).unwrap_or_else(|error| panic!("{from} to {to:?}: {error}"));
            assert_eq!(found, seen, "{from} to {to:?}");
        }
        assert!(world.is_dropped("outside", (HOST, 8081)), "only on localhost");
        // The sysctl that makes localhost work must not open the host's localhost to pods.
        let _private = world.tcp("host", 90);
        world.run("b", "ip address del 127.0.0.1/8 dev lo");
        world.run("b", "ip route replace 127.0.0.1 via 10.77.0.1 dev eth0");
        world.inside("b", || fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1")).unwrap();
        assert!(world.is_dropped("b", (Ipv4Addr::LOCALHOST, 90)), "a pod reaches the host's localhost");

        let server = world.udp("a", 53);
        for (from, to) in [("host", Ipv4Addr::LOCALHOST), ("outside", HOST), ("b", gateway)] {
            let client = world.udp(from, 0);
            client.send_to(b"ping", (to, 5353)).unwrap();
            let mut buffer = [0; 16];
            let (length, seen) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..length], seen).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, SocketAddr::from((to, 5353))), "{from}");
        }

        world.detach(&network, &a);
        assert_eq!(world.elements(), 0);
        assert!(world.is_dropped("outside", (HOST, 8080)));
        world.detach(&network, &b);
        eventually("more than the way out is left", || world.links().lines().count() == 1);
    }

    #[test]
    fn a_udp_flow_from_before_follows_the_port() {
        let world = World::new();
        let network = world.open();
        let client = world.udp("outside", 4000);
        let on_host = world.udp("host", 5353);
        let mut buffer = [0; 16];
        client.send_to(b"host", (HOST, 5353)).unwrap();
        assert_eq!(on_host.recv_from(&mut buffer).unwrap().0, 4);
        let a = world.pod("a", &[port(5353, 53, Protocol::Udp)]);
        world.attach(&network, &a).unwrap();
        let server = world.udp("a", 53);
        client.send_to(b"pod", (HOST, 5353)).unwrap();
        assert_eq!(server.recv_from(&mut buffer).unwrap(), (3, SocketAddr::from((OUTSIDE, 4000))));
        world.detach(&network, &a);
        client.send_to(b"again", (HOST, 5353)).unwrap();
        assert_eq!(on_host.recv_from(&mut buffer).unwrap().0, 5);
    }

    #[test]
    fn a_taken_port_names_who_has_it() {
        let world = World::new();
        let network = world.open();
        let a = world.pod("a", &[port(8080, 80, Protocol::Tcp)]);
        world.attach(&network, &a).unwrap();
        for (name, mapping) in [
            ("b", port(8080, 81, Protocol::Tcp)),
            ("c", PortMapping { host_ip: Some(HOST.into()), ..port(8080, 80, Protocol::Tcp) }),
        ] {
            let other = world.pod(name, &[port(9090, 90, Protocol::Tcp), mapping]);
            let error = world.attach(&network, &other).unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().contains(a.sandbox.as_str()), "{error}");
            assert!(!world.runtime.block_on(network.is_attached(&other.sandbox)));
            world.detach(&network, &other);
        }
        // A restart forgets nothing of it.
        let again = world.open();
        let other = world.pod("d", &[port(8080, 81, Protocol::Tcp)]);
        assert!(
            matches!(world.attach(&again, &other), Err(NetworkError::PortTaken { owner, .. }) if owner == a.sandbox)
        );
        let udp = world.pod("e", &[port(8080, 81, Protocol::Udp)]);
        world.attach(&again, &udp).unwrap();
        let twice = world.pod("f", &[port(1, 2, Protocol::Tcp), port(1, 3, Protocol::Tcp)]);
        assert!(matches!(world.attach(&again, &twice), Err(NetworkError::PortTwice { .. })));
        let server = world.tcp("a", 80);
        world.call("host", (Ipv4Addr::LOCALHOST, 8080), &server).unwrap();
    }

    #[test]
    fn whatever_was_done_when_it_was_killed_is_undone_and_can_be_done_again() {
        let world = World::new();
        let before = world.links();
        let mut pod = world.pod("a", &[port(8080, 80, Protocol::Tcp), port(53, 53, Protocol::Udp)]);
        for steps in 0..=3 {
            netns::create(&pod.netns).unwrap();
            {
                let network = world.open();
                let host = &network.host;
                let name = link::host_interface(&pod.sandbox);
                let bridge = host.find("pods0").unwrap().unwrap().index;
                if steps > 0 {
                    let netns = world.fd("a");
                    host.with_routes(|channel| link::make_pair(channel, &name, bridge, None, netns.as_fd())).unwrap();
                }
                if steps > 1 {
                    netns::run_in(world.fd("a"), || link::configure_pod(pod.address, host.subnet)).unwrap();
                }
                if steps > 2 {
                    host.publish(&elements_of(&pod).unwrap()).unwrap();
                }
            }
            let network = world.open();
            let listed = world.runtime.block_on(network.list()).unwrap();
            assert_eq!(listed.len(), usize::from(steps > 0), "{listed:?}");
            assert_eq!(world.runtime.block_on(network.is_attached(&pod.sandbox)), steps > 0);
            world.attach(&network, &pod).unwrap();
            let listed = world.runtime.block_on(network.list()).unwrap();
            assert_eq!((listed[0].sandbox.as_ref(), listed[0].ports), (Some(&pod.sandbox), 2));
            world.detach(&network, &pod);
            eventually("the interface stays", || world.links() == before);
            assert_eq!(world.elements(), 0);
            assert_eq!(world.runtime.block_on(network.list()).unwrap(), []);
        }
        // Attached again while the old interface goes, the new one stays.
        let network = world.open();
        for _ in 0..5 {
            world.attach(&network, &pod).unwrap();
            world.detach(&network, &pod);
            netns::create(&pod.netns).unwrap();
        }
        world.attach(&network, &pod).unwrap();
        eventually("an old interface stays", || world.links().lines().count() == 2);
        let server = world.tcp("a", 80);
        world.call("host", (Ipv4Addr::LOCALHOST, 8080), &server).unwrap();
        world.detach(&network, &pod);
        // Nothing is left of an attempt that fails, nor of a pod whose namespace went first.
        let network = world.open();
        netns::unpin(&pod.netns).unwrap();
        assert!(world.attach(&network, &pod).is_err());
        drop(server);
        eventually("the interface stays", || world.links() == before);
        netns::create(&pod.netns).unwrap();
        world.attach(&network, &pod).unwrap();
        netns::unpin(&pod.netns).unwrap();
        world.detach(&network, &pod);
        eventually("the interface stays", || world.links() == before);
        assert_eq!(world.elements(), 0);
        pod.address = "fd00::2".parse().unwrap();
        assert!(matches!(world.attach(&network, &pod), Err(NetworkError::Family { .. })));
    }

    #[test]
    fn what_all_pods_share_is_taken_over_restored_or_refused() {
        let world = World::new();
        let network = world.open();
        let a = world.pod("a", &[port(8080, 80, Protocol::Tcp)]);
        world.attach(&network, &a).unwrap();
        let server = world.tcp("a", 80);
        world.run("host", "nft flush ruleset");
        assert!(
            world.runtime.block_on(network.status()).unwrap_err().to_string().contains("nftables table inet pods0")
        );
        let network = world.open();
        world.runtime.block_on(network.status()).unwrap();
        world.runtime.block_on(network.restore(std::slice::from_ref(&a))).unwrap();
        world.call("outside", (HOST, 8080), &server).unwrap();
        // Flushed while the daemon runs, all comes back when another pod publishes.
        world.run("host", "nft flush ruleset");
        let b = world.pod("b", &[port(8081, 80, Protocol::Tcp)]);
        world.attach(&network, &b).unwrap();
        world.call("outside", (HOST, 8080), &server).unwrap();
        world.runtime.block_on(network.restore(std::slice::from_ref(&a))).unwrap();
        assert_eq!(world.elements(), 2);
        let moved = Attachment { address: Ipv4Addr::new(10, 77, 0, 99).into(), ..a.clone() };
        world.runtime.block_on(network.restore(&[moved])).unwrap();
        assert!(world.is_dropped("outside", (HOST, 8080)));
        world.runtime.block_on(network.restore(std::slice::from_ref(&a))).unwrap();

        let other = world.open_as("pods1", "10.78.0.0/24").unwrap();
        world.runtime.block_on(other.status()).unwrap();
        world.call("outside", (HOST, 8080), &server).unwrap();
        world.runtime.block_on(other.close()).unwrap();

        let refused = |bridge: &str, subnet: &str| world.open_as(bridge, subnet).unwrap_err().to_string();
        assert_eq!(
            refused("pods1", "192.0.2.128/25"),
            "network subnet 192.0.2.128/25 overlaps the host's route 192.0.2.0/24 by interface up0; configure another subnet"
        );
        assert!(refused("pods1", "10.77.0.0/16").contains("10.77.0.0/24 by interface pods0"));
        assert!(refused("up0", "10.79.0.0/24").contains("is no bridge"));
        world.run("host", "ip link add br9 type bridge");
        world.run("host", "ip address add 10.99.0.1/24 dev br9");
        assert!(refused("br9", "10.79.0.0/24").contains("has address 10.99.0.1/24"));
        for (bridge, subnet) in
            [("a/b", "10.79.0.0/24"), ("", "10.79.0.0/24"), ("x", "fd00::/64"), ("x", "10.0.0.0/31")]
        {
            let error = world.open_as(bridge, subnet).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        }

        world.run("host", "ip link del pods0");
        assert!(world.runtime.block_on(network.status()).unwrap_err().to_string().contains("bridge pods0 is missing"));
        let c = world.pod("c", &[]);
        world.attach(&network, &c).unwrap();
        world.runtime.block_on(network.status()).unwrap();
        world.runtime.block_on(network.close()).unwrap();
        eventually("interfaces stay", || !world.run("host", "ip -o link").contains("pods0"));
    }

    #[test]
    fn who_drops_the_pods_traffic_is_named() {
        let docker = "
            table ip filter {
                chain DOCKER-USER { }
                chain DOCKER-FORWARD {
                    oifname docker0 ct state related,established counter accept
                    iifname docker0 accept
                }
                chain FORWARD {
                    type filter hook forward priority 0; policy drop;
                    jump DOCKER-USER
                    jump DOCKER-FORWARD
                }
            }";
        let ufw = "
            table ip filter {
                chain ufw-before-forward { ct state related,established accept
                    ip protocol icmp accept; }
                chain FORWARD { type filter hook forward priority 0; policy accept;
                    jump ufw-before-forward
                    ct state new log prefix \"blocked\" drop; }
                chain INPUT { type filter hook input priority 0; policy drop;
                    iifname lo accept
                    ip saddr 192.0.2.0/24 accept; }
            }";
        let firewalld = "
            table inet firewalld {
                chain filter_FORWARD { type filter hook forward priority 10; policy accept;
                    ct state established,related accept
                    ct status dnat accept
                    iifname lo accept
                    reject with icmpx admin-prohibited; }
            }";
        let harmless = "
            table ip filter {
                chain let { iifname pods0 return
                    drop; }
                chain FORWARD { type filter hook forward priority 0; policy drop;
                    iifname pods0 ip saddr 10.77.0.0/24 counter accept
                    oifname pods0 ip daddr 10.77.0.0/16 ip saddr != 10.0.0.9 accept; }
                chain INPUT { type filter hook input priority 0; policy accept;
                    meta l4proto tcp tcp dport 22 drop
                    goto let; }
            }
            table ip nat { chain POSTROUTING { type nat hook postrouting priority 100; policy accept; }
            }";
        let world = World::new();
        let network = world.open();
        let a = world.pod("a", &[port(8080, 80, Protocol::Tcp)]);
        world.attach(&network, &a).unwrap();
        let _server = world.tcp("outside", 90);
        for (rules, expected) in [
            ("table inet x { }", vec![]),
            (
                docker,
                vec![
                    "traffic from pods on pods0 to other networks is dropped: table ip filter chain FORWARD has policy drop and no rule accepts it (Docker's rules); let it pass with `iptables -I DOCKER-USER -i pods0",
                    "traffic from other networks to host ports of pods on pods0 is dropped: table ip filter chain FORWARD has policy drop",
                ],
            ),
            (
                ufw,
                vec![
                    "to other networks is dropped: table ip filter chain FORWARD drops it with the rule of handle ",
                    "to host ports of pods on pods0 is dropped: table ip filter chain FORWARD drops it",
                    "to this host is dropped: table ip filter chain INPUT has policy drop and no rule accepts it (ufw's rules)",
                ],
            ),
            (
                firewalld,
                vec![
                    "to other networks is dropped: table inet firewalld chain filter_FORWARD rejects it with the rule of handle ",
                ],
            ),
        ] {
            world.load(rules);
            let findings = world.runtime.block_on(network.findings(&[a.address])).unwrap();
            assert_eq!(findings.len(), expected.len(), "{rules}: {findings:#?}");
            for (finding, part) in findings.iter().zip(&expected) {
                assert!(finding.contains(part), "{finding}");
            }
            let as_told = if expected.is_empty() {
                world.reaches("a", (OUTSIDE, 90))
            } else {
                world.is_dropped("a", (OUTSIDE, 90))
            };
            assert!(as_told, "{rules}");
            for line in world.run("host", "nft list tables").lines().filter(|line| !line.contains("pods0")) {
                world.run("host", &format!("nft delete {line}"));
            }
        }
        world.load(harmless);
        let findings = world.runtime.block_on(network.findings(&[a.address])).unwrap();
        assert_eq!(findings, [] as [&str; 0]);
        assert!(world.reaches("a", (OUTSIDE, 90)));
    }

    #[test]
    fn many_at_once_and_how_long_they_take() {
        let world = World::new();
        let network = world.open();
        let pods: Vec<_> =
            (0..50).map(|number| world.pod(&format!("p{number}"), &[port(9000 + number, 80, Protocol::Tcp)])).collect();
        let median = |mut times: Vec<Duration>| {
            times.sort();
            times[times.len() / 2]
        };
        let timed = |work: &dyn Fn(&Attachment)| {
            median(
                pods.iter()
                    .map(|pod| {
                        let start = Instant::now();
                        work(pod);
                        start.elapsed()
                    })
                    .collect(),
            )
        };
        let attach = timed(&|pod| world.attach(&network, pod).unwrap());
        let detach = timed(&|pod| world.detach(&network, pod));
        let elements: Vec<_> = pods.iter().map(|pod| elements_of(pod).unwrap()).collect();
        let element = median(
            elements
                .iter()
                .map(|elements| {
                    let start = Instant::now();
                    network.host.publish(elements).unwrap();
                    start.elapsed()
                })
                .collect(),
        );
        println!("p50 of 50: attach {attach:?}, detach {detach:?}, one map element {element:?}");
        let all: Vec<_> = pods.iter().map(|pod| (network.clone(), pod.clone())).collect();
        world.runtime.block_on(async {
            let work: Vec<_> =
                all.into_iter().map(|(network, pod)| tokio::spawn(async move { network.attach(&pod).await })).collect();
            for done in work {
                done.await.unwrap().unwrap();
            }
        });
        assert_eq!(world.runtime.block_on(network.list()).unwrap().len(), 50);
    }
}
