//! Reading a checkpoint's folder: JSON files and tensors, with errors that name the file and the remedy.

mod files;
mod tensors;

pub(crate) use self::{
    files::{checkpoint_error, read_json, read_json_if_there},
    tensors::Tensors,
};
