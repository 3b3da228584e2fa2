//! Runs the planner against a model host, a million seeded schedules of it.
//!
//! The model keeps what a host keeps: a record with its mark, and for each step whether it is there, half there or not. A
//! schedule is a few wanted levels, one after the other; any action may fail (before, in the middle or at the end of its
//! work), and the daemon is killed after, or in the middle of, any action, sometimes with a reboot. Then it recovers by the same
//! machine and goes on. At the end no more faults come: the wanted level must be reached, what belongs to it is there,
//! and nothing else is.

use super::{Action, Drive, MAX_STEPS, Mark, Observed, Outcome, Seen, Step};

/// The shape of a pod sandbox: two independent branches that join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Record,
    Directory,
    Netns,
    Network,
    Shm,
    Shim,
    Pause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Gone,
    NotReady,
    Ready,
}

impl Step for Part {
    type Level = Level;
    const LIST: &'static [Self] =
        &[Self::Record, Self::Directory, Self::Netns, Self::Network, Self::Shm, Self::Shim, Self::Pause];
    const GONE: Level = Level::Gone;

    fn level(self) -> Level {
        match self {
            Self::Record | Self::Directory => Level::NotReady,
            _ => Level::Ready,
        }
    }

    fn needs(self) -> &'static [Self] {
        match self {
            Self::Record => &[],
            Self::Directory | Self::Netns => &[Self::Record],
            Self::Network => &[Self::Netns],
            Self::Shm | Self::Shim => &[Self::Directory],
            Self::Pause => &[Self::Shim, Self::Netns],
        }
    }
}

/// Steps whose things live in memory: a reboot takes them.
const VOLATILE: &[Part] = &[Part::Netns, Part::Network, Part::Shm, Part::Shim, Part::Pause];

/// xorshift: small, fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    No,
    Half,
    Whole,
}

#[derive(Debug)]
struct Model {
    mark: Option<Mark<Level>>,
    there: [There; MAX_STEPS],
    /// A broken rule of the model: something was made on ground that is not there, or two times.
    broken: Option<&'static str>,
}

impl Model {
    const fn empty() -> Self {
        Self { mark: None, there: [There::No; MAX_STEPS], broken: None }
    }

    fn at(&mut self, part: Part) -> &mut There {
        &mut self.there[part as usize]
    }

    /// Does `share` of the action's work: 0 none, 1 half, 2 all.
    fn act(&mut self, action: Action<Part>, share: u64, target: Level) {
        match action {
            Action::Write(mark) => {
                if share == 2 {
                    if self.mark.is_none() {
                        self.broken = Some("a mark without a record");
                    }
                    self.mark = Some(mark);
                }
            }
            Action::Make(Part::Record) => {
                // A transaction: there is no half of it.
                if share == 2 {
                    self.mark = Some(Mark::Toward(target));
                    *self.at(Part::Record) = There::Whole;
                }
            }
            Action::Remove(Part::Record) => {
                if self.there[1..].iter().any(|there| *there != There::No) {
                    self.broken = Some("the record went before the things");
                }
                if share == 2 {
                    self.mark = None;
                    *self.at(Part::Record) = There::No;
                }
            }
            Action::Make(part) => {
                if self.mark.is_none() {
                    self.broken = Some("a thing before its record");
                }
                if matches!(self.mark, Some(Mark::At(_))) {
                    self.broken = Some("a thing was made under a mark that says all is settled");
                }
                if *self.at(part) != There::No {
                    self.broken = Some("made what was there, whole or half");
                }
                if part.needs().iter().any(|&need| *self.at(need) != There::Whole) {
                    self.broken = Some("made on ground that is not there");
                }
                *self.at(part) = [There::No, There::Half, There::Whole][usize::try_from(share).unwrap_or(2)];
            }
            Action::Remove(part) => {
                if matches!(self.mark, Some(Mark::At(_))) {
                    self.broken = Some("a thing was removed under a mark that says all is settled");
                }
                let user = Part::LIST
                    .iter()
                    .any(|other| other.needs().contains(&part) && self.there[*other as usize] != There::No);
                if user {
                    self.broken = Some("removed the ground under something");
                }
                if share > 0 && *self.at(part) != There::No {
                    *self.at(part) = if share == 2 { There::No } else { There::Half };
                }
            }
        }
    }

