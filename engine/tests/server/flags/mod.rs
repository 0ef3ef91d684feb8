//! Every flag that the engine accepts has an effect, or is listed with the reason why not. Each
//! test compares a launch line that has the flag with one that does not; `engine/FLAGS.md` says
//! which test is whose, and `table` holds that to the command line.

mod card;
mod experts;
pub mod fixture;
mod inactive;
mod launch_lines;
mod model;
mod scheduling;
mod serving;
mod simulated;
mod table;
