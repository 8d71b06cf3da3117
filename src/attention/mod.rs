//! The attention modules, and how they are built from a configuration.

mod bloom;
mod build;
mod connection;
mod context;
mod cross;
mod cross_cache;
mod diffusers;
mod init;
mod joint;
mod latent;
mod outputs;
mod projections;
mod self_attention;
mod vae;

pub use bloom::BloomSelfAttention;
pub use context::{ContextKeys, LayerContext};
pub use cross::DeepSpeedCrossAttention;
pub use cross_cache::CrossCache;
pub use diffusers::DeepSpeedDiffusersAttention;
pub use init::AttentionInit;
pub use joint::{DeepSpeedJointAttention, JointOutput, JointStream};
pub use latent::{DeepSpeedLatentAttention, LatentQuery, QueryLatent};
pub use outputs::{AttentionOutput, WantedOutputs};
pub use self_attention::DeepSpeedSelfAttention;
pub use vae::DeepSpeedVaeAttention;
