//! Messages that are bytes already, on their way out, and answers that are looked at before they are read.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use palisade_plugin_proto::v1::CheckBatchAnswer;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::shape::{self, Answer};

/// Sends bytes as they are, and reads messages of one type.
#[derive(Debug)]
pub(super) struct Encoded<T>(PhantomData<fn() -> T>);

impl<T> Default for Encoded<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Answer + Default + Send + 'static> Codec for Encoded<T> {
    type Encode = Bytes;
    type Decode = T;
    type Encoder = Outgoing;
    type Decoder = Incoming<T>;

    fn encoder(&mut self) -> Outgoing {
        Outgoing
    }

    fn decoder(&mut self) -> Incoming<T> {
        Incoming(PhantomData)
    }
}

#[derive(Debug)]
pub(super) struct Outgoing;

impl Encoder for Outgoing {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Incoming<T>(PhantomData<fn() -> T>);

impl<T: Message + Answer + Default> Decoder for Incoming<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        // In one piece, and not copied for that.
        read(buffer.copy_to_bytes(buffer.remaining())).map(Some).map_err(Status::internal)
    }
}

/// As [`read`], of answers to some of so many calls.
pub(super) fn read_answers(message: Bytes, calls: usize) -> Result<CheckBatchAnswer, String> {
    match shape::are_modest(&message, calls) {
        true => CheckBatchAnswer::decode(message).map_err(|error| error.to_string()),
        false => Err("answers of too many fields, or to more calls than are open".to_owned()),
    }
}

/// A message, looked at before it is read. The error says what is wrong with it.
pub(in crate::plugin) fn read<T: Message + Answer + Default>(message: Bytes) -> Result<T, String> {
    match shape::is_modest::<T>(&message) {
        true => T::decode(message).map_err(|error| error.to_string()),
        false => Err("an answer of too many fields".to_owned()),
    }
}
