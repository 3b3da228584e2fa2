//! The built-in network: addresses, host ports, masquerade, and what is left when somebody else changes the rules.

use std::{
    fs,
    io::{self, Read as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use vaina_proto::cri::{self, ListPodSandboxRequest, PodSandboxState, PortMapping, Protocol};
use vaina_sys::netns;
use vaina_tests::{
    build::{Container, Pod},
    disturb::Disturbance,
    node::{IMAGE, Node, Options, e2e, e2e_cri, e2e_with, run},
    wait,
};

use crate::{assert_failed, failed};

/// An address of the node that is not a pod's, and that of the host next to it.
const NODE: &str = "192.0.2.1";
const OUTSIDE: &str = "192.0.2.2";

/// How long an answer may take, where one may not come at all.
const PATIENCE: Duration = Duration::from_millis(700);

/// Another host, on a wire to the node: the node's way to everywhere.
struct Outside {
    holder: Child,
    netns: OwnedFd,
}

impl Outside {
    fn new(node: &Node) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]).stdin(Stdio::null());
        let holder = command.spawn().context("start a process in a network namespace of its own")?;
        let own = fs::read_link("/proc/thread-self/ns/net")?;
        let path = format!("/proc/{}/ns/net", holder.id());
        wait::blocking("the outside is a namespace of its own", wait::LIMIT, || {
            fs::read_link(&path).is_ok_and(|other| other != own).then_some(())
        })?;
        let netns: OwnedFd = fs::File::open(&path)?.into();
        let pid = holder.id().to_string();
        let outside = Self { holder, netns };
        let ip = |line: &str| run(Command::new("ip").args(line.split(' '))).map(drop);
        ip(&format!("link add outside type veth peer name wire netns {pid}"))?;
        ip(&format!("addr add {NODE}/24 dev outside"))?;
        ip("link set outside up")?;
        ip(&format!("route add default via {OUTSIDE} dev outside"))?;
        outside.inside(|| {
            let ip = |line: &str| run(Command::new("ip").args(line.split(' '))).map(drop);
            ip(&format!("addr add {OUTSIDE}/24 dev wire"))?;
            ip("link set wire up")
        })?;
        ensure!(node.daemon_pid() > 0, "the node has a daemon");
        Ok(outside)
    }

    /// Runs something there.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::run_in(&self.netns, work)
    }

    /// Takes the wire away again, before the node looks for what is left.
    fn remove(mut self) -> Result<()> {
        run(Command::new("ip").args(["link", "del", "outside"]))?;
        self.holder.kill()?;
        self.holder.wait()?;
        Ok(())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Whom a server of the probe takes us for, over TCP.
fn ask(address: &str, port: u16) -> io::Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&format!("{address}:{port}").parse().map_err(io::Error::other)?, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Whom a server of the probe takes us for, over UDP.
fn ask_udp(address: &str, port: u16) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((address, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut buffer = [0; 100];
    let count = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

fn mapping(protocol: Protocol, host: i32, container: i32, host_ip: &str) -> PortMapping {
    PortMapping { protocol: protocol.into(), host_port: host, container_port: container, host_ip: host_ip.to_owned() }
}

/// Runs a pod with a server on port 7000.
async fn serve(node: &mut Node, pod: &Pod) -> Result<(String, String)> {
    let sandbox = node.run_pod(pod).await?;
    let id =
        node.start(&sandbox, pod, &Container::new("server", IMAGE).command(&["/bin/probe", "serve", "7000"])).await?;
    node.wait_log(&id, "serving").await?;
    Ok((sandbox, id))
}

async fn sandboxes(node: &Node) -> Result<usize> {
    Ok(node.cri().list_pod_sandbox(ListPodSandboxRequest::default()).await?.items.len())
}

/// What verbose Status says about firewalls.
async fn firewall(node: &Node) -> Result<Vec<String>> {
    let info = node.cri().status(cri::StatusRequest { verbose: true }).await?.info;
    Ok(serde_json::from_str(info.get("firewall").context("Status says something about firewalls")?)?)
}

#[test]
fn a_pod_has_an_address_a_route_and_a_loopback_of_its_own() {
    e2e_cri(async |node| {
        let (one, two) = (node.pod("one"), node.pod("two"));
        // The same port in both: it is each pod's own.
        let (first, server) = serve(node, &one).await?;
        let (second, other) = serve(node, &two).await?;
        let (a, b) = (node.address(&first).await?, node.address(&second).await?);
        assert_ne!(a, b);
        for (id, address, peer) in [(&server, &a, &b), (&other, &b, &a)] {
            let addresses = node.sh(id, "ip -4 addr show dev eth0").await?;
            assert!(addresses.contains(&format!("inet {address}/16")), "{addresses}");
            let routes = node.sh(id, "ip route").await?;
            assert!(routes.contains("default via 10.88.0.1 dev eth0"), "{routes}");
            // Neither is translated on the way from pod to pod.
            assert_eq!(node.sh(id, &format!("nc {peer} 7000 </dev/null")).await?, *address);
            assert_eq!(node.sh(id, "nc 127.0.0.1 7000 </dev/null").await?, "127.0.0.1");
            assert!(node.sh(id, "ip link show dev lo").await?.contains("LOOPBACK,UP"));
            // And between the pod and its node.
            assert_eq!(ask(address, 7000)?, "10.88.0.1");
        }
        let listener = TcpListener::bind("10.88.0.1:7001")?;
        let asked = tokio::task::spawn_blocking(move || listener.accept().map(|(_, from)| from.ip().to_string()));
        node.sh(&server, "nc 10.88.0.1 7001 </dev/null").await?;
        assert_eq!(asked.await??, a);
        node.remove_pod(&first).await?;
        node.remove_pod(&second).await?;
        Ok(())
    });
}

// proves: PodSandboxConfig.port_mappings, PortMapping.{protocol, container_port, host_port}, Protocol.{TCP, UDP}
#[test]
fn a_host_port_leads_to_the_pod_from_everywhere() {
    e2e_cri(async |node| {
        let outside = Outside::new(node)?;
        let mut pod = node.pod("published").port(8080, 7000).port(0, 9).port(-1, 9);
        pod.config.port_mappings.push(mapping(Protocol::Udp, 8053, 7000, ""));
        let (sandbox, server) = serve(node, &pod).await?;
        let client_pod = node.pod("client");
        let client = node.run_pod(&client_pod).await?;
        let id = node.start(&client, &client_pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;

        // From the node, by each address that it has.
        for from in ["127.0.0.1", "127.1.2.3", NODE, "10.88.0.1"] {
            // A pod can't answer to the node's loopback, so it sees the bridge's address instead.
            let expected = if from == NODE { NODE } else { "10.88.0.1" };
            assert_eq!(ask(from, 8080).context(from)?, expected, "{from}");
            assert_eq!(ask_udp(from, 8053).context(from)?, expected, "{from}");
        }
        // From another host, whose address the pod sees.
        assert_eq!(outside.inside(|| Ok(ask(NODE, 8080)?))?, OUTSIDE);
        assert_eq!(outside.inside(|| Ok(ask_udp(NODE, 8053)?))?, OUTSIDE);
        // From another pod and from itself, whose answers must come back over the bridge's address.
        for id in [&id, &server] {
            assert_eq!(node.sh(id, &format!("nc {NODE} 8080 </dev/null")).await?, "10.88.0.1");
        }
        // The protocols are apart, and so are the pod's own ports.
        assert!(ask_udp(NODE, 8080).is_err());
        assert!(ask(NODE, 8053).is_err());
        assert!(ask("127.0.0.1", 7000).is_err());

        node.cri().stop_pod_sandbox(&sandbox).await?;
        for from in ["127.0.0.1", NODE] {
            assert!(ask(from, 8080).is_err(), "{from}: the port of a stopped pod");
            assert!(ask_udp(from, 8053).is_err(), "{from}: the port of a stopped pod");
        }
        node.cri().remove_pod_sandbox(&sandbox).await?;
        node.remove_pod(&client).await?;
        outside.remove()?;
        Ok(())
    });
}

// proves: PortMapping.host_ip
#[test]
fn a_host_port_may_be_at_one_address_only() {
    e2e_cri(async |node| {
        let outside = Outside::new(node)?;
        let mut pod = node.pod("one-address");
        pod.config.port_mappings = vec![
            mapping(Protocol::Tcp, 8080, 7000, NODE),
            mapping(Protocol::Udp, 8080, 7000, NODE),
            mapping(Protocol::Tcp, 8081, 7000, "127.0.0.1"),
        ];
        let (sandbox, _) = serve(node, &pod).await?;
        ask(NODE, 8080)?;
        ask_udp(NODE, 8080)?;
        assert_eq!(outside.inside(|| Ok(ask(NODE, 8080)?))?, OUTSIDE);
        assert!(ask("127.0.0.1", 8080).is_err());
        assert!(ask("10.88.0.1", 8080).is_err());
        ask("127.0.0.1", 8081)?;
        assert!(ask(NODE, 8081).is_err());
        assert!(outside.inside(|| Ok(ask(NODE, 8081)?)).is_err());
        // Another pod has the same port elsewhere.
        let mut other = node.pod("other-address");
        other.config.port_mappings = vec![mapping(Protocol::Tcp, 8080, 7000, "127.0.0.1")];
        let (second, _) = serve(node, &other).await?;
        ask("127.0.0.1", 8080)?;
        node.remove_pod(&sandbox).await?;
        node.remove_pod(&second).await?;

        let mut pod = node.pod("six");
        pod.config.port_mappings = vec![mapping(Protocol::Tcp, 8080, 7000, "2001:db8::1")];
        assert_failed(node.run_pod(&pod).await, Code::Unimplemented, &["IPv6", "2001:db8::1"]);
        pod.config.port_mappings = vec![mapping(Protocol::Tcp, 8080, 7000, "nonsense")];
        assert_failed(node.run_pod(&pod).await, Code::InvalidArgument, &["port_mappings", "host_ip"]);
        assert_eq!(sandboxes(node).await?, 0);
        outside.remove()?;
        Ok(())
    });
}

#[test]
fn a_host_port_that_is_taken_is_named_with_who_has_it() {
    e2e_cri(async |node| {
        let (first, _) = serve(node, &node.pod("first").port(8080, 7000)).await?;
        // One of its ports is free, and stays so.
        let pod = node.pod("second").port(8081, 7000).port(8080, 7000);
        assert_failed(node.run_pod(&pod).await, Code::FailedPrecondition, &["8080/tcp", &first]);
        assert_eq!(sandboxes(node).await?, 1);
        let (third, _) = serve(node, &node.pod("third").port(8081, 7000)).await?;
        assert_ne!(ask("127.0.0.1", 8080)?, "");
        assert_ne!(ask("127.0.0.1", 8081)?, "");
        let mut at_one = node.pod("at-one");
        at_one.config.port_mappings = vec![mapping(Protocol::Tcp, 8080, 7000, "127.0.0.1")];
        assert_failed(node.run_pod(&at_one).await, Code::FailedPrecondition, &["8080/tcp", &first]);
        let twice = node.pod("twice").port(8082, 7000).port(8082, 7001);
        assert_failed(node.run_pod(&twice).await, Code::InvalidArgument, &["8082/tcp"]);
        // A stopped pod has no ports, though it is still there.
        node.cri().stop_pod_sandbox(&first).await?;
        node.remove_pod(&third).await?;
        let (second, _) = serve(node, &pod).await?;
        assert_ne!(ask("127.0.0.1", 8080)?, "");
        node.remove_pod(&second).await?;
        node.remove_pod(&first).await?;
        Ok(())
    });
}

#[test]
fn what_pods_send_to_other_hosts_comes_from_the_node() {
    e2e_cri(async |node| {
        let outside = Outside::new(node)?;
        let pod = node.pod("out");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let listener = outside.inside(|| Ok(TcpListener::bind(format!("{OUTSIDE}:80"))?))?;
        let asked = tokio::task::spawn_blocking(move || listener.accept().map(|(_, from)| from.ip().to_string()));
        node.sh(&id, &format!("nc {OUTSIDE} 80 </dev/null")).await?;
        assert_eq!(asked.await??, NODE);
        let socket = outside.inside(|| Ok(UdpSocket::bind(format!("{OUTSIDE}:53"))?))?;
        socket.set_read_timeout(Some(wait::LIMIT))?;
        // Nobody answers; it is asked, and that is seen.
        node.sh(&id, &format!("timeout 1 nslookup name {OUTSIDE} || true")).await?;
        assert_eq!(socket.recv_from(&mut [0; 512])?.1.ip().to_string(), NODE);
        node.sh(&id, &format!("ping -c 1 -w 5 {OUTSIDE}")).await?;
        node.remove_pod(&sandbox).await?;
        outside.remove()?;
        Ok(())
    });
}

// proves: NamespaceOption.network, NamespaceMode.NODE
#[test]
fn a_pod_in_the_nodes_network_has_no_address_of_its_own() {
    e2e_cri(async |node| {
        // As the kubelet asks for it: the container's ports are the host's.
        let pod = node.pod("host").host_network().port(7000, 7000);
        let (sandbox, server) = serve(node, &pod).await?;
        let status = node.cri().sandbox(&sandbox).await?;
        assert_eq!(
            (status.state(), status.network.unwrap_or_default().ip.as_str()),
            (PodSandboxState::SandboxReady, "")
        );
        let pid = node.cri().container_pid(&server).await?;
        assert_eq!(fs::read_link(format!("/proc/{pid}/ns/net"))?, fs::read_link("/proc/thread-self/ns/net")?);
        assert_eq!(ask("127.0.0.1", 7000)?, "127.0.0.1");
        assert_eq!(node.sh(&server, "nc 127.0.0.1 7000 </dev/null").await?, "127.0.0.1");
        let name = fs::read_to_string("/proc/sys/kernel/hostname")?;
        assert_eq!(node.sh(&server, "hostname").await?, name.trim_end());
        // The sysctls of the node are not the pod's to set.
        let ports = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
        assert_eq!(node.sh(&server, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await?, ports.trim_end());
        // Another pod reaches it by the node's address.
        let client_pod = node.pod("client");
        let client = node.run_pod(&client_pod).await?;
        let id = node.start(&client, &client_pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        assert_eq!(node.sh(&id, "nc 10.88.0.1 7000 </dev/null").await?, node.address(&client).await?);
        node.remove_pod(&client).await?;
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_subnet_without_a_free_address_says_so() {
    let config = Some("[network]\nsubnet = '10.77.0.0/29'\n".to_owned());
    e2e_with(Options { config, ..Options::default() }, async |node| {
        let mut pods = Vec::new();
        for number in 0..5 {
            let id = node.run_pod(&node.pod(&format!("pod-{number}"))).await?;
            pods.push((node.address(&id).await?, id));
        }
        let full = ["10.77.0.0/29", "no free address"];
        assert_failed(node.run_pod(&node.pod("more")).await, Code::ResourceExhausted, &full);
        // A pod in the node's network needs none.
        let host = node.run_pod(&node.pod("host").host_network()).await?;
        node.kill_daemon()?;
        node.start_daemon().await?;
        assert_failed(node.run_pod(&node.pod("more")).await, Code::ResourceExhausted, &full);
        assert_eq!(sandboxes(node).await?, 6);
        // A stopped pod has no network any more, and so its address is free.
        let (address, id) = pods.swap_remove(2);
        node.cri().stop_pod_sandbox(&id).await?;
        let more = node.run_pod(&node.pod("more")).await?;
        assert_eq!(node.address(&more).await?, address);
        assert_failed(node.run_pod(&node.pod("one-too-many")).await, Code::ResourceExhausted, &full);
        for id in pods.iter().map(|(_, id)| id).chain([&id, &more, &host]) {
            node.remove_pod(id).await?;
        }
        Ok(())
    });
}

#[test]
fn ports_lead_to_their_pods_with_and_without_a_daemon() {
    e2e(async |node| {
        let outside = Outside::new(node)?;
        for (number, disturbance) in Disturbance::ALL.into_iter().enumerate() {
            let mut pod = node.pod(&format!("kept-{number}")).port(8080, 7000);
            pod.config.port_mappings.push(mapping(Protocol::Udp, 8080, 7000, ""));
            let (sandbox, _) = serve(node, &pod).await?;
            disturbance.apply(node).await?;
            let check = || -> Result<()> {
                assert_eq!(outside.inside(|| Ok(ask(NODE, 8080)?))?, OUTSIDE);
                assert_eq!(outside.inside(|| Ok(ask_udp(NODE, 8080)?))?, OUTSIDE);
                ask("127.0.0.1", 8080)?;
                Ok(())
            };
            check().with_context(|| format!("{disturbance:?}"))?;
            if disturbance == Disturbance::KillServer {
                node.kill_daemon()?;
                check().context("without a daemon")?;
                node.start_daemon().await?;
            }
            node.remove_pod(&sandbox).await?;
            assert!(ask("127.0.0.1", 8080).is_err());
        }
        outside.remove()?;
        Ok(())
    });
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    e2e(async |node| {
        let (first, _) = serve(node, &node.pod("first").port(8080, 7000)).await?;
        let flush = || run(Command::new("nft").args(["flush", "ruleset"])).map(drop);
        // While no daemon looks: its start brings them back.
        node.terminate_daemon()?;
        flush()?;
        assert!(ask("127.0.0.1", 8080).is_err(), "flushed");
        node.start_daemon().await?;
        ask("127.0.0.1", 8080)?;
        // While it runs: it says so, and the next pod brings back what all have published.
        flush()?;
        assert!(ask("127.0.0.1", 8080).is_err(), "flushed");
        let conditions = node.cri().status(cri::StatusRequest::default()).await?.status.context("status")?.conditions;
        let network = conditions.iter().find(|condition| condition.r#type == "NetworkReady").context("NetworkReady")?;
        assert!(!network.status && network.message.contains("nftables table"), "{network:?}");
        let (second, _) = serve(node, &node.pod("second").port(8081, 7000)).await?;
        ask("127.0.0.1", 8080)?;
        ask("127.0.0.1", 8081)?;
        // A pod without ports is as good as one with them, and what is gone is no trouble at the end.
        flush()?;
        let (third, _) = serve(node, &node.pod("third")).await?;
        ask("127.0.0.1", 8080)?;
        node.remove_pod(&third).await?;
        flush()?;
        node.remove_pod(&first).await?;
        node.remove_pod(&second).await?;
        // The table itself is the daemon's, and was there before the test.
        node.terminate_daemon()?;
        node.start_daemon().await?;
        Ok(())
    });
}

// proves: StatusRequest.verbose, StatusResponse.info
#[test]
fn a_firewall_that_drops_the_pods_traffic_is_named() {
    e2e(async |node| {
        let outside = Outside::new(node)?;
        let (sandbox, server) = serve(node, &node.pod("blocked").port(8080, 7000)).await?;
        assert_eq!(firewall(node).await?, [""; 0]);
        let nft = |line: &str| run(Command::new("nft").arg(line)).map(drop);
        nft("add table inet blocker")?;
        nft("add chain inet blocker gate { type filter hook forward priority 0; policy drop; }")?;
        let by_policy = firewall(node).await?;
        assert!(by_policy.iter().any(|line| line.contains("blocker") && line.contains("gate")), "{by_policy:?}");
        // It is no false alarm.
        assert!(outside.inside(|| Ok(ask(NODE, 8080)?)).is_err());
        nft("add rule inet blocker gate iifname vaina0 accept")?;
        nft("add rule inet blocker gate oifname vaina0 accept")?;
        assert_eq!(firewall(node).await?, [""; 0], "let pass");
        assert_eq!(outside.inside(|| Ok(ask(NODE, 8080)?))?, OUTSIDE);
        nft("add table ip other")?;
        nft("add chain ip other watch { type filter hook forward priority 10; }")?;
        nft("add rule ip other watch ip daddr 10.88.0.0/16 drop")?;
        let by_rule = firewall(node).await?;
        assert!(by_rule.iter().any(|line| line.contains("other") && line.contains("watch")), "{by_rule:?}");
        assert!(outside.inside(|| Ok(ask(NODE, 8080)?)).is_err());
        nft("delete table ip other")?;
        nft("delete table inet blocker")?;
        assert_eq!(firewall(node).await?, [""; 0]);
        node.sh(&server, "true").await?;
        node.remove_pod(&sandbox).await?;
        failed(node.cri().sandbox(&sandbox).await);
        outside.remove()?;
        Ok(())
    });
}
