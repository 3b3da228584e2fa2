//! Which rule of somebody else drops the pods' traffic.
//!
//! An accept in our table does not override a drop in another's: every base chain of a hook must let a packet pass. So
//! the rules of Docker, ufw, firewalld and the like are read over netlink (nftables', and so iptables-nft's too) and
//! played through for a few packets. What can't be decided is "perhaps"; only what surely drops is told. Reading is in
//! [`read`], playing is pure.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::{
    NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook, HookNumber,
        Immediate, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
        RuleAttribute, RuleMessage, Verdict, VerdictAttribute,
    },
};

use super::{netlink::FilterChannel, nft::header};

/// A packet that opens a TCP connection; what is none is not known.
#[derive(Debug, Clone, Default)]
pub(super) struct Packet {
    pub(super) input: Option<String>,
    pub(super) output: Option<String>,
    pub(super) source: Option<Ipv4Addr>,
    pub(super) destination: Option<Ipv4Addr>,
    /// Whether it came to a host port, so that its destination has been rewritten.
    pub(super) published: bool,
}

/// Where packets are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On their way to the host itself.
    Input,
    /// On their way through it.
    Forward,
}

/// Name and family of a chain or table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    family: u8,
    table: String,
    chain: String,
}

#[derive(Debug, Clone)]
struct Chain {
    /// Place and priority of a base chain that filters.
    hook: Option<(Place, i32)>,
    drops_by_policy: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    handle: u64,
    expressions: Vec<Expressions>,
}

/// All rules of the host.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    chains: HashMap<Key, Chain>,
}

/// What surely drops a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    base: Key,
    cause: Cause,
    owner: Option<Owner>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    Policy,
    Rule { chain: String, handle: u64, rejects: bool },
}

/// Whose rules they seem to be, by the names they use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Docker,
    Ufw,
    Firewalld,
}

impl Finding {
    /// The finding in words, with the way out where we know one.
    pub(super) fn describe(&self, traffic: &str, bridge: &str) -> String {
        format!("{traffic}: {self}; {}", self.remedy(bridge))
    }

    fn remedy(&self, bridge: &str) -> String {
        match self.owner {
            Some(Owner::Docker) => format!(
                "let it pass with `iptables -I DOCKER-USER -i {bridge} -j ACCEPT` and `iptables -I DOCKER-USER -o {bridge} -j ACCEPT`"
            ),
            Some(Owner::Ufw) => format!(
                "let it pass with `ufw allow in on {bridge}`, `ufw route allow in on {bridge}` and `ufw route allow out on {bridge}`"
            ),
            Some(Owner::Firewalld) => {
                format!(
                    "let it pass with `firewall-cmd --permanent --zone=trusted --add-interface={bridge}` and `firewall-cmd --reload`"
                )
            }
            None => format!("an accept in another table does not help, it must be let pass there (interface {bridge})"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { family, table, chain } = &self.base;
        let family = family_name(*family);
        match &self.cause {
            Cause::Policy => {
                write!(f, "table {family} {table} chain {chain} has policy drop and no rule accepts it")?;
            }
            Cause::Rule { chain: within, handle, rejects } => {
                let verb = if *rejects { "rejects" } else { "drops" };
                write!(f, "table {family} {table} chain {within} {verb} it with the rule of handle {handle}")?;
                if within != chain {
                    write!(f, ", reached from chain {chain}")?;
                }
            }
        }
        match self.owner {
            Some(Owner::Docker) => f.write_str(" (Docker's rules)"),
            Some(Owner::Ufw) => f.write_str(" (ufw's rules)"),
            Some(Owner::Firewalld) => f.write_str(" (firewalld's rules)"),
            None => Ok(()),
        }
    }
}

fn family_name(family: u8) -> &'static str {
    match NetfilterProtoFamily::from(family) {
        NetfilterProtoFamily::Inet => "inet",
        NetfilterProtoFamily::IPv4 => "ip",
        NetfilterProtoFamily::IPv6 => "ip6",
        _ => "other",
    }
}

/// Reads the rules that IPv4 packets meet, without those of our own table. A rule that can't be read decides nothing.
pub(super) fn read(channel: &mut FilterChannel, own_table: &str) -> io::Result<Ruleset> {
    let mut ruleset = Ruleset::default();
    let families = [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::Inet];
    for family in families {
        let of_own = |key: &Key| family == NetfilterProtoFamily::Inet && key.table == own_table;
        let chains = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        for message in channel.list(NetfilterMessage::new(header(family), chains))?.messages {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) = message.inner {
                let (key, chain) = read_chain(message.header.family.into(), chain);
                if !of_own(&key) {
                    ruleset.chains.insert(key, chain);
                }
            }
        }
        let rules = NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() });
        let listed = channel.list(NetfilterMessage::new(header(family), rules))?;
        for message in listed.messages {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = message.inner {
                let (key, rule) = read_rule(message.header.family.into(), rule);
                if let Some(chain) = ruleset.chains.get_mut(&key) {
                    chain.rules.push(rule);
                }
            }
        }
    }
    Ok(ruleset)
}

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

