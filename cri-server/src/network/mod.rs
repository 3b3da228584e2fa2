//! The built-in network: a bridge, a pair of interfaces per pod, masquerade and host ports, all over netlink.
//!
//! No plugin, no `nft` process. What a pod has is found again by its id alone (host-side interface, comments of map
//! elements), so nothing is kept here that a restart could lose: [`Network::open`] reads what is published, and
//! [`Network::detach`] removes whatever is there, however far [`Network::attach`] came before the daemon was killed.
//!
//! | file | what |
//! | --- | --- |
//! | [`pool`] | which pod has which address; pure |
//! | `subnet` | arithmetic of a subnet; pure |
//! | `link` | bridge, veth pairs, addresses, routes (`NETLINK_ROUTE`) |
//! | `nft` | the table with the published ports (`NETLINK_NETFILTER`) |
//! | `conntrack` | UDP flows that would go on as before |
//! | `error` | why it does not do what is asked |
//! | `firewall` | who else drops the pods' packets |
//! | `netlink` | the sockets |
//!
//! The host's side is the network namespace of the thread that called [`Network::open`], kept by descriptor: calls may
//! come from any thread, and tests run the whole of it in a namespace of their own. Several daemons share a host if
//! their bridges (which name their tables too) and subnets differ.

mod conntrack;
mod error;
mod firewall;
mod link;
mod netlink;
mod nft;
pub mod pool;
mod subnet;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;
use tracing::debug_span;

pub use self::{
    error::NetworkError,
    pool::{Pool, PoolError},
    subnet::Subnet,
};
use self::{
    error::step,
    link::Link,
    netlink::{FilterChannel, RouteChannel},
    nft::{Element, HostPort, Table, Target},
};
use crate::{config, error::Chain, id::SandboxId};

/// What a pod's attachment consists of; enough to make it, and to remove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The pod.
    pub sandbox: SandboxId,
    /// Pin of its network namespace.
    pub netns: PathBuf,
    /// Its address, from the pool.
    pub address: IpAddr,
    /// Its published ports.
    pub ports: Vec<PortMapping>,
}

/// One port of the host that leads to one of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// Only at this address of the host; none (or the unspecified one) is at all.
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}:{}/{}", self.port, self.protocol),
            None => write!(f, "{}/{}", self.port, self.protocol),
        }
    }
}

/// What is on the host of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The pod, if what is there names it; a pod whose attaching was cut short may have an interface without a name.
    pub sandbox: Option<SandboxId>,
    /// Its interface on the host; none if only ports are left.
    pub interface: Option<String>,
    /// How many ports are published for it.
    pub ports: usize,
}

/// The configured subnet.
fn subnet_of(config: &config::Network) -> Result<Subnet, NetworkError> {
    Subnet::parse(&config.subnet)
        .filter(|subnet| subnet.network().is_ipv4() && (8..=30).contains(&subnet.length()))
        .ok_or_else(|| NetworkError::Subnet { subnet: config.subnet.clone() })
}

/// The network of one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    host: Arc<Host>,
}

impl Network {
    /// Makes what all pods share, or takes what is there from before: the bridge, its address, the sysctls, the table.
    pub async fn open(config: &config::Network) -> Result<Self, NetworkError> {
        let host = Arc::new(Host::new(config)?);
        let network = Self { host };
        network.blocking(Host::open).await?;
        Ok(network)
    }

