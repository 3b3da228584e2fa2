//! `CreateContainer`: a retry under the same key joins the operation, or gets its result.

use std::{io, sync::Arc};

use oci_spec::image::ImageConfiguration;
use tracing::{Instrument as _, info_span};
use vaina_proto::cri::{ContainerConfig, ContainerEventType};

use super::{
    Container, ContainerImage, ContainerState, ImageVolumeError, Kept, Level, Origin, StepError,
    bundle::BundleError,
    difference, idmap, image_volume, signal,
    steps::{ContainerStep, Walk},
};
use crate::{
    app::App,
    error::{Chain, Classify, Kind},
    events,
    id::{self, ContainerId},
    index::FindError,
    plan::{Drive, Failure, Observed, execute},
    sandbox::{NotReadyError, Sandbox},
    state::WriteError,
    work::{lock, now},
};

/// Why a container is not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No such sandbox.
    #[error(transparent)]
    Find(FindError),
    /// The sandbox is stopped, or on the way.
    #[error(transparent)]
    Sandbox(NotReadyError),
    /// A field that must be there.
    #[error("container config has no {0}")]
    Missing(&'static str),
    /// A field that can't be as it is.
    #[error("container config: {field} {reason}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// The image is not on this node.
    #[error("image {0:?} is not on this node; it must be pulled first")]
    NoImage(String),
    /// A volume that is an image.
    #[error(transparent)]
    ImageVolume(ImageVolumeError),
    /// The key is taken by a container that was asked for with another config.
    #[error("container {id} has the same sandbox, name ({name}) and attempt, and a different {field}")]
    Differs {
        /// The one that is there.
        id: ContainerId,
        /// Of the container.
        name: String,
        /// The first field that differs.
        field: &'static str,
    },
    /// No random numbers.
    #[error("make an id")]
    Id(#[source] io::Error),
    /// A step failed; what was made is undone.
    #[error("create the container")]
    Step(#[source] StepError),
    /// A step failed, and so did undoing what was made.
    #[error("create the container, of which {id} is left: {}", undo(.further))]
    StepAndUndo {
        /// The container that is listed.
        id: ContainerId,
        /// What went wrong first.
        source: StepError,
        /// What went wrong while it was undone.
        further: Vec<StepError>,
    },
    /// The disk.
    #[error("record the container")]
    Sync(#[source] WriteError),
    /// A bug of ours.
    #[error("create the container: the operation ended without an answer")]
    Lost,
}

fn undo(further: &[StepError]) -> String {
    further.iter().map(|error| Chain(error).to_string()).collect::<Vec<_>>().join("; ")
}

impl From<StepError> for CreateError {
    /// The kubelet looks at how the text begins.
    fn from(error: StepError) -> Self {
        match error {
            StepError::Bundle(BundleError::ImageVolume(source)) => Self::ImageVolume(source),
            other => Self::Step(other),
        }
    }
}

impl Classify for CreateError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::Sandbox(source) => source.kind(),
            Self::Missing(_) | Self::Invalid { .. } => Kind::InvalidArgument,
            Self::NoImage(_) => Kind::NotFound,
            Self::Differs { .. } => Kind::AlreadyExists,
            Self::Id(_) | Self::Lost => Kind::Internal,
            Self::Step(source) | Self::StepAndUndo { source, .. } => source.kind(),
            Self::Sync(source) => source.kind(),
            Self::ImageVolume(source) => source.kind(),
        }
    }
}

/// Makes a container in a sandbox, or answers the one that was made under the same key.
pub async fn create(
    app: &Arc<App>,
    sandbox_id: &str,
    config: ContainerConfig,
) -> Result<ContainerId, Arc<CreateError>> {
    let sandbox = app.index.sandboxes.find(sandbox_id).map_err(CreateError::Find)?;
    let metadata = config.metadata.as_ref().ok_or(CreateError::Missing("metadata"))?;
    if metadata.name.is_empty() {
        return Err(Arc::new(CreateError::Missing("metadata.name")));
    }
    check_log_path(&config.log_path)?;
    loop {
        let container = Arc::new(prepare(app, &sandbox, &config)?);
        let container = match app.index.containers.claim(&container) {
            Ok(()) => {
                // Most clients start at once what they have created.
                app.group_moves.announce();
                drop(app.changes.spawn(make(Arc::clone(app), Arc::clone(&container))));
                container
            }
            Err(other) => {
                if let Some(field) = difference(&other.config, &config) {
                    let name = config.metadata.unwrap_or_default().name;
                    return Err(Arc::new(CreateError::Differs { id: other.id.clone(), name, field }));
                }
                other
            }
        };
        if let Some(answer) = outcome(&container).await {
            return answer;
        }
    }
}

pub(crate) fn check_log_path(path: &str) -> Result<(), Arc<CreateError>> {
    let climbs = path.starts_with('/') || path.split('/').any(|part| part == "..");
    if climbs {
        let reason = format!("{path:?} leads out of the pod's log directory");
        return Err(Arc::new(CreateError::Invalid { field: "log_path", reason }));
    }
    Ok(())
}

fn prepare(app: &App, sandbox: &Arc<Sandbox>, config: &ContainerConfig) -> Result<Container, Arc<CreateError>> {
    sandbox.ready().map_err(CreateError::Sandbox)?;
    let asked = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    if asked.is_empty() {
        return Err(Arc::new(CreateError::Missing("image")));
    }
    idmap::check(sandbox, config).map_err(|(field, reason)| CreateError::Invalid { field, reason })?;
    let image = app.images.resolve(asked).ok_or_else(|| CreateError::NoImage(asked.to_owned()))?;
    let stop_signal = stop_signal(config, &image.config)?;
    let origin = Origin {
        id: ContainerId::new(id::random().map_err(CreateError::Id)?),
        sandbox: Arc::clone(sandbox),
        config: config.clone(),
        image: ContainerImage::new(&image, &config.image.clone().unwrap_or_default()),
        volume_images: image_volume::resolve(app, &sandbox.handler, config).map_err(CreateError::ImageVolume)?,
        stop_signal,
        created_at: now(),
    };
    Ok(Container::new(origin, Kept { boot_id: app.boot_id.clone(), ..Kept::default() }))
}

