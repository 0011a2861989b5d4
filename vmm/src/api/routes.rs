//! The calls: path, method, body and answers of each, for the router and for the OpenAPI document at once.

use std::sync::Arc;

use axum::extract::{FromRequestParts, OriginalUri};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::JsonBody;
use super::connections::Connection;
use super::devices;
use super::error::Refusal;
use crate::config::{RestoreConfig, VmConfig, VmSnapshotConfig};
use crate::lifecycle::{Restore, VmCounters, VmInfo, Vmm, VmmError, VmmPingResponse};

/// Everything that is served.
pub(super) fn router(vmm: Vmm) -> Router {
    let (calls, _document) = calls().split_for_parts();
    Router::new()
        .nest("/api/v1", calls.method_not_allowed_fallback(wrong_method))
        .fallback(unknown_path)
        .with_state(vmm)
}

/// The head of the document; the calls bring the rest.
#[derive(OpenApi)]
#[openapi(
    info(title = "Reprise", description = "One microVM, from its creation to its end."),
    servers((url = "http://localhost/api/v1"))
)]
struct Head;

/// The calls and their description.
pub(super) fn calls() -> OpenApiRouter<Vmm> {
    let router = OpenApiRouter::with_openapi(Head::openapi())
        .routes(routes!(vmm_ping))
        .routes(routes!(vmm_shutdown))
        .routes(routes!(vm_info))
        .routes(routes!(vm_counters))
        .routes(routes!(vm_create))
        .routes(routes!(vm_delete))
        .routes(routes!(vm_boot))
        .routes(routes!(vm_shutdown))
        .routes(routes!(vm_reboot))
        .routes(routes!(vm_pause))
        .routes(routes!(vm_resume))
        .routes(routes!(vm_power_button))
        .routes(routes!(vm_snapshot))
        .routes(routes!(vm_restore));
    not_yet(devices::calls(router))
}

/// Who calls, and what is called.
pub(super) struct Caller {
    vmm: Vmm,
    connection: Arc<Connection>,
}

impl FromRequestParts<Vmm> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, vmm: &Vmm) -> Result<Self, Refusal> {
        let connection = parts
            .extensions
            .get::<Arc<Connection>>()
            .cloned()
            .unwrap_or_else(Connection::new);
        connection.touch();
        Ok(Self {
            vmm: vmm.clone(),
            connection,
        })
    }
}

impl Caller {
    /// Makes a call that may take time, on a thread of its own. It goes on to its end even if the client leaves.
    pub(super) async fn call<T: Send + 'static>(
        self,
        call: impl FnOnce(&Vmm) -> Result<T, VmmError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let Self { vmm, connection } = self;
        let _busy = connection.busy();
        match tokio::task::spawn_blocking(move || call(&vmm)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the call panicked; the log says where",
            )),
        }
    }

    async fn change(self, call: fn(&Vmm) -> Result<(), VmmError>) -> Result<StatusCode, Refusal> {
        self.call(call).await?;
        Ok(StatusCode::NO_CONTENT)
    }
}

/// Says that the VMM is alive, and what it is. Never waits for the VM.
#[utoipa::path(get, path = "/vmm.ping", responses((status = 200, description = "The VMM", body = VmmPingResponse)))]
async fn vmm_ping(caller: Caller) -> Json<VmmPingResponse> {
    Json(caller.vmm.ping())
}

/// Ends the VMM, and its VM with it.
#[utoipa::path(put, path = "/vmm.shutdown", responses((status = 204, description = "The VMM is about to end")))]
async fn vmm_shutdown(caller: Caller) -> StatusCode {
    caller.vmm.request_end();
    StatusCode::NO_CONTENT
}

/// The VM's configuration and state. Never waits for the VM.
#[utoipa::path(get, path = "/vm.info", responses(
    (status = 200, description = "The VM", body = VmInfo),
    (status = 404, description = "There is no VM", body = Vec<String>)))]
