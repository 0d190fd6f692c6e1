//! Netlink requests, each with its own socket: the kernel answers before `send` returns,
//! so no call waits.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use netlink_sys::Socket;
use thiserror::Error;

/// A request failed.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel refused the request.
    #[error("{source}{}", .words.as_ref().map(|words| format!(": {words}")).unwrap_or_default())]
    Kernel {
        /// The error number.
        source: io::Error,
        /// The message, `NLMSGERR_ATTR_MSG`.
        words: Option<String>,
    },
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The answer cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Sends a request, and returns all answers.
pub(crate) fn ask<I>(
    protocol: isize,
    payload: NetlinkPayload<I>,
    flags: u16,
) -> Result<Vec<I>, NetlinkError>
where
    I: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // Errors then carry a message, and do not repeat the whole request.
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    let mut question = NetlinkMessage::new(Default::default(), payload);
    question.header.flags = NLM_F_REQUEST | flags;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<I>::deserialize(rest)?;
            let len = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(len..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(NetlinkError::Kernel {
                        source: error.to_io(),
                        words: words(&error.header),
                    });
                }
                // An error without a code is an ACK.
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}

/// The message in an error: attributes follow the header of the request.
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

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_ACK;
    use netlink_packet_generic::GenlMessage;
    use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
    use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
    use netlink_sys::protocols::NETLINK_GENERIC;

    use super::*;

    #[test]
    fn errors_of_the_kernel_have_words() {
        let family = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("a-name-that-is-too-long".into())],
        });
        let error = ask(NETLINK_GENERIC, family.into(), NLM_F_ACK).expect_err("refused");
        let NetlinkError::Kernel { source, words } = error else {
            panic!("{error}");
        };
        assert!(source.raw_os_error().is_some());
        assert!(words.is_some_and(|words| !words.is_empty()));
    }
}
