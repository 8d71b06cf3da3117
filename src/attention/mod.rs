//! The three attention modules.

mod bloom;
mod build;
mod diffusers;
mod init;
mod self_attention;
mod sum;

pub use bloom::BloomSelfAttention;
pub use diffusers::{ContextKeys, DeepSpeedDiffusersAttention};
pub use init::AttentionInit;
pub use self_attention::{AttentionOutput, DeepSpeedSelfAttention, Outputs};
