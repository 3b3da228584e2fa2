//! An unmodified kubelet of the Kubernetes project runs its pods on the daemon, and what people look at shows them: the
//! kubelet's own servers, crictl, the pod's address and the host.

mod example;
mod examples;
mod images;
mod kubelet;
mod lifecycle;
mod logs;
mod replaced;
mod restarts;
