//! What is recorded of a sandbox. A protobuf message of our own around the CRI's: fields are added, never renumbered.

use std::{error::Error, net::IpAddr};

use prost::Message;
use vaina_proto::cri::{LinuxContainerResources, PodSandboxConfig};

use super::{Kept, Level, Sandbox};
use crate::{id::SandboxId, plan::Mark, state::Record};

/// A sandbox as it is on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxRecord {
    id: SandboxId,
    body: Body,
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
    #[prost(string, tag = "2")]
    handler: String,
    #[prost(int64, tag = "3")]
    created_at: i64,
    /// 1 NotReady, 2 Ready.
    #[prost(uint32, tag = "4")]
    level: u32,
    /// On the way to the level, not at it.
    #[prost(bool, tag = "5")]
    toward: bool,
    #[prost(string, repeated, tag = "6")]
    addresses: Vec<String>,
    #[prost(string, tag = "7")]
    shim_address: String,
    #[prost(string, tag = "8")]
    boot_id: String,
    #[prost(message, optional, tag = "9")]
    resources: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "10")]
    overhead: Option<LinuxContainerResources>,
}

impl SandboxRecord {
    pub(super) fn new(sandbox: &Sandbox, kept: &Kept) -> Self {
        let (level, toward) = match kept.mark {
            Some(Mark::At(level)) => (level, false),
            Some(Mark::Toward(level)) => (level, true),
            None => (Level::Gone, true),
        };
        Self {
            id: sandbox.id.clone(),
            body: Body {
                config: Some(sandbox.config.clone()),
                handler: sandbox.handler.clone(),
                created_at: sandbox.created_at,
                level: level as u32,
                toward,
                addresses: kept.addresses.iter().map(IpAddr::to_string).collect(),
                shim_address: kept.shim_address.clone(),
                boot_id: kept.boot_id.clone(),
                resources: kept.resources.clone(),
                overhead: kept.overhead.clone(),
            },
        }
    }

    /// The object that it tells of, in no published state yet.
    pub(crate) fn into_sandbox(self) -> Sandbox {
        let Body { config, handler, created_at, toward, addresses, shim_address, boot_id, resources, overhead, .. } =
            self.body;
        let level = level_of(self.body.level).unwrap_or(Level::Gone);
        let kept = Kept {
            mark: Some(if toward { Mark::Toward(level) } else { Mark::At(level) }),
            addresses: addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            shim_address,
            boot_id,
            resources,
            overhead,
        };
        Sandbox::new(self.id, config.unwrap_or_default(), handler, created_at, kept)
    }
}

fn level_of(number: u32) -> Option<Level> {
    [Level::Gone, Level::NotReady, Level::Ready].into_iter().find(|level| *level as u32 == number)
}

impl Record for SandboxRecord {
    const TABLE: &'static str = "sandbox";
    const VERSION: u32 = 1;

    fn key(&self) -> String {
        self.id.as_str().to_owned()
    }

    fn encode(&self) -> Vec<u8> {
        self.body.encode_to_vec()
    }

    fn decode(key: &str, version: u32, body: &[u8]) -> Result<Self, Box<dyn Error + Send + Sync>> {
        if version > Self::VERSION {
            return Err(format!("version {version} is newer than {}, which this release reads", Self::VERSION).into());
        }
        let body = Body::decode(body)?;
        if body.config.as_ref().is_none_or(|config| config.metadata.is_none()) {
            return Err("it has no metadata".into());
        }
        level_of(body.level).ok_or_else(|| format!("level {} is not known", body.level))?;
        if let Some(bad) = body.addresses.iter().find(|address| address.parse::<IpAddr>().is_err()) {
            return Err(format!("{bad:?} is not an address").into());
        }
        Ok(Self { id: SandboxId::new(key), body })
    }
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::PodSandboxMetadata;

    use super::*;

    fn sandbox() -> Sandbox {
        let metadata = PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: "n".into(), attempt: 3 };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            labels: [("b".to_owned(), "\u{fffd} ".to_owned()), ("a".to_owned(), String::new())].into(),
            ..Default::default()
        };
        let kept = Kept {
            mark: Some(Mark::Toward(Level::Ready)),
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            shim_address: "unix:///run/x".into(),
            boot_id: "boot".into(),
            resources: Some(LinuxContainerResources { cpu_shares: 7, ..Default::default() }),
            overhead: None,
        };
        Sandbox::new(SandboxId::new("abc"), config, "crun".into(), 17, kept)
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let before = sandbox();
        let record = before.record();
        let read = SandboxRecord::decode("abc", 1, &record.encode()).unwrap();
        assert_eq!(read, record);
        let after = read.into_sandbox();
        assert_eq!(after.config, before.config);
        assert_eq!((after.handler.as_str(), after.created_at), ("crun", 17));
        assert_eq!(after.record(), record);
    }

    #[test]
    fn what_cannot_be_understood_is_said() {
        let record = sandbox().record();
        let error = |version, bytes: &[u8]| SandboxRecord::decode("abc", version, bytes).unwrap_err().to_string();
        assert!(error(2, &record.encode()).contains("newer"));
        assert!(error(1, b"").contains("metadata"));
        assert!(!error(1, b"\xff\xff\xff").is_empty());
        let mut bad = record.clone();
        bad.body.level = 9;
        assert!(error(1, &bad.encode()).contains("level 9"));
        bad = record;
        bad.body.addresses.push("10.0.0".into());
        assert!(error(1, &bad.encode()).contains("10.0.0"));
    }
}
