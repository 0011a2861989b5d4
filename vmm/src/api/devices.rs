//! The calls that add, remove and resize devices. Adding has one for each section of the configuration, all alike.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::JsonBody;
use super::error::Refusal;
use super::routes::Caller;
use crate::config::{
    DeviceSpec, DiskConfig, FsConfig, NetConfig, UserDeviceConfig, VmRemoveDevice, VmResize, VmResizeDisk, VsockConfig,
};
use crate::lifecycle::{PciDeviceInfo, Vmm};

macro_rules! add {
    ($($call:ident $path:tt $config:ident $variant:ident $summary:tt;)*) => {
        $(
            #[doc = $summary]
            #[utoipa::path(put, path = $path, request_body = $config, responses(
                (status = 200, description = "The guest has the device", body = PciDeviceInfo),
                (status = 204, description = "The device is in the configuration of the VM, which does not run"),
                (status = 400, description = "The device is refused; the field and what was expected", body = Vec<String>),
                (status = 404, description = "There is no VM", body = Vec<String>),
                (status = 413, description = "The body is too large", body = Vec<String>)))]
            async fn $call(caller: Caller, JsonBody(config): JsonBody<$config>) -> Result<Response, Refusal> {
                let call = $path.trim_start_matches('/');
                add(caller, call, DeviceSpec::$variant(config)).await
            }
        )*

        /// These calls and their description.
        pub(super) fn calls(router: OpenApiRouter<Vmm>) -> OpenApiRouter<Vmm> {
            router$(.routes(routes!($call)))*
                .routes(routes!(vm_remove_device))
                .routes(routes!(vm_resize))
                .routes(routes!(vm_resize_disk))
        }
    };
}

add! {
    vm_add_disk "/vm.add-disk" DiskConfig Disk "Adds a disk.";
    vm_add_net "/vm.add-net" NetConfig Net "Adds a network interface.";
    vm_add_fs "/vm.add-fs" FsConfig Fs "Adds a share.";
    vm_add_vsock "/vm.add-vsock" VsockConfig Vsock "Adds a socket device.";
    vm_add_user_device "/vm.add-user-device" UserDeviceConfig User "Adds a device in another process.";
}

async fn add(caller: Caller, call: &'static str, spec: DeviceSpec) -> Result<Response, Refusal> {
    let added = caller.call(move |vmm| vmm.add_device(call, spec)).await?;
    Ok(match added {
        Some(info) => Json(info).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Removes a device: at once if the VM does not run, else as soon as the guest lets go of it.
#[utoipa::path(put, path = "/vm.remove-device", request_body = VmRemoveDevice, responses(
    (status = 204, description = "The device is gone, or the guest is asked to let go of it: an event says when it has"),
    (status = 400, description = "The device cannot be removed", body = Vec<String>),
    (status = 404, description = "There is no VM, or no such device", body = Vec<String>)))]
async fn vm_remove_device(
    caller: Caller,
    JsonBody(VmRemoveDevice { id }): JsonBody<VmRemoveDevice>,
) -> Result<StatusCode, Refusal> {
    caller.call(move |vmm| vmm.remove_device(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes what the balloon takes from the guest. vCPUs and memory stay what they are.
#[utoipa::path(put, path = "/vm.resize", request_body = VmResize, responses(
    (status = 204, description = "The guest is asked for it"),
    (status = 400, description = "That cannot be changed; the field and what was expected", body = Vec<String>),
    (status = 404, description = "There is no VM", body = Vec<String>)))]
async fn vm_resize(caller: Caller, JsonBody(resize): JsonBody<VmResize>) -> Result<StatusCode, Refusal> {
    caller.call(move |vmm| vmm.resize(&resize)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a disk larger; its image grows.
#[utoipa::path(put, path = "/vm.resize-disk", request_body = VmResizeDisk, responses(
    (status = 204, description = "The disk has that capacity, and the guest is told"),
    (status = 400, description = "The disk cannot have that capacity", body = Vec<String>),
    (status = 404, description = "There is no VM, or no such disk", body = Vec<String>),
    (status = 409, description = "The VM is neither Running nor Paused", body = Vec<String>)))]
async fn vm_resize_disk(
    caller: Caller,
    JsonBody(VmResizeDisk { id, desired_size }): JsonBody<VmResizeDisk>,
) -> Result<StatusCode, Refusal> {
    caller.call(move |vmm| vmm.resize_disk(&id, desired_size)).await?;
    Ok(StatusCode::NO_CONTENT)
}
