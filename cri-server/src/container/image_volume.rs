//! Volumes that are images: which images a container needs for them, where in such an image a sub path is, and how the
//! mounts are told.
//!
//! An image of a volume is mounted read-only in the bundle by the shim, in the mount namespace of the container's create, and
//! bound from there by the OCI runtime. So it ends with the container's processes, the host never has a mount of it, and
//! until the container is removed the image is held like the one that it runs.
//!
//! Texts begin with the word by which the kubelet counts failed image volumes.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use vaina_proto::cri::{ContainerConfig, ImageSpec, Mount, MountPropagation};

use super::{Container, ContainerImage};
use crate::{
    app::App,
    error::{Classify, Kind},
    image::{
        Image,
        view::{self, Place},
    },
    runtime::Handler,
};

/// Why a volume can't be an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageVolumeError {
    /// The image is not on this node.
    #[error("ImageVolumeMountFailed: image {image:?} for {target} is not on this node; it must be pulled first")]
    NoImage {
        /// As asked for.
        image: String,
        /// Path in the container.
        target: String,
    },
    /// The mount can't be as it is.
    #[error("ImageVolumeMountFailed: image {image:?} for {target}: {field} {reason}")]
    Invalid {
        /// As asked for.
        image: String,
        /// Path in the container.
        target: String,
        /// Of the mount.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// The shim of another project has no way to be told.
    #[error(
        "ImageVolumeMountFailed: image {image:?} is not supported: the shim of handler {handler:?} mounts no images"
    )]
    Handler {
        /// As asked for.
        image: String,
        /// The pod's.
        handler: String,
    },
    /// There is nothing at the sub path.
    #[error("ImageVolumeMountFailed: image_sub_path {path:?} does not exist in image {image:?}")]
    NoSubPath {
        /// As asked for.
        image: String,
        /// As asked for.
        path: String,
    },
    /// The image can't be read.
    #[error("ImageVolumeMountFailed: look for image_sub_path {path:?} in image {image:?}")]
    Look {
        /// As asked for.
        image: String,
        /// As asked for.
        path: String,
        /// Cause.
        source: io::Error,
    },
}

impl Classify for ImageVolumeError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoImage { .. } | Self::NoSubPath { .. } => Kind::NotFound,
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::Handler { .. } => Kind::Unimplemented,
            Self::Look { .. } => Kind::Internal,
        }
    }
}

/// The image that a mount names, if it is one of an image.
pub(crate) fn image_of(mount: &Mount) -> Option<&ImageSpec> {
    mount.image.as_ref().filter(|image| !image.image.is_empty())
}

/// The images of all mounts that name one, in their order, as they are now: names move.
pub(super) fn resolve(
    app: &App,
    handler: &str,
    config: &ContainerConfig,
) -> Result<Vec<ContainerImage>, ImageVolumeError> {
    let mounts_images = app.handlers.get(handler).is_some_and(Handler::has_own_shim);
    let asked = config.mounts.iter().filter_map(|mount| Some((mount, image_of(mount)?)));
    asked
        .map(|(mount, asked)| {
            if !mounts_images {
                let (image, handler) = (asked.image.clone(), handler.to_owned());
                return Err(ImageVolumeError::Handler { image, handler });
            }
            check(mount, &asked.image)?;
            let image = app.images.resolve(&asked.image).ok_or_else(|| ImageVolumeError::NoImage {
                image: asked.image.clone(),
                target: mount.container_path.clone(),
            })?;
            Ok(ContainerImage::new(&image, asked))
        })
        .collect()
}

fn check(mount: &Mount, image: &str) -> Result<(), ImageVolumeError> {
    let refuse = |field, reason: String| {
        let (image, target) = (image.to_owned(), mount.container_path.clone());
        Err(ImageVolumeError::Invalid { image, target, field, reason })
    };
    if !mount.host_path.is_empty() {
        return refuse("host_path", format!("is {:?}, and there can only be one of it and image", mount.host_path));
    }
    if !mount.readonly {
        return refuse("readonly", "must be set, since images are not written to".to_owned());
    }
    if mount.propagation() == MountPropagation::PropagationBidirectional {
        return refuse("propagation", "is bidirectional, and there is no mount on the host to pass on to".to_owned());
    }
    let leaves = |part: Component<'_>| !matches!(part, Component::Normal(_) | Component::CurDir);
    if Path::new(&mount.image_sub_path).components().any(leaves) {
        return refuse("image_sub_path", format!("{:?} is not a path below the image's root", mount.image_sub_path));
    }
    Ok(())
}

