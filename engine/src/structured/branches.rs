//! Counts how many rules of a grammar can be open at one position of a text. More than the parser's
//! limit would otherwise be found only in the middle of a response.

use std::collections::HashMap;

use llguidance::earley::{CGrammar, CSymIdx};

/// The maximum number of rules that any symbol opens, counted up to `limit` + 1.
pub(super) fn widest(grammar: &CGrammar, limit: usize) -> usize {
    let mut known: HashMap<CSymIdx, Vec<CSymIdx>> = HashMap::new();
    let mut widest = 0;
    let mut reached = vec![grammar.start()];
    let mut next = 0;
    while let Some(symbol) = reached.get(next).copied() {
        next += 1;
        if known.contains_key(&symbol) {
            continue;
        }
        let mut firsts = Vec::new();
        for rule in grammar.rules_of(symbol) {
            let (parts, _, _) = grammar.rule_rhs(*rule);
            reached.extend(parts.iter().filter(|part| !known.contains_key(part)));
            for part in parts {
                firsts.push(*part);
                if !is_nullable(grammar, *part) {
                    break;
                }
            }
        }
        known.insert(symbol, firsts);
    }
    for symbol in known.keys() {
        widest = widest.max(n_opened(grammar, &known, *symbol, limit));
        if widest > limit {
            break;
        }
    }
    widest
}

fn n_opened(
    grammar: &CGrammar,
    firsts: &HashMap<CSymIdx, Vec<CSymIdx>>,
    symbol: CSymIdx,
    limit: usize,
) -> usize {
    let mut n_rules = 0;
    let mut seen = std::collections::HashSet::from([symbol]);
    let mut open = vec![symbol];
    while let Some(symbol) = open.pop() {
        n_rules += grammar.rules_of(symbol).len();
        if n_rules > limit {
            break;
        }
        let firsts = firsts.get(&symbol).into_iter().flatten();
        open.extend(firsts.filter(|first| seen.insert(**first)));
    }
    n_rules
}

fn is_nullable(grammar: &CGrammar, symbol: CSymIdx) -> bool {
    let data = grammar.sym_data(symbol);
    data.is_nullable || !data.cond_nullable.is_empty()
}
