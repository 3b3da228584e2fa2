//! Our nftables table: static chains, and two maps with one element per published port.
//!
//! ```text
//! table inet <bridge> {
//!   map hostports      { type inet_proto . inet_service : ipv4_addr . inet_service }
//!   map hostports_at   { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//!   chain guard        { filter hook prerouting, priority raw:     iifname <bridge> ip daddr 127.0.0.0/8 drop }
//!   chain prerouting   { nat hook prerouting, priority dstnat:     fib daddr type local jump publish }
//!   chain output       { nat hook output, priority dstnat:         fib daddr type local jump publish }
//!   chain publish      { dnat ip to ip daddr . meta l4proto . th dport map @hostports_at
//!                        dnat ip to meta l4proto . th dport map @hostports }
//!   chain postrouting  { nat hook postrouting, priority srcnat:
//!                        ip saddr <subnet> oifname != <bridge> masquerade
//!                        ip saddr <subnet> oifname <bridge> ct status dnat masquerade
//!                        ip saddr 127.0.0.0/8 oifname <bridge> masquerade }
//! }
//! ```
//!
//! The second masquerade lets a pod reach a host port that leads to itself or to a neighbour, the third lets the host
//! reach one by localhost (with `route_localnet` on the bridge; `guard` takes back what that sysctl gives to pods).
//! Family `inet`, so that IPv6 is two more maps. A new pod costs no rule, only elements; their comment is the pod's id.
//! Installing replaces the rules in one transaction and leaves the maps as they are, so it is done at every start.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, HookNumber, Immediate,
        InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
        RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetFlags,
        SetMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
    },
};

use super::{
    Protocol, Subnet,
    netlink::{FilterChannel, Mode},
};
use crate::id::SandboxId;

const FAMILY: NetfilterProtoFamily = NetfilterProtoFamily::Inet;

/// What is published: a port of the host, at one of its addresses or at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct HostPort {
    pub(super) address: Option<Ipv4Addr>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// Where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
}

/// One element of the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) port: HostPort,
    pub(super) target: Target,
    /// The pod; unknown for an element without our comment.
    pub(super) sandbox: Option<SandboxId>,
}

/// The table of one bridge.
#[derive(Debug, Clone)]
pub(super) struct Table {
    name: String,
}

const ANYWHERE: &str = "hostports";
const AT_ADDRESS: &str = "hostports_at";

