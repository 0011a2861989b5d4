//! What the README shows is what is compiled.

#[test]
fn the_readme_shows_the_test_in_a_guest_as_it_is() {
    let readme = include_str!("../../README.md");
    let example = include_str!("../examples/guest_test.rs");
    let (_, code) = example.split_once("/// Runs").unwrap();
    let (function, _) = code.split_once("fn main").unwrap();
    assert!(readme.contains(&format!("/// Runs{}", function.trim_end())));
    let (_, main) = example.split_once("fn main").unwrap();
    assert!(readme.contains(main.trim_end()));
}

#[test]
fn the_readme_shows_the_embedding_example_as_it_is() {
    let readme = include_str!("../../README.md");
    assert!(readme.contains(include_str!("../examples/embed.rs").trim_end()));
}

#[test]
fn the_readme_shows_the_example_of_a_device_as_it_is() {
    let readme = include_str!("../../README.md");
    let example = include_str!("../../devices/examples/user_device.rs").trim_end();
    assert!(readme.contains(example));
    assert!(example.lines().count() <= 80, "it says that it is short");
}