    /// What recovery sees when it looks.
    fn look(&self) -> Observed {
        let mut observed = Observed::from_mark::<Part>(self.mark);
        for &part in &Part::LIST[1..] {
            observed.set(
                part,
                match self.there[part as usize] {
                    There::No => Seen::Absent,
                    There::Half => Seen::Maybe,
                    There::Whole => Seen::Present,
                },
            );
        }
        observed
    }

    fn is_exactly(&self, level: Level) -> bool {
        let mark = if level == Level::Gone { None } else { Some(Mark::At(level)) };
        self.mark == mark
            && Part::LIST.iter().all(|&part| {
                let wanted = level > Level::Gone && part.level() <= level;
                self.there[part as usize] == if wanted { There::Whole } else { There::No }
            })
    }
}

/// What may go wrong, in one of so many actions; 0 for never.
#[derive(Debug, Clone, Copy)]
struct Faults {
    fail: u64,
    kill: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Over(Outcome),
    Killed,
}

fn drive(model: &mut Model, mut machine: Drive<Part>, random: &mut Random, faults: Faults) -> End {
    // Actions under way, at most one for each step and the mark.
    let mut running = [None; MAX_STEPS];
    let mut count = 0;
    loop {
        while let Some(action) = machine.next_action() {
            running[count] = Some(action);
            count += 1;
        }
        if count == 0 {
            return End::Over(machine.outcome().expect("a drive that can't go on is over"));
        }
        let chosen = usize::try_from(random.below(count as u64)).expect("a small number");
        let action = running[chosen].take().expect("the first `count` are set");
        running.swap(chosen, count - 1);
        count -= 1;
        let target = machine.target();
        if faults.kill > 0 && random.one_in(faults.kill) {
            // Whatever runs is cut somewhere; all of it dies with the daemon.
            model.act(action, random.below(3), target);
            for action in running.iter().take(count).flatten() {
                model.act(*action, random.below(3), target);
            }
            return End::Killed;
        }
        if faults.fail > 0 && random.one_in(faults.fail) {
            // It may have done all of its work and failed to say so.
            model.act(action, random.below(3), target);
            machine.finished(action, false);
        } else {
            model.act(action, 2, target);
            machine.finished(action, true);
        }
        if model.broken.is_some() {
            return End::Killed;
        }
    }
}

/// What recovery wants of an object by its mark: what was on its way up is undone, all else is finished.
fn recovered_level(mark: Mark<Level>) -> Level {
    match mark {
        Mark::Toward(Level::Ready) => Level::Gone,
        Mark::Toward(level) | Mark::At(level) => level,
    }
}

fn recover(model: &mut Model, random: &mut Random, faults: Faults) {
    for attempt in 0_u64.. {
        let Some(mark) = model.mark else { return };
        let mut wanted = recovered_level(mark);
        let observed = model.look();
        // A sandbox that lost a part is not mended while its containers may use it: it is stopped.
        if mark == Mark::At(Level::Ready) && !model.is_exactly(Level::Ready) {
            wanted = Level::NotReady;
        }
        // After a while the faults stop, or no schedule would end.
        let faults = if attempt < 3 { faults } else { Faults { fail: 0, kill: 0 } };
        let machine = Drive::new(Some(mark), observed, wanted, wanted.min(Level::NotReady));
        match drive(model, machine, random, faults) {
            End::Over(Outcome::Reached) => return,
            End::Over(_) | End::Killed if model.broken.is_some() => return,
            End::Over(_) | End::Killed => {}
        }
    }
}

