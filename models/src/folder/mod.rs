//! A checkpoint's folder: reading JSON files and tensors, with errors that name the file and the remedy, and writing
//! folders whole.

mod durable;
mod files;
mod tensors;

pub use self::durable::{NewFolder, replace, sync_folder};
pub(crate) use self::{
    durable::remove_any,
    files::{checkpoint_error, read_json, read_json_if_there},
    tensors::Tensors,
};