impl Table {
    pub(super) fn new(bridge: &str) -> Self {
        Self { name: bridge.to_owned() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the table, or makes its rules what they should be.
    pub(super) fn install(&self, channel: &mut FilterChannel, bridge: &str, subnet: Subnet) -> io::Result<()> {
        let mut changes = vec![(NfTablesMessage::NewTable(self.table()), Mode::Create)];
        for (id, name, key, length) in [
            (1, ANYWHERE, concatenated(&[TYPE_PROTOCOL, TYPE_PORT]), 8),
            (2, AT_ADDRESS, concatenated(&[TYPE_ADDRESS, TYPE_PROTOCOL, TYPE_PORT]), 12),
        ] {
            let map = SetMessage {
                attributes: vec![
                    SetAttribute::Table(self.name.clone()),
                    SetAttribute::Name(name.to_owned()),
                    SetAttribute::Flags(SetFlags::Map),
                    SetAttribute::KeyType(key),
                    SetAttribute::KeyLen(length),
                    SetAttribute::DataType(concatenated(&[TYPE_ADDRESS, TYPE_PORT])),
                    SetAttribute::DataLen(8),
                    SetAttribute::Id(id),
                ],
            };
            changes.push((NfTablesMessage::NewSet(map), Mode::Create));
        }
        for chain in chains(bridge, subnet) {
            let mut attributes =
                vec![ChainAttribute::Table(self.name.clone()), ChainAttribute::Name(chain.name.to_owned())];
            if let Some((kind, hook, priority)) = chain.hook {
                attributes.push(ChainAttribute::Hook(vec![
                    Hook::Number(HookNumber::Inet(hook)),
                    Hook::Priority(i32::cast_unsigned(priority)),
                ]));
                attributes.push(ChainAttribute::Type(kind.to_owned()));
            }
            changes.push((NfTablesMessage::NewChain(ChainMessage { attributes }), Mode::Create));
        }
        // All chains are there before any rule jumps.
        for chain in chains(bridge, subnet) {
            let old = RuleMessage {
                attributes: vec![RuleAttribute::Table(self.name.clone()), RuleAttribute::Chain(chain.name.to_owned())],
            };
            changes.push((NfTablesMessage::DeleteRule(old), Mode::Plain));
            for rule in chain.rules {
                let rule = RuleMessage {
                    attributes: vec![
                        RuleAttribute::Table(self.name.clone()),
                        RuleAttribute::Chain(chain.name.to_owned()),
                        RuleAttribute::Expressions(rule.into_iter().map(ListAttribute::from).collect()),
                    ],
                };
                changes.push((NfTablesMessage::NewRule(rule), Mode::Append));
            }
        }
        channel.transaction(FAMILY, changes)
    }

    /// Whether the table is there.
    pub(super) fn is_installed(&self, channel: &mut FilterChannel) -> io::Result<bool> {
        let message = NetfilterMessage::new(header(FAMILY), NfTablesMessage::GetTable(self.table()));
        match channel.request(message, Mode::Plain) {
            Ok(_) => Ok(true),
            Err(error) if super::link::is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Publishes ports, all or none. One that is there and leads to the same place is fine; one that leads elsewhere is
    /// EEXIST, and a missing table ENOENT.
    pub(super) fn add(&self, channel: &mut FilterChannel, elements: &[Element]) -> io::Result<()> {
        let changes = self.by_map(elements.iter().map(|element| (element.port.map(), element.attributes())));
        let changes: Vec<_> = changes.map(|message| (NfTablesMessage::NewSetElement(message), Mode::Create)).collect();
        if changes.is_empty() { Ok(()) } else { channel.transaction(FAMILY, changes) }
    }

    /// Takes ports back; those that are not there are.
    pub(super) fn remove(&self, channel: &mut FilterChannel, ports: &[HostPort]) -> io::Result<()> {
        let key = |port: &HostPort| (port.map(), vec![SetElementAttribute::Key(DataAttribute::Value(port.key()))]);
        let mut delete = |ports: &[HostPort]| {
            let changes: Vec<_> = self
                .by_map(ports.iter().map(key))
                .map(|message| (NfTablesMessage::DeleteSetElement(message), Mode::Plain))
                .collect();
            if changes.is_empty() { Ok(()) } else { channel.transaction(FAMILY, changes) }
        };
        match delete(ports) {
            // The transaction failed as a whole for one that is missing.
            Err(error) if super::link::is_missing(&error) => {
                ports.iter().try_for_each(|port| match delete(std::slice::from_ref(port)) {
                    Err(error) if super::link::is_missing(&error) => Ok(()),
                    other => other,
                })
            }
            other => other,
        }
    }

    /// What is published now; nothing if there is no table.
    pub(super) fn elements(&self, channel: &mut FilterChannel) -> io::Result<Vec<Element>> {
        let mut elements = Vec::new();
        for map in [ANYWHERE, AT_ADDRESS] {
            let message = SetElementMessage {
                attributes: vec![SetElementList::Table(self.name.clone()), SetElementList::Set(map.to_owned())],
            };
            let message = NetfilterMessage::new(header(FAMILY), NfTablesMessage::GetSetElement(message));
            let listed = match channel.list(message) {
                Ok(listed) => listed,
                Err(error) if super::link::is_missing(&error) => return Ok(elements),
                Err(error) => return Err(error),
            };
            for message in listed.messages {
                let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(message)) = message.inner else {
                    continue;
                };
                for attribute in message.attributes {
                    let SetElementList::Elements(list) = attribute else { continue };
                    elements.extend(list.iter().filter_map(|element| match element {
                        ListAttribute::Element(attributes) => Element::read(attributes),
                        _ => None,
                    }));
                }
            }
        }
        Ok(elements)
    }

    /// Removes the table with all that is in it.
    pub(super) fn uninstall(&self, channel: &mut FilterChannel) -> io::Result<()> {
        match channel.transaction(FAMILY, vec![(NfTablesMessage::DeleteTable(self.table()), Mode::Plain)]) {
            Err(error) if super::link::is_missing(&error) => Ok(()),
            other => other,
        }
    }

    fn table(&self) -> TableMessage {
        TableMessage { attributes: vec![TableAttribute::Name(self.name.clone())] }
    }

    /// One message per map that has any.
    fn by_map(
        &self,
        elements: impl Iterator<Item = (&'static str, Vec<SetElementAttribute>)>,
    ) -> impl Iterator<Item = SetElementMessage> {
        let (mut anywhere, mut at_address) = (Vec::new(), Vec::new());
        for (map, attributes) in elements {
            let list = if map == ANYWHERE { &mut anywhere } else { &mut at_address };
            list.push(ListAttribute::Element(attributes));
        }
        let table = self.name.clone();
        [(ANYWHERE, anywhere), (AT_ADDRESS, at_address)].into_iter().filter(|(_, list)| !list.is_empty()).map(
            move |(map, list)| SetElementMessage {
                attributes: vec![
                    SetElementList::Table(table.clone()),
                    SetElementList::Set(map.to_owned()),
                    SetElementList::Elements(list),
                ],
            },
        )
    }
}

pub(super) fn header(family: NetfilterProtoFamily) -> NetfilterHeader {
    NetfilterHeader::new(family, 0, 0)
}

impl HostPort {
    fn map(&self) -> &'static str {
        if self.address.is_some() { AT_ADDRESS } else { ANYWHERE }
    }

    /// Each part of a concatenation is padded to four bytes.
    fn key(&self) -> Vec<u8> {
        let mut key: Vec<u8> = self.address.iter().flat_map(|address| address.octets()).collect();
        key.extend([self.protocol.number(), 0, 0, 0]);
        key.extend(padded(self.port));
        key
    }

    fn read(key: &[u8]) -> Option<Self> {
        let (address, rest) = match key.len() {
            8 => (None, key),
            12 => (Some(Ipv4Addr::from(<[u8; 4]>::try_from(&key[..4]).ok()?)), &key[4..]),
            _ => return None,
        };
        let protocol = Protocol::from_number(*rest.first()?)?;
        let port = u16::from_be_bytes(rest.get(4..6)?.try_into().ok()?);
        Some(Self { address, protocol, port })
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

impl Element {
    fn attributes(&self) -> Vec<SetElementAttribute> {
        let mut data = self.target.address.octets().to_vec();
        data.extend(padded(self.target.port));
        let mut attributes = vec![
            SetElementAttribute::Key(DataAttribute::Value(self.port.key())),
            SetElementAttribute::Data(DataAttribute::Value(data)),
        ];
        if let Some(comment) = self.sandbox.as_ref().and_then(|sandbox| comment(sandbox.as_str())) {
            attributes.push(SetElementAttribute::UserData(comment));
        }
        attributes
    }

    fn read(attributes: &[SetElementAttribute]) -> Option<Self> {
        let (mut port, mut target, mut sandbox) = (None, None, None);
        for attribute in attributes {
            match attribute {
                SetElementAttribute::Key(DataAttribute::Value(key)) => port = HostPort::read(key),
                SetElementAttribute::Data(DataAttribute::Value(data)) => {
                    target = data.get(..4).zip(data.get(4..6)).and_then(|(address, port)| {
                        let address = Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?);
                        Some(Target { address, port: u16::from_be_bytes(port.try_into().ok()?) })
                    });
                }
                SetElementAttribute::UserData(data) => sandbox = commented(data).map(SandboxId::new),
                _ => {}
            }
        }
        Some(Self { port: port?, target: target?, sandbox })
    }
}

/// A comment as `nft` shows it: type 0, length, text with its end.
fn comment(text: &str) -> Option<Vec<u8>> {
    let mut data = vec![0, u8::try_from(text.len() + 1).ok()?];
    data.extend(text.as_bytes());
    data.push(0);
    Some(data)
}

fn commented(data: &[u8]) -> Option<&str> {
    let (&[0, length], rest) = data.split_first_chunk::<2>()? else { return None };
    std::str::from_utf8(rest.get(..usize::from(length).checked_sub(1)?)?).ok()
}

// Numbers of `nft`'s types, only for its listing; each takes six bits of a concatenation's.
const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

fn concatenated(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| all << 6 | one)
}

struct Chain {
    name: &'static str,
    /// Type, hook and priority of a base chain.
    hook: Option<(&'static str, InetHookNumber, i32)>,
    rules: Vec<Vec<Expressions>>,
}

const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

const PUBLISH: &str = "publish";

fn chains(bridge: &str, subnet: Subnet) -> [Chain; 5] {
    let loopback = Subnet::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8);
    let publish_local = || vec![vec![fib_destination_type(), equals(&RTN_LOCAL.to_ne_bytes()), jump(PUBLISH)]];
    let bridge_rule = |prefix: Vec<Expressions>, rest: Vec<Expressions>| [prefix, rest].concat();
    let mut guard = vec![meta(MetaKey::Iifname), equals(&interface(bridge))];
    guard.extend(loopback.into_iter().flat_map(|loopback| address_in(DESTINATION, loopback)));
    guard.push(drop_it());
    let mut from_loopback: Vec<_> = loopback.into_iter().flat_map(|loopback| address_in(SOURCE, loopback)).collect();
    from_loopback.extend([meta(MetaKey::Oifname), equals(&interface(bridge)), masquerade()]);
    [
        Chain { name: "guard", hook: Some(("filter", InetHookNumber::PreRouting, RAW)), rules: vec![guard] },
        Chain { name: PUBLISH, hook: None, rules: vec![publish(true), publish(false)] },
        Chain { name: "prerouting", hook: Some(("nat", InetHookNumber::PreRouting, DSTNAT)), rules: publish_local() },
        Chain { name: "output", hook: Some(("nat", InetHookNumber::LocalOut, DSTNAT)), rules: publish_local() },
        Chain {
            name: "postrouting",
            hook: Some(("nat", InetHookNumber::PostRouting, SRCNAT)),
            rules: vec![
                bridge_rule(
                    address_in(SOURCE, subnet),
                    vec![meta(MetaKey::Oifname), differs(&interface(bridge)), masquerade()],
                ),
                bridge_rule(
                    address_in(SOURCE, subnet),
                    vec![
                        meta(MetaKey::Oifname),
                        equals(&interface(bridge)),
                        tracked(CT_STATUS),
                        has_bits(IPS_DST_NAT),
                        differs(&0_u32.to_ne_bytes()),
                        masquerade(),
                    ],
                ),
                from_loopback,
            ],
        },
    ]
}

/// The rule that looks a packet's destination up and rewrites it.
fn publish(at_address: bool) -> Vec<Expressions> {
    let mut rule = vec![meta(MetaKey::Nfproto), equals(&[NFPROTO_IPV4])];
    let registers = if at_address {
        rule.push(payload(NETWORK_HEADER, DESTINATION, 4, Register::Reg32_00));
        [Register::Reg32_01, Register::Reg32_02]
    } else {
        [Register::Reg32_00, Register::Reg32_01]
    };
    rule.push(Expressions::Meta(vec![Meta::DestinationRegister(registers[0]), Meta::Key(MetaKey::L4Proto)]));
    rule.push(payload(TRANSPORT_HEADER, 2, 2, registers[1]));
    rule.push(Expressions::Lookup(vec![
        Lookup::Set(if at_address { AT_ADDRESS } else { ANYWHERE }.to_owned()),
        Lookup::SourceRegister(Register::Reg32_00),
        Lookup::DestinationRegister(Register::Reg32_00),
    ]));
    // Type, family, register of the address, register of the port.
    rule.push(other("nat", &[(1, NAT_DESTINATION), (2, NFPROTO_IPV4.into()), (3, 8), (5, 9)]));
    rule
}

// Numbers of the kernel's nf_tables.h, in6.h and nf_conntrack_common.h for expressions that have no type of their own.
const NAT_DESTINATION: u32 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const RTN_LOCAL: u32 = 2;
const FIB_DESTINATION: u32 = 2;
const FIB_ADDRESS_TYPE: u32 = 3;
const CT_STATUS: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5;
const NF_DROP: u32 = 0;
const INTERFACE_BYTES: usize = 16;

fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(INTERFACE_BYTES, 0);
    bytes
}

fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)])
}

