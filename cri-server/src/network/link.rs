//! Links, addresses and routes: the bridge on the host, and each pod's pair of interfaces.
//!
//! A pod's interface is born in the pod's namespace, since moving one there costs the kernel ten times what all the rest
//! takes. What is made here is found again by its names alone: the bridge's from the configuration, a pod's host-side
//! interface by [`host_interface`].

use std::{
    collections::HashMap,
    fs, io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
        LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use nix::errno::Errno;

use super::{
    Subnet,
    netlink::{Mode, RouteChannel},
};
use crate::id::SandboxId;

/// Name of every pod's interface, as CNI has it.
pub(super) const POD_INTERFACE: &str = "eth0";
const LOOPBACK: u32 = 1;

/// Name of a pod's interface on the host: what fits of its id into the kernel's 15 bytes.
pub(super) fn host_interface(sandbox: &SandboxId) -> String {
    let short: String = sandbox.as_str().chars().filter(char::is_ascii_alphanumeric).take(11).collect();
    format!("veth{short}")
}

/// What we want to know of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    pub(super) is_bridge: bool,
    pub(super) is_up: bool,
    pub(super) controller: Option<u32>,
    pub(super) mtu: Option<u32>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            is_bridge: false,
            is_up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
            mtu: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Mtu(mtu) => link.mtu = Some(mtu),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)));
                }
                _ => {}
            }
        }
        link
    }
}

/// Whether an error says that the thing is not there.
pub(super) fn is_missing(error: &io::Error) -> bool {
    [Errno::ENODEV, Errno::ENOENT, Errno::ENXIO].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn is_there(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EEXIST as i32)
}

/// Finds an interface by its name.
pub(super) fn find(channel: &mut RouteChannel, name: &str) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match channel.request(RouteNetlinkMessage::GetLink(message), Mode::Plain) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link.into()),
            _ => None,
        })),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All interfaces.
pub(super) fn list(channel: &mut RouteChannel) -> io::Result<Vec<Link>> {
    let answers = channel.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?.messages;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link.into()),
            _ => None,
        })
        .collect())
}

/// Makes a bridge. Its hardware address is fixed, from its IP address: left to the kernel it would be that of one of the
/// pods, and every pod's neighbour entry for its gateway would go stale when that pod does.
pub(super) fn make_bridge(channel: &mut RouteChannel, name: &str, address: IpAddr) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(hardware_address(address)),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    match channel.request(RouteNetlinkMessage::NewLink(message), Mode::CreateNew) {
        Err(error) if is_there(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// Locally administered, and unique in the subnet as its IP address is.
fn hardware_address(address: IpAddr) -> Vec<u8> {
    let mut bytes = vec![0x0a, 0x58];
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(&address.octets()[12..]),
    }
    bytes
}

/// Sets an interface up.
pub(super) fn set_up(channel: &mut RouteChannel, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    channel.request(RouteNetlinkMessage::SetLink(message), Mode::Plain).map(drop)
}

/// Removes an interface and so its peer; one that is not there is removed.
pub(super) fn remove(channel: &mut RouteChannel, name: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    remove_link(channel, message)
}

/// The same, by its number, which the kernel gives to no other later.
pub(super) fn remove_by_index(channel: &mut RouteChannel, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    remove_link(channel, message)
}

fn remove_link(channel: &mut RouteChannel, message: LinkMessage) -> io::Result<()> {
    match channel.request(RouteNetlinkMessage::DelLink(message), Mode::Plain) {
        Err(error) if is_missing(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// Makes a pod's pair: the host's end on the bridge and up, the pod's in its namespace. The peer can't be up from the
/// start; the kernel refuses that (ENOTCONN).
pub(super) fn make_pair(
    channel: &mut RouteChannel,
    name: &str,
    bridge: u32,
    mtu: Option<u32>,
    netns: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![LinkAttribute::IfName(POD_INTERFACE.to_owned()), LinkAttribute::NetNsFd(netns.as_raw_fd())];
    peer.attributes.extend(mtu.map(LinkAttribute::Mtu));
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Controller(bridge)];
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    channel.request(RouteNetlinkMessage::NewLink(message), Mode::CreateNew).map(drop)
}

/// Names the pod on its host-side interface, for people (`ip link`) and for [`super::Network::list`], and lets the
/// bridge send back where a packet came from: where `br_netfilter` is loaded, a pod that calls its own host port needs it.
pub(super) fn mark_port(channel: &mut RouteChannel, name: &str, alias: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::IfAlias(alias.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]),
    ];
    channel.request(RouteNetlinkMessage::NewLink(message), Mode::Plain).map(drop)
}

/// Gives an interface an address; one that it has already is fine.
pub(super) fn add_address(channel: &mut RouteChannel, index: u32, address: IpAddr, length: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = length;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    match channel.request(RouteNetlinkMessage::NewAddress(message), Mode::CreateNew) {
        Err(error) if is_there(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// Addresses of an interface of the family of `like`, with the lengths of their prefixes.
pub(super) fn addresses(channel: &mut RouteChannel, index: u32, like: IpAddr) -> io::Result<Vec<(IpAddr, u8)>> {
    let mut message = AddressMessage::default();
    message.header.family = family(like);
    let answers = channel.list(RouteNetlinkMessage::GetAddress(message))?.messages;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
                let address = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                })?;
                Some((address, message.header.prefix_len))
            }
            _ => None,
        })
        .collect())
}

