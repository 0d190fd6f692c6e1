//! Circles of files that import each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Which files each file imports, and by how many paths.
pub type Graph<'a> = BTreeMap<&'a str, BTreeMap<&'a str, usize>>;

/// An import without which there would be a circle less.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut<'a> {
    pub from: &'a str,
    pub to: &'a str,
    /// The files of the circle in the order of their imports.
    pub circle: Vec<&'a str>,
}

/// The imports to cut until no circle is left: of the shortest circle the one
/// with the fewest paths, and so on.
pub fn cuts<'a>(graph: &Graph<'a>) -> Vec<Cut<'a>> {
    let mut graph = graph.clone();
    let mut cuts = Vec::new();
    while let Some(circle) = shortest_circle(&graph) {
        let steps = circle.iter().zip(circle.iter().cycle().skip(1));
        let weight = |from: &str, to: &str| graph[from][to];
        let weakest = steps.min_by_key(|(from, to)| weight(from, to));
        let Some((&from, &to)) = weakest else { break };
        if let Some(imports) = graph.get_mut(from) {
            imports.remove(to);
        }
        cuts.push(Cut { from, to, circle });
    }
    cuts
}

/// Whether one file imports another, directly or through others.
pub fn leads(graph: &Graph, from: &str, to: &str) -> bool {
    way(graph, from, to).is_some()
}

fn shortest_circle<'a>(graph: &Graph<'a>) -> Option<Vec<&'a str>> {
    let circles = graph.keys().filter_map(|file| way(graph, file, file));
    circles.min_by_key(Vec::len)
}

/// The files on the shortest way between two files, without the last.
fn way<'a>(graph: &Graph<'a>, from: &str, to: &str) -> Option<Vec<&'a str>> {
    let (&start, _) = graph.get_key_value(from)?;
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::from([vec![start]]);
    while let Some(way) = queue.pop_front() {
        let imports = way.last().and_then(|last| graph.get(last));
        for next in imports.into_iter().flat_map(BTreeMap::keys) {
            if *next == to {
                return Some(way);
            }
            if seen.insert(*next) {
                queue.push_back(way.iter().copied().chain([*next]).collect());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&'static str, &'static str, usize)]) -> Graph<'static> {
        let mut graph = Graph::new();
        for (from, to, paths) in edges {
            graph.entry(from).or_default().insert(to, *paths);
        }
        graph
    }

    #[test]
    fn weakest_import_of_a_circle_is_cut() {
        let graph = graph(&[("a", "b", 3), ("b", "c", 1), ("c", "a", 2), ("a", "d", 1)]);
        let cuts = cuts(&graph);
        assert_eq!(cuts.len(), 1);
        assert_eq!((cuts[0].from, cuts[0].to), ("b", "c"));
        assert_eq!(cuts[0].circle, ["a", "b", "c"]);
    }

    #[test]
    fn each_circle_is_cut() {
        let graph = graph(&[("a", "b", 1), ("b", "a", 2), ("b", "c", 1), ("c", "b", 2)]);
        let cuts = cuts(&graph);
        let cuts: Vec<_> = cuts.iter().map(|cut| (cut.from, cut.to)).collect();
        assert_eq!(cuts, [("a", "b"), ("b", "c")]);
    }

    #[test]
    fn imports_in_one_direction_are_no_circle() {
        let graph = graph(&[("a", "b", 1), ("a", "c", 1), ("b", "c", 1)]);
        assert!(cuts(&graph).is_empty());
        assert!(leads(&graph, "a", "c"));
        assert!(!leads(&graph, "c", "a"));
    }
}
