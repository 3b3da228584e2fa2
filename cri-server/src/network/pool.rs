//! Addresses of pods: who has which. Pure; what is taken is told by the records, so nothing can drift.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
};

use crate::{
    config,
    error::{Classify, Kind},
    id::SandboxId,
    work::lock,
};

/// No address is free.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("all addresses of {subnet} are taken")]
pub struct PoolError {
    subnet: String,
}

impl Classify for PoolError {
    fn kind(&self) -> Kind {
        Kind::ResourceExhausted
    }
}

/// The addresses of one subnet.
#[derive(Debug)]
pub struct Pool {
    subnet: String,
    /// First and last that pods may have: without the network's, the bridge's and the broadcast address.
    first: u32,
    last: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_address: BTreeMap<u32, SandboxId>,
    by_sandbox: HashMap<SandboxId, u32>,
    /// Given last: an address is used again as late as possible, since others may still have it in their caches.
    cursor: u32,
}

impl Pool {
    /// All addresses of the configured subnet.
    pub fn new(config: &config::Network) -> Result<Self, super::NetworkError> {
        let (address, length) = config.parsed_subnet().ok_or_else(|| super::NetworkError(config.subnet.clone()))?;
        let mask = u32::MAX << (32 - u32::from(length));
        let network = u32::from(address) & mask;
        let (first, last) = (network + 2, (network | !mask) - 1);
        let taken = Mutex::new(Taken { cursor: first - 1, ..Taken::default() });
        Ok(Self { subnet: config.subnet.clone(), first, last, taken })
    }

    /// Notes what a record says. An address of another subnet is of no concern here.
    pub fn reserve(&self, sandbox: &SandboxId, address: IpAddr) {
        let IpAddr::V4(address) = address else { return };
        let address = u32::from(address);
        let mut taken = lock(&self.taken);
        taken.by_address.insert(address, sandbox.clone());
        taken.by_sandbox.insert(sandbox.clone(), address);
        if (self.first..=self.last).contains(&address) {
            taken.cursor = taken.cursor.max(address);
        }
    }

    /// Gives a pod an address; the one that it has, if it has one.
    pub fn allocate(&self, sandbox: &SandboxId) -> Result<IpAddr, PoolError> {
        let mut taken = lock(&self.taken);
        if let Some(address) = taken.by_sandbox.get(sandbox) {
            return Ok(Ipv4Addr::from(*address).into());
        }
        let after = taken.cursor.saturating_add(1).max(self.first);
        let free = (after..=self.last).chain(self.first..after).find(|address| !taken.by_address.contains_key(address));
        let address = free.ok_or_else(|| PoolError { subnet: self.subnet.clone() })?;
        taken.cursor = address;
        taken.by_address.insert(address, sandbox.clone());
        taken.by_sandbox.insert(sandbox.clone(), address);
        Ok(Ipv4Addr::from(address).into())
    }

    /// Takes a pod's address back; none is fine.
    pub fn release(&self, sandbox: &SandboxId) {
        let mut taken = lock(&self.taken);
        if let Some(address) = taken.by_sandbox.remove(sandbox) {
            taken.by_address.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_again_as_late_as_possible() {
        let config = config::Network { subnet: "10.0.0.0/29".into(), ..Default::default() };
        let pool = Pool::new(&config).unwrap();
        let id = |number: usize| SandboxId::new(number.to_string());
        let given: Vec<String> = (0..5).map(|number| pool.allocate(&id(number)).unwrap().to_string()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(pool.allocate(&id(1)).unwrap().to_string(), "10.0.0.3", "asked again");
        assert!(pool.allocate(&id(9)).is_err());
        pool.release(&id(1));
        pool.release(&id(1));
        assert_eq!(pool.allocate(&id(9)).unwrap().to_string(), "10.0.0.3");
    }

    #[test]
    fn what_records_say_is_taken() {
        let config = config::Network { subnet: "10.0.0.0/29".into(), ..Default::default() };
        let pool = Pool::new(&config).unwrap();
        pool.reserve(&SandboxId::new("a"), "10.0.0.3".parse().unwrap());
        let given: Vec<_> =
            ["b", "c", "d", "e"].map(|id| pool.allocate(&SandboxId::new(id)).unwrap().to_string()).into();
        assert_eq!(given, ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"]);
    }
}
