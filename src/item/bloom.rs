//! Bloom filters of log trees: which locks a tree may hold items of (`spec/03 §6`).
