//! Which device the decoder runs on, by the name that the command line gives it.

use burn::tensor::Device;

/// A device's name, parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU, in Rust: the only one with fused operations.
    #[default]
    Flex,
    /// The CPU by libtorch.
    Tch,
    /// An NVIDIA card by its index.
    Cuda(usize),
    /// Whatever WebGPU finds.
    Wgpu,
}

/// A device that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No device has this name.
    #[error("unknown device `{0}`: the devices are flex, tch, cuda, cuda:INDEX and wgpu")]
    Unknown(String),
    /// The program was built without it.
    #[error("device `{name}` is not compiled in: this build has {available}; build with --features {name}")]
    NotCompiled {
        /// The device asked for.
        name: &'static str,
        /// The devices of this build.
        available: String,
    },
}

impl std::str::FromStr for DeviceChoice {
    type Err = DeviceError;
    /// Reads `flex`, `tch`, `cuda`, `cuda:1`, `wgpu`.
    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(name.to_owned());
        match name.split_once(':') {
            None => match name {
                "flex" => Ok(Self::Flex),
                "tch" => Ok(Self::Tch),
                "cuda" => Ok(Self::Cuda(0)),
                "wgpu" => Ok(Self::Wgpu),
                _ => Err(unknown()),
            },
            Some(("cuda", index)) => index.parse().map(Self::Cuda).map_err(|_| unknown()),
            Some(_) => Err(unknown()),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            other => f.write_str(other.name()),
        }
    }
}

impl DeviceChoice {
    /// The devices that this build has.
    pub fn available() -> Vec<&'static str> {
        let all = [
            ("flex", cfg!(feature = "flex")),
            ("tch", cfg!(feature = "tch")),
            ("cuda", cfg!(feature = "cuda")),
            ("wgpu", cfg!(feature = "wgpu")),
        ];
        all.into_iter().filter_map(|(name, compiled)| compiled.then_some(name)).collect()
    }

    /// The kind's name, which is also the Cargo feature's.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Tch => "tch",
            Self::Cuda(_) => "cuda",
            Self::Wgpu => "wgpu",
        }
    }

    /// The Burn device, without autodiff; add it with `.autodiff()`.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "tch")]
            #[allow(deprecated)]
            // Burn plans to drop libtorch; it is the fastest CPU path of this version
            Self::Tch => Ok(Device::libtorch()),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => Ok(Device::cuda(index)),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[allow(unreachable_patterns)] // reached in builds without one of the features
            missing => Err(DeviceError::NotCompiled {
                name: missing.name(),
                available: Self::available().join(", "),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for name in ["flex", "tch", "cuda:0", "cuda:3", "wgpu"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for name in ["", "gpu", "cuda:", "cuda:x", "flex:0"] {
            assert_eq!(name.parse::<DeviceChoice>(), Err(DeviceError::Unknown(name.to_owned())));
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_missing_device_names_those_that_are_there() {
        let error = DeviceChoice::Cuda(0).open().unwrap_err().to_string();
        assert!(error.contains("flex") && error.contains("--features cuda"), "{error}");
    }
}