/// Which directory of `image` a mount shows, without links, from the image's root. Blocking.
pub(super) fn directory(mount: &Mount, image: &Image) -> Result<PathBuf, ImageVolumeError> {
    let (name, path) = (image_of(mount).map(|image| image.image.clone()).unwrap_or_default(), &mount.image_sub_path);
    match view::find(&image.layers, Path::new(path)) {
        Ok(Place::Directory(directory)) => Ok(directory),
        Ok(Place::Missing) => Err(ImageVolumeError::NoSubPath { image: name, path: path.clone() }),
        Ok(Place::Other) => Err(ImageVolumeError::Invalid {
            image: name,
            target: mount.container_path.clone(),
            field: "image_sub_path",
            reason: format!("{path:?} is not a directory of it"),
        }),
        Err(source) => Err(ImageVolumeError::Look { image: name, path: path.clone(), source }),
    }
}

/// The images of a container's volumes, each once, and which of these a mount shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mounted<'a> {
    /// In the order of their first mounts.
    pub(super) images: Vec<&'a ContainerImage>,
    /// For each mount that names an image.
    pub(super) shown: Vec<usize>,
}

impl<'a> Mounted<'a> {
    pub(super) fn new(all: &'a [ContainerImage]) -> Self {
        let mut mounted = Self::default();
        for image in all {
            let known = mounted.images.iter().position(|other| other.id == image.id);
            mounted.shown.push(known.unwrap_or(mounted.images.len()));
            if known.is_none() {
                mounted.images.push(image);
            }
        }
        mounted
    }
}

/// Where in the bundle an image is mounted, by its number in [`Mounted::images`].
pub(super) fn place(number: usize) -> PathBuf {
    Path::new("images").join(number.to_string())
}

/// The mounts as a status tells them. The kubelet takes an image for one in use by its id there.
pub(super) fn told(container: &Container) -> Vec<Mount> {
    let mut images = container.volume_images.iter();
    let told = container.config.mounts.iter().map(|mount| match image_of(mount).and_then(|_| images.next()) {
        Some(image) => {
            let asked = mount.image.clone().unwrap_or_default();
            let spec = ImageSpec { image: image.id.to_string(), image_ref: image.reference.clone(), ..asked };
            Mount { image: Some(spec), ..mount.clone() }
        }
        None => mount.clone(),
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ImageId;

    fn mount(change: impl FnOnce(&mut Mount)) -> Mount {
        let image = ImageSpec { image: "data:1".into(), ..Default::default() };
        let mut mount =
            Mount { container_path: "/data".into(), readonly: true, image: Some(image), ..Default::default() };
        change(&mut mount);
        mount
    }

    #[test]
    fn what_can_not_be_is_named_and_begins_with_the_kubelets_word() {
        check(&mount(|mount| mount.image_sub_path = "a/./b".into()), "data:1").unwrap();
        for (bad, word) in [
            (mount(|mount| mount.readonly = false), "readonly"),
            (mount(|mount| mount.host_path = "/srv".into()), "/srv"),
            (mount(|mount| mount.image_sub_path = "/etc".into()), "image_sub_path \"/etc\""),
            (mount(|mount| mount.image_sub_path = "a/../../b".into()), "a/../../b"),
            (mount(|mount| mount.set_propagation(MountPropagation::PropagationBidirectional)), "propagation"),
        ] {
            let text = check(&bad, "data:1").unwrap_err().to_string();
            assert!(text.starts_with("ImageVolumeMountFailed") && text.contains(word), "{text}");
        }
    }

    #[test]
    fn an_image_is_mounted_once_however_often_it_is_shown() {
        let image = |id: &str| ContainerImage { id: ImageId::new(id), name: id.into(), reference: id.into() };
        let all = [image("a"), image("b"), image("a")];
        let mounted = Mounted::new(&all);
        assert_eq!(mounted.images, [&all[0], &all[1]]);
        assert_eq!(mounted.shown, [0, 1, 0]);
    }
}
