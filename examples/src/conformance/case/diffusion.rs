//! Cases of the attention of diffusion models.

use burn_deepspeed::load::{AttentionNames, JointNames, QkvLayout};
use burn_deepspeed::{AttentionInit, AttentionMask, FromTensor, InferenceBackend, Positions};

use super::{Case, Worst, has};
use crate::Failure;

/// Where the weights of a case are.
const PATH: &str = "weights";

impl<B: InferenceBackend> Case<'_, B> {
    pub(super) fn diffusers(&self) -> Result<f64, Failure> {
        let config = self.fitted();
        let names = self.names(QkvLayout::Concat);
        let context_dim = self.tensors.shape("weights.attn_kw").map(|shape| shape[0]);
        let mut module = match context_dim {
            Some(context) => config.init_diffusers_cross::<B>(context, self.record.layer_id, self.device)?,
            None => config.init_diffusers::<B>(self.record.layer_id, self.device)?,
        }
        .load(&self.tensors, &names)?;
        if let Some(communicator) = self.ranks.clone() {
            module = module.with_communicator(communicator)?;
        }
        let mut worst = Worst::default();
        for call in &self.record.calls {
            let context = match has(call, "context") {
                true => Some(self.tensor(call, "context")?),
                false => None,
            };
            let mask = match has(call, "padding_mask") {
                true => AttentionMask::from_padding(self.ints(call, "padding_mask")?),
                false => AttentionMask::none(),
            };
            let output = module.forward(self.tensor(call, "input")?, context, mask)?;
            worst.compare(output, self.f32(call, "output")?, None);
        }
        Ok(worst.error)
    }

    pub(super) fn joint(&self) -> Result<f64, Failure> {
        let config = self.of_rank();
        let streams = self.record.joint.ok_or("the case has no `joint`")?;
        let module = config.init_joint::<B>(streams, self.record.layer_id, self.device)?;
        let mut module = module.load(&self.tensors, &JointNames::diffusers(PATH))?;
        if let Some(communicator) = self.ranks.clone() {
            module = module.with_communicator(communicator)?;
        }
        let (shard, head_dim) = (module.spec().shard, module.spec().head_dim);
        let mut worst = Worst::default();
        for call in &self.record.calls {
            let table = match has(call, "axes_ids") {
                true => module.rotary_table(&Positions::from_axes_tensor(self.ints::<3>(call, "axes_ids")?)?),
                false => None,
            };
            let text = has(call, "text").then(|| self.tensor(call, "text")).transpose()?;
            let output = module.forward(self.tensor(call, "input")?, text, table.as_ref(), AttentionMask::none())?;
            let expected = self.f32::<3>(call, "output")?;
            // Without an output projection a rank has the context of its heads.
            let expected = match streams.image_output {
                true => expected,
                false => expected.narrow(2, shard.start * head_dim, shard.len * head_dim),
            };
            worst.compare(output.image, expected, None);
            match (output.text, has(call, "text_output")) {
                (Some(text), true) => worst.compare(text, self.f32(call, "text_output")?, None),
                (None, false) => {}
                (text, _) => return Err(format!("text is {:?}", text.map(|text| text.dims())).into()),
            }
        }
        Ok(worst.error)
    }

    pub(super) fn vae(&self) -> Result<f64, Failure> {
        let config = self.of_rank();
        let block = self.record.vae.ok_or("the case has no `vae`")?;
        let module = config.init_vae::<B>(block, self.record.layer_id, self.device)?;
        let mut module = module.load(&self.tensors, &AttentionNames::vae(&self.tensors, PATH))?;
        if let Some(communicator) = self.ranks.clone() {
            module = module.with_communicator(communicator)?;
        }
        let mut worst = Worst::default();
        for call in &self.record.calls {
            let output = module.forward(self.tensor(call, "input")?)?;
            worst.compare(output, self.f32(call, "output")?, None);
        }
        Ok(worst.error)
    }
}
