//! The outcome somewhere on the way from the weights before training to those after it (WiSE-FT, Wortsman et al. 2022).

use candle_core::Tensor;
use expandr_models::trainable::Parameters;

use crate::Result;

/// End of the name of an adapter's matrix that doesn't start at zero. The product with its other one, which does, goes as
/// far as that one goes.
const NEVER_ZERO: &str = ".lora_A.weight";

/// The weights before training, and how far to go from them.
pub struct Interpolation {
    share: f64,
    before: Vec<(usize, Tensor)>,
}

impl Interpolation {
    /// The way begins at the parameters' present values and goes `share` (0 to 1) of what training will do to the model's
    /// weights.
    ///
    /// # Errors
    /// When the device fails.
    pub fn from_here(parameters: &Parameters, share: f64) -> Result<Self> {
        let mut before = Vec::new();
        for (index, parameter) in parameters.iter().enumerate() {
            if !parameter.name.ends_with(NEVER_ZERO) {
                before.push((index, parameter.value.as_tensor().copy()?));
            }
        }
        Ok(Self { share, before })
    }

    /// Takes the parameters, now trained, back to their place on the way.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&self, parameters: &Parameters) -> Result<()> {
        let parameters: Vec<_> = parameters.iter().collect();
        for (index, before) in &self.before {
            let value = &parameters[*index].value;
            let moved = ((value.as_tensor() - before)? * self.share)?;
            value.set(&(before + moved)?)?;
        }
        Ok(())
    }
}
