//! How objects come, change and go: one pure planner for run, retry, stop, remove, recovery and repair.
//!
//! A kind of object is an ordered list of steps ([`Step`]): what it consists of, in the order in which it is made. Each step
//! says from which level of the object's life on it exists, and which other steps it stands on. From that, what is
//! recorded ([`Mark`]) or observed ([`Seen`]), and the wanted level follows all that has to be done: forward to make,
//! backward to remove, the difference to repair.
//!
//! [`Drive`] is that as a machine without I/O: it says which actions may run now (those that stand on nothing unfinished,
//! so independent ones run together), is told how each ended, and knows when to write the mark: *before* a change that the
//! change is on its way, *after* it that it is done. A step counts as made from the moment that it is tried. The
//! daemon's executor ([`execute()`]) and the simulator in the tests drive the same machine, so what the simulator kills a
//! million times is what runs.
//!
//! ```text
//!            Toward(Ready)                      Toward(NotReady)                 Toward(Gone)
//!  (none) ────────────────▶ At(Ready) ──────────────────────▶ At(NotReady) ───────────────▶ (none)
//!     ▲            │ a step failed                                                            ▲
//!     └────────────┴──────────────── Toward(fallback) ────────────────────────────────────────┘
//! ```
//!
//! Nothing here knows sandboxes, containers, disks or clocks.

mod execute;
#[cfg(feature = "failpoints")]
pub(crate) mod failpoints;
#[cfg(test)]
mod simulate;

use std::fmt::Debug;

pub use execute::{Failure, Host, execute};

/// One part of what an object consists of.
pub trait Step: Copy + Eq + Debug + Send + Sync + 'static {
    /// The stages of the object's life, lowest first; the lowest means that nothing of it exists.
    type Level: Copy + Ord + Debug + Send + Sync + 'static;

    /// All steps in the order in which they are made. The first is the record: all others need it.
    const LIST: &'static [Self];
    /// The lowest level: gone.
    const GONE: Self::Level;

    /// The step exists at this level and all higher ones.
    fn level(self) -> Self::Level;
    /// The steps that must be there before this one is made, and until it is removed. The record goes without saying.
    fn needs(self) -> &'static [Self];
}

/// What the record says of an object; no record means that it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark<L> {
    /// Everything up to this level is there, and nothing above it.
    At(L),
    /// On the way there: any step may be there, whole or half.
    Toward(L),
}

/// What is known of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It is not there.
    Absent,
    /// It is there, whole.
    Present,
    /// It was tried, or may have been: whole, half or not at all.
    Maybe,
}

/// What is known of each step, in the order of [`Step::LIST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed([Seen; MAX_STEPS]);

/// Longest list of steps.
pub const MAX_STEPS: usize = 16;

impl Observed {
    /// What the mark says, without looking: on the straight way nothing is observed.
    pub fn from_mark<S: Step>(mark: Option<Mark<S::Level>>) -> Self {
        let mut seen = [Seen::Absent; MAX_STEPS];
        for (index, step) in S::LIST.iter().enumerate() {
            seen[index] = match mark {
                None => Seen::Absent,
                // Whoever read the mark found the record.
                Some(Mark::Toward(_)) if index == 0 => Seen::Present,
                Some(Mark::Toward(_)) => Seen::Maybe,
                Some(Mark::At(level)) if step.level() <= level => Seen::Present,
                Some(Mark::At(_)) => Seen::Absent,
            };
        }
        Self(seen)
    }

    /// Says what was found of a step.
    pub fn set<S: Step>(&mut self, step: S, seen: Seen) {
        self.0[index_of(step)] = seen;
    }

    /// What is known of a step.
    pub fn get<S: Step>(&self, step: S) -> Seen {
        self.0[index_of(step)]
    }
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<S: Step> {
    /// Change the record's mark.
    Write(Mark<S::Level>),
    /// Make the step. For the record: write it, with the mark [`Mark::Toward`] the wanted level.
    Make(S),
    /// Remove the step; what is not there is removed.
    Remove(S),
}

/// What is left to do for one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Todo {
    Nothing,
    Remove,
    /// Removed first since it may be half there, or stands on something that is made anew.
    Remake,
    Make,
}

