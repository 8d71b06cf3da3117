//! What ranks must agree on before they add anything.

use std::fmt::{self, Debug, Display};

use crate::element::ElementType;
use crate::error::CommunicationError;

/// Settings that must be equal on every rank, as hashes: sixteen at most, so that they can be sent with each sum.
///
/// Attention compares those of its layer. A model that sums something else over ranks, such as its MLP, lists what shapes do
/// not reveal:
///
/// ```
/// use burn_deepspeed_core::parallel::AgreedSettings;
///
/// let (layer, activation) = (3, "gelu");
/// let settings = AgreedSettings::new([("the layer of the MLP", &layer), ("its activation", &activation)]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgreedSettings {
    names: [&'static str; Self::MOST],
    hashes: [u64; Self::MOST],
}

impl AgreedSettings {
    /// The largest number of settings.
    pub const MOST: usize = 16;

    /// No settings: only shapes and types are compared.
    pub const NONE: Self = Self { names: [""; Self::MOST], hashes: [0; Self::MOST] };

    /// Names for the error message, and values, whose `Debug` output is compared.
    pub fn new<const N: usize>(settings: [(&'static str, &dyn Debug); N]) -> Self {
        const { assert!(N <= Self::MOST, "sixteen settings at most") };
        let mut all = Self::NONE;
        for (at, (name, value)) in settings.into_iter().enumerate() {
            all.names[at] = name;
            all.hashes[at] = hash(&format!("{value:?}"));
        }
        all
    }
}

/// FNV-1a, <http://www.isthe.com/chongo/tech/comp/fnv/>: the same on every host and in every build.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// What one rank is about to do, which must be the same on every rank. Engines exchange it as [words](Self::words) and
/// [`check`](Self::check) it before they add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    words: [u64; Self::WORDS],
    names: [&'static str; AgreedSettings::MOST],
}

const OPERATION: usize = 0;
const DTYPE: usize = 1;
const RANK: usize = 2;
const SHAPE: usize = 3;
const SETTINGS: usize = SHAPE + Agreement::AXES;

/// The element types that can be added up.
const FLOATS: [ElementType; 4] = [ElementType::F64, ElementType::F32, ElementType::F16, ElementType::BF16];

impl Agreement {
    /// The largest number of axes of a tensor.
    pub const AXES: usize = 5;

    /// The length of an encoded agreement.
    pub const WORDS: usize = SETTINGS + AgreedSettings::MOST;

    /// The sum of a float tensor.
    ///
    /// # Panics
    /// If the tensor has more than five axes.
    pub fn sum(shape: &[usize], dtype: ElementType, settings: &AgreedSettings) -> Self {
        assert!(shape.len() <= Self::AXES, "Agreement::sum: shape {shape:?}, expected {} axes at most", Self::AXES);
        let mut words = [0; Self::WORDS];
        words[OPERATION] = 1;
        words[DTYPE] = FLOATS.iter().position(|&float| float == dtype).unwrap_or(FLOATS.len()) as u64;
        words[RANK] = shape.len() as u64;
        for (word, &length) in words[SHAPE..].iter_mut().zip(shape) {
            *word = length as u64;
        }
        Self { words, names: AgreedSettings::NONE.names }.with_settings(settings)
    }

    /// Adds nothing: the ranks wait for each other.
    pub fn barrier() -> Self {
        Self { words: [0; Self::WORDS], names: AgreedSettings::NONE.names }
    }

    /// The same, and these settings must be equal too.
    pub fn with_settings(mut self, settings: &AgreedSettings) -> Self {
        self.words[SETTINGS..].copy_from_slice(&settings.hashes);
        Self { names: settings.names, ..self }
    }

    /// The encoded agreement, which engines send.
    pub fn words(&self) -> &[u64; Self::WORDS] {
        &self.words
    }

    /// Compares what all ranks are about to do, in the order of ranks.
    ///
    /// # Errors
    /// [`CommunicationError::Differ`] with the first rank that differs from rank 0, and the difference.
    pub fn check<'a>(&self, all: impl IntoIterator<Item = &'a [u64; Self::WORDS]>) -> Result<(), CommunicationError> {
        let mut all = all.into_iter().enumerate();
        let Some((_, first)) = all.next() else { return Ok(()) };
        match all.find(|(_, words)| *words != first) {
            None => Ok(()),
            Some((rank, words)) => Err(CommunicationError::Differ { rank, difference: self.difference(first, words) }),
        }
    }

    /// Compares the number of values that each rank contributes to a sum, in the order of ranks.
    #[cfg(any(feature = "local", feature = "mpi"))]
    pub(super) fn check_counts(counts: impl IntoIterator<Item = usize>) -> Result<(), CommunicationError> {
        let mut counts = counts.into_iter().enumerate();
        let Some((_, first)) = counts.next() else { return Ok(()) };
        match counts.find(|(_, count)| *count != first) {
            None => Ok(()),
            Some((rank, count)) => {
                let difference = format!("rank 0 contributes {first} values, that rank {count}");
                Err(CommunicationError::Differ { rank, difference })
            }
        }
    }

    fn difference(&self, first: &[u64; Self::WORDS], other: &[u64; Self::WORDS]) -> String {
        let (first, other) = (Seen(first), Seen(other));
        let differs = |at: usize| first.0[at] != other.0[at];
        if let Some(name) = (0..AgreedSettings::MOST).find(|&at| differs(SETTINGS + at)).map(|at| self.names[at])
            && first.0[OPERATION] == other.0[OPERATION]
            && !name.is_empty()
        {
            return format!("{name} is not the same");
        }
        format!("rank 0 {first}, that rank {other}")
    }
}

/// The words of a rank, for messages.
struct Seen<'a>(&'a [u64; Agreement::WORDS]);

impl Display for Seen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0[OPERATION] == 0 {
            return f.write_str("waits at a barrier");
        }
        let axes = (self.0[RANK] as usize).min(Agreement::AXES);
        let shape = &self.0[SHAPE..SHAPE + axes];
        match FLOATS.get(self.0[DTYPE] as usize) {
            Some(dtype) => write!(f, "adds {shape:?} of {dtype}"),
            None => write!(f, "adds {shape:?} of a type that is not a float"),
        }
    }
}
