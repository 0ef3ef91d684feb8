//! The memory of steps that were carried out: the next ones are written into it, so that a batch
//! that stays the same allocates nothing for its rows. What a plan says never depends on it.

use super::sequence::Sequence;
use crate::step::PlanRow;

#[derive(Debug, Default)]
pub(super) struct RowMemory {
    lists: Vec<Vec<PlanRow>>,
    /// Last in, first out.
    rows: Vec<PlanRow>,
}

impl RowMemory {
    /// An empty list.
    pub fn list(&mut self) -> Vec<PlanRow> {
        self.lists.pop().unwrap_or_default()
    }

    /// Appends the row that computes the next `n_tokens` known tokens of `sequence`.
    pub fn push(&mut self, rows: &mut Vec<PlanRow>, sequence: &Sequence, n_tokens: usize) {
        let mut row = self.rows.pop().unwrap_or_else(|| PlanRow {
            request: sequence.request.id,
            tokens: Vec::new(),
            start: 0,
            pages: Vec::new(),
            sample: None,
        });
        sequence.write_row(n_tokens, &mut row);
        rows.push(row);
    }

    pub fn take_back(&mut self, mut rows: Vec<PlanRow>) {
        // Backwards, so that in a batch that stays the same each sequence gets its own row again,
        // whose memory is large enough.
        self.rows.extend(rows.drain(..).rev());
        self.lists.push(rows);
    }
}
