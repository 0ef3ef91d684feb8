//! The repository's own campaigns still contain what was sealed.

use std::path::{Path, PathBuf};

use records::campaign::SealedCampaign;
use records::run_folder::run_folders;
use records::source::Source;
use records::store::Store;

fn data(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../data")
        .join(part)
}

#[test]
fn every_campaign_is_what_was_sealed_and_names_its_sources() {
    let mut campaigns = run_folders(&data("campaigns")).expect("readable");
    // Those that belong to the raw figures of a bench.
    for bench in run_folders(&data("bench")).expect("readable") {
        let policies = bench.join("policies");
        campaigns.extend(run_folders(&policies).expect("readable"));
    }
    let (of_benches, of_recipes): (Vec<_>, Vec<_>) = campaigns
        .iter()
        .partition(|dir| dir.starts_with(data("bench")));
    assert!(!of_benches.is_empty() && !of_recipes.is_empty());
    for dir in campaigns {
        let campaign = SealedCampaign::open(&dir).expect("a campaign");
        assert_eq!(campaign.check(), Ok(()), "{}", dir.display());
        let manifest = campaign.manifest().expect("readable");
        assert_eq!(
            manifest.n_starts as usize,
            campaign.starts.len(),
            "{}",
            dir.display()
        );
        for start in &campaign.starts {
            // Records made since this version name a commit, or have a stored difference.
            let is_old = start.started_utc.as_str() < "2026-11-30";
            let is_known = matches!(start.source, Source::Commit | Source::Diff);
            assert!(is_old || is_known, "{}", start.run_id);
        }
    }
}

/// Runs are cited by their ids in notes, cards and reports.
#[test]
fn runs_of_old_ids_and_of_citations_are_found() {
    let store = Store::from(data("campaigns"));
    for typed in [
        "20261126T022750Z_06-twenty-users_vm_3b89b688",
        "e1a31c64#06-twenty-users/0",
    ] {
        let run = store.find(typed).expect(typed);
        assert_eq!(run.manifest().expect("readable").run_id, run.run_id);
        assert!(run.is_complete(), "{typed}");
    }
}
