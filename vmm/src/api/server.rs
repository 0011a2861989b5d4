//! The thread that serves.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connections::{Connection, Connections};
use super::routes;
use super::socket::{ApiSocket, Listening};
use crate::lifecycle::Vmm;

/// Threads for calls that take time; further ones wait their turn.
const CALLS: usize = 16;

/// How long answers under way may take when the server ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// The pause after the host refused a connection (too many open files), so that it is not asked all the time.
const RESPITE: Duration = Duration::from_millis(50);

/// The API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Another server answers there.
    #[error("the socket {path:?} is in use; expected a path that no server listens on")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there, and is left alone.
    #[error("{path:?} exists and is no socket; expected a free path or a socket left behind")]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("the socket {path:?} cannot be made")]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The descriptor is no listening UNIX socket.
    #[error("file descriptor {fd} cannot be served on; expected a listening UNIX socket")]
    Inherited {
        /// The descriptor.
        fd: RawFd,
        /// Why.
        source: io::Error,
    },
    /// The host gives no thread or no polling.
    #[error("the API server cannot start")]
    Start {
        /// Why.
        source: io::Error,
    },
}

/// A running server. Dropping it lets answers under way finish, closes all connections and removes the socket.
#[derive(Debug)]
pub struct ApiServer {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    /// The file goes when the server does.
    _listening: Listening,
}

impl ApiServer {
    /// Binds `socket` and serves `vmm` on it. The socket answers when this returns.
    ///
    /// # Errors
    /// [`ApiError`] if it cannot be bound or there can be no thread.
    pub fn start(socket: &ApiSocket, vmm: Vmm) -> Result<Self, ApiError> {
        let listening = Listening::on(socket)?;
        let of = |source| ApiError::Start { source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(CALLS)
            .thread_name("api-call")
            .build()
            .map_err(of)?;
        let listener = listening.listener.try_clone().map_err(of)?;
        listener.set_nonblocking(true).map_err(of)?;
        let (stop, stopped) = watch::channel(false);
        let thread = thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || {
                runtime.block_on(serve(listener, routes::router(vmm), stopped));
                runtime.shutdown_background();
            })
            .map_err(of)?;
        Ok(Self {
            stop,
            thread: Some(thread),
            _listening: listening,
        })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the API server's thread panicked");
        }
    }
}

async fn serve(listener: std::os::unix::net::UnixListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the API's socket cannot be polled");
            return;
        }
    };
    let mut connections = Connections::default();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if connections.make_room() {
                        let connection = Connection::new();
                        let task = converse(stream, router.clone(), connection.clone(), stopped.clone());
                        connections.add(connection, tasks.spawn(task));
                    } else {
                        turn_away(&stream);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the API cannot be accepted");
                    tokio::time::sleep(RESPITE).await;
                }
            },
        }
    }
    drop(listener);
    let rest = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, rest).await.is_err() {
        tracing::warn!("the API server ends before all its answers are sent");
    }
}

/// Serves one connection to its end.
async fn converse(stream: UnixStream, router: Router, connection: Arc<Connection>, mut stopped: watch::Receiver<bool>) {
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        inner.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.title_case_headers(true);
    // Whoever is slow with a header holds nobody up: see `connections`.
    builder.header_read_timeout(None);
    let mut http = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = http.as_mut() => ended,
        _ = stopped.changed() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the API broke off");
    }
}

/// Says why to a connection that nobody can make room for. One write into an empty socket: it does not wait.
fn turn_away(stream: &UnixStream) {
    let body = r#"["too many calls are under way at once"]"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    // A client that has gone meanwhile needs no answer.
    let _ = stream.try_write(answer.as_bytes());
}