    /// Gives the pod its interface, address and ports; leaves nothing when it fails. What a broken attempt left is
    /// replaced, so it can be called again. Not cancel-safe: it goes on when the caller is dropped, and must be followed
    /// by [`Self::detach`].
    pub async fn attach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let attachment = attachment.clone();
        self.blocking(move |host| host.attach(&attachment)).await
    }

    /// Removes all that the pod has in the network; what is not there is removed. The kernel takes tens of milliseconds to
    /// forget an interface, so that goes on after the answer: its ports are free, [`Self::is_attached`] counts it as gone,
    /// and only [`Self::list`] still shows it.
    pub async fn detach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let sandbox = attachment.sandbox.clone();
        let Some(link) = self.blocking(move |host| host.detach(&sandbox)).await? else { return Ok(()) };
        let host = Arc::clone(&self.host);
        drop(tokio::task::spawn_blocking(move || host.remove_leaving(link.index, &link.name)));
        Ok(())
    }

    /// Publishes again what these pods have published, where it is gone (somebody flushed the rules while no daemon ran)
    /// or leads elsewhere. For recovery; what other pods have published stays.
    pub async fn restore(&self, attached: &[Attachment]) -> Result<(), NetworkError> {
        let attached = attached.to_vec();
        self.blocking(move |host| host.restore(&attached)).await
    }

    /// Whether anything of the pod is on the host. False when that can't be read.
    pub async fn is_attached(&self, sandbox: &SandboxId) -> bool {
        let sandbox = sandbox.clone();
        self.blocking(move |host| host.is_attached(&sandbox)).await.unwrap_or(false)
    }

    /// All that is on the host of pods, known or not.
    pub async fn list(&self) -> Result<Vec<Attached>, NetworkError> {
        self.blocking(Host::list).await
    }

    /// Whether pods can be attached now: the bridge is there, up and with its address, and so is the table.
    pub async fn status(&self) -> Result<(), NetworkError> {
        self.blocking(Host::status).await
    }

    /// What in other tables drops the traffic of a pod with these addresses (of any pod, if there are none), each in a
    /// sentence with the rule's place.
    pub async fn findings(&self, addresses: &[IpAddr]) -> Result<Vec<String>, NetworkError> {
        let addresses = addresses.to_vec();
        self.blocking(move |host| host.findings(&addresses)).await
    }

    /// [`Self::findings`] for one who has not opened the network and changes nothing: the commands for people.
    pub async fn findings_on(config: &config::Network, addresses: &[IpAddr]) -> Result<Vec<String>, NetworkError> {
        Self::look(config)?.findings(addresses).await
    }

    /// The network as it is, for one who changes nothing: neither bridge nor table is made.
    pub fn look(config: &config::Network) -> Result<Self, NetworkError> {
        Ok(Self { host: Arc::new(Host::new(config)?) })
    }

    /// Removes what [`Self::open`] made. For tests, and for those who take Vaina off a host: pods lose their network.
    pub async fn close(&self) -> Result<(), NetworkError> {
        self.blocking(Host::close).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Host) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let host = Arc::clone(&self.host);
        let span = tracing::Span::current();
        match tokio::task::spawn_blocking(move || span.in_scope(|| work(&host))).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(NetworkError::Step {
                    step: "run",
                    object: "the change of the network".to_owned(),
                    source: io::Error::other(error),
                }),
            },
        }
    }
}

/// The blocking side.
#[derive(Debug)]
struct Host {
    bridge: String,
    subnet: Subnet,
    table: Table,
    netns: OwnedFd,
    /// Idle sockets. Taken for one call each; what failed is not put back.
    routes: Mutex<Vec<RouteChannel>>,
    filters: Mutex<Vec<FilterChannel>>,
    /// Who has which port of the host: what the maps hold, and what is about to be put there. Never held across a call
    /// to the kernel.
    published: Mutex<HashMap<HostPort, Element>>,
    /// Numbers of interfaces that are being removed.
    leaving: Mutex<HashSet<u32>>,
}

impl Host {
    fn new(config: &config::Network) -> Result<Self, NetworkError> {
        let subnet = subnet_of(config)?;
        let bridge = config.bridge.clone();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if bridge.is_empty() || bridge.len() > 15 || bridge.starts_with(['.', '-']) || !bridge.bytes().all(fits) {
            return Err(NetworkError::BridgeName { bridge });
        }
        let netns =
            fs::File::open("/proc/thread-self/ns/net").map_err(step("open", "the network namespace of the host"))?;
        Ok(Self {
            table: Table::new(&bridge),
            bridge,
            subnet,
            netns: netns.into(),
            routes: Mutex::default(),
            filters: Mutex::default(),
            published: Mutex::default(),
            leaving: Mutex::default(),
        })
    }

    /// Runs on a thread in the host's namespace.
    fn inside<T: Send, E: From<io::Error> + Send>(&self, work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
        vaina_sys::netns::run_in(self.netns.as_fd(), work)
    }

