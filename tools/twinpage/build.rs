// SPDX-License-Identifier: GPL-2.0

//! Generates the UAPI types from the module's own header.
//!
//! bindgen does not evaluate function-like macros such as `_IOWR`, so the ioctl numbers become
//! typed constants of a wrapper: clang then computes them, nobody copies them.

use std::env;
use std::path::{
    Path,
    PathBuf, //
};

/// The macros that are ioctl numbers; each becomes the constant of the same name with `_IOC`.
const IOCTLS: [&str; 4] = [
    "TWINPAGE_VERSION",
    "TWINPAGE_ATTACH",
    "TWINPAGE_DETACH",
    "TWINPAGE_READ", //
];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let header = manifest.join("../../rust/uapi/twinpage.h");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", header.display());

    bindgen::Builder::default()
        .header_contents("wrapper.h", &wrapper(&header))
        .allowlist_type("twinpage_.*")
        .allowlist_var("TWINPAGE_.*")
        .derive_default(true)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(false)
        .use_core()
        .generate()
        .expect("bindgen reads rust/uapi/twinpage.h")
        .write_to_file(out.join("uapi.rs"))
        .expect("OUT_DIR is writable");
}

/// A C file that includes `header` and names the ioctl numbers.
fn wrapper(header: &Path) -> String {
    let mut text = format!("#include \"{}\"\n", header.display());
    for name in IOCTLS {
        text += &format!("static const unsigned int {name}_IOC = {name};\n");
    }
    text
}
