//! The ttrpc edge: convert, call, convert. No state, no locks.
//!
//! A client that leaves, or whose deadline passes, has its handler dropped: each call that changes anything runs in a task of
//! its own and so to its end.

mod convert;
mod pod;
mod sandbox;
mod task;

use std::{future::Future, io::Write as _, sync::Arc};

use containerd_shim_protos::{
    protobuf::Message as _, sandbox_async::create_sandbox, shim_async::create_task, types::introspection::RuntimeInfo,
};
use ttrpc::r#async::Server;
use vaina_proto::shim::create_pod;

use crate::{
    error::{Result, ShimError, Step as _},
    pod::Pod,
};

/// What the shim serves: Task under both of its names, Sandbox, and `vaina.shim.v1`.
pub(crate) fn register(server: Server, pod: &Arc<Pod>) -> Server {
    let task = || create_task(Arc::new(task::Service(Arc::clone(pod))));
    // containerd 1.x calls the same messages by version 2's name.
    let older = task().into_values().map(|service| ("containerd.task.v2.Task".to_owned(), service)).collect();
    server
        .register_service(task())
        .register_service(older)
        .register_service(create_sandbox(Arc::new(sandbox::Service(Arc::clone(pod)))))
        .register_service(create_pod(Arc::new(pod::Service(Arc::clone(pod)))))
}

/// `-info`: what a containerd asks before it starts a shim.
pub(crate) fn info() -> Result<()> {
    let info = RuntimeInfo { name: "io.containerd.vaina.v1".to_owned(), ..RuntimeInfo::default() };
    let bytes = info.write_to_bytes().map_err(|error| ShimError::Invalid(error.to_string()))?;
    std::io::stdout().write_all(&bytes).step(|| "print runtime information".to_owned())
}

/// Runs a call to its end whoever waits for it.
async fn detach<T: Send + 'static>(call: impl Future<Output = Result<T>> + Send + 'static) -> ttrpc::Result<T> {
    match tokio::spawn(call).await {
        Ok(answer) => answer.map_err(ttrpc::Error::from),
        Err(error) => Err(ShimError::Invalid(format!("run call: {error}")).into()),
    }
}
