//! What encoders share with encoder-decoders: a reader of parameters, the MLP of a layer, and a layer of an encoder.

mod block;
mod loader;
mod mlp;

pub(crate) use block::{Block, sum};
pub(crate) use loader::Loader;
pub(crate) use mlp::{Mlp, MlpBranch, MlpPlan};
