//! The choice between CPU, CUDA and Metal.

use std::{fmt, str::FromStr};

use candle_core::Device;

use crate::{Error, Result};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first accelerator that this build supports and the machine has, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this ordinal.
    Cuda(usize),
    /// The Metal device with this ordinal.
    Metal(usize),
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// When an accelerator was asked for by name and this build or machine has none.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) => {
                Device::new_cuda(ordinal).map_err(|e| Self::unavailable("cuda", ordinal, &e))
            }
            Self::Metal(ordinal) => {
                Device::new_metal(ordinal).map_err(|e| Self::unavailable("metal", ordinal, &e))
            }
            Self::Auto => {
                if let Ok(device) = Device::new_cuda(0) {
                    return Ok(device);
                }
                if let Ok(device) = Device::new_metal(0) {
                    return Ok(device);
                }
                Ok(Device::Cpu)
            }
        }
    }

    fn unavailable(kind: &str, ordinal: usize, error: &candle_core::Error) -> Error {
        Error::Input(format!(
            "device {kind}:{ordinal} can't be opened ({error}); build with `--features {kind}` on a machine that \
             has one, or use `--device cpu`"
        ))
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, ordinal) = text.split_once(':').unwrap_or((text, "0"));
        let ordinal: usize =
            ordinal.parse().map_err(|_| format!("`{ordinal}` is not a device ordinal; use e.g. cuda:0"))?;
        match kind {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(ordinal)),
            "metal" => Ok(Self::Metal(ordinal)),
            _ => Err(format!("`{text}` is not a device; use auto, cpu, cuda[:N] or metal[:N]")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal(ordinal) => write!(f, "metal:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3", "metal:0"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
    }

    #[test]
    fn unknown_names_are_refused_with_the_remedy() {
        assert!("gpu".parse::<DeviceChoice>().unwrap_err().contains("cuda[:N]"));
        assert!("cuda:x".parse::<DeviceChoice>().unwrap_err().contains("ordinal"));
    }
}
