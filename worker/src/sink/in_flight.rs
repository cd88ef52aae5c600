//! Statements on their way: many are sent before the first answer is awaited, so that a round trip is paid per
//! batch and not per row.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use tokio_postgres::Error;

/// Statements sent whose answers are not read yet.
const IN_FLIGHT_MAX: usize = 256;

type Answer<'a> = Pin<Box<dyn Future<Output = Result<u64, Error>> + Send + 'a>>;

/// Statements on their way, in the order in which they are executed. Each must touch exactly one row.
#[derive(Default)]
pub(super) struct InFlight<'a> {
    answers: VecDeque<Answer<'a>>,
}

/// The first statement that did not do what it should.
#[derive(Debug)]
pub(super) enum NotApplied {
    /// The sink refused it.
    Refused(Error),
    /// It touched that many rows.
    Touched(u64),
}

impl<'a> InFlight<'a> {
    /// Sends a statement. The first poll puts it on the wire, which is what keeps the order.
    pub(super) async fn send(
        &mut self,
        statement: impl Future<Output = Result<u64, Error>> + Send + 'a,
    ) -> Result<(), NotApplied> {
        let mut answer: Answer<'a> = Box::pin(statement);
        match futures::poll!(&mut answer) {
            std::task::Poll::Ready(touched) => check(touched)?,
            std::task::Poll::Pending => self.answers.push_back(answer),
        }
        if self.answers.len() >= IN_FLIGHT_MAX {
            self.settle_first().await?;
        }
        Ok(())
    }

    /// Waits for all answers. Must come before anything else is awaited on the session: an answer that nobody
    /// reads stops those behind it.
    pub(super) async fn settle(&mut self) -> Result<(), NotApplied> {
        while !self.answers.is_empty() {
            self.settle_first().await?;
        }
        Ok(())
    }

    async fn settle_first(&mut self) -> Result<(), NotApplied> {
        match self.answers.pop_front() {
            Some(answer) => check(answer.await),
            None => Ok(()),
        }
    }
}

fn check(touched: Result<u64, Error>) -> Result<(), NotApplied> {
    match touched.map_err(NotApplied::Refused)? {
        1 => Ok(()),
        touched => Err(NotApplied::Touched(touched)),
    }
}
