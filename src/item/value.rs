//! Item values: bytes that are written once and then shared.
//!
//! A value is handed to readers, to the commit and to the tree without copying, so it is an immutable reference
//! counted slice. Most index items have no value at all; those allocate nothing.

use crate::sync::Arc;
use std::fmt;
use std::ops::Deref;

/// The bytes of one item, cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Value(Option<Arc<[u8]>>);

impl Value {
    /// The value of an item that has none.
    pub(crate) const EMPTY: Value = Value(None);

    /// A copy of `bytes`.
    pub(crate) fn new(bytes: &[u8]) -> Value {
        if bytes.is_empty() { Value(None) } else { Value(Some(Arc::from(bytes))) }
    }
}

impl Deref for Value {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Some(bytes) => bytes,
            None => &[],
        }
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Value {
        Value::new(bytes)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Value {
        Value::new(&bytes)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.len())
    }
}
