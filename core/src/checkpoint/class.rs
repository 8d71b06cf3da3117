//! The settings that every family has, and what an absent one means in its class of `transformers`.

/// A setting: the spellings that the class takes, and its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting<T> {
    /// The spellings, the class's own first. Each that is given must have the same value.
    pub names: &'static [&'static str],
    /// What it is if none is given.
    pub default: T,
}

impl<T> Setting<T> {
    /// A setting with these spellings and this default.
    pub const fn new(names: &'static [&'static str], default: T) -> Self {
        Self { names, default }
    }
}

/// The width of the MLP, if it is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpSize {
    /// A number of elements.
    Fixed(usize),
    /// A multiple of the hidden size.
    TimesHidden(usize),
}

/// The configuration class of a family in `transformers`: the spellings of its settings (its fields and its `attribute_map`), and
/// its defaults.
///
/// The hidden size and the numbers of heads and layers have defaults there, too. Here they are required, because a file without
/// them is damaged, and the number of heads cannot be checked against a checkpoint. Only where one file describes two models do the
/// tools leave out what is the default.
#[derive(Debug, Clone, Copy)]
pub struct Class {
    /// The name of the class.
    pub name: &'static str,
    /// Spellings of the width of the residual stream.
    pub hidden_size: &'static [&'static str],
    /// Spellings of the number of query heads.
    pub heads: &'static [&'static str],
    /// Spellings of the number of layers.
    pub layers: &'static [&'static str],
    /// Hidden size, heads and layers of a class whose files leave out what is its default; `None` where they are required.
    pub sizes: Option<[usize; 3]>,
    /// Width of the MLP, in elements. Without names the code of the family fixes it.
    pub mlp_size: Setting<MlpSize>,
    /// Tokens of the vocabulary.
    pub vocab_size: Setting<usize>,
    /// Length the model was trained for, in tokens; `None` for a class that does not have it.
    pub max_positions: Setting<Option<usize>>,
    /// Epsilon of the norms. Without names the code of the family fixes it.
    pub epsilon: Setting<f64>,
    /// Activation of the MLP, as `transformers` writes it. Without names the code of the family fixes it.
    pub activation: Setting<&'static str>,
    /// Values of the activation that the class replaces, and by what.
    pub replaced_activations: &'static [(&'static str, &'static str)],
    /// Whether the output embedding is the input embedding.
    pub tie_word_embeddings: bool,
}

impl Class {
    /// What most classes share. A record names its class and what differs.
    pub(super) const SHARED: Self = Self {
        name: "",
        hidden_size: &["hidden_size"],
        heads: &["num_attention_heads"],
        layers: &["num_hidden_layers"],
        sizes: None,
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::TimesHidden(4)),
        vocab_size: Setting::new(&["vocab_size"], 0),
        max_positions: Setting::new(&["max_position_embeddings"], None),
        epsilon: Setting::new(&["layer_norm_eps"], 1e-5),
        activation: Setting::new(&["hidden_act"], "gelu"),
        replaced_activations: &[],
        tie_word_embeddings: true,
    };

    /// The keys of all settings.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        [
            self.hidden_size,
            self.heads,
            self.layers,
            self.mlp_size.names,
            self.vocab_size.names,
            self.max_positions.names,
            self.epsilon.names,
            self.activation.names,
            &["tie_word_embeddings"],
        ]
        .into_iter()
        .flatten()
        .copied()
    }
}
