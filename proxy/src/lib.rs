//! The proxy: configuration, and what is made of it.

pub mod config;