    fn with_routes<T>(&self, work: impl FnOnce(&mut RouteChannel) -> io::Result<T>) -> io::Result<T> {
        let idle = lock(&self.routes).pop();
        let mut channel = idle.map_or_else(|| self.inside(RouteChannel::open), Ok)?;
        let done = work(&mut channel)?;
        keep_idle(&mut lock(&self.routes), channel);
        Ok(done)
    }

    fn with_filters<T>(&self, work: impl FnOnce(&mut FilterChannel) -> io::Result<T>) -> io::Result<T> {
        let idle = lock(&self.filters).pop();
        let mut channel = idle.map_or_else(|| self.inside(FilterChannel::open), Ok)?;
        let done = work(&mut channel)?;
        keep_idle(&mut lock(&self.filters), channel);
        Ok(done)
    }

    fn open(&self) -> Result<(), NetworkError> {
        self.make_shared()?;
        let elements = self.with_filters(|channel| self.table.elements(channel));
        let elements = elements.map_err(step("read published ports of table", self.table.name()))?;
        *lock(&self.published) = elements.into_iter().map(|element| (element.port, element)).collect();
        Ok(())
    }

    /// Bridge, sysctls and table. Each is taken as it is if it is right.
    fn make_shared(&self) -> Result<(), NetworkError> {
        let gateway = self.subnet.gateway();
        let found = self.find(&self.bridge)?;
        self.check_routes(found.as_ref())?;
        if found.is_none() {
            self.with_routes(|channel| link::make_bridge(channel, &self.bridge, gateway))
                .map_err(step("make bridge", &self.bridge))?;
        }
        let bridge = self.find(&self.bridge)?.ok_or_else(|| self.missing_bridge())?;
        if !bridge.is_bridge {
            return Err(NetworkError::NotABridge { bridge: self.bridge.clone() });
        }
        let addresses = self
            .with_routes(|channel| link::addresses(channel, bridge.index, gateway))
            .map_err(step("read the address of bridge", &self.bridge))?;
        if !addresses.contains(&(gateway, self.subnet.length())) {
            if let Some((address, length)) = addresses.first() {
                return Err(NetworkError::BridgeAddress {
                    bridge: self.bridge.clone(),
                    found: format!("{address}/{length}"),
                    subnet: self.subnet,
                    wanted: gateway,
                });
            }
            self.with_routes(|channel| link::add_address(channel, bridge.index, gateway, self.subnet.length()))
                .map_err(step("give an address to bridge", &self.bridge))?;
        }
        self.with_routes(|channel| link::set_up(channel, bridge.index)).map_err(step("set up bridge", &self.bridge))?;
        self.inside(|| {
            let localnet = format!("ipv4/conf/{}/route_localnet", self.bridge);
            for (name, value) in [("ipv4/ip_forward", "1"), (localnet.as_str(), "1")] {
                link::set_sysctl(name, value).map_err(step("set sysctl net/", name))?;
            }
            Ok::<_, NetworkError>(())
        })?;
        self.with_filters(|channel| self.table.install(channel, &self.bridge, self.subnet))
            .map_err(step("install nftables table inet", self.table.name()))
    }