fn payload(base: u32, offset: u32, length: u32, register: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// The address at this offset of an IPv4 header (or its like of IPv6) is in the block.
fn address_in(offset: u32, block: Subnet) -> Vec<Expressions> {
    let (protocol, offset, bytes) = match block.network() {
        IpAddr::V4(address) => (NFPROTO_IPV4, offset, address.octets().to_vec()),
        IpAddr::V6(address) => (NFPROTO_IPV6, if offset == SOURCE { 8 } else { 24 }, address.octets().to_vec()),
    };
    let mask: Vec<u8> = (0..bytes.len())
        .map(|index| {
            let set = usize::from(block.length()).saturating_sub(index * 8).min(8);
            u8::MAX.checked_shl(8 - u32::try_from(set).unwrap_or(8)).unwrap_or(0)
        })
        .collect();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    vec![
        meta(MetaKey::Nfproto),
        equals(&[protocol]),
        payload(NETWORK_HEADER, offset, length, Register::Reg1),
        masked(&mask),
        equals(&bytes),
    ]
}

fn masked(mask: &[u8]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
    ])
}

fn has_bits(bits: u32) -> Expressions {
    masked(&bits.to_ne_bytes())
}

fn compare(operator: Operator, value: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
}

fn equals(value: &[u8]) -> Expressions {
    compare(Operator::Equal, value)
}

