//! Names of the failpoints around each action of a drive: `container.task.make` is before the step is made, `container.task.made`
//! after it, `sandbox.at-ready.written` after that mark was.

use std::fmt::Debug;

use super::{Action, Mark, Step};

fn lower(value: impl Debug) -> String {
    format!("{value:?}").to_lowercase()
}

fn name<S: Step>(kind: &str, action: Action<S>, [write, make, remove]: [&str; 3]) -> String {
    match action {
        Action::Write(Mark::At(level)) => format!("{kind}.at-{}.{write}", lower(level)),
        Action::Write(Mark::Toward(level)) => format!("{kind}.toward-{}.{write}", lower(level)),
        Action::Make(step) => format!("{kind}.{}.{make}", lower(step)),
        Action::Remove(step) => format!("{kind}.{}.{remove}", lower(step)),
    }
}

pub(super) fn before<S: Step>(kind: &str, action: Action<S>) -> String {
    name(kind, action, ["write", "make", "remove"])
}

pub(super) fn after<S: Step>(kind: &str, action: Action<S>) -> String {
    name(kind, action, ["written", "made", "removed"])
}

/// All points of a kind of object that is announced as on its way to each of `announced`.
pub(crate) fn all<S: Step>(kind: &str, announced: &[S::Level]) -> Vec<String> {
    let mut actions: Vec<_> = S::LIST.iter().flat_map(|step| [Action::Make(*step), Action::Remove(*step)]).collect();
    let mut levels: Vec<_> = S::LIST.iter().map(|step| step.level()).collect();
    levels.dedup();
    actions.extend(levels.into_iter().map(|level| Action::Write(Mark::At(level))));
    actions.extend(announced.iter().map(|level| Action::Write(Mark::Toward(*level))));
    actions.into_iter().flat_map(|action| [before::<S>(kind, action), after(kind, action)]).collect()
}
