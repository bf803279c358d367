//! Requests are encoded once, however often they are sent.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Sends bytes as they are, reads a reply.
pub(crate) struct EncodedCodec<Reply>(PhantomData<Reply>);

/// Copies an encoded message into its frame.
pub(crate) struct BytesEncoder;

/// Decodes a reply.
pub(crate) struct ReplyDecoder<Reply>(PhantomData<Reply>);

impl<Reply> Default for EncodedCodec<Reply> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Reply: Message + Default + Send + 'static> Codec for EncodedCodec<Reply> {
    type Encode = Bytes;
    type Decode = Reply;
    type Encoder = BytesEncoder;
    type Decoder = ReplyDecoder<Reply>;

    fn encoder(&mut self) -> Self::Encoder {
        BytesEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ReplyDecoder(PhantomData)
    }
}

impl Encoder for BytesEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl<Reply: Message + Default> Decoder for ReplyDecoder<Reply> {
    type Item = Reply;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Reply>, Status> {
        let reply = Reply::decode(buffer);
        reply.map(Some).map_err(|error| Status::internal(format!("unreadable reply: {error}")))
    }
}
