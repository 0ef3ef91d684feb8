//! Which arms tell the flags of a configuration apart. Pure: nothing is read or started.
//!
//! Between the full configuration and its baseline lie the flags in which they differ. Each gives
//! two arms: the full configuration with this flag as the baseline has it (`off`), and the
//! baseline with this flag as the full configuration has it (`on`). Flags that need one another
//! show in the first and not in the second. Both references run beside them, with the workload,
//! model and seed of the full configuration.

use anyhow::{Result, bail};
use records::manifest::{Derived, Direction};

use crate::spec::Experiment;
use crate::spec::flags::Flags;

/// The references first, then off and on of each flag, by name.
pub fn arms_of(full: &Experiment, baseline: &Baseline, only: &[String]) -> Result<Vec<Experiment>> {
    let differing = full.flags.differing(&baseline.flags);
    if differing.is_empty() {
        bail!(
            "{} sets no flag otherwise than {}",
            full.name,
            baseline.shown()
        );
    }
    if let Some(unknown) = only.iter().find(|flag| !differing.contains(flag)) {
        bail!(
            "--only {unknown}: {} and {} differ in {}",
            full.name,
            baseline.shown(),
            differing.join(", ")
        );
    }
    let mut arms = vec![
        arm(full, baseline, Direction::Full, None, full.flags.clone()),
        arm(
            full,
            baseline,
            Direction::Baseline,
            None,
            baseline.flags.clone(),
        ),
    ];
    for flag in differing
        .iter()
        .filter(|flag| only.is_empty() || only.contains(flag))
    {
        for (direction, start, end) in [
            (Direction::Off, &full.flags, &baseline.flags),
            (Direction::On, &baseline.flags, &full.flags),
        ] {
            let mut flags = start.clone();
            flags.set(flag, end.get(flag).cloned());
            arms.push(arm(full, baseline, direction, Some(flag), flags));
        }
    }
    Ok(arms)
}

/// The other end of the comparison.
#[derive(Debug, Clone)]
pub struct Baseline {
    /// None: the engine's defaults.
    pub name: Option<String>,
    pub flags: Flags,
}

impl Baseline {
    pub fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or("the engine's defaults")
    }
}

fn arm(
    full: &Experiment,
    baseline: &Baseline,
    direction: Direction,
    flag: Option<&String>,
    flags: Flags,
) -> Experiment {
    let suffix = [Some(direction.word()), flag.map(String::as_str)];
    let suffix: Vec<&str> = suffix.into_iter().flatten().collect();
    let name = format!("{}-{}", full.name, suffix.join("-"));
    Experiment {
        title: title(full, baseline, direction, flag),
        lineage: std::iter::once(name.clone())
            .chain(full.lineage.iter().cloned())
            .collect(),
        name,
        flags,
        derived: Some(Derived::Ablation {
            parent: full.name.clone(),
            baseline: baseline.name.clone(),
            direction,
            flag: flag.cloned(),
        }),
        ..full.clone()
    }
}

fn title(
    full: &Experiment,
    baseline: &Baseline,
    direction: Direction,
    flag: Option<&String>,
) -> String {
    let step = |from: &Flags, to: &Flags| {
        flag.map_or_else(String::new, |flag| {
            format!("{} → {}", from.shown(flag), to.shown(flag))
        })
    };
    match direction {
        Direction::Full => format!("all flags of {}", full.name),
        Direction::Baseline => format!("none of its flags: those of {}", baseline.shown()),
        Direction::Off => format!("full with {}", step(&full.flags, &baseline.flags)),
        Direction::On => format!("baseline with {}", step(&baseline.flags, &full.flags)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::spec::Overrides;

    pub fn experiment(flags: &str) -> Experiment {
        let dir = tempfile::tempdir().expect("temporary folder");
        std::fs::create_dir(dir.path().join("09-full")).expect("made");
        let text = format!(
            "name = \"09-full\"\ntitle = \"t\"\nmodel = \"m\"\nseed = 1\nreplicates = 2\n\
             [flags]\n{flags}\n[workload]\nendpoint = \"chat\"\nprompts = [\"p\"]\n\
             temperature = 0.0\nignore_eos = true\nrequest_timeout_s = 1.0\n\
             warmup = {{ n_requests = 0, output_tokens = 1 }}\n\
             latency = {{ n_requests = 1, output_tokens = 1 }}"
        );
        std::fs::write(dir.path().join("09-full/experiment.toml"), text).expect("written");
        Experiment::load(dir.path(), "full", &Overrides::default()).expect("an experiment")
    }

    pub fn baseline(line: &str) -> Baseline {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        Baseline {
            name: Some("01-base".into()),
            flags: Flags::parse(&args).expect("flags"),
        }
    }

    fn shown(arms: &[Experiment]) -> Vec<String> {
        let line = |arm: &Experiment| format!("{}: {}", arm.name, arm.flags.to_args().join(" "));
        arms.iter().map(line).collect()
    }

    #[test]
    fn set_changed_and_removed_flags_each_have_two_arms_and_shared_ones_none() {
        let full = experiment("shared = 1\nchanged = 3\nadded = true");
        let baseline = baseline("--shared 1 --changed 2 --removed");
        assert_eq!(
            shown(&arms_of(&full, &baseline, &[]).expect("arms")),
            [
                "09-full-full: --added --changed 3 --shared 1",
                "09-full-baseline: --changed 2 --removed --shared 1",
                "09-full-off-added: --changed 3 --shared 1",
                "09-full-on-added: --added --changed 2 --removed --shared 1",
                "09-full-off-changed: --added --changed 2 --shared 1",
                "09-full-on-changed: --changed 3 --removed --shared 1",
                "09-full-off-removed: --added --changed 3 --removed --shared 1",
                "09-full-on-removed: --changed 2 --shared 1",
            ]
        );
    }

    #[test]
    fn arms_say_what_they_are_made_from() {
        let arms = arms_of(&experiment("added = 4"), &baseline(""), &[]).expect("arms");
        let derived = arms[2].derived.as_ref().expect("derived");
        assert_eq!(
            serde_json::to_string(derived).expect("JSON"),
            r#"{"by":"ablation","parent":"09-full","baseline":"01-base","direction":"off","flag":"added"}"#
        );
        assert_eq!(arms[2].title, "full with --added 4 → none");
        assert_eq!(arms[3].title, "baseline with none → --added 4");
        assert_eq!(arms[2].lineage, ["09-full-off-added", "09-full"]);
    }

    #[test]
    fn only_chooses_among_the_differing_flags() {
        let full = experiment("a = 1\nb = 2");
        let arms = arms_of(&full, &baseline("--b 2"), &["a".into()]).expect("arms");
        assert_eq!(arms.len(), 4);
        for (line, only, part) in [
            ("--b 2", "b", "--only b: 09-full and 01-base differ in a"),
            (
                "--a 1 --b 2",
                "a",
                "09-full sets no flag otherwise than 01-base",
            ),
        ] {
            let error = arms_of(&full, &baseline(line), &[only.into()]).expect_err("a mistake");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
