//! The parts that models are made of, whatever computes them.

use candle_core::{DType, Device, Tensor, Var};

use super::{
    Parameter, Parameters, ZeroGradient,
    lora::LoraSettings,
    options::{Method, Precision, TrainableOptions},
    seed::Key,
};
use crate::{Error, Result, folder::Tensors};

/// A tensor of a model.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    /// Its value; a parameter's tensor shares its memory.
    pub(super) tensor: Tensor,
    /// The index of the parameter, when it trains.
    pub(super) trains: Option<usize>,
}

/// y = x·Wᵀ + b, perhaps with an adapter beside it.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// outputs × inputs.
    pub(super) weight: Weight,
    /// One an output.
    pub(super) bias: Option<Weight>,
    pub(super) adapter: Option<Adapter>,
    /// Tells the linear layers of a model apart, for dropout.
    pub(super) site: u64,
}

/// LoRA (Hu et al. 2021): y += scale · dropout(x)·Aᵀ·Bᵀ.
#[derive(Clone, Debug)]
pub(super) struct Adapter {
    /// A: rank × inputs, f32.
    pub(super) down: Weight,
    /// B: outputs × rank, f32.
    pub(super) up: Weight,
    pub(super) scale: f64,
    pub(super) dropout: f32,
}

impl Linear {
    pub(super) fn outputs(&self) -> usize {
        self.weight.tensor.dims()[0]
    }
}

/// The scale of a norm and, for a layer norm, its shift.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub(super) weight: Weight,
    pub(super) shift: Option<Weight>,
}

/// Reads the parts from a checkpoint, and decides which of them train.
pub(super) struct Loader<'a> {
    tensors: &'a Tensors,
    options: &'a TrainableOptions,
    device: &'a Device,
    parameters: Parameters,
    sites: u64,
    /// All linear layers' module names, and which targets were met.
    modules: Vec<String>,
    met: Vec<bool>,
}

impl<'a> Loader<'a> {
    /// # Errors
    /// When the options can't be had on this device.
    pub(super) fn new(
        tensors: &'a Tensors,
        options: &'a TrainableOptions,
        device: &'a Device,
    ) -> Result<Self> {
        if options.precision == Precision::Bf16 && device.is_cpu() {
            return Err(Error::Input(
                "bf16 weights can't be multiplied on a CPU; set the precision to f32, or train on a GPU"
                    .into(),
            ));
        }
        if options.precision == Precision::Bf16 && matches!(options.method, Method::Full) {
            return Err(Error::Input(
                "full fine-tuning in bf16 would lose small updates to rounding; set the precision to f32, or train \
                 adapters"
                    .into(),
            ));
        }
        let met = match &options.method {
            Method::Lora(settings) => vec![false; settings.target_modules.len()],
            Method::Full | Method::Frozen => Vec::new(),
        };
        if let Method::Lora(settings) = &options.method {
            settings.check()?;
        }
        Ok(Self {
            tensors,
            options,
            device,
            parameters: Parameters::new(device),
            sites: 0,
            modules: Vec::new(),
            met,
        })
    }

    /// Whether the file has a tensor of this name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// A tensor that trains in full fine-tuning.
    pub(super) fn weight(
        &mut self,
        name: &str,
        shape: &[usize],
        zero_gradient: ZeroGradient,
    ) -> Result<Weight> {
        let tensor = Tensor::from_vec(self.tensors.read(name, shape)?, shape, self.device)?;
        if matches!(self.options.method, Method::Full) {
            let decays = shape.len() > 1;
            return self.parameter(name.to_owned(), tensor, decays, zero_gradient);
        }
        let tensor = match self.options.precision {
            Precision::F32 => tensor,
            Precision::Bf16 => tensor.to_dtype(DType::BF16)?,
        };
        Ok(Weight { tensor, trains: None })
    }

    /// A linear layer of `[outputs, inputs]`. `name` is that of the file, `module` what transformers calls it.
    pub(super) fn linear(
        &mut self,
        name: &str,
        module: &str,
        shape: [usize; 2],
        bias: bool,
        bias_gradient: ZeroGradient,
    ) -> Result<Linear> {
        let weight = self.weight(&format!("{name}.weight"), &shape, ZeroGradient::Never)?;
        let bias = match bias {
            true => Some(self.weight(&format!("{name}.bias"), &shape[..1], bias_gradient)?),
            false => None,
        };
        self.sites += 1;
        self.modules.push(module.to_owned());
        let adapter = self.adapter(module, shape)?;
        Ok(Linear { weight, bias, adapter, site: self.sites })
    }

    /// A layer norm, or an RMS norm without a shift. Old checkpoints call weight and shift gamma and beta.
    pub(super) fn norm(&mut self, name: &str, width: usize, shift: bool) -> Result<Norm> {
        let old = self.contains(&format!("{name}.gamma"));
        let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let weight = self.weight(&format!("{name}.{weight}"), &[width], ZeroGradient::Never)?;
        let shift = match shift {
            true => Some(self.weight(&format!("{name}.{bias}"), &[width], ZeroGradient::Never)?),
            false => None,
        };
        Ok(Norm { weight, shift })
    }

    /// The parameters of what was read.
    ///
    /// # Errors
    /// When an adapter's target is no module of this model.
    pub(super) fn finish(self) -> Result<Parameters> {
        if let Method::Lora(settings) = &self.options.method
            && let Some(unmet) = self.met.iter().position(|met| !met)
        {
            let mut known: Vec<&str> =
                self.modules.iter().filter_map(|module| module.rsplit('.').next()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(Error::Input(format!(
                "no module of this model is called `{}` (target_modules); use some of {}, or all-linear",
                settings.target_modules[unmet],
                known.join(", ")
            )));
        }
        Ok(self.parameters)
    }

    fn adapter(&mut self, module: &str, [outputs, inputs]: [usize; 2]) -> Result<Option<Adapter>> {
        let Method::Lora(settings) = &self.options.method else { return Ok(None) };
        let Some(target) = settings.target_of(module) else { return Ok(None) };
        self.met[target] = true;
        let (rank, key) = (settings.rank, Key::new(self.options.seed).child(self.sites));
        let bound = 1.0 / (inputs as f64).sqrt(); // PyTorch's kaiming_uniform_(a = √5), as in PEFT
        let draw = |i| ((2.0 * key.uniform(i) - 1.0) * bound) as f32;
        let down: Vec<f32> = (0..(rank * inputs) as u64).map(draw).collect();
        let down = Tensor::from_vec(down, (rank, inputs), self.device)?;
        let up = Tensor::zeros((outputs, rank), DType::F32, self.device)?;
        let (scale, dropout) = (settings.scale(), settings.dropout as f32);
        let [down_name, up_name] = LoraSettings::parameter_names(module);
        let waits = ZeroGradient::While(self.parameters.len() + 1);
        let down = self.parameter(down_name, down, true, waits)?;
        let up = self.parameter(up_name, up, true, ZeroGradient::Never)?;
        Ok(Some(Adapter { down, up, scale, dropout }))
    }

    fn parameter(
        &mut self,
        name: String,
        tensor: Tensor,
        decays: bool,
        zero_gradient: ZeroGradient,
    ) -> Result<Weight> {
        let value = Var::from_tensor(&tensor)?;
        let tensor = value.as_tensor().clone();
        let trains = Some(self.parameters.push(Parameter { name, value, decays, zero_gradient })?);
        Ok(Weight { tensor, trains })
    }
}
