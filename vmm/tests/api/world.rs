//! A server, what it serves, and a client.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use reprise_vmm::api::{ApiServer, ApiSocket};
use reprise_vmm::events::Events;
use reprise_vmm::lifecycle::{Vmm, WhenGuestEnds};
use serde_json::{Value, json};

use crate::doubles::{Doubles, EVENTUALLY};

/// A server and what it serves.
pub struct World {
    pub doubles: Doubles,
    pub vmm: Vmm,
    pub socket: PathBuf,
    pub server: Option<ApiServer>,
    _folder: tempfile::TempDir,
}

/// Status and body.
pub type Answer = (u16, Value);

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let doubles = Doubles::new();
        let vmm = doubles.vmm(WhenGuestEnds::Stay, Events::default());
        let server = ApiServer::start(&ApiSocket::Path(socket.clone()), vmm.clone()).unwrap();
        Self {
            doubles,
            vmm,
            socket,
            server: Some(server),
            _folder: folder,
        }
    }

    pub fn created() -> Self {
        let world = Self::new();
        assert_eq!(world.put("vm.create", &config()), (204, Value::Null));
        world
    }

    pub fn running() -> Self {
        let world = Self::created();
        assert_eq!(world.put("vm.boot", &Value::Null), (204, Value::Null));
        world
    }

    pub fn call(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Response<Bytes> {
        http(&self.socket, method, path, body.into())
    }

    pub fn get(&self, call: &str) -> Answer {
        answer(&self.call("GET", &format!("/api/v1/{call}"), ""))
    }

    pub fn put(&self, call: &str, body: &Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        answer(&self.call("PUT", &format!("/api/v1/{call}"), body))
    }

    pub fn state(&self) -> Value {
        self.get("vm.info").1["state"].take()
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(EVENTUALLY)).unwrap();
        stream
    }

    /// Sends bytes and reads what comes back until the server closes the connection.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// One request with a client that is not ours.
pub fn http(socket: &std::path::Path, method: &str, path: &str, body: Bytes) -> Response<Bytes> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost")
            .body(Full::new(body));
        let (parts, body) = sender.send_request(request.unwrap()).await.unwrap().into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    })
}

pub fn answer(response: &Response<Bytes>) -> Answer {
    let body = if response.body().is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(response.body()).expect("a body is JSON")
    };
    (response.status().as_u16(), body)
}

pub fn config() -> Value {
    json!({"payload": {"kernel": "/kernel"}, "cpus": {"boot_vcpus": 2, "max_vcpus": 2}})
}

/// Checks that a refusal is a chain of texts, and returns it in one line.
pub fn chain(body: &Value) -> String {
    let texts: Vec<&str> = body
        .as_array()
        .expect("an array")
        .iter()
        .map(|text| text.as_str().expect("texts"))
        .collect();
    assert!(!texts.is_empty());
    texts.join(": ")
}
