//! Whether a grammar has any finite word: a grammar whose every text is infinite is detected before
//! anything is generated.

use std::collections::{HashMap, HashSet};

use llguidance::earley::{CGrammar, CSymIdx};

/// Whether some finite text fits. Conditions of parametric rules are assumed to hold.
pub(super) fn has_words(grammar: &CGrammar) -> bool {
    let order = reachable(grammar);
    let mut ends: HashSet<CSymIdx> = HashSet::new();
    loop {
        let n_before = ends.len();
        for symbol in &order {
            if !ends.contains(symbol) && can_end(grammar, *symbol, &ends) {
                ends.insert(*symbol);
            }
        }
        if ends.contains(&grammar.start()) {
            return true;
        }
        if ends.len() == n_before {
            return false;
        }
    }
}

fn can_end(grammar: &CGrammar, symbol: CSymIdx, ends: &HashSet<CSymIdx>) -> bool {
    let data = grammar.sym_data(symbol);
    data.is_terminal
        || data.lexeme.is_some()
        || data.is_nullable
        || !data.cond_nullable.is_empty()
        || data.rules.iter().any(|rule| {
            let (parts, _, _) = grammar.rule_rhs(*rule);
            parts.iter().all(|part| ends.contains(part))
        })
}

/// Every symbol after those that its rules refer to, except in cycles; so few rounds are needed.
fn reachable(grammar: &CGrammar) -> Vec<CSymIdx> {
    let mut order = Vec::new();
    let mut is_seen: HashMap<CSymIdx, bool> = HashMap::new();
    let mut open = vec![grammar.start()];
    while let Some(symbol) = open.last().copied() {
        if let Some(is_listed) = is_seen.get_mut(&symbol) {
            open.pop();
            if !*is_listed {
                *is_listed = true;
                order.push(symbol);
            }
            continue;
        }
        is_seen.insert(symbol, false);
        for rule in grammar.rules_of(symbol) {
            let (parts, _, _) = grammar.rule_rhs(*rule);
            open.extend(parts.iter().filter(|part| !is_seen.contains_key(part)));
        }
    }
    order
}
