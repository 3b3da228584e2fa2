//! Mends by recovery: everything that is recorded is adopted, finished or undone as at each start of the daemon, and what has
//! no record is removed by the steps of a pod of which only the id is known. What runs and is recorded goes on.

use std::{sync::Arc, time::Duration};

use super::{
    reality, records,
    report::Check,
    state::{self, Orphans},
};
use crate::{
    app::{App, StartError},
    config::Config,
    container::{self, Container},
    error::Chain,
    id::{ContainerId, SandboxId},
    sandbox::{self, Sandbox},
    snapshot,
    work::blocking,
};

/// What is deleted behind the answers.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn run(config: Config, all_unrecorded: bool) -> Vec<Check> {
    let root = config.root.clone();
    // The lock is held to the end of it: a daemon that starts meanwhile refuses.
    let (app, _lock) = match App::recovered(config).await {
        Ok(recovered) => recovered,
        Err(error @ StartError::Running(_)) => {
            let check = Check::warn("repair", format!("nothing was changed: {}", Chain(&error)));
            return vec![check.advice("a daemon mends by itself when it starts: restart it, or stop it and repair")];
        }
        Err(error) => return vec![Check::fail("repair", Chain(&error).to_string())],
    };
    let mut checks = vec![Check::ok("repair", "all that is recorded was adopted, finished or undone")];
    let reality = reality::look(&app.config).await;
    // Of records that can't be read we know nothing, and remove nothing.
    let records = match records::read(&root.join("state.db")) {
        Ok(records) => records.unwrap_or_default(),
        Err(error) => {
            checks.push(Check::fail("repair", format!("orphans are not looked for: {}", Chain(&error))));
            return checks;
        }
    };
    // Nobody but us changes anything now, so one look is enough.
    let orphans = state::orphans(&records, &reality, &reality);
    if records.is_empty() && orphans.have_parts() && !all_unrecorded {
        // More likely that the records were lost than that all of it is litter, and it may run.
        let check =
            Check::fail("repair", "nothing is recorded, and yet there are pods or containers: they are left alone");
        checks.push(check.advice("to remove them with all that runs in them: vaina doctor --repair --all-unrecorded"));
    } else {
        checks.extend(remove(&app, orphans).await);
    }
    app.changes.idle(LIMIT).await;
    drop(tokio::time::timeout(LIMIT, blocking(move || snapshot::finish(&root))).await);
    checks
}

async fn remove(app: &Arc<App>, orphans: Orphans) -> Vec<Check> {
    let mut checks = Vec::new();
    let told = |what: String, error: Option<String>| match error {
        None => Check::ok(what, "it had no record, and is removed"),
        Some(error) => Check::fail(what, format!("it has no record, and is not removed: {error}")),
    };
    for id in orphans.containers {
        let what = format!("orphan container {id}");
        let pod = Arc::new(Sandbox::unreadable(SandboxId::new("unknown"), "it has no record"));
        let container = Arc::new(Container::unreadable(ContainerId::new(id), pod, "it has no record"));
        let removed = container::remove_known(app, &container).await;
        checks.push(told(what, removed.err().map(|error| Chain(&error).to_string())));
    }
    for id in orphans.pods {
        let what = format!("orphan pod {id}");
        let sandbox = Arc::new(Sandbox::unreadable(SandboxId::new(id), "it has no record"));
        let removed = sandbox::remove_known(app, &sandbox).await;
        checks.push(told(what, removed.err().map(|error| Chain(&error).to_string())));
    }
    checks
}
