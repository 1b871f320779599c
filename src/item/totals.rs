//! Totals of attributes, read without locks from a snapshot of the super block (`spec/03 §9, §10`).
