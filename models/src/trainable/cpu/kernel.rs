//! Compiling loops once per instruction set.

pub(super) use crate::cpu::Kernel;

/// A function with its arguments, as a [`Kernel`].
pub(super) struct Call<A, F>(pub(super) A, pub(super) F);

impl<A, R, F: FnOnce(A) -> R> Kernel for Call<A, F> {
    type Output = R;

    #[inline(always)]
    fn run(self) -> R {
        (self.1)(self.0)
    }
}

/// Defines a function whose loops are compiled for several instruction sets, of which the widest that the processor has
/// is used. What the function calls must be `#[inline(always)]`.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $type),*) {
            #[inline(always)]
            fn inner(($($arg,)*): ($($type,)*)) $body
            $crate::cpu::dispatch($crate::trainable::cpu::kernel::Call(($($arg,)*), inner))
        }
    };
}

pub(super) use kernel;
