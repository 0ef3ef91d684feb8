use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const RULE: DraftRule = DraftRule {
    max: 8,
    per_matched: 1.0,
    min_prob: 0.1,
};

fn tree(depth: usize, n_texts: usize, n_tokens: usize) -> SuffixTree {
    SuffixTree::new(Limits {
        depth,
        n_texts,
        n_tokens,
        n_nodes: 1 << 20,
    })
}

fn enter(tree: &mut SuffixTree, tokens: &[u32]) -> TextId {
    let id = tree.begin(0);
    assert!(tokens.iter().all(|token| tree.append(id, *token)));
    id
}

fn draft(tree: &mut SuffixTree, id: TextId, rule: DraftRule) -> Vec<u32> {
    let mut drafts = Vec::new();
    if let Some(found) = tree.find(id, rule) {
        tree.draft(found, rule, &mut drafts);
    }
    drafts
}

/// All sequences of up to `depth` tokens, by looking at every suffix.
fn counted(texts: &[Vec<u32>], depth: usize) -> HashMap<Vec<u32>, u32> {
    let mut counts = HashMap::new();
    for text in texts {
        for start in 0..text.len() {
            for end in start + 1..=text.len().min(start + depth) {
                *counts.entry(text[start..end].to_vec()).or_default() += 1;
            }
        }
    }
    counts
}

impl SuffixTree {
    /// All sequences with a node, and their counts.
    fn contents(&self, root_key: u64) -> HashMap<Vec<u32>, u32> {
        let mut found = HashMap::new();
        for (node, at) in self.nodes.iter().enumerate() {
            if self.unused.contains(&(node as u32)) || at.parent == NONE {
                continue;
            }
            let (mut tokens, mut up) = (Vec::new(), node as u32);
            while self.nodes[up as usize].parent != NONE {
                tokens.push(self.nodes[up as usize].token);
                up = self.nodes[up as usize].parent;
            }
            tokens.reverse();
            if self
                .roots
                .get(&root_key)
                .is_some_and(|(root, _)| *root == up)
            {
                assert_eq!(found.insert(tokens, at.count), None);
            }
        }
        found
    }
}

#[test]
fn what_followed_most_often_is_drafted_as_far_as_it_is_likely() {
    let mut tree = tree(12, 100, 10_000);
    for _ in 0..3 {
        enter(&mut tree, &[1, 2, 3, 4, 5, 6]);
    }
    enter(&mut tree, &[1, 2, 3, 9, 9, 9]);
    let asked = enter(&mut tree, &[7, 1, 2]);
    let rule = |max, per_matched, min_prob| DraftRule {
        max,
        per_matched,
        min_prob,
    };
    assert_eq!(draft(&mut tree, asked, rule(8, 8.0, 0.1)), [3, 4, 5, 6]);
    // Two tokens match: two drafts, or three.
    assert_eq!(draft(&mut tree, asked, rule(8, 1.0, 0.1)), [3, 4]);
    assert_eq!(draft(&mut tree, asked, rule(8, 1.5, 0.1)), [3, 4, 5]);
    assert_eq!(draft(&mut tree, asked, rule(1, 8.0, 0.1)), [3]);
    // 4 follows in three of four.
    assert_eq!(draft(&mut tree, asked, rule(8, 8.0, 0.8)), [3]);
    let found = tree.find(asked, rule(3, 8.0, 0.1)).expect("found");
    assert!(
        (found.score - (1.0 + 0.75 + 0.75)).abs() < 1e-9,
        "{found:?}"
    );
    assert_eq!(found.n_matched, 2);
}

#[test]
fn a_text_that_occurred_once_is_followed_beyond_the_trees_depth() {
    let mut tree = tree(6, 100, 10_000);
    let once: Vec<u32> = (0..40).collect();
    enter(&mut tree, &once);
    let asked = enter(&mut tree, &[3, 4, 5, 6, 7]);
    let rule = DraftRule {
        max: 31,
        per_matched: 8.0,
        min_prob: 0.1,
    };
    assert_eq!(draft(&mut tree, asked, rule), once[8..39]);
}

#[test]
fn texts_of_other_roots_are_not_found() {
    let mut tree = tree(8, 100, 10_000);
    let ids = [1, 2, 1].map(|key| tree.begin(key));
    for (id, tokens) in ids.into_iter().zip([&[5, 6, 7][..], &[5, 6, 8], &[5, 6]]) {
        assert!(tokens.iter().all(|token| tree.append(id, *token)));
    }
    assert_eq!(draft(&mut tree, ids[2], RULE), [7]);
}

#[test]
fn the_least_recently_used_text_leaves_and_what_is_used_stays() {
    let mut tree = tree(8, 3, 10_000);
    for first in [10, 20, 30] {
        let id = enter(&mut tree, &[first, first + 1, first + 2, first + 3]);
        tree.end(id);
    }
    // The first one is used, so the second one is the oldest.
    let asked = enter(&mut tree, &[10, 11]);
    assert_eq!(draft(&mut tree, asked, RULE), [12, 13]);
    tree.end(asked);
    // It leaves with the tokens of others.
    enter(&mut tree, &[50; 12]);
    let contents = tree.contents(0);
    assert!(contents.contains_key(&vec![10, 11]) && contents.contains_key(&vec![30]));
    assert!(!contents.contains_key(&vec![20]), "{contents:?}");
    // Those that grow do not.
    for _ in 0..5 {
        enter(&mut tree, &[60, 61]);
    }
    assert_eq!(tree.contents(0)[&vec![60, 61]], 5);
}

