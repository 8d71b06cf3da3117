//! crate docs
pub mod attention;
mod backend;
pub mod cache;
pub mod config;
mod error;
pub mod load;
pub mod mask;
pub mod ops;
pub mod parallel;
pub mod position;
pub mod spec;
pub mod weight;

pub use attention::{
    AttentionOutput, BloomSelfAttention, ContextKeys, DeepSpeedDiffusersAttention, DeepSpeedSelfAttention, Outputs,
};
pub use cache::{KvCache, LayerCache, Step};
pub use config::{DataType, DeepSpeedInferenceConfig, MlpActivation, NormType};
pub use error::{AttentionError, ConfigError, WeightError};
pub use mask::AttentionMask;
pub use ops::InferenceBackend;
pub use parallel::{HeadShard, RankGroup};
pub use position::{PositionEncoding, Positions};
pub use spec::AttentionSpec;
