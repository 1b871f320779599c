//! Reading the forest: one consistent version of a key range from the main tree and all log trees (`spec/03 §7`).
