//! containerd's Sandbox service.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::{
    protobuf::MessageField,
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
        SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse,
        ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
        StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
    },
    sandbox_async::Sandbox,
    types::platform::Platform,
};
use ttrpc::r#async::TtrpcContext;

use super::{convert, detach};
use crate::{
    error::ShimError,
    pod::{Pod, timestamp},
    spans,
};

pub(super) struct Service(pub(super) Arc<Pod>);

#[async_trait]
impl Sandbox for Service {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let _span = spans::start("CreateSandbox", &self.0.id);
        // Waits for nothing, so there is nothing to be dropped half-way.
        self.0.create_sandbox(&convert::namespaces(request)?)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(&self, _: &TtrpcContext, _: StartSandboxRequest) -> ttrpc::Result<StartSandboxResponse> {
        let status = self.0.sandbox_status();
        Ok(StartSandboxResponse {
            pid: status.pid,
            created_at: MessageField::some(timestamp(status.created_at)),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform =
            Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), ..Platform::default() };
        Ok(PlatformResponse { platform: MessageField::some(platform), ..PlatformResponse::default() })
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, _: StopSandboxRequest) -> ttrpc::Result<StopSandboxResponse> {
        let _span = spans::start("StopSandbox", &self.0.id);
        let pod = Arc::clone(&self.0);
        detach(async move {
            pod.stop_sandbox().await;
            Ok(())
        })
        .await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, _: WaitSandboxRequest) -> ttrpc::Result<WaitSandboxResponse> {
        let at = self.0.sandbox_stopped().await;
        Ok(WaitSandboxResponse { exited_at: MessageField::some(timestamp(at)), ..WaitSandboxResponse::default() })
    }

    async fn sandbox_status(&self, _: &TtrpcContext, _: SandboxStatusRequest) -> ttrpc::Result<SandboxStatusResponse> {
        let status = self.0.sandbox_status();
        let ready = status.exited_at == 0;
        Ok(SandboxStatusResponse {
            sandbox_id: self.0.id.clone(),
            pid: status.pid,
            state: if ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.to_owned(),
            created_at: MessageField::some(timestamp(status.created_at)),
            exited_at: if ready { MessageField::none() } else { MessageField::some(timestamp(status.exited_at)) },
            ..SandboxStatusResponse::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, _: PingRequest) -> ttrpc::Result<PingResponse> {
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        _: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let _span = spans::start("ShutdownSandbox", &self.0.id);
        let pod = Arc::clone(&self.0);
        detach(async move {
            pod.shut_down().await;
            Ok(())
        })
        .await?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        _: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        Err(ShimError::Unimplemented("SandboxMetrics").into())
    }
}
