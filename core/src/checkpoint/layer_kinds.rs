//! Which kind of attention each layer has.

/// The kind of attention of each layer, a number that counts the kinds of a [`FamilyAttention`](super::families::FamilyAttention).
/// Layers after the last pattern are of kind 0.
///
/// It is never longer than what a file lists, because a file may state any number of layers.
///
/// ```
/// use burn_deepspeed_core::checkpoint::families::LayerKinds;
/// let kinds = LayerKinds::every(3, 0, 1);
/// assert_eq!([0, 1, 2, 3].map(|layer| kinds.of(layer)), [1, 1, 0, 1]);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerKinds(Vec<Pattern>);

/// Runs of layers of one kind, and how often they repeat.
#[derive(Debug, Clone, PartialEq)]
struct Pattern {
    /// The kind and the number of layers of each run.
    runs: Vec<(usize, u64)>,
    times: u64,
}

impl LayerKinds {
    /// Every layer is of this kind.
    pub fn all(kind: usize) -> Self {
        Self::since(0, kind, 0)
    }

    /// The kind of each layer, one after the other.
    pub fn listed(kinds: impl IntoIterator<Item = usize>) -> Self {
        Self::repeated([(kinds.into_iter().collect(), 1)])
    }

    /// Patterns of layers one after the other, and how often each repeats.
    pub fn repeated(patterns: impl IntoIterator<Item = (Vec<usize>, u64)>) -> Self {
        let pattern = |(kinds, times): (Vec<usize>, u64)| Pattern {
            runs: kinds.into_iter().map(|kind| (kind, 1)).collect(),
            times,
        };
        Self(patterns.into_iter().map(pattern).collect())
    }

    /// Each layer whose number, counted from 1, `interval` divides is of `kind`. An interval of 0 divides no number.
    pub fn every(interval: usize, kind: usize, others: usize) -> Self {
        match (interval as u64).checked_sub(1) {
            None => Self::all(others),
            Some(between) => Self(vec![Pattern { runs: vec![(others, between), (kind, 1)], times: u64::MAX }]),
        }
    }

    /// The layers from `first` on, counted from 0, are of `kind`.
    pub fn since(first: usize, kind: usize, before: usize) -> Self {
        Self(vec![Pattern { runs: vec![(before, first as u64), (kind, u64::MAX)], times: 1 }])
    }

    /// The same kinds after one layer of `kind`.
    pub fn after(mut self, kind: usize) -> Self {
        self.0.insert(0, Pattern { runs: vec![(kind, 1)], times: 1 });
        self
    }

    /// Whether some of the first `layers` layers are of `kind`. It looks at runs, so it does not depend on the number of layers.
    pub(super) fn has(&self, kind: usize, layers: usize) -> bool {
        let mut start = 0u64;
        for Pattern { runs, times } in self.0.iter().filter(|pattern| pattern.times > 0) {
            let mut first = start;
            for (of_run, length) in runs {
                if *of_run == kind && *length > 0 && first < layers as u64 {
                    return true;
                }
                first = first.saturating_add(*length);
            }
            start = start.saturating_add((first - start).saturating_mul(*times));
        }
        kind == 0 && start < layers as u64
    }

    /// The kind of layer `layer`, counted from 0.
    pub fn of(&self, layer: usize) -> usize {
        let mut rest = layer as u64;
        for Pattern { runs, times } in &self.0 {
            let once = runs.iter().fold(0, |sum: u64, (_, layers)| sum.saturating_add(*layers));
            let all = once.saturating_mul(*times);
            if rest >= all {
                rest -= all;
                continue;
            }
            let mut within = rest % once;
            for (kind, layers) in runs {
                if within < *layers {
                    return *kind;
                }
                within -= layers;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first<const N: usize>(kinds: &LayerKinds) -> [usize; N] {
        std::array::from_fn(|layer| kinds.of(layer))
    }

    #[test]
    fn patterns_repeat_and_end() {
        let kinds = LayerKinds::repeated([(vec![0, 1], 2), (vec![], 7), (vec![2], 1)]);
        assert_eq!(first(&kinds), [0, 1, 0, 1, 2, 0, 0]);
        assert_eq!(first(&LayerKinds::listed([3, 0, 1])), [3, 0, 1, 0]);
        assert_eq!(first(&LayerKinds::default()), [0, 0]);
        assert_eq!(first(&LayerKinds::all(2)), [2, 2]);
        assert_eq!(first(&LayerKinds::every(3, 0, 1).after(2)), [2, 1, 1, 0, 1, 1, 0]);
    }

    #[test]
    fn numbers_of_a_file_may_be_huge() {
        assert_eq!(first(&LayerKinds::every(1, 1, 0)), [1, 1]);
        assert_eq!(first(&LayerKinds::every(0, 1, 2)), [2, 2]);
        let rare = LayerKinds::every(usize::MAX, 1, 2);
        assert_eq!([0, usize::MAX - 2, usize::MAX - 1].map(|layer| rare.of(layer)), [2, 2, 1]);
        let late = LayerKinds::since(2, 1, 0);
        assert!(late.has(1, 3) && !late.has(1, 2) && late.has(0, 1) && !late.has(7, usize::MAX));
        assert!(LayerKinds::listed([1]).has(0, 2) && !LayerKinds::listed([1]).has(0, 1));
        assert_eq!([0, 1, 2, usize::MAX - 1].map(|layer| late.of(layer)), [0, 0, 1, 1]);
    }
}