/// The container's, or else the image's, or else `SIGTERM`. Kept from now on: the image may be gone at the stop.
pub(crate) fn stop_signal(config: &ContainerConfig, image: &ImageConfiguration) -> Result<i32, Arc<CreateError>> {
    if let Some(number) = signal::number(config.stop_signal) {
        return Ok(number);
    }
    let of_image = image.config().as_ref().and_then(|config| config.stop_signal().clone()).unwrap_or_default();
    if of_image.is_empty() {
        return Ok(nix::sys::signal::Signal::SIGTERM as i32);
    }
    let invalid =
        || CreateError::Invalid { field: "image", reason: format!("has stop signal {of_image:?}, which is none") };
    signal::parse(&of_image).ok_or_else(|| Arc::new(invalid()))
}

/// Waits for the operation on this container; [`None`] if it was removed in between, so that the key is free again.
async fn outcome(container: &Arc<Container>) -> Option<Result<ContainerId, Arc<CreateError>>> {
    let mut state = container.watch();
    let Ok(state) = state.wait_for(|state| !matches!(state, ContainerState::Creating)).await else {
        return Some(Err(Arc::new(CreateError::Lost)));
    };
    match &*state {
        ContainerState::Failed(error) => Some(Err(Arc::clone(error))),
        ContainerState::Removed => None,
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Running(_)
        | ContainerState::Exited(_)
        | ContainerState::Unknown(_) => match lock(&container.failure).clone() {
            Some(error) => Some(Err(error)),
            None => Some(Ok(container.id.clone())),
        },
    }
}

/// Whatever happens to the operation, nobody waits for it for ever.
struct Settled<'a>(&'a Container);

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        if matches!(self.0.state(), ContainerState::Creating) {
            *lock(&self.0.failure) = Some(Arc::new(CreateError::Lost));
            self.0.publish(ContainerState::Created);
        }
    }
}

async fn make(app: Arc<App>, container: Arc<Container>) {
    let _settled = Settled(&container);
    let _changing = container.changing().await;
    // Looked at with the gate held: a stop that comes later waits for this to end.
    if let Err(error) = container.sandbox.ready() {
        return failed(&app, &container, CreateError::Sandbox(error));
    }
    let walk = Walk::new(&app, &container, None);
    let drive = Drive::<ContainerStep>::new(None, Observed::from_mark::<ContainerStep>(None), Level::Held, Level::Gone);
    match execute(&walk, drive).await {
        Ok(()) => {
            // What the client is told to exist must exist after a loss of power too, or it would run twice.
            if let Err(error) = app.store.sync().instrument(info_span!("sync")).await {
                *lock(&container.failure) = Some(Arc::new(CreateError::Sync(error)));
            }
            container.publish(ContainerState::Created);
            events::container(&app, &container, ContainerEventType::ContainerCreatedEvent);
        }
        Err(Failure { first, further, owed: true }) => {
            let error = CreateError::StepAndUndo { id: container.id.clone(), source: first, further };
            *lock(&container.failure) = Some(Arc::new(error));
            container.publish(ContainerState::Created);
            events::container(&app, &container, ContainerEventType::ContainerCreatedEvent);
        }
        Err(Failure { first, owed: false, .. }) => failed(&app, &container, first.into()),
    }
}

/// Nothing is left of it: the key is free before anybody hears of the failure.
fn failed(app: &App, container: &Container, error: CreateError) {
    app.index.containers.remove(container);
    container.publish(ContainerState::Failed(Arc::new(error)));
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
    use vaina_proto::cri::Signal;

    use super::*;

    #[test]
    fn the_stop_signal_is_the_containers_then_the_images_then_term() {
        let image = |signal: Option<&str>| {
            let config = match signal {
                Some(signal) => ConfigBuilder::default().stop_signal(signal).build().unwrap(),
                None => ConfigBuilder::default().build().unwrap(),
            };
            let builder = ImageConfigurationBuilder::default().config(config);
            let builder = builder.os("linux").architecture("amd64");
            let rootfs = oci_spec::image::RootFsBuilder::default().typ("layers").diff_ids(Vec::new()).build().unwrap();
            builder.rootfs(rootfs).build().unwrap()
        };
        let config = |signal: Signal| ContainerConfig { stop_signal: signal.into(), ..Default::default() };
        assert_eq!(stop_signal(&config(Signal::RuntimeDefault), &image(None)).unwrap(), 15);
        assert_eq!(stop_signal(&config(Signal::RuntimeDefault), &image(Some("SIGQUIT"))).unwrap(), 3);
        assert_eq!(stop_signal(&config(Signal::Sigusr1), &image(Some("SIGQUIT"))).unwrap(), 10);
        assert!(stop_signal(&config(Signal::RuntimeDefault), &image(Some("SIGNOPE"))).is_err());
    }

    #[test]
    fn a_log_stays_in_its_directory() {
        for (path, good) in
            [("", true), ("web/0.log", true), ("/web/0.log", false), ("../0.log", false), ("a/../../b", false)]
        {
            assert_eq!(check_log_path(path).is_ok(), good, "{path}");
        }
    }
}
