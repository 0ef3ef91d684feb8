//! What a report says of the sources of the runs it shows: nothing where a commit says all.

use records::source::Source;

use crate::lang::Lang;
use crate::load::run_folder::RunFolder;
use crate::select::Arm;

/// Characters of a commit's hash that tell it apart.
const SHORT: usize = 10;

pub fn mark(source: &Source, lang: Lang) -> Option<String> {
    match source {
        Source::Commit => None,
        Source::Diff => Some(
            lang.pick(
                "커밋되지 않은 변경 있음, 차이 보관됨",
                "with uncommitted changes, which are kept",
            )
            .to_owned(),
        ),
        Source::Hash => Some(
            lang.pick(
                "커밋 없이 소스의 sha256만 기록됨",
                "no commit, only the sources' sha256",
            )
            .to_owned(),
        ),
        Source::Kernels(commit) => {
            let commit = commit.get(..SHORT).unwrap_or(commit);
            Some(lang.pick(
                format!("커밋되지 않은 변경 있음, 커널만 {commit}의 것으로 확인됨"),
                format!("with uncommitted changes; known of the kernels alone, those of {commit}"),
            ))
        }
        Source::Unknown => Some(lang.pick("소스를 알 수 없음", "source unknown").to_owned()),
    }
}

/// Why arms are not judged of which no one can say what ran.
pub fn unknown(before: &Arm<'_>, after: &Arm<'_>, lang: Lang) -> Option<String> {
    let runs = before.runs.iter().chain(&after.runs);
    let is_unknown = runs.into_iter().any(|run| run.record.source.is_unknown());
    is_unknown.then(|| lang.pick("소스를 알 수 없음", "source unknown").to_owned())
}

/// As [`unknown`], of one run.
pub fn is_unknown(run: &RunFolder) -> bool {
    run.record
        .as_ref()
        .is_some_and(|record| record.source.is_unknown())
}
