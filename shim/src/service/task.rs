//! containerd's Task service, versions 2 and 3.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
        ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
        StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    protobuf::MessageField,
    shim_async::Task,
};
use ttrpc::r#async::TtrpcContext;

use super::{convert, detach};
use crate::{
    error::{ShimError, Step as _},
    pod::{Pod, timestamp},
    process::Stdio,
    spans,
};

pub(super) struct Service(pub(super) Arc<Pod>);

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        Ok(convert::state(&container, &request.exec_id, &process))
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let _span = spans::start("Create", &request.id);
        let create = convert::create(&self.0, request)?;
        let pod = Arc::clone(&self.0);
        let pid = detach(async move { pod.create(create).await }).await?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let _span = spans::start("Start", &request.id);
        let pod = Arc::clone(&self.0);
        let pid = detach(async move { pod.start(&request.id, &request.exec_id).await }).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let _span = spans::start("Delete", &request.id);
        let pod = Arc::clone(&self.0);
        let (pid, report) = detach(async move { pod.delete(&request.id, &request.exec_id).await }).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: report.exit_code,
            exited_at: MessageField::some(timestamp(report.exited_at)),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = self.0.container(&request.id)?.pids()?;
        let processes = pids.into_iter().map(convert::process_info).collect();
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        detach(async move { container.freeze(true).await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        detach(async move { container.freeze(false).await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(ShimError::Unimplemented("Checkpoint").into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let signal = i32::try_from(request.signal)
            .map_err(|_| ShimError::Invalid(format!("signal {} is not valid", request.signal)))?;
        detach(async move { container.kill(&request.exec_id, signal, request.all).await }).await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let spec = request.spec.into_option().map(|any| any.value).unwrap_or_default();
        let stdio =
            Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        self.0.prepare_exec(&request.id, &request.exec_id, stdio, spec)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        let terminal =
            process.terminal().ok_or_else(|| ShimError::Precondition("the process has no terminal".to_owned()))?;
        let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
        vaina_sys::pty::resize(&*terminal, side(request.width), side(request.height))
            .step(|| "resize the terminal".to_owned())?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let resources = request
            .resources
            .into_option()
            .map(|any| any.value)
            .ok_or_else(|| ShimError::Invalid("the update names no resources".to_owned()))?;
        detach(async move { container.update(&resources).await }).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        let report = process.wait().await;
        Ok(WaitResponse {
            exit_status: report.exit_code,
            exited_at: MessageField::some(timestamp(report.exited_at)),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, _: StatsRequest) -> ttrpc::Result<StatsResponse> {
        Err(ShimError::Unimplemented("Stats").into())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let task_pid = self.0.container(&request.id).map(|container| container.init.phase().pid()).unwrap_or(0);
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        // Sent after each task's end; the pod's other containers still need the shim.
        if request.now || self.0.is_empty() {
            let pod = Arc::clone(&self.0);
            tokio::spawn(async move { pod.shut_down().await });
        }
        Ok(Empty::default())
    }
}