fn read_chain(family: u8, message: ChainMessage) -> (Key, Chain) {
    let mut key = Key { family, table: String::new(), chain: String::new() };
    let mut chain = Chain { hook: None, drops_by_policy: false, rules: Vec::new() };
    let (mut place, mut order, mut filters) = (None, 0, false);
    for attribute in message.attributes {
        match attribute {
            ChainAttribute::Table(name) => key.table = name,
            ChainAttribute::Name(name) => key.chain = name,
            ChainAttribute::Policy(policy) => chain.drops_by_policy = policy == NF_DROP,
            ChainAttribute::Type(kind) => filters = kind == "filter",
            ChainAttribute::Hook(parts) => {
                for part in parts {
                    match part {
                        Hook::Number(HookNumber::Inet(InetHookNumber::Forward)) => place = Some(Place::Forward),
                        Hook::Number(HookNumber::Inet(InetHookNumber::LocalIn)) => place = Some(Place::Input),
                        Hook::Priority(priority) => order = u32::cast_signed(priority),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    chain.hook = place.filter(|_| filters).map(|place| (place, order));
    (key, chain)
}

fn read_rule(family: u8, message: RuleMessage) -> (Key, Rule) {
    let mut key = Key { family, table: String::new(), chain: String::new() };
    let mut rule = Rule { handle: 0, expressions: Vec::new() };
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Table(name) => key.table = name,
            RuleAttribute::Chain(name) => key.chain = name,
            RuleAttribute::Handle(handle) => rule.handle = handle,
            RuleAttribute::Expressions(list) => {
                for element in list {
                    let ListAttribute::Element(parts) = element else { continue };
                    let (mut name, mut data) = (None, None);
                    for part in parts {
                        match part {
                            ExpressionAttribute::Name(text) => name = Some(text),
                            ExpressionAttribute::Data(expressions) => data = Some(expressions),
                            _ => {}
                        }
                    }
                    // An expression without data has a name alone.
                    let bare = |name| Expressions::Other { expression_type: name, attributes: Vec::new() };
                    rule.expressions.extend(data.or(name.map(bare)));
                }
            }
            _ => {}
        }
    }
    (key, rule)
}

/// Whether a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applies {
    Yes,
    No,
    Perhaps,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ruling {
    Accept,
    Drop,
    Reject,
    Jump(String),
    Goto(String),
    Return,
    /// Something else that ends the rule, such as a queue.
    Unknown,
}

/// How a chain ends.
enum End {
    Accept,
    Drop(Cause),
    /// By its last rule, or a return.
    Through,
}

/// Chains call each other to the kernel's own limit.
const DEPTH: usize = 16;

impl Ruleset {
    /// What surely drops the packet, each base chain's first.
    pub(super) fn findings(&self, place: Place, packet: &Packet) -> Vec<Finding> {
        let mut bases: Vec<_> = self
            .chains
            .iter()
            .filter_map(|(key, chain)| {
                chain.hook.filter(|(hooked, _)| *hooked == place).map(|(_, priority)| (priority, key, chain))
            })
            .collect();
        bases.sort_by(|one, other| (one.0, &one.1.table, &one.1.chain).cmp(&(other.0, &other.1.table, &other.1.chain)));
        bases
            .into_iter()
            .filter_map(|(_, key, chain)| {
                let mut sure = true;
                let cause = match self.walk(key, chain, packet, &mut sure, DEPTH) {
                    End::Drop(cause) => cause,
                    End::Through if sure && chain.drops_by_policy => Cause::Policy,
                    _ => return None,
                };
                Some(Finding { base: key.clone(), cause, owner: self.owner(place, key) })
            })
            .collect()
    }

    /// `sure` goes when a rule perhaps accepts, and nothing after it is certain.
    fn walk(&self, key: &Key, chain: &Chain, packet: &Packet, sure: &mut bool, depth: usize) -> End {
        let Some(depth) = depth.checked_sub(1) else {
            *sure = false;
            return End::Through;
        };
        for rule in &chain.rules {
            let (applies, ruling) = rule.play(packet);
            let Some(ruling) = ruling.filter(|_| applies != Applies::No) else { continue };
            let certain = applies == Applies::Yes && *sure;
            let refuse = |rejects| End::Drop(Cause::Rule { chain: key.chain.clone(), handle: rule.handle, rejects });
            match ruling {
                Ruling::Accept if certain => return End::Accept,
                Ruling::Drop if certain => return refuse(false),
                Ruling::Reject if certain => return refuse(true),
                // It would only drop what may pass otherwise.
                Ruling::Drop | Ruling::Reject => {}
                Ruling::Return if applies == Applies::Yes => return End::Through,
                Ruling::Accept | Ruling::Return | Ruling::Unknown => *sure = false,
                Ruling::Jump(ref name) | Ruling::Goto(ref name) => {
                    let to = Key { chain: name.clone(), ..key.clone() };
                    let Some(called) = self.chains.get(&to) else {
                        *sure = false;
                        continue;
                    };
                    if applies == Applies::Yes {
                        match self.walk(&to, called, packet, sure, depth) {
                            End::Through => {}
                            end => return end,
                        }
                        if matches!(ruling, Ruling::Goto(_)) {
                            return End::Through;
                        }
                    } else {
                        // Only what it may accept matters of a chain that is perhaps entered.
                        let mut within = true;
                        let end = self.walk(&to, called, packet, &mut within, depth);
                        *sure &= within && !matches!(end, End::Accept) && !matches!(ruling, Ruling::Goto(_));
                    }
                }
            }
        }
        End::Through
    }

    /// Docker only filters what is forwarded.
    fn owner(&self, place: Place, base: &Key) -> Option<Owner> {
        let mut names = self
            .chains
            .keys()
            .filter(|key| key.family == base.family && key.table == base.table)
            .map(|key| key.chain.as_str());
        if base.table == "firewalld" {
            Some(Owner::Firewalld)
        } else if names.clone().any(|name| name.starts_with("ufw-")) {
            Some(Owner::Ufw)
        } else {
            (place == Place::Forward && names.any(|name| name.starts_with("DOCKER"))).then_some(Owner::Docker)
        }
    }
}

/// Values that a rule has loaded: the kernel's sixteen registers of four bytes, of which the first four old ones are
/// four each. A byte that is none is not known.
struct Registers([Option<u8>; 64]);

impl Registers {
    fn place(register: Register) -> usize {
        match u32::from(register) {
            old @ 1..=4 => (old as usize - 1) * 16,
            new @ 8..=23 => (new as usize - 8) * 4,
            _ => usize::MAX,
        }
    }

    fn set(&mut self, register: Register, value: Option<Vec<u8>>, length: usize) {
        let start = Self::place(register);
        for index in 0..length {
            if let Some(byte) = self.0.get_mut(start.saturating_add(index)) {
                *byte = value.as_ref().map(|value| value.get(index).copied().unwrap_or(0));
            }
        }
    }

    fn get(&self, register: Register, length: usize) -> Option<Vec<u8>> {
        let start = Self::place(register);
        self.0.get(start..start.checked_add(length)?)?.iter().copied().collect()
    }
}

// Numbers of nf_tables.h and nf_conntrack_common.h.
const NETWORK_HEADER: u32 = 1;
const PROTOCOL: u32 = 9;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const CT_STATE: u32 = 0;
const STATE_NEW: u32 = 8;
const NFPROTO_IPV4: u8 = 2;
const TCP: u8 = 6;
const CT_STATUS: u32 = 2;
const STATUS_REWRITTEN: u32 = 1 << 5;
/// `XT_CONNTRACK_STATE`, the flag of its other name `-m state`, `XT_CONNTRACK_STATE_DNAT`, and where the match keeps its flags, what it inverts and the states.
const XT_STATE: u16 = 1;
const XT_STATE_ALIAS: u16 = 1 << 13;
const XT_STATE_REWRITTEN: u32 = 128;
const XT_FLAGS: usize = 146;
const XT_INVERTED: usize = 148;
const XT_STATES: usize = 150;

impl Rule {
    fn play(&self, packet: &Packet) -> (Applies, Option<Ruling>) {
        let mut registers = Registers([None; 64]);
        let mut applies = Applies::Yes;
        let mut ruling = None;
        for expression in &self.expressions {
            let step = match expression {
                Expressions::Meta(parts) => {
                    load_meta(parts, packet, &mut registers);
                    Applies::Yes
                }
                Expressions::Payload(parts) => {
                    load_payload(parts, packet, &mut registers);
                    Applies::Yes
                }
                Expressions::Bitwise(parts) => {
                    mask(parts, &mut registers);
                    Applies::Yes
                }
                Expressions::Cmp(parts) => compare(parts, &registers),
                Expressions::Immediate(parts) => {
                    ruling = immediate(parts, &mut registers).or(ruling);
                    Applies::Yes
                }
                Expressions::Other { expression_type, attributes } => {
                    let (step, found) = foreign(expression_type, attributes, packet, &mut registers);
                    ruling = found.or(ruling);
                    step
                }
                _ => Applies::Perhaps,
            };
            match step {
                Applies::No => return (Applies::No, None),
                Applies::Perhaps => applies = Applies::Perhaps,
                Applies::Yes => {}
            }
        }
        (applies, ruling)
    }
}

fn load_meta(parts: &[Meta], packet: &Packet, registers: &mut Registers) {
    let (mut target, mut key) = (None, None);
    for part in parts {
        match part {
            Meta::DestinationRegister(register) => target = Some(*register),
            Meta::Key(of) => key = Some(*of),
            _ => {}
        }
    }
    let Some(target) = target else { return };
    let name = |name: &Option<String>| {
        name.as_ref().map(|name| {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        })
    };
    match key {
        Some(MetaKey::Iifname) => registers.set(target, name(&packet.input), 16),
        Some(MetaKey::Oifname) => registers.set(target, name(&packet.output), 16),
        Some(MetaKey::Nfproto) => registers.set(target, Some(vec![NFPROTO_IPV4]), 4),
        Some(MetaKey::L4Proto) => registers.set(target, Some(vec![TCP]), 4),
        _ => registers.set(target, None, 16),
    }
}

fn load_payload(parts: &[Payload], packet: &Packet, registers: &mut Registers) {
    let (mut target, mut base, mut offset, mut length) = (None, 0, 0, 0);
    for part in parts {
        match part {
            Payload::DestinationRegister(register) => target = Some(*register),
            Payload::Base(number) => base = *number,
            Payload::Offset(number) => offset = *number,
            Payload::Len(number) => length = *number,
            _ => {}
        }
    }
    let Some(target) = target else { return };
    // A prefix of an address that ends at a byte is loaded in part.
    let header = |start: u32, address: Option<Ipv4Addr>| {
        let from = usize::try_from(offset - start).unwrap_or(4);
        let to = from + usize::try_from(length).unwrap_or(4);
        address.and_then(|address| address.octets().get(from..to).map(<[u8]>::to_vec))
    };
    let value = match (base, offset) {
        (NETWORK_HEADER, PROTOCOL) if length == 1 => Some(vec![TCP]),
        (NETWORK_HEADER, SOURCE..=15) => header(SOURCE, packet.source),
        (NETWORK_HEADER, DESTINATION..=19) => header(DESTINATION, packet.destination),
        _ => None,
    };
    registers.set(target, value, usize::try_from(length).unwrap_or(16).next_multiple_of(4));
}

fn mask(parts: &[Bitwise], registers: &mut Registers) {
    let (mut from, mut to, mut length, mut mask, mut xor) = (None, None, 0, None, None);
    for part in parts {
        match part {
            Bitwise::SourceRegister(register) => from = Some(*register),
            Bitwise::DestinationRegister(register) => to = Some(*register),
            Bitwise::Length(number) => length = usize::try_from(*number).unwrap_or(0),
            Bitwise::Mask(DataAttribute::Value(value)) => mask = Some(value),
            Bitwise::Xor(DataAttribute::Value(value)) => xor = Some(value),
            _ => {}
        }
    }
    let (Some(from), Some(to)) = (from, to) else { return };
    let value = registers.get(from, length).zip(mask.zip(xor)).map(|(value, (mask, xor))| {
        value.iter().zip(mask).zip(xor).map(|((value, mask), xor)| value & mask ^ xor).collect()
    });
    registers.set(to, value, length);
}

fn compare(parts: &[Cmp], registers: &Registers) -> Applies {
    let (mut register, mut operator, mut wanted) = (None, None, None);
    for part in parts {
        match part {
            Cmp::SourceRegister(from) => register = Some(*from),
            Cmp::Op(with) => operator = Some(*with),
            Cmp::Data(DataAttribute::Value(value)) => wanted = Some(value),
            _ => {}
        }
    }
    let (Some(register), Some(operator), Some(wanted)) = (register, operator, wanted) else { return Applies::Perhaps };
    let Some(value) = registers.get(register, wanted.len()) else { return Applies::Perhaps };
    let holds = match operator {
        Operator::Equal => value == *wanted,
        Operator::NotEqual => value != *wanted,
        Operator::LessThan => value < *wanted,
        Operator::LessThanEqual => value <= *wanted,
        Operator::GreaterThan => value > *wanted,
        Operator::GreatherThanEqual => value >= *wanted,
        _ => return Applies::Perhaps,
    };
    if holds { Applies::Yes } else { Applies::No }
}

fn immediate(parts: &[Immediate], registers: &mut Registers) -> Option<Ruling> {
    let mut target = None;
    for part in parts {
        match part {
            Immediate::DestinationRegister(register) => target = Some(*register),
            Immediate::Data(DataAttribute::Value(value)) => {
                registers.set(target?, Some(value.clone()), value.len().next_multiple_of(4));
            }
            Immediate::Data(DataAttribute::Verdict(parts)) => return Some(verdict(parts)),
            _ => {}
        }
    }
    None
}

fn verdict(parts: &[VerdictAttribute]) -> Ruling {
    let (mut code, mut chain) = (None, None);
    for part in parts {
        match part {
            VerdictAttribute::Code(number) => code = Some(*number),
            VerdictAttribute::Chain(name) => chain = Some(name.clone()),
            _ => {}
        }
    }
    match (code, chain) {
        (Some(Verdict::Other(NF_DROP)), _) => Ruling::Drop,
        (Some(Verdict::Other(NF_ACCEPT)), _) => Ruling::Accept,
        (Some(Verdict::Return), _) => Ruling::Return,
        (Some(Verdict::Jump), Some(chain)) => Ruling::Jump(chain),
        (Some(Verdict::Goto), Some(chain)) => Ruling::Goto(chain),
        _ => Ruling::Unknown,
    }
}

/// Expressions that the library keeps as they are, iptables' matches and targets among them.
fn foreign(
    kind: &str,
    attributes: &[DefaultNla],
    packet: &Packet,
    registers: &mut Registers,
) -> (Applies, Option<Ruling>) {
    let value = |number: u16| {
        attributes.iter().find(|attribute| attribute.kind() == number).map(|attribute| {
            let mut bytes = vec![0; attribute.value_len()];
            attribute.emit_value(&mut bytes);
            bytes
        })
    };
    let number = |of: u16| value(of).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let name = || value(1).map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned());
    match kind {
        "counter" | "log" | "quota" | "notrack" => (Applies::Yes, None),
        "reject" => (Applies::Yes, Some(Ruling::Reject)),
        "ct" => {
            if let Some(target) = number(1) {
                let known = match number(2) {
                    Some(CT_STATE) => Some(STATE_NEW),
                    Some(CT_STATUS) => Some(if packet.published { STATUS_REWRITTEN } else { 0 }),
                    _ => None,
                };
                let length = if known.is_some() { 4 } else { 16 };
                registers.set(Register::from(target), known.map(|bits| bits.to_ne_bytes().to_vec()), length);
            }
            (Applies::Yes, None)
        }
        "match" => match name().as_deref() {
            Some("comment") => (Applies::Yes, None),
            Some("udp" | "icmp" | "icmp6" | "sctp") => (Applies::No, None),
            Some("conntrack") => (value(3).map_or(Applies::Perhaps, |info| state_match(&info, packet.published)), None),
            _ => (Applies::Perhaps, None),
        },
        "target" => match name().as_deref() {
            Some("REJECT") => (Applies::Yes, Some(Ruling::Reject)),
            Some("LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS") => (Applies::Yes, None),
            _ => (Applies::Yes, Some(Ruling::Unknown)),
        },
        "queue" | "tproxy" | "synproxy" | "flow_offload" => (Applies::Yes, Some(Ruling::Unknown)),
        // Whatever else a rule looks at is not known, and what it loads neither.
        _ => (Applies::Perhaps, None),
    }
}

/// iptables' `-m conntrack --ctstate`, of a new connection.
fn state_match(info: &[u8], published: bool) -> Applies {
    let field = |at: usize| info.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let (Some(flags), Some(inverted), Some(states)) = (field(XT_FLAGS), field(XT_INVERTED), field(XT_STATES)) else {
        return Applies::Perhaps;
    };
    if flags & !XT_STATE_ALIAS != XT_STATE {
        return Applies::Perhaps;
    }
    let has = STATE_NEW | if published { XT_STATE_REWRITTEN } else { 0 };
    let matches = u32::from(states) & has != 0;
    if matches != (inverted & XT_STATE != 0) { Applies::Yes } else { Applies::No }
}

/// The packets whose fate matters to pods: outward, inward, and to the host itself.
pub(super) fn findings(ruleset: &Ruleset, bridge: &str, outside: Option<&str>, pods: &[IpAddr]) -> Vec<String> {
    let pod = pods.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let (bridge_name, outside) = (Some(bridge.to_owned()), outside.map(str::to_owned));
    let cases = [
        (
            format!("traffic from pods on {bridge} to other networks is dropped"),
            Place::Forward,
            Packet {
                input: bridge_name.clone(),
                output: outside.clone(),
                source: pod,
                destination: None,
                published: false,
            },
        ),
        (
            format!("traffic from other networks to host ports of pods on {bridge} is dropped"),
            Place::Forward,
            Packet { input: outside, output: bridge_name.clone(), source: None, destination: pod, published: true },
        ),
        (
            format!("traffic from pods on {bridge} to this host is dropped"),
            Place::Input,
            Packet { input: bridge_name, output: None, source: pod, destination: None, published: false },
        ),
    ];
    cases
        .into_iter()
        .flat_map(|(traffic, place, packet)| {
            ruleset
                .findings(place, &packet)
                .into_iter()
                .map(move |finding| finding.describe(&traffic, bridge))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As iptables 1.8.9 sends it: `-m conntrack --ctstate` and its older name, with and without `!`.
    #[test]
    fn states_of_iptables_are_read() {
        const RELATED_ESTABLISHED: u16 = 6;
        const INVALID: u16 = 1;
        for (flags, inverted, states, published, expected) in [
            (XT_STATE, 0, RELATED_ESTABLISHED, false, Applies::No),
            (XT_STATE, XT_STATE, RELATED_ESTABLISHED, false, Applies::Yes),
            (XT_STATE, 0, 8, false, Applies::Yes),
            (XT_STATE | XT_STATE_ALIAS, 0, INVALID, false, Applies::No),
            (XT_STATE, 0, 128, false, Applies::No),
            (XT_STATE, 0, 128, true, Applies::Yes),
            (XT_STATE | 2, 0, 8, false, Applies::Perhaps),
        ] {
            let mut info = vec![0; 160];
            for (at, value) in [(XT_FLAGS, flags), (XT_INVERTED, inverted), (XT_STATES, states)] {
                info[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
            assert_eq!(state_match(&info, published), expected, "{flags} {inverted} {states}");
        }
        assert_eq!(state_match(&[0; 100], false), Applies::Perhaps);
    }
}
