//! A cursor over one message. Every read checks the length first and names the field that it reads.

use bytes::{Buf, Bytes};

use super::error::{DecodeError, Place, Problem};
use crate::change::Lsn;

/// A cursor over one message.
#[derive(Debug)]
pub(super) struct Reader {
    message: &'static str,
    length: usize,
    rest: Bytes,
    /// The repeated part that is being read, for errors.
    pub(super) within: Option<(&'static str, usize)>,
}

impl Reader {
    /// At the first byte of the payload.
    pub(super) fn new(payload: Bytes) -> Self {
        Self { message: "unrecognised", length: payload.len(), rest: payload, within: None }
    }

    /// Which message this is, once its type is known.
    pub(super) fn identify(&mut self, message: &'static str) -> &mut Self {
        self.message = message;
        self
    }

    /// Bytes that are left.
    fn left(&self) -> usize {
        self.rest.len()
    }

    /// Offset of the next byte.
    pub(super) fn offset(&self) -> usize {
        self.length - self.rest.len()
    }

    /// An error about the field that starts at `offset`.
    pub(super) fn error(&self, field: &'static str, offset: usize, problem: Problem) -> DecodeError {
        DecodeError { message: self.message, place: Place { within: self.within, field }, offset, problem }
    }

    /// The field takes at least `needed` bytes. To be asked before memory is reserved for it.
    pub(super) fn need(&self, field: &'static str, needed: usize) -> Result<(), DecodeError> {
        let left = self.left();
        if left < needed {
            return Err(self.error(field, self.offset(), Problem::TooShort { needed, left }));
        }
        Ok(())
    }

    pub(super) fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.need(field, size_of::<u8>())?;
        Ok(self.rest.get_u8())
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.need(field, size_of::<u32>())?;
        Ok(self.rest.get_u32())
    }

    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.need(field, size_of::<i32>())?;
        Ok(self.rest.get_i32())
    }

    pub(super) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.need(field, size_of::<i64>())?;
        Ok(self.rest.get_i64())
    }

    pub(super) fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.need(field, size_of::<u64>())?;
        Ok(Lsn(self.rest.get_u64()))
    }

    /// A 16-bit count, which is never negative.
    pub(super) fn count16(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        self.need(field, size_of::<i16>())?;
        let offset = self.offset();
        let count = self.rest.get_i16();
        usize::try_from(count).map_err(|_| self.error(field, offset, Problem::Negative(count.into())))
    }

    /// A 32-bit count or length, which is never negative.
    pub(super) fn count32(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let offset = self.offset();
        let count = self.i32(field)?;
        usize::try_from(count).map_err(|_| self.error(field, offset, Problem::Negative(count)))
    }

    /// Flags, of which only `known` may be set.
    pub(super) fn flags(&mut self, field: &'static str, known: u8) -> Result<u8, DecodeError> {
        let offset = self.offset();
        let flags = self.byte(field)?;
        if flags & !known != 0 {
            return Err(self.error(field, offset, Problem::UnknownFlags(flags)));
        }
        Ok(flags)
    }

    /// `length` bytes, without a copy.
    pub(super) fn bytes(&mut self, field: &'static str, length: usize) -> Result<Bytes, DecodeError> {
        self.need(field, length)?;
        Ok(self.rest.split_to(length))
    }

    /// A string that ends with a zero byte.
    pub(super) fn string(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let offset = self.offset();
        let Some(length) = self.rest.iter().position(|byte| *byte == 0) else {
            return Err(self.error(field, offset, Problem::UnterminatedString));
        };
        let text = self.rest.split_to(length);
        self.rest.advance(1);
        match str::from_utf8(&text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.error(field, offset, Problem::NotUtf8)),
        }
    }

    /// The message ends here.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            left => Err(self.error("end", self.offset(), Problem::TrailingBytes(left))),
        }
    }
}
