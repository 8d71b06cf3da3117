//! Buckets of the distance between a query and a key.

use crate::error::ConfigError;

/// The buckets of T5's relative positions, <https://arxiv.org/abs/1910.10683>: one for each short distance, and for longer ones buckets
/// whose width grows with the logarithm of the distance. Every head has a learned bias for each bucket.
///
/// ```
/// use burn_deepspeed_core::position::RelativeBuckets;
///
/// let decoder = RelativeBuckets::new(8, 20, false)?;
/// // the key is the query's own, one before it, ten before it, far before it, after it
/// assert_eq!([0, -1, -10, -99, 3].map(|distance| decoder.of(distance)), [0, 1, 6, 7, 0]);
/// # Ok::<_, burn_deepspeed_core::error::ConfigError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelativeBuckets {
    buckets: usize,
    max_distance: usize,
    both_sides: bool,
}

impl RelativeBuckets {
    /// Buckets for distances up to `max_distance`, in tokens; the last bucket takes all that are longer. With `both_sides`, keys after the
    /// query have the second half of the buckets, otherwise they count as distance 0.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] for fewer than two buckets on a side, or a `max_distance` that the buckets for single distances reach.
    pub fn new(buckets: usize, max_distance: usize, both_sides: bool) -> Result<Self, ConfigError> {
        let own = Self { buckets, max_distance, both_sides };
        let out_of_range = |key, value: usize, limit| ConfigError::OutOfRange { key, value: value.to_string(), limit };
        if own.side() < 2 {
            let limit = if both_sides { "at least 4" } else { "at least 2" };
            return Err(out_of_range("relative_attention_num_buckets", buckets, limit));
        }
        if max_distance <= own.exact() {
            let limit = "above the distances that have a bucket each, half of those on a side";
            return Err(out_of_range("relative_attention_max_distance", max_distance, limit));
        }
        Ok(own)
    }

    /// Number of buckets.
    pub fn count(&self) -> usize {
        self.buckets
    }

    /// Buckets of the keys on one side of a query.
    fn side(&self) -> usize {
        if self.both_sides { self.buckets / 2 } else { self.buckets }
    }

    /// Distances that have a bucket each.
    fn exact(&self) -> usize {
        self.side() / 2
    }

    /// The bucket of a key at `distance` from its query: position of the key minus that of the query, in tokens.
    pub fn of(&self, distance: isize) -> usize {
        let (side, exact) = (self.side(), self.exact());
        let (first, distance) = match (self.both_sides, distance > 0) {
            (true, true) => (side, distance.unsigned_abs()),
            (false, true) => (0, 0),
            (_, false) => (0, distance.unsigned_abs()),
        };
        if distance < exact {
            return first + distance;
        }
        // In f32, as the models were trained: a distance at the edge of two buckets must not change sides.
        let share = (distance as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
        let above = (share * (side - exact) as f32) as usize;
        first + (exact + above).min(side - 1)
    }
}
