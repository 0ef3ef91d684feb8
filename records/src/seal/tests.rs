use super::*;
use crate::campaign::read_digests;
use crate::integrity::{self, Vouched};
use crate::run_folder::{RunRecord, label_failed};
use crate::source::Source;
use crate::status::RunStatus;
use crate::store::Store;
use crate::{ENVIRONMENT, MANIFEST, REQUESTS, SERVER_LOG, STATUS};

const CAMPAIGN_ID: &str = "20260101T000000Z_0a1b2c3d";

/// Where run folders are created and campaigns go.
struct Places {
    dir: tempfile::TempDir,
}

impl Places {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("temporary folder"),
        }
    }

    fn runs(&self) -> PathBuf {
        self.dir.path().join("runs")
    }

    fn campaigns(&self) -> PathBuf {
        self.dir.path().join("campaigns")
    }

    fn store(&self) -> Store {
        Store::new([self.runs(), self.campaigns()])
    }

    fn seal(&self) -> Result<PathBuf, RecordError> {
        seal(&self.runs(), &self.campaigns(), CAMPAIGN_ID, &Source::of)
    }

    /// A complete start with its digests.
    fn start(&self, arm: &str, round: u32) -> String {
        let record = self.begin(arm, round);
        let run_id = record
            .dir()
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        record.finish(RunStatus::Complete, None).expect("finished");
        run_id
    }

    fn begin(&self, arm: &str, round: u32) -> RunRecord {
        let run_id = format!("20260101T00000{round}Z_{arm}_host_0000000{round}");
        let record = RunRecord::create(&self.runs(), &run_id).expect("new");
        let manifest = serde_json::json!({
            "schema_version": 2, "run_id": run_id, "campaign": CAMPAIGN_ID, "experiment": arm,
            "replicate": round, "git": {"commit": "c0", "dirty": false},
            "model": {"requested": "m", "used": "m"}, "started_utc": "2026-01-01T00:00:00Z",
        });
        record.write_json(MANIFEST, &manifest).expect("written");
        let environment = serde_json::json!({
            "host": "host", "os": "Linux", "cpu": {"model": "CPU", "n_cores": 2}, "memory_bytes": 1,
        });
        record
            .write_json(ENVIRONMENT, &environment)
            .expect("written");
        record
            .write_text(
                "config.resolved.toml",
                "title = \"T\"\nflags = [\"--a\", \"1\"]\n",
            )
            .expect("written");
        record
            .write_text(SERVER_LOG, "hello \u{1b}[1m\nworld")
            .expect("written");
        let row = r#"{"case":"latency-4","warmup":false,"max_tokens":4,"sent_s":0.5,"first_token_s":null,"end_s":1.10,"output_tokens":4,"error":null}"#;
        fs::write(record.path(REQUESTS), format!("{row}\n")).expect("written");
        record
    }
}

#[test]
fn sealed_starts_are_the_runs_that_they_were() {
    let places = Places::new();
    let first = places.start("01-a", 0);
    let second = places.start("02-b", 1);
    let before = fs::read(places.runs().join(&first).join(SERVER_LOG)).expect("readable");
    let dir = places.seal().expect("sealed");
    assert_eq!(
        dir.file_name().expect("a name").to_string_lossy(),
        "20260101T000000Z_01-a-and-1-more_0a1b2c3d"
    );
    assert_eq!(
        run_folders(&places.runs()).expect("readable"),
        Vec::<PathBuf>::new()
    );
    let mut files: Vec<String> = fs::read_dir(&dir)
        .expect("readable")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    files.sort();
    assert_eq!(files, [CAMPAIGN, DIGESTS, ROWS]);

    let store = places.store();
    let runs = store.all().expect("readable");
    let ids: Vec<&str> = runs.iter().map(|run| run.run_id.as_str()).collect();
    assert_eq!(ids, [first.as_str(), second.as_str()]);
    for run in &runs {
        assert_eq!(integrity::check(run), Ok(Vouched::ByDigests));
        assert_eq!(run.source(), Source::Commit);
    }
    assert_eq!(
        runs[0].read(SERVER_LOG).expect("readable").as_deref(),
        Some(before.as_slice())
    );
    for typed in [
        first.as_str(),
        "_01-a_",
        &format!("{CAMPAIGN_ID}#01-a/0"),
        "0a1b2c3d#a/0",
        "01-a-and-1-more#01-a/0",
    ] {
        assert_eq!(store.find(typed).expect(typed).run_id, first, "{typed}");
    }
    let elsewhere = format!("{}#b/1", dir.display());
    let found = Store::from(places.runs()).find(&elsewhere).expect("found");
    assert_eq!(found.run_id, second);
    assert!(store.find("0a1b2c3d#01-a/1").is_err());
    assert!(matches!(
        store.find("host"),
        Err(RecordError::AmbiguousRun { .. })
    ));
    let manifest = runs[0]
        .campaign()
        .expect("sealed")
        .manifest()
        .expect("readable");
    assert_eq!(manifest.n_starts, 2);
    assert_eq!(
        (
            manifest.arms[1].arm.as_str(),
            manifest.arms[1].rounds.as_slice()
        ),
        ("02-b", [1].as_slice())
    );
    assert_eq!(manifest.arms[0].flags, ["--a", "1"]);
}