async fn vm_info(caller: Caller) -> Result<Json<VmInfo>, Refusal> {
    Ok(Json(caller.vmm.info()?))
}

/// Figures by device and name.
#[utoipa::path(get, path = "/vm.counters", responses(
    (status = 200, description = "The figures", body = VmCounters),
    (status = 404, description = "There is no VM", body = Vec<String>),
    (status = 409, description = "The VM is neither Running nor Paused", body = Vec<String>)))]
async fn vm_counters(caller: Caller) -> Result<Json<VmCounters>, Refusal> {
    caller.call(Vmm::counters).await.map(Json)
}

/// Makes a VM; it does not run yet.
#[utoipa::path(put, path = "/vm.create", request_body = VmConfig, responses(
    (status = 204, description = "The VM is Created"),
    (status = 400, description = "The configuration is refused; the field and what was expected", body = Vec<String>),
    (status = 409, description = "There is a VM already", body = Vec<String>),
    (status = 413, description = "The body is too large", body = Vec<String>)))]
async fn vm_create(caller: Caller, JsonBody(config): JsonBody<VmConfig>) -> Result<StatusCode, Refusal> {
    caller.call(|vmm| vmm.create(config)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forgets the VM, switching it off first if need be.
#[utoipa::path(put, path = "/vm.delete", responses(
    (status = 204, description = "There is no VM any more"),
    (status = 404, description = "There is no VM", body = Vec<String>)))]
async fn vm_delete(caller: Caller) -> Result<StatusCode, Refusal> {
    caller.change(Vmm::delete).await
}

/// Builds the machine and starts it.
#[utoipa::path(put, path = "/vm.boot", responses(
    (status = 204, description = "The VM is Running"),
    (status = 400, description = "The machine cannot be built from its configuration", body = Vec<String>),
    (status = 404, description = "There is no VM", body = Vec<String>),
    (status = 409, description = "The VM is neither Created nor Shutdown", body = Vec<String>)))]
async fn vm_boot(caller: Caller) -> Result<StatusCode, Refusal> {
    caller.change(Vmm::boot).await
}

/// Switches the machine off, as pulling the plug does.
#[utoipa::path(put, path = "/vm.shutdown", responses(
    (status = 204, description = "The VM is Shutdown"),
    (status = 404, description = "There is no VM", body = Vec<String>),
    (status = 409, description = "The VM is neither Running nor Paused", body = Vec<String>)))]
async fn vm_shutdown(caller: Caller) -> Result<StatusCode, Refusal> {
    caller.change(Vmm::shutdown).await
}

/// Switches the machine off and on.
#[utoipa::path(put, path = "/vm.reboot", responses(
    (status = 204, description = "The VM is Running"),
    (status = 400, description = "The machine cannot be built again", body = Vec<String>),
    (status = 404, description = "There is no VM", body = Vec<String>),
    (status = 409, description = "The VM is neither Running nor Paused", body = Vec<String>)))]
async fn vm_reboot(caller: Caller) -> Result<StatusCode, Refusal> {
    caller.change(Vmm::reboot).await
}

/// Stops the vCPUs and clocks where they are.
#[utoipa::path(put, path = "/vm.pause", responses(
    (status = 204, description = "The VM is Paused"),
    (status = 404, description = "There is no VM", body = Vec<String>),
    (status = 409, description = "The VM is not Running", body = Vec<String>),
    (status = 500, description = "A vCPU does not stop", body = Vec<String>)))]
async fn vm_pause(caller: Caller) -> Result<StatusCode, Refusal> {
    caller.change(Vmm::pause).await
}

/// Continues a paused VM.
#[utoipa::path(put, path = "/vm.resume", responses(
    (status = 204, description = "The VM is Running"),
    (status = 404, description = "There is no VM", body = Vec<String>),
    (status = 409, description = "The VM is not Paused", body = Vec<String>)))]
async fn vm_resume(caller: Caller) -> Result<StatusCode, Refusal> {
    caller.change(Vmm::resume).await
}

