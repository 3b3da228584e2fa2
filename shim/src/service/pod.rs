//! `vaina.shim.v1`: what our daemon needs beyond containerd's services.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vaina_proto::shim::{
    AttachRequest, AttachResponse, ExitReport, HelloRequest, HelloResponse, InspectRequest, InspectResponse,
    Pod as PodService, ReopenLogRequest, ReopenLogResponse, StopRequest, StopResponse, WaitExitRequest,
};

use super::convert;
use crate::{
    error::{ShimError, Step as _},
    pod::Pod,
    spans,
};

/// Version of `vaina.shim.v1` that is spoken.
const CONTRACT: u32 = 1;

pub(super) struct Service(pub(super) Arc<Pod>);

#[async_trait]
impl PodService for Service {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        Ok(HelloResponse {
            contract: CONTRACT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ..HelloResponse::default()
        })
    }

    async fn inspect(&self, _: &TtrpcContext, _: InspectRequest) -> ttrpc::Result<InspectResponse> {
        Ok(InspectResponse {
            sandbox_id: self.0.id.clone(),
            sandbox_pid: self.0.sandbox_status().pid,
            containers: self.0.all().iter().map(|container| convert::inspect(container)).collect(),
            ..InspectResponse::default()
        })
    }

    async fn wait_exit(&self, _: &TtrpcContext, request: WaitExitRequest) -> ttrpc::Result<ExitReport> {
        let container = self.0.container(&request.id)?;
        Ok(container.init.wait().await)
    }

    async fn stop(&self, _: &TtrpcContext, request: StopRequest) -> ttrpc::Result<StopResponse> {
        let _span = spans::start("Stop", &request.id);
        let container = self.0.container(&request.id)?;
        let signal = i32::try_from(request.signal)
            .map_err(|_| ShimError::Invalid(format!("signal {} is not valid", request.signal)))?;
        // A negative time is none.
        let grace = Duration::from_nanos(u64::try_from(request.grace).unwrap_or(0));
        container.stop(signal, grace, request.anew)?;
        Ok(StopResponse::default())
    }

    async fn reopen_log(&self, _: &TtrpcContext, request: ReopenLogRequest) -> ttrpc::Result<ReopenLogResponse> {
        let container = self.0.container(&request.id)?;
        match container.init.reopen_log() {
            Some(reopened) => reopened.step(|| "reopen the log".to_owned())?,
            None => return Err(ShimError::Precondition(format!("container {:?} has no log", request.id)).into()),
        }
        Ok(ReopenLogResponse::default())
    }

    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> ttrpc::Result<AttachResponse> {
        let container = self.0.container(&request.id)?;
        let stdin = container.attach(&request.stdin, &request.stdout, &request.stderr)?;
        Ok(AttachResponse { stdin, ..AttachResponse::default() })
    }
}
