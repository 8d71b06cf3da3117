//! The error types: of a configuration, of a forward pass, between ranks, of loading.
//!
//! Each message gives the fact, the limit and the remedy.

mod attention;
mod communication;
mod config;
mod remedy;
mod shape;
mod weight;

pub use attention::AttentionError;
pub use communication::CommunicationError;
pub use config::{ConfigError, Origin};
pub use shape::{check_broadcast, check_shape};
pub use weight::WeightError;
