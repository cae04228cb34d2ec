//! What a client and the bus say about the direct path: who is where on it, and answers that it
//! does not take.
//!
//! Addresses are those of `agentd_ebpf_common::route`. The bus tells them to agents of one user
//! only, and moves nothing of the path itself.

#![forbid(unsafe_code)]

use super::MessageError;
use crate::frame::PeerId;
use crate::wire::Reader;

/// The verbs 42 to 47.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct<'a> {
    /// What my agent's address is; with `held`: this connection is of the process that has its direct connection from now on.
    /// Answered with `address u64`, or refused where there is no path. `held u8 (0 or 1) · 0 u8`
    Own { held: bool },
    /// The address of an agent that may be asked and has its direct connection. Answered with `address u64`. `id 16`
    Peer { id: PeerId },
    /// Whose an address is. Answered with the id. `address u64`
    Whose { address: u64 },
    /// An answer that the path did not take, to the agent that asked by it. Judged as a request of
    /// that agent. `to u64 · correlation u64 · response`
    Answer {
        to: u64,
        correlation: u64,
        response: &'a [u8],
    },
    /// Bus to client: the same, or in its place why it can't be had. `from u64 · correlation u64 · response`
    Answered {
        from: u64,
        correlation: u64,
        response: &'a [u8],
    },
    /// Bus to client: nobody at this address answers any more what it was asked until now. `address u64`
    Gone { address: u64 },
}

impl<'a> Direct<'a> {
    pub(super) fn verb(&self) -> u16 {
        match self {
            Self::Own { .. } => 42,
            Self::Peer { .. } => 43,
            Self::Whose { .. } => 44,
            Self::Answer { .. } => 45,
            Self::Answered { .. } => 46,
            Self::Gone { .. } => 47,
        }
    }

    /// The body of a verb; `None`: it is none of these.
    pub(super) fn parse(verb: u16, reader: &mut Reader<'a>) -> Result<Option<Self>, MessageError> {
        Ok(Some(match verb {
            42 => Self::Own {
                held: match reader.u16("held")? {
                    0 => false,
                    1 => true,
                    found => {
                        return Err(MessageError::Unknown {
                            what: "held",
                            found: found.into(),
                            known: "0 no, 1 yes",
                        });
                    }
                },
            },
            43 => Self::Peer {
                id: PeerId(reader.id("agent id")?),
            },
            44 => Self::Whose {
                address: reader.u64("address")?,
            },
            45 => Self::Answer {
                to: reader.u64("address")?,
                correlation: reader.u64("correlation")?,
                response: reader.rest(),
            },
            46 => Self::Answered {
                from: reader.u64("address")?,
                correlation: reader.u64("correlation")?,
                response: reader.rest(),
            },
            47 => Self::Gone {
                address: reader.u64("address")?,
            },
            _ => return Ok(None),
        }))
    }

    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Own { held } => out.extend_from_slice(&u16::from(held).to_le_bytes()),
            Self::Peer { id } => out.extend_from_slice(&id.0),
            Self::Whose { address } | Self::Gone { address } => {
                out.extend_from_slice(&address.to_le_bytes());
            }
            Self::Answer {
                to: address,
                correlation,
                response,
            }
            | Self::Answered {
                from: address,
                correlation,
                response,
            } => {
                out.extend_from_slice(&address.to_le_bytes());
                out.extend_from_slice(&correlation.to_le_bytes());
                out.extend_from_slice(response);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Control;
    use super::*;

    #[test]
    fn each_comes_back_as_it_was_and_other_numbers_are_refused() {
        let (to, from, address) = (7 << 32 | 1, 7 << 32 | 1, u64::MAX);
        let response = &[1, 2, 3][..];
        for direct in [
            Direct::Own { held: false },
            Direct::Own { held: true },
            Direct::Peer {
                id: PeerId([9; 16]),
            },
            Direct::Whose { address },
            Direct::Answer {
                to,
                correlation: 5,
                response,
            },
            Direct::Answered {
                from,
                correlation: 5,
                response: &[],
            },
            Direct::Gone { address },
        ] {
            let control = Control::Direct(direct);
            let bytes = control.encode().expect("within the limits");
            assert_eq!(Control::parse(&bytes), Ok(control));
        }
        let own = Control::Direct(Direct::Own { held: true });
        let mut bytes = own.encode().expect("fixed size");
        bytes[4] = 2;
        assert!(Control::parse(&bytes).is_err());
        bytes[0] = 48;
        assert!(Control::parse(&bytes).is_err());
    }
}