fn differs(value: &[u8]) -> Expressions {
    compare(Operator::NotEqual, value)
}

fn verdict(attributes: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

fn jump(chain: &str) -> Expressions {
    verdict(vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(chain.to_owned())])
}

fn drop_it() -> Expressions {
    verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))])
}

fn fib_destination_type() -> Expressions {
    other("fib", &[(1, Register::Reg1.into()), (2, FIB_ADDRESS_TYPE), (3, FIB_DESTINATION)])
}

fn tracked(key: u32) -> Expressions {
    other("ct", &[(1, Register::Reg1.into()), (2, key)])
}

fn masquerade() -> Expressions {
    other("masq", &[])
}

/// An expression that the library has no type for; its attributes are big-endian numbers.
fn other(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes
            .iter()
            .map(|(kind, value)| DefaultNla::new(kind & !NLA_F_NESTED, value.to_be_bytes().to_vec()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_were_written() {
        for address in [None, Some(Ipv4Addr::new(192, 0, 2, 1))] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let element = Element {
                    port: HostPort { address, protocol, port: 8080 },
                    target: Target { address: Ipv4Addr::new(10, 88, 0, 2), port: 80 },
                    sandbox: Some(SandboxId::new("f".repeat(64))),
                };
                assert_eq!(Element::read(&element.attributes()), Some(element));
            }
        }
        assert_eq!(Element::read(&[SetElementAttribute::Key(DataAttribute::Value(vec![1, 2]))]), None);
    }

    #[test]
    fn foreign_comments_are_none() {
        for data in [&[][..], &[0], &[1, 2, b'a', 0], &[0, 9, b'a', 0], &[0, 0], &[0, 2, 0xff, 0]] {
            assert_eq!(commented(data), None, "{data:?}");
        }
        assert_eq!(commented(&comment("abc").unwrap()), Some("abc"));
    }
}