#[test]
fn tokens_and_nodes_are_bounded_whatever_is_entered() {
    let (depth, n_tokens, n_nodes) = (16, 2000, 8000);
    let mut tree = SuffixTree::new(Limits {
        depth,
        n_texts: 40,
        n_tokens,
        n_nodes,
    });
    let mut largest = (0, 0);
    for i in 0..400u32 {
        let id = tree.begin(u64::from(i % 3));
        // Texts that repeat each other unfold the tree; others do not.
        let seed = if i % 4 < 2 { i / 4 } else { i };
        for at in 0..150u32 {
            assert!(tree.append(id, (at * 31 + seed * 7919) % 1009));
            largest.0 = largest.0.max(tree.n_tokens());
            largest.1 = largest.1.max(tree.n_nodes());
        }
        tree.end(id);
    }
    assert!(largest.0 <= n_tokens && largest.1 <= n_nodes, "{largest:?}");
    assert!(largest.0 > n_tokens / 2, "{largest:?}");
    assert!(tree.texts.len() <= 41 && tree.roots.len() == 3);
    let capacity = tree
        .texts
        .values()
        .map(|text| text.tokens.len())
        .sum::<usize>();
    assert!(capacity <= n_tokens + 150, "{capacity} tokens are kept");
}

#[test]
fn a_text_that_has_no_room_ends() {
    let mut tree = tree(8, 4, 10);
    let id = tree.begin(0);
    assert!((0..10).all(|token| tree.append(id, token)));
    assert!(!tree.append(id, 10) && !tree.append(id, 11));
    assert_eq!(tree.n_tokens(), 10);
    // It has ended, so it makes room for another one.
    let other = tree.begin(0);
    assert!((20..28).all(|token| tree.append(other, token)));
    assert!(tree.n_tokens() <= 10);
}

proptest! {
    /// Texts grow in any order, end, and leave: what is in the tree is what a count of all
    /// pieces finds, and what is drafted is what followed most often.
    #[test]
    fn the_tree_counts_what_is_there(
        depth in 2usize..7,
        steps in proptest::collection::vec((0usize..4, 0u32..3), 1..160),
        n_texts in 2usize..6,
    ) {
        let mut tree = tree(depth, n_texts, 60);
        let mut growing: Vec<Option<TextId>> = vec![None; 4];
        for (which, token) in steps {
            let id = match growing[which] {
                Some(id) => id,
                None => *growing[which].insert(tree.begin(0)),
            };
            if token == 2 && tree.texts[&id].tokens.len() > 9 || !tree.append(id, token) {
                tree.end(id);
                growing[which] = None;
                continue;
            }
            let there: Vec<Vec<u32>> = tree.texts.values().map(|t| t.tokens.clone()).collect();
            let gone: Vec<(Vec<u32>, usize)> = tree
                .texts
                .values()
                .map(|t| (t.tokens.clone(), t.n_left))
                .collect();
            let mut counts = counted(&there, depth);
            for (tokens, n_left) in gone {
                for start in 0..n_left {
                    for end in start + 1..=tokens.len().min(start + depth) {
                        *counts.get_mut(&tokens[start..end]).expect("counted") -= 1;
                    }
                }
            }
            counts.retain(|_, count| *count > 0);
            let found = tree.contents(0);
            for (tokens, count) in &found {
                prop_assert_eq!(counts.get(tokens), Some(count), "{:?}", tokens);
            }
            // Only what lies below a sequence that occurs once may be missing.
            for (tokens, count) in &counts {
                let above = &tokens[..tokens.len() - 1];
                let is_below_leaf = counts.get(above) == Some(&1);
                prop_assert!(found.contains_key(tokens) || is_below_leaf && *count == 1);
            }
            check_draft(&mut tree, id, &counts, depth)?;
        }
    }
}

fn check_draft(
    tree: &mut SuffixTree,
    id: TextId,
    counts: &HashMap<Vec<u32>, u32>,
    depth: usize,
) -> Result<(), TestCaseError> {
    let Some(found) = tree.find(id, RULE) else {
        return Ok(());
    };
    let mut drafts = Vec::new();
    tree.draft(found, RULE, &mut drafts);
    let text = &tree.texts[&id].tokens;
    let mut sequence = text[text.len() - found.n_matched..].to_vec();
    prop_assert!(drafts.len() <= found.n_matched.min(RULE.max));
    let (mut prob, mut score) = (1.0, 0.0);
    for draft in &drafts {
        if sequence.len() < depth {
            let count_of = |token: u32| {
                let next = [&sequence[..], &[token]].concat();
                counts.get(&next).copied().unwrap_or(0)
            };
            let all = [0, 1, 2].map(count_of);
            prop_assert_eq!(count_of(*draft), *all.iter().max().expect("three"));
            prob *= f64::from(count_of(*draft)) / f64::from(all.iter().sum::<u32>());
        }
        prop_assert!(prob >= RULE.min_prob);
        score += prob;
        sequence.push(*draft);
    }
    prop_assert!(
        (score - found.score).abs() < 1e-9,
        "{} {}",
        score,
        found.score
    );
    Ok(())
}
