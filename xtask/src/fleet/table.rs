//! The rows of `fleet`, and the checks that each has failed.

use std::fmt::Write as _;

use super::load::Tally;

pub struct Row {
    pub router: &'static str,
    pub version: String,
    pub n_engines: usize,
    pub part: &'static str,
    pub policy: String,
    pub tally: Tally,
    pub n_retries: usize,
    pub hit_rate: Option<f64>,
    pub notes: Vec<String>,
    /// Checks that failed, and that a router may be known to fail.
    pub faults: Vec<String>,
    /// Checks that failed and that every router has to pass.
    pub failures: Vec<String>,
}

impl Row {
    pub fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    pub fn has_failed(&self) -> bool {
        !self.faults.is_empty() || !self.failures.is_empty()
    }

    pub fn note_if(&mut self, is_so: bool, note: &str) {
        if is_so {
            self.notes.push(note.to_owned());
        }
    }

    pub fn must_lose_nothing(&mut self) {
        let (lost, torn) = (self.tally.n_lost, self.tally.n_torn);
        if lost + torn > 0 {
            self.fault(format!("{lost} lost, {torn} torn"));
        }
    }

    /// A failed check of a part that the router is known to lack becomes a note.
    pub fn forgive(&mut self, lacks: &[(&str, &str)]) {
        let Some((_, why)) = lacks.iter().find(|(part, _)| *part == self.part) else {
            return;
        };
        if !self.faults.is_empty() {
            let measured = std::mem::take(&mut self.faults).join(", ");
            self.notes.push(format!("{measured}: {why}"));
        }
    }

    fn note(&self) -> String {
        let mut notes = self.notes.clone();
        let failed = self.faults.iter().chain(&self.failures);
        notes.extend(failed.map(|fault| format!("FAILED: {fault}")));
        notes.join("; ")
    }
}

/// While the recipe runs: one row, and what its clients saw.
pub fn lines(row: &Row) -> String {
    let whole = table(std::slice::from_ref(row));
    let mut text = whole.lines().last().unwrap_or_default().to_owned() + "\n";
    for (fault, n) in &row.tally.faults {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "    {n} × {fault}");
    }
    text
}

/// Markdown, for the terminal and for documents alike.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| router | engines | part | policy | requests | lost | torn | retried | prefix hits | note |\n\
         |---|---:|---|---|---:|---:|---:|---:|---:|---|\n",
    );
    for row in rows {
        let hits = row
            .hit_rate
            .map_or_else(|| "–".to_owned(), |rate| format!("{:.0} %", rate * 100.0));
        let _ = writeln!(
            text,
            "| {} {} | {} | {} | {} | {} | {} | {} | {} | {hits} | {} |",
            row.router,
            row.version,
            row.n_engines,
            row.part,
            row.policy,
            row.tally.n_requests,
            row.tally.n_lost,
            row.tally.n_torn,
            row.n_retries,
            row.note(),
        );
    }
    text
}

/// The difference that a policy makes has to be seen: affinity finds more than round robin.
pub fn check_affinity(rows: &mut [Row], affinity: usize, round_robin: usize) {
    const LEAST_GAIN: f64 = 0.1;
    let rate = |i: usize| rows[i].hit_rate.unwrap_or(0.0);
    let (with, without) = (rate(affinity), rate(round_robin));
    if with < without + LEAST_GAIN {
        rows[affinity].fault(format!(
            "prefix hits {with:.2} are not {LEAST_GAIN} above {without:.2}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(part: &'static str, hit_rate: Option<f64>) -> Row {
        Row {
            router: "a",
            version: "1.0".into(),
            n_engines: 2,
            part,
            policy: "p".into(),
            tally: Tally {
                n_requests: 10,
                n_lost: 2,
                ..Tally::default()
            },
            n_retries: 3,
            hit_rate,
            notes: vec!["x".into()],
            faults: Vec::new(),
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_lack_that_is_known_is_told_and_no_failure() {
        let mut lost = row("replica killed", None);
        lost.must_lose_nothing();
        assert_eq!(lost.faults, ["2 lost, 0 torn"]);
        let mut failed = row("replica killed", None);
        failed.failures.push("all lost".into());
        failed.forgive(&[("replica killed", "no")]);
        assert!(failed.has_failed(), "never forgiven");
        let told = table(std::slice::from_ref(&lost));
        assert!(told.contains("FAILED: 2 lost"), "{told}");
        lost.forgive(&[("rolling restart", "no")]);
        assert_eq!(lost.faults.len(), 1);
        lost.forgive(&[("replica killed", "it does not retry")]);
        assert!(!lost.has_failed());
        let told = table(&[lost]);
        let expected = "| a 1.0 | 2 | replica killed | p | 10 | 2 | 0 | 3 | – | x; 2 lost, 0 torn: it does not retry |\n";
        assert!(told.ends_with(expected), "{told}");
    }

    #[test]
    fn affinity_has_to_find_more_than_round_robin() {
        let mut rows = [row("p", Some(0.8)), row("p", Some(0.3))];
        check_affinity(&mut rows, 0, 1);
        assert!(rows[0].faults.is_empty());
        rows[1].hit_rate = Some(0.75);
        check_affinity(&mut rows, 0, 1);
        assert_eq!(rows[0].faults.len(), 1);
    }
}
