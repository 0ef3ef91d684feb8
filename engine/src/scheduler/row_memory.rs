//! Recycled memory of committed plans for later ones, so that an unchanged batch allocates nothing
//! for its rows. The contents of a plan never depend on it.

use super::sequence::Sequence;
use crate::step::PlanRow;

#[derive(Debug, Default)]
pub(super) struct RowPool {
    lists: Vec<Vec<PlanRow>>,
    /// Last in, first out.
    rows: Vec<PlanRow>,
}

impl RowPool {
    /// An empty list.
    pub fn list(&mut self) -> Vec<PlanRow> {
        self.lists.pop().unwrap_or_default()
    }

    /// Appends the row that computes the next `n_tokens` known tokens of `sequence`.
    pub fn push(&mut self, rows: &mut Vec<PlanRow>, sequence: &Sequence, n_tokens: usize) {
        let mut row = self.rows.pop().unwrap_or_else(|| PlanRow {
            request: sequence.request.id,
            tokens: Vec::new(),
            n_drafts: 0,
            start: 0,
            pages: Vec::new(),
            sample: None,
        });
        sequence.write_row(n_tokens, &mut row);
        rows.push(row);
    }

    pub fn recycle(&mut self, mut rows: Vec<PlanRow>) {
        // In reverse order, so that in an unchanged batch each sequence gets its own row again,
        // whose memory is large enough.
        self.rows.extend(rows.drain(..).rev());
        self.lists.push(rows);
    }
}