/// The difference between what is and what is wanted.
fn plan<S: Step>(observed: &Observed, wanted: S::Level) -> [Todo; MAX_STEPS] {
    let mut todo = [Todo::Nothing; MAX_STEPS];
    for (index, &step) in S::LIST.iter().enumerate() {
        let wanted_here = step.level() <= wanted && wanted > S::GONE;
        // Needs stand before their users in the list, so their fate is known here.
        let grounds_move = step.needs().iter().any(|&need| todo[index_of(need)] != Todo::Nothing);
        todo[index] = match (wanted_here, observed.0[index]) {
            (false, Seen::Absent) => Todo::Nothing,
            (false, Seen::Present | Seen::Maybe) => Todo::Remove,
            (true, Seen::Absent) => Todo::Make,
            (true, Seen::Maybe) => Todo::Remake,
            (true, Seen::Present) if grounds_move => Todo::Remake,
            (true, Seen::Present) => Todo::Nothing,
        };
    }
    todo
}

fn index_of<S: Step>(step: S) -> usize {
    // Lists are short; every step stands in its list.
    S::LIST.iter().position(|&other| other == step).unwrap_or_default()
}

/// Where a drive stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The mark that announces the change is to be written (or being written).
    Announce,
    /// Steps are made and removed.
    Walk,
    /// The mark that says it is done.
    Confirm,
    Over,
}

/// How a drive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The wanted level is reached and recorded.
    Reached,
    /// A step could not be made; the fallback level is reached and recorded.
    FellBack,
    /// Something could not be removed or recorded. The mark says that it is owed.
    Owed,
}

/// The machine that leads one object from what is to what is wanted.
#[derive(Debug)]
pub struct Drive<S: Step> {
    wanted: S::Level,
    fallback: S::Level,
    phase: Phase,
    observed: Observed,
    todo: [Todo; MAX_STEPS],
    /// Steps with an action under way; a mark under way is [`Drive::writing`].
    busy: u16,
    /// Steps whose removal failed: they stay, and so does what they stand on.
    stuck: u16,
    writing: bool,
    fell_back: bool,
    /// A make failed: nothing more is made, what runs is waited for.
    failing: bool,
    outcome: Outcome,
}

impl<S: Step> Drive<S> {
    /// Leads to `wanted`. When a step can't be made, what was made is undone down to `fallback`.
    pub fn new(mark: Option<Mark<S::Level>>, observed: Observed, wanted: S::Level, fallback: S::Level) -> Self {
        let todo = plan::<S>(&observed, wanted);
        let nothing = todo.iter().all(|todo| *todo == Todo::Nothing);
        let phase = match mark {
            _ if nothing && (mark == Some(Mark::At(wanted)) || (mark.is_none() && wanted == S::GONE)) => Phase::Over,
            // Making the record is the announcement.
            None => Phase::Walk,
            Some(mark) if mark == Mark::Toward(wanted) => Phase::Walk,
            Some(_) => Phase::Announce,
        };
        let mut drive = Self {
            wanted,
            fallback,
            phase,
            observed,
            todo,
            busy: 0,
            stuck: 0,
            writing: false,
            fell_back: false,
            failing: false,
            outcome: Outcome::Reached,
        };
        // With nothing to do but to say so, the walk is at its end before it begins.
        drive.settle();
        drive
    }

    /// The level that the drive leads to now: the wanted one, or the fallback.
    pub fn target(&self) -> S::Level {
        self.wanted
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        (self.phase == Phase::Over).then_some(self.outcome)
    }

    /// Takes the next action that may start now; [`None`] if all must wait for one that runs, or it is over.
    pub fn next_action(&mut self) -> Option<Action<S>> {
        match self.phase {
            Phase::Over => None,
            Phase::Announce | Phase::Confirm if self.writing => None,
            Phase::Announce => {
                self.writing = true;
                Some(Action::Write(Mark::Toward(self.wanted)))
            }
            Phase::Confirm => {
                self.writing = true;
                Some(Action::Write(Mark::At(self.wanted)))
            }
            Phase::Walk => self.next_step(),
        }
    }

