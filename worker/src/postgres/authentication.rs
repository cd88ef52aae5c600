//! Proving who we are on the replication connection: SCRAM-SHA-256 (bound to the TLS channel where there is
//! one), MD5, and cleartext over TLS only.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::credentials::Credentials;
use super::error::ConnectError;
use super::replication::Wire;

/// Answers the server's request for authentication, up to `AuthenticationOk`.
pub(super) async fn authenticate(wire: &mut Wire, credentials: &Credentials) -> Result<(), ConnectError> {
    let password = credentials.password.as_bytes();
    let request = next(wire).await?;
    if let Message::AuthenticationOk = request {
        return Ok(());
    } else if let Message::AuthenticationSasl(body) = request {
        scram(wire, &body, password).await?;
    } else if let Message::AuthenticationMd5Password(body) = request {
        let hash = md5_hash(credentials.username.as_bytes(), password, body.salt());
        send_password(wire, hash.as_bytes()).await?;
    } else if let Message::AuthenticationCleartextPassword = request {
        if !wire.transport.is_encrypted() {
            return Err(ConnectError::Authentication(
                "the server asks for the password in cleartext on a connection that is not encrypted".into(),
            ));
        }
        send_password(wire, password).await?;
    } else {
        return Err(unsupported(&request));
    }
    let Message::AuthenticationOk = next(wire).await? else { return Err(unexpected()) };
    Ok(())
}

async fn scram(wire: &mut Wire, body: &AuthenticationSaslBody, password: &[u8]) -> Result<(), ConnectError> {
    let mechanisms: Vec<&str> = body.mechanisms().collect().map_err(|error| ConnectError::from_io(&error))?;
    let binding = wire.transport.binding().map(<[u8]>::to_vec);
    let (mechanism, binding) = match binding {
        Some(hash) if mechanisms.contains(&SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash))
        }
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    if !mechanisms.contains(&mechanism) {
        return Err(ConnectError::Authentication(format!(
            "the server offers {} and not SCRAM-SHA-256",
            mechanisms.join(", ")
        )));
    }
    let mut scram = ScramSha256::new(password, binding);
    let mut buffer = BytesMut::new();
    frontend::sasl_initial_response(mechanism, scram.message(), &mut buffer)
        .map_err(|error| ConnectError::from_io(&error))?;
    wire.send(&buffer).await.map_err(|error| ConnectError::from_io(&error))?;

    let Message::AuthenticationSaslContinue(challenge) = next(wire).await? else { return Err(unexpected()) };
    scram.update(challenge.data()).map_err(|error| proof_failed(&error))?;
    buffer.clear();
    frontend::sasl_response(scram.message(), &mut buffer).map_err(|error| ConnectError::from_io(&error))?;
    wire.send(&buffer).await.map_err(|error| ConnectError::from_io(&error))?;

    let Message::AuthenticationSaslFinal(signature) = next(wire).await? else { return Err(unexpected()) };
    scram.finish(signature.data()).map_err(|error| proof_failed(&error))
}

fn proof_failed(error: &std::io::Error) -> ConnectError {
    ConnectError::Authentication(format!("the server does not prove that it knows the password: {error}"))
}

fn unsupported(request: &Message) -> ConnectError {
    let method = if matches!(request, Message::AuthenticationGss | Message::AuthenticationSspi) {
        "Kerberos (GSS, SSPI)"
    } else {
        "a method that is not supported"
    };
    ConnectError::Authentication(format!("the server asks for {method}"))
}

fn unexpected() -> ConnectError {
    ConnectError::Protocol("an unexpected message during authentication".into())
}

async fn send_password(wire: &mut Wire, password: &[u8]) -> Result<(), ConnectError> {
    let mut buffer = BytesMut::new();
    frontend::password_message(password, &mut buffer).map_err(|error| ConnectError::from_io(&error))?;
    wire.send(&buffer).await.map_err(|error| ConnectError::from_io(&error))
}

async fn next(wire: &mut Wire) -> Result<Message, ConnectError> {
    wire.message().await.map_err(ConnectError::from)
}
