//! Disturbances: things that happen to a node between a test's preparation and its check. The same check must hold after
//! each of them.

use anyhow::Result;

use crate::node::Node;

/// Something that happens to a daemon whose pods go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing: the check itself must hold first.
    None,
    /// SIGTERM, a drain, and a new start.
    RestartServer,
    /// SIGKILL and a new start.
    KillServer,
}

impl Disturbance {
    /// All of them, mildest first.
    pub const ALL: [Self; 3] = [Self::None, Self::RestartServer, Self::KillServer];

    /// Disturbs the node; when this answers, the daemon serves again.
    pub async fn apply(self, node: &mut Node) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::RestartServer => {
                node.terminate_daemon()?;
                node.start_daemon().await
            }
            Self::KillServer => {
                node.kill_daemon()?;
                node.start_daemon().await
            }
        }
    }
}
