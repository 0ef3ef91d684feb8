//! What every export of a run has in common, whichever program writes it: whether the run may be
//! exported, and the file's name.

use crate::RecordError;
use crate::integrity::{self, Vouched};
use crate::store::StoredRun;

/// Where exports go, below the repository's root, unless another folder is typed.
pub const FOLDER: &str = "target/export";

/// What must be said beside the export; an error where the record is broken.
///
/// # Errors
///
/// [`RecordError::Malformed`] if the run is complete but [`integrity::check`] finds its record
/// broken.
pub fn remark(run: &StoredRun) -> Result<Option<String>, RecordError> {
    if !run.is_complete() {
        return Ok(Some(format!(
            "{} did not complete; what it had measured is exported",
            run.run_id
        )));
    }
    match integrity::check(run) {
        Ok(Vouched::ByDigests) => Ok(None),
        Ok(Vouched::ByRows) => Ok(Some(format!(
            "{} has no digests (an older version recorded it): its rows are as many as they should be, and no more is known",
            run.run_id
        ))),
        Err(problem) => Err(RecordError::malformed(
            run.place(),
            format!("broken and not exported: {problem}"),
        )),
    }
}

/// Of names that may be a model's (`Qwen/Qwen3`) or come from a foreign folder: no part of it leads
/// elsewhere.
pub fn file_name(run_id: &str, what: &str, ending: &str) -> String {
    format!("{run_id}.{what}.{ending}")
        .trim_start_matches('.')
        .replace(['/', '\\', ':'], "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for (run_id, what, name) in [
            ("r1", "users-2", "r1.users-2.json"),
            ("r1", "alone-Qwen/Qwen3-8", "r1.alone-Qwen-Qwen3-8.json"),
            ("../../up", "users-2", "-..-up.users-2.json"),
            ("/abs/r1", "users-2", "-abs-r1.users-2.json"),
        ] {
            assert_eq!(file_name(run_id, what, "json"), name);
        }
    }
}
