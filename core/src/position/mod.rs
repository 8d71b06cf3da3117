//! How a token's position enters attention: rotary angles, ALiBi, or not at all.

pub mod alibi;
mod encoding;
mod factor;
mod positions;
mod relative;
pub mod rotary;
mod scaling;
mod sections;

pub use encoding::PositionEncoding;
pub use factor::QueryFactor;
pub use positions::Positions;
pub use relative::RelativeBuckets;
pub use scaling::{RopeDialect, TrainedLengths};
pub use sections::{RotarySections, SectionOrder};