    fn next_step(&mut self) -> Option<Action<S>> {
        // Removals first and last step first: what is on the way out never waits for what comes.
        for (index, &step) in S::LIST.iter().enumerate().rev() {
            if matches!(self.todo[index], Todo::Remove | Todo::Remake) && !self.is_set(self.busy | self.stuck, index) {
                let in_the_way = S::LIST.iter().enumerate().any(|(other, &user)| {
                    other != index
                        && self.observed.0[other] != Seen::Absent
                        && (index == 0 || user.needs().contains(&step))
                });
                if !in_the_way {
                    self.busy |= 1 << index;
                    return Some(Action::Remove(step));
                }
            }
        }
        if self.failing {
            return None;
        }
        for (index, &step) in S::LIST.iter().enumerate() {
            if self.todo[index] == Todo::Make && !self.is_set(self.busy, index) {
                let settled =
                    |other: usize| self.observed.0[other] == Seen::Present && self.todo[other] == Todo::Nothing;
                if (index == 0 || settled(0)) && step.needs().iter().all(|&need| settled(index_of(need))) {
                    self.busy |= 1 << index;
                    // From here on it may be there, whatever the action answers.
                    self.observed.0[index] = Seen::Maybe;
                    return Some(Action::Make(step));
                }
            }
        }
        None
    }

    /// Says how an action ended.
    pub fn finished(&mut self, action: Action<S>, success: bool) {
        match action {
            Action::Write(_) => {
                self.writing = false;
                match (self.phase, success) {
                    (Phase::Announce, true) => self.phase = Phase::Walk,
                    (Phase::Confirm, true) => self.phase = Phase::Over,
                    // Nothing was changed yet, or all was but is not recorded: the old mark stands, and says so.
                    (_, _) => self.end(Outcome::Owed),
                }
            }
            Action::Make(step) => {
                let index = index_of(step);
                self.busy &= !(1 << index);
                if success {
                    self.observed.0[index] = Seen::Present;
                    self.todo[index] = Todo::Nothing;
                } else {
                    self.failing = true;
                }
            }
            Action::Remove(step) => {
                let index = index_of(step);
                self.busy &= !(1 << index);
                if success {
                    self.observed.0[index] = Seen::Absent;
                    self.todo[index] = if self.todo[index] == Todo::Remake { Todo::Make } else { Todo::Nothing };
                } else {
                    self.stuck |= 1 << index;
                    self.observed.0[index] = Seen::Maybe;
                    self.failing = true;
                }
            }
        }
        self.settle();
    }

    /// Moves on when nothing runs and nothing can be started.
    fn settle(&mut self) {
        if self.phase != Phase::Walk || self.busy != 0 {
            return;
        }
        if self.todo.iter().all(|todo| *todo == Todo::Nothing) {
            // Without a record there is nothing to write on.
            self.phase = if self.wanted == S::GONE { Phase::Over } else { Phase::Confirm };
            self.outcome = if self.fell_back { Outcome::FellBack } else { Outcome::Reached };
            return;
        }
        if !self.failing {
            return;
        }
        // Removals that are not stuck go on after a failure; only when none is left is the walk at its end.
        let mut probe = Self { failing: true, ..*self };
        if probe.next_step().is_some() {
            return;
        }
        if self.stuck == 0 && !self.fell_back {
            self.fall_back();
        } else {
            self.end(Outcome::Owed);
        }
    }

    fn fall_back(&mut self) {
        self.fell_back = true;
        self.failing = false;
        self.wanted = self.fallback;
        self.todo = plan::<S>(&self.observed, self.wanted);
        // If even the record could not be made, there may be none to announce on; its removal is all that is left.
        let recorded = self.observed.0[0] == Seen::Present;
        self.phase = if recorded { Phase::Announce } else { Phase::Walk };
        self.settle();
    }

    fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
        self.phase = Phase::Over;
    }

    fn is_set(&self, set: u16, index: usize) -> bool {
        set & (1 << index) != 0
    }
}
