//! What is recorded of a container. A protobuf message of our own around the CRI's: fields are added, never renumbered.

use std::{error::Error, sync::Arc};

use prost::Message;
use vaina_proto::cri::{ContainerConfig, LinuxContainerResources};

use super::{Container, ContainerImage, Exit, Kept, Level, Origin, User};
use crate::{
    id::{ContainerId, ImageId, SandboxId},
    plan::Mark,
    sandbox::Sandbox,
    state::Record,
};

/// A container as it is on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerRecord {
    id: ContainerId,
    body: Body,
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(message, optional, tag = "1")]
    config: Option<ContainerConfig>,
    #[prost(string, tag = "2")]
    sandbox: String,
    #[prost(string, tag = "3")]
    image_id: String,
    #[prost(string, tag = "4")]
    image_name: String,
    #[prost(string, tag = "5")]
    image_reference: String,
    #[prost(int32, tag = "6")]
    stop_signal: i32,
    #[prost(int64, tag = "7")]
    created_at: i64,
    /// 1 Held, 2 Running.
    #[prost(uint32, tag = "8")]
    level: u32,
    /// On the way to the level, not at it.
    #[prost(bool, tag = "9")]
    toward: bool,
    #[prost(int64, tag = "10")]
    started_at: i64,
    #[prost(message, optional, tag = "11")]
    exit: Option<ExitBody>,
    #[prost(string, tag = "12")]
    boot_id: String,
    #[prost(message, optional, tag = "13")]
    user: Option<UserBody>,
    #[prost(message, optional, tag = "14")]
    resources: Option<LinuxContainerResources>,
    #[prost(message, repeated, tag = "15")]
    volume_images: Vec<ImageBody>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageBody {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    reference: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExitBody {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    reason: String,
    #[prost(string, tag = "3")]
    message: String,
    #[prost(int64, tag = "4")]
    started_at: i64,
    #[prost(int64, tag = "5")]
    finished_at: i64,
}

#[derive(Clone, PartialEq, Message)]
struct UserBody {
    #[prost(uint32, tag = "1")]
    uid: u32,
    #[prost(uint32, tag = "2")]
    gid: u32,
    #[prost(uint32, repeated, tag = "3")]
    groups: Vec<u32>,
}

impl ContainerRecord {
    pub(super) fn new(container: &Container, kept: &Kept) -> Self {
        let (level, toward) = match kept.mark {
            Some(Mark::At(level)) => (level, false),
            Some(Mark::Toward(level)) => (level, true),
            None => (Level::Gone, true),
        };
        Self {
            id: container.id.clone(),
            body: Body {
                config: Some(container.config.clone()),
                sandbox: container.sandbox.id.to_string(),
                image_id: container.image.id.to_string(),
                image_name: container.image.name.clone(),
                image_reference: container.image.reference.clone(),
                stop_signal: container.stop_signal,
                created_at: container.created_at,
                level: level as u32,
                toward,
                started_at: kept.started_at,
                exit: kept.exit.clone().map(|Exit { code, reason, message, started_at, finished_at }| ExitBody {
                    code,
                    reason,
                    message,
                    started_at,
                    finished_at,
                }),
                boot_id: kept.boot_id.clone(),
                user: kept.user.clone().map(|User { uid, gid, groups }| UserBody { uid, gid, groups }),
                resources: kept.resources.clone(),
                volume_images: container
                    .volume_images
                    .iter()
                    .cloned()
                    .map(|ContainerImage { id, name, reference }| ImageBody { id: id.to_string(), name, reference })
                    .collect(),
            },
        }
    }

    /// The pod that it belongs to.
    pub(crate) fn sandbox(&self) -> SandboxId {
        SandboxId::new(self.body.sandbox.clone())
    }

    /// The object that it tells of, in no published state yet.
    pub(crate) fn into_container(self, sandbox: Arc<Sandbox>) -> Container {
        let body = self.body;
        let level = level_of(body.level).unwrap_or(Level::Gone);
        let kept = Kept {
            mark: Some(if body.toward { Mark::Toward(level) } else { Mark::At(level) }),
            started_at: body.started_at,
            exit: body.exit.map(|ExitBody { code, reason, message, started_at, finished_at }| Exit {
                code,
                reason,
                message,
                started_at,
                finished_at,
            }),
            boot_id: body.boot_id,
            user: body.user.map(|UserBody { uid, gid, groups }| User { uid, gid, groups }),
            resources: body.resources,
        };
        let origin = Origin {
            id: self.id,
            sandbox,
            config: body.config.unwrap_or_default(),
            image: ContainerImage {
                id: ImageId::new(body.image_id),
                name: body.image_name,
                reference: body.image_reference,
            },
            volume_images: body
                .volume_images
                .into_iter()
                .map(|ImageBody { id, name, reference }| ContainerImage { id: ImageId::new(id), name, reference })
                .collect(),
            stop_signal: body.stop_signal,
            created_at: body.created_at,
        };
        Container::new(origin, kept)
    }
}

fn level_of(number: u32) -> Option<Level> {
    [Level::Gone, Level::Held, Level::Running].into_iter().find(|level| *level as u32 == number)
}

impl Record for ContainerRecord {
    const TABLE: &'static str = "container";
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
        if body.sandbox.is_empty() {
            return Err("it names no sandbox".into());
        }
        level_of(body.level).ok_or_else(|| format!("level {} is not known", body.level))?;
        Ok(Self { id: ContainerId::new(key), body })
    }
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::ContainerMetadata;

    use super::*;

    pub(crate) fn container(kept: Kept) -> Container {
        let sandbox = Sandbox::new(SandboxId::new("pod"), Default::default(), String::new(), 1, Default::default());
        let origin = Origin {
            id: ContainerId::new("abc"),
            sandbox: Arc::new(sandbox),
            config: ContainerConfig {
                metadata: Some(ContainerMetadata { name: "web".into(), attempt: 2 }),
                args: vec!["a".into(), String::new()],
                ..Default::default()
            },
            image: ContainerImage { id: ImageId::new("sha256:1"), name: "web:1".into(), reference: "web@2".into() },
            volume_images: vec![ContainerImage {
                id: ImageId::new("sha256:3"),
                name: "data:1".into(),
                reference: "data@4".into(),
            }],
            stop_signal: 37,
            created_at: 5,
        };
        Container::new(origin, kept)
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let kept = Kept {
            mark: Some(Mark::At(Level::Held)),
            started_at: 6,
            exit: Some(Exit {
                code: 137,
                reason: "OOMKilled".into(),
                message: "m".into(),
                started_at: 6,
                finished_at: 9,
            }),
            boot_id: "b".into(),
            user: Some(User { uid: 1, gid: 2, groups: vec![2, 3] }),
            resources: Some(LinuxContainerResources { cpu_shares: 7, ..Default::default() }),
        };
        let before = container(kept);
        let record = before.record();
        let read = ContainerRecord::decode("abc", 1, &record.encode()).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.sandbox().as_str(), "pod");
        let after = read.into_container(Arc::clone(&before.sandbox));
        assert_eq!(after.config, before.config);
        assert_eq!(after.image, before.image);
        assert_eq!(after.volume_images, before.volume_images);
        assert_eq!(after.resources().unwrap().cpu_shares, 7);
        assert_eq!(after.record(), record);
    }

    #[test]
    fn what_cannot_be_understood_is_said() {
        let record = container(Kept { mark: Some(Mark::Toward(Level::Running)), ..Kept::default() }).record();
        let error = |version, bytes: &[u8]| ContainerRecord::decode("abc", version, bytes).unwrap_err().to_string();
        assert!(error(2, &record.encode()).contains("newer"));
        assert!(error(1, b"").contains("metadata"));
        let mut bad = record.clone();
        bad.body.sandbox.clear();
        assert!(error(1, &bad.encode()).contains("sandbox"));
        bad = record;
        bad.body.level = 7;
        assert!(error(1, &bad.encode()).contains("level 7"));
    }
}
