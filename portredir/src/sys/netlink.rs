//! One question to the kernel by netlink, and its answers. The kernel answers before
//! `send` returns, so nothing waits.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use netlink_sys::Socket;
use thiserror::Error;

/// The reason why a question has no answer.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel refused.
    #[error("{source}{}", .words.as_ref().map(|words| format!(": {words}")).unwrap_or_default())]
    Kernel {
        /// The error number.
        source: io::Error,
        /// The sentence of the kernel, `NLMSGERR_ATTR_MSG`.
        words: Option<String>,
    },
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The answer cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Sends a question, and returns all answers.
pub(crate) fn ask<I>(
    protocol: isize,
    payload: NetlinkPayload<I>,
    flags: u16,
) -> Result<Vec<I>, NetlinkError>
where
    I: NetlinkSerializable + NetlinkDeserializable,
{
    let mut answers = Vec::new();
    ask_each(protocol, payload, flags, |answer| answers.push(answer))?;
    Ok(answers)
}

/// Sends a question, and calls a function with each answer.
pub(crate) fn ask_each<I>(
    protocol: isize,
    payload: NetlinkPayload<I>,
    flags: u16,
    mut on_answer: impl FnMut(I),
) -> Result<(), NetlinkError>
where
    I: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // Errors carry a message, and not the whole question before it.
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    // The kernel then looks at the table and the type in a question for routes.
    socket.set_netlink_get_strict_chk(true)?;
    let mut question = NetlinkMessage::new(Default::default(), payload);
    question.header.flags = NLM_F_REQUEST | flags;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<I>::deserialize(rest)?;
            let len = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(len..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => on_answer(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(NetlinkError::Kernel {
                        source: error.to_io(),
                        words: words(&error.header),
                    });
                }
                // An error without a code is an ACK.
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(()),
                _ => {}
            }
        }
    }
}

/// The sentence in an error: attributes come after the header of the question.
fn words(error: &[u8]) -> Option<String> {
    const HEADER_LEN: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    NlasIterator::new(error.get(HEADER_LEN..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            let text = String::from_utf8_lossy(attribute.value());
            text.trim_end_matches('\0').to_owned()
        })
}
