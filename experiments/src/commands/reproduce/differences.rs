//! What is not as it was when a run was recorded. Pure: two records in, lines out.
//!
//! Every line is a warning, none an error: whether a difference matters is what the figures say.

use records::manifest::GitState;
use records::manifest::{Hashes, Manifest};

use crate::record::environment::Environment;

/// What is compared, then and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: &'static str,
    pub then: String,
    pub now: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} then, {} now", self.what, self.then, self.now)
    }
}

/// Known before a server starts: sources, programs, prompts.
pub fn of_code(then: &Manifest, git: &GitState, hashes: &Hashes) -> Vec<Difference> {
    let mut found = Found::default();
    found.compare(
        "git commit",
        then.git.commit.as_deref(),
        git.commit.as_deref(),
    );
    // Also if both are dirty: whether in the same way is unknown.
    if then.git.dirty != Some(false) || git.dirty != Some(false) {
        found.note(
            "uncommitted changes",
            dirty(then.git.dirty),
            dirty(git.dirty),
        );
    }
    let (a, b) = (&then.sha256, hashes);
    found.compare(
        "Cargo.lock (sha256)",
        a.cargo_lock.as_deref(),
        b.cargo_lock.as_deref(),
    );
    found.compare(
        "engine binary (sha256)",
        a.engine_binary.as_deref(),
        b.engine_binary.as_deref(),
    );
    found.compare(
        "kernels' sources (sha256)",
        a.kernels.as_deref(),
        b.kernels.as_deref(),
    );
    if then.sha256.sources.is_some() {
        found.compare(
            "all sources (sha256)",
            a.sources.as_deref(),
            b.sources.as_deref(),
        );
    }
    found.compare(
        "prompts (sha256)",
        a.prompts.as_deref(),
        b.prompts.as_deref(),
    );
    found.0
}

/// Known once the server has said what it serves.
pub fn of_model(then: &Manifest, now: &Manifest) -> Vec<Difference> {
    let mut found = Found::default();
    found.compare(
        "model served",
        Some(&then.model.used),
        Some(&now.model.used),
    );
    found.compare(
        "model's format",
        then.model.format.as_deref(),
        now.model.format.as_deref(),
    );
    found.compare(
        "model (sha256)",
        then.sha256.model.as_deref(),
        now.sha256.model.as_deref(),
    );
    found.0
}

pub fn of_machine(then: &Environment, now: &Environment) -> Vec<Difference> {
    let mut found = Found::default();
    found.compare("kernel", then.kernel.as_deref(), now.kernel.as_deref());
    let mut text = |what, then: &str, now: &str| {
        found.compare(what, Some(then), Some(now));
    };
    text("host", &then.host, &now.host);
    text("operating system", &then.os, &now.os);
    text("processor", &then.cpu.model, &now.cpu.model);
    text(
        "cores",
        &then.cpu.n_cores.to_string(),
        &now.cpu.n_cores.to_string(),
    );
    text(
        "processor's extensions",
        &sorted(&then.cpu.flags),
        &sorted(&now.cpu.flags),
    );
    text(
        "memory in bytes",
        &then.memory_bytes.to_string(),
        &now.memory_bytes.to_string(),
    );
    let gpu = |environment: &Environment,
               value: fn(&crate::record::environment::Gpu) -> Option<String>| {
        environment.gpu.as_ref().and_then(value)
    };
    let mut of_gpu = |what, value: fn(&crate::record::environment::Gpu) -> Option<String>| {
        found.compare(
            what,
            gpu(then, value).as_deref(),
            gpu(now, value).as_deref(),
        );
    };
    of_gpu("GPU", |gpu| Some(gpu.name.clone()));
    of_gpu("GPU's driver", |gpu| gpu.driver.clone());
    of_gpu("GPU's memory in bytes", |gpu| {
        gpu.memory_bytes.map(|bytes| bytes.to_string())
    });
    of_gpu("GPU's power limit in W", |gpu| {
        gpu.power_limit_w.map(|watts| watts.to_string())
    });
    of_gpu("GPU's highest clock in MHz", |gpu| {
        let clocks = gpu.clocks.as_ref()?;
        clocks.max_sm_mhz.map(|mhz| mhz.to_string())
    });
    found.compare("rustc", then.rustc.as_deref(), now.rustc.as_deref());
    found.0
}

#[derive(Default)]
struct Found(Vec<Difference>);

