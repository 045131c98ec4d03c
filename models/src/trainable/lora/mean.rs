//! One adapter that stands for several.

use std::collections::HashMap;

use candle_core::Tensor;

use super::{AdapterFile, LoraSettings};
use crate::{Error, Result};

impl AdapterFile {
    /// The adapter whose update of every module is the mean of theirs: their matrices side by side, so that its rank is the
    /// sum of their ranks, and its scale theirs. Of one adapter, that one.
    ///
    /// # Errors
    /// When there is none, when they differ in settings or modules, and when the device fails.
    pub fn mean(adapters: &[Self]) -> Result<Self> {
        let Some((first, others)) = adapters.split_first() else {
            return Err(Error::Input("there is no mean of no adapters".into()));
        };
        let alike = |other: &Self| other.settings == first.settings && other.modules() == first.modules();
        if !others.iter().all(alike) {
            return Err(Error::Input(
                "the adapters differ in settings or modules; only those of the same training have a mean"
                    .into(),
            ));
        }
        let count = adapters.len() as f64;
        let alpha = first.settings.alpha * if first.settings.rank_stabilised { count.sqrt() } else { count };
        let rank = first.settings.rank * adapters.len();
        let settings = LoraSettings { rank, alpha, ..first.settings.clone() };
        let mut tensors = HashMap::new();
        for module in first.modules() {
            let matrices: Vec<_> = adapters.iter().filter_map(|adapter| adapter.matrices(module)).collect();
            let [downs, ups] = [0, 1].map(|at| matrices.iter().map(|pair| pair[at]).collect::<Vec<_>>());
            let [down, up] = LoraSettings::parameter_names(module);
            tensors.insert(down, Tensor::cat(&downs, 0)?);
            tensors.insert(up, (Tensor::cat(&ups, 1)? / count)?);
        }
        Ok(Self { settings, task: first.task, base: first.base.clone(), tensors })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result};

    use super::*;
    use crate::trainable::AdapterTask;

    const MODULE: &str = "encoder.layer.0.output.dense";

    /// Of rank 2, for a layer of 5 inputs and 3 outputs.
    fn adapter(rank_stabilised: bool) -> Result<AdapterFile> {
        let [down, up] = LoraSettings::parameter_names(MODULE);
        let random = |rows, columns| Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu);
        let settings = LoraSettings {
            rank: 2,
            alpha: 6.0,
            dropout: 0.1,
            target_modules: vec!["all-linear".into()],
            rank_stabilised,
        };
        let tensors = HashMap::from([(down, random(2, 5)?), (up, random(3, 2)?)]);
        Ok(AdapterFile { settings, task: AdapterTask::FeatureExtraction, base: "a test".into(), tensors })
    }

    fn update(adapter: &AdapterFile) -> Result<Tensor> {
        let [down, up] = adapter.matrices(MODULE).unwrap();
        up.matmul(down)? * adapter.settings.scale()
    }

    #[test]
    fn its_update_is_the_mean_of_theirs() -> Result<()> {
        for stabilised in [false, true] {
            let adapters = [adapter(stabilised)?, adapter(stabilised)?, adapter(stabilised)?];
            let mean = AdapterFile::mean(&adapters).unwrap();
            assert_eq!(mean.settings.rank, 6);
            let mut expected = update(&adapters[0])?.zeros_like()?;
            for adapter in &adapters {
                expected = (expected + (update(adapter)? / 3.0)?)?;
            }
            let apart = (update(&mean)? - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(apart < 1e-5, "{apart}");
        }
        Ok(())
    }

    #[test]
    fn of_one_it_is_that_one_and_of_different_ones_there_is_none() -> Result<()> {
        let one = adapter(false)?;
        let mean = AdapterFile::mean(std::slice::from_ref(&one)).unwrap();
        assert_eq!(mean.settings, one.settings);
        for (name, tensor) in &one.tensors {
            assert_eq!(mean.tensors[name].to_vec2::<f32>()?, tensor.to_vec2::<f32>()?);
        }
        assert!(AdapterFile::mean(&[]).is_err());
        assert!(AdapterFile::mean(&[one, adapter(true)?]).unwrap_err().to_string().contains("differ"));
        Ok(())
    }
}