/// Sends everything of the gateway's family by the gateway.
pub(super) fn add_default_route(channel: &mut RouteChannel, index: u32, gateway: IpAddr) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(index)];
    match channel.request(RouteNetlinkMessage::NewRoute(message), Mode::CreateNew) {
        Err(error) if is_there(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// A route of the host's main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// None is the default route.
    pub(super) destination: Option<Subnet>,
    /// Index of the interface it goes by.
    pub(super) interface: Option<u32>,
}

/// The main table's routes of the family of `like`.
pub(super) fn routes(channel: &mut RouteChannel, like: IpAddr) -> io::Result<Vec<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(like);
    let answers = channel.list(RouteNetlinkMessage::GetRoute(message))?.messages;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message)
                if message.header.table == RouteHeader::RT_TABLE_MAIN && message.header.kind == RouteType::Unicast =>
            {
                Some(route(&message))
            }
            _ => None,
        })
        .collect())
}

fn route(message: &RouteMessage) -> Route {
    let mut route = Route { destination: None, interface: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.destination = Subnet::new((*address).into(), message.header.destination_prefix_length);
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                route.destination = Subnet::new((*address).into(), message.header.destination_prefix_length);
            }
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                route.interface = route.interface.or(hops.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    route
}

/// The interface by which the host reaches what it has no other route for.
pub(super) fn default_route(channel: &mut RouteChannel, like: IpAddr) -> io::Result<Option<Link>> {
    let by_default = |route: &Route| route.destination.is_none_or(|destination| destination.length() == 0);
    let Some(index) = routes(channel, like)?.iter().find(|route| by_default(route)).and_then(|route| route.interface)
    else {
        return Ok(None);
    };
    Ok(list(channel)?.into_iter().find(|link| link.index == index))
}

/// Inside the pod: loopback up, the interface with its address up, and the way out. Runs on a thread in the pod's
/// namespace.
pub(super) fn configure_pod(address: IpAddr, subnet: Subnet) -> Result<(), PodStep> {
    let step = |step: &'static str| move |source| PodStep { step, source };
    let mut channel = RouteChannel::open().map_err(step("open a netlink socket in the pod's namespace"))?;
    set_up(&mut channel, LOOPBACK).map_err(step("set the pod's loopback up"))?;
    let interface = find(&mut channel, POD_INTERFACE)
        .and_then(|link| link.ok_or_else(|| Errno::ENODEV.into()))
        .map_err(step("find the pod's interface eth0"))?;
    add_address(&mut channel, interface.index, address, subnet.length())
        .map_err(step("give the pod's interface its address"))?;
    set_up(&mut channel, interface.index).map_err(step("set the pod's interface up"))?;
    add_default_route(&mut channel, interface.index, subnet.gateway()).map_err(step("add the pod's default route"))
}

/// Which step in the pod's namespace failed.
#[derive(Debug)]
pub(super) struct PodStep {
    pub(super) step: &'static str,
    pub(super) source: io::Error,
}

impl From<io::Error> for PodStep {
    fn from(source: io::Error) -> Self {
        Self { step: "enter the pod's namespace", source }
    }
}

/// Sets a sysctl below `/proc/sys/net` of this thread's network namespace, unless it is so already: there a host whose
/// `/proc/sys` is read-only and set up well is good enough.
pub(super) fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{name}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(path, value)
}

/// Names of interfaces by index.
pub(super) fn names(channel: &mut RouteChannel) -> io::Result<HashMap<u32, String>> {
    Ok(list(channel)?.into_iter().map(|link| (link.index, link.name)).collect())
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
