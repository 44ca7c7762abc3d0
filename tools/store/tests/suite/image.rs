// SPDX-License-Identifier: GPL-2.0

//! Disk images are read through a real `qemu-img`.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Stdio, //
};

use twinpage_store::build::Input;

use crate::build::{
    digests,
    digests_of, //
};
use crate::pages::{
    self,
    page, //
};

/// Runs a program of QEMU, which must be there.
fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status();
    assert!(done.unwrap().success(), "{program} {arguments:?}");
}

/// A raw image of 200 MiB with some pages, in pieces that are far from each other.
fn raw(directory: &Path) -> PathBuf {
    let path = directory.join("raw");
    let file = fs::File::create(&path).unwrap();
    for (number, at) in [
        (1, 0),
        (2, 70 << 20),
        (3, (127 << 20) + 4096 * 200),
        (4, (200 << 20) - 4096),
    ] {
        file.write_all_at(&page(number), at).unwrap();
    }
    // Across the border of two pieces.
    let many: Vec<u8> = (1000..3000).flat_map(page).collect();
    file.write_all_at(&many, 128 << 20).unwrap();
    path
}

#[test]
fn formats_give_the_pages_of_their_raw_image() {
    let directory = pages::directory();
    let raw = raw(directory.path());
    let expected = digests_of(&Input::RawImage(raw.clone())).unwrap().0;
    assert_eq!(expected.len(), 2004);
    let text = raw.to_str().unwrap();
    for (format, options) in [
        ("raw", ""),
        ("qcow2", "compat=1.1"),
        ("qcow2", "compression_type=zstd"),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi", ""),
        ("vhdx", ""),
    ] {
        let image = directory.path().join("image");
        let mut arguments = vec![
            "convert",
            "-f",
            "raw",
            "-O",
            format,
            text,
            image.to_str().unwrap(),
        ];
        if options.contains("zstd") {
            arguments.insert(1, "-c");
        }
        if !options.is_empty() {
            arguments.splice(1..1, ["-o", options]);
        }
        run("qemu-img", &arguments);
        let (found, read) = digests_of(&Input::Image(image)).unwrap();
        assert_eq!(found, expected, "{format} {options}");
        assert_eq!((&read.format[..], read.bytes), (format, 200 << 20));
    }
}

#[test]
fn backing_files_are_left_out() {
    let directory = pages::directory();
    // What an attacker would like to see in a store that many read.
    let secret = directory.path().join("secret");
    fs::write(&secret, page(7).repeat(64)).unwrap();
    let image = directory.path().join("image, with a comma");
    let arguments = [
        "create",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        secret.to_str().unwrap(),
    ];
    run(
        "qemu-img",
        &[&arguments[..], &[image.to_str().unwrap(), "1M"]].concat(),
    );
    let source = directory.path().join("page");
    fs::write(&source, page(8).repeat(16)).unwrap();
    let write = format!("write -s {} 512k 64k", source.display());
    run("qemu-io", &["-c", &write, image.to_str().unwrap()]);
    let (found, _) = digests_of(&Input::Image(image)).unwrap();
    assert_eq!(found, digests([8; 16]));
}

#[test]
fn images_of_several_files_are_refused() {
    let directory = pages::directory();
    let raw = raw(directory.path());
    let other = directory.path().join("other");
    let image = directory.path().join("image");
    let option = format!("data_file={}", other.display());
    run(
        "qemu-img",
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            &option,
            image.to_str().unwrap(),
            "1M",
        ],
    );
    let error = digests_of(&Input::Image(image)).unwrap_err().to_string();
    assert!(error.contains("another file"), "{error}");
    let vmdk = directory.path().join("flat.vmdk");
    let arguments = [
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=monolithicFlat",
    ];
    run(
        "qemu-img",
        &[
            &arguments[..],
            &[raw.to_str().unwrap(), vmdk.to_str().unwrap()],
        ]
        .concat(),
    );
    let error = digests_of(&Input::Image(vmdk)).unwrap_err().to_string();
    assert!(error.contains("names other files"), "{error}");
}

#[test]
fn a_raw_image_is_never_taken_for_another_format() {
    let directory = pages::directory();
    let image = directory.path().join("image");
    run(
        "qemu-img",
        &["create", "-f", "qcow2", image.to_str().unwrap(), "1G"],
    );
    let bytes = fs::metadata(&image).unwrap().len();
    let (_, read) = digests_of(&Input::RawImage(image)).unwrap();
    assert_eq!((&read.format[..], read.bytes), ("raw", bytes));
}

#[test]
fn images_that_claim_any_size_are_refused() {
    let directory = pages::directory();
    let image = directory.path().join("image");
    let text = image.to_str().unwrap();
    run("qemu-img", &["create", "-f", "qcow2", text, "64T"]);
    let (found, read) = digests_of(&Input::Image(image.clone())).unwrap();
    assert_eq!((found.len(), read.bytes), (0, 64 << 40));
    run("qemu-img", &["create", "-f", "qcow2", text, "65T"]);
    let error = digests_of(&Input::Image(image)).unwrap_err().to_string();
    assert!(error.contains("larger than 64 TiB"), "{error}");
}

#[test]
fn what_qemu_says_is_passed_on() {
    let directory = pages::directory();
    let image = directory.path().join("image");
    run(
        "qemu-img",
        &["create", "-f", "qcow2", image.to_str().unwrap(), "1M"],
    );
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    // A version that there is not.
    file.write_all_at(&[0, 0, 0, 99], 4).unwrap();
    let error = digests_of(&Input::Image(image)).unwrap_err().to_string();
    assert!(
        error.starts_with("qemu-img failed on ") && error.contains("ersion"),
        "{error}"
    );
}