    /// No other interface may be the way to some of our addresses.
    fn check_routes(&self, bridge: Option<&Link>) -> Result<(), NetworkError> {
        let (routes, names) = self
            .with_routes(|channel| Ok((link::routes(channel, self.subnet.network())?, link::names(channel)?)))
            .map_err(step("read", "the routes of the host"))?;
        let own = bridge.map(|bridge| bridge.index);
        for route in routes {
            if let Some(destination) = route.destination
                && destination.length() > 0
                && destination.overlaps(self.subnet)
                && (own.is_none() || route.interface != own)
            {
                let interface = route.interface.and_then(|index| names.get(&index).cloned());
                return Err(NetworkError::Overlap {
                    subnet: self.subnet,
                    route: destination,
                    interface: interface.unwrap_or_else(|| "(none)".to_owned()),
                });
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        self.with_routes(|channel| link::find(channel, name)).map_err(step("find interface", name))
    }

    fn missing_bridge(&self) -> NetworkError {
        NetworkError::Missing { what: format!("bridge {}", self.bridge) }
    }

    fn attach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let elements = elements_of(attachment)?;
        self.claim(&attachment.sandbox, &elements)?;
        let made = self.make(attachment, &elements);
        if made.is_err() {
            // The first cause is the one to tell; what can't be undone now stays in the record as owed.
            if let Ok(Some(link)) = self.detach(&attachment.sandbox) {
                self.remove_leaving(link.index, &link.name);
            }
        }
        made
    }

    fn make(&self, attachment: &Attachment, elements: &[Element]) -> Result<(), NetworkError> {
        let netns = vaina_sys::netns::open(&attachment.netns)
            .map_err(step("open network namespace", attachment.netns.display()))?;
        let name = link::host_interface(&attachment.sandbox);
        let bridge = match self.find(&self.bridge)? {
            Some(bridge) => bridge,
            None => {
                // Somebody took it away; pods from before are off, but new ones need not be.
                self.make_shared()?;
                self.find(&self.bridge)?.ok_or_else(|| self.missing_bridge())?
            }
        };
        let mtu = self.mtu()?;
        let make = || {
            let _span = debug_span!("make_pair").entered();
            self.with_routes(|channel| link::make_pair(channel, &name, bridge.index, mtu, netns.as_fd()))
        };
        let made = match make() {
            Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
                // Left by an attempt that was cut short.
                self.with_routes(|channel| link::remove(channel, &name))
                    .map_err(step("remove old interface", &name))?;
                make()
            }
            other => other,
        };
        made.map_err(step("make interface", &name))?;
        let (address, subnet) = (attachment.address, self.subnet);
        let configuring = debug_span!("configure").entered();
        vaina_sys::netns::run_in(netns.as_fd(), || link::configure_pod(address, subnet)).map_err(
            |link::PodStep { step, source }| NetworkError::Step {
                step,
                object: format!("({})", attachment.netns.display()),
                source,
            },
        )?;
        drop(configuring);
        debug_span!("publish").in_scope(|| self.publish(elements))?;
        let _span = debug_span!("mark_port").entered();
        self.with_routes(|channel| link::mark_port(channel, &name, attachment.sandbox.as_str()))
            .map_err(step("set the options of interface", &name))
    }

    /// That of the interface by which the host reaches the rest, if it has one: what does not fit there must not be
    /// sent by pods.
    fn mtu(&self) -> Result<Option<u32>, NetworkError> {
        self.with_routes(|channel| link::default_route(channel, self.subnet.network()))
            .map(|route| route.and_then(|link| link.mtu))
            .map_err(step("read", "the default route of the host"))
    }

    fn publish(&self, elements: &[Element]) -> Result<(), NetworkError> {
        let add = || {
            self.with_filters(|channel| {
                // A pod without ports needs the table as well.
                if elements.is_empty() && !self.table.is_installed(channel)? {
                    return Err(Errno::ENOENT.into());
                }
                self.table.add(channel, elements)
            })
        };
        let added = match add() {
            Err(error) if link::is_missing(&error) => {
                // Somebody flushed all rules: the table comes back with what all pods have published.
                self.with_filters(|channel| self.table.install(channel, &self.bridge, self.subnet))
                    .map_err(step("install nftables table inet", self.table.name()))?;
                let all: Vec<_> = lock(&self.published).values().cloned().collect();
                self.with_filters(|channel| self.table.add(channel, &all))
            }
            other => other,
        };
        added.map_err(step("publish ports in nftables table inet", self.table.name()))?;
        self.forget_flows(elements.iter().map(|element| element.port))
    }

    fn forget_flows(&self, ports: impl Iterator<Item = HostPort>) -> Result<(), NetworkError> {
        let ports: Vec<_> = ports.filter(|port| port.protocol == Protocol::Udp).collect();
        if ports.is_empty() {
            return Ok(());
        }
        self.with_filters(|channel| conntrack::forget(channel, &ports))
            .map_err(step("forget tracked flows to", "the pod's UDP ports"))
    }

