//! The gRPC edge: convert, call a verb, convert. Nothing below sees tonic; nothing here touches disk, locks or waits by
//! itself.

mod chunks;
mod deadline;
mod image;
pub mod import;
mod runtime;
mod status;
mod trace;

use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use vaina_proto::{
    cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
    images::images_server::ImagesServer,
};

use crate::app::App;

/// What clients take: longer answers would only be refused there.
const MESSAGE_LIMIT: usize = 16 << 20;

/// Serves until `stop`, then until the answers that are under way are out.
pub async fn serve(
    app: Arc<App>,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let import = import::ImportService::new(app.images.clone());
    let runtime = RuntimeServiceServer::new(runtime::Runtime { app: Arc::clone(&app) })
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let image = ImageServiceServer::new(image::Images { app })
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    tonic::transport::Server::builder()
        .layer(deadline::DeadlineLayer)
        .add_service(runtime)
        .add_service(image)
        .add_service(ImagesServer::new(import))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
}
