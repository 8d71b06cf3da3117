//! The attention modules, and how they are built from a configuration.

mod bloom;
mod build;
mod context;
mod cross;
mod cross_cache;
mod diffusers;
mod init;
mod outputs;
mod projections;
mod self_attention;

pub use bloom::BloomSelfAttention;
pub use context::{ContextKeys, LayerContext};
pub use cross::DeepSpeedCrossAttention;
pub use cross_cache::CrossCache;
pub use diffusers::DeepSpeedDiffusersAttention;
pub use init::AttentionInit;
pub use outputs::{AttentionOutput, WantedOutputs};
pub use self_attention::DeepSpeedSelfAttention;