    /// Takes the ports for the pod, all or none.
    fn claim(&self, sandbox: &SandboxId, elements: &[Element]) -> Result<(), NetworkError> {
        let mut published = lock(&self.published);
        for element in elements {
            let other = published
                .values()
                .find(|other| other.sandbox.as_ref() != Some(sandbox) && conflict(&other.port, &element.port));
            if let Some(other) = other {
                let owner = other.sandbox.clone().unwrap_or_else(|| SandboxId::new("(unknown)"));
                return Err(NetworkError::PortTaken { port: element.port.to_string(), owner });
            }
        }
        published.extend(elements.iter().map(|element| (element.port, element.clone())));
        Ok(())
    }

    fn owned(&self, sandbox: &SandboxId) -> Vec<HostPort> {
        let published = lock(&self.published);
        published
            .values()
            .filter(|element| element.sandbox.as_ref() == Some(sandbox))
            .map(|element| element.port)
            .collect()
    }

    /// Takes the ports back and answers the interface that is left to be removed. By its number, since a pod that is
    /// attached again meanwhile has one of the same name.
    fn detach(&self, sandbox: &SandboxId) -> Result<Option<Link>, NetworkError> {
        let unpublished = self.unpublish(&self.owned(sandbox));
        let link = self.find(&link::host_interface(sandbox));
        if let Ok(Some(link)) = &link {
            lock(&self.leaving).insert(link.index);
        }
        unpublished.and(link)
    }

    fn remove_leaving(&self, index: u32, name: &str) {
        if let Err(error) = self.with_routes(|channel| link::remove_by_index(channel, index)) {
            tracing::warn!(interface = name, error = %Chain(&error), "a pod's interface is not removed");
        }
        lock(&self.leaving).remove(&index);
    }

    fn unpublish(&self, ports: &[HostPort]) -> Result<(), NetworkError> {
        if ports.is_empty() {
            return Ok(());
        }
        self.with_filters(|channel| self.table.remove(channel, ports))
            .map_err(step("take back ports in nftables table inet", self.table.name()))?;
        let forgotten = self.forget_flows(ports.iter().copied());
        let mut published = lock(&self.published);
        for port in ports {
            published.remove(port);
        }
        forgotten
    }

    fn restore(&self, attached: &[Attachment]) -> Result<(), NetworkError> {
        let mut wanted = Vec::new();
        for attachment in attached {
            wanted.extend(elements_of(attachment)?);
        }
        // What leads elsewhere goes before it is added as it should be.
        let astray: Vec<_> = {
            let published = lock(&self.published);
            let leads_elsewhere =
                |element: &&Element| published.get(&element.port).is_some_and(|there| there.target != element.target);
            wanted.iter().filter(leads_elsewhere).map(|element| element.port).collect()
        };
        self.unpublish(&astray)?;
        {
            let mut published = lock(&self.published);
            wanted.retain(|element| !published.contains_key(&element.port));
            published.extend(wanted.iter().map(|element| (element.port, element.clone())));
        }
        self.publish(&wanted)
    }

    fn is_attached(&self, sandbox: &SandboxId) -> Result<bool, NetworkError> {
        let is_leaving = |link: &Link| lock(&self.leaving).contains(&link.index);
        let link = self.find(&link::host_interface(sandbox))?;
        Ok(!self.owned(sandbox).is_empty() || link.is_some_and(|link| !is_leaving(&link)))
    }

    fn list(&self) -> Result<Vec<Attached>, NetworkError> {
        let links = self.with_routes(link::list).map_err(step("list", "the interfaces of the host"))?;
        let bridge = links.iter().find(|link| link.name == self.bridge).map(|bridge| bridge.index);
        let elements = self
            .with_filters(|channel| self.table.elements(channel))
            .map_err(step("read published ports of table", self.table.name()))?;
        let mut ports: HashMap<Option<SandboxId>, usize> = HashMap::new();
        for element in elements {
            *ports.entry(element.sandbox).or_default() += 1;
        }
        let mut attached: Vec<_> = links
            .into_iter()
            .filter(|link| bridge.is_some() && link.controller == bridge)
            .map(|link| {
                let sandbox = link.alias.map(SandboxId::new).or_else(|| {
                    // Cut short before it was named: its ports may be published already.
                    let found = ports.keys().flatten().find(|sandbox| link::host_interface(sandbox) == link.name);
                    found.cloned()
                });
                let ports = if sandbox.is_some() { ports.remove(&sandbox).unwrap_or(0) } else { 0 };
                Attached { sandbox, interface: Some(link.name), ports }
            })
            .collect();
        attached.extend(ports.into_iter().map(|(sandbox, ports)| Attached { sandbox, interface: None, ports }));
        Ok(attached)
    }

