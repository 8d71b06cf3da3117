//! The attention modules, and how they are built from a configuration.

mod bloom;
mod build;
mod diffusers;
mod init;
mod latent;
mod outputs;
mod projections;
mod self_attention;

pub use bloom::BloomSelfAttention;
pub use diffusers::{ContextKeys, DeepSpeedDiffusersAttention};
pub use init::AttentionInit;
pub(crate) use latent::fused;
pub use latent::{DeepSpeedLatentAttention, LatentQuery, QueryLatent};
pub use outputs::{AttentionOutput, WantedOutputs};
pub use self_attention::DeepSpeedSelfAttention;
