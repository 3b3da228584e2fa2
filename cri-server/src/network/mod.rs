//! Interim.
mod pool;
use crate::{
    config,
    error::{Classify, Kind},
    id::SandboxId,
};
pub use pool::{Pool, PoolError};
use std::{net::IpAddr, path::PathBuf};

/// What a pod's attachment consists of.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// Pod.
    pub sandbox: SandboxId,
    /// Pin.
    pub netns: PathBuf,
    /// Address.
    pub address: IpAddr,
    /// Ports.
    pub ports: Vec<PortMapping>,
}
/// One published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// Only there.
    pub host_ip: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}
/// Transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}
/// Why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(String);
impl Classify for NetworkError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }
}
/// Network.
#[derive(Debug)]
pub struct Network;
impl Network {
    /// Opens.
    pub async fn open(_: &config::Network) -> Result<Self, NetworkError> {
        Ok(Self)
    }
    /// Attaches.
    pub async fn attach(&self, _: &Attachment) -> Result<(), NetworkError> {
        Err(NetworkError("the pod network is not there yet".into()))
    }
    /// Detaches.
    pub async fn detach(&self, _: &Attachment) -> Result<(), NetworkError> {
        Ok(())
    }
    /// Ready.
    pub async fn status(&self) -> Result<(), NetworkError> {
        Ok(())
    }
    /// Attached.
    pub async fn is_attached(&self, _: &SandboxId) -> bool {
        false
    }
}
