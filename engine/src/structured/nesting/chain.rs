//! The longest chain in a graph of named parts.

/// The largest sum of weights along any chain of references that begins at node 0. Nodes in a cycle
/// count together, each once: an upper bound, since the longest path through a cycle is expensive
/// to find. `references[i]` are the nodes that node i refers to.
pub(super) fn longest(weights: &[usize], references: &[Vec<usize>]) -> usize {
    if weights.is_empty() {
        return 0;
    }
    let circle_of = circles(references);
    let n_circles = circle_of.iter().flatten().max().map_or(0, |last| last + 1);
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); n_circles];
    for (node, circle) in circle_of.iter().enumerate() {
        if let Some(circle) = circle {
            members[*circle].push(node);
        }
    }
    // A component is complete after everything that its members refer to, so those are known.
    let mut depth = vec![0; n_circles];
    for (circle, nodes) in members.iter().enumerate() {
        let own: usize = nodes.iter().map(|node| weights[*node]).sum();
        let below = nodes
            .iter()
            .flat_map(|node| &references[*node])
            .filter_map(|target| circle_of[*target])
            .filter(|target| *target != circle)
            .map(|target| depth[target])
            .max();
        depth[circle] = own.saturating_add(below.unwrap_or(0));
    }
    circle_of[0].map_or(0, |circle| depth[circle])
}

/// Strongly connected components reachable from node 0, numbered so that each comes after all that
/// it refers to (Tarjan's algorithm with an explicit stack). `None`: not reachable.
fn circles(references: &[Vec<usize>]) -> Vec<Option<usize>> {
    let n = references.len();
    let mut circle_of = vec![None; n];
    let mut order = vec![usize::MAX; n];
    let mut lowest = vec![usize::MAX; n];
    let mut n_circles = 0;
    let mut n_seen = 1;
    let mut open = vec![0];
    let mut path = vec![(0, 0)];
    (order[0], lowest[0]) = (0, 0);
    while let Some((node, next)) = path.last_mut() {
        let node = *node;
        if let Some(target) = references[node].get(*next).copied() {
            *next += 1;
            if order[target] == usize::MAX {
                (order[target], lowest[target]) = (n_seen, n_seen);
                n_seen += 1;
                open.push(target);
                path.push((target, 0));
            } else if circle_of[target].is_none() {
                lowest[node] = lowest[node].min(order[target]);
            }
            continue;
        }
        path.pop();
        if let Some((parent, _)) = path.last() {
            lowest[*parent] = lowest[*parent].min(lowest[node]);
        }
        if lowest[node] == order[node] {
            while let Some(member) = open.pop() {
                circle_of[member] = Some(n_circles);
                if member == node {
                    break;
                }
            }
            n_circles += 1;
        }
    }
    circle_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_add_up_and_circles_count_each_member_once() {
        for (weights, references, expected) in [
            (vec![1], vec![vec![]], 1),
            (vec![1, 2, 3], vec![vec![1, 2], vec![2], vec![]], 6),
            (vec![1, 2, 3], vec![vec![1, 2], vec![], vec![]], 4),
            // A cycle of two, and what it refers to.
            (vec![1, 2, 3], vec![vec![1], vec![0, 2], vec![]], 6),
            (vec![5], vec![vec![0]], 5),
            // Not reachable from the first.
            (vec![1, 9], vec![vec![], vec![0]], 1),
        ] {
            assert_eq!(longest(&weights, &references), expected, "{references:?}");
        }
        let n = 100_000;
        let chain: Vec<Vec<usize>> = (1..n).map(|i| vec![i]).chain([vec![]]).collect();
        assert_eq!(longest(&vec![1; n], &chain), n);
        let circle: Vec<Vec<usize>> = (1..n).map(|i| vec![i]).chain([vec![0]]).collect();
        assert_eq!(longest(&vec![1; n], &circle), n);
    }
}
