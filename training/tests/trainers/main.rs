//! The trainers against PyTorch, transformers, PEFT and TRL, on tiny checkpoints (see `fixtures/make_trainer_fixture.py`).

mod decoder;
mod encoder;
mod files;
mod outcome;
mod resume;
mod support;
