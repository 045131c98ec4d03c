//! What a run does: the rows of the report and the stages behind them.
//!
//! - `arms`: the rows, Table 3's among them.
//! - `graph`: stages joined by what they read and write, shared wherever two rows need the same.
//! - `stage`: the kinds of stages, what each leaves in the run folder, and which settings it depends on.

mod arms;
mod graph;
mod stage;

pub use self::arms::{ARMS, Arm, EncoderTraining, ExpanderTraining, SearchText};
pub use self::graph::{
    CollectionPart, EncoderRef, ExamplesNode, ExpanderRef, External, Graph, Node, NodeId, PlannedArm, Source,
    TrainingText, WeightNode, Work,
};
pub(crate) use self::graph::{canonical, documents_label};
pub use self::stage::Stage;
