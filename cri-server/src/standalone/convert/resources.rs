//! Requests and limits as cgroup values, and the pod's quality of service, by the kubelet's rules.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use vaina_proto::cri;

use super::{super::quantity::Quantity, Host};

const CPU_PERIOD: i64 = 100_000;
/// The kernel takes no smaller quota.
const MIN_QUOTA: i64 = 1_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Guaranteed pods are killed after everything but the node's own daemons (-999).
const GUARANTEED_OOM: i64 = -997;
const BEST_EFFORT_OOM: i64 = 1000;

/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// What one container asks for; zero is "not given", as in the kubelet.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    cpu_request: Quantity,
    cpu_limit: Quantity,
    memory_request: Quantity,
    memory_limit: Quantity,
}

impl Wanted {
    fn of(container: &Container) -> Self {
        let resources = container.resources.clone().unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        let requests = resources.requests.unwrap_or_default();
        let limit = |name: &str| limits.get(name).and_then(|text| Quantity::try_from(text).ok()).unwrap_or_default();
        // The API server fills a request that is not given from the limit.
        let request = |name: &str| {
            requests.get(name).map_or_else(|| limit(name), |text| Quantity::try_from(text).unwrap_or_default())
        };
        Self {
            cpu_request: request("cpu"),
            cpu_limit: limit("cpu"),
            memory_request: request("memory"),
            memory_limit: limit("memory"),
        }
    }

    fn is_guaranteed(&self) -> bool {
        let same = |request: Quantity, limit: Quantity| !limit.is_zero() && request == limit;
        same(self.cpu_request, self.cpu_limit) && same(self.memory_request, self.memory_limit)
    }

    fn is_empty(&self) -> bool {
        [self.cpu_request, self.cpu_limit, self.memory_request, self.memory_limit].iter().all(|q| q.is_zero())
    }
}

pub(super) fn qos(spec: &PodSpec) -> Qos {
    let wanted: Vec<_> = spec.containers.iter().map(Wanted::of).collect();
    if wanted.iter().all(Wanted::is_empty) {
        Qos::BestEffort
    } else if wanted.iter().all(Wanted::is_guaranteed) {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

/// The cgroup values of a container.
pub(super) fn container(container: &Container, spec: &PodSpec, host: &Host) -> cri::LinuxContainerResources {
    let wanted = Wanted::of(container);
    let mut resources = cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(wanted.cpu_limit.milli()),
        cpu_shares: shares(wanted.cpu_request.milli()),
        memory_limit_in_bytes: wanted.memory_limit.value(),
        oom_score_adj: oom_score_adj(qos(spec), wanted.memory_request.value(), host.memory),
        ..Default::default()
    };
    if host.is_cgroup_v2 {
        // A container is one thing: when the kernel kills in it for memory, it kills all of it.
        resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    resources
}

/// The cgroup values of the pod: a limit only where every container has one.
pub(super) fn pod(spec: &PodSpec) -> cri::LinuxContainerResources {
    let wanted: Vec<_> = spec.containers.iter().map(Wanted::of).collect();
    let sum = |of: fn(&Wanted) -> i64| wanted.iter().map(of).fold(0i64, i64::saturating_add);
    let limit = |of: fn(&Wanted) -> i64| {
        if wanted.iter().all(|wanted| of(wanted) > 0) { sum(of) } else { 0 }
    };
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(limit(|wanted| wanted.cpu_limit.milli())),
        cpu_shares: shares(sum(|wanted| wanted.cpu_request.milli())),
        memory_limit_in_bytes: limit(|wanted| wanted.memory_limit.value()),
        ..Default::default()
    }
}

fn shares(milli: i64) -> i64 {
    if milli <= 0 { MIN_SHARES } else { (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

fn quota(milli: i64) -> i64 {
    if milli <= 0 { 0 } else { (milli.saturating_mul(CPU_PERIOD) / 1000).max(MIN_QUOTA) }
}

fn oom_score_adj(qos: Qos, memory_request: i64, capacity: i64) -> i64 {
    match qos {
        Qos::Guaranteed => GUARANTEED_OOM,
        Qos::BestEffort => BEST_EFFORT_OOM,
        // Between the two: above all guaranteed pods, below all that ask for nothing.
        Qos::Burstable => {
            let share = i128::from(memory_request) * 1000 / i128::from(capacity.max(1));
            let score = 1000 - i64::try_from(share).unwrap_or(1000);
            score.clamp(1000 + GUARANTEED_OOM, BEST_EFFORT_OOM - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_values() {
        for (milli, expected_shares, expected_quota) in [
            (0, 2, 0),
            (1, 2, 1000),
            (9, 9, 1000),
            (10, 10, 1000),
            (100, 102, 10_000),
            (500, 512, 50_000),
            (1000, 1024, 100_000),
            (2500, 2560, 250_000),
            (1_000_000, 262_144, 100_000_000),
            (i64::MAX, 262_144, i64::MAX / 1000),
        ] {
            assert_eq!((shares(milli), quota(milli)), (expected_shares, expected_quota), "{milli}");
        }
    }

    #[test]
    fn oom_scores() {
        let capacity = 8 << 30;
        for (qos, request, score) in [
            (Qos::Guaranteed, 1 << 30, -997),
            (Qos::BestEffort, 0, 1000),
            (Qos::Burstable, 0, 999),
            (Qos::Burstable, 1 << 20, 999),
            (Qos::Burstable, 1 << 30, 875),
            (Qos::Burstable, 4 << 30, 500),
            (Qos::Burstable, 8 << 30, 3),
            (Qos::Burstable, i64::MAX, 3),
        ] {
            assert_eq!(oom_score_adj(qos, request, capacity), score, "{qos:?} {request}");
        }
    }

    #[test]
    fn quality_of_service() {
        for (containers, expected) in [
            (vec!["{}"], Qos::BestEffort),
            (vec!["{limits: {cpu: 0}}"], Qos::BestEffort),
            (vec!["{limits: {cpu: 1, memory: 1Gi}}"], Qos::Guaranteed),
            (vec!["{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1000m}}"], Qos::Guaranteed),
            (vec!["{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 999m}}"], Qos::Burstable),
            (vec!["{limits: {cpu: 1}}"], Qos::Burstable),
            (vec!["{limits: {cpu: 1, memory: 1Gi}}", "{}"], Qos::Burstable),
            (vec!["{requests: {memory: 1}}"], Qos::Burstable),
        ] {
            let spec = PodSpec {
                containers: containers
                    .iter()
                    .map(|resources| Container {
                        resources: Some(
                            serde_saphyr::from_str(
                                &resources.replace("cpu: 1", "cpu: \"1\"").replace("\"1\"000m", "1000m"),
                            )
                            .expect(resources),
                        ),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            };
            assert_eq!(qos(&spec), expected, "{containers:?}");
        }
    }

    #[test]
    fn a_pod_is_limited_only_if_all_its_containers_are() {
        let container =
            |text: &str| Container { resources: Some(serde_saphyr::from_str(text).expect(text)), ..Default::default() };
        let both = container("{limits: {cpu: 500m, memory: 64Mi}}");
        let half = container("{limits: {cpu: 250m}}");
        let spec = |containers| PodSpec { containers, ..Default::default() };
        let limited = pod(&spec(vec![both.clone(), half.clone()]));
        assert_eq!((limited.cpu_quota, limited.cpu_shares, limited.memory_limit_in_bytes), (75_000, 768, 0));
        let limited = pod(&spec(vec![both.clone(), both]));
        assert_eq!(limited.memory_limit_in_bytes, 128 << 20);
    }
}
