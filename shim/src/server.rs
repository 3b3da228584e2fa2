//! The serving process: one thread, one socket, until the pod is shut down.

use std::{sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use ttrpc::r#async::{Server, transport::Listener};

use crate::{
    args::Args,
    bootstrap::{bundle, inherited_listener},
    error::{Result, ShimError, Step as _},
    pod::Pod,
    reaper::Reaper,
    seal, service, spans,
};

/// How long calls that are being answered may take when the shim ends.
const GOODBYE: Duration = Duration::from_millis(500);

/// Serves until it is told to end.
pub(crate) fn serve(args: &Args) -> Result<()> {
    vaina_sys::memory::give_back_early();
    let boot = spans::start("boot", &args.id);
    #[cfg(feature = "failpoints")]
    crate::failpoints::announce();
    let listener = inherited_listener().step(|| "take the listening socket".to_owned())?;
    let bundle = bundle(args)?;
    let _ = nix::unistd::setsid();
    vaina_sys::process::set_subreaper().step(|| "become the subreaper".to_owned())?;
    let own = Arc::new(seal::own_executable().step(|| "open the own executable".to_owned())?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .step(|| "start the event loop".to_owned())?;
    runtime.block_on(async {
        let children = Reaper::listen().step(|| "listen for signals".to_owned())?;
        // The node's shutdown or an impatient person must not take a pod's supervisor before the pod: these are taken and
        // nothing comes of them.
        let _ignored = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        let reaper = Reaper::default();
        tokio::spawn(reaper.clone().run(children));
        let pod = Pod::new(args, bundle, own, reaper).step(|| "record the shim".to_owned())?;
        let listener = Listener::try_from(listener).step(|| "listen".to_owned())?;
        let mut server = service::register(Server::new(), &pod).add_listener(listener);
        server.start().await.map_err(|error| ShimError::Invalid(format!("serve: {error}")))?;
        drop(boot);
        pod.ended().await;
        let _end = spans::start("end", &args.id);
        let _ = tokio::time::timeout(GOODBYE, server.shutdown()).await;
        if let Some(path) = args.socket.strip_prefix("unix://") {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    })
}