/// One schedule; the error says what does not hold.
fn schedule(seed: u64) -> Result<u64, String> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut model = Model::empty();
    let mut steps = 0;
    let faults = Faults { fail: 4 + random.below(12), kill: 4 + random.below(12) };
    for _ in 0..2 + random.below(3) {
        let wanted = [Level::Gone, Level::NotReady, Level::Ready][usize::try_from(random.below(3)).expect("small")];
        steps += 1;
        if model.mark.is_none() && wanted == Level::NotReady {
            continue;
        }
        // A stopped sandbox never comes back, and what is owed is settled first.
        let wanted = match model.mark {
            Some(Mark::At(Level::NotReady)) | Some(Mark::Toward(_)) if wanted == Level::Ready => Level::Gone,
            _ => wanted,
        };
        let fallback = if wanted == Level::Ready { Level::Gone } else { wanted };
        let observed = Observed::from_mark::<Part>(model.mark);
        let machine = Drive::new(model.mark, observed, wanted, fallback);
        let end = drive(&mut model, machine, &mut random, faults);
        match end {
            End::Over(Outcome::Reached) if !model.is_exactly(wanted) => {
                return Err(format!("reached {wanted:?}, but the host is {model:?}"));
            }
            End::Over(Outcome::FellBack) if !model.is_exactly(fallback) => {
                return Err(format!("fell back to {fallback:?}, but the host is {model:?}"));
            }
            End::Over(_) => {}
            End::Killed => {
                if random.one_in(4) {
                    for &part in VOLATILE {
                        *model.at(part) = There::No;
                    }
                }
                if model.broken.is_none() {
                    recover(&mut model, &mut random, faults);
                }
            }
        }
        if let Some(broken) = model.broken {
            return Err(format!("{broken}: {model:?}"));
        }
    }
    // The faults are over: whatever is owed is settled, and the pod goes.
    let calm = Faults { fail: 0, kill: 0 };
    let observed = Observed::from_mark::<Part>(model.mark);
    let machine = Drive::new(model.mark, observed, Level::Gone, Level::Gone);
    let end = drive(&mut model, machine, &mut random, calm);
    if end != End::Over(Outcome::Reached) || !model.is_exactly(Level::Gone) || model.broken.is_some() {
        return Err(format!("left behind after {end:?}: {model:?}"));
    }
    Ok(steps)
}

#[test]
fn a_million_schedules_end_in_the_wanted_state_with_nothing_left() {
    const SCHEDULES: u64 = 1_000_000;
    let threads = 2;
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..SCHEDULES).step_by(usize::try_from(threads).expect("small")) {
                    if let Err(broken) = schedule(seed) {
                        panic!("seed {seed}: {broken}");
                    }
                }
            });
        }
    });
    println!("{SCHEDULES} schedules in {:.1} s", started.elapsed().as_secs_f64());
}

#[test]
fn the_straight_way_makes_in_order_and_together_what_is_independent() {
    let observed = Observed::from_mark::<Part>(None);
    let mut machine = Drive::<Part>::new(None, observed, Level::Ready, Level::Gone);
    let mut waves = Vec::new();
    while machine.outcome().is_none() {
        let mut wave = Vec::new();
        while let Some(action) = machine.next_action() {
            wave.push(action);
        }
        for action in &wave {
            machine.finished(*action, true);
        }
        waves.push(wave);
    }
    use Action::{Make, Write};
    assert_eq!(
        waves,
        [
            vec![Make(Part::Record)],
            vec![Make(Part::Directory), Make(Part::Netns)],
            vec![Make(Part::Network), Make(Part::Shm), Make(Part::Shim)],
            vec![Make(Part::Pause)],
            vec![Write(Mark::At(Level::Ready))],
        ]
    );
}

#[test]
fn a_failed_step_undoes_what_was_made_and_a_stuck_removal_keeps_its_ground() {
    let mut model = Model::empty();
    let mut machine = Drive::<Part>::new(None, Observed::from_mark::<Part>(None), Level::Ready, Level::Gone);
    let mut removed = Vec::new();
    while let Some(action) = machine.next_action() {
        let target = machine.target();
        match action {
            Action::Make(Part::Network) => {
                model.act(action, 1, target);
                machine.finished(action, false);
            }
            // Its removal fails too: the namespace under it must stay, and the record with it.
            Action::Remove(Part::Network) => machine.finished(action, false),
            _ => {
                if let Action::Remove(part) = action {
                    removed.push(part);
                }
                model.act(action, 2, target);
                machine.finished(action, true);
            }
        }
    }
    assert_eq!(machine.outcome(), Some(Outcome::Owed));
    assert_eq!(model.broken, None);
    assert!(!removed.contains(&Part::Netns) && !removed.contains(&Part::Record), "{removed:?}");
    assert!(model.mark == Some(Mark::Toward(Level::Gone)), "{:?}", model.mark);
}