/// Presses the ACPI power button; the guest decides what comes of it.
#[utoipa::path(put, path = "/vm.power-button", responses(
    (status = 204, description = "The button was pressed"),
    (status = 404, description = "There is no VM", body = Vec<String>),
    (status = 409, description = "The VM is not Running", body = Vec<String>)))]
async fn vm_power_button(caller: Caller) -> Result<StatusCode, Refusal> {
    caller.change(Vmm::power_button).await
}

/// Writes the VM into a folder, from which vm.restore makes it again, here or in another process. The VM stays as it is.
#[utoipa::path(put, path = "/vm.snapshot", request_body = VmSnapshotConfig, responses(
    (status = 204, description = "The snapshot is complete, and has reached the disk"),
    (status = 400, description = "There can be no snapshot in that place", body = Vec<String>),
    (status = 404, description = "There is no VM", body = Vec<String>),
    (status = 409, description = "The VM is not Paused, or another snapshot is being written there", body = Vec<String>),
    (status = 500, description = "It cannot be written; what was there before still is", body = Vec<String>)))]
async fn vm_snapshot(caller: Caller, JsonBody(config): JsonBody<VmSnapshotConfig>) -> Result<StatusCode, Refusal> {
    let destination = config.path()?;
    caller.call(move |vmm| vmm.snapshot(&destination)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a VM of a snapshot. It is Paused, or goes on at once if the body says so.
#[utoipa::path(put, path = "/vm.restore", request_body = RestoreConfig, responses(
    (status = 204, description = "The VM is Paused, or Running if that was asked for"),
    (status = 400, description = "The snapshot is missing, damaged, or makes no VM here", body = Vec<String>),
    (status = 409, description = "There is a VM already", body = Vec<String>)))]
async fn vm_restore(caller: Caller, JsonBody(config): JsonBody<RestoreConfig>) -> Result<StatusCode, Refusal> {
    let source = config.path()?;
    let how = Restore {
        prefault: config.prefault,
        resume: config.resume,
        serial: None,
        net_fds: config.net_fds,
    };
    caller.call(move |vmm| vmm.restore(&source, how)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Calls that are known and not there yet.
macro_rules! not_yet {
    ($($call:ident $path:tt $summary:tt;)*) => {
        $(
            #[doc = $summary]
            #[utoipa::path(put, path = $path, responses(
                (status = 501, description = "Not supported yet", body = Vec<String>)))]
            async fn $call() -> Refusal {
                VmmError::NotSupported { call: $path.trim_start_matches('/') }.into()
            }
        )*

        fn not_yet(router: OpenApiRouter<Vmm>) -> OpenApiRouter<Vmm> {
            router$(.routes(routes!($call)))*
        }
    };
}

not_yet! {
    vm_nmi "/vm.nmi" "Sends a non-maskable interrupt; not supported yet.";
    vm_resize_zone "/vm.resize-zone" "Changes the size of a memory zone; not supported yet.";
    vm_coredump "/vm.coredump" "Writes the guest's memory to a file; not supported yet.";
    vm_receive_migration "/vm.receive-migration" "Takes a VM over from another host; not supported yet.";
    vm_send_migration "/vm.send-migration" "Hands the VM to another host; not supported yet.";
    vm_add_device "/vm.add-device" "Adds a host device; not supported yet.";
    vm_add_generic_vhost_user "/vm.add-generic-vhost-user" "Adds a vhost-user device; not supported yet.";
    vm_add_pmem "/vm.add-pmem" "Adds persistent memory; not supported yet.";
    vm_add_vdpa "/vm.add-vdpa" "Adds a vDPA device; not supported yet.";
}

async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> Refusal {
    let text = format!("{method} is no method of {}; expected the one in Allow", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text)
}

async fn unknown_path(OriginalUri(uri): OriginalUri) -> Refusal {
    let text = format!(
        "there is no {}; expected /api/v1/vmm.ping or another call of `reprise openapi`",
        uri.path()
    );
    Refusal::new(StatusCode::NOT_FOUND, text)
}