    fn status(&self) -> Result<(), NetworkError> {
        let bridge = self.find(&self.bridge)?.ok_or_else(|| self.missing_bridge())?;
        if !bridge.is_bridge {
            return Err(NetworkError::NotABridge { bridge: self.bridge.clone() });
        }
        let missing = |what: String| Err(NetworkError::Missing { what });
        if !bridge.is_up {
            return missing(format!("state up of bridge {}", self.bridge));
        }
        let gateway = self.subnet.gateway();
        let addresses = self
            .with_routes(|channel| link::addresses(channel, bridge.index, gateway))
            .map_err(step("read the address of bridge", &self.bridge))?;
        if !addresses.contains(&(gateway, self.subnet.length())) {
            return missing(format!("address {gateway}/{} of bridge {}", self.subnet.length(), self.bridge));
        }
        let installed = self
            .with_filters(|channel| self.table.is_installed(channel))
            .map_err(step("find nftables table inet", self.table.name()))?;
        if installed { Ok(()) } else { missing(format!("nftables table inet {}", self.table.name())) }
    }

    fn findings(&self, addresses: &[IpAddr]) -> Result<Vec<String>, NetworkError> {
        let outside = self
            .with_routes(|channel| link::default_route(channel, self.subnet.network()))
            .map_err(step("read", "the default route of the host"))?;
        let ruleset = self
            .with_filters(|channel| firewall::read(channel, self.table.name()))
            .map_err(step("read", "the rules of other tables"))?;
        let outside = outside.as_ref().map(|link| link.name.as_str());
        let some_pod = [self.subnet.pod(0)];
        let addresses = if addresses.is_empty() { &some_pod } else { addresses };
        Ok(firewall::findings(&ruleset, &self.bridge, outside, addresses))
    }

    fn close(&self) -> Result<(), NetworkError> {
        let table = self
            .with_filters(|channel| self.table.uninstall(channel))
            .map_err(step("remove nftables table inet", self.table.name()));
        let bridge = self
            .with_routes(|channel| link::remove(channel, &self.bridge))
            .map_err(step("remove bridge", &self.bridge));
        lock(&self.published).clear();
        table.and(bridge)
    }
}

/// The map elements of a pod's ports.
fn elements_of(attachment: &Attachment) -> Result<Vec<Element>, NetworkError> {
    let address = ipv4("address of the pod", attachment.address)?;
    let mut elements: Vec<Element> = Vec::new();
    for mapping in &attachment.ports {
        let host_ip = mapping.host_ip.filter(|address| !address.is_unspecified());
        let element = Element {
            port: HostPort {
                address: host_ip.map(|address| ipv4("host IP of a port", address)).transpose()?,
                protocol: mapping.protocol,
                port: mapping.host_port,
            },
            target: Target { address, port: mapping.container_port },
            sandbox: Some(attachment.sandbox.clone()),
        };
        match elements.iter().find(|other| other.port == element.port) {
            Some(other) if *other == element => {}
            Some(_) => return Err(NetworkError::PortTwice { port: element.port.to_string() }),
            None => elements.push(element),
        }
    }
    Ok(elements)
}

fn ipv4(what: &'static str, address: IpAddr) -> Result<Ipv4Addr, NetworkError> {
    match address.to_canonical() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(NetworkError::Family { what, address }),
    }
}

/// Whether a connection could be meant for both.
fn conflict(one: &HostPort, other: &HostPort) -> bool {
    one.port == other.port
        && one.protocol == other.protocol
        && (one.address == other.address || one.address.is_none() || other.address.is_none())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a channel for the next call, but no more than one pod at a time needs: a burst leaves no descriptors behind.
fn keep_idle<T>(idle: &mut Vec<T>, channel: T) {
    if idle.is_empty() {
        idle.push(channel);
    }
}