impl Found {
    fn compare(&mut self, what: &'static str, then: Option<&str>, now: Option<&str>) {
        if then != now {
            self.note(what, shown(then), shown(now));
        }
    }

    fn note(&mut self, what: &'static str, then: impl Into<String>, now: impl Into<String>) {
        self.0.push(Difference {
            what,
            then: then.into(),
            now: now.into(),
        });
    }
}

/// Enough of a hash or a commit to tell two apart.
fn shown(value: Option<&str>) -> String {
    const SHORT: usize = 12;
    const HASHES: [usize; 2] = [40, 64];
    match value {
        None => "unknown".into(),
        Some(text)
            if HASHES.contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit()) =>
        {
            text[..SHORT].into()
        }
        Some(text) => text.into(),
    }
}

fn dirty(state: Option<bool>) -> &'static str {
    match state {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    }
}

fn sorted(flags: &[String]) -> String {
    let mut flags = flags.to_vec();
    flags.sort();
    flags.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::environment::{Cpu, Gpu};
    use records::manifest::ModelUsed;

    fn manifest() -> Manifest {
        Manifest {
            schema_version: 1,
            run_id: "r".into(),
            campaign: "c".into(),
            experiment: "01-a".into(),
            replicate: 0,
            quick: false,
            git: GitState {
                commit: Some("a".repeat(40)),
                dirty: Some(false),
                ..GitState::default()
            },
            sha256: Hashes {
                kernels: Some("b".repeat(64)),
                ..Hashes::default()
            },
            model: ModelUsed {
                requested: "default".into(),
                used: "m".into(),
                fallback_reason: None,
                format: None,
            },
            seed: 1,
            generator: None,
            command: Vec::new(),
            extra_flags: Vec::new(),
            base_url: None,
            engine: None,
            derived: None,
            baseline: false,
            focus: false,
            started_utc: "t".into(),
        }
    }

    fn environment(driver: &str) -> Environment {
        Environment {
            host: "h".into(),
            os: "o".into(),
            kernel: Some("k".into()),
            cpu: Cpu {
                model: "p".into(),
                n_cores: 2,
                flags: vec!["fma".into(), "avx".into()],
            },
            memory_bytes: 1,
            gpu: Some(Gpu {
                name: "g".into(),
                driver: Some(driver.into()),
                memory_bytes: Some(2),
                clocks: None,
                power_limit_w: Some(600.0),
            }),
            rustc: None,
            load_average: None,
        }
    }

    fn code(then: &Manifest, now: &Manifest) -> Vec<Difference> {
        of_code(then, &now.git, &now.sha256)
    }

    fn lines(differences: &[Difference]) -> Vec<String> {
        differences.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_record_differs_in_nothing() {
        assert!(code(&manifest(), &manifest()).is_empty());
        assert!(of_model(&manifest(), &manifest()).is_empty());
        let mut reordered = environment("1");
        reordered.cpu.flags.reverse();
        assert!(of_machine(&environment("1"), &reordered).is_empty());
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        let mut now = manifest();
        now.git.commit = Some("c".repeat(40));
        now.git.dirty = Some(true);
        now.sha256.kernels = None;
        assert_eq!(
            lines(&code(&manifest(), &now)),
            [
                "git commit: aaaaaaaaaaaa then, cccccccccccc now",
                "uncommitted changes: no then, yes now",
                "kernels' sources (sha256): bbbbbbbbbbbb then, unknown now",
            ]
        );
        now.model.used = "other".into();
        assert_eq!(
            lines(&of_model(&manifest(), &now)),
            ["model served: m then, other now"]
        );
        let mut elsewhere = environment("2");
        elsewhere.cpu.n_cores = 8;
        assert_eq!(
            lines(&of_machine(&environment("1"), &elsewhere)),
            ["cores: 2 then, 8 now", "GPU's driver: 1 then, 2 now"]
        );
        elsewhere.gpu = None;
        assert!(
            lines(&of_machine(&environment("1"), &elsewhere))
                .contains(&"GPU: g then, unknown now".to_string())
        );
    }

    #[test]
    fn two_dirty_trees_are_a_difference_that_cannot_be_ruled_out() {
        let mut dirty = manifest();
        dirty.git.dirty = Some(true);
        assert_eq!(
            lines(&code(&dirty, &dirty)),
            ["uncommitted changes: yes then, yes now"]
        );
    }
}
