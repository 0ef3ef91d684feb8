//! Arms whose flag does nothing on this machine.
//!
//! A server says at `/server_info` which of its flags are inactive and why. Where both ends of a
//! change are inactive or not set, the two servers are the same one, and measuring them would only
//! show noise. The references start first, so most such arms never run; a flag that is inactive
//! in its own arm alone (it needs another flag) is given up after that arm's first start.

use std::collections::BTreeMap;

use records::manifest::{Derived, Direction};

use crate::commands::ablate::arms::Baseline;
use crate::spec::Experiment;
use crate::spec::flags::Flags;

/// Flag without its dashes → why it has no effect.
pub type Inactive = BTreeMap<String, String>;

/// What is known so far.
#[derive(Debug)]
pub struct IdleArms<'a> {
    arms: &'a [Experiment],
    full: &'a Flags,
    baseline: &'a Flags,
    inactive_in_full: Option<Inactive>,
    inactive_in_baseline: Option<Inactive>,
    /// Name of an arm that is not run (any more) → the reason.
    pub given_up: BTreeMap<String, String>,
}

impl<'a> IdleArms<'a> {
    pub fn new(arms: &'a [Experiment], full: &'a Experiment, baseline: &'a Baseline) -> Self {
        Self {
            arms,
            full: &full.flags,
            baseline: &baseline.flags,
            inactive_in_full: None,
            inactive_in_baseline: None,
            given_up: BTreeMap::new(),
        }
    }

    /// Takes in what a server of `arm` said; returns the arms that need no further start.
    pub fn learn(&mut self, arm: &Experiment, inactive: Inactive) -> Vec<String> {
        let Some(Derived::Ablation {
            direction, flag, ..
        }) = &arm.derived
        else {
            return Vec::new();
        };
        let mut idle = Vec::new();
        match direction {
            Direction::Full => self.inactive_in_full = Some(inactive),
            Direction::Baseline => self.inactive_in_baseline = Some(inactive),
            Direction::Off => {
                idle.extend(self.idle_beside(arm, flag.as_deref(), &inactive, Direction::Full));
            }
            Direction::On => {
                idle.extend(self.idle_beside(arm, flag.as_deref(), &inactive, Direction::Baseline));
            }
        }
        if matches!(direction, Direction::Full | Direction::Baseline) {
            idle = self.idle_at_both_ends();
        }
        idle.retain(|(name, _)| !self.given_up.contains_key(name));
        self.given_up.extend(idle.iter().cloned());
        idle.into_iter().map(|(name, _)| name).collect()
    }

    fn idle_at_both_ends(&self) -> Vec<(String, String)> {
        let (Some(in_full), Some(in_baseline)) =
            (&self.inactive_in_full, &self.inactive_in_baseline)
        else {
            return Vec::new();
        };
        let idle = |arm: &Experiment| {
            let flag = flag_of(arm)?;
            let reason = same_server(flag, (self.full, in_full), (self.baseline, in_baseline))?;
            Some((arm.name.clone(), reason))
        };
        self.arms.iter().filter_map(idle).collect()
    }

    fn idle_beside(
        &self,
        arm: &Experiment,
        flag: Option<&str>,
        inactive: &Inactive,
        reference: Direction,
    ) -> Option<(String, String)> {
        let (flags, inactive_there) = match reference {
            Direction::Full => (self.full, self.inactive_in_full.as_ref()?),
            _ => (self.baseline, self.inactive_in_baseline.as_ref()?),
        };
        let reason = same_server(flag?, (&arm.flags, inactive), (flags, inactive_there))?;
        Some((arm.name.clone(), reason))
    }
}

pub fn flag_of(arm: &Experiment) -> Option<&str> {
    match &arm.derived {
        Some(Derived::Ablation { flag, .. }) => flag.as_deref(),
        _ => None,
    }
}

/// Why two configurations that differ in `flag` serve alike, if they do.
fn same_server(flag: &str, a: (&Flags, &Inactive), b: (&Flags, &Inactive)) -> Option<String> {
    let idle = |(flags, inactive): (&Flags, &Inactive)| match flags.get(flag) {
        None => Some(None),
        Some(_) => inactive.get(flag).map(|reason| Some(reason.clone())),
    };
    // Not set on either side would be no difference at all.
    let (a, b) = (idle(a)?, idle(b)?);
    a.or(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ablate::arms::arms_of;
    use crate::commands::ablate::arms::tests::{baseline, experiment};

    fn flags(line: &str) -> Flags {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        Flags::parse(&args).expect("flags")
    }

    fn inactive(names: &[&str]) -> Inactive {
        names
            .iter()
            .map(|name| ((*name).into(), format!("no {name}")))
            .collect()
    }

    #[test]
    fn a_change_is_idle_only_if_neither_end_acts() {
        let (set, unset) = (flags("--f 2"), flags(""));
        let (off, on) = (inactive(&["f"]), inactive(&[]));
        let same = |a, b| same_server("f", a, b);
        assert_eq!(same((&set, &off), (&unset, &on)), Some("no f".into()));
        assert_eq!(same((&unset, &on), (&set, &off)), Some("no f".into()));
        assert_eq!(same((&set, &on), (&unset, &on)), None);
        // Changed from one value to another, of which one acts.
        assert_eq!(same((&set, &off), (&set, &on)), None);
        assert_eq!(same((&set, &off), (&set, &off)), Some("no f".into()));
    }

    #[test]
    fn references_decide_for_both_ends_and_an_arm_for_itself() {
        let full = experiment("fast = true\nidle = true\nneeds = 1");
        let baseline = baseline("");
        let arms = arms_of(&full, &baseline, &[]).expect("arms");
        let arm = |name: &str| arms.iter().find(|arm| arm.name == name).expect("an arm");
        let mut known = IdleArms::new(&arms, &full, &baseline);
        assert!(
            known
                .learn(arm("09-full-full"), inactive(&["idle"]))
                .is_empty()
        );
        // Nothing is inactive in a server that sets nothing.
        assert_eq!(
            known.learn(arm("09-full-baseline"), inactive(&[])),
            ["09-full-off-idle", "09-full-on-idle"]
        );
        assert!(
            known
                .learn(arm("09-full-on-fast"), inactive(&[]))
                .is_empty()
        );
        assert!(
            known
                .learn(arm("09-full-off-needs"), inactive(&["idle"]))
                .is_empty()
        );
        // Without the rest of the full configuration this flag has nothing to act on.
        let on_needs = arm("09-full-on-needs");
        assert_eq!(
            known.learn(on_needs, inactive(&["needs"])),
            ["09-full-on-needs"]
        );
        assert!(known.learn(on_needs, inactive(&["needs"])).is_empty());
        assert_eq!(known.given_up["09-full-on-needs"], "no needs");
    }
}
