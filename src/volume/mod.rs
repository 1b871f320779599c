//! The public face.
mod options;
pub use options::VolumeOptions;
