//! Reads and writes latent attention.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn_deepspeed_core::checkpoint::{Checkpoint, CheckpointWriter, LatentNames, WeightNames, WeightPart};

use super::parameters::ParameterReader;
use super::written::{in_order, write_norm, write_weight};
use crate::attention::{DeepSpeedLatentAttention, LatentQuery, QueryLatent};
use crate::element::OfBackend;
use crate::error::WeightError;
use crate::weight::{QkvWeight, Weight};

impl<B: Backend> DeepSpeedLatentAttention<B> {
    /// The module with the weights of a checkpoint: converted to its element type, and cut to the heads of its rank. Parameters do not
    /// require gradients; [`with_training`](Self::with_training) changes that.
    ///
    /// An int8 module stays int8, except for the projection from latents, which is dense.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor; [`WeightError::NoNormNames`] if the module has a norm before attention, or a latent of
    /// queries, and `names` has none.
    pub fn load(self, checkpoint: &Checkpoint, names: &LatentNames) -> Result<Self, WeightError> {
        let device = self.up.device();
        let dtype = self.spec().dtype.of_backend::<B>(&device)?;
        let reader = ParameterReader::new(checkpoint, dtype, &device);
        let (shard, sizes) = (self.spec().shard, self.sizes());
        let own =
            |features: usize| (shard.start * features..(shard.start + shard.len) * features, shard.total * features);
        let of_heads = |features: usize| {
            let (own, all) = own(features);
            WeightPart::Outputs { own, all }
        };
        let read = |module: &Weight<B>, names_of: &WeightNames, part: WeightPart| {
            reader.projection(module, names_of, names.orientation, &part)
        };
        let latent = match (&self.query.latent, &names.query_latent) {
            (Some(QueryLatent { down, norm }), Some((down_names, norm_names))) => Some(QueryLatent {
                down: QkvWeight::Fused(read(down.first(), down_names, WeightPart::Whole)?),
                norm: reader.norm(norm, norm_names)?,
            }),
            (Some(_), None) => return Err(WeightError::NoNormNames),
            (None, _) => None,
        };
        let up = QkvWeight::Fused(read(self.query.up.first(), &names.query, of_heads(sizes.key_dim()))?);
        let norm = match (&self.norm, &names.norm) {
            (Some(norm), Some(names)) => Some(reader.norm(norm, names)?),
            (Some(_), None) => return Err(WeightError::NoNormNames),
            (None, _) => None,
        };
        let rows = read(self.projections.qkv.first(), &names.rows, WeightPart::Whole)?;
        let latent_norm = reader.norm(&self.latent_norm, &names.latent_norm)?;
        let keys_and_values = read(&self.up, &names.up, of_heads(sizes.up_dim()))?;
        let (own, all) = own(sizes.v_head_dim);
        let output = read(&self.projections.output, &names.output, WeightPart::Inputs { own, all })?;
        let query = LatentQuery { latent, up };
        let projections = self.projections.with_weights(QkvWeight::Fused(rows), output);
        Ok(Self { norm, query, projections, latent_norm, up: keys_and_values }.no_grad())
    }

    /// Writes the parameters of this rank under these names: floats in their own type, int8 matrices as int8 with their scales, and
    /// matrices of blocks byte for byte. [`load`](Self::load) reads the same weights, bit for bit, if the rank has all heads.
    ///
    /// # Errors
    /// [`WeightError::NoNormNames`], as [`load`](Self::load); [`WeightError::MergeCount`]; [`WeightError::SeveralFormats`];
    /// [`WeightError::TransposedBlocks`].
    pub fn write(&self, writer: &mut CheckpointWriter, names: &LatentNames) -> Result<(), WeightError> {
        if let Some(norm) = &self.norm {
            write_norm(writer, names.norm.as_ref().ok_or(WeightError::NoNormNames)?, norm)?;
        }
        let mut weights = vec![(&self.up, &names.up), (&self.projections.output, &names.output)];
        weights.push((self.query.up.first(), &names.query));
        weights.push((self.projections.qkv.first(), &names.rows));
        if let Some(QueryLatent { down, norm }) = &self.query.latent {
            let (down_names, norm_names) = names.query_latent.as_ref().ok_or(WeightError::NoNormNames)?;
            weights.push((down.first(), down_names));
            write_norm(writer, norm_names, norm)?;
        }
        write_norm(writer, &names.latent_norm, &self.latent_norm)?;
        weights.into_iter().try_for_each(|(weight, names_of)| {
            write_weight(writer, names_of, names.orientation, (&[weight], &in_order(&[weight])))
        })
    }
}
