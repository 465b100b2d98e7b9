//! Calico's policy model as a function: objects in, an immutable table out.
//!
//! ```text
//!  text ─▶ decode ─▶ validate ─▶ convert ─▶ Model ─▶ resolve ─▶ compile ─▶ Snapshot
//!                                             └──────▶ oracle (reads the Model literally)
//! ```
//!
//! * [`model`] holds objects that were judged once, at the edge, and cannot be wrong any more.
//! * [`decode`] turns YAML or JSON documents into those objects, or says what is wrong with them, field by field.
//! * [`selector`] is the label-expression language.
//! * [`engine`] owns the Model, follows changes, and publishes a numbered [`snapshot::Snapshot`].
//! * [`oracle`] answers the same question from the Model alone; it never looks at a table.
//! * [`walk`] knows who is asked on a packet's way through the nodes, in order, and what a verdict skips.
//! * [`http`] judges requests by the criteria that packets are not asked about.
//! * [`schema`] describes the kinds that are ours to define to an API server.
//! * [`lint`] finds what manifests probably do not mean.
//! * [`verify`] answers statements about all packets from the tables.
//! * [`explain`] tells the oracle's reasons beside the tables' verdict.

mod batch;
mod compile;
pub mod decode;
pub mod engine;
pub mod explain;
pub mod http;
pub mod lint;
pub mod model;
pub mod oracle;
pub mod packet;
mod resolve;
pub mod schema;
pub mod selector;
pub mod snapshot;
pub mod verify;
pub mod walk;