#[test]
fn a_sealed_file_that_was_changed_breaks_its_runs() {
    let places = Places::new();
    places.start("01-a", 0);
    let dir = places.seal().expect("sealed");
    let path = dir.join(ROWS);
    let mut members = members_of(&dir);
    let text = rows_tar::unpack(&path, Member::Starts).expect("readable");
    let text = String::from_utf8(text).expect("text");
    let changed = text.replace("01-a\",\"round\":0", "01-a\",\"round\":7");
    assert_ne!(changed, text);
    members[0] = rows_tar::compress(changed.as_bytes()).expect("packed");
    let archive = rows_tar::archive(&members).expect("an archive");
    fs::write(&path, archive).expect("written");
    let problem = || {
        let runs = places.store().all().expect("readable");
        integrity::check(&runs[0]).expect_err("broken")
    };
    assert_eq!(
        problem(),
        "rows.tar is not what was sealed: its sha256 is not that in digests.json"
    );

    // Vouched for as a file, but not its member; then its member not at all; then another file.
    let mut digests = read_digests(&dir).expect("readable");
    digests.sha256 = digests_of(&dir, DIGESTS).expect("readable");
    write_json(&dir.join(DIGESTS), &digests).expect("written");
    assert_eq!(
        problem(),
        "starts.jsonl.xz in rows.tar is not what was sealed: its sha256 is not that in \
         digests.json"
    );
    digests.members.remove("starts.jsonl.xz");
    write_json(&dir.join(DIGESTS), &digests).expect("written");
    assert_eq!(problem(), "digests.json does not vouch for starts.jsonl.xz");
    let digest = digests.sha256[ROWS].clone();
    digests.sha256.insert("../x".to_owned(), digest);
    write_json(&dir.join(DIGESTS), &digests).expect("written");
    assert_eq!(problem(), "digests.json: `../x` is no file of a campaign");

    fs::remove_file(dir.join(DIGESTS)).expect("removed");
    assert!(problem().contains(DIGESTS));
}

fn members_of(dir: &Path) -> [Vec<u8>; 4] {
    rows_tar::read(&dir.join(ROWS)).expect("readable")
}

/// Killed between the campaign's last file and the removal of the run folders.
#[test]
fn a_seal_that_was_cut_short_is_ended_by_the_next() {
    let places = Places::new();
    let run_id = places.start("01-a", 0);
    let copy = places.dir.path().join("copy");
    fs::create_dir(&copy).expect("made");
    let folder = places.runs().join(&run_id);
    for (name, bytes) in files_in(&folder).expect("readable") {
        fs::write(copy.join(name), bytes).expect("written");
    }
    let dir = places.seal().expect("sealed");
    fs::rename(&copy, &folder).expect("moved");
    assert_eq!(places.store().all().expect("readable").len(), 1);
    fs::create_dir(dir.with_file_name(".left.partial")).expect("made");
    assert_eq!(places.seal().expect("sealed again"), dir);
    assert!(!folder.exists());

    // But a folder with different contents is kept.
    let other = places.start("01-a", 0);
    fs::write(places.runs().join(&other).join(SERVER_LOG), "another").expect("written");
    let error = places.seal().expect_err("refused").to_string();
    assert!(error.contains("is not what was sealed"), "{error}");
    assert!(folder.exists());
}

#[test]
fn what_runs_is_not_sealed_and_what_was_killed_is() {
    let places = Places::new();
    places.start("01-a", 0);
    let running = places.begin("01-a", 1);
    let error = places.seal().expect_err("refused").to_string();
    assert!(error.contains("is running"), "{error}");
    assert_eq!(run_folders(&places.runs()).expect("readable").len(), 2);

    let dir = running.dir().to_owned();
    drop(running);
    fs::write(dir.join(REQUESTS), "{\"case\":\"latency-4\",\"warm").expect("torn");
    fs::remove_file(dir.join(STATUS)).expect("removed");
    label_failed(&dir, "the runner was killed").expect("labelled");
    places.seal().expect("sealed");
    let killed = places.store().find("00000001").expect("found");
    let status = killed.status().expect("readable").expect("a status");
    assert_eq!(status.status, RunStatus::Failed);
    assert_eq!(
        killed.text(REQUESTS).expect("readable"),
        "{\"case\":\"latency-4\",\"warm"
    );
}

#[test]
fn campaigns_that_wait_are_listed_with_whether_they_are_quick() {
    let places = Places::new();
    assert_eq!(unsealed_campaigns(&places.runs()).expect("readable"), []);
    places.start("01-a", 0);
    fs::create_dir(places.runs().join("something-else")).expect("made");
    let waiting = unsealed_campaigns(&places.runs()).expect("readable");
    assert_eq!(waiting, [(CAMPAIGN_ID.to_owned(), false)]);
}
