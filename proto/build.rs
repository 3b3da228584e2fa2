//! Compiles the contracts without an installed protoc: `protox` parses the
//! CRI for prost and tonic, `ttrpc-codegen` (pure parser) the shim service.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cri");
    println!("cargo:rerun-if-changed=images");
    println!("cargo:rerun-if-changed=shim");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    if env::var_os("CARGO_FEATURE_CRI").is_some() {
        let descriptor = protox::compile(["cri/v1/api.proto"], ["."])?;
        fs::write(out.join("cri.bin"), descriptor.encode_to_vec())?;
        tonic_prost_build::configure()
            // Configs are recorded and compared, so their encoding must not depend on hash order.
            .btree_map(".")
            .compile_fds(descriptor)?;
        let descriptor = protox::compile(["images/v1/images.proto"], ["."])?;
        tonic_prost_build::configure().compile_fds(descriptor)?;
    }

    if env::var_os("CARGO_FEATURE_SHIM").is_some() {
        ttrpc_codegen::Codegen::new()
            .out_dir(&out)
            .input("shim/v1/shim.proto")
            .include("shim/v1")
            .rust_protobuf()
            .customize(ttrpc_codegen::Customize { async_all: true, gen_mod: false, ..Default::default() })
            .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
            .run()?;
        // The generated files open with inner attributes, which `include!` refuses.
        for name in ["shim.rs", "shim_ttrpc.rs"] {
            let path = out.join(name);
            let text = fs::read_to_string(&path)?;
            let text: String = text
                .lines()
                .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
                .map(|line| format!("{line}\n"))
                .collect();
            fs::write(path, text)?;
        }
    }
    Ok(())
}
