//! The commands that make and compare experiments, end to end with a stand-in engine.

mod ablate;
mod exchange;
mod new;
mod notebook;
mod reproduce;
mod sealing;
mod tune;
