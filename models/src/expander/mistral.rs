//! mistralrs in process.
