//! Splits a step's tokens into passes through the layers.

use super::inputs::{MAX_ROWS, SequenceTokens};
use crate::step::{PlanRow, Target};

/// Some tokens of a row as part of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::executor) struct Piece {
    pub row: usize,
    /// Index of the first token in the row's tokens.
    pub first: usize,
    pub n_tokens: usize,
}

impl Piece {
    pub(super) fn of(self, rows: &[PlanRow]) -> SequenceTokens<'_> {
        let row = &rows[self.row];
        SequenceTokens {
            tokens: &row.tokens[self.first..self.first + self.n_tokens],
            start: row.start + self.first,
            pages: &row.pages,
        }
    }
}

/// The rows' tokens in order, in passes of up to `max_tokens` tokens and [`MAX_ROWS`] sequences.
pub(in crate::executor) fn passes(rows: &[PlanRow], max_tokens: usize) -> Vec<Vec<Piece>> {
    let mut passes = Vec::new();
    let mut pass: Vec<Piece> = Vec::new();
    let mut room = max_tokens;
    for (row, plan) in rows.iter().enumerate() {
        let mut first = 0;
        while first < plan.tokens.len() {
            if room == 0 || pass.len() == MAX_ROWS {
                passes.push(std::mem::take(&mut pass));
                room = max_tokens;
            }
            let n_tokens = room.min(plan.tokens.len() - first);
            pass.push(Piece {
                row,
                first,
                n_tokens,
            });
            first += n_tokens;
            room -= n_tokens;
        }
    }
    if !pass.is_empty() {
        passes.push(pass);
    }
    passes
}

/// The rows that get a token from this pass, and the index of their last token in it.
pub(super) fn sampled(rows: &[PlanRow], pass: &[Piece]) -> (Vec<usize>, Vec<usize>) {
    let mut end = 0;
    pass.iter()
        .filter_map(|piece| {
            end += piece.n_tokens;
            let row = &rows[piece.row];
            let is_last = piece.first + piece.n_tokens == row.tokens.len();
            (is_last && row.sample.is_some()).then_some((piece.row, end - 1))
        })
        .unzip()
}

/// The tokens that this pass scores, each with the index of its logits in the pass.
pub(super) fn scored(pass: &[Piece], targets: &[Target]) -> Vec<(usize, Target)> {
    let mut before = 0;
    pass.iter()
        .flat_map(|piece| {
            let here = piece.first..piece.first + piece.n_tokens;
            let start = before;
            before += piece.n_tokens;
            targets
                .iter()
                .filter(move |target| target.row == piece.row && here.contains(&target.at))
                .map(move |target| (start + target.at - piece.first, *target))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestId;

    fn row(n_tokens: usize) -> PlanRow {
        PlanRow {
            n_drafts: 0,
            request: RequestId(n_tokens as u64),
            tokens: vec![7; n_tokens],
            start: 0,
            pages: Vec::new(),
            sample: None,
        }
    }

    fn sizes(lengths: &[usize], max_tokens: usize) -> Vec<Vec<(usize, usize, usize)>> {
        let rows: Vec<PlanRow> = lengths.iter().map(|n| row(*n)).collect();
        passes(&rows, max_tokens)
            .into_iter()
            .map(|pass| pass.iter().map(|p| (p.row, p.first, p.n_tokens)).collect())
            .collect()
    }

    #[test]
    fn long_rows_are_cut_and_short_ones_share_a_pass() {
        assert_eq!(
            sizes(&[3, 12, 1], 8),
            [vec![(0, 0, 3), (1, 0, 5)], vec![(1, 5, 7), (2, 0, 1)]]
        );
        assert_eq!(sizes(&[8], 8), [vec![(0, 0, 8)]]);
        assert!(sizes(&[], 8).is_empty());
    }

    #[test]
    fn tokens_are_scored_in_the_pass_that_has_their_logits() {
        let target = |row, at| Target {
            row,
            at,
            token: 0,
            n_top: 0,
        };
        let targets = [
            target(0, 0),
            target(0, 2),
            target(1, 4),
            target(1, 5),
            target(2, 0),
        ];
        let rows: Vec<PlanRow> = [3, 12, 1].map(row).into();
        let found: Vec<Vec<(usize, usize, usize)>> = passes(&rows, 8)
            .iter()
            .map(|pass| {
                let scored = scored(pass, &targets).into_iter();
                scored.map(|(i, t)| (i, t.row, t.at)).collect()
            })
            .collect();
        assert_eq!(found[0], [(0, 0, 0), (2, 0, 2), (7, 1, 4)]);
        assert_eq!(found[1], [(0, 1, 5), (7, 2, 0)]);
    }

    #[test]
    fn a_pass_holds_no_more_sequences_than_get_logits_at_once() {
        let found = sizes(&[1; MAX_ROWS + 1], 1024);
        assert_eq!(
            found.iter().map(Vec::len).collect::<Vec<_>>(),
            [MAX_ROWS, 1]
        );
    }
}
