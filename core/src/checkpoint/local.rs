//! Which layers see only a window.

/// Which layers see only a window. Never a list of all layers, because a file may state any number of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum LocalLayers {
    /// No layer.
    #[default]
    None,
    /// Every layer.
    All,
    /// Patterns of layers one after the other, and how often each repeats. Layers after the last pattern are global.
    Patterns(Vec<(Vec<bool>, u64)>),
}

impl LocalLayers {
    /// Whether layer `layer` sees only a window.
    pub fn contains(&self, layer: usize) -> bool {
        let patterns = match self {
            Self::None => return false,
            Self::All => return true,
            Self::Patterns(patterns) => patterns,
        };
        let mut rest = layer as u64;
        for (pattern, times) in patterns {
            let layers = (pattern.len() as u64).saturating_mul(*times);
            if rest < layers {
                return pattern[(rest % pattern.len() as u64) as usize];
            }
            rest -= layers;
        }
        false
    }
}
