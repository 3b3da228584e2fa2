//! The CRI's image service.

use std::{convert::Infallible, sync::Arc};

use tonic::{Request, Response, Status, async_trait};
use vaina_proto::cri::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, Int64Value, ListImagesRequest, ListImagesResponse, PullImageRequest,
    PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
    image_service_server::ImageService,
};

use super::{
    chunks::{Chunks, chunks},
    status::status,
    trace::{About, change, read},
};
use crate::{
    app::App,
    error::{Classify, Kind},
    image::{self, Credentials, ImageUser, PullError, PullRequest},
    info, stats,
};

pub(super) struct Images {
    pub(super) app: Arc<App>,
}

impl Images {
    fn list(&self, filter: Option<ImageFilter>) -> Vec<Image> {
        let name = filter.and_then(|filter| filter.image).unwrap_or_default().image;
        let images =
            if name.is_empty() { self.app.images.list() } else { self.app.images.resolve(&name).into_iter().collect() };
        images.iter().map(|image| message(image)).collect()
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("look at the image file system")]
    FileSystem(#[source] std::io::Error),
}

impl Classify for ReadError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

impl Classify for Infallible {
    fn kind(&self) -> Kind {
        match *self {}
    }
}

fn name(spec: Option<&ImageSpec>) -> Result<String, Status> {
    match spec {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image.clone()),
        _ => Err(Status::invalid_argument("the request names no image")),
    }
}

/// The kubelet tells a registry that is away from all else by the first word of the text (cri-api `pkg/errors`), and
/// sees the text bare under code Unknown only.
fn registry_unavailable(status: &Status) -> Status {
    Status::unknown(format!("RegistryUnavailable: {}", status.message()))
}

fn message(image: &image::Image) -> Image {
    let (uid, username) = match image.user() {
        ImageUser::Unset => (Some(Int64Value { value: 0 }), String::new()),
        ImageUser::Uid(uid) => (Some(Int64Value { value: uid.into() }), String::new()),
        ImageUser::Name(name) => (None, name),
    };
    Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        // The kubelet takes 0 for a broken answer; an image without files has at least its config.
        size: image.size.max(1),
        uid,
        username,
        spec: Some(ImageSpec { image: image.id.to_string(), ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}

#[async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.list(request.into_inner().filter);
        read("ListImages", Ok::<_, Infallible>(ListImagesResponse { images }))
    }

    type StreamImagesStream = Chunks<StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.list(request.into_inner().filter);
        Ok(chunks("StreamImages", images, |images| StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = name(request.image.as_ref())?;
        // An image that is not there is an empty answer, not an error.
        let found = self.app.images.resolve(&name);
        let mut response = ImageStatusResponse { image: found.as_deref().map(message), ..Default::default() };
        if let Some(image) = found.filter(|_| request.verbose) {
            response.info = info::image(&image);
        }
        read("ImageStatus", Ok::<_, Infallible>(response))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let reference = name(request.image.as_ref())?;
        let auth = match &request.auth {
            Some(auth) => Credentials::from_cri(auth).map_err(|error| status(&error))?,
            None => None,
        };
        let about = About::image(&reference);
        let mut is_unavailable = false;
        let answer = change("PullImage", about, async {
            let pulled = self.app.images.pull(PullRequest { reference, auth }).await;
            is_unavailable = pulled.as_ref().is_err_and(PullError::is_registry_unavailable);
            pulled.map(|image| PullImageResponse { image_ref: image.id.to_string() })
        })
        .await;
        answer.map_err(|status| if is_unavailable { registry_unavailable(&status) } else { status })
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = name(request.into_inner().image.as_ref())?;
        change("RemoveImage", About::image(&name), async {
            self.app.images.remove(&name).await.map(|()| RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Result<Response<ImageFsInfoResponse>, Status> {
        let info = self.app.images.fs_info().map_err(ReadError::FileSystem);
        let usage = |info: image::FsInfo| {
            let since = info.at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            FilesystemUsage {
                timestamp: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
                fs_id: Some(FilesystemIdentifier { mountpoint: info.mountpoint.to_string_lossy().into_owned() }),
                used_bytes: Some(UInt64Value { value: info.used_bytes }),
                inodes_used: Some(UInt64Value { value: info.used_inodes }),
            }
        };
        let written = stats::written(&self.app);
        // Writable layers lie on the same file system, which is told by the same mount point.
        let answer = info.map(usage).map(|usage| ImageFsInfoResponse {
            container_filesystems: vec![FilesystemUsage {
                used_bytes: Some(UInt64Value { value: written.bytes }),
                inodes_used: Some(UInt64Value { value: written.inodes }),
                ..usage.clone()
            }],
            image_filesystems: vec![usage],
        });
        read("ImageFsInfo", answer)
    }
}
