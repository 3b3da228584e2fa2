//! Which pod has which address. Pure: filled from the records when the daemon starts, so it can't drift from them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{NetworkError, Subnet};
use crate::{
    config,
    error::{Classify, Kind},
    id::SandboxId,
};

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Every address is some pod's.
    #[error("subnet {subnet} has no free address: all {in_use} are in use by pods")]
    Exhausted {
        /// The pods' subnet.
        subnet: Subnet,
        /// How many pods have one.
        in_use: usize,
    },
    /// Recorded for a pod, and not one that the subnet has for pods: the subnet was changed.
    #[error("address {address} is not one for pods of subnet {subnet}")]
    Outside {
        /// The recorded address.
        address: IpAddr,
        /// The subnet of now.
        subnet: Subnet,
    },
    /// Recorded for two pods.
    #[error("address {address} belongs to pod sandbox {owner}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: SandboxId,
    },
}

impl Classify for PoolError {
    fn kind(&self) -> Kind {
        match self {
            Self::Exhausted { .. } => Kind::ResourceExhausted,
            Self::Outside { .. } => Kind::FailedPrecondition,
            Self::Taken { .. } => Kind::AlreadyExists,
        }
    }
}

/// The addresses of one subnet.
#[derive(Debug)]
pub struct Pool {
    subnet: Subnet,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    owners: BTreeMap<u128, SandboxId>,
    indexes: HashMap<SandboxId, u128>,
    /// Where the search begins: behind the address given out last, so that a freed one rests as long as can be and
    /// what still speaks to the old pod does not reach the new one.
    next: u128,
}

impl Pool {
    /// An empty pool of the configured subnet.
    pub fn new(config: &config::Network) -> Result<Self, NetworkError> {
        Ok(Self::of(super::subnet_of(config)?))
    }

    /// An empty pool.
    pub fn of(subnet: Subnet) -> Self {
        Self { subnet, state: Mutex::default() }
    }

    /// The subnet.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Takes a recorded address. The same for the same pod again is fine.
    pub fn reserve(&self, sandbox: &SandboxId, address: IpAddr) -> Result<(), PoolError> {
        let index = self.subnet.index(address).ok_or(PoolError::Outside { address, subnet: self.subnet })?;
        let mut state = self.lock();
        match state.owners.get(&index) {
            Some(owner) if owner != sandbox => return Err(PoolError::Taken { address, owner: owner.clone() }),
            _ => state.take(sandbox, index),
        }
        Ok(())
    }

    /// Gives a pod an address; one that has its already gets the same.
    pub fn allocate(&self, sandbox: &SandboxId) -> Result<IpAddr, PoolError> {
        let mut state = self.lock();
        let index = match state.indexes.get(sandbox) {
            Some(index) => *index,
            None => {
                let index = state
                    .free(self.subnet.capacity())
                    .ok_or_else(|| PoolError::Exhausted { subnet: self.subnet, in_use: state.owners.len() })?;
                state.take(sandbox, index);
                index
            }
        };
        Ok(self.subnet.pod(index))
    }

    /// Frees a pod's address; nothing to do for one that has none.
    pub fn release(&self, sandbox: &SandboxId) {
        let mut state = self.lock();
        if let Some(index) = state.indexes.remove(sandbox) {
            state.owners.remove(&index);
        }
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.lock().owners.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The first free one from `next` on, round the end. Walks the taken ones only, in order.
    fn free(&self, capacity: u128) -> Option<u128> {
        let gap = |from: u128, to: u128| {
            let mut candidate = from;
            for taken in self.owners.range(from..to).map(|(index, _)| *index) {
                if taken > candidate {
                    break;
                }
                candidate += 1;
            }
            (candidate < to).then_some(candidate)
        };
        let next = if self.next < capacity { self.next } else { 0 };
        gap(next, capacity).or_else(|| gap(0, next))
    }

    fn take(&mut self, sandbox: &SandboxId, index: u128) {
        if let Some(before) = self.indexes.insert(sandbox.clone(), index)
            && before != index
        {
            self.owners.remove(&before);
        }
        self.owners.insert(index, sandbox.clone());
        self.next = index + 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(subnet: &str) -> Pool {
        Pool::of(Subnet::parse(subnet).unwrap())
    }

    fn id(number: usize) -> SandboxId {
        SandboxId::new(format!("{number:064x}"))
    }

    #[test]
    fn addresses_go_round_and_a_freed_one_rests() {
        let pool = pool("10.0.0.0/29");
        let given: Vec<_> = (0..3).map(|pod| pool.allocate(&id(pod)).unwrap().to_string()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        pool.release(&id(1));
        pool.release(&id(1));
        assert_eq!(pool.allocate(&id(3)).unwrap().to_string(), "10.0.0.5");
        assert_eq!(pool.allocate(&id(4)).unwrap().to_string(), "10.0.0.6");
        assert_eq!(pool.allocate(&id(5)).unwrap().to_string(), "10.0.0.3");
        assert_eq!(pool.allocate(&id(5)).unwrap().to_string(), "10.0.0.3", "a retry has the same");
        let error = pool.allocate(&id(6)).unwrap_err();
        assert_eq!(error.to_string(), "subnet 10.0.0.0/29 has no free address: all 5 are in use by pods");
        assert_eq!(error.kind(), Kind::ResourceExhausted);
    }

    #[test]
    fn recorded_addresses_are_taken_back() {
        let pool = pool("10.0.0.0/29");
        let address = "10.0.0.3".parse().unwrap();
        pool.reserve(&id(1), address).unwrap();
        pool.reserve(&id(1), address).unwrap();
        assert_eq!(pool.reserve(&id(2), address), Err(PoolError::Taken { address, owner: id(1) }));
        for outside in ["10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.1.2", "fd00::2"] {
            let address = outside.parse().unwrap();
            assert_eq!(pool.reserve(&id(2), address), Err(PoolError::Outside { address, subnet: pool.subnet() }));
        }
        assert_eq!(pool.allocate(&id(1)).unwrap(), address);
        assert_eq!(pool.in_use(), 1);
    }

    proptest! {
        /// Whatever pods come and go: no address twice, none that is not for pods, and exhaustion only when all are taken.
        #[test]
        fn no_address_belongs_to_two(length in 24_u8..=30, steps in prop::collection::vec((0_usize..40, any::<bool>()), 0..200)) {
            let pool = Pool::of(Subnet::new(IpAddr::from([10, 9, 8, 0]), length).unwrap());
            let mut model: HashMap<usize, IpAddr> = HashMap::new();
            let mut freed: Option<IpAddr> = None;
            for (pod, comes) in steps {
                if comes {
                    let free = pool.subnet().capacity() - model.len() as u128;
                    match pool.allocate(&id(pod)) {
                        Ok(address) => {
                            prop_assert!(pool.subnet().index(address).is_some());
                            if let Some(before) = model.get(&pod) {
                                prop_assert_eq!(*before, address);
                            } else {
                                prop_assert!(!model.values().any(|other| *other == address));
                                prop_assert!(free == 1 || freed != Some(address), "reused at once");
                                freed = None;
                            }
                            model.insert(pod, address);
                        }
                        Err(_) => prop_assert!(free == 0 && !model.contains_key(&pod)),
                    }
                } else {
                    pool.release(&id(pod));
                    // Only an address that was given out last but one or longer ago is sure to rest.
                    let last = pool.lock().next;
                    freed = model.remove(&pod).filter(|address| pool.subnet().index(*address).map(|at| at + 1) == Some(last));
                }
                prop_assert_eq!(pool.in_use(), model.len());
            }
        }
    }
}
