//! Tests of what the data room plans, without a volume; whole files are tested through the public API.

mod pages;
mod plans;
