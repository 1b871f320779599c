//! Vectors and properties of the format.
