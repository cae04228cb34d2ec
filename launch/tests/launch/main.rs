//! The launcher's promises, each shown from inside a real sandbox: what is allowed works, what is forbidden fails with
//! the errno that the promise names. In both modes, running real programs.

mod attack;
mod calls;
mod cover;
mod gvisor;
mod harness;
mod life;
mod limits;
mod refusal;
mod special;
mod view;
