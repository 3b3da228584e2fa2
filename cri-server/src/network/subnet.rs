//! A subnet as arithmetic, for both families. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An address block: a network address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    network: IpAddr,
    length: u8,
}

impl Subnet {
    /// The block that holds `address`; none if the family has no prefix of this length.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let shift = bits(address).checked_sub(length)?;
        let network = number(address).checked_shr(shift.into()).unwrap_or(0).checked_shl(shift.into()).unwrap_or(0);
        Some(Self { network: same_family(address, network), length })
    }

    /// Reads `a.b.c.d/n` or its IPv6 like.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        Self::new(address.parse().ok()?, length.parse().ok()?)
    }

    /// The first address, which stands for the network.
    pub fn network(self) -> IpAddr {
        self.network
    }

    /// Length of the prefix.
    pub fn length(self) -> u8 {
        self.length
    }

    /// The first address a host can have: that of the bridge, and the pods' way out.
    pub fn gateway(self) -> IpAddr {
        self.nth(1)
    }

    /// How many addresses are for pods: all but the network's, the gateway's and, in IPv4, the broadcast address.
    pub fn capacity(self) -> u128 {
        let reserved = if self.network.is_ipv4() { 3 } else { 2 };
        self.size().saturating_sub(reserved)
    }

    /// The pods' address with this number, counted from zero.
    pub fn pod(self, index: u128) -> IpAddr {
        self.nth(index.saturating_add(2))
    }

    /// The number of a pod's address; none if a pod can't have it.
    pub fn index(self, address: IpAddr) -> Option<u128> {
        let index = self.contains(address).then(|| number(address) - number(self.network))?.checked_sub(2)?;
        (index < self.capacity()).then_some(index)
    }

    /// Whether the address is of this block.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4()
            && number(address).checked_sub(number(self.network)).is_some_and(|offset| offset < self.size())
    }

    /// Whether the two blocks share addresses.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    fn size(self) -> u128 {
        1_u128.checked_shl(u32::from(bits(self.network) - self.length)).unwrap_or(u128::MAX)
    }

    fn nth(self, offset: u128) -> IpAddr {
        same_family(self.network, number(self.network).saturating_add(offset))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn same_family(family: IpAddr, number: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::parse(text).unwrap()
    }

    #[test]
    fn blocks_are_read_and_cut_to_their_prefix() {
        for (text, printed, gateway, capacity) in [
            ("10.88.0.0/16", "10.88.0.0/16", "10.88.0.1", 65_533),
            ("10.88.3.7/24", "10.88.3.0/24", "10.88.3.1", 253),
            ("192.0.2.0/30", "192.0.2.0/30", "192.0.2.1", 1),
            ("fd00::/120", "fd00::/120", "fd00::1", 254),
        ] {
            let subnet = subnet(text);
            assert_eq!(
                (subnet.to_string().as_str(), subnet.gateway().to_string().as_str(), subnet.capacity()),
                (printed, gateway, capacity)
            );
        }
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/-1"] {
            assert_eq!(Subnet::parse(text), None, "{text}");
        }
        assert_eq!(subnet("0.0.0.0/0").capacity(), (1 << 32) - 3);
        assert!(subnet("::/0").capacity() > 1 << 100);
    }

    #[test]
    fn overlap_is_symmetric_and_by_family() {
        for (one, other, expected) in [
            ("10.88.0.0/16", "10.0.0.0/8", true),
            ("10.88.0.0/16", "10.88.255.0/24", true),
            ("10.88.0.0/16", "10.89.0.0/16", false),
            ("0.0.0.0/0", "fd00::/8", false),
        ] {
            assert_eq!(subnet(one).overlaps(subnet(other)), expected);
            assert_eq!(subnet(other).overlaps(subnet(one)), expected);
        }
    }

    #[test]
    fn only_addresses_for_pods_have_a_number() {
        let subnet = subnet("10.1.2.0/29");
        let numbered: Vec<_> = (0..8).map(|last| subnet.index(IpAddr::from([10, 1, 2, last]))).collect();
        assert_eq!(numbered, [None, None, Some(0), Some(1), Some(2), Some(3), Some(4), None]);
        assert_eq!(subnet.index(IpAddr::from([10, 1, 3, 2])), None);
    }
}
