//! Has the kernel ready for a process to change its control group before one does.
//!
//! A move waits for an RCU grace period, 5 to 10 ms on an idle machine, and nothing of a container's start takes longer.
//! But a move that comes while another waits shares its grace period, and one that comes soon after another waits for none
//! (`cgroup_threadgroup_rwsem` and `rcu_sync` in the kernel). So a call that ends in a move begins with one that
//! changes nothing: the daemon is moved to where it is, while the call does what comes before.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::task;
use vaina_sys::cgroup::Hierarchies;

/// See the module.
#[derive(Debug, Clone)]
pub struct GroupMoves {
    /// `cgroup.procs` of the daemon's own group, where that is in sight.
    own: Option<Arc<Path>>,
    /// A move is under way.
    moving: Arc<AtomicBool>,
}

impl GroupMoves {
    /// Finds the daemon's own group. Blocking.
    pub fn new(hierarchies: &Hierarchies) -> Self {
        let own = hierarchies.own_directory().ok().flatten();
        let own = own.map(|directory: PathBuf| directory.join("cgroup.procs").into());
        Self { own, moving: Arc::default() }
    }

    /// A process is about to be moved. Does not wait, and can't fail: without it the move itself takes longer.
    pub fn announce(&self) {
        let Some(own) = self.own.clone() else { return };
        if self.moving.swap(true, Ordering::AcqRel) {
            return;
        }
        let moving = Arc::clone(&self.moving);
        drop(task::spawn_blocking(move || {
            if let Err(error) = fs::write(&own, process::id().to_string()) {
                tracing::debug!(path = %own.display(), %error, "cannot announce a move between control groups");
            }
            moving.store(false, Ordering::Release);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_daemon_is_moved_to_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let procs = directory.path().join("cgroup.procs");
        let moves = GroupMoves { own: Some(procs.as_path().into()), moving: Arc::default() };
        moves.announce();
        while moves.moving.load(Ordering::Acquire) {
            task::yield_now().await;
        }
        assert_eq!(fs::read_to_string(&procs).unwrap(), process::id().to_string());
    }

    #[tokio::test]
    async fn without_a_group_in_sight_nothing_is_announced() {
        let moves = GroupMoves { own: None, moving: Arc::default() };
        moves.announce();
        assert!(!moves.moving.load(Ordering::Acquire));
    }
}
