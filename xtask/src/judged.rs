//! A campaign, and then the program that judges it. Neither knows the other: this recipe calls both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What an exit code says of a program that a signal has ended.
const ENDED_BY_SIGNAL: u8 = 1;

/// The programs, which must have been built.
pub struct Programs {
    pub experiments: PathBuf,
    pub reports: PathBuf,
    /// Where both run.
    pub folder: PathBuf,
}

/// Which campaign, and what is to be said of it.
pub struct Call<'a> {
    /// `ablate`, `reproduce`
    pub command: &'a str,
    pub args: Vec<String>,
    /// `ablation`, `reproduction`
    pub verdict: &'a str,
    /// Where its runs lie, if not in their usual places.
    pub runs_dir: Option<&'a str>,
}

/// `experiments <command>`, then `reports <verdict>` on its campaign, if it has left something to judge.
/// `note`: a file that does not exist, through which the one tells the campaign's id. Returns the exit
/// code of the first that failed.
pub fn run(programs: &Programs, call: &Call<'_>, note: &Path) -> Result<u8> {
    // Another process of this one's number may have left one.
    let _ = fs::remove_file(note);
    let measured = run_bound(programs, call, note)?;
    let code = code_of(measured);
    let Ok(campaign) = fs::read_to_string(note) else {
        return Ok(code);
    };
    fs::remove_file(note).with_context(|| note.display().to_string())?;
    let mut reports = Command::new(&programs.reports);
    reports.args([call.verdict, &campaign]);
    if let Some(dir) = call.runs_dir {
        reports.args(["--runs-dir", dir]);
    }
    let judged = reports
        .current_dir(&programs.folder)
        .status()
        .with_context(|| format!("{} cannot be started", programs.reports.display()))?;
    Ok(if code == 0 { code_of(judged) } else { code })
}

/// Signals for this process reach the program, and it ends should this process be killed: no server
/// stays.
fn run_bound(programs: &Programs, call: &Call<'_>, note: &Path) -> Result<ExitStatus> {
    let program = &programs.experiments;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals")?;
    let end = signals.handle();
    let mut child = Command::new(program)
        .args(["exec-bound", "--parent", &std::process::id().to_string()])
        .arg("--")
        .arg(program)
        .arg(call.command)
        .arg("--ended-file")
        .arg(note)
        .args(&call.args)
        .current_dir(&programs.folder)
        .spawn()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let pid = Pid::from_raw(child.id() as i32);
    let passing_on = thread::spawn(move || {
        for signal in &mut signals {
            let signal = match signal {
                SIGINT => Signal::INT,
                SIGHUP => Signal::HUP,
                _ => Signal::TERM,
            };
            if let Some(pid) = pid {
                // One that has ended meanwhile needs no signal.
                let _ = kill_process(pid, signal);
            }
        }
    });
    let status = child.wait().context("waiting for the campaign")?;
    end.close();
    // It cannot panic; nothing is lost if it did.
    let _ = passing_on.join();
    Ok(status)
}

fn code_of(status: ExitStatus) -> u8 {
    status
        .code()
        .map_or(ENDED_BY_SIGNAL, |code| u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Stands in for `experiments`: becomes what `exec-bound` names, then does what it was told.
    const EXPERIMENTS: &str = r#"#!/bin/sh
if [ "$1" = exec-bound ]; then
    [ "$3" = "$PPID" ] || exit 99
    shift 4
    exec "$@"
fi
echo "$@" > asked-experiments
[ "$4" = nothing ] || printf 20260101T000000Z_c > "$3"
[ "$4" = fails ] && exit 3
exit 0
"#;
    const REPORTS: &str = "#!/bin/sh\necho \"$@\" > asked-reports\nexit 4\n";

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("judged-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).expect("made");
            for (program, text) in [("experiments", EXPERIMENTS), ("reports", REPORTS)] {
                let path = dir.join(program);
                fs::write(&path, text).expect("written");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
            }
            Self(dir)
        }

        fn run(&self, word: &str) -> u8 {
            let programs = Programs {
                experiments: self.0.join("experiments"),
                reports: self.0.join("reports"),
                folder: self.0.clone(),
            };
            let call = Call {
                command: "ablate",
                args: vec![word.into()],
                verdict: "ablation",
                runs_dir: Some("elsewhere"),
            };
            run(&programs, &call, &self.0.join("note")).expect("run")
        }

        fn asked(&self, program: &str) -> Option<String> {
            fs::read_to_string(self.0.join(format!("asked-{program}"))).ok()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_campaign_that_was_measured_is_judged() {
        let folder = Folder::new("both");
        assert_eq!(folder.run("full"), 4);
        let asked = folder.asked("experiments").expect("asked");
        assert!(asked.starts_with("ablate --ended-file "), "{asked}");
        assert_eq!(
            folder.asked("reports").as_deref(),
            Some("ablation 20260101T000000Z_c --runs-dir elsewhere\n")
        );
        assert!(!folder.0.join("note").exists());
    }

    #[test]
    fn a_failed_run_is_judged_and_stays_a_failure() {
        let folder = Folder::new("fails");
        assert_eq!(folder.run("fails"), 3);
        assert!(folder.asked("reports").is_some());
    }

    #[test]
    fn where_nothing_was_measured_nothing_is_judged() {
        let folder = Folder::new("nothing");
        assert_eq!(folder.run("nothing"), 0);
        assert_eq!(folder.asked("reports"), None);
    }
}
