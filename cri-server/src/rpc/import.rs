//! `vaina.images.v1`: imports an archive that the caller has open. Convert, call, convert.
//!
//! The caller names a descriptor of its own process, and the kernel's word on who it is (`SO_PEERCRED`) makes the path:
//! so it can only offer files that it could open itself. Root only, like the socket; checked again here, because this
//! call reads files of other processes.

use std::path::PathBuf;

use tonic::{Code, Request, Response, Status, async_trait, transport::server::UdsConnectInfo};
use vaina_proto::images::{ImportRequest, ImportResponse, ImportedImage, images_server::Images};

use crate::{
    error::{Chain, Classify, Kind},
    image::{ImageStore, Reference},
};

/// The service; mounted beside the CRI.
#[derive(Debug, Clone)]
pub struct ImportService {
    images: ImageStore,
}

impl ImportService {
    /// Imports into `images`.
    pub fn new(images: ImageStore) -> Self {
        Self { images }
    }
}

#[async_trait]
impl Images for ImportService {
    async fn import(&self, request: Request<ImportRequest>) -> Result<Response<ImportResponse>, Status> {
        let path = caller_file(&request)?;
        let name = match request.get_ref().name.as_str() {
            "" => None,
            name => {
                Some(name.parse::<Reference>().map_err(|error| Status::invalid_argument(Chain(&error).to_string()))?)
            }
        };
        let images = self.images.import(&path, name).await.map_err(|error| status(&error))?;
        let images = images.iter().map(|image| ImportedImage {
            id: image.id.to_string(),
            repo_tags: image.repo_tags.clone(),
            repo_digests: image.repo_digests.clone(),
            size: image.size,
        });
        Ok(Response::new(ImportResponse { images: images.collect() }))
    }
}

/// The caller's descriptor as a path of ours.
fn caller_file(request: &Request<ImportRequest>) -> Result<PathBuf, Status> {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let peer = peer.ok_or_else(|| Status::unauthenticated("the caller of import is unknown"))?;
    if peer.uid() != 0 {
        return Err(Status::permission_denied("import is for root only"));
    }
    // 0 stands for a process that our PID namespace does not show.
    let pid = peer.pid().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| Status::failed_precondition("the caller of import is in a foreign PID namespace"))?;
    match request.get_ref().descriptor {
        descriptor @ 0.. => Ok(PathBuf::from(format!("/proc/{pid}/fd/{descriptor}"))),
        descriptor => Err(Status::invalid_argument(format!("{descriptor} is not a descriptor"))),
    }
}

fn status(error: &impl Classify) -> Status {
    let code = match error.kind() {
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    };
    Status::new(code, Chain(error).to_string())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd as _, path::Path};

    use tokio::net::{UnixListener, UnixStream};
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::transport::{Endpoint, Server, Uri};
    use vaina_proto::images::{images_client::ImagesClient, images_server::ImagesServer};

    use super::*;
    use crate::{image::ImageConfig, state::Store};

    async fn serve(dir: &Path) -> ImagesClient<tonic::transport::Channel> {
        let state = Store::open(&dir.join("state.db")).unwrap();
        let images = ImageStore::open(ImageConfig::new(dir.join("images")), state).await.unwrap();
        let socket = dir.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let service = ImagesServer::new(ImportService::new(images));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener)));
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        ImagesClient::new(Endpoint::from_static("http://vaina").connect_with_connector(connect).await.unwrap())
    }

    mod root {
        use super::*;

        #[tokio::test]
        async fn imports_a_descriptor_of_the_caller() {
            let dir = tempfile::tempdir().unwrap();
            let mut client = serve(dir.path()).await;
            let path = dir.path().join("archive");
            std::fs::write(&path, crate::image::testing::small_archive("a:1")).unwrap();
            let archive = File::open(&path).unwrap();
            // The name is gone, the descriptor is not.
            std::fs::remove_file(&path).unwrap();
            let request = |descriptor, name: &str| ImportRequest { descriptor, name: name.to_owned() };
            let answer = client.import(request(archive.as_raw_fd(), "")).await.unwrap().into_inner();
            assert_eq!(answer.images[0].repo_tags, ["docker.io/library/a:1"]);
            let answer = client.import(request(archive.as_raw_fd(), "b")).await.unwrap().into_inner();
            assert_eq!(answer.images[0].repo_tags.len(), 2);

            for (descriptor, name, code) in [
                (-1, "", Code::InvalidArgument),
                (1_000_000, "", Code::NotFound),
                (archive.as_raw_fd(), "A B", Code::InvalidArgument),
            ] {
                assert_eq!(client.import(request(descriptor, name)).await.unwrap_err().code(), code);
            }
            let (socket, _other) = UnixStream::pair().unwrap();
            let status = client.import(request(socket.as_raw_fd(), "")).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        }
    }
}
